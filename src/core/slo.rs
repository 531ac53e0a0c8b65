//! Objectives: the error budget over a long period, how fast it is being spent, and when to alert.
//!
//! The model is the multi-window, multi-burn-rate one of the Google SRE workbook (chapter 5), with Sloth's four tiers.
//! A tier fires while both a long window (it matters) and a short one (it still happens) burn faster than a factor: the
//! share of the budget that the long window may spend, times the period, divided by the window; but at least 0.9, which
//! spends most of the budget of any period.
//!
//! A prober knows how many results there should have been. If fewer came, budgets and tiers are measured against that
//! number, so that the first failure after a start is not an emergency. The burn rate that is shown is the plain ratio
//! of the counts, divided by the budget:
//!
//! ```text
//! burn(w) = increase(leadsman_slo_failures_total[w]) / increase(leadsman_slo_results_total[w]) / (1 - target)
//! ```
//!
//! Results count by the time that they stand for ([`crate::core::window::WeightedCounts`]): during an analysis, when
//! they come more often than the probe's own interval, each counts as its share of that interval. Without an analysis
//! the counts are the results themselves, and `leadsman_probes_total` gives the same.

use std::time::Duration;

use serde::Serialize;

use crate::core::window::{Counts, LongWindow};

/// What is promised.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// The share of results that must be good; 0.5 to 0.99999.
    pub target: f64,
    /// The period in days; 1 to 30.
    pub days: u32,
    /// When alerts fire; at least one tier.
    pub tiers: Vec<BurnTier>,
}

/// A tier: when to alert that the budget is being spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BurnTier {
    /// An hour and five minutes: 2 % of a month's budget in an hour.
    PageQuick,
    /// Six hours and half an hour: 5 %.
    PageSlow,
    /// A day and two hours: 10 %.
    TicketQuick,
    /// Three days and six hours: 10 %.
    TicketSlow,
}

/// The lowest factor of a tier. For a short period the arithmetic gives far less than 1, which would page for a day's
/// budget that lasts two days. Below this burn rate a tenth of the budget is left at the end of the period.
const LEAST: f64 = 0.9;

impl BurnTier {
    /// Every tier, the quickest first.
    pub const ALL: [Self; 4] = [
        Self::PageQuick,
        Self::PageSlow,
        Self::TicketQuick,
        Self::TicketSlow,
    ];

    /// As it is configured.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PageQuick => "page-quick",
            Self::PageSlow => "page-slow",
            Self::TicketQuick => "ticket-quick",
            Self::TicketSlow => "ticket-slow",
        }
    }

    /// Whether it pages the person on call.
    pub const fn is_page(self) -> bool {
        matches!(self, Self::PageQuick | Self::PageSlow)
    }

    /// The long window and the short one.
    pub const fn windows(self) -> (LongWindow, LongWindow) {
        match self {
            Self::PageQuick => (LongWindow::Hour, LongWindow::Minutes5),
            Self::PageSlow => (LongWindow::Hours6, LongWindow::Minutes30),
            Self::TicketQuick => (LongWindow::Day, LongWindow::Hours2),
            Self::TicketSlow => (LongWindow::Days3, LongWindow::Hours6),
        }
    }

    /// The share of the budget that the long window may spend.
    const fn share(self) -> f64 {
        match self {
            Self::PageQuick => 0.02,
            Self::PageSlow => 0.05,
            Self::TicketQuick | Self::TicketSlow => 0.1,
        }
    }
}

impl Objective {
    /// The share that may fail.
    pub fn budget(&self) -> f64 {
        1.0 - self.target
    }

    /// The period.
    pub fn period(&self) -> Duration {
        Duration::from_secs(u64::from(self.days) * 86_400)
    }

    /// The burn rate at which a tier fires.
    pub fn factor(&self, tier: BurnTier) -> f64 {
        let windows = self.period().as_secs_f64() / tier.windows().0.length().as_secs_f64();
        (tier.share() * windows).max(LEAST)
    }

