//! Holds the code to `docs/STYLE.md`, section "Structure": it reads `src/`, so a change that breaks a rule fails here.
//!
//! The lists of exceptions only shrink: one that is no longer needed fails too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// Folders of `src/` and the level of each. A folder uses only folders of lower levels.
const LEVELS: &[(&str, u8)] = &[
    ("core", 0),
    ("config", 1),
    ("platform", 2),
    ("kubernetes", 3),
    ("helm", 3),
    ("prober", 4),
    ("metrics", 4),
    ("storage", 4),
    ("release", 4),
    ("notify", 4),
    ("prometheus_query", 4),
    ("http", 5),
    ("daemon", 6),
    ("cli", 7),
];

/// Outside crates and clocks that neither `core` nor `config` knows.
const NOT_IN_CORE: &[&str] = &[
    "tokio",
    "reqwest",
    "hyper",
    "kube",
    "prometheus",
    "axum",
    "rustix",
    "Instant::now",
    "SystemTime::now",
    "time::Instant",
    "async fn",
];

/// Type names that occur more than once, on purpose.
const SHARED_TYPE_NAMES: &[&str] = &["Config", "Error", "Metrics"];

const LONGEST_FUNCTION: usize = 70;
const GREATEST_COMPLEXITY: usize = 15;
const LONGEST_FILE: usize = 500;
const MOST_FIELDS: usize = 15;

/// Files that use a folder above them.
const UPWARD: &[&str] = &[
    "core/probe_stats/mod.rs config",
    "core/self_check/mod.rs config",
];

/// Functions that are longer or more complex than the rule.
const FUNCTIONS: &[&str] = &[
    "cli/analyze/stream.rs judge",
    "cli/explain/mod.rs show",
    "cli/import_blackbox/expect.rs header_rules",
    "cli/import_blackbox/pattern.rs translated",
    "cli/probe.rs find",
    "cli/rollback/direct.rs roll_back",
    "config/kubernetes.rs lease",
    "config/tables.rs probe",
    "config/tables.rs release",
    "config/tables.rs settings",
    "core/analysis/pod_results.rs take",
    "core/analysis/rule.rs check",
    "core/analysis/rule.rs default",
    "core/analysis/state/start.rs check",
    "core/recording/mod.rs read",
    "core/rollout/transition.rs step",
    "daemon/alerting/error_budgets/mod.rs one",
    "daemon/alerting/evaluate.rs of_ourselves",
    "daemon/alerting/message_texts.rs ended",
    "daemon/alerting/mod.rs look",
    "daemon/controllers.rs controller",
    "daemon/controllers.rs controllers_for",
    "daemon/mod.rs start",
    "daemon/release_controller/analysis.rs begin_analysis",
    "daemon/release_controller/analysis.rs tick",
    "daemon/release_controller/mod.rs check_complete",
    "daemon/release_controller/mod.rs new",
    "daemon/release_controller/pod_probes.rs ask_pods",
    "daemon/release_controller/status/mod.rs of",
    "daemon/release_controller/workload_events.rs follow",
    "http/blackbox.rs write_gauges",
    "http/blackbox.rs write_http",
    "http/probe.rs probe",
    "metrics/alerting.rs new",
    "metrics/own.rs new",
    "metrics/releases.rs new",
    "release/cluster/helm_proxy/mod.rs decide",
    "release/cluster/mod.rs follow",
    "release/cluster/objects.rs of",
];

/// Files that are longer than the rule.
const FILES: &[&str] = &[
    "cli/analyze/stream.rs",
    "config/settings.rs",
    "config/tables.rs",
    "config/value_reader.rs",
    "core/analysis/comparison.rs",
    "core/analysis/state/mod.rs",
    "daemon/alerting/mod.rs",
    "daemon/leadership.rs",
    "daemon/mod.rs",
    "daemon/release_controller/analysis.rs",
    "daemon/release_controller/bake/mod.rs",
    "daemon/release_controller/mod.rs",
    "daemon/release_controller/state/mod.rs",
    "http/mod.rs",
    "kubernetes/leader_election/mod.rs",
    "notify/alertmanager/mod.rs",
    "release/cluster/mod.rs",
    "release/cluster/objects.rs",
    "release/mod.rs",
    "storage/mod.rs",
];

