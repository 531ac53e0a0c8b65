//! Where a setting was written: a span of a file, a variable, a flag, or nowhere (a default).

use std::ops::Range;

/// Where something was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceLocation {
    /// In a file.
    File {
        /// Which of the files, in the order in which later ones win.
        file: usize,
        /// The bytes of the key (or of the header of a table).
        key: (usize, usize),
        /// The bytes of the value.
        value: (usize, usize),
    },
    /// In this environment variable.
    Variable(String),
    /// In a flag, for this key.
    Flag(String),
    /// Nowhere: built in.
    Default,
}

impl SourceLocation {
    /// As the text that travels through the merge as a value's origin.
    pub(super) fn encode(&self) -> String {
        match self {
            Self::File { file, key, value } => {
                format!("F{file}:{}:{}:{}:{}", key.0, key.1, value.0, value.1)
            }
            Self::Variable(name) => format!("V{name}"),
            Self::Flag(key) => format!("A{key}"),
            Self::Default => "D".to_owned(),
        }
    }

    /// Reads what [`SourceLocation::encode`] wrote.
    pub(super) fn decode(text: &str) -> Self {
        let mut characters = text.chars();
        let kind = characters.next();
        let rest = characters.as_str();
        match kind {
            Some('F') => {
                let mut numbers = rest.split(':').map(|part| part.parse().unwrap_or(0));
                let mut next = || numbers.next().unwrap_or(0);
                Self::File {
                    file: next(),
                    key: (next(), next()),
                    value: (next(), next()),
                }
            }
            Some('V') => Self::Variable(rest.to_owned()),
            Some('A') => Self::Flag(rest.to_owned()),
            _ => Self::Default,
        }
    }

    /// The span of the value in its file.
    pub(super) fn value_span(&self) -> Option<(usize, Range<usize>)> {
        match self {
            Self::File { file, value, .. } => Some((*file, value.0..value.1)),
            Self::Variable(_) | Self::Flag(_) | Self::Default => None,
        }
    }

    /// The same with the key's span as that of the value: for complaints about the key itself.
    pub(super) fn of_key(&self) -> Self {
        match self {
            Self::File { file, key, .. } => Self::File {
                file: *file,
                key: *key,
                value: *key,
            },
            other => other.clone(),
        }
    }

    /// Whether values here are plain text that may stand for numbers, switches and tables.
    pub(super) const fn is_text(&self) -> bool {
        matches!(self, Self::Variable(_) | Self::Flag(_))
    }
}
