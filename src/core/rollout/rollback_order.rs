//! Orders of people: a rollback that no verdict asked for.

use serde::{Deserialize, Serialize};

use super::candidate::{Candidate, FinishedRollout, RevisionOrigin, RolloutOutcome};
use super::{MAX_PAST, Rollout, RolloutCommand, RolloutPhase};
use crate::core::revision_ledger::ContentVerdict;
use crate::core::units::{Revision, Time};

/// Keys of one order that are remembered: of the first that asked for it, and of those that joined it.
const MAX_KEYS: usize = 16;

/// Refused orders that are remembered: mistakes of people must not push out how revisions ended.
const MAX_REFUSED: usize = 10;

/// The reason of a case that a person ordered, where that of a verdict stands otherwise.
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
    /// The order that was sent with this key: its case, and how it ended, if it did.
    pub fn order_with(&self, key: &str) -> Option<(&Candidate, Option<&FinishedRollout>)> {
        let has = |case: &Candidate| {
            case.order
                .as_ref()
                .is_some_and(|order| order.with(key).is_some())
        };
        if let Some(case) = self.phase.case().filter(|case| has(case)) {
            return Some((case, None));
        }
        let past = self.past.iter().rev().find(|past| has(&past.case))?;
        Some((&past.case, Some(past)))
    }

    /// The last case that was about a revision, and no order that was refused.
    pub fn last_ended(&self) -> Option<&FinishedRollout> {
        let mut past = self.past.iter().rev();
        past.find(|past| past.ending != RolloutOutcome::OrderRefused)
    }

    /// An order joins the rollback that is under way. Gives the id of the order that is carried out; `None` when there is
    /// no rollback to join.
    pub fn join(&mut self, order: OrderRecord) -> Option<Box<str>> {
        let (RolloutPhase::Preflight(case)
        | RolloutPhase::TurningBack(case)
        | RolloutPhase::Verifying(case)) = &mut self.phase
        else {
            return None;
        };
        let known = case.order.get_or_insert_with(|| OrderRecord {
            id: order.id,
            keys: Vec::new(),
        });
        known.join(order.keys);
        Some(known.id.clone())
    }

    /// A person wants the newest revision rolled back, whatever is known about it.
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
        let mut case = match std::mem::take(&mut self.phase) {
            RolloutPhase::Steady => {
                Box::new(Candidate::new(revision, RevisionOrigin::Upgrade, None, now))
            }
            RolloutPhase::Settling(case) | RolloutPhase::Watching(case) => {
                commands.push(RolloutCommand::EndWatch { kept: false });
                case
            }
            // What a person wants is under way already, or there is nothing to roll back.
            phase @ (RolloutPhase::Absent
            | RolloutPhase::Preflight(_)
            | RolloutPhase::TurningBack(_)
            | RolloutPhase::Verifying(_)) => {
                self.phase = phase;
                return;
            }
        };
        case.convicted = Some(now);
        case.ordered = true;
        case.order = Some(order);
        case.target = target;
        case.reason = BY_HAND.into();
        case.text = reason;
        let text = format!(
            "A person ordered a rollback of revision {revision}: {}",
            case.text
        );
        self.enter(RolloutPhase::Preflight(case), now);
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
        let mut case = Candidate::new(revision, RevisionOrigin::Upgrade, None, now);
        case.ordered = true;
        case.order = Some(order);
        case.target = target;
        case.reason = BY_HAND.into();
        case.text = reason;
        let text = refused_text(&case, why);
        self.note(now, Some(revision), text.clone());
        self.remember(case, RolloutOutcome::OrderRefused, text, now);
    }

    /// The look in the last moment found something in the way of what a person ordered. Where the revision was being judged,
    /// that begins anew.
    pub(super) fn end_order(
        &mut self,
        case: Candidate,
        why: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let (revision, origin, serving) = (case.revision, case.origin, case.serving);
        let first = case.first;
        let was_judged = case.convicted.is_some_and(|ordered| case.seen < ordered);
        let text = refused_text(&case, why);
        self.end(case, RolloutOutcome::OrderRefused, text, now);
        if was_judged {
            self.begin(revision, origin, serving, now, commands);
            if let RolloutPhase::Settling(case) = &mut self.phase {
                // Pods of earlier revisions with these contents are still its own.
                case.first = first;
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
            RolloutPhase::Preflight(case)
                if !case.ordered && case.order.is_some() && !case.chosen_by_hand =>
            {
                case.chosen_by_hand = true;
                let revision = case.revision;
                let text = format!(
                    "{reason}; a person wants it too, so the target is chosen as for an order"
                );
                self.note(now, Some(revision), text);
                commands.push(RolloutCommand::Preflight(revision));
            }
            RolloutPhase::Absent
            | RolloutPhase::Steady
            | RolloutPhase::Settling(_)
            | RolloutPhase::Watching(_)
            | RolloutPhase::Preflight(_)
            | RolloutPhase::TurningBack(_)
            | RolloutPhase::Verifying(_) => self.on_refused(reason, now, commands),
        }
    }

    /// What the ledger is told once a rollback was made: a person's word counts like a verdict, but not before.
    pub(super) fn found_by_order(case: &Candidate) -> Option<RolloutCommand> {
        case.ordered.then(|| RolloutCommand::Found {
            revision: case.revision,
            found: ContentVerdict::Bad,
            evidence: case.text.clone(),
        })
    }

    /// Adds a finished case; the oldest gives way.
    pub(super) fn remember(
        &mut self,
        case: Candidate,
        ending: RolloutOutcome,
        text: String,
        now: Time,
    ) {
        let is_refused = |past: &FinishedRollout| past.ending == RolloutOutcome::OrderRefused;
        let refused = self.past.iter().filter(|past| is_refused(past)).count();
        if ending == RolloutOutcome::OrderRefused
            && refused >= MAX_REFUSED
            && let Some(oldest) = self.past.iter().position(is_refused)
        {
            self.past.remove(oldest);
        }
        if self.past.len() >= MAX_PAST {
            // Where each commit upgrades all charts, what says nothing must not push out what does.
            let unchanged = |past: &FinishedRollout| past.ending == RolloutOutcome::Unchanged;
            let goes = self.past.iter().position(unchanged).unwrap_or(0);
            self.past.remove(goes);
        }
        self.past.push(FinishedRollout {
            case,
            ending,
            at: now,
            text,
        });
    }
}

fn refused_text(case: &Candidate, why: &str) -> String {
    format!(
        "A person ordered a rollback of revision {} ({}), and it was refused: {why}",
        case.revision, case.text
    )
}
