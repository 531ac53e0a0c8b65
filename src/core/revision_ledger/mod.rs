//! The ledger: which contents of a release are known good or bad, and which revision to roll back to.
//!
//! A verdict belongs to the contents (the digest of manifest and hooks), not to the revision number: the same software
//! deployed again is the same software.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::core::units::{ClockShift, HasTimes, Revision, Time};

/// Contents that are remembered; the one found longest ago gives way.
const MAX_ENTRIES: usize = 50;

/// The longest evidence kept with an entry, in bytes.
const MAX_EVIDENCE: usize = 1000;

/// What identifies the contents of a revision: SHA-256 of manifest and hooks, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContentDigest(pub Box<str>);

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was found about contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentVerdict {
    /// It served well for its whole bake, or long enough.
    Good,
    /// It passed its analysis, and its bake has not ended, or was ended by the next revision.
    Passed,
    /// It passed its analysis, and its bake ended with an alarm.
    #[serde(rename = "bake_failed")]
    BakeFailed,
    /// It made things worse.
    Bad,
    /// Its rollout was never complete, so it has never served.
    Incomplete,
    /// Nothing could be said.
    Unknown,
}

/// What is remembered of contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Whose.
    pub digest: ContentDigest,
    /// Its weaker id; see [`StoredRevision::weak`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weak: Option<ContentDigest>,
    /// The revision that it was last found in.
    pub revision: Revision,
    /// Success, failure or unknown.
    pub found: ContentVerdict,
    /// When.
    pub at: Time,
    /// Why, in words.
    pub evidence: String,
}

/// What is known of the contents of one release.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RevisionLedger {
    /// The one found last is at the end.
    entries: Vec<LedgerEntry>,
}

impl RevisionLedger {
    /// Writes down what was found; an earlier finding about the same contents is replaced.
    pub fn write(&mut self, mut entry: LedgerEntry) {
        while entry.evidence.len() > MAX_EVIDENCE {
            entry.evidence.pop();
        }
        self.entries.retain(|known| known.digest != entry.digest);
        if self.entries.len() >= MAX_ENTRIES {
            self.entries.remove(0);
        }
        self.entries.push(entry);
    }

    /// What was found about contents, if anything.
    pub fn find(&self, digest: &ContentDigest) -> Option<&LedgerEntry> {
        self.entries.iter().find(|entry| entry.digest == *digest)
    }

    /// The rejected contents of a stored revision, by its weaker id. Only used if the ledger has no verdict on the
    /// contents themselves. It says nothing if contents with that id were found good as well, for example after only a
    /// template was fixed. Neither does the verdict on the revision that is to be rolled back, which may differ from
    /// the one before in a template alone. Contents that a rollback restored were chosen, so they are not bad.
    fn weakly_bad(&self, record: &StoredRevision, bad: Revision) -> Option<&LedgerEntry> {
        let digest = record.digest.as_ref()?;
        let weak = record.weak.as_ref()?;
        let is_found = |entry: &LedgerEntry| {
            matches!(
                entry.found,
                ContentVerdict::Good | ContentVerdict::Passed | ContentVerdict::Bad
            )
        };
        if self.find(digest).is_some_and(is_found) || record.rolled_back_to().is_some() {
            return None;
        }
        let alike = || {
            self.entries
                .iter()
                .filter(|entry| entry.weak.as_ref() == Some(weak))
        };
        if alike().any(|entry| matches!(entry.found, ContentVerdict::Good | ContentVerdict::Passed))
        {
            return None;
        }
        alike().find(|entry| entry.found == ContentVerdict::Bad && entry.revision != bad)
    }

    /// All entries, the one found last at the end.
    pub fn entries(&self) -> &[LedgerEntry] {
        &self.entries
    }

    /// Brings a state that was read from outside within its bounds.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let surplus = self.entries.len().saturating_sub(MAX_ENTRIES);
        self.entries.drain(..surplus);
        self
    }
}

impl HasTimes for RevisionLedger {
    fn shift(&mut self, by: ClockShift) {
        for entry in &mut self.entries {
            entry.at.shift(by);
        }
    }
}

