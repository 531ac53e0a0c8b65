//! The series of releases: the phase of each, and the outcomes of its rollouts.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, Result};

use super::own::add;
use crate::core::rollout::Mode;

/// The phases of a release.
pub const PHASES: [&str; 7] = [
    "not_installed",
    "idle",
    "rolling_out",
    "analyzing",
    "preflight",
    "rolling_back",
    "verifying",
];

/// The outcomes of a rollout.
pub const OUTCOMES: [&str; 15] = [
    "passed",
    "unchanged",
    "inconclusive",
    "superseded",
    "uninstalled",
    "would_roll_back",
    "not_eligible",
    "limit_reached",
    "refused",
    "order_refused",
    "rollback_failed",
    "rolled_back",
    "still_failing",
    "worsened",
    "unverified",
];

/// How the bake of a revision can end.
const BAKES: [&str; 4] = ["good", "failed", "inconclusive", "superseded"];

/// The runbook's steps.
const STEPS: [&str; 6] = [
    "detect",
    "detect_from_trouble",
    "initiate",
    "complete",
    "verify",
    "total",
];

/// Why pods of a release are not probed directly.
const NOT_PROBED: [&str; 4] = ["not_set", "no_port", "unclear", "no_answer"];

/// What may be done to a release whose revision is rejected.
const MODES: [Mode; 3] = [Mode::Enforce, Mode::Observe, Mode::Off];

const RELEASE: [&str; 2] = ["namespace", "release"];

/// State of a release.
#[derive(Debug, Clone, Copy)]
pub struct ReleaseGauges<'a> {
    /// The namespace of the release.
    pub namespace: &'a str,
    /// Its name.
    pub release: &'a str,
    /// One of [`PHASES`].
    pub phase: &'a str,
    /// The newest revision.
    pub revision: Option<u32>,
    /// Evidence against it, during its analysis.
    pub e_value: Option<f64>,
    /// Usable share of the results, likewise.
    pub coverage: Option<f64>,
    /// Evidence against it, during its bake.
    pub bake_e_value: Option<f64>,
    /// Whether it evidently answers more slowly than the one before, as `LeadsmanReleaseSlower` says.
    pub is_slower: bool,
}

/// What the cluster shows of a release.
#[derive(Debug, Clone, Copy, Default)]
pub struct ObjectGauges {
    /// Revisions whose records cannot be read.
    pub unreadable: i64,
    /// Whether nothing new is known at the moment.
    pub blind: bool,
    /// Failed watches since the start.
    pub watch_failures: u64,
}

/// The series of releases.
#[derive(Debug)]
pub struct ReleaseMetrics {
    mode: IntGaugeVec,
    phase: IntGaugeVec,
    revision: IntGaugeVec,
    e_value: GaugeVec,
    coverage: GaugeVec,
    bake_e_value: GaugeVec,
    slower: IntGaugeVec,
    bakes: IntCounterVec,
    outcomes: IntCounterVec,
    steps: GaugeVec,
    rollback_ready: IntGaugeVec,
    /// The reason of each release on the page, by namespace and release: only one can be true.
    ready_reasons: Mutex<HashMap<(String, String), String>>,
    pods_not_probed: IntGaugeVec,
    unreadable: IntGaugeVec,
    blind: IntGaugeVec,
    watch_failures: IntCounterVec,
    state_failures: IntCounter,
}

