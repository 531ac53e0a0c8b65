//! How a release is analyzed and rolled back: `mode` and `[release.rollback]`.

use std::str::FromStr as _;
use std::time::Duration;

use super::cluster_kind::{ClusterKind, InvalidKind};
use super::combinations::{self, GuardTimes, WrittenKeys};
use super::layers::NodeKind;
use super::settings::{BakeAction, GuardConfig, RollbackPermissions};
use super::tables::{check_name, written};
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes, unfolded};
use crate::core::analysis::Rule;
use crate::core::rollout::Mode;

const WATCH: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));
const WATCH_MAX: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(24 * 3600));
const READY_WITHIN: (Duration, Duration) =
    (Duration::from_secs(30), Duration::from_secs(24 * 3600));
const LATENCY: [(&str, bool); 2] = [("notify", false), ("rollback", true)];
const BAKES: [(&str, BakeAction); 3] = [
    ("notify", BakeAction::Notify),
    ("rollback", BakeAction::Rollback),
    ("off", BakeAction::Off),
];
/// The least leaves some time after the shortest watch; no bake is needed that outlasts a week.
const BAKE_FOR: (Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(7 * 24 * 3600));
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
const HOLD: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(600));
/// Percentage points.
const INCREASE: (f64, f64) = (0.5, 50.0);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
const DEFAULT_PER_DAY: i64 = 2;

const MODES: [(&str, Mode); 3] = [
    ("enforce", Mode::Enforce),
    ("observe", Mode::Observe),
    ("off", Mode::Off),
];

/// Reads `mode`, and the table `rollback` where there is one.
pub(super) fn controller(release: &mut ConfigTable, notes: &mut ReaderNotes) -> GuardConfig {
    let mode = release.word("mode", &MODES, notes).unwrap_or_default();
    let mut table = match release.take("rollback") {
        Some(item) => ConfigTable::of(item, notes),
        None => ConfigTable::empty(release.path_of("rollback")),
    };
    let written_keys = WrittenKeys::of(&table);
    let built_in = Rule::default();
    let seconds = Duration::from_secs_f64;
    let watch = table
        .duration("watch", WATCH, notes)
        .unwrap_or(seconds(built_in.analysis_s));
    let longest = table
        .duration("watch_max", WATCH_MAX, notes)
        .unwrap_or(seconds(built_in.analysis_cap_s).max(watch));
    let ready_within = table
        .duration("ready_within", READY_WITHIN, notes)
        .unwrap_or(seconds(built_in.ready_within_s));
    let latency = table
        .word("latency", &LATENCY, notes)
        .unwrap_or(built_in.latency_convicts);
    let bake = table.word("bake", &BAKES, notes).unwrap_or_default();
    let bake_for = table
        .duration("bake_for", BAKE_FOR, notes)
        .unwrap_or(seconds(built_in.bake_s));
    let interval = table
        .duration("interval", INTERVAL, notes)
        .unwrap_or(DEFAULT_INTERVAL);
    let hold = table
        .duration("hold", HOLD, notes)
        .unwrap_or(seconds(built_in.hold_s));
    let increase = table
        .text("error_rate_increase", notes)
        .and_then(|(text, item)| points(&text, &item, notes))
        .unwrap_or(built_in.margin * 100.0);
    let per_day = table
        .number("max_per_day", (0, 100), notes)
        .unwrap_or(DEFAULT_PER_DAY);
    let may = may(&mut table, notes);
    let path = table.path.clone();
    let times = GuardTimes {
        watch,
        max_duration: longest,
        ready_within,
        interval,
        hold,
        bake,
        bake_for,
    };
    // Where no revision is judged, there is nothing that could not work.
    if mode != Mode::Off {
        combinations::of_controller(&path, &table.location, &written_keys, &times, notes);
    }
    notes.defaults(
        &path,
        &[
            ("watch", &written(watch)),
            ("watch_max", &written(longest)),
            ("ready_within", &written(ready_within)),
            (
                "latency",
                &if latency {
                    "\"rollback\""
                } else {
                    "\"notify\""
                },
            ),
            ("bake", &format!("\"{}\"", bake.as_str())),
            ("bake_for", &written(bake_for)),
            ("interval", &written(interval)),
            ("error_rate_increase", &format!("\"{increase}%\"")),
            ("hold", &written(hold)),
            ("max_per_day", &per_day),
        ],
    );
    table.end(notes);
    let mode_key = [(
        "mode",
        &format!("\"{}\"", mode.as_str()) as &dyn std::fmt::Display,
    )];
    notes.defaults(&release.path.clone(), &mode_key);
    GuardConfig {
        mode,
        rule: Rule {
            interval_s: interval.as_secs_f64(),
            analysis_s: watch.as_secs_f64(),
            // What follows the rollout is never longer than the analysis itself.
            after_complete_s: built_in.after_complete_s.min(watch.as_secs_f64()),
            analysis_cap_s: longest.max(watch).as_secs_f64(),
            ready_within_s: ready_within.as_secs_f64(),
            latency_convicts: latency,
            bake_s: bake_for.as_secs_f64(),
            hold_s: hold.as_secs_f64(),
            margin: increase / 100.0,
            // One endpoint alone needs more than all together, as in the built-in rule.
            endpoint_margin: built_in.endpoint_margin.max(increase / 100.0),
            ..built_in
        },
        bake,
        max_per_day: u32::try_from(per_day).unwrap_or(0),
        may,
    }
}

