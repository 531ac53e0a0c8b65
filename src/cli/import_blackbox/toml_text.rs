//! Writes TOML as people do: one setting on a line.

use std::fmt::Write;

/// A key, in quotes where it needs them.
pub(super) fn key(text: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !text.is_empty() && text.bytes().all(bare) {
        text.to_owned()
    } else {
        quoted(text)
    }
}

/// A text: between single quotes where that saves doubling backslashes, as in patterns.
pub(super) fn text(text: &str) -> String {
    let plain = text.chars().all(|c| c != '\'' && !c.is_control());
    if plain && text.contains(['\\', '"']) {
        format!("'{text}'")
    } else {
        quoted(text)
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                // Writing into a String does not fail.
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A list on one line.
pub(super) fn list(items: &[String]) -> String {
    format!("[{}]", items.join(", "))
}

/// A list with a line for each item.
pub(super) fn tall_list(items: &[String]) -> String {
    let mut out = String::from("[\n");
    for item in items {
        out.push_str("  ");
        out.push_str(item);
        out.push_str(",\n");
    }
    out.push(']');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for original in [
            "",
            "plain",
            "it's",
            "^\\+PONG$",
            "{\"a\": 1}",
            "\\ and '",
            "a\r\nb\tc",
            "\u{0}\u{7}\u{1b}\u{7f}\u{85}\u{2028}",
            "ключ, 鍵, 🔑",
            "a.b c",
            "'''",
            "\"\"\"",
        ] {
            let file = format!("{} = {}", key(original), text(original));
            let table: toml::Table = toml::from_str(&file).unwrap();
            let read = table.get(original).and_then(toml::Value::as_str);
            assert_eq!(read, Some(original), "{file}");
        }
    }
}
