//! Latencies of successes in an analysis: before the revision appeared and since, of old pods and of new ones.
//!
//! The buckets are those of [`bucket`], four in one: eight for each power of two, so a latency is known to an eighth.
//! An endpoint has at most 216 counts in each of its four distributions, and much fewer in practice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{RecordedPod, RecordedTick};
use crate::core::analysis::{BUCKETS, BaselineHistogram, MAX_ENDPOINTS, PodSide, bucket, edge};
use crate::core::units::Revision;

/// Buckets of [`bucket`] that are one here.
const IN_ONE: u16 = 4;

/// Buckets of a distribution.
const COARSE: u8 = 216;
const _: () = assert!(COARSE as usize * IN_ONE as usize == BUCKETS);

/// The latencies of one analysis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnalysisLatencies {
    /// The revision of the analysis.
    pub revision: Revision,
    /// In the order of the analysis.
    pub endpoints: Vec<EndpointLatencies>,
}

/// The latencies of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointLatencies {
    /// The probe's name.
    pub name: Box<str>,
    /// One for each of [`LatencyGroup::ALL`].
    distributions: [Distribution; 4],
}

/// Whose answers are in a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatencyGroup {
    /// Through the Service, before the revision appeared.
    Before,
    /// Through the Service, since.
    Since,
    /// Of pods of the revision before, asked directly.
    OldPods,
    /// Of pods of the revision, asked directly.
    NewPods,
}

impl LatencyGroup {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Before, Self::Since, Self::OldPods, Self::NewPods];

    /// As `old_pods`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Since => "since",
            Self::OldPods => "old_pods",
            Self::NewPods => "new_pods",
        }
    }
}

/// Answers by how long they took. Stored as pairs of numbers: the distance from the bucket before, and the answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<u32>", into = "Vec<u32>")]
pub struct Distribution {
    /// Never 0.
    counts: BTreeMap<u8, u32>,
}

impl From<Vec<u32>> for Distribution {
    /// Buckets that cannot be are left out.
    fn from(pairs: Vec<u32>) -> Self {
        let mut at = 0_u32;
        let (pairs, _) = pairs.as_chunks();
        let known = pairs.iter().filter_map(|[distance, count]| {
            at = at.saturating_add(*distance);
            let is_possible = at < u32::from(COARSE) && *count > 0;
            is_possible.then_some((u8::try_from(at).ok()?, *count))
        });
        Self {
            counts: known.collect(),
        }
    }
}

impl From<Distribution> for Vec<u32> {
    fn from(distribution: Distribution) -> Self {
        let mut before = 0;
        let pairs = distribution.counts.into_iter().flat_map(|(at, count)| {
            let distance = at - before;
            before = at;
            [u32::from(distance), count]
        });
        pairs.collect()
    }
}

impl Distribution {
    fn of(histogram: &BaselineHistogram) -> Self {
        let mut distribution = Self::default();
        for (at, count) in histogram {
            let count = u32::try_from(*count).unwrap_or(u32::MAX);
            distribution.add(*at, count);
        }
        distribution
    }

    fn add(&mut self, bucket: u16, count: u32) {
        if count > 0
            && let Ok(at) = u8::try_from(bucket / IN_ONE)
        {
            let known = self.counts.entry(at).or_default();
            *known = known.saturating_add(count);
        }
    }

    /// How many answers there are.
    pub fn answers(&self) -> u64 {
        self.counts.values().map(|count| u64::from(*count)).sum()
    }

    /// The place of the first and the last bucket with answers; `None` without any.
    pub fn range(&self) -> Option<(u8, u8)> {
        let (first, _) = self.counts.first_key_value()?;
        let (last, _) = self.counts.last_key_value()?;
        Some((*first, *last))
    }

    /// Answers from one place up to another, both included.
    pub fn between(&self, first: u8, last: u8) -> u64 {
        let some = self.counts.range(first..=last.max(first));
        some.map(|(_, count)| u64::from(*count)).sum()
    }

