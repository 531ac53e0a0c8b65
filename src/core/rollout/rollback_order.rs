//! Orders of people: rollbacks without a verdict.

use serde::{Deserialize, Serialize};

use super::candidate::{Candidate, FinishedRollout, RevisionOrigin, RolloutOutcome};
use super::{MAX_PAST, Rollout, RolloutCommand, RolloutPhase};
use crate::core::revision_ledger::ContentVerdict;
use crate::core::units::{Revision, Time};

/// Keys of one order that are remembered: of the first that asked for it, and of those that joined it.
const MAX_KEYS: usize = 16;

/// Refused orders that are remembered: mistakes of people must not push out how revisions ended.
const MAX_REFUSED: usize = 10;

/// The reason of a rollout that a person ordered, in the place of a verdict's reason.
pub const BY_HAND: &str = "by_hand";

/// What tells one order from another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OrderRecord {
    /// Its id, unique in the release.
    pub id: Box<str>,
    /// What callers named it: who sends the same key again means the same order.
    #[serde(default, deserialize_with = "known_keys")]
    pub keys: Vec<OrderKey>,
}

/// Keys in another form than today's are left out: without them an order is only not recognized when it is sent again.
fn known_keys<'de, D: serde::Deserializer<'de>>(reader: D) -> Result<Vec<OrderKey>, D::Error> {
    let keys = Vec::<serde_json::Value>::deserialize(reader)?;
    let known = keys.into_iter().map(serde_json::from_value);
    Ok(known.filter_map(Result::ok).collect())
}

/// A name that a caller gave to an order, and what was ordered with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderKey {
    /// The name.
    pub key: Box<str>,
    /// The revision to go back to, if one was named.
    pub target: Option<Revision>,
}

impl OrderRecord {
    /// Remembers the keys of an order that joined this one.
    pub fn join(&mut self, keys: impl IntoIterator<Item = OrderKey>) {
        for key in keys {
            if self.keys.len() < MAX_KEYS && self.with(&key.key).is_none() {
                self.keys.push(key);
            }
        }
    }

    /// What was ordered with this key, if it was sent with it.
    pub fn with(&self, key: &str) -> Option<&OrderKey> {
        self.keys.iter().find(|known| &*known.key == key)
    }
}

impl Rollout {
    /// The order with this key: its rollout, and how it ended, if it did.
    pub fn order_with(&self, key: &str) -> Option<(&Candidate, Option<&FinishedRollout>)> {
        let has = |candidate: &Candidate| {
            candidate
                .order
                .as_ref()
                .is_some_and(|order| order.with(key).is_some())
        };
        if let Some(candidate) = self.phase.candidate().filter(|candidate| has(candidate)) {
            return Some((candidate, None));
        }
        let finished = self
            .finished
            .iter()
            .rev()
            .find(|finished| has(&finished.candidate))?;
        Some((&finished.candidate, Some(finished)))
    }

    /// The last finished rollout that is not a refused order.
    pub fn last_ended(&self) -> Option<&FinishedRollout> {
        let mut finished = self.finished.iter().rev();
        finished.find(|finished| finished.outcome != RolloutOutcome::OrderRefused)
    }

    /// An order joins the rollback that is under way. Gives the id of the order that is carried out; `None` when there is
    /// no rollback to join.
    pub fn join(&mut self, order: OrderRecord) -> Option<Box<str>> {
        let (RolloutPhase::Preflight(candidate)
        | RolloutPhase::RollingBack(candidate)
        | RolloutPhase::Verifying(candidate)) = &mut self.phase
        else {
            return None;
        };
        let known = candidate.order.get_or_insert_with(|| OrderRecord {
            id: order.id,
            keys: Vec::new(),
        });
        known.join(order.keys);
        Some(known.id.clone())
    }

    /// A person orders a rollback of the newest revision, whatever is known about it.
    pub(super) fn on_ordered(
        &mut self,
        target: Option<Revision>,
        reason: String,
        order: OrderRecord,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(revision) = self.newest else {
            return;
        };
        match &self.phase {
            RolloutPhase::Idle => {
                let candidate = Candidate::new(revision, RevisionOrigin::Upgrade, None, now);
                self.enter(RolloutPhase::Preflight(Box::new(candidate)), now);
            }
            RolloutPhase::RollingOut(_) | RolloutPhase::Analyzing(_) => {
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                self.move_to(RolloutPhase::Preflight, now);
            }
            // What a person wants is under way already, or there is nothing to roll back.
            RolloutPhase::NotInstalled
            | RolloutPhase::Preflight(_)
            | RolloutPhase::RollingBack(_)
            | RolloutPhase::Verifying(_) => return,
        }
        let text = format!("A person ordered a rollback of revision {revision}: {reason}");
        if let Some(candidate) = self.phase.candidate_mut() {
            candidate.rejected = Some(now);
            candidate.ordered = true;
            candidate.order = Some(order);
            candidate.target = target;
            candidate.reason = BY_HAND.into();
            candidate.text = reason;
        }
        self.note(now, Some(revision), text);
        commands.push(RolloutCommand::Preflight(revision));
    }

