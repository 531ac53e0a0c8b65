//! The terminal: the only way by which commands print and log.
//!
//! Invariants:
//! - text from outside moves no cursor, sets no title and changes no writing direction: control and invisible
//!   characters are escaped, as `\u001b`, which is valid JSON as well;
//! - a record is a line, so a line break within it is escaped too.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

/// What a text is, so how much of it may reach the terminal as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextKind {
    /// One line: all control characters are escaped.
    Line,
    /// A line with colours of our own. No text from outside may be in it that is not escaped by its maker.
    Coloured,
}

/// Whether a character does something to a terminal, or cannot be seen on it. Tabs only move on.
const fn is_hidden(c: char) -> bool {
    matches!(c,
        // C0 but the tab, DEL, C1.
        '\0'..='\u{8}' | '\u{a}'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        // Invisible: soft hyphen, grapheme joiner, fillers, vowel separator.
        | '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{3164}' | '\u{ffa0}'
        // Directions.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        // No width, and line breaks of Unicode.
        | '\u{200b}'..='\u{200d}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        // Tags and what else has no glyph.
        | '\u{e0000}'..='\u{e0fff}')
}

/// The text with everything hidden shown as JSON would write it.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_hidden) {
        Cow::Owned(escape(text, TextKind::Line))
    } else {
        Cow::Borrowed(text)
    }
}

fn escape(text: &str, kind: TextKind) -> String {
    let mut shown = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if kind == TextKind::Coloured
            && let Some(colour) = colour(rest)
        {
            shown.push_str(colour);
            rest = &rest[colour.len()..];
            continue;
        }
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            c if is_hidden(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    shown.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => shown.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    shown
}

/// The colour that a text begins with, as `ESC [ 1 ; 31 m`.
fn colour(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("\x1b[")?;
    let length = digits.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    digits[length..]
        .starts_with('m')
        .then(|| &text[..="\x1b[".len() + length])
}

/// Prints a line. A reader that has gone away, as `head` does, ends the command quietly instead of with a panic.
pub(super) fn print(text: &str) {
    if writeln!(io::stdout().lock(), "{}", escaped(text)).is_err() {
        std::process::exit(0);
    }
}

/// Prints a line with colours of our own; there is nothing from outside in it.
pub(super) fn print_coloured(text: &str) {
    if writeln!(io::stdout().lock(), "{}", escape(text, TextKind::Coloured)).is_err() {
        std::process::exit(0);
    }
}

/// Prints a document of our own, line by line. A reader that has gone away ends the command quietly.
///
/// # Errors
/// When it cannot be written, as to a full disk.
pub(super) fn print_document(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut lines = text.lines();
    let written = lines
        .try_for_each(|line| writeln!(out, "{}", escaped(line)))
        .and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written,
    }
}

/// Prints a line on standard error. If that fails, there is no way to report it.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", escaped(text));
}

/// The same for a text of several lines, perhaps with colours, whose maker has escaped what is from outside.
pub(super) fn complain_lines(text: &str) {
    let mut err = io::stderr().lock();
    for line in text.lines() {
        let _ = writeln!(err, "{}", escape(line, TextKind::Coloured));
    }
}

/// Takes back the last lines that were printed, and clears what is below them.
pub(super) fn take_back(lines: usize) {
    let mut out = io::stdout().lock();
    if write!(out, "\x1b[{lines}A\x1b[J")
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(0);
    }
}

/// Whether the output is a terminal.
pub(super) fn is_watched() -> bool {
    io::stdout().is_terminal()
}

/// Whether log lines go to a terminal.
pub(super) fn is_log_watched() -> bool {
    io::stderr().is_terminal()
}

/// Colours only on a terminal, and not where NO_COLOR is set.
pub(super) fn has_colours() -> bool {
    is_watched() && !is_plain()
}

/// The same for standard error.
pub(super) fn has_log_colours() -> bool {
    is_log_watched() && !is_plain()
}

fn is_plain() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// What the further lines of a log record begin with, so that none of them passes for a record.
const FURTHER: &str = "\n    | ";

/// Where log lines go: each record is one write. The subscriber escapes what could be a colour within a field, so colours
/// that are left are its own.
#[derive(Debug)]
pub(super) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        io::stderr().lock().write_all(record(text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

fn record(text: &str) -> String {
    let lines = text.lines().map(|line| escape(line, TextKind::Coloured));
    lines.collect::<Vec<_>>().join(FURTHER) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_shown() {
        for (text, shown) in [
            (
                "plain, größer\t0 → 1 日本語 👍",
                "plain, größer\t0 → 1 日本語 👍",
            ),
            ("\x1b]52;c;cm0gLXJm\x07", "\\u001b]52;c;cm0gLXJm\\u0007"),
            ("\x1b[2J\x1b[31mred", "\\u001b[2J\\u001b[31mred"),
            ("one\nleadsman: forged\r", "one\\nleadsman: forged\\r"),
            ("\u{9b}2J\u{7f}\0", "\\u009b2J\\u007f\\u0000"),
            (
                "a\u{202e}b\u{2066}c\u{200b}\u{2028}",
                "a\\u202eb\\u2066c\\u200b\\u2028",
            ),
            ("\u{e0041}", "\\udb40\\udc41"),
        ] {
            assert_eq!(escaped(text), shown);
        }
    }

    #[test]
    fn a_log_record_forges_no_other_one() {
        let shown = record("12:00 WARN it says why=no\n12:01 INFO all is well\u{202e}\x1b[1A");
        assert_eq!(
            shown,
            "12:00 WARN it says why=no\n    | 12:01 INFO all is well\\u202e\\u001b[1A\n"
        );
    }

    #[test]
    fn json_stays_json() {
        let value = serde_json::json!({ "text": "a\u{202e}\u{9b}\u{7f}\u{e0041}\n\x1b" });
        let text = value.to_string();
        let shown = escaped(&text);
        assert!(!shown.chars().any(is_hidden));
        let read: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(read, value);
    }

    #[test]
    fn of_our_own_colours_pass_and_nothing_else() {
        let text = "\x1b[1;31mred\x1b[0m \x1b[2J \x1b]0;title\x07 \x1b[31";
        let shown = escape(text, TextKind::Coloured);
        assert_eq!(
            shown,
            "\x1b[1;31mred\x1b[0m \\u001b[2J \\u001b]0;title\\u0007 \\u001b[31"
        );
    }
}
