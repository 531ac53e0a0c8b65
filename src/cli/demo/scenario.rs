//! What is deployed in the demo, and how it must end.

use clap::ValueEnum;

use super::app::{Behaviour, Weather};

/// What is wrong with the revision that is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// Its pods answer nothing well: turned back
    Dead,
    /// One answer in five fails: turned back
    Errors,
    /// The database check fails: turned back
    OneEndpoint,
    /// Its pods crash soon after their start: turned back
    CrashLoop,
    /// Its pods need 8 s after they are Ready: kept
    SlowStart,
    /// The database goes down after the last old pod is gone: kept
    DependencyDown,
    /// Everything fails for 10 s, then recovers: kept
    Blip,
    /// Nothing at all: kept
    Healthy,
}

impl Scenario {
    /// Whether the revision must be turned back.
    pub(super) const fn is_bad(self) -> bool {
        match self {
            Self::Dead | Self::Errors | Self::OneEndpoint | Self::CrashLoop => true,
            Self::SlowStart | Self::DependencyDown | Self::Blip | Self::Healthy => false,
        }
    }

    /// In words.
    pub(super) const fn about(self) -> &'static str {
        match self {
            Self::Dead => "its pods answer nothing well",
            Self::Errors => "one answer in five fails",
            Self::OneEndpoint => "its database check fails",
            Self::CrashLoop => "its pods crash soon after their start",
            Self::SlowStart => "its pods need 8 s after they are Ready before they answer well",
            Self::DependencyDown => {
                "the database goes down after its rollout, when no old pod is left to compare with"
            }
            Self::Blip => "20 s later everything fails for 10 s, old and new alike",
            Self::Healthy => "nothing is wrong with it",
        }
    }

    /// What its pods do.
    pub(super) fn behaviour(self) -> Behaviour {
        // Slow enough that old and new pods serve side by side for a while, as they do in a cluster.
        let new = Behaviour {
            image: format!("mykadoo:{self:?}").to_lowercase(),
            start_ms: 4000,
            ..Behaviour::default()
        };
        match self {
            Self::Dead => Behaviour {
                dead: vec!["*".into()],
                ..new
            },
            Self::Errors => Behaviour {
                error_rate: 0.2,
                ..new
            },
            Self::OneEndpoint => Behaviour {
                dead: vec!["/api/health/db".into()],
                ..new
            },
            Self::CrashLoop => Behaviour {
                crash_after_ms: Some(1500),
                ..new
            },
            Self::SlowStart => Behaviour {
                cold_ms: 8000,
                ..new
            },
            Self::DependencyDown => Behaviour {
                weather: Weather {
                    // A rollout takes about 14 s.
                    db_down_after_ms: Some(22_000),
                    ..Weather::default()
                },
                ..new
            },
            Self::Blip => Behaviour {
                weather: Weather {
                    blip_ms: Some((20_000, 10_000)),
                    ..Weather::default()
                },
                ..new
            },
            Self::Healthy => new,
        }
    }

    /// A revision that is well, for the beginning.
    pub(super) fn good(number: u32) -> Behaviour {
        Behaviour {
            image: format!("mykadoo:1.{number}"),
            start_ms: 1500,
            ..Behaviour::default()
        }
    }
}
