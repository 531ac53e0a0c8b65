//! What a person may order, at first sight: pure, so that the daemon and `leadsman rollback --direct` say the same.

use super::Facts;
use crate::ledger::{Digest, Status};
use crate::units::Revision;

/// Revisions that are named one by one; a history may have ten thousand.
const MAX_NAMED: usize = 10;

/// Why an order cannot be carried out. The text names the revisions that can be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no such revision.
    Unknown(String),
    /// It would change nothing, or it is not clear what is wanted.
    Conflict(String),
}

impl Refused {
    /// Why, in words.
    pub fn why(&self) -> &str {
        match self {
            Self::Unknown(why) | Self::Conflict(why) => why,
        }
    }
}

/// Whether a person may order a rollback of `bad`, the newest revision of the release `name`, to `target`. `undone` is the
/// revision whose rollback made `bad`, where that is known.
///
/// # Errors
/// When there is no such revision, when its contents are installed already, and when no revision is named where the newest
/// one is what a rollback of ours made: a second person, who has not heard of that rollback, must not go back twice.
pub fn check(
    facts: &Facts,
    bad: Revision,
    target: Option<Revision>,
    undone: Option<Revision>,
    name: &str,
) -> Result<(), Refused> {
    let choice = choice(facts, bad);
    let Some(target) = target else {
        if !facts.ours.contains(&bad) {
            return Ok(());
        }
        let undone = undone.map_or_else(String::new, |undone| format!(" of revision {undone}"));
        return Err(Refused::Conflict(format!(
            "revision {bad} is what the rollback{undone} made; to go back further, name the revision: {choice}"
        )));
    };
    if target == bad {
        return Err(Refused::Conflict(format!(
            "revision {bad} is the one that is installed; {choice}"
        )));
    }
    if !facts.revisions.iter().any(|one| one.revision == target) {
        return Err(Refused::Unknown(format!(
            "{name} has no revision {target}; {choice}"
        )));
    }
    let digest = digest_of(facts, target);
    if digest.is_some() && digest == digest_of(facts, bad) {
        return Err(Refused::Conflict(format!(
            "revision {bad} has the contents of revision {target} already; {choice}"
        )));
    }
    Ok(())
}

/// The revisions that a person can name, in words; of a long history the newest alone.
pub fn choice(facts: &Facts, bad: Revision) -> String {
    let installed = digest_of(facts, bad);
    let mut named: Vec<String> = facts
        .revisions
        .iter()
        .rev()
        .filter(|record| record.revision < bad && record.status != Status::Uninstalled)
        .filter(|record| record.digest.is_none() || record.digest.as_ref() != installed)
        .filter(|record| {
            let mut unreadable = facts.unreadable.iter();
            !unreadable.any(|(revision, _)| *revision == record.revision)
        })
        .map(|record| record.revision.to_string())
        .collect();
    let older = named.len().saturating_sub(MAX_NAMED);
    named.truncate(MAX_NAMED);
    named.reverse();
    let older = match older {
        0 => String::new(),
        older => format!(", or one of {older} older ones"),
    };
    if named.is_empty() {
        return "there is no revision that it can go back to".into();
    }
    format!("it can go back to: {}{older}", named.join(", "))
}

fn digest_of(facts: &Facts, revision: Revision) -> Option<&Digest> {
    let mut all = facts.revisions.iter();
    all.find(|record| record.revision == revision)?
        .digest
        .as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Stored;

    /// Revisions with these contents, numbered from 1 on; what is empty was not read.
    fn facts(contents: &[&str]) -> Facts {
        let revisions = contents.iter().zip(1..).map(|(contents, number)| Stored {
            revision: Revision(number),
            status: Status::Superseded,
            description: String::new(),
            digest: (!contents.is_empty()).then(|| Digest((*contents).into())),
            weak: None,
            hooks_succeeded: true,
            test_failed: false,
        });
        Facts {
            revisions: revisions.collect(),
            ..Facts::default()
        }
    }

    fn refused(facts: &Facts, target: Option<u32>) -> Option<Refused> {
        let bad = facts
            .newest()
            .map(|record| record.revision)
            .unwrap_or_default();
        let target = target.map(Revision);
        check(facts, bad, target, None, "shop/web").err()
    }

    #[test]
    fn what_a_person_cannot_have_is_refused_with_what_they_can() {
        let mut facts = facts(&["a", "b", "", "d", "b"]);
        facts.unreadable.push((Revision(4), "it is cut off".into()));
        let can = "it can go back to: 1, 3";
        assert_eq!(refused(&facts, None), None);
        assert_eq!(refused(&facts, Some(1)), None);
        // Whatever is known of it: the look at its record says more.
        assert_eq!(refused(&facts, Some(3)), None);
        assert_eq!(refused(&facts, Some(4)), None);
        for unknown in [0, 6, u32::MAX] {
            let why = format!("shop/web has no revision {unknown}; {can}");
            assert_eq!(refused(&facts, Some(unknown)), Some(Refused::Unknown(why)));
        }
        let installed = format!("revision 5 is the one that is installed; {can}");
        assert_eq!(refused(&facts, Some(5)), Some(Refused::Conflict(installed)));
        let same = format!("revision 5 has the contents of revision 2 already; {can}");
        assert_eq!(refused(&facts, Some(2)), Some(Refused::Conflict(same)));
        facts.ours.push(Revision(5));
        let ours = format!(
            "revision 5 is what the rollback made; to go back further, name the revision: {can}"
        );
        assert_eq!(refused(&facts, None), Some(Refused::Conflict(ours)));
        assert_eq!(refused(&facts, Some(1)), None);
    }

    #[test]
    fn of_a_long_history_the_newest_are_named() {
        let all: Vec<String> = (0..30).map(|number| number.to_string()).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(
            choice(&facts(&all), Revision(30)),
            "it can go back to: 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, or one of 19 older ones"
        );
        let only = choice(&facts(&["a"]), Revision(1));
        assert_eq!(only, "there is no revision that it can go back to");
    }
}
