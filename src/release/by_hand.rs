//! Checks an order of a person against the release's history. Pure, so the daemon and `leadsman rollback --direct`
//! agree.

use std::collections::BTreeMap;

use super::ReleaseState;
use crate::core::revision_ledger::{ContentDigest, RevisionStatus, StoredRevision};
use crate::core::units::Revision;

/// Helm's command with which a person goes back, to be run as it stands where the revision is known.
pub fn helm_command(release: &str, namespace: &str, target: Option<Revision>) -> String {
    let target = target.map_or_else(|| "REVISION".to_owned(), |target| target.to_string());
    format!("helm rollback {release} {target} --namespace {namespace} --history-max 0")
}

/// Both commands with which a person goes back: through Leadsman, and by Helm alone.
pub fn commands(release: &str, namespace: &str, target: Option<Revision>) -> String {
    let by_helm = helm_command(release, namespace, target);
    let target = target.map_or_else(String::new, |revision| format!(" {revision}"));
    format!(
        "leadsman rollback {release}{target} --namespace {namespace} --reason TEXT, or {by_helm}"
    )
}

/// Revisions that are named one by one; a history may have ten thousand.
const MAX_NAMED: usize = 10;

/// Why an order cannot be carried out. The text names the revisions that can be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderRefused {
    /// There is no such revision.
    Unknown(String),
    /// It would change nothing, or it is ambiguous.
    Conflict(String),
}

impl OrderRefused {
    /// The reason, in words.
    pub fn why(&self) -> &str {
        match self {
            Self::Unknown(why) | Self::Conflict(why) => why,
        }
    }
}

/// Whether a person may order a rollback of `bad`, the newest revision of the release `name`, to `target`. `undone`
/// names the revision that was rolled back, by the revision that the rollback made, as far as known.
///
/// # Errors
///
/// When there is no such revision; when its contents are installed already; and when no revision is named although a
/// rollback made what is installed, even if it was deployed again since (by a pipeline after the commit was reverted).
/// In the last case a second person who does not know of that rollback would go back twice.
pub fn check(
    release_state: &ReleaseState,
    bad: Revision,
    target: Option<Revision>,
    undone: &BTreeMap<Revision, Revision>,
    name: &str,
) -> Result<(), OrderRefused> {
    let choice = choice(release_state, bad);
    let Some(target) = target else {
        let Some(brought_back) = brought_back(release_state, bad) else {
            return Ok(());
        };
        let created_revision = brought_back.revision;
        let which = match (undone.get(&created_revision), brought_back.rolled_back_to()) {
            (Some(undone), _) => format!("what the rollback of revision {undone} made"),
            (None, Some(to)) => format!("what a rollback to revision {to} made"),
            (None, None) => "what a rollback made".to_owned(),
        };
        let is = if created_revision == bad {
            format!("is {which}")
        } else {
            format!("has the contents of revision {created_revision}, which is {which}")
        };
        return Err(OrderRefused::Conflict(format!(
            "revision {bad} {is}; to go back further, name the revision: {choice}"
        )));
    };
    if target == bad {
        return Err(OrderRefused::Conflict(format!(
            "revision {bad} is the one that is installed; {choice}"
        )));
    }
    if !release_state
        .revisions
        .iter()
        .any(|one| one.revision == target)
    {
        return Err(OrderRefused::Unknown(format!(
            "{name} has no revision {target}; {choice}"
        )));
    }
    let digest = digest_of(release_state, target);
    if digest.is_some() && digest == digest_of(release_state, bad) {
        return Err(OrderRefused::Conflict(format!(
            "revision {bad} has the contents of revision {target} already; {choice}"
        )));
    }
    Ok(())
}

/// The newest revision made by a rollback, among `bad` and the revisions right before it with the same contents.
/// Revisions that failed in between never served, so they are skipped.
fn brought_back(release_state: &ReleaseState, bad: Revision) -> Option<&StoredRevision> {
    let installed = digest_of(release_state, bad);
    let records = release_state.revisions.iter().rev();
    for record in records.filter(|record| record.revision <= bad) {
        let is_same = record.digest.is_some() && record.digest.as_ref() == installed;
        let is_same = is_same || record.revision == bad;
        if is_same
            && (release_state.ours.contains(&record.revision) || record.rolled_back_to().is_some())
        {
            return Some(record);
        }
        if !is_same && record.status != RevisionStatus::Failed {
            return None;
        }
    }
    None
}

