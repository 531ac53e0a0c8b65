//! Alerts, from the first sign of a condition to the message that it is over.
//!
//! The evaluator reports which [`Condition`]s hold; the [`AlertStore`] turns them into alerts: *pending* until a
//! condition has held for the waiting time of its kind, then *firing*, and *resolved* once it has not held for a while.
//! A resolved alert is sent for another [`RETENTION`], because a lost message would leave it firing at the receiver.
//!
//! Invariants:
//! - an alert is identified by its labels: they say what and where, and contain no value that changes while it fires;
//! - `starts_at` does not change during the life of an alert, also across restarts: the store is persisted;
//! - an unknown condition changes nothing: its alert stays as it is.

mod kind;
mod labels;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use kind::{AlertKind, Severity};
pub use labels::LabelSet;

use crate::core::units::{ClockShift, HasTimes, Time};

/// How long the end of an alert is sent, as in Prometheus.
pub const RETENTION: Duration = Duration::from_secs(15 * 60);

/// Maximum number of alerts: some for each probe of a large configuration. Further ones are counted and dropped.
pub const MAX_ALERTS: usize = 10_000;

/// The longest text of an annotation, in bytes.
const MAX_TEXT: usize = 2000;

/// Labels, by name.
pub type Labels = BTreeMap<String, String>;

/// A condition that holds now.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// What.
    pub kind: AlertKind,
    /// Where: `namespace`, `release`, `probe` and the like.
    pub place: Labels,
    /// The details, for people.
    pub text: String,
    /// Its place on the status page: a fragment, as `release/shop/web`.
    pub fragment: String,
}

impl Condition {
    /// The labels of its alert.
    pub fn labels(&self) -> Labels {
        let mut labels = self.place.clone();
        labels.retain(|_, value| !value.is_empty());
        labels.insert("alertname".into(), self.kind.name().into());
        labels.insert("severity".into(), self.kind.severity().as_str().into());
        labels.insert("priority".into(), self.kind.priority().into());
        labels.insert("source".into(), "leadsman".into());
        labels
    }
}

/// An alert that has fired and is over.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// When it began to fire.
    since: Time,
    /// When it ended.
    at: Time,
}

impl Episode {
    /// Whether its end is still sent.
    fn is_told(self, now: Time) -> bool {
        now.since(self.at) < RETENTION
    }
}

impl HasTimes for Episode {
    fn shift(&mut self, by: ClockShift) {
        self.since.shift(by);
        self.at.shift(by);
    }
}

/// State of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// The condition holds, but may pass by itself.
    Pending {
        /// Since when.
        since: Time,
        /// The previous episode, while its end is still sent.
        #[serde(default)]
        before: Option<Episode>,
    },
    /// The alert fires.
    Firing {
        /// Since when.
        since: Time,
    },
    /// The alert has ended, and its end is sent.
    Resolved(Episode),
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// What it is.
    pub kind: AlertKind,
    /// Its identity.
    pub labels: LabelSet,
    /// The newest details, for people.
    pub text: Arc<str>,
    /// Its place on the status page.
    pub fragment: Arc<str>,
    /// Where it stands.
    pub state: AlertState,
    /// When its condition was last seen to hold.
    held: Time,
}

impl Alert {
    /// Whether it fires.
    pub const fn is_firing(&self) -> bool {
        matches!(self.state, AlertState::Firing { .. })
    }

    /// When it began to fire, and, if so, when it ended; `None` while nothing is sent. For a pending alert, the
    /// previous episode.
    pub fn span(&self) -> Option<(Time, Option<Time>)> {
        match self.state {
            AlertState::Firing { since } => Some((since, None)),
            // An end whose telling was lost must not burn on because it may begin again.
            AlertState::Pending { before, .. } => {
                before.map(|before| (before.since, Some(before.at)))
            }
            AlertState::Resolved(episode) => Some((episode.since, Some(episode.at))),
        }
    }
}

/// All current alerts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AlertStore {
    alerts: Vec<Alert>,
    /// Index of each alert; empty before the first evaluation.
    #[serde(skip)]
    places: HashMap<LabelSet, usize>,
    /// Counts visible changes.
    #[serde(skip)]
    version: u64,
    /// Conditions that found no room in the last evaluation.
    #[serde(skip)]
    pub left_out: u64,
}

impl AlertStore {
    /// All alerts, in no particular order.
    pub fn alerts(&self) -> &[Alert] {
        &self.alerts
    }

    /// A number that changes with every visible change.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Evaluates all conditions at once; see [`AlertEvaluation`].
    pub fn observe(
        &mut self,
        conditions: impl IntoIterator<Item = Condition>,
        is_known: impl Fn(&LabelSet) -> bool,
        now: Time,
    ) -> bool {
        let mut look = self.look(now);
        for condition in conditions {
            look.holds(condition);
        }
        look.end(is_known)
    }