/// Structs with more fields than the rule that are neither settings nor a format on the wire.
const STRUCTS: &[&str] = &[
    "cli/analyze/stream.rs ResultStream",
    "core/analysis/bake.rs Bake",
    "core/analysis/rule.rs Rule",
    "core/analysis/state/mod.rs Analysis",
    "core/probe_stats/mod.rs ProbeStats",
    "core/rollout/candidate.rs Candidate",
    "daemon/alerting/mod.rs AlertEvaluator",
    "daemon/mod.rs Daemon",
    "daemon/release_controller/mod.rs ReleaseController",
    "daemon/release_controller/state/mod.rs RunningAnalysis",
    "daemon/release_controller/state/mod.rs State",
    "http/mod.rs AppState",
    "http/status/mod.rs GuardView",
    "metrics/own.rs Metrics",
    "metrics/releases.rs ReleaseMetrics",
    "release/cluster/mod.rs ClusterEngine",
    "release/cluster/objects.rs WorkloadSummary",
];

/// Pairs of neighbours that use each other.
const CIRCLES: &[&str] = &[];

#[test]
fn a_folder_uses_only_lower_levels() {
    let mut found = BTreeSet::new();
    for source in sources() {
        let own = level_of(&source.folder);
        for (_, line) in &source.lines {
            for (other, level) in LEVELS {
                let is_below = *other == source.folder || *level < own;
                if !is_below && mentions(line, &format!("crate::{other}")) {
                    found.insert(format!("{} {other}", source.name));
                }
            }
        }
    }
    expect_list("UPWARD", UPWARD, &found);
}

#[test]
fn core_and_config_know_no_clock_no_runtime_and_no_io() {
    for source in sources() {
        if level_of(&source.folder) > level_of("config") {
            continue;
        }
        for (number, line) in &source.lines {
            for banned in NOT_IN_CORE {
                assert!(
                    !mentions(line, banned),
                    "{}:{number} uses {banned}: {line}",
                    source.name
                );
            }
        }
    }
}

#[test]
fn every_folder_has_a_level() {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    for line in lib.lines() {
        let module = line
            .strip_prefix("pub mod ")
            .or_else(|| line.strip_prefix("mod "))
            .and_then(|rest| rest.strip_suffix(';'));
        if let Some(module) = module {
            assert!(
                LEVELS.iter().any(|(name, _)| *name == module),
                "{module} is in lib.rs and has no level in tests/structure.rs"
            );
        }
    }
}

/// A folder's module is `mod.rs`, throughout.
#[test]
fn a_module_with_children_is_a_mod_rs() {
    for source in sources() {
        let twin = src().join(&source.name).with_extension("");
        assert!(
            !twin.is_dir(),
            "{} stands beside a folder of its name: move it to mod.rs there",
            source.name
        );
    }
}

/// Neighbours in one folder form no circle: of two modules one is below the other.
#[test]
fn neighbours_do_not_use_each_other() {
    let mut uses: BTreeSet<(String, String)> = BTreeSet::new();
    for source in sources() {
        let parts: Vec<&str> = source.module.split("::").collect();
        for (_, line) in &source.lines {
            for (at, _) in line.match_indices("crate::") {
                let path: Vec<&str> = line[at + 7..]
                    .split("::")
                    .map(|part| {
                        part.split(|c: char| !c.is_alphanumeric() && c != '_')
                            .next()
                            .unwrap()
                    })
                    .collect();
                let shared = parts.iter().zip(&path).take_while(|(a, b)| a == b).count();
                if shared > 0 && shared < parts.len() && shared < path.len() {
                    let folder = parts[..shared].join("::");
                    uses.insert((
                        format!("{folder}::{}", parts[shared]),
                        format!("{folder}::{}", path[shared]),
                    ));
                }
            }
        }
    }
    let circles: BTreeSet<String> = uses
        .iter()
        .filter(|(one, other)| one < other && uses.contains(&(other.clone(), one.clone())))
        .map(|(one, other)| format!("{one} {other}"))
        .collect();
    expect_list("CIRCLES", CIRCLES, &circles);
}