    /// The error ratio at which a tier fires; from 1 on it never does.
    pub fn threshold(&self, tier: BurnTier) -> f64 {
        self.factor(tier) * self.budget()
    }

    /// How long this error ratio lasts before a tier fires; `None` if it never does.
    pub fn fires_after(&self, tier: BurnTier, error_ratio: f64) -> Option<Duration> {
        let threshold = self.threshold(tier);
        let long = tier.windows().0.length().as_secs_f64();
        (error_ratio > threshold).then(|| Duration::from_secs_f64(long * threshold / error_ratio))
    }

    /// Whether a tier fires. `count` gives the results of a span, `expected` how many there should be in a second.
    pub fn fires(
        &self,
        tier: BurnTier,
        count: impl Fn(LongWindow) -> Counts,
        expected: f64,
    ) -> bool {
        let threshold = self.threshold(tier);
        let (long, short) = tier.windows();
        [long, short].into_iter().all(|span| {
            let counts = count(span);
            let of = measure(&counts, expected * span.length().as_secs_f64());
            counts.failure > 0 && f64::from(counts.failure) >= threshold * of
        })
    }

    /// The share of the period's budget that is left; negative when more was spent than there was. `expected` is how
    /// many results there should be in a second.
    pub fn remaining(&self, period: &Counts, expected: f64) -> f64 {
        let of = measure(period, expected * self.period().as_secs_f64());
        1.0 - self.spent(u64::from(period.failure), of)
    }

    /// The share of the budget that these failures spend, of a budget for this many results.
    pub fn spent(&self, failure: u64, of: f64) -> f64 {
        if of <= 0.0 {
            return 0.0;
        }
        failure as f64 / (of * self.budget())
    }

    /// How fast the budget is spent: 1 spends it exactly in the period. `None` without results.
    pub fn burn(&self, counts: &Counts) -> Option<f64> {
        counts.error_rate().map(|rate| rate.ratio() / self.budget())
    }

