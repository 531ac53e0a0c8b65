//! Dependencies: what endpoints need and no release owns, such as a database, a cache or a foreign API.

use serde::{Deserialize, Serialize};

use super::TickOutcome;
use super::rule::Rule;

/// One dependency.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Dependency {
    pub(super) name: Box<str>,
    /// The last results, the newest in the lowest bit; 1 is a failure.
    failures: u64,
    known: u32,
    /// Successes in a row while it fails.
    recovering: u32,
    failing: bool,
    /// Whether it has failed in this analysis.
    pub(super) has_failed: bool,
}

impl Dependency {
    /// A dependency that is not known to fail.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            failures: 0,
            known: 0,
            recovering: 0,
            failing: false,
            has_failed: false,
        }
    }

    /// Whether it fails at the moment.
    pub(crate) const fn is_failing(&self) -> bool {
        self.failing
    }

    /// Takes an outcome; an unknown one changes nothing.
    pub(crate) fn take(&mut self, rule: &Rule, outcome: TickOutcome) {
        let failed = match outcome {
            TickOutcome::Success => false,
            TickOutcome::Failure => true,
            TickOutcome::Unknown
            | TickOutcome::NotDue
            | TickOutcome::Limited
            | TickOutcome::Unresolved => return,
        };
        self.failures = (self.failures << 1) | u64::from(failed);
        self.known = (self.known + 1).min(rule.dependency_of);
        if self.failing {
            self.recovering = if failed { 0 } else { self.recovering + 1 };
            if self.recovering >= rule.recover_ticks {
                self.failing = false;
                self.failures = 0;
                self.known = 0;
            }
            return;
        }
        let looked_at = u64::MAX >> (64 - self.known.clamp(1, 64));
        if (self.failures & looked_at).count_ones() >= rule.dependency_bad {
            self.failing = true;
            self.has_failed = true;
            self.recovering = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_failures_of_three_are_one_and_three_successes_its_end() {
        let rule = Rule::default();
        let mut database = Dependency::new("postgres");
        let mut follow = |row: &str| -> Vec<bool> {
            row.chars()
                .map(|letter| {
                    database.take(&rule, TickOutcome::of(letter).unwrap());
                    database.failing
                })
                .collect()
        };
        assert_eq!(follow("x-.-x"), [false, false, false, false, true]);
        assert_eq!(
            follow("..x.-.."),
            [true, true, true, true, true, true, false]
        );
        assert_eq!(follow("x..x"), [false; 4]);
    }
}
