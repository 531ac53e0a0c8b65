//! Labels of an alert as one text. There may be ten thousand alerts, and each receiver holds their labels.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Labels;

/// Follows each name and each value; occurs in none of them.
const END: char = '\0';

/// The identity of an alert: its labels, by name. Clones share the text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LabelSet(Arc<str>);

impl LabelSet {
    /// The names and values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut parts = self.0.split_terminator(END);
        std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
    }

    /// The value of a label.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.iter();
        all.find_map(|(known, value)| (known == name).then_some(value))
    }
}

impl From<&Labels> for LabelSet {
    fn from(labels: &Labels) -> Self {
        let mut text = String::new();
        for part in labels.iter().flat_map(|(name, value)| [name, value]) {
            // Nobody can mean it, and it would end the part.
            text.extend(part.chars().map(|c| if c == END { '\u{fffd}' } else { c }));
            text.push(END);
        }
        Self(text.into())
    }
}

impl fmt::Debug for LabelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for LabelSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for LabelSet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Labels::deserialize(from).map(|labels| Self::from(&labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_the_labels_say_and_is_stored_as_they_are() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        for pairs in [
            &[][..],
            &[("a", "")],
            &[("a", "1"), ("b", "2 \"x\"\n"), ("ü", "é")],
        ] {
            let set = LabelSet::from(&labels(pairs));
            assert_eq!(set.iter().collect::<Vec<_>>(), pairs);
            for (name, value) in pairs {
                assert_eq!(set.get(name), Some(*value));
            }
            assert_eq!(set.get("c"), None);
            let stored = serde_json::to_string(&set).unwrap();
            assert_eq!(stored, serde_json::to_string(&labels(pairs)).unwrap());
            assert_eq!(serde_json::from_str::<LabelSet>(&stored).unwrap(), set);
        }
        // Names and values are not mixed up.
        assert_ne!(
            LabelSet::from(&labels(&[("a", "b"), ("c", "d")])),
            LabelSet::from(&labels(&[("a", "b\0c\0d")]))
        );
    }
}
