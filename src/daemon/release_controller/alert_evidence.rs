//! Alerts of Alertmanager as evidence about the revision under analysis.

use serde::{Deserialize, Serialize};

use super::ReleaseController;
use crate::config::settings::AlertWeight;
use crate::core::rollout::RolloutInput;
use crate::core::units::{ClockShift, HasTimes, Revision, Time};
use crate::http::ReceivedAlert;
use crate::http::status::VerdictView;

/// Alerts that one analysis remembers; beyond that, the least important go first.
const MAX_ALERTS: usize = 64;

/// Firing alerts that are remembered; beyond that, the oldest go first, since they count against no later revision.
pub(super) const MAX_TOLD: usize = 256;

/// A firing alert that began under the revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct FiringAlert {
    pub(super) name: String,
    fingerprint: String,
    #[serde(alias = "is_doubt")]
    pub(super) prevents_pass: bool,
}

/// A firing alert. It is remembered across analyses: it may arrive before the revision under which it began is seen,
/// and Alertmanager may not repeat it for hours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ReportedAlert {
    name: String,
    fingerprint: String,
    /// When it began by its sender's clock; a change of our clock does not move it.
    since: Time,
    /// When it was first received, by our clock.
    #[serde(alias = "heard")]
    received_at: Time,
    weight: AlertWeight,
}

impl ReportedAlert {
    /// When it began: no later than it was received, whatever its sender's clock says.
    fn began(&self) -> Time {
        self.since.min(self.received_at)
    }
}

impl HasTimes for ReportedAlert {
    fn shift(&mut self, by: ClockShift) {
        self.received_at.shift(by);
    }
}

impl ReleaseController {
    pub(super) async fn on_alert(&mut self, alert: ReceivedAlert) {
        let now = self.now();
        let told = ReportedAlert {
            name: plain(&alert.name),
            fingerprint: alert.fingerprint,
            since: Time::from_millis(alert.since),
            received_at: now,
            weight: alert.weight,
        };
        self.is_dirty = true;
        let told = keep(&mut self.state.told, told, alert.is_firing);
        let Some(running) = &mut self.state.running else {
            return;
        };
        let revision = running.revision;
        running
            .alerts
            .retain(|firing| firing.fingerprint != told.fingerprint);
        let name = &told.name;
        if !alert.is_firing {
            let text = format!("The alert {name} has ended");
            self.remark(now, &text);
            return;
        }
        if told.began() < self.appeared(revision) {
            let text = format!("The alert {name} fires, and did so before the revision appeared");
            self.remark(now, &text);
            return;
        }
        self.weigh(told).await;
    }

    /// Counts alerts that arrived before the analysis of this revision began, if they began under it.
    pub(super) async fn weigh_told(&mut self, revision: Revision) {
        let appeared = self.appeared(revision);
        let told = self.state.told.iter();
        let under: Vec<ReportedAlert> = told
            .filter(|told| told.began() >= appeared)
            .cloned()
            .collect();
        for told in under {
            // One that rejects ends the watch.
            let running = self.state.running.as_ref();
            if running.is_none_or(|running| running.revision != revision) {
                return;
            }
            self.weigh(told).await;
        }
    }

    /// When a revision appeared. It may have been stored before the daemon saw it, for example while the daemon was
    /// away.
    fn appeared(&self, revision: Revision) -> Time {
        let running = self.state.running.as_ref();
        let began = running.map_or_else(|| self.now(), |running| running.began);
        let release_state = &self.release_state.borrow().release_state;
        let is_newest = release_state
            .newest()
            .is_some_and(|newest| newest.revision == revision);
        let stored_at = release_state.stored_at.filter(|_| is_newest);
        stored_at.map_or(began, |stored_at| stored_at.min(began))
    }

    /// An alert that began under the revision counts against it.
    async fn weigh(&mut self, told: ReportedAlert) {
        let Some(running) = &mut self.state.running else {
            return;
        };
        let now = self.setup.timeline.now();
        let (revision, began) = (running.revision, running.began);
        let name = told.name;
        let firing = FiringAlert {
            name: name.clone(),
            fingerprint: told.fingerprint,
            prevents_pass: told.weight == AlertWeight::Inconclusive,
        };
        add(&mut running.alerts, firing);
        let others = others(&running.alerts, &name);
        let text = format!("The alert {name} fires");
        self.remark(now, &text);
        if told.weight != AlertWeight::Reject {
            return;
        }
        let reason = format!("alert:{name}");
        let text = format!("Alertmanager says that {name} fires, and that rejects here");
        self.collect(revision, began);
        self.happens(RolloutInput::Regressed {
            revision,
            reason: reason.clone(),
            text: text.clone(),
        })
        .await;
        self.state.verdict = Some(VerdictView {
            revision: revision.0,
            verdict: "rollback".into(),
            reason,
            text: text + &others,
            failing: Vec::new(),
            otherwise: "No verdict would have fallen without the alert, whose weight is \"reject\""
                .into(),
            slower: None,
            at: now.unix_seconds(),
        });
        self.publish();
    }

    /// An alert that keeps the revision from passing.
    pub(super) fn self_check(&self) -> Option<String> {
        let running = self.state.running.as_ref()?;
        let firing = running.alerts.iter().find(|firing| firing.prevents_pass)?;
        Some(format!("alert:{}", firing.name))
    }

