//! What is known at the start, checked.

use crate::verdict::rule::Unusable;
use crate::verdict::{MAX_ENDPOINTS, Start};

pub(super) fn check(start: &Start) -> Result<(), Unusable> {
    let count = start.endpoints.len();
    if !(1..=MAX_ENDPOINTS).contains(&count) {
        return Err(Unusable::new(
            "endpoints",
            format!("has {count} names, but must have 1 to {MAX_ENDPOINTS}"),
        ));
    }
    for (field, length) in [
        ("baseline", start.baseline.len()),
        ("failing_at_start", start.failing_at_start.len()),
    ] {
        if length != count {
            return Err(Unusable::new(
                field,
                format!("has {length} entries for {count} endpoints"),
            ));
        }
    }
    for (at, (failed, total)) in start.baseline.iter().enumerate() {
        if failed > total {
            return Err(Unusable::new(
                format!("baseline[{at}]"),
                format!("has {failed} failures of {total}"),
            ));
        }
    }
    if let Some(at) = start.settled_at
        && !(at.is_finite() && at >= 0.0)
    {
        return Err(Unusable::new(
            "settled_at",
            format!("is {at}, but must be 0 or more"),
        ));
    }
    if let Some(requests) = &start.requests {
        if !(requests.interval_s >= 1.0 && requests.interval_s <= 600.0) {
            return Err(Unusable::new(
                "requests.interval_s",
                format!("is {}, but must be from 1 to 600", requests.interval_s),
            ));
        }
        if requests.failed > requests.total {
            return Err(Unusable::new(
                "requests.baseline",
                format!("has {} failures of {}", requests.failed, requests.total),
            ));
        }
    }
    Ok(())
}