    /// A quantile in microseconds, as if the answers of a bucket were spread evenly over it; `None` without any.
    pub fn quantile_us(&self, quantile: f64) -> Option<f64> {
        let rank = quantile * self.answers() as f64;
        let mut below = 0.0;
        for (at, count) in &self.counts {
            let here = f64::from(*count);
            if below + here >= rank {
                let (low, high) = (lower_us(*at), lower_us(*at + 1));
                return Some(low + (high - low) * (rank - below) / here);
            }
            below += here;
        }
        None
    }
}

/// The shortest latency of a bucket, in microseconds; of the one behind the last it is where that ends.
pub fn lower_us(at: u8) -> f64 {
    match (u16::from(at) * IN_ONE).checked_sub(1) {
        Some(before) => f64::from(edge(before)) + 1.0,
        None => 0.0,
    }
}

impl EndpointLatencies {
    /// What took how long.
    pub fn groups(&self) -> impl Iterator<Item = (LatencyGroup, &Distribution)> {
        std::iter::zip(LatencyGroup::ALL, &self.distributions)
    }

    fn add(&mut self, group: LatencyGroup, latency_us: u32) {
        self.distributions[group as usize].add(bucket(latency_us), 1);
    }
}

impl AnalysisLatencies {
    /// Before the first tick: what each endpoint took before.
    pub fn new(revision: Revision, endpoints: &[Box<str>], before: &[BaselineHistogram]) -> Self {
        let endpoints = endpoints.iter().enumerate().map(|(at, name)| {
            let before = before.get(at).map(Distribution::of).unwrap_or_default();
            EndpointLatencies {
                name: name.clone(),
                distributions: [
                    before,
                    Distribution::default(),
                    Distribution::default(),
                    Distribution::default(),
                ],
            }
        });
        Self {
            revision,
            endpoints: endpoints.collect(),
        }
    }

    /// Counts the good answers of a tick.
    pub fn take(&mut self, pods: &[RecordedPod], tick: &RecordedTick) {
        let rows = self.endpoints.iter_mut().zip(tick.outcomes.chars());
        for ((endpoint, mark), took) in rows.zip(&tick.us) {
            if let Some(us) = took.filter(|_| mark == '.') {
                endpoint.add(LatencyGroup::Since, us);
            }
        }
        for (number, row) in &tick.direct_us {
            let Some(pod) = pods.iter().find(|pod| pod.pod == *number) else {
                continue;
            };
            let group = match pod.side {
                PodSide::Old => LatencyGroup::OldPods,
                PodSide::New => LatencyGroup::NewPods,
            };
            for (endpoint, took) in self.endpoints.iter_mut().zip(row) {
                if let Some(us) = took {
                    endpoint.add(group, *us);
                }
            }
        }
    }

    /// Brings what was read from outside within its bounds.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.endpoints.truncate(MAX_ENDPOINTS);
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end where it stands")]
mod tests {
    use super::*;

    fn pod(number: u32, side: PodSide) -> RecordedPod {
        RecordedPod {
            pod: number,
            name: format!("web-{number}").into(),
            side,
            ready_tick: 0,
        }
    }

    fn distribution(latencies: impl IntoIterator<Item = u32>) -> Distribution {
        let mut distribution = Distribution::default();
        for us in latencies {
            distribution.add(bucket(us), 1);
        }
        distribution
    }