    /// Starts an evaluation.
    pub fn look(&mut self, now: Time) -> AlertEvaluation<'_> {
        if self.places.len() != self.alerts.len() {
            self.find_places();
        }
        AlertEvaluation {
            hold: vec![false; self.alerts.len()],
            changed: false,
            left_out: 0,
            now,
            alert_store: self,
        }
    }

    fn find_places(&mut self) {
        let places = self.alerts.iter().enumerate();
        self.places = places
            .map(|(at, alert)| (alert.labels.clone(), at))
            .collect();
    }

    /// Checks a stored state. While it was stored nothing was evaluated, so that time does not count towards the end of
    /// an alert.
    ///
    /// # Errors
    ///
    /// With what is wrong.
    pub fn bounded(mut self, now: Time) -> Result<Self, String> {
        if self.alerts.len() > MAX_ALERTS {
            return Err(format!("it has {} alerts", self.alerts.len()));
        }
        for alert in &mut self.alerts {
            alert.held = now;
            if alert.text.len() > MAX_TEXT {
                alert.text = bounded(alert.text.to_string()).into();
            }
        }
        Ok(self)
    }

    /// When time alone may change something next.
    pub fn next(&self) -> Option<Time> {
        let next = self.alerts.iter().map(|alert| match alert.state {
            AlertState::Pending { since, .. } => since + alert.kind.patience(),
            AlertState::Firing { .. } => alert.held + alert.kind.keep(),
            AlertState::Resolved(episode) => episode.at + RETENTION,
        });
        next.min()
    }
}

impl HasTimes for AlertStore {
    fn shift(&mut self, by: ClockShift) {
        for alert in &mut self.alerts {
            alert.held.shift(by);
            match &mut alert.state {
                AlertState::Pending { since, before } => {
                    since.shift(by);
                    if let Some(before) = before {
                        before.shift(by);
                    }
                }
                AlertState::Firing { since } => since.shift(by),
                AlertState::Resolved(episode) => episode.shift(by),
            }
        }
    }
}

/// An evaluation of all conditions, one by one, since all of them together may be large.
pub struct AlertEvaluation<'a> {
    alert_store: &'a mut AlertStore,
    /// Which alerts' conditions hold, by index.
    hold: Vec<bool>,
    changed: bool,
    left_out: u64,
    now: Time,
}

impl AlertEvaluation<'_> {
    /// Reports a condition that holds.
    pub fn holds(&mut self, condition: Condition) {
        let labels = LabelSet::from(&condition.labels());
        let text = bounded(condition.text);
        if let Some(at) = self.alert_store.places.get(&labels) {
            self.hold[*at] = true;
            let alert = &mut self.alert_store.alerts[*at];
            // What has not changed stays shared with those who tell of it.
            if *alert.text != *text {
                alert.text = text.into();
                self.alert_store.version += 1;
            }
            if *alert.fragment != *condition.fragment {
                alert.fragment = condition.fragment.into();
            }
            alert.held = self.now;
            let state = alert.state;
            self.changed |= alert.holds(self.now);
            self.alert_store.version += u64::from(alert.state != state);
            return;
        }
        if self.alert_store.alerts.len() >= MAX_ALERTS {
            self.left_out += 1;
            return;
        }
        // Alerts of a release stand together, and on the same place of the page.
        let last = self.alert_store.alerts.last().map(|last| &last.fragment);
        let shared = last.filter(|last| ***last == *condition.fragment);
        let fragment = shared.cloned();
        let mut alert = Alert {
            kind: condition.kind,
            labels: labels.clone(),
            text: text.into(),
            fragment: fragment.unwrap_or_else(|| condition.fragment.into()),
            state: AlertState::Pending {
                since: self.now,
                before: None,
            },
            held: self.now,
        };
        self.changed |= alert.holds(self.now);
        self.alert_store
            .places
            .insert(labels, self.alert_store.alerts.len());
        self.hold.push(true);
        self.alert_store.alerts.push(alert);
        self.alert_store.version += 1;
    }

    /// Ends the evaluation. `is_known` says for an alert whose condition does not hold whether that is known. Returns
    /// whether anything changed that is sent.
    pub fn end(self, is_known: impl Fn(&LabelSet) -> bool) -> bool {
        let Self {
            alert_store,
            hold,
            mut changed,
            left_out,
            now,
        } = self;
        let before = alert_store.alerts.len();
        let mut hold = hold.into_iter();
        alert_store.alerts.retain_mut(|alert| {
            if hold.next() == Some(true) {
                return true;
            }
            let is_over = matches!(alert.state, AlertState::Resolved(_));
            if !is_over && !is_known(&alert.labels) {
                alert.held = now;
                return true;
            }
            match alert.state {
                AlertState::Pending { before, .. } => {
                    let before = before.filter(|before| before.is_told(now));
                    if let Some(before) = before {
                        alert.state = AlertState::Resolved(before);
                    }
                    before.is_some()
                }
                AlertState::Firing { since } => {
                    if now.since(alert.held) >= alert.kind.keep() {
                        alert.state = AlertState::Resolved(Episode { since, at: now });
                        changed = true;
                    }
                    true
                }
                AlertState::Resolved(episode) => episode.is_told(now),
            }
        });
        if alert_store.alerts.len() != before {
            alert_store.find_places();
        }
        let is_other = alert_store.alerts.len() != before || alert_store.left_out != left_out;
        alert_store.left_out = left_out;
        alert_store.version += u64::from(changed || is_other);
        changed
    }
}

impl Alert {
    /// Its condition holds: it fires when its waiting time is over. Returns whether that is new.
    fn holds(&mut self, now: Time) -> bool {
        let (since, before) = match self.state {
            AlertState::Firing { .. } => return false,
            AlertState::Pending { since, before } => (since, before),
            // It is back: another episode, with a beginning of its own.
            AlertState::Resolved(episode) => (now, Some(episode)),
        };
        if now.since(since) >= self.kind.patience() {
            self.state = AlertState::Firing { since: now };
            return true;
        }
        let before = before.filter(|before| before.is_told(now));
        self.state = AlertState::Pending { since, before };
        false
    }
}

fn bounded(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