#[test]
fn a_type_name_occurs_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources() {
        let mut types = Types::default();
        types.visit_file(&source.syntax());
        for name in types.names {
            places.entry(name).or_default().push(source.name.clone());
        }
    }
    let twice: Vec<_> = places
        .iter()
        .filter(|(name, files)| files.len() > 1 && !SHARED_TYPE_NAMES.contains(&name.as_str()))
        .collect();
    assert!(twice.is_empty(), "types of one name: {twice:#?}");
}

#[test]
fn functions_are_short_and_plain() {
    let mut found = BTreeSet::new();
    for source in sources() {
        let mut functions = Functions::default();
        functions.visit_file(&source.syntax());
        for (name, lines, complexity) in functions.found {
            if lines > LONGEST_FUNCTION || complexity > GREATEST_COMPLEXITY {
                found.insert(format!("{} {name}", source.name));
            }
        }
    }
    expect_list("FUNCTIONS", FUNCTIONS, &found);
}

#[test]
fn files_are_short() {
    let found = sources()
        .into_iter()
        .filter(|source| source.length > LONGEST_FILE)
        .map(|source| source.name)
        .collect();
    expect_list("FILES", FILES, &found);
}

/// A struct that holds everything is several things. Settings and formats on the wire may have many fields.
#[test]
fn structs_are_small() {
    let mut found = BTreeSet::new();
    for source in sources() {
        let mut types = Types::default();
        types.visit_file(&source.syntax());
        for (name, fields) in types.fields {
            if fields > MOST_FIELDS {
                found.insert(format!("{} {name}", source.name));
            }
        }
    }
    expect_list("STRUCTS", STRUCTS, &found);
}

/// Tasks that live as long as the process start in the daemon. Elsewhere `spawn` is allowed only where a task ends with
/// what it was started for; those places are listed here, with the reason.
#[test]
fn only_the_daemon_starts_long_lived_tasks() {
    let short_lived: &[(&str, &str)] = &[
        ("http/mod.rs", "a page is written and done"),
        ("http/api.rs", "an answer is written and done"),
        ("http/releases.rs", "a recording is read and done"),
        ("http/auth.rs", "a token is read and done"),
        ("http/readiness.rs", "files are looked at and done"),
        ("http/server.rs", "a client's connection, within limits"),
        ("prober/http.rs", "the driver of one HTTP/2 connection"),
        (
            "prober/schedule",
            "the schedule's thread, started and stopped by the daemon",
        ),
        ("prober/", "blocking work of one probe"),
        ("release/embedded/mod.rs", "files are read and done"),
        (
            "release/cluster/records.rs",
            "a payload is decoded and done",
        ),
        (
            "release/cluster/helm_command/mod.rs",
            "one run of helm, within its limit",
        ),
        ("cli/", "the roof"),
        ("daemon/", "the daemon"),
    ];
    for source in sources() {
        for (number, line) in &source.lines {
            let spawns = [".spawn(", "::spawn(", "spawn_blocking(", "spawn_local("]
                .iter()
                .any(|call| line.contains(call));
            assert!(
                !spawns
                    || short_lived
                        .iter()
                        .any(|(place, _)| source.name.starts_with(place)),
                "{}:{number} spawns: {line}",
                source.name
            );
        }
    }
}

