//! Alerts of Alertmanager as evidence about the revision that is watched.

use serde::{Deserialize, Serialize};

use super::Guard;
use crate::config::settings::Weight;
use crate::rollout::Event;
use crate::serve::AlertHeard;
use crate::serve::status::VerdictView;
use crate::units::Time;

/// Alerts that are remembered during one watch; of more, those that say least go first.
const MAX_ALERTS: usize = 64;

/// An alert that fires, and began while the revision was watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Firing {
    pub(super) name: String,
    fingerprint: String,
    pub(super) is_doubt: bool,
}

impl Guard {
    pub(super) async fn on_alert(&mut self, alert: AlertHeard) {
        let now = self.now();
        let Some(watching) = &mut self.state.watching else {
            return;
        };
        let (revision, began) = (watching.revision, watching.began);
        watching
            .alerts
            .retain(|firing| firing.fingerprint != alert.fingerprint);
        let name = plain(&alert.name);
        if !alert.is_firing {
            let text = format!("The alert {name} has ended");
            self.remark(now, &text);
            return;
        }
        // What fired before the revision came is not its doing.
        if Time::from_millis(alert.since) < began {
            let text = format!("The alert {name} fires, and did so before the revision appeared");
            self.remark(now, &text);
            return;
        }
        let firing = Firing {
            name: name.clone(),
            fingerprint: alert.fingerprint,
            is_doubt: alert.weight == Weight::Doubt,
        };
        add(&mut watching.alerts, firing);
        let others = others(&watching.alerts, &name);
        let text = format!("The alert {name} fires");
        self.remark(now, &text);
        if alert.weight != Weight::Convict {
            return;
        }
        let reason = format!("alert:{name}");
        let text = format!("Alertmanager says that {name} fires, and that convicts here");
        self.collect(revision, began);
        self.happens(Event::Regressed {
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
            otherwise:
                "No verdict would have fallen without the alert, whose weight is \"convict\"".into(),
            at: now.unix_seconds(),
        });
        self.publish();
    }

    /// An alert that keeps the revision from being healthy.
    pub(super) fn doubt(&self) -> Option<String> {
        let watching = self.state.watching.as_ref()?;
        let firing = watching.alerts.iter().find(|firing| firing.is_doubt)?;
        Some(format!("alert:{}", firing.name))
    }

    /// Written with what else changes, since many may come at once, and the store may be slow.
    fn remark(&mut self, now: Time, text: &str) {
        self.state.rollout.remark(now, text);
        self.keep_entries();
        self.is_dirty = true;
        self.publish();
    }
}

/// Adds one that fires. When there are enough, one that only is to be noted makes room for one that raises doubt.
fn add(alerts: &mut Vec<Firing>, firing: Firing) {
    if alerts.len() >= MAX_ALERTS {
        let Some(at) = alerts.iter().position(|known| !known.is_doubt) else {
            return;
        };
        if !firing.is_doubt {
            return;
        }
        alerts.remove(at);
    }
    alerts.push(firing);
}

/// Names of alerts that a verdict tells of; a text that nobody reads to its end says nothing.
const MAX_NAMED: usize = 5;

/// The alerts that fire besides one, in words, for the end of a verdict; empty without any.
pub(super) fn others(alerts: &[Firing], besides: &str) -> String {
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

/// A name of an alert as it may stand in a log and a reason.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric() || "_-:.".contains(*c))
        .take(100)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firing(number: usize, is_doubt: bool) -> Firing {
        Firing {
            name: format!("A{number}"),
            fingerprint: number.to_string(),
            is_doubt,
        }
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
        assert!(alerts.iter().all(|firing| firing.is_doubt));
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