/// The status of a stored revision, in Helm's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevisionStatus {
    /// Helm does not know.
    Unknown,
    /// Serves, as far as Helm knows.
    Deployed,
    /// Uninstalled, with the history kept.
    Uninstalled,
    /// A later revision took its place.
    Superseded,
    /// The operation failed.
    Failed,
    /// Being uninstalled.
    Uninstalling,
    /// A first installation is under way.
    PendingInstall,
    /// An upgrade is under way.
    PendingUpgrade,
    /// A rollback is under way.
    PendingRollback,
}

impl RevisionStatus {
    /// Whether an operation is under way.
    pub const fn is_pending(self) -> bool {
        matches!(
            self,
            Self::PendingInstall | Self::PendingUpgrade | Self::PendingRollback
        )
    }
}

/// A revision as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRevision {
    /// Its number.
    pub revision: Revision,
    /// Its status.
    pub status: RevisionStatus,
    /// Helm's description.
    pub description: String,
    /// Its contents; `None` when the record cannot be read.
    pub digest: Option<ContentDigest>,
    /// Chart, images and values: the same for contents that are rendered anew each time, as with a random password or
    /// the time of day in them, and so have another digest each time. `None` where there are no images.
    #[serde(default)]
    pub weak: Option<ContentDigest>,
    /// Whether all its rollback hooks, if it was made by a rollback, succeeded.
    pub hooks_succeeded: bool,
    /// Whether a test hook of it failed.
    pub test_failed: bool,
}

impl StoredRevision {
    /// The revision whose contents it brought back, if a rollback made it.
    pub fn rolled_back_to(&self) -> Option<Revision> {
        let number = self.description.strip_prefix("Rollback to ")?;
        let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok().map(Revision)
    }
}

/// Which revision to go back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetChoice {
    /// The revision.
    pub target: Revision,
    /// Its contents.
    pub digest: ContentDigest,
    /// Whether the ledger knows it to be good; otherwise it passed its analysis, or is the one that was serving.
    pub known_good: bool,
}

/// Why there is no revision to go back to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no revision to go back to: {}", .passed_over.join("; "))]
pub struct NoTarget {
    /// The candidates with the reason why not, the newest first; of a long history the newest alone.
    pub passed_over: Vec<String>,
}

/// Candidates that are told of one by one; a history may have ten thousand.
const MAX_PASSED_OVER: usize = 6;

/// Chooses the revision to roll back to from `bad`: the newest that is known good or passed its analysis, else the one
/// that served when `bad` appeared.
///
/// A revision whose bake is running, or was ended by the next revision, is unknown good; but it served, and a whole
/// analysis found nothing against it. Skipping it would undo good revisions without a reason, and where a release is
/// deployed several times an hour no bake ever ends. A revision whose bake ended with an alarm is chosen only if it
/// served and nothing better is stored.
///
/// # Errors
///
/// When there is none; with the reason for every candidate.
pub fn choose(
    bad: Revision,
    stored: &[StoredRevision],
    ledger: &RevisionLedger,
    serving: Option<Revision>,
) -> Result<TargetChoice, NoTarget> {
    let bad_digest = stored
        .iter()
        .find(|record| record.revision == bad)
        .and_then(|record| record.digest.as_ref());
    let bad_one = (bad, bad_digest);
    let mut candidates: Vec<&StoredRevision> = stored.iter().filter(|r| r.revision < bad).collect();
    candidates.sort_by_key(|record| std::cmp::Reverse(record.revision));
    let mut passed_over = Vec::new();
    let mut was_serving = None;
    for record in candidates {
        let number = record.revision;
        let digest = match usable(record, stored, bad_one, ledger) {
            Ok(digest) => digest,
            Err(reason) => {
                passed_over.push(format!("revision {number} {reason}"));
                continue;
            }
        };
        let found = ledger.find(digest).map(|entry| entry.found);
        if let Some(ContentVerdict::Good | ContentVerdict::Passed) = found {
            return Ok(TargetChoice {
                target: number,
                digest: digest.clone(),
                known_good: found == Some(ContentVerdict::Good),
            });
        }
        if serving == Some(number) {
            was_serving = Some(TargetChoice {
                target: number,
                digest: digest.clone(),
                known_good: false,
            });
        } else {
            passed_over.push(format!(
                "revision {number} was neither found good nor serving when revision {bad} appeared"
            ));
        }
    }
    was_serving.ok_or_else(|| {
        if passed_over.is_empty() {
            passed_over.push(format!("revision {bad} has no predecessor"));
        }
        let older = passed_over.len().saturating_sub(MAX_PASSED_OVER);
        if older > 0 {
            passed_over.truncate(MAX_PASSED_OVER);
            passed_over.push(format!("nor any of {older} older ones"));
        }
        NoTarget { passed_over }
    })
}

