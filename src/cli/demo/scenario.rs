//! The demo's scenarios: what is deployed, and the expected outcome.

use std::time::Duration;

use clap::ValueEnum;

use super::app::{AppBehaviour, Surroundings};

/// What is wrong with the revision that is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// Its pods answer nothing well: rolled back
    Dead,
    /// One answer in five fails: rolled back
    Errors,
    /// The database check fails: rolled back
    OneEndpoint,
    /// Its pods crash soon after their start: rolled back
    CrashLoop,
    /// Its pods never become Ready, and old ones serve: rolled back
    NeverReady,
    /// It passes its analysis and then runs out of memory: rolled back by its bake
    Leak,
    /// Its pods need 8 s after they are Ready: kept
    SlowStart,
    /// Half of the answers fail in the first 10 s of a pod: kept
    WarmUp,
    /// Its only pod goes before the new one starts: kept
    SingleReplica,
    /// Its answers take ten times as long: kept, with a notice
    Slower,
    /// Its pods allow fewer requests than an analysis makes: kept
    RateLimited,
    /// The database goes down after the last old pod is gone: kept
    DependencyDown,
    /// Everything fails for 10 s, then recovers: kept
    Blip,
    /// Nothing at all: kept
    Healthy,
}

impl Scenario {
    /// Whether the revision must be rolled back.
    pub(super) const fn is_bad(self) -> bool {
        match self {
            Self::Dead
            | Self::Errors
            | Self::OneEndpoint
            | Self::CrashLoop
            | Self::NeverReady
            | Self::Leak => true,
            Self::SlowStart
            | Self::WarmUp
            | Self::SingleReplica
            | Self::Slower
            | Self::RateLimited
            | Self::DependencyDown
            | Self::Blip
            | Self::Healthy => false,
        }
    }

    /// In words.
    pub(super) const fn about(self) -> &'static str {
        match self {
            Self::Dead => "its pods answer nothing well",
            Self::Errors => "one answer in five fails",
            Self::OneEndpoint => "its database check fails",
            Self::CrashLoop => "its pods crash soon after their start",
            Self::NeverReady => "its pods never become Ready, and the old ones go on serving",
            Self::Leak => {
                "it passes its analysis, and then more and more answers fail for want of memory"
            }
            Self::SlowStart => "its pods need 8 s after they are Ready before they answer well",
            Self::WarmUp => "half of a pod's answers fail in its first 10 s",
            Self::SingleReplica => "its only pod goes before the new one starts",
            Self::Slower => "its answers take ten times as long",
            Self::RateLimited => "its pods allow fewer requests than an analysis makes",
            Self::DependencyDown => {
                "the database goes down after its rollout, when no old pod is left to compare with"
            }
            Self::Blip => "20 s later everything fails for 10 s, old and new alike",
            Self::Healthy => "nothing is wrong with it",
        }
    }

    /// How often each probe is asked before the revision appears. In life it is seldom, for an hour; here it is often, so
    /// that the short baseline says about as much.
    pub(super) const fn interval(self) -> Duration {
        match self {
            // Seldom enough for the limit.
            Self::RateLimited => Duration::from_secs(2),
            _ => Duration::from_millis(100),
        }
    }

    /// How long the baseline is taken.
    pub(super) const fn warm_up(self) -> Duration {
        match self {
            Self::RateLimited => Duration::from_secs(40),
            // Answers enough to know how long they take.
            Self::Slower => Duration::from_secs(30),
            _ => Duration::from_secs(15),
        }
    }

    /// How long the revision is watched at least; in life it is five minutes.
    pub(super) const fn watch(self) -> Duration {
        match self {
            // Answers of a pod's first minute are not compared.
            Self::Slower => Duration::from_secs(120),
            // Over before the leak shows.
            Self::Leak => Duration::from_secs(30),
            _ => Duration::from_secs(60),
        }
    }

    /// How long after it appeared a revision that passed is kept under watch, where its bake may roll it back; in life it
    /// is an hour.
    pub(super) const fn bake(self) -> Option<Duration> {
        match self {
            Self::Leak => Some(Duration::from_secs(600)),
            _ => None,
        }
    }

    /// What its pods do.
    pub(super) fn behaviour(self) -> AppBehaviour {
        // Slow enough that old and new pods serve side by side for a while, as they do in a cluster.
        let new = AppBehaviour {
            image: format!("mykadoo:{self:?}").to_lowercase(),
            start_ms: 4000,
            ..self.good(0)
        };
        match self {
            Self::Dead => AppBehaviour {
                dead: vec!["*".into()],
                ..new
            },
            Self::Errors => AppBehaviour {
                error_rate: 0.2,
                ..new
            },
            Self::OneEndpoint => AppBehaviour {
                dead: vec!["/api/health/db".into()],
                ..new
            },
            Self::CrashLoop => AppBehaviour {
                crash_after_ms: Some(1500),
                ..new
            },
            Self::NeverReady => AppBehaviour {
                start_ms: u64::MAX,
                ..new
            },
            Self::Leak => AppBehaviour {
                leaks_after_ms: Some(75_000),
                ..new
            },
            Self::SlowStart => AppBehaviour {
                cold_ms: 8000,
                ..new
            },
            Self::WarmUp => AppBehaviour {
                cold_ms: 10_000,
                cold_error_rate: 0.5,
                ..new
            },
            Self::Slower => AppBehaviour {
                answer_ms: 10 * new.answer_ms,
                ..new
            },
            Self::DependencyDown => AppBehaviour {
                weather: Surroundings {
                    // A rollout takes about 14 s.
                    db_down_after_ms: Some(22_000),
                    ..Surroundings::default()
                },
                ..new
            },
            Self::Blip => AppBehaviour {
                weather: Surroundings {
                    blip_ms: Some((20_000, 10_000)),
                    ..Surroundings::default()
                },
                ..new
            },
            Self::SingleReplica | Self::RateLimited | Self::Healthy => new,
        }
    }

    /// A revision that is well, for the beginning.
    pub(super) fn good(self, number: u32) -> AppBehaviour {
        let good = AppBehaviour {
            image: format!("mykadoo:1.{number}"),
            start_ms: 1500,
            ..AppBehaviour::default()
        };
        match self {
            Self::SingleReplica => AppBehaviour {
                replicas: 1,
                stops_first: true,
                ..good
            },
            Self::Slower => AppBehaviour {
                answer_ms: 20,
                ..good
            },
            Self::RateLimited => AppBehaviour {
                per_minute: 200,
                ..good
            },
            _ => good,
        }
    }
}
