//! Prints latencies from before the revision and since, of old pods and of new ones.

use std::time::Duration;

use crate::core::analysis::{BaselineHistogram, PodSide, bucket, edge, quantile};
use crate::core::recording::Recording;

/// Columns of a distribution.
const COLUMNS: usize = 40;

/// From few answers to many.
const SHADES: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '#', '@'];

/// One distribution: of which endpoint, and which of its answers.
struct LatencyDistribution<'a> {
    endpoint: &'a str,
    of: &'static str,
    histogram: BaselineHistogram,
}

/// The chart, a line each; nothing where no latency was measured before.
pub(super) fn lines(recording: &Recording) -> Vec<String> {
    let rows = rows(recording);
    let buckets = || rows.iter().flat_map(|row| &row.histogram).map(|(b, _)| *b);
    let (Some(first), Some(last)) = (buckets().min(), buckets().max()) else {
        return Vec::new();
    };
    let wide = rows.iter().map(|row| row.endpoint.len()).max().unwrap_or(0);
    let mut lines = vec![
        "Latency of good answers (on one scale; darker is more)".to_owned(),
        format!(
            "  {:wide$}  {:8}  {:>7}  {:>7}  {:COLUMNS$}",
            "",
            "",
            "p50",
            "p95",
            format!("|{} to {}", shown(edge(first)), shown(edge(last)))
        ),
    ];
    let mut above = "";
    for row in &rows {
        let name = if row.endpoint == above {
            ""
        } else {
            row.endpoint
        };
        above = row.endpoint;
        let at = |q| quantile(&row.histogram, q).map_or_else(|| "-".to_owned(), shown);
        lines.push(format!(
            "  {name:wide$}  {:8}  {:>7}  {:>7}  |{}|",
            row.of,
            at(0.5),
            at(0.95),
            distribution(&row.histogram, first, last)
        ));
    }
    lines
}

/// The endpoints of which it is known how long their answers took before.
fn rows(recording: &Recording) -> Vec<LatencyDistribution<'_>> {
    let start = &recording.head.start;
    let mut rows = Vec::new();
    for (at, endpoint) in start.endpoints.iter().enumerate() {
        let before = start.latency.get(at).cloned().unwrap_or_default();
        if before.is_empty() {
            continue;
        }
        let since = recording.ticks.iter().filter_map(|tick| {
            let is_good = tick.outcomes.chars().nth(at) == Some('.');
            tick.us.get(at).copied().flatten().filter(|_| is_good)
        });
        for (of, histogram) in [
            ("before", before),
            ("since", histogram(since)),
            ("old pods", histogram(of_pods(recording, PodSide::Old, at))),
            ("new pods", histogram(of_pods(recording, PodSide::New, at))),
        ] {
            if !histogram.is_empty() {
                rows.push(LatencyDistribution {
                    endpoint,
                    of,
                    histogram,
                });
            }
        }
    }
    rows
}

/// What pods of one side took for an endpoint.
fn of_pods(recording: &Recording, side: PodSide, at: usize) -> impl Iterator<Item = u32> + '_ {
    let is_side = move |number: u32| {
        let mut pods = recording.pods.iter();
        pods.any(|pod| pod.pod == number && pod.side == side)
    };
    let answers = recording.ticks.iter().flat_map(|tick| &tick.direct_us);
    let own = answers.filter(move |(pod, _)| is_side(*pod));
    own.filter_map(move |(_, us)| us.get(at).copied().flatten())
}

fn histogram(latencies: impl Iterator<Item = u32>) -> BaselineHistogram {
    let mut counts = std::collections::BTreeMap::new();
    for us in latencies {
        *counts.entry(bucket(us)).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

/// A character for each part of the scale. A part with any answer is never blank.
fn distribution(histogram: &BaselineHistogram, least: u16, most: u16) -> String {
    let span = usize::from(most - least) + 1;
    let mut columns = [0u64; COLUMNS];
    for (bucket, count) in histogram {
        let at = usize::from(bucket.saturating_sub(least)) * COLUMNS / span;
        columns[at.min(COLUMNS - 1)] += count;
    }
    let largest = columns.iter().copied().max().unwrap_or(0).max(1);
    let darkest = SHADES.len() as u64 - 1;
    columns
        .iter()
        .map(|count| {
            let shade = usize::try_from((count * darkest).div_ceil(largest)).unwrap_or(0);
            SHADES[shade.min(SHADES.len() - 1)]
        })
        .collect()
}

/// As `1.2 ms`.
fn shown(us: u32) -> String {
    let took = Duration::from_micros(u64::from(us));
    let ms = took.as_secs_f64() * 1000.0;
    match us {
        0..10_000 => format!("{ms:.1} ms"),
        10_000..1_000_000 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", took.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_darkest_where_most_answers_are() {
        let (least, most) = (bucket(1000), bucket(100_000));
        let few_at_the_right = histogram(
            [1000; 80]
                .into_iter()
                .chain([10_000; 10])
                .chain([100_000; 1]),
        );
        let drawn = distribution(&few_at_the_right, least, most);
        assert_eq!(drawn.chars().count(), COLUMNS);
        assert!(drawn.starts_with('@'), "{drawn}");
        assert!(drawn.ends_with('.'), "{drawn}");
        assert_eq!(drawn.matches(' ').count(), COLUMNS - 3, "{drawn}");
    }

    #[test]
    fn one_latency_alone_fills_one_column() {
        let one = histogram([500; 3].into_iter());
        let drawn = distribution(&one, bucket(500), bucket(500));
        assert_eq!(drawn.trim_end(), "@");
    }

    #[test]
    fn latencies_are_shown_in_a_unit_that_fits() {
        assert_eq!(shown(1240), "1.2 ms");
        assert_eq!(shown(21_400), "21 ms");
        assert_eq!(shown(2_160_000), "2.2 s");
    }
}
