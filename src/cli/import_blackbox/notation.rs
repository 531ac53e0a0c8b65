//! Durations and sizes in the notation of Go's libraries.

use std::time::Duration;

/// About thirty years.
const FOREVER: u64 = 1_000_000_000;

/// A duration: "1m30s", "1.5s", "500ms". `None` if it is invalid, negative, or too large.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let (number, after) = decimal(rest)?;
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(end)?;
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * seconds;
        rest = next;
    }
    Duration::try_from_secs_f64(total)
        .ok()
        .filter(|span| !text.is_empty() && span.as_secs() < FOREVER)
}

/// Bytes: "10MB", "1.5MiB", "1GB512MB"; MB is 1024 times 1024 here, as it is there.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number has no sign and is far below 2^53"
)]
pub(super) fn size(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let (number, after) = decimal(rest)?;
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(end)?;
        let power = match unit {
            "B" => 0,
            "KB" | "KiB" => 1,
            "MB" | "MiB" => 2,
            "GB" | "GiB" => 3,
            "TB" | "TiB" => 4,
            _ => return None,
        };
        total += number * 1024_f64.powi(power);
        rest = next;
    }
    (!text.is_empty() && total < 1e15).then_some(total as u64)
}

/// The number at the start of a text, and what follows it. No sign, no exponent.
fn decimal(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, rest) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("5s", Some(5000)),
            ("1m30s", Some(90_000)),
            ("1.5s", Some(1500)),
            ("1.1s", Some(1100)),
            ("500ms", Some(500)),
            ("2h", Some(7_200_000)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-5s", None),
            ("1d", None),
            ("5 s", None),
            ("1.2.3s", None),
            ("99999999999999999999h", None),
        ] {
            let expected = millis.map(Duration::from_millis);
            assert_eq!(duration(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512B", Some(512)),
            ("10MB", Some(10 * 1024 * 1024)),
            ("1.5MiB", Some(1024 * 1024 * 3 / 2)),
            ("1MB512KB", Some(1024 * 1024 + 512 * 1024)),
            ("", None),
            ("10", None),
            ("MB", None),
            ("-1MB", None),
            ("9999999TB", None),
        ] {
            assert_eq!(size(text), bytes, "{text:?}");
        }
    }
}
