//! `objective`: the promise of a release, or of one probe.

use super::settings::ObjectivesConfig;
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes};
use crate::core::slo::{BurnTier, Objective};

const TARGET: (f64, f64) = (50.0, 99.999);
const MOST_DAYS: u32 = 30;

/// Reads the table, if there is one.
pub(super) fn objectives(
    table: &mut ConfigTable,
    has_threshold: bool,
    notes: &mut ReaderNotes,
) -> ObjectivesConfig {
    let Some(item) = table.take("objective") else {
        return ObjectivesConfig::default();
    };
    let mut table = ConfigTable::of(item, notes);
    let days = table
        .text("window", notes)
        .and_then(|(text, item)| days(&text, &item, notes))
        .unwrap_or(MOST_DAYS);
    let path = table.path.clone();
    let written = table.list("tiers", notes);
    let all = written.is_none();
    let tiers: Vec<BurnTier> = match written {
        None => BurnTier::ALL.to_vec(),
        Some(items) => items.iter().filter_map(|item| tier(item, notes)).collect(),
    };
    let mut of = |key: &'static str, notes: &mut ReaderNotes| {
        let (text, item) = table.text(key, notes)?;
        let target = percent(&text, &item, notes)?;
        let objective = Objective {
            target,
            days,
            tiers: tiers.clone(),
        };
        never(&objective, all, &item, notes);
        Some((objective, item))
    };
    let availability = of("availability", notes);
    let latency = of("latency", notes);
    if let Some((_, item)) = &latency
        && !has_threshold
    {
        notes.diagnostic(
            item,
            "promises a latency where no probe says which",
            "add latency_objective = \"300ms\" to the probes that it is for",
        );
    }
    if availability.is_none() && latency.is_none() && notes.diagnostics.is_empty() {
        let location = table.location.clone();
        let help = "add availability = \"99.9%\", or latency = \"99%\"".to_owned();
        notes.complain(&path, &location, "promises nothing", Some(help));
    }
    notes.defaults(&path, &[("window", &"\"30d\"")]);
    table.end(notes);
    ObjectivesConfig {
        availability: availability.map(|(objective, _)| objective),
        latency: latency.map(|(objective, _)| objective),
    }
}

/// Reject tiers that can never fire at this objective.
fn never(objective: &Objective, all: bool, item: &ConfigValue, notes: &mut ReaderNotes) {
    for tier in &objective.tiers {
        let threshold = objective.threshold(*tier);
        if threshold < 1.0 {
            continue;
        }
        let message = format!(
            "the tier {} can never fire: {:.4} times a budget of {:.4} % is an error ratio of {:.1} %",
            tier.as_str(),
            objective.factor(*tier),
            objective.budget() * 100.0,
            threshold * 100.0
        );
        let rest: Vec<_> = objective
            .tiers
            .iter()
            .filter(|tier| objective.threshold(**tier) < 1.0)
            .map(|tier| format!("{:?}", tier.as_str()))
            .collect();
        let how = if all { "add" } else { "write" };
        notes.diagnostic(
            item,
            message,
            format!("{how} tiers = [{}], or promise more", rest.join(", ")),
        );
    }
}

fn tier(item: &ConfigValue, notes: &mut ReaderNotes) -> Option<BurnTier> {
    let found = item
        .text()
        .and_then(|text| BurnTier::ALL.into_iter().find(|tier| tier.as_str() == text));
    if let Some(tier) = found {
        notes.holds(
            &item.path,
            format!("{:?}", tier.as_str()),
            &item.node.location,
        );
    } else {
        let all: Vec<_> = BurnTier::ALL
            .iter()
            .map(|tier| format!("{:?}", tier.as_str()))
            .collect();
        notes.diagnostic(item, "is no tier", format!("write {}", all.join(", ")));
    }
    found
}

fn percent(text: &str, item: &ConfigValue, notes: &mut ReaderNotes) -> Option<f64> {
    let number = text
        .trim()
        .strip_suffix('%')
        .and_then(|number| number.trim().parse::<f64>().ok());
    match number {
        Some(number) if (TARGET.0..=TARGET.1).contains(&number) => Some(number / 100.0),
        Some(_) | None => {
            notes.diagnostic(
                item,
                format!("{text:?} is no share from {} % to {} %", TARGET.0, TARGET.1),
                "write it as \"99.9%\"",
            );
            None
        }
    }
}

fn days(text: &str, item: &ConfigValue, notes: &mut ReaderNotes) -> Option<u32> {
    let days = text
        .trim()
        .strip_suffix('d')
        .and_then(|number| number.parse::<u32>().ok());
    let days = days.filter(|days| (1..=MOST_DAYS).contains(days));
    if days.is_none() {
        notes.diagnostic(
            item,
            format!("{text:?} is no period of whole days"),
            format!("write \"1d\" to \"{MOST_DAYS}d\""),
        );
    }
    days
}
