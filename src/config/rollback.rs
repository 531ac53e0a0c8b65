//! What a rollback of a release may do: `mode` and `[release.rollback]`.

use std::str::FromStr as _;

use super::analysis::analysis;
use super::cluster_kind::{ClusterKind, InvalidKind};
use super::layers::NodeKind;
use super::settings::{GuardConfig, RollbackPermissions};
use super::tables::check_name;
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes, unfolded};
use crate::core::rollout::Mode;

const DEFAULT_PER_DAY: i64 = 2;

const MODES: [(&str, Mode); 3] = [
    ("enforce", Mode::Enforce),
    ("observe", Mode::Observe),
    ("off", Mode::Off),
];

/// Reads `mode`, and the tables `analysis` and `rollback` where they are.
pub(super) fn controller(release: &mut ConfigTable, notes: &mut ReaderNotes) -> GuardConfig {
    let mode = release.word("mode", &MODES, notes).unwrap_or_default();
    let mode_key = [(
        "mode",
        &format!("\"{}\"", mode.as_str()) as &dyn std::fmt::Display,
    )];
    notes.defaults(&release.path.clone(), &mode_key);
    let (rule, bake) = analysis(release, mode, notes);
    let mut table = match release.take("rollback") {
        Some(item) => ConfigTable::of(item, notes),
        None => ConfigTable::empty(release.path_of("rollback")),
    };
    let per_day = table
        .number("max_per_day", (0, 100), notes)
        .unwrap_or(DEFAULT_PER_DAY);
    let path = table.path.clone();
    notes.defaults(&path, &[("max_per_day", &per_day)]);
    let may = may(&mut table, notes);
    table.end(notes);
    GuardConfig {
        mode,
        rule,
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