    /// How long what is left lasts at this burn; `None` when nothing is being spent.
    pub fn lasts(&self, remaining: f64, burn: f64) -> Option<Duration> {
        if burn <= 0.0 {
            return None;
        }
        let seconds = remaining.max(0.0) * self.period().as_secs_f64() / burn;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// The results of a span, or how many there should have been when that is more.
fn measure(counts: &Counts, expected: f64) -> f64 {
    (f64::from(counts.success) + f64::from(counts.failure)).max(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objective(target: f64) -> Objective {
        Objective {
            target,
            days: 30,
            tiers: BurnTier::ALL.to_vec(),
        }
    }

    fn close(left: f64, right: f64) {
        assert!(
            (left - right).abs() <= 1e-9 * right.abs().max(1.0),
            "{left} is not {right}"
        );
    }

    /// The factors of Sloth's windows for 30 days, and of the workbook.
    #[test]
    fn factors_are_the_usual_ones() {
        for (tier, month, four_weeks) in [
            (BurnTier::PageQuick, 14.4, 13.44),
            (BurnTier::PageSlow, 6.0, 5.6),
            (BurnTier::TicketQuick, 3.0, 2.8),
            (BurnTier::TicketSlow, 1.0, 28.0 / 30.0),
        ] {
            close(objective(0.999).factor(tier), month);
            let shorter = Objective {
                days: 28,
                ..objective(0.999)
            };
            close(shorter.factor(tier), four_weeks);
        }
    }

    /// The share of the budget times the period, divided by the window, as long as that is much of the budget.
    #[test]
    fn factors_of_short_periods_spend_their_budget() {
        for (days, factors) in [
            (14, [6.72, 2.8, 1.4, LEAST]),
            (7, [3.36, 1.4, LEAST, LEAST]),
            (1, [LEAST; 4]),
        ] {
            let objective = Objective {
                days,
                ..objective(0.99)
            };
            for (tier, factor) in BurnTier::ALL.into_iter().zip(factors) {
                close(objective.factor(tier), factor);
                // What does not fire leaves some of the budget when the period ends.
                let whole = objective.lasts(1.0, factor).unwrap_or_default();
                assert!(whole < objective.period().mul_f64(1.2), "{days} {tier:?}");
            }
        }
        let day = Objective {
            days: 1,
            ..objective(0.99)
        };
        let counts = |failure| Counts {
            success: 100_000 - failure,
            failure,
            unknown: 0,
        };
        // 0.6 % of errors spend six tenths of the budget of 1 %.
        assert!(!day.fires(BurnTier::PageQuick, |_| counts(600), 1.0));
        assert!(day.fires(BurnTier::PageQuick, |_| counts(1000), 1.0));
    }

    /// How quickly a page comes, by the arithmetic: an hour times the threshold, divided by the error ratio.
    #[test]
    fn the_time_to_fire_is_the_windows_share() {
        let after = |target: f64, ratio: f64| {
            let span = objective(target).fires_after(BurnTier::PageQuick, ratio);
            span.map(|span| span.as_secs_f64().round())
        };
        assert_eq!(
            after(0.90, 1.0),
            None,
            "a burn of 10 is the most there can be"
        );
        assert_eq!(after(0.95, 1.0), Some(2592.0));
        assert_eq!(after(0.99, 1.0), Some(518.0));
        assert_eq!(after(0.999, 1.0), Some(52.0));
        assert_eq!(after(0.999, 0.1), Some(518.0));
        assert_eq!(after(0.999, 0.02), Some(2592.0));
        assert_eq!(after(0.999, 0.01), None);
    }

    #[test]
    fn a_tier_fires_while_both_windows_burn() {
        let objective = objective(0.999);
        let counts = |success, failure| Counts {
            success,
            failure,
            unknown: 0,
        };
        let fires = |long: Counts, short: Counts| {
            let count = |span| {
                if span == LongWindow::Hour {
                    long
                } else {
                    short
                }
            };
            objective.fires(BurnTier::PageQuick, count, 1.0)
        };
        assert!(fires(counts(3540, 60), counts(240, 60)));
        assert!(!fires(counts(3600, 0), counts(300, 0)));
        // It is over: the short window says so.
        assert!(!fires(counts(3540, 60), counts(300, 0)));
        // It has only begun.
        assert!(!fires(counts(3560, 40), counts(260, 40)));
        // Just after a start: one of five failed, of 3600 that there should be.
        assert!(!fires(counts(4, 1), counts(4, 1)));
        // And a total outage from the start is told after the same 52 s as any other.
        assert!(!fires(counts(0, 51), counts(0, 51)));
        assert!(fires(counts(0, 52), counts(0, 52)));
    }

    #[test]
    fn the_budget_is_that_of_the_whole_period() {
        let objective = objective(0.99);
        let day = 86_400;
        // One bad day-hundredth of 30 days is a thirtieth of the budget.
        let counts = Counts {
            success: day,
            failure: 864,
            unknown: 5,
        };
        close(objective.remaining(&counts, 1.0), 1.0 - 864.0 / 25_920.0);
        close(
            objective.remaining(
                &Counts {
                    success: 0,
                    failure: 51_840,
                    unknown: 0,
                },
                1.0,
            ),
            -1.0,
        );
        close(
            objective
                .burn(&Counts {
                    success: 90,
                    failure: 10,
                    unknown: 90,
                })
                .unwrap_or(0.0),
            10.0,
        );
        assert_eq!(objective.burn(&Counts::default()), None);
        let lasts = objective.lasts(0.5, 10.0).unwrap_or_default();
        close(lasts.as_secs_f64(), 1.5 * 86_400.0);
        assert_eq!(objective.lasts(0.5, 0.0), None);
        assert_eq!(objective.lasts(-0.5, 1.0), Some(Duration::ZERO));
    }
}
