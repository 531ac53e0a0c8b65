//! Checks an [`AnalysisStart`].

use crate::core::analysis::latency::BUCKETS;
use crate::core::analysis::rule::InvalidRule;
use crate::core::analysis::workloads::AnalyzedWorkloads;
use crate::core::analysis::{AnalysisStart, MAX_DEPENDENCIES, MAX_ENDPOINTS};

pub(super) fn check(start: &AnalysisStart) -> Result<(), InvalidRule> {
    let count = start.endpoints.len();
    if !(1..=MAX_ENDPOINTS).contains(&count) {
        return Err(InvalidRule::new(
            "endpoints",
            format!("has {count} names, but must have 1 to {MAX_ENDPOINTS}"),
        ));
    }
    for (field, length) in [
        ("baseline", start.baseline.len()),
        ("failing_at_start", start.failing_at_start.len()),
    ] {
        if length != count {
            return Err(InvalidRule::new(
                field,
                format!("has {length} entries for {count} endpoints"),
            ));
        }
    }
    for (at, (failed, total)) in start.baseline.iter().enumerate() {
        if failed > total {
            return Err(InvalidRule::new(
                format!("baseline[{at}]"),
                format!("has {failed} failures of {total}"),
            ));
        }
    }
    for (field, length) in [
        ("learned.endpoints", start.learned.endpoints.len()),
        ("steady_s", start.steady_s.len()),
        ("needs", start.needs.len()),
        ("latency", start.latency.len()),
    ] {
        if length != count && length != 0 {
            return Err(InvalidRule::new(
                field,
                format!("has {length} entries for {count} endpoints"),
            ));
        }
    }
    if let Some(interval_overrides) = start.steady_s.iter().find(|interval_overrides| {
        !(**interval_overrides >= 0.1 && **interval_overrides <= 86_400.0)
    }) {
        return Err(InvalidRule::new(
            "steady_s",
            format!("is {interval_overrides}, but must be from 0.1 to 86400"),
        ));
    }
    let dependencies = start.dependencies.len();
    if dependencies > MAX_DEPENDENCIES {
        return Err(InvalidRule::new(
            "dependencies",
            format!("has {dependencies} names, but may have {MAX_DEPENDENCIES}"),
        ));
    }
    if start
        .needs
        .iter()
        .flatten()
        .any(|need| usize::from(*need) >= dependencies)
    {
        return Err(InvalidRule::new("needs", "names no dependency"));
    }
    let buckets = start.latency.iter().flatten();
    if buckets
        .clone()
        .any(|(bucket, _)| usize::from(*bucket) >= BUCKETS)
    {
        return Err(InvalidRule::new(
            "latency",
            format!("has a bucket above {}", BUCKETS - 1),
        ));
    }
    let learned = &start.learned;
    let learned = learned
        .pods
        .iter()
        .chain(&learned.pool)
        .chain(learned.endpoints.iter().flatten());
    if let Some((k, n)) = learned.clone().find(|(k, n)| k > n) {
        return Err(InvalidRule::new(
            "learned",
            format!("has {k} failures of {n}"),
        ));
    }
    if let Some(workloads) = &start.workloads {
        AnalyzedWorkloads::check(workloads, count)?;
    }
    if let Some(at) = start.complete_at
        && !(at.is_finite() && at >= 0.0)
    {
        return Err(InvalidRule::new(
            "settled_at",
            format!("is {at}, but must be 0 or more"),
        ));
    }
    if let Some(requests) = &start.requests {
        if !(requests.interval_s >= 1.0 && requests.interval_s <= 600.0) {
            return Err(InvalidRule::new(
                "requests.interval_s",
                format!("is {}, but must be from 1 to 600", requests.interval_s),
            ));
        }
        if requests.failed > requests.total {
            return Err(InvalidRule::new(
                "requests.baseline",
                format!("has {} failures of {}", requests.failed, requests.total),
            ));
        }
    }
    Ok(())
}