fn may(table: &mut ConfigTable, notes: &mut ReaderNotes) -> RollbackPermissions {
    let built_in = RollbackPermissions::default();
    let while_pending = table
        .switch("while_pending", notes)
        .unwrap_or(built_in.while_pending);
    let (after_migrations, no_migrations) = migrations(table, notes);
    let against_gitops = table
        .switch("allow_gitops", notes)
        .unwrap_or(built_in.against_gitops);
    let unblock_statefulsets = table
        .switch("unblock_statefulsets", notes)
        .unwrap_or(built_in.unblock_statefulsets);
    let delete = kinds(table, "may_delete", "PersistentVolumeClaim", notes);
    let cluster_scoped = cluster_kinds(table, notes);
    let mut namespaces = Vec::new();
    for item in table.list("namespaces", notes).unwrap_or_default() {
        match item.text() {
            Some(name) => {
                check_name(name, &item, 63, notes);
                namespaces.push(name.to_owned());
            }
            None => notes.diagnostic(
                &item,
                "is not the name of a namespace",
                "write it in quotes, as \"shop-tools\"",
            ),
        }
    }
    let path = table.path.clone();
    notes.defaults(
        &path,
        &[
            ("while_pending", &while_pending),
            (
                "migrations",
                &if after_migrations {
                    "\"compatible\"".to_owned()
                } else if no_migrations.is_empty() {
                    "\"unknown\"".to_owned()
                } else {
                    format!("{{ ignore = {no_migrations:?} }}")
                },
            ),
            ("allow_gitops", &against_gitops),
            ("unblock_statefulsets", &unblock_statefulsets),
            ("may_delete", &format!("{delete:?}")),
            ("namespaces", &format!("{namespaces:?}")),
            ("cluster_scoped", &{
                let written: Vec<String> =
                    cluster_scoped.iter().map(ClusterKind::to_string).collect();
                format!("{written:?}")
            }),
        ],
    );
    RollbackPermissions {
        while_pending,
        after_migrations,
        no_migrations,
        against_gitops,
        delete,
        namespaces,
        cluster_scoped,
        unblock_statefulsets,
    }
}

/// Whether migrations are compatible, and the hooks that migrate nothing.
fn migrations(table: &mut ConfigTable, notes: &mut ReaderNotes) -> (bool, Vec<String>) {
    let is_table = |item: &ConfigValue| matches!(item.node.kind, NodeKind::Table(_));
    let Some(item) = table.take("migrations").map(unfolded) else {
        return (false, Vec::new());
    };
    if !is_table(&item) {
        match item.text() {
            Some("compatible") => return (true, Vec::new()),
            Some("unknown") => return (false, Vec::new()),
            Some(_) | None => notes.diagnostic(
                &item,
                "is not known",
                "write \"compatible\" or \"unknown\", or { ignore = [\"*-admission-*\"] } for hooks that migrate nothing",
            ),
        }
        return (false, Vec::new());
    }
    let mut inner = ConfigTable::of(item, notes);
    let mut patterns = Vec::new();
    for item in inner.list("ignore", notes).unwrap_or_default() {
        match item.text().filter(|text| !text.is_empty()) {
            Some(pattern) => patterns.push(pattern.to_owned()),
            None => notes.diagnostic(
                &item,
                "is not the name of a hook",
                "write it in quotes, with * for any text, as \"*-admission-*\"",
            ),
        }
    }
    inner.end(notes);
    (false, patterns)
}

/// A list of kinds, as they are written in a manifest.
fn kinds(
    table: &mut ConfigTable,
    key: &'static str,
    example: &str,
    notes: &mut ReaderNotes,
) -> Vec<String> {
    let mut kinds = Vec::new();
    for item in table.list(key, notes).unwrap_or_default() {
        match item.text() {
            Some(kind) if kind.starts_with(|c: char| c.is_ascii_uppercase()) => {
                kinds.push(kind.to_owned());
            }
            Some(_) | None => notes.diagnostic(
                &item,
                "is not a valid kind of object",
                format!("write it as in a manifest, as \"{example}\""),
            ),
        }
    }
    kinds
}

/// Kinds of objects in no namespace.
fn cluster_kinds(table: &mut ConfigTable, notes: &mut ReaderNotes) -> Vec<ClusterKind> {
    let mut kinds = Vec::new();
    for item in table.list("cluster_scoped", notes).unwrap_or_default() {
        let (diagnostic, hint) = match item.text().map(ClusterKind::from_str) {
            Some(Ok(kind)) => {
                kinds.push(kind);
                continue;
            }
            Some(Err(InvalidKind::WithoutGroup)) => (
                "is not a kind of Kubernetes itself that lives in no namespace",
                "name the group of its API as well, as \"ClusterIssuer.cert-manager.io\"",
            ),
            Some(Err(InvalidKind::Malformed)) | None => (
                "is not a valid kind of object",
                "write it as in a manifest, as \"ClusterRole\", or with the group of its API, as \"ClusterIssuer.cert-manager.io\"",
            ),
        };
        notes.diagnostic(&item, diagnostic, hint);
    }
    kinds
}

/// Percentage points, as `2%`.
fn points(text: &str, item: &ConfigValue, notes: &mut ReaderNotes) -> Option<f64> {
    let (least, most) = INCREASE;
    let number = text
        .strip_suffix('%')
        .map(str::trim)
        .and_then(|number| number.parse().ok());
    match number {
        Some(points) if points >= least && points <= most => Some(points),
        Some(_) | None => {
            notes.diagnostic(
                item,
                format!("{text:?} is not an increase in percentage points"),
                format!("write \"2%\"; from {least}% to {most}%"),
            );
            None
        }
    }
}
