//! Which conditions hold now, and for which subjects that is unknown.

use std::collections::HashSet;
use std::sync::Arc;

use super::{AlertEvaluator, conditions};
use crate::core::alerts::AlertKind;
use crate::core::alerts::Condition;
use crate::core::alerts::LabelSet;
use crate::core::alerts::Labels;
use crate::core::probe_result::UnknownReason;
use crate::core::probe_stats::{ProbeStats, TrackedProbe};
use crate::core::units::Moment;
use crate::core::window::LongWindow;
use crate::http::Shard;
use crate::http::status::GuardView;
use crate::platform::clock;

/// Subjects whose condition is unknown; their alerts stay as they are. After a start these are all subjects without a
/// result: ending their alerts would send a false "resolved" in the middle of an outage.
#[derive(Default)]
pub(super) struct UnknownSubjects {
    places: HashSet<AlertSubject>,
    receivers: HashSet<String>,
    /// The addresses of an Alertmanager are not resolved yet, so each receiver may be one of them.
    any_receiver: bool,
    ourselves: bool,
}

impl UnknownSubjects {
    pub(super) fn is_known(&self, labels: &LabelSet) -> bool {
        let of = |name: &str| labels.get(name).unwrap_or_default().to_owned();
        let name = of("alertname");
        if name == AlertKind::SelfCheckFailing.name() || name == AlertKind::AllTargetsSilent.name()
        {
            !self.ourselves
        } else if name == AlertKind::DeliveryFailing.name() {
            !self.any_receiver && !self.receivers.contains(&of("receiver"))
        } else {
            let probe = if name == AlertKind::DependencyFailing.name() {
                of("dependency")
            } else {
                of("probe")
            };
            let key = (of("namespace"), of("release"), probe);
            !self.places.contains(&key)
        }
    }
}

/// Namespace, release and probe; empty if the alert has none.
type AlertSubject = (String, String, String);

impl AlertEvaluator {
    /// Passes each condition that holds to `found`; returns the subjects whose condition is unknown.
    pub(super) fn conditions(
        &self,
        tracked_probe: &[Arc<TrackedProbe>],
        views: &[Arc<GuardView>],
        mut found: impl FnMut(Condition),
    ) -> UnknownSubjects {
        let mut unknown = UnknownSubjects::default();
        let at = clock::now();
        let mut unwell: HashSet<(String, String)> = HashSet::new();
        for tracked_probe in tracked_probe {
            let probe = tracked_probe.probe();
            let id = &probe.id;
            let (is_known, is_well) = {
                let mut stats = tracked_probe.lock();
                (
                    conditions::is_known(&stats, probe.interval),
                    is_well(&mut stats, at),
                )
            };
            if !is_known {
                unknown.places.insert((
                    id.namespace.to_string(),
                    id.release.to_string(),
                    id.probe.to_string(),
                ));
            }
            if !is_well {
                unwell.insert((id.namespace.to_string(), id.release.to_string()));
            }
        }
        let unix = self.setup.timeline.now().unix_seconds();
        for view in views {
            let release = (view.namespace.clone(), view.release.clone());
            if view.phase.is_empty() {
                // It has just begun, or its state cannot be read.
                if let Some(condition) = conditions::blind(view) {
                    found(condition);
                }
                let place = (release.0, release.1, String::new());
                unknown.places.insert(place);
                continue;
            }
            let is_well = !unwell.contains(&release);
            let release = conditions::of_release(view, is_well, unix);
            let others = [
                conditions::blind(view),
                conditions::slower(view, unix),
                conditions::bake_failed(view, unix),
            ];
            for condition in release.into_iter().chain(others.into_iter().flatten()) {
                found(condition);
            }
        }
        self.of_ourselves(&mut unknown, &mut found);
        // After the others: there may be so many of them that no room is left.
        for condition in tracked_probe
            .iter()
            .filter_map(|it| conditions::of_probe(it))
        {
            found(condition);
        }
        unknown
    }

    /// Conditions of the daemon itself and of the receivers.
    fn of_ourselves(&self, unknown: &mut UnknownSubjects, mut found: impl FnMut(Condition)) {
        let of_release = match &self.setup.shard {
            Shard::Release(namespace, name) => Some(conditions::release(namespace, name)),
            Shard::All | Shard::Ourselves => None,
        };
        // Others may tell the same of themselves.
        let own = self.setup.replica.iter();
        let own: Labels = own
            .map(|name| ("replica".to_owned(), name.clone()))
            .collect();
        let is_ourselves = of_release.is_none();
        let mut troubles = Vec::new();
        if is_ourselves {
            troubles = self.setup.executor.troubles();
            let all = self.setup.web.tracked_probe();
            // Nothing was asked yet, so that nothing could be in its way.
            unknown.ourselves = !all
                .iter()
                .any(|tracked_probe| tracked_probe.lock().is_known());
        }
        // Whoever's fault it is, people must look at once, so it is an alert of its own.
        let silent = UnknownReason::AllTargets.as_str();
        if troubles.contains(&silent) {
            let text = "Nothing comes back from any of the probed hosts. Nothing is known of any release meanwhile, no \
                        revision is judged, and nothing is rolled back.";
            let kind = AlertKind::AllTargetsSilent;
            found(conditions::of_ourselves(kind, own.clone(), text.into()));
        }
        troubles.retain(|trouble| *trouble != silent);
        if !troubles.is_empty() {
            let text = format!(
                "Results are unknown: {}.",
                troubles.join(", ").replace('_', " ")
            );
            found(conditions::of_ourselves(
                AlertKind::SelfCheckFailing,
                own.clone(),
                text,
            ));
        }
        let mut receiver = |name: &str, what: &str, fails: bool, is_known: bool| {
            if fails {
                let text = format!("{what} {name}.");
                let mut place = of_release.clone().unwrap_or_else(|| own.clone());
                place.insert("receiver".to_owned(), name.to_owned());
                found(conditions::of_ourselves(
                    AlertKind::DeliveryFailing,
                    place,
                    text,
                ));
            } else if !is_known {
                unknown.receivers.insert(name.to_owned());
            }
        };
        for sending in self.alertmanagers.values() {
            let peer = &sending.peer;
            let fails = peer.failing_since().is_some();
            let what = "Alerts do not arrive at";
            receiver(peer.name(), what, fails, peer.is_tried());
        }
        for posting in &self.outboxes {
            let delivery_queue = &posting.delivery_queue;
            let fails = delivery_queue.failing_since().is_some();
            let is_known = delivery_queue.is_tried() || posting.is_changed;
            let what = "Messages do not arrive at the receiver";
            receiver(delivery_queue.receiver().name, what, fails, is_known);
        }
        if let Some(settings) = &self.orders.alertmanagers {
            unknown.any_receiver = (0..settings.urls.len())
                .any(|number| !self.alertmanagers.keys().any(|(of, _)| *of == number));
            if settings.watchdog && is_ourselves {
                let text =
                    "This alert always fires; when it does not arrive, no other does.".into();
                found(conditions::of_ourselves(
                    AlertKind::Watchdog,
                    own.clone(),
                    text,
                ));
            }
        }
    }
}

/// No failure and at least one success in the last five minutes. Weighted counts alone do not say that: results of an
/// analysis count for less than one, so the window is checked as well.
fn is_well(stats: &mut ProbeStats, now: Moment) -> bool {
    let counts = stats.counts(LongWindow::Minutes5, now);
    let failure = stats.window().counts(now).failure;
    counts.failure == 0 && counts.success > 0 && failure == 0
}