/// The digest of a record that may be gone back to, or why it may not.
fn usable<'a>(
    record: &'a StoredRevision,
    stored: &[StoredRevision],
    (bad, bad_digest): (Revision, Option<&ContentDigest>),
    ledger: &RevisionLedger,
) -> Result<&'a ContentDigest, String> {
    eligible(record, stored, 0)?;
    let Some(digest) = &record.digest else {
        return Err("was not read, or cannot be".into());
    };
    if bad_digest == Some(digest) {
        return Err("has the same contents".into());
    }
    match ledger.find(digest).map(|entry| entry.found) {
        Some(ContentVerdict::Bad) => return Err("has contents that were found bad".into()),
        Some(ContentVerdict::Incomplete) => {
            return Err("has contents whose rollout was never complete".into());
        }
        Some(
            ContentVerdict::Good
            | ContentVerdict::Passed
            | ContentVerdict::BakeFailed
            | ContentVerdict::Unknown,
        )
        | None => {}
    }
    if let Some(entry) = ledger.weakly_bad(record, bad) {
        return Err(format!(
            "has the chart, images and values of revision {}, which was found bad",
            entry.revision
        ));
    }
    Ok(digest)
}

/// A chain of rollbacks to rollbacks is followed so far; Helm's own history is rarely longer.
const MAX_CHAIN: u32 = 32;

/// Whether Helm's status and description say that a revision once worked. A status of `superseded` alone proves
/// nothing: Helm gives it to failed and pending revisions as well, and then keeps their description.
fn eligible(record: &StoredRevision, stored: &[StoredRevision], depth: u32) -> Result<(), String> {
    match record.status {
        RevisionStatus::Deployed | RevisionStatus::Superseded => {}
        RevisionStatus::Unknown
        | RevisionStatus::Uninstalled
        | RevisionStatus::Failed
        | RevisionStatus::Uninstalling
        | RevisionStatus::PendingInstall
        | RevisionStatus::PendingUpgrade
        | RevisionStatus::PendingRollback => {
            return Err(format!("has the status {}", word(record.status)));
        }
    }
    let text = record.description.as_str();
    let failed = ["Upgrade \"", "Rollback \"", "Release \""]
        .iter()
        .any(|start| text.starts_with(start) && text.contains("\" failed: "));
    let never_worked = [
        "failed to render resource",
        "Deletion in progress",
        "Uninstallation complete",
        "Release unlocked from stale",
    ]
    .iter()
    .any(|start| text.starts_with(start));
    let unfinished = ["Preparing upgrade", "Initial install underway"].contains(&text);
    if failed || never_worked || unfinished || text == "superseded by new release" {
        return Err(format!("was never seen to work: {text}"));
    }
    if record.test_failed {
        return Err("has a test hook that failed".into());
    }
    if let Some(origin) = record.rolled_back_to() {
        if !record.hooks_succeeded {
            return Err("is a rollback whose hooks did not succeed".into());
        }
        let origin = stored.iter().find(|other| other.revision == origin);
        if let Some(origin) = origin
            && record.status == RevisionStatus::Superseded
            && depth < MAX_CHAIN
        {
            eligible(origin, stored, depth + 1).map_err(|reason| {
                format!("goes back to revision {}, which {reason}", origin.revision)
            })?;
        }
    }
    Ok(())
}

fn word(status: RevisionStatus) -> &'static str {
    match status {
        RevisionStatus::Unknown => "unknown",
        RevisionStatus::Deployed => "deployed",
        RevisionStatus::Uninstalled => "uninstalled",
        RevisionStatus::Superseded => "superseded",
        RevisionStatus::Failed => "failed",
        RevisionStatus::Uninstalling => "uninstalling",
        RevisionStatus::PendingInstall => "pending-install",
        RevisionStatus::PendingUpgrade => "pending-upgrade",
        RevisionStatus::PendingRollback => "pending-rollback",
    }
}

impl fmt::Display for RevisionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word(*self))
    }
}

#[cfg(test)]
mod tests;
