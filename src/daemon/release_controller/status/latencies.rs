//! View of an analysis' latencies: at most 24 columns for each distribution.

use crate::core::recording::{Distribution, EndpointLatencies, LatencyGroup, lower_us};
use crate::core::window::Quantile;
use crate::daemon::release_controller::state::State;
use crate::http::status::{DistributionView, LatenciesView, ProbeLatenciesView};

/// Columns of a distribution: what a small chart can show.
const MAX_COLUMNS: usize = 24;

/// `None` before the first analysis, and if there is nothing to compare.
pub(super) fn view(state: &State) -> Option<LatenciesView> {
    let latencies = state.latencies.as_ref()?;
    let probes: Vec<_> = latencies.endpoints.iter().filter_map(probe).collect();
    (!probes.is_empty()).then(|| LatenciesView {
        revision: latencies.revision.0,
        is_over: state.running.is_none(),
        probes,
    })
}

/// `None` if fewer than two of its distributions have answers.
fn probe(endpoint: &EndpointLatencies) -> Option<ProbeLatenciesView> {
    let groups: Vec<_> = endpoint
        .groups()
        .filter(|(_, distribution)| distribution.answers() > 0)
        .collect();
    if groups.len() < 2 {
        return None;
    }
    let ranges = || groups.iter().filter_map(|(_, one)| one.range());
    let first = ranges().map(|(first, _)| first).min()?;
    let last = ranges().map(|(_, last)| last).max()?;
    let width = (usize::from(last - first) + 1).div_ceil(MAX_COLUMNS);
    let columns: Vec<(u8, u8)> = (first..=last)
        .step_by(width)
        .map(|from| {
            let behind = usize::from(from) + width - 1;
            (from, u8::try_from(behind).map_or(last, |to| to.min(last)))
        })
        .collect();
    let starts = columns.iter().map(|(first, _)| *first);
    let edges = starts.chain([last + 1]);
    Some(ProbeLatenciesView {
        probe: endpoint.name.to_string(),
        edges_s: edges.map(|at| seconds(lower_us(at))).collect(),
        distributions: groups
            .iter()
            .map(|(group, distribution)| shown(*group, distribution, &columns))
            .collect(),
    })
}

fn shown(group: LatencyGroup, all: &Distribution, columns: &[(u8, u8)]) -> DistributionView {
    let answers = all.answers();
    let quantile = |quantile: Quantile| {
        let is_enough = answers >= quantile.needs() as u64;
        let us = all.quantile_us(quantile.per_mille() as f64 / 1000.0);
        us.filter(|_| is_enough).map(seconds)
    };
    DistributionView {
        of: group.as_str(),
        answers,
        p50_s: quantile(Quantile::P50),
        p90_s: quantile(Quantile::P90),
        p95_s: quantile(Quantile::P95),
        p99_s: quantile(Quantile::P99),
        counts: columns
            .iter()
            .map(|(first, last)| all.between(*first, *last))
            .collect(),
    }
}

/// Seconds, rounded to the microsecond.
fn seconds(us: f64) -> f64 {
    us.round() / 1e6
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end where it stands")]
mod tests {
    use super::*;
    use crate::core::analysis::bucket;
    use crate::core::recording::{AnalysisLatencies, RecordedTick};
    use crate::core::units::Revision;
    use crate::daemon::release_controller::state::tests::state;

    /// An analysis of one probe that took 5 ms before, and takes this long now.
    fn analysis(took_us: &[u32]) -> AnalysisLatencies {
        let before = [vec![(bucket(5000), 3000)]];
        let mut latencies = AnalysisLatencies::new(Revision(4), &["api".into()], &before);
        for us in took_us {
            let tick = RecordedTick {
                outcomes: ".".into(),
                us: vec![Some(*us)],
                ..RecordedTick::default()
            };
            latencies.take(&[], &tick);
        }
        latencies
    }

    #[test]
    fn distributions_share_a_scale_and_are_bounded() {
        let (mut state, _) = state();
        state.latencies = Some(analysis(&[0, 5000, 60_000_000]));
        let shown = view(&state).unwrap();
        assert_eq!((shown.revision, shown.is_over), (4, false));
        let probe = &shown.probes[0];
        assert_eq!(probe.probe, "api");
        let edges = &probe.edges_s;
        assert!(edges.len() <= MAX_COLUMNS + 1, "{edges:?}");
        assert!(edges.is_sorted() && edges[0] == 0.0, "{edges:?}");
        assert!(*edges.last().unwrap() >= 60.0, "{edges:?}");
        for one in &probe.distributions {
            assert_eq!(one.counts.len() + 1, edges.len());
            assert_eq!(one.counts.iter().sum::<u64>(), one.answers);
        }
        assert_eq!(probe.distributions[0].of, "before");
        assert_eq!(probe.distributions[1].of, "since");
        state.running = None;
        assert!(view(&state).unwrap().is_over);
    }

    #[test]
    fn a_quantile_needs_as_many_answers_as_elsewhere() {
        let (mut state, _) = state();
        state.latencies = Some(analysis(&[15_000; 10]));
        let since = view(&state).unwrap().probes[0].distributions[1].clone();
        let p50 = since.p50_s.unwrap();
        assert!((0.0135..0.0165).contains(&p50), "{p50}");
        assert!(since.p90_s.is_some() && since.p95_s.is_none() && since.p99_s.is_none());
    }

    #[test]
    fn without_anything_to_compare_nothing_is_shown() {
        let (mut state, _) = state();
        assert_eq!(view(&state), None);
        state.latencies = Some(analysis(&[]));
        assert_eq!(view(&state), None);
    }
}