impl ReleaseMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let of_release = |name: &str, help: &str| {
            IntGaugeVec::new(Opts::new(name, help), &RELEASE)
                .and_then(|metric| add(registry, Ok(metric)))
        };
        let of_analysis = |name: &str, help: &str| {
            GaugeVec::new(Opts::new(name, help), &RELEASE)
                .and_then(|metric| add(registry, Ok(metric)))
        };
        Ok(Self {
            mode: add(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "leadsman_release_mode",
                        "1 for the mode in which a guarded release is: whether a bad revision is rolled back.",
                    ),
                    &["namespace", "release", "mode"],
                ),
            )?,
            phase: add(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "leadsman_rollout_phase",
                        "1 for the phase in which a guarded release stands.",
                    ),
                    &["namespace", "release", "phase"],
                ),
            )?,
            revision: of_release(
                "leadsman_release_revision",
                "The newest revision of a guarded release.",
            )?,
            e_value: of_analysis(
                "leadsman_verdict_e_value",
                "Evidence against the revision that is judged; it is rolled back at 100. Absent when none is.",
            )?,
            coverage: of_analysis(
                "leadsman_verdict_coverage_ratio",
                "Usable share of the results of the revision that is judged. Absent when none is.",
            )?,
            bake_e_value: of_analysis(
                "leadsman_bake_e_value",
                "Evidence against the revision that bakes; an alarm needs 100000. Absent when none does.",
            )?,
            slower: of_release(
                "leadsman_release_slower",
                "1 while the newest revision is shown to answer more slowly than the one before, and for an hour after its analysis.",
            )?,
            bakes: add(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "leadsman_bakes_total",
                        "Revisions of a guarded release that baked, by how that ended.",
                    ),
                    &["namespace", "release", "end"],
                ),
            )?,
            outcomes: add(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "leadsman_rollouts_total",
                        "Revisions of a guarded release, by how their watch ended.",
                    ),
                    &["namespace", "release", "outcome"],
                ),
            )?,
            steps: add(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "leadsman_rollout_step_seconds",
                        "How long the runbook's steps took in the last rollback of a release; detect and total count from the moment the revision appeared, detect_from_trouble from the first sign of trouble: a failed result, also of a pod, a restart, a pod that cannot start.",
                    ),
                    &["namespace", "release", "step"],
                ),
            )?,
            ready_reasons: Mutex::default(),
            rollback_ready: add(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "leadsman_rollback_ready",
                        "1 when the newest revision of a release could be rolled back now; 0 with the reason why not.",
                    ),
                    &["namespace", "release", "reason"],
                ),
            )?,
            pods_not_probed: add(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "leadsman_pods_not_probed",
                        "Probes of a release that do not ask its pods directly, by the reason.",
                    ),
                    &["namespace", "release", "reason"],
                ),
            )?,
            unreadable: of_release(
                "leadsman_release_unreadable_revisions",
                "Stored revisions of a release that cannot be read; the log names each once.",
            )?,
            blind: of_release(
                "leadsman_release_blind",
                "1 while nothing new is known of a release, as when the API server cannot be reached; its results are unknown.",
            )?,
            watch_failures: add(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "leadsman_cluster_watch_failures_total",
                        "Watches of the objects around a release that failed or were refused.",
                    ),
                    &RELEASE,
                ),
            )?,
            state_failures: add(
                registry,
                IntCounter::new(
                    "leadsman_state_write_failures_total",
                    "States and recordings that could not be written.",
                ),
            )?,
        })
    }

    /// Sets the mode of a release.
    pub fn is_in(&self, namespace: &str, release: &str, mode: Mode) {
        for other in MODES {
            self.mode
                .with_label_values(&[namespace, release, other.as_str()])
                .set(i64::from(other == mode));
        }
    }

    /// Sets the state of a release.
    pub fn stands(&self, standing: &ReleaseGauges<'_>) {
        let labels = [standing.namespace, standing.release];
        for phase in PHASES {
            let is_here = i64::from(phase == standing.phase);
            self.phase
                .with_label_values(&[labels[0], labels[1], phase])
                .set(is_here);
        }
        for outcome in OUTCOMES {
            // All are on the page from the start, so that the first of a kind is an increase.
            self.outcomes
                .with_label_values(&[labels[0], labels[1], outcome]);
        }
        for end in BAKES {
            self.bakes.with_label_values(&[labels[0], labels[1], end]);
        }
        self.slower
            .with_label_values(&labels)
            .set(i64::from(standing.is_slower));
        match standing.revision {
            Some(revision) => self
                .revision
                .with_label_values(&labels)
                .set(i64::from(revision)),
            // Absent is not an error: there was none before either.
            None => drop(self.revision.remove_label_values(&labels)),
        }
        for (gauge, value) in [
            (&self.e_value, standing.e_value),
            (&self.coverage, standing.coverage),
            (&self.bake_e_value, standing.bake_e_value),
        ] {
            match value {
                Some(value) => gauge.with_label_values(&labels).set(value),
                None => drop(gauge.remove_label_values(&labels)),
            }
        }
    }

    /// Sets whether the newest revision could be rolled back; an empty reason means yes.
    pub fn ready(&self, namespace: &str, release: &str, reason: &str) {
        self.forget_ready(namespace, release);
        self.rollback_ready
            .with_label_values(&[namespace, release, reason])
            .set(i64::from(reason.is_empty()));
        let place = (namespace.to_owned(), release.to_owned());
        self.reasons().insert(place, reason.to_owned());
    }

    /// Sets how long a step of the last rollback took; `None` removes it.
    pub fn took(&self, namespace: &str, release: &str, step: &str, seconds: Option<f64>) {
        let labels = [namespace, release, step];
        match seconds {
            Some(seconds) => self.steps.with_label_values(&labels).set(seconds),
            None => drop(self.steps.remove_label_values(&labels)),
        }
    }

    fn forget_ready(&self, namespace: &str, release: &str) {
        let place = (namespace.to_owned(), release.to_owned());
        if let Some(reason) = self.reasons().remove(&place) {
            let labels = [namespace, release, reason.as_str()];
            drop(self.rollback_ready.remove_label_values(&labels));
        }
    }

    fn reasons(&self) -> MutexGuard<'_, HashMap<(String, String), String>> {
        self.ready_reasons
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how many probes do not probe pods directly, for one of the reasons `not_set`, `no_port`, `unclear` and
    /// `no_answer`.
    pub fn not_probed(&self, namespace: &str, release: &str, reason: &str, probes: i64) {
        self.pods_not_probed
            .with_label_values(&[namespace, release, reason])
            .set(probes);
    }

    /// Sets what the cluster shows of a release.
    pub fn sees(&self, namespace: &str, release: &str, seen: &ObjectGauges) {
        let labels = [namespace, release];
        self.unreadable
            .with_label_values(&labels)
            .set(seen.unreadable);
        self.blind
            .with_label_values(&labels)
            .set(i64::from(seen.blind));
        let failures = self.watch_failures.with_label_values(&labels);
        failures.inc_by(seen.watch_failures.saturating_sub(failures.get()));
    }

    /// Counts a finished rollout; `outcome` is one of [`OUTCOMES`].
    pub fn ended(&self, namespace: &str, release: &str, outcome: &str) {
        self.outcomes
            .with_label_values(&[namespace, release, outcome])
            .inc();
    }

    /// Counts a bake that ended; `end` is `good`, `failed`, `inconclusive` or `superseded`.
    pub fn baked(&self, namespace: &str, release: &str, end: &str) {
        self.bakes
            .with_label_values(&[namespace, release, end])
            .inc();
    }

    /// Counts a state or a recording that could not be written.
    pub fn state_failed(&self) {
        self.state_failures.inc();
    }

    /// Removes the series of a release that has no controller any longer.
    pub fn forget(&self, namespace: &str, release: &str) {
        let labels = [namespace, release];
        for mode in MODES {
            drop(
                self.mode
                    .remove_label_values(&[namespace, release, mode.as_str()]),
            );
        }
        for phase in PHASES {
            drop(self.phase.remove_label_values(&[namespace, release, phase]));
        }
        for outcome in OUTCOMES {
            drop(
                self.outcomes
                    .remove_label_values(&[namespace, release, outcome]),
            );
        }
        for end in BAKES {
            drop(self.bakes.remove_label_values(&[namespace, release, end]));
        }
        for step in STEPS {
            self.took(namespace, release, step, None);
        }
        for reason in NOT_PROBED {
            let labels = [namespace, release, reason];
            drop(self.pods_not_probed.remove_label_values(&labels));
        }
        self.forget_ready(namespace, release);
        drop(self.unreadable.remove_label_values(&labels));
        drop(self.blind.remove_label_values(&labels));
        drop(self.watch_failures.remove_label_values(&labels));
        drop(self.revision.remove_label_values(&labels));
        drop(self.e_value.remove_label_values(&labels));
        drop(self.coverage.remove_label_values(&labels));
        drop(self.bake_e_value.remove_label_values(&labels));
        drop(self.slower.remove_label_values(&labels));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn one_reason_holds_whatever_it_is_called_and_it_goes_with_the_release() {
        let registry = Registry::new();
        let releases = ReleaseMetrics::new(&registry).unwrap();
        let reasons = || {
            let page = TextEncoder::new()
                .encode_to_string(&registry.gather())
                .unwrap();
            let lines = page.lines();
            let ready = lines.filter(|line| line.starts_with("leadsman_rollback_ready{"));
            ready.map(str::to_owned).collect::<Vec<_>>()
        };
        releases.ready("shop", "web", "a_new_reason");
        releases.ready("shop", "web", "");
        let of = "leadsman_rollback_ready{namespace=\"shop\",reason=\"\",release=\"web\"} 1";
        assert_eq!(reasons(), [of]);
        releases.forget("shop", "web");
        assert!(reasons().is_empty());
    }

    #[test]
    fn one_mode_is_in_force_the_others_are_not_and_all_go_with_the_release() {
        let registry = Registry::new();
        let releases = ReleaseMetrics::new(&registry).unwrap();
        let modes = || {
            let page = TextEncoder::new()
                .encode_to_string(&registry.gather())
                .unwrap();
            let lines = page.lines().filter_map(|line| {
                line.strip_prefix("leadsman_release_mode{mode=")
                    .map(str::to_owned)
            });
            lines.collect::<Vec<_>>()
        };
        let shop = |mode: &str, value: u8| {
            format!("\"{mode}\",namespace=\"shop\",release=\"web\"}} {value}")
        };
        assert!(modes().is_empty());
        releases.is_in("shop", "web", Mode::Observe);
        assert_eq!(
            modes(),
            [shop("enforce", 0), shop("observe", 1), shop("off", 0)]
        );
        releases.is_in("shop", "web", Mode::Enforce);
        assert_eq!(
            modes(),
            [shop("enforce", 1), shop("observe", 0), shop("off", 0)]
        );
        releases.is_in("shop", "other", Mode::Off);
        releases.forget("shop", "web");
        assert_eq!(modes().len(), 3, "those of the other release");
        assert!(modes().iter().all(|line| line.contains("\"other\"")));
    }

    #[test]
    fn whether_it_is_slower_is_always_there_and_goes_with_the_release() {
        let registry = Registry::new();
        let releases = ReleaseMetrics::new(&registry).unwrap();
        let slower = || {
            let page = TextEncoder::new()
                .encode_to_string(&registry.gather())
                .unwrap();
            let line = page.lines().find_map(|line| {
                line.strip_prefix("leadsman_release_slower{namespace=\"shop\",release=\"web\"} ")
            });
            line.map(str::to_owned)
        };
        for (is_slower, shown) in [(false, "0"), (true, "1"), (false, "0")] {
            releases.stands(&ReleaseGauges {
                namespace: "shop",
                release: "web",
                phase: "idle",
                revision: Some(2),
                e_value: None,
                coverage: None,
                bake_e_value: None,
                is_slower,
            });
            assert_eq!(slower().as_deref(), Some(shown));
        }
        releases.forget("shop", "web");
        assert_eq!(slower(), None);
    }
}