/// The revisions that a person can choose, in words; of a long history only the newest.
pub fn choice(release_state: &ReleaseState, bad: Revision) -> String {
    let installed = digest_of(release_state, bad);
    let mut named: Vec<String> = release_state
        .revisions
        .iter()
        .rev()
        .filter(|record| record.revision < bad && record.status != RevisionStatus::Uninstalled)
        .filter(|record| record.digest.is_none() || record.digest.as_ref() != installed)
        .filter(|record| {
            let mut unreadable = release_state.unreadable.iter();
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

fn digest_of(release_state: &ReleaseState, revision: Revision) -> Option<&ContentDigest> {
    let mut all = release_state.revisions.iter();
    all.find(|record| record.revision == revision)?
        .digest
        .as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::revision_ledger::StoredRevision;

    #[test]
    fn the_commands_name_the_revision_where_it_is_known() {
        assert_eq!(
            commands("web", "shop", Some(Revision(5))),
            "leadsman rollback web 5 --namespace shop --reason TEXT, or helm rollback web 5 --namespace shop --history-max 0"
        );
        assert_eq!(
            commands("web", "shop", None),
            "leadsman rollback web --namespace shop --reason TEXT, or helm rollback web REVISION --namespace shop --history-max 0"
        );
    }

    /// Revisions with these contents, numbered from 1 on; what is empty was not read.
    fn release_state(contents: &[&str]) -> ReleaseState {
        let revisions = contents
            .iter()
            .zip(1..)
            .map(|(contents, number)| StoredRevision {
                revision: Revision(number),
                status: RevisionStatus::Superseded,
                description: String::new(),
                digest: (!contents.is_empty()).then(|| ContentDigest((*contents).into())),
                weak: None,
                hooks_succeeded: true,
                test_failed: false,
            });
        ReleaseState {
            revisions: revisions.collect(),
            ..ReleaseState::default()
        }
    }

    fn refused(release_state: &ReleaseState, target: Option<u32>) -> Option<OrderRefused> {
        let bad = release_state
            .newest()
            .map(|record| record.revision)
            .unwrap_or_default();
        let target = target.map(Revision);
        let undone = BTreeMap::from([(Revision(3), Revision(2))]);
        check(release_state, bad, target, &undone, "shop/web").err()
    }

    /// A person who names no revision and does not know of the rollback must not go back twice.
    #[test]
    fn what_a_rollback_brought_back_is_not_gone_back_from_without_a_name() {
        let why = |release_state: &ReleaseState| {
            refused(release_state, None).map(|refused| refused.why().to_owned())
        };
        let further = "to go back further, name the revision: it can go back to";
        // The commit was reverted, and the pipeline deploys the old contents once more, and again.
        for contents in [&["a", "b", "a", "a"][..], &["a", "b", "a", "a", "a"]] {
            let mut release_state = release_state(contents);
            let newest = contents.len();
            assert_eq!(why(&release_state), None);
            release_state.ours.push(Revision(3));
            let expected = format!(
                "revision {newest} has the contents of revision 3, which is what the rollback of revision 2 made; {further}: 2"
            );
            assert_eq!(why(&release_state).unwrap(), expected);
            assert_eq!(refused(&release_state, Some(2)), None);
        }
        // A helm that a person called by hand, and an upgrade that failed since.
        let mut release_state = release_state(&["z", "a", "b", "a", "c", "a"]);
        release_state.revisions[3].description = "Rollback to 2".into();
        assert_eq!(
            why(&release_state),
            None,
            "revision 5 has served in between"
        );
        release_state.revisions[4].status = RevisionStatus::Failed;
        let expected = format!(
            "revision 6 has the contents of revision 4, which is what a rollback to revision 2 made; {further}: 1, 3, 5"
        );
        assert_eq!(why(&release_state).unwrap(), expected);
        release_state.revisions.truncate(4);
        let expected = format!("revision 4 is what a rollback to revision 2 made; {further}: 1, 3");
        assert_eq!(why(&release_state).unwrap(), expected);
        // What cannot be read is not taken for the same.
        let mut unread = self::release_state(&["a", "b", "", "a"]);
        unread.ours.push(Revision(3));
        assert_eq!(why(&unread), None);
    }

    #[test]
    fn what_a_person_cannot_have_is_refused_with_what_they_can() {
        let mut release_state = release_state(&["a", "b", "", "d", "b"]);
        release_state
            .unreadable
            .push((Revision(4), "it is cut off".into()));
        let can = "it can go back to: 1, 3";
        assert_eq!(refused(&release_state, None), None);
        assert_eq!(refused(&release_state, Some(1)), None);
        // Whatever is known of it: the look at its record says more.
        assert_eq!(refused(&release_state, Some(3)), None);
        assert_eq!(refused(&release_state, Some(4)), None);
        for unknown in [0, 6, u32::MAX] {
            let why = format!("shop/web has no revision {unknown}; {can}");
            assert_eq!(
                refused(&release_state, Some(unknown)),
                Some(OrderRefused::Unknown(why))
            );
        }
        let installed = format!("revision 5 is the one that is installed; {can}");
        assert_eq!(
            refused(&release_state, Some(5)),
            Some(OrderRefused::Conflict(installed))
        );
        let same = format!("revision 5 has the contents of revision 2 already; {can}");
        assert_eq!(
            refused(&release_state, Some(2)),
            Some(OrderRefused::Conflict(same))
        );
        release_state.ours.push(Revision(5));
        let ours = format!(
            "revision 5 is what a rollback made; to go back further, name the revision: {can}"
        );
        assert_eq!(
            refused(&release_state, None),
            Some(OrderRefused::Conflict(ours))
        );
        assert_eq!(refused(&release_state, Some(1)), None);
    }

    #[test]
    fn of_a_long_history_the_newest_are_named() {
        let all: Vec<String> = (0..30).map(|number| number.to_string()).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(
            choice(&release_state(&all), Revision(30)),
            "it can go back to: 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, or one of 19 older ones"
        );
        let only = choice(&release_state(&["a"]), Revision(1));
        assert_eq!(only, "there is no revision that it can go back to");
    }
}
