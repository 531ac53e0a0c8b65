//! The runbook that alerts link to: `docs/runbook.md` as an HTML page.
//!
//! Reads the Markdown that this one file uses: headings, paragraphs, flat lists, code, bold text and links.

use std::fmt::Write as _;
use std::sync::LazyLock;

/// Compiled in, so that it can be read when nothing else works.
const RUNBOOK: &str = include_str!("../../docs/runbook.md");

/// Base of links to other documents, which are not in the program.
const DOCUMENTS: &str = "https://github.com/leadsman/leadsman/blob/main/docs/";

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Leadsman: runbook</title>
<style>:root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}h2{margin-top:2.5rem}h2:target{outline:3px solid;outline-offset:.3rem}code{font-size:.95em}</style>
<p><a href="./">Status page</a></p>
"#;

/// The page.
pub(super) static PAGE: LazyLock<String> =
    LazyLock::new(|| format!("{HEAD}{}</html>\n", html(RUNBOOK)));

/// Blocks are separated by empty lines.
fn html(markdown: &str) -> String {
    let mut page = String::new();
    for block in markdown.split("\n\n").map(str::trim) {
        // Writing into a String does not fail.
        let _ = if let Some(title) = block.strip_prefix("## ") {
            // As GitHub makes it of a single word.
            let id = escaped(&title.to_lowercase());
            writeln!(page, "<h2 id=\"{id}\">{}</h2>", inline(title))
        } else if let Some(title) = block.strip_prefix("# ") {
            writeln!(page, "<h1>{}</h1>", inline(title))
        } else if let Some(list) = block.strip_prefix("- ") {
            let items = list.split("\n- ").map(inline);
            let items: Vec<String> = items.map(|item| format!("<li>{item}</li>\n")).collect();
            writeln!(page, "<ul>\n{}</ul>", items.concat())
        } else if block.is_empty() {
            Ok(())
        } else {
            writeln!(page, "<p>{}</p>", inline(block))
        };
    }
    page
}

/// Code, bold text and links; an unclosed mark is text.
fn inline(text: &str) -> String {
    let mut html = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['`', '*', '[']) {
        let (before, from) = rest.split_at(at);
        html += &escaped(before);
        let (shown, after) = code(from)
            .or_else(|| bold(from))
            .or_else(|| link(from))
            .unwrap_or_else(|| (from[..1].to_owned(), &from[1..]));
        html += &shown;
        rest = after;
    }
    html + &escaped(rest)
}

fn code(text: &str) -> Option<(String, &str)> {
    let (inner, after) = text.strip_prefix('`')?.split_once('`')?;
    Some((format!("<code>{}</code>", escaped(inner)), after))
}

fn bold(text: &str) -> Option<(String, &str)> {
    let (inner, after) = text.strip_prefix("**")?.split_once("**")?;
    Some((format!("<strong>{}</strong>", inline(inner)), after))
}

fn link(text: &str) -> Option<(String, &str)> {
    let (inner, after) = text.strip_prefix('[')?.split_once("](")?;
    let (target, after) = after.split_once(')')?;
    let base = if target.starts_with('#') {
        ""
    } else {
        DOCUMENTS
    };
    let target = escaped(target);
    Some((
        format!("<a href=\"{base}{target}\">{}</a>", inline(inner)),
        after,
    ))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_markdown_of_the_runbook_becomes_html() {
        check("# A\n", "<h1>A</h1>\n");
        check(
            "## LeadsmanDown\n",
            "<h2 id=\"leadsmandown\">LeadsmanDown</h2>\n",
        );
        check(
            "a <b>\n& \"c\"",
            "<p>a &lt;b&gt;\n&amp; &quot;c&quot;</p>\n",
        );
        check(
            "- **One:** `a < b`\n  goes on\n- [two](#two), [more](slo.md)\n",
            "<ul>\n<li><strong>One:</strong> <code>a &lt; b</code>\n  goes on</li>\n\
             <li><a href=\"#two\">two</a>, <a href=\"https://github.com/leadsman/leadsman/blob/main/docs/slo.md\">more</a></li>\n</ul>\n",
        );
        check("2 * 3 [a] ` [b](", "<p>2 * 3 [a] ` [b](</p>\n");
    }

    #[track_caller]
    fn check(markdown: &str, wanted: &str) {
        assert_eq!(html(markdown), wanted);
    }

    /// Fails if the file uses something that this module cannot read.
    #[test]
    fn nothing_of_the_runbook_is_left_as_markdown() {
        for (number, line) in PAGE.lines().enumerate() {
            let is_marked = ["**", "](", "`", "|"]
                .iter()
                .any(|mark| line.contains(mark));
            let is_block = ["- ", "#", "1. "].iter().any(|mark| line.starts_with(mark));
            assert!(!is_marked && !is_block, "{}: {line}", number + 1);
        }
    }
}