/// What changes something at the API server goes through the one writer, which needs the permit. Other files that use
/// kube's parameters of a write are listed here, with the reason.
#[test]
fn only_the_writer_changes_something_at_the_api_server() {
    let others: &[(&str, &str)] = &[
        ("kubernetes/client/writer.rs", "the writer"),
        (
            "kubernetes/leader_election/mod.rs",
            "the Lease, which the permit comes from",
        ),
        ("kubernetes/access_review.rs", "a review is a question"),
        ("release/cluster/granted/mod.rs", "a review is a question"),
        ("release/cluster/dry_run/mod.rs", "a dry run keeps nothing"),
    ];
    let of_writes = [
        "PostParams",
        "PatchParams",
        "DeleteParams",
        "Recorder::new(",
    ];
    for source in sources() {
        for (number, line) in &source.lines {
            let writes = of_writes.iter().any(|word| line.contains(word))
                && !line.contains("EventRecorder::new(");
            assert!(
                !writes || others.iter().any(|(other, _)| source.name == *other),
                "{}:{number} writes without the permit: {line}",
                source.name
            );
        }
    }
}

/// Text that reaches a terminal is escaped in one place.
#[test]
fn only_the_terminal_module_prints() {
    let prints = [
        "println!",
        "print!(",
        "eprint!(",
        "dbg!(",
        "stdout()",
        "stderr()",
        "io::stdout",
        "io::stderr",
    ];
    for source in sources() {
        for (number, line) in &source.lines {
            // Those of a child process are piped.
            let is_ours = !line.trim_start().starts_with('.');
            assert!(
                source.name == "cli/terminal.rs"
                    || !is_ours
                    || !prints.iter().any(|print| line.contains(print)),
                "{}:{number} prints past cli::terminal: {line}",
                source.name
            );
        }
    }
}

/// A grouped import would hide a folder from the tests above.
#[test]
fn imports_from_the_crate_name_one_module_each() {
    for source in sources() {
        for (number, line) in &source.lines {
            assert!(
                !line.contains("crate::{"),
                "{}:{number} groups modules: {line}",
                source.name
            );
        }
    }
}

/// Compares what was found with a list of exceptions, both ways.
fn expect_list(list: &str, allowed: &[&str], found: &BTreeSet<String>) {
    let allowed: BTreeSet<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
    let new: Vec<_> = found.difference(&allowed).collect();
    let gone: Vec<_> = allowed.difference(found).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "{list} in tests/structure.rs\nbreak the rule: {new:#?}\nno longer needed in the list: {gone:#?}"
    );
}

/// A file of `src/` without its tests.
struct Source {
    /// Its path below `src/`.
    name: String,
    /// The folder below `src/`; empty for `lib.rs` and `main.rs`.
    folder: String,
    /// Its path in the crate, as `core::rollout::candidate`.
    module: String,
    /// Lines of code with their numbers; comments are left out.
    lines: Vec<(usize, String)>,
    /// How many lines it has without its tests.
    length: usize,
    text: String,
}

impl Source {
    fn syntax(&self) -> syn::File {
        syn::parse_file(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    collect(&src(), &mut files);
    assert!(files.len() > 10, "src/ was not found");
    files.sort();
    files.iter().map(|file| source_of(file)).collect()
}

fn source_of(file: &Path) -> Source {
    let path = file.strip_prefix(src()).unwrap();
    let name = path.to_string_lossy().into_owned();
    let folder = match path.components().count() {
        1 => String::new(),
        _ => path
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy()
            .into_owned(),
    };
    let module = name
        .trim_end_matches(".rs")
        .trim_end_matches("/mod")
        .replace('/', "::");
    let text = fs::read_to_string(file).unwrap();
    let all: Vec<&str> = text.lines().collect();
    // Tests stand at a file's end; `#[cfg(test)] mod tests;` does not end the file.
    let length = all
        .iter()
        .enumerate()
        .position(|(at, line)| {
            line.trim() == "#[cfg(test)]"
                && !all.get(at + 1).unwrap_or(&"").trim_end().ends_with(';')
        })
        .unwrap_or(all.len());
    let lines = all[..length]
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(at, line)| (at + 1, (*line).to_owned()))
        .collect();
    Source {
        name,
        folder,
        module,
        lines,
        length,
        text,
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs")
            && path.file_name().is_some_and(|n| n != "tests.rs")
        {
            files.push(path);
        }
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn level_of(folder: &str) -> u8 {
    // lib.rs and main.rs stand above everything.
    LEVELS
        .iter()
        .find(|(name, _)| *name == folder)
        .map_or(u8::MAX, |(_, level)| *level)
}

/// Whether the text stands in the line as a whole path and not as a part of a longer word.
fn mentions(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let before = line[..at].chars().next_back();
        let after = line[at + path.len()..].chars().next();
        let starts = !before.is_some_and(word);
        let ends = !after.is_some_and(word);
        // `tokio` as a crate is followed by `::`; as a plain word in a text it is not.
        let is_path =
            path.contains("::") || path.contains(' ') || line[at + path.len()..].starts_with("::");
        starts && ends && is_path
    })
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Ident>()
                    .is_ok_and(|what| what == "test"))
    })
}

