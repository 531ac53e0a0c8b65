//! Errors of a configuration: collected, and shown all at once with their places.

use std::fmt;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::source_location::SourceLocation;

/// Maximum number of errors that are shown: nobody fixes more at once, and a file of garbage has no end of them.
const SHOWN: usize = 50;

/// Longer source lines are not shown beside the complaint.
const LONGEST_LINE: usize = 400;

/// A file as it was read.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// As it was named.
    pub name: String,
    /// Its text; empty when it could not be read.
    pub text: String,
}

/// One mistake (or hint).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The key that it is about, as `release.mykadoo.probe.db.timeout`; empty when it is about a whole file.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
    /// Where it stands.
    pub location: SourceLocation,
    /// Whether the line must not be shown, because of what may stand in it.
    pub secret: bool,
}

/// All mistakes of a configuration; at least one.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    pub(super) files: Vec<SourceFile>,
    pub(super) list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// In the order of files and lines.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// For people: each mistake with its line, and what would be right.
    pub fn render(&self, colours: bool) -> String {
        let mut text = String::new();
        for diagnostic in self.list.iter().take(SHOWN) {
            text.push_str(&render(diagnostic, &self.files, false, colours));
            text.push_str("\n\n");
        }
        if self.list.len() > SHOWN {
            text.push_str(&format!("and {} more\n\n", self.list.len() - SHOWN));
        }
        let diagnostics = if self.list.len() == 1 {
            "1 mistake".into()
        } else {
            format!("{} mistakes", self.list.len())
        };
        text.push_str(&format!("{diagnostics} in the configuration"));
        text
    }

    /// Line and column of a mistake, counted from 1, when it stands in a file.
    pub fn line_and_column(&self, diagnostic: &Diagnostic) -> Option<(usize, usize)> {
        let (file, span) = diagnostic.location.value_span()?;
        let before = self.files.get(file)?.text.get(..span.start)?;
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Some((line, column))
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// One mistake or hint with its source line.
pub(super) fn render(
    diagnostic: &Diagnostic,
    files: &[SourceFile],
    is_hint: bool,
    colours: bool,
) -> String {
    let renderer = if colours {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let level = if is_hint { Level::NOTE } else { Level::ERROR };
    // What stands between our own words is from the file, and must not forge or colour a line.
    let clean = |text: &str| annotate_snippets::normalize_untrusted_str(text).replace('\n', "\\n");
    let title = clean(&headline(diagnostic));
    let mut group = Group::with_title(level.primary_title(&title));
    let shown = diagnostic.location.value_span().and_then(|(file, span)| {
        let file = files.get(file)?;
        let (line, part, span) = lines_around(&file.text, span)?;
        Some((file, line, part, span))
    });
    if let Some((file, line, part, span)) = shown {
        if diagnostic.secret || part.len() > LONGEST_LINE || may_hold_secret(part) {
            let column = part
                .get(..span.start)
                .map_or(1, |before| before.chars().count() + 1);
            group = group.element(
                Origin::path(file.name.as_str())
                    .line(line)
                    .char_column(column),
            );
        } else {
            let snippet = Snippet::source(part)
                .path(file.name.as_str())
                .line_start(line)
                .annotation(AnnotationKind::Primary.span(span));
            group = group.element(snippet);
        }
    }
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(clean(help)));
    }
    renderer.render(&[group])
}

/// The complaint in one line, with the place where it is no line of a file.
pub(super) fn headline(diagnostic: &Diagnostic) -> String {
    let about = if diagnostic.path.is_empty() {
        String::new()
    } else {
        format!("{}: ", diagnostic.path)
    };
    let location = match &diagnostic.location {
        SourceLocation::Variable(name) => format!(" (from the variable {name})"),
        SourceLocation::Flag(key) => format!(" (from the flag for {key})"),
        SourceLocation::File { .. } | SourceLocation::Default => String::new(),
    };
    format!("{about}{}{location}", diagnostic.message)
}

/// Whether a line must not be shown, because a secret may stand in it: it names one, or holds a URL with user info.
fn may_hold_secret(line: &str) -> bool {
    let line = line
        .to_lowercase()
        .replace("password_file", "")
        .replace("token_file", "")
        .replace("key_file", "");
    ["password", "token", "authorization", "cookie", "secret"]
        .iter()
        .any(|word| line.contains(word))
        || line
            .split_once("://")
            .is_some_and(|(_, rest)| rest.contains('@'))
}

/// The lines that a span touches (of a longer one, the first), their number, and the span within them.
fn lines_around(
    text: &str,
    span: std::ops::Range<usize>,
) -> Option<(usize, &str, std::ops::Range<usize>)> {
    let start = span.start.min(text.len());
    let before = text.get(..start)?;
    let from = before.rfind('\n').map_or(0, |at| at + 1);
    let to = text
        .get(start..)?
        .find('\n')
        .map_or(text.len(), |at| start + at);
    let line = before.matches('\n').count() + 1;
    let part = text.get(from..to)?;
    let end = span.end.clamp(start, to);
    Some((line, part, start - from..end - from))
}
