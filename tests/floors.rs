//! Holds the import rules that `lib.rs` states: it reads `src/`, so a change that breaks them fails here.

use std::fs;
use std::path::{Path, PathBuf};

const GROUND: &[&str] = &[
    "units",
    "config",
    "sounding",
    "window",
    "track",
    "doubt",
    "verdict",
    "baseline",
    "ledger",
    "rollout",
    "evidence",
    "recording",
    "alert",
    "objective",
];
const FIRST: &[&str] = &[
    "probe", "metrics", "serve", "release", "store", "notify", "requests", "review", "lease",
];
const ROOF: &[&str] = &["daemon", "cli"];

/// Outside crates and clocks that the ground floor must not know.
const NOT_ON_THE_GROUND: &[&str] = &[
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
    "crate::clock",
];

#[test]
fn the_ground_floor_is_pure() {
    for module in GROUND {
        for (file, number, line) in lines_of(module) {
            for banned in NOT_ON_THE_GROUND {
                assert!(
                    !mentions(&line, banned),
                    "{}:{number} uses {banned}: {line}",
                    file.display()
                );
            }
            for above in FIRST.iter().chain(ROOF) {
                let path = format!("crate::{above}");
                assert!(
                    !mentions(&line, &path),
                    "{}:{number} uses {path}: {line}",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn first_floor_modules_do_not_know_one_another() {
    for module in FIRST {
        for (file, number, line) in lines_of(module) {
            for other in FIRST.iter().chain(ROOF) {
                let allowed = other == module || (*module == "serve" && *other == "metrics");
                let path = format!("crate::{other}");
                assert!(
                    allowed || !mentions(&line, &path),
                    "{}:{number} uses {path}: {line}",
                    file.display()
                );
            }
        }
    }
}

/// Tasks that live as long as the process start in `daemon.rs`. Elsewhere `spawn` is allowed only where a task ends
/// with what it was started for; those places are listed here, with the reason.
#[test]
fn only_the_daemon_starts_long_lived_tasks() {
    let short_lived: &[(&str, &str)] = &[
        ("serve/mod.rs", "a page is written and done"),
        ("serve/api.rs", "an answer is written and done"),
        ("serve/releases.rs", "a recording is read and done"),
        ("serve/auth.rs", "a token is read and done"),
        ("serve/ready.rs", "files are looked at and done"),
        ("serve/listen.rs", "a client's connection, within limits"),
        ("probe/http.rs", "the driver of one HTTP/2 connection"),
        (
            "probe/schedule",
            "the schedule's thread, started and stopped by the daemon",
        ),
        ("probe/", "blocking work of one sounding"),
        ("release/embedded.rs", "files are read and done"),
        (
            "release/cluster/records.rs",
            "a payload is decoded and done",
        ),
        (
            "release/cluster/helm.rs",
            "one run of helm, within its limit",
        ),
        ("cli/", "the roof"),
        ("daemon", "the daemon"),
    ];
    for (file, number, line) in all_lines() {
        if [".spawn(", "::spawn(", "spawn_blocking(", "spawn_local("]
            .iter()
            .any(|call| line.contains(call))
        {
            let name = file
                .strip_prefix(src())
                .unwrap_or(&file)
                .to_string_lossy()
                .into_owned();
            assert!(
                short_lived.iter().any(|(place, _)| name.starts_with(place)),
                "{name}:{number} spawns: {line}"
            );
        }
    }
}

/// What changes something at the API server goes through the one writer, which needs the permit. Whoever else takes kube's
/// parameters of a write is listed here, with the reason.
#[test]
fn only_the_writer_changes_something_at_the_api_server() {
    let others: &[(&str, &str)] = &[
        ("api_client/writer.rs", "the writer"),
        ("lease.rs", "the Lease, which the permit comes from"),
        ("review.rs", "a review is a question"),
        ("release/cluster/granted.rs", "a review is a question"),
        ("release/cluster/dry_run.rs", "a dry run keeps nothing"),
    ];
    let of_writes = [
        "PostParams",
        "PatchParams",
        "DeleteParams",
        "Recorder::new(",
    ];
    for (file, number, line) in all_lines() {
        if of_writes.iter().any(|word| line.contains(word)) {
            let own = file.strip_prefix(src()).unwrap();
            let is_listed = others.iter().any(|(other, _)| own == Path::new(other));
            let is_of_events = line.contains("EventRecorder::new(");
            assert!(
                is_listed || is_of_events,
                "{}:{number} writes without the permit: {line}",
                file.display()
            );
        }
    }
}

/// What reaches a terminal is escaped in one place; whoever prints past it would show the escapes of others as they are.
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
    for (file, number, line) in all_lines() {
        // Those of a child process are piped.
        let is_ours = !line.trim_start().starts_with('.');
        assert!(
            file.ends_with("cli/terminal.rs")
                || !is_ours
                || !prints.iter().any(|print| line.contains(print)),
            "{}:{number} prints past cli::terminal: {line}",
            file.display()
        );
    }
}

/// A grouped import would hide a floor from the tests above.
#[test]
fn imports_from_the_crate_name_one_module_each() {
    for (file, number, line) in all_lines() {
        assert!(
            !line.contains("crate::{"),
            "{}:{number} groups modules: {line}",
            file.display()
        );
    }
}

#[test]
fn every_module_stands_on_a_floor() {
    let named = |name: &str| {
        GROUND.iter().chain(FIRST).chain(ROOF).any(|m| *m == name)
            || name == "clock"
            || name == "permit"
            || name == "files"
    };
    for line in fs::read_to_string(src().join("lib.rs")).unwrap().lines() {
        if let Some(module) = line
            .strip_prefix("pub mod ")
            .and_then(|rest| rest.strip_suffix(';'))
        {
            assert!(
                named(module),
                "{module} is in lib.rs, but on no floor of tests/floors.rs"
            );
        }
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn lines_of(module: &str) -> Vec<(PathBuf, usize, String)> {
    all_lines()
        .into_iter()
        .filter(|(file, _, _)| {
            let first = file
                .strip_prefix(src())
                .unwrap()
                .components()
                .next()
                .unwrap();
            Path::new(&first).with_extension("") == Path::new(module)
        })
        .collect()
}

/// Lines of code: without comments, and without the tests at a file's end.
fn all_lines() -> Vec<(PathBuf, usize, String)> {
    let mut files = Vec::new();
    collect(&src(), &mut files);
    assert!(files.len() > 10, "src/ was not found");
    let mut lines = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for (index, line) in text.lines().enumerate() {
            if line.trim() == "#[cfg(test)]"
                && !text
                    .lines()
                    .nth(index + 1)
                    .unwrap_or("")
                    .trim_end()
                    .ends_with(';')
            {
                break;
            }
            if !line.trim_start().starts_with("//") {
                lines.push((file.clone(), index + 1, line.to_owned()));
            }
        }
    }
    lines
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

/// Whether the text stands in the line as a whole path and not as a part of a longer word.
fn mentions(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let before = line[..at].chars().next_back();
        let after = line[at + path.len()..].chars().next();
        let starts = !before.is_some_and(word);
        let ends = !after.is_some_and(word);
        // `tokio` as a crate is followed by `::`; as a plain word in a text it is not.
        let is_path = path.contains("::") || line[at + path.len()..].starts_with("::");
        starts && ends && is_path
    })
}