/// Types that a file defines, and how many fields its structs have.
#[derive(Default)]
struct Types {
    names: Vec<String>,
    fields: Vec<(String, usize)>,
}

impl<'a> Visit<'a> for Types {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    // Types inside of a function are its own.
    fn visit_block(&mut self, _: &'a syn::Block) {}

    fn visit_item_struct(&mut self, item: &'a syn::ItemStruct) {
        if !is_test(&item.attrs) {
            self.names.push(item.ident.to_string());
            self.fields
                .push((item.ident.to_string(), item.fields.len()));
        }
    }

    fn visit_item_enum(&mut self, item: &'a syn::ItemEnum) {
        self.names.push(item.ident.to_string());
    }

    fn visit_item_trait(&mut self, item: &'a syn::ItemTrait) {
        self.names.push(item.ident.to_string());
    }

    fn visit_item_type(&mut self, item: &'a syn::ItemType) {
        self.names.push(item.ident.to_string());
    }
}

/// Functions of a file: name, lines from the signature to the closing brace, complexity.
#[derive(Default)]
struct Functions {
    found: Vec<(String, usize, usize)>,
}

impl Functions {
    fn add(&mut self, name: &syn::Ident, block: &syn::Block) {
        let lines = block.brace_token.span.close().end().line - name.span().start().line + 1;
        let mut complexity = Complexity(1);
        complexity.visit_block(block);
        self.found.push((name.to_string(), lines, complexity.0));
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        if !is_test(&item.attrs) {
            self.add(&item.sig.ident, &item.block);
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            self.add(&item.sig.ident, &item.block);
            visit::visit_impl_item_fn(self, item);
        }
    }
}

/// The number of ways through a block: one, and one more for each branch, loop, guard and lazy operator. A `match`
/// counts as one branch, since a table of names is plain however long it is.
struct Complexity(usize);

impl<'a> Visit<'a> for Complexity {
    // A function inside counts by itself.
    fn visit_item_fn(&mut self, _: &'a syn::ItemFn) {}

    fn visit_expr(&mut self, expression: &'a syn::Expr) {
        self.0 += match expression {
            syn::Expr::If(_)
            | syn::Expr::While(_)
            | syn::Expr::ForLoop(_)
            | syn::Expr::Loop(_)
            | syn::Expr::Match(_) => 1,
            syn::Expr::Binary(binary) => {
                usize::from(matches!(binary.op, syn::BinOp::And(_) | syn::BinOp::Or(_)))
            }
            _ => 0,
        };
        visit::visit_expr(self, expression);
    }

    fn visit_local(&mut self, local: &'a syn::Local) {
        self.0 += usize::from(
            local
                .init
                .as_ref()
                .is_some_and(|init| init.diverge.is_some()),
        );
        visit::visit_local(self, local);
    }

    fn visit_arm(&mut self, arm: &'a syn::Arm) {
        self.0 += usize::from(arm.guard.is_some());
        visit::visit_arm(self, arm);
    }
}
