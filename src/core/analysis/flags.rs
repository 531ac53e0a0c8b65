//! Flags, a bit each; stored as a list.

use serde::{Deserialize, Serialize};

use super::run_length;

/// So many flags as there are, in groups of eight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "StoredFlags", try_from = "StoredFlags")]
pub(super) struct Flags(Box<[u8]>);

#[derive(Serialize, Deserialize)]
struct StoredFlags(#[serde(with = "run_length")] Vec<bool>);

impl Flags {
    /// Eight times `groups` flags, none of them up.
    pub(super) fn new(groups: usize) -> Self {
        Self(vec![0; groups].into())
    }

    pub(super) fn count(&self) -> usize {
        8 * self.0.len()
    }

    pub(super) fn is_up(&self, at: usize) -> bool {
        (self.0[at / 8] >> (at % 8)) & 1 == 1
    }

    pub(super) fn set(&mut self, at: usize, up: bool) {
        let bit = 1 << (at % 8);
        if up {
            self.0[at / 8] |= bit;
        } else {
            self.0[at / 8] &= !bit;
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.len()
    }
}

impl From<Flags> for StoredFlags {
    fn from(flags: Flags) -> Self {
        Self((0..flags.count()).map(|at| flags.is_up(at)).collect())
    }
}

impl TryFrom<StoredFlags> for Flags {
    type Error = String;

    fn try_from(StoredFlags(list): StoredFlags) -> Result<Self, String> {
        if !list.len().is_multiple_of(8) {
            return Err(format!(
                "a list of {} flags is not one of groups of 8",
                list.len()
            ));
        }
        let mut flags = Self::new(list.len() / 8);
        for (at, up) in list.into_iter().enumerate() {
            flags.set(at, up);
        }
        Ok(flags)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end where it stands")]
mod tests {
    use super::*;

    #[test]
    fn flags_are_stored_as_a_list() {
        let mut flags = Flags::new(2);
        for at in [0, 7, 8, 9] {
            flags.set(at, true);
        }
        flags.set(7, false);
        let text = serde_json::to_string(&flags).unwrap();
        assert_eq!(text, "[true,[false,7],[true,2],[false,6]]");
        assert_eq!(serde_json::from_str::<Flags>(&text).unwrap(), flags);
        assert!(serde_json::from_str::<Flags>("[[true,9]]").is_err());
    }
}
