//! Alerts of Alertmanager as evidence about the revision that is watched.

use serde::{Deserialize, Serialize};

use super::Guard;
use crate::config::settings::Weight;
use crate::rollout::Event;
use crate::serve::AlertHeard;
use crate::serve::status::VerdictView;
use crate::units::Time;

/// Alerts that are remembered during one watch.
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
            self.remark(now, &text).await;
            return;
        }
        // What fired before the revision came is not its doing.
        if Time::from_millis(alert.since) < began {
            let text = format!("The alert {name} fires, and did so before the revision appeared");
            self.remark(now, &text).await;
            return;
        }
        if watching.alerts.len() < MAX_ALERTS {
            watching.alerts.push(Firing {
                name: name.clone(),
                fingerprint: alert.fingerprint,
                is_doubt: alert.weight == Weight::Doubt,
            });
        }
        let text = format!("The alert {name} fires");
        self.remark(now, &text).await;
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
            text,
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

    async fn remark(&mut self, now: Time, text: &str) {
        self.state.rollout.remark(now, text);
        self.keep_entries();
        self.publish();
        self.save(false).await;
    }
}

/// A name of an alert as it may stand in a log and a reason.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric() || "_-:.".contains(*c))
        .take(100)
        .collect()
}
