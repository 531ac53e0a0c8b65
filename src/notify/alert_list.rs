//! Parses the list of an Alertmanager's alerts as a stream: there may be ten thousand, of a kilobyte each.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::Deserialize;

use crate::core::alerts::Labels;

/// Maximum size of one of our alerts; larger ones are not ours.
const MAX_ELEMENT: usize = 64 * 1024;

/// Nesting of an alert.
const MAX_DEPTH: u32 = 32;

/// The number of an alert's labels: equal ones have the same.
pub(super) fn number<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for label in labels {
        label.hash(&mut hasher);
    }
    hasher.finish()
}

/// Takes a JSON array of alerts apart.
#[derive(Default)]
pub(super) struct AlertListReader {
    depth: u32,
    in_text: bool,
    escaped: bool,
    element: Vec<u8>,
    found: HashSet<u64>,
}

#[derive(Deserialize)]
struct AlertListElement {
    labels: Labels,
}

impl AlertListReader {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// When they are no array of alerts.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        for byte in bytes {
            let was = self.depth;
            if self.in_text {
                self.in_text = self.escaped || *byte != b'"';
                self.escaped = !self.escaped && *byte == b'\\';
            } else {
                match byte {
                    b'"' => self.in_text = true,
                    b'[' | b'{' if self.depth < MAX_DEPTH => self.depth += 1,
                    b']' | b'}' if self.depth > 0 => self.depth -= 1,
                    b'[' | b'{' | b']' | b'}' => return Err("it is no list of alerts".into()),
                    _ => {}
                }
            }
            if was == 0 && *byte != b'[' && !byte.is_ascii_whitespace() {
                return Err("it is no list of alerts".into());
            }
            if was.max(self.depth) < 2 {
                continue;
            }
            if self.element.len() >= MAX_ELEMENT {
                return Err(format!("an alert in it is larger than {MAX_ELEMENT} bytes"));
            }
            self.element.push(*byte);
            if self.depth == 1 {
                let element: AlertListElement =
                    serde_json::from_slice(&self.element).map_err(|error| error.to_string())?;
                let labels = element.labels.iter();
                let labels = labels.map(|(name, value)| (name.as_str(), value.as_str()));
                self.found.insert(number(labels));
                self.element.clear();
            }
        }
        Ok(())
    }

    /// The numbers of all of them.
    ///
    /// # Errors
    /// When it ended too early.
    pub(super) fn end(self) -> Result<HashSet<u64>, String> {
        if self.depth == 0 && !self.in_text {
            Ok(self.found)
        } else {
            Err("it is cut off".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, step: usize) -> Result<HashSet<u64>, String> {
        let mut listed = AlertListReader::default();
        for part in text.as_bytes().chunks(step) {
            listed.take(part)?;
        }
        listed.end()
    }

    #[test]
    fn alerts_are_found_however_their_bytes_come() {
        let text = r#" [{"labels":{"a":"1","b":"]}\"\\"},"receivers":[{"name":"x"}]}, {"labels":{"a":"2"}} ]
"#;
        let wanted = HashSet::from([
            number([("a", "1"), ("b", "]}\"\\")].into_iter()),
            number([("a", "2")].into_iter()),
        ]);
        for step in [1, 2, 7, 1000] {
            assert_eq!(read(text, step).as_ref(), Ok(&wanted), "{step}");
        }
        assert_eq!(read("[]", 1), Ok(HashSet::new()));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            "{}",
            "<html>",
            "[{]",
            "[{\"labels\":7}]",
            "[{\"labels\":{}}",
            "[\"",
            "]",
            "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        ] {
            let found = read(text, 3);
            let is_refused = found.is_err() || (text.is_empty() && found == Ok(HashSet::new()));
            assert!(is_refused, "{text:?}: {found:?}");
        }
        let large = format!("[{{\"labels\":{{\"a\":\"{}\"}}}}]", "x".repeat(MAX_ELEMENT));
        assert!(read(&large, 1000).is_err());
    }
}