    /// Adds an entry that is stored with the next write: many alerts may come at once, and the store may be slow.
    fn remark(&mut self, now: Time, text: &str) {
        self.state.rollout.remark(now, text);
        self.keep_entries();
        self.is_dirty = true;
        self.publish();
    }
}

/// Updates the list: a firing alert stays as it was first received, one that has ended is removed. Returns the alert as
/// it is known now.
fn keep(all: &mut Vec<ReportedAlert>, mut told: ReportedAlert, is_firing: bool) -> ReportedAlert {
    if let Some(at) = all
        .iter()
        .position(|known| known.fingerprint == told.fingerprint)
    {
        let known = all.remove(at);
        if known.since == told.since {
            told.received_at = told.received_at.min(known.received_at);
        }
    }
    if !is_firing {
        return told;
    }
    if all.len() >= MAX_TOLD {
        let began = all.iter().enumerate().map(|(at, told)| (told.began(), at));
        if let Some((_, first)) = began.min() {
            all.remove(first);
        }
    }
    all.push(told.clone());
    told
}

/// Adds a firing alert. If the list is full, one that is only a note makes room for one that counts.
fn add(alerts: &mut Vec<FiringAlert>, firing: FiringAlert) {
    if alerts.len() >= MAX_ALERTS {
        let Some(at) = alerts.iter().position(|known| !known.prevents_pass) else {
            return;
        };
        if !firing.prevents_pass {
            return;
        }
        alerts.remove(at);
    }
    alerts.push(firing);
}

/// Alerts that a verdict names.
const MAX_NAMED: usize = 5;

/// Names of the alerts that fire besides this one, for the end of a verdict; empty if there are none.
pub(super) fn others(alerts: &[FiringAlert], besides: &str) -> String {
    let mut names: Vec<&str> = alerts
        .iter()
        .map(|firing| firing.name.as_str())
        .filter(|name| *name != besides)
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return String::new();
    }
    let more = names.len().saturating_sub(MAX_NAMED);
    names.truncate(MAX_NAMED);
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "; meanwhile Alertmanager told of {}{more}",
        names.join(", ")
    )
}

/// Name of an alert, made safe for logs and reasons.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric() || "_-:.".contains(*c))
        .take(100)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firing(number: usize, prevents_pass: bool) -> FiringAlert {
        FiringAlert {
            name: format!("A{number}"),
            fingerprint: number.to_string(),
            prevents_pass,
        }
    }

    fn told(name: &str, since: u64, received_at: u64) -> ReportedAlert {
        ReportedAlert {
            name: name.into(),
            fingerprint: name.into(),
            since: Time::from_millis(since),
            received_at: Time::from_millis(received_at),
            weight: AlertWeight::Inconclusive,
        }
    }

    #[test]
    fn what_fires_stays_as_it_was_first_heard_until_it_ends() {
        let mut all = Vec::new();
        // Its clock is ahead of ours: it began no later than it was heard, however often it is repeated.
        keep(&mut all, told("A", 9_000, 1_000), true);
        keep(&mut all, told("A", 9_000, 5_000), true);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].began(), Time::from_millis(1_000));
        // Another episode.
        keep(&mut all, told("A", 9_500, 9_600), true);
        assert_eq!(all[0].began(), Time::from_millis(9_500));
        keep(&mut all, told("B", 2_000, 9_700), true);
        keep(&mut all, told("A", 9_500, 9_800), false);
        assert_eq!(all, [told("B", 2_000, 9_700)]);
    }

    #[test]
    fn the_alert_that_began_first_makes_room() {
        let mut all = Vec::new();
        for number in 0..MAX_TOLD as u64 {
            keep(&mut all, told(&number.to_string(), 500 - number, 900), true);
        }
        keep(&mut all, told("new", 800, 900), true);
        assert_eq!(all.len(), MAX_TOLD);
        let last = (MAX_TOLD - 1).to_string();
        assert!(all.iter().all(|told| told.name != last));
        assert!(all.iter().any(|told| told.name == "new"));
    }

    /// The start of an alert comes from Prometheus, so a shift of the writer's clock does not apply to it.
    #[test]
    fn only_what_was_by_our_clock_moves_with_it() {
        let mut alert = told("A", 1_000, 2_000);
        let by = ClockShift::between(Time::from_millis(0), Time::from_millis(500));
        alert.shift(by);
        assert_eq!(alert, told("A", 1_000, 2_500));
    }

    #[test]
    fn what_raises_doubt_finds_room_among_notes() {
        let mut alerts = Vec::new();
        for number in 0..MAX_ALERTS + 3 {
            add(&mut alerts, firing(number, false));
        }
        assert_eq!(alerts.len(), MAX_ALERTS);
        for number in 100..100 + MAX_ALERTS + 3 {
            add(&mut alerts, firing(number, true));
        }
        assert_eq!(alerts.len(), MAX_ALERTS);
        assert!(alerts.iter().all(|firing| firing.prevents_pass));
    }

    #[test]
    fn a_verdict_names_a_few_of_the_others() {
        assert_eq!(others(&[firing(1, true)], "A1"), "");
        let three = [firing(2, false), firing(1, true), firing(2, true)];
        assert_eq!(
            others(&three, ""),
            "; meanwhile Alertmanager told of A1, A2"
        );
        let many: Vec<_> = (0..9).map(|number| firing(number, false)).collect();
        assert!(others(&many, "").ends_with("A4 and 4 more"));
    }
}