    #[test]
    fn each_good_answer_is_counted_where_it_belongs() {
        let names: [Box<str>; 2] = ["api".into(), "db".into()];
        let before = [vec![(bucket(5000), 300)], Vec::new()];
        let mut latencies = AnalysisLatencies::new(Revision(3), &names, &before);
        let pods = [pod(0, PodSide::Old), pod(1, PodSide::New)];
        let tick = RecordedTick {
            outcomes: ".x".into(),
            us: vec![Some(9000), Some(70_000)],
            direct_us: vec![
                (0, vec![Some(4000), Some(4000)]),
                (1, vec![Some(8000), None]),
                (7, vec![Some(1), Some(1)]),
            ],
            ..RecordedTick::default()
        };
        latencies.take(&pods, &tick);
        latencies.take(&pods, &tick);
        let answers = |at: usize| -> Vec<u64> {
            let groups = latencies.endpoints[at].groups();
            groups
                .map(|(_, distribution)| distribution.answers())
                .collect()
        };
        assert_eq!(answers(0), [300, 2, 2, 2]);
        assert_eq!(answers(1), [0, 0, 2, 0], "a failure is no good answer");
    }

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        let even = distribution((1..=1000).map(|at| at * 100));
        for (quantile, exact) in [
            (0.5, 50_000.0),
            (0.9, 90_000.0),
            (0.95, 95_000.0),
            (0.99, 99_000.0),
        ] {
            let us = even.quantile_us(quantile).unwrap();
            assert!((us / exact - 1.0).abs() < 0.125, "{quantile}: {us}");
        }
        assert_eq!(Distribution::default().quantile_us(0.5), None);
        let one = distribution([20_000]).quantile_us(0.99).unwrap();
        assert!((one / 20_000.0 - 1.0).abs() < 0.125, "{one}");
    }

    #[test]
    fn the_extremes_have_a_bucket() {
        let extremes = distribution([0, 1, u32::MAX]);
        assert_eq!(extremes.range(), Some((0, COARSE - 1)));
        assert_eq!((extremes.answers(), extremes.between(0, 0)), (3, 2));
        assert!(lower_us(0) < lower_us(1));
    }

    #[test]
    fn what_is_stored_is_short_and_comes_back() {
        let some = distribution([5000, 5000, 5001, 90_000]);
        let text = serde_json::to_string(&some).unwrap();
        assert_eq!(text, "[65,3,33,1]");
        assert_eq!(serde_json::from_str::<Distribution>(&text).unwrap(), some);
        assert_eq!(
            serde_json::to_string(&Distribution::default()).unwrap(),
            "[]"
        );
    }

    #[test]
    fn an_analysis_of_four_probes_and_ten_pods_takes_little_room() {
        let names: Vec<Box<str>> = (0..4).map(|at| format!("probe-{at}").into()).collect();
        // From 5 ms to 80 ms, most of them short.
        let spread = |at: u32| {
            let share = u64::from(at * 7919 % 1000);
            u32::try_from(5000 + 75_000 * share.pow(3) / 1_000_000_000).unwrap()
        };
        let before: BaselineHistogram = (0..1000).map(|at| (bucket(spread(at)), 4)).collect();
        let mut latencies = AnalysisLatencies::new(Revision(3), &names, &vec![before; 4]);
        let pods: Vec<RecordedPod> = (0..10)
            .map(|at| pod(at, if at < 5 { PodSide::Old } else { PodSide::New }))
            .collect();
        for second in 0..300 {
            let row = |from: u32| (0..4).map(|at| Some(spread(from + at))).collect::<Vec<_>>();
            let tick = RecordedTick {
                outcomes: "....".into(),
                us: row(second * 4),
                direct_us: (0..10).map(|pod| (pod, row(second * 7 + pod))).collect(),
                ..RecordedTick::default()
            };
            latencies.take(&pods, &tick);
        }
        let bytes = serde_json::to_string(&latencies).unwrap().len();
        assert!(bytes <= 4096, "{bytes}");
        let read: AnalysisLatencies =
            serde_json::from_str(&serde_json::to_string(&latencies).unwrap()).unwrap();
        assert_eq!(read.bounded(), latencies);
    }

    #[test]
    fn nonsense_from_outside_is_left_out() {
        let read = |text: &str| serde_json::from_str::<Distribution>(text).unwrap();
        assert_eq!(read("[1,2,400,1,4294967295,1,4294967295,1]").answers(), 2);
        assert_eq!(read("[1,2,3]").answers(), 2);
        assert_eq!(read("[5,0]"), Distribution::default());
    }
}