    /// A person wanted the newest revision rolled back, and something is in the way: it is written down as their order, and
    /// whatever runs goes on.
    pub(super) fn on_order_declined(
        &mut self,
        target: Option<Revision>,
        reason: String,
        order: OrderRecord,
        why: &str,
        now: Time,
    ) {
        let Some(revision) = self.newest else {
            return;
        };
        let mut candidate = Candidate::new(revision, RevisionOrigin::Upgrade, None, now);
        candidate.ordered = true;
        candidate.order = Some(order);
        candidate.target = target;
        candidate.reason = BY_HAND.into();
        candidate.text = reason;
        let text = refused_text(&candidate, why);
        self.note(now, Some(revision), text.clone());
        self.remember(candidate, RolloutOutcome::OrderRefused, text, now);
    }

    /// The look in the last moment found something in the way of what a person ordered. Where the revision was being judged,
    /// that begins anew.
    pub(super) fn end_order(&mut self, why: &str, now: Time, commands: &mut Vec<RolloutCommand>) {
        let Some(candidate) = self.phase.candidate() else {
            return;
        };
        let (revision, origin, serving) = (candidate.revision, candidate.origin, candidate.serving);
        let first = candidate.first;
        let was_judged = candidate
            .rejected
            .is_some_and(|ordered| candidate.seen < ordered);
        let text = refused_text(candidate, why);
        self.end(RolloutOutcome::OrderRefused, text, now);
        if was_judged {
            self.begin(revision, origin, serving, now, commands);
            if let RolloutPhase::RollingOut(candidate) = &mut self.phase {
                // Pods of earlier revisions with these contents are still its own.
                candidate.first = first;
            }
        }
    }

    /// There is no revision to go back to by the verdict's choice. A person may go back to more of them than a verdict may,
    /// so where one has joined, it is chosen for them.
    pub(super) fn on_no_target(
        &mut self,
        reason: String,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        match &mut self.phase {
            RolloutPhase::Preflight(candidate)
                if !candidate.ordered && candidate.order.is_some() && !candidate.chosen_by_hand =>
            {
                candidate.chosen_by_hand = true;
                let revision = candidate.revision;
                let text = format!(
                    "{reason}; a person wants it too, so the target is chosen as for an order"
                );
                self.note(now, Some(revision), text);
                commands.push(RolloutCommand::Preflight(revision));
            }
            RolloutPhase::NotInstalled
            | RolloutPhase::Idle
            | RolloutPhase::RollingOut(_)
            | RolloutPhase::Analyzing(_)
            | RolloutPhase::Preflight(_)
            | RolloutPhase::RollingBack(_)
            | RolloutPhase::Verifying(_) => self.on_refused(reason, now, commands),
        }
    }

    /// What goes into the ledger after an ordered rollback: an order counts like a verdict, but only once the rollback
    /// was made.
    pub(super) fn found_by_order(candidate: &Candidate) -> Option<RolloutCommand> {
        candidate.ordered.then(|| RolloutCommand::Found {
            revision: candidate.revision,
            found: ContentVerdict::Bad,
            evidence: candidate.text.clone(),
        })
    }

    /// Adds a finished rollout; the oldest one is dropped.
    pub(super) fn remember(
        &mut self,
        candidate: Candidate,
        outcome: RolloutOutcome,
        text: String,
        now: Time,
    ) {
        let is_refused =
            |finished: &FinishedRollout| finished.outcome == RolloutOutcome::OrderRefused;
        let refused = self
            .finished
            .iter()
            .filter(|finished| is_refused(finished))
            .count();
        if outcome == RolloutOutcome::OrderRefused
            && refused >= MAX_REFUSED
            && let Some(oldest) = self.finished.iter().position(is_refused)
        {
            self.finished.remove(oldest);
        }
        if self.finished.len() >= MAX_PAST {
            // Where each commit upgrades all charts, what says nothing must not push out what does.
            let unchanged =
                |finished: &FinishedRollout| finished.outcome == RolloutOutcome::Unchanged;
            let goes = self.finished.iter().position(unchanged).unwrap_or(0);
            self.finished.remove(goes);
        }
        self.finished.push(FinishedRollout {
            candidate,
            outcome,
            at: now,
            text,
        });
    }
}

fn refused_text(candidate: &Candidate, why: &str) -> String {
    format!(
        "A person ordered a rollback of revision {} ({}), and it was refused: {why}",
        candidate.revision, candidate.text
    )
}
