//! Prints the results of each endpoint over time, and which of them counted.

use std::collections::BTreeMap;

use super::WIDTH;
use crate::core::analysis::{Analysis, PodSide, UnknownCause};
use crate::core::recording::{RecordedTick, Recording};

/// Why the results of a tick were not judged, an entry for each endpoint.
pub(super) type UnknownCauses = Vec<Option<UnknownCause>>;

/// The letter of a result that was not judged.
const fn letter(cause: UnknownCause) -> char {
    match cause {
        UnknownCause::Unknown => '-',
        UnknownCause::Held => 'h',
        UnknownCause::ExpectedDowntime => 'e',
        UnknownCause::Limited => 'l',
        UnknownCause::Dependency => 'd',
        UnknownCause::Unresolved => 'r',
        UnknownCause::Control => 'c',
        UnknownCause::FailingAtStart => 'f',
    }
}

pub(super) fn show(recording: &Recording, analysis: &Analysis, causes: &[UnknownCauses]) {
    let ticks = recording.ticks.len().min(analysis.ticks() as usize);
    let each = ticks.div_ceil(WIDTH).max(1);
    let interval = recording.head.rule.interval_s;
    say!(
        "Results (a column is {:.0} s: . all good, x some bad, - nothing known)",
        each as f64 * interval
    );
    let names: Vec<&str> = analysis.endpoints().collect();
    let wide = names
        .iter()
        .map(|name| name.len())
        .max()
        .unwrap_or(0)
        .max(8);
    let mut shown = String::new();
    for (at, name) in names.iter().enumerate() {
        let letters: Vec<char> = recording.ticks[..ticks]
            .iter()
            .enumerate()
            .map(|(tick, recorded)| judged(recorded, causes.get(tick), at))
            .collect();
        let row = squeeze(&letters, each);
        say!("  {name:<wide$}  {row}");
        shown.push_str(&row);
    }
    for (side, label) in [(PodSide::New, "new pods"), (PodSide::Old, "old pods")] {
        let letters: Vec<char> = recording.ticks[..ticks]
            .iter()
            .map(|tick| pods_letter(recording, tick, side))
            .collect();
        if letters.iter().any(|letter| *letter != '-') {
            say!("  {label:<wide$}  {}", squeeze(&letters, each));
        }
    }
    for cause in UnknownCause::ALL {
        if cause != UnknownCause::Unknown && shown.contains(letter(cause)) {
            say!("  {}: {}", letter(cause), cause.words());
        }
    }
    if let Some(why) = &recording.head.no_direct {
        say!("  Pods were not asked directly: {why}.");
    }
    let failing = failing(recording, &names);
    if !failing.is_empty() {
        say!("  Failed: {}", failing.join(", "));
    }
    say!("");
}

/// What an endpoint answered in a tick, or why that was not judged.
fn judged(recorded: &RecordedTick, causes: Option<&UnknownCauses>, at: usize) -> char {
    let cause = causes.and_then(|causes| causes.get(at).copied().flatten());
    cause.map_or_else(|| recorded.outcomes.chars().nth(at).unwrap_or('-'), letter)
}

/// The worst of what pods of one side answered in a tick.
fn pods_letter(recording: &Recording, tick: &RecordedTick, side: PodSide) -> char {
    let is_side = |number: u32| {
        let mut pods = recording.pods.iter();
        pods.any(|pod| pod.pod == number && pod.side == side)
    };
    let rows: Vec<&str> = tick
        .direct
        .iter()
        .filter(|(pod, _)| is_side(*pod))
        .map(|(_, row)| &**row)
        .collect();
    if rows.iter().any(|row| row.contains('x')) {
        'x'
    } else if rows.iter().any(|row| row.contains('.')) {
        '.'
    } else {
        '-'
    }
}

/// A column for some ticks: a failure first, then what was not judged.
fn squeeze(letters: &[char], each: usize) -> String {
    letters
        .chunks(each)
        .map(|chunk| {
            if chunk.contains(&'x') {
                return 'x';
            }
            let mut excluded = chunk.iter().filter(|letter| letter.is_ascii_alphabetic());
            match excluded.next() {
                Some(letter) => *letter,
                None if chunk.contains(&'.') => '.',
                None => '-',
            }
        })
        .collect()
}

/// How often each endpoint failed, and by what.
pub(super) fn failing(recording: &Recording, names: &[&str]) -> Vec<String> {
    let mut reasons: BTreeMap<(u16, &str), u32> = BTreeMap::new();
    for tick in &recording.ticks {
        for (at, reason) in &tick.why {
            *reasons.entry((*at, reason)).or_default() += 1;
        }
    }
    reasons
        .into_iter()
        .filter_map(|((at, reason), count)| {
            let name = names.get(usize::from(at))?;
            Some(format!("{name} {count} x {reason}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squeezed(letters: &str, each: usize) -> String {
        squeeze(&letters.chars().collect::<Vec<_>>(), each)
    }

    #[test]
    fn a_column_shows_a_failure_first_and_then_what_was_not_judged() {
        assert_eq!(squeezed("...x..ee.-.---", 2), ".x.e..-");
        assert_eq!(squeezed("exe", 3), "x");
    }

    #[test]
    fn what_was_not_judged_has_the_letter_of_its_cause() {
        let recorded = RecordedTick {
            outcomes: ".xx".into(),
            ..RecordedTick::default()
        };
        let causes = vec![None, None, Some(UnknownCause::ExpectedDowntime)];
        let letters: String = (0..4)
            .map(|at| judged(&recorded, Some(&causes), at))
            .collect();
        assert_eq!(letters, ".xe-");
        let letters: std::collections::BTreeSet<char> = UnknownCause::ALL
            .iter()
            .map(|cause| letter(*cause))
            .collect();
        assert_eq!(letters.len(), UnknownCause::COUNT, "each has its own");
    }
}
