//! The chart, by both Helms: linted, rendered, and refused where values are wrong.
//!
//! They are looked for in `PATH` as `helm3` and `helm4`; `PATH="$(tests/rig/build):$PATH" cargo test --test chart` has
//! them. So are the linters yamllint, shellcheck, hadolint, yamale and kubernetes-validate. Without them the tests say so
//! and do nothing, unless `LEADSMAN_TEST_CHART` is set.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

#[path = "chart/trying.rs"]
mod trying;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CHART: &str = "helm/leadsman";
const HELMS: [&str; 2] = ["helm3", "helm4"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    let ran = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output();
    let is_needed = std::env::var_os("LEADSMAN_TEST_CHART").is_some();
    assert!(ran.is_ok() || !is_needed, "{program} is missing");
    if ran.is_err() {
        eprintln!("left out: {program} is not installed");
    }
    ran.ok()
}

/// What it wrote; it must succeed.
#[track_caller]
fn works(program: &str, arguments: &[&str]) -> Option<String> {
    let output = run(program, arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{said}"
    );
    Some(text)
}

/// The sets of values that are shipped as examples, by name.
fn sets() -> Vec<(String, PathBuf)> {
    let folder = root().join(CHART).join("ci");
    let mut all: Vec<(String, PathBuf)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name.trim_end_matches("-values.yaml").to_owned(), path)
        })
        .collect();
    all.sort();
    assert!(all.len() >= 4);
    all
}

/// Documents in an order that no Helm decides.
fn documents(text: &str) -> Vec<String> {
    let mut all: Vec<String> = text
        .split("\n---")
        .map(|document| document.trim_start_matches("---").trim().to_owned())
        .filter(|document| document.lines().any(|line| line.starts_with("kind:")))
        .collect();
    all.sort();
    all
}

fn rendered(helm: &str, values: &Path) -> Option<Vec<String>> {
    let text = works(
        helm,
        &[
            "template",
            "leadsman",
            CHART,
            "--namespace",
            "leadsman",
            "--kube-version",
            "1.33.0",
            "--values",
            values.to_str().unwrap(),
        ],
    )?;
    Some(documents(&text))
}

#[test]
fn both_helms_find_nothing_to_complain_of() {
    for helm in HELMS {
        for (_, values) in sets() {
            works(
                helm,
                &[
                    "lint",
                    "--strict",
                    CHART,
                    "--values",
                    values.to_str().unwrap(),
                ],
            );
        }
        works(helm, &["lint", "--strict", CHART]);
    }
}

/// `UPDATE_SNAPSHOTS=1` writes what is rendered now.
#[test]
fn what_is_rendered_is_what_was_agreed_and_the_same_by_both_helms() {
    for (name, values) in sets() {
        let [Some(three), Some(four)] = HELMS.map(|helm| rendered(helm, &values)) else {
            return;
        };
        assert_eq!(three, four, "{name}");
        let text = four.join("\n---\n") + "\n";
        let file = root().join(format!("tests/snapshots/chart/{name}.yaml"));
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, text).unwrap();
            continue;
        }
        let agreed = std::fs::read_to_string(&file).unwrap();
        assert!(
            text == agreed,
            "{name} is rendered otherwise; UPDATE_SNAPSHOTS=1 shows the difference by git"
        );
    }
}

#[test]
fn values_that_are_wrong_are_refused_by_name() {
    for (values, named) in [
        ("replicas=2", "replicas"),
        ("replicaCount=0", "replicaCount"),
        ("namespaces[0].mode=enforce", "name"),
        ("namespaces[0].name=a,namespaces[0].mode=on", "mode"),
        ("image.digest=sha256:12", "digest"),
        ("log.level=loud", "level"),
    ] {
        for helm in HELMS {
            let Some(output) = run(
                helm,
                &[
                    "template",
                    "x",
                    CHART,
                    "--kube-version",
                    "1.33.0",
                    "--set",
                    values,
                ],
            ) else {
                return;
            };
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{helm} {values}");
            assert!(said.contains(named), "{helm} {values}: {said}");
        }
    }
    // What a cluster does not have is no silent nothing.
    for kind in ["serviceMonitor", "podMonitor", "prometheusRule"] {
        let enabled = format!("{kind}.enabled=true");
        let Some(output) = run("helm4", &["template", "x", CHART, "--set", &enabled]) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Prometheus operator"), "{said}");
        let has = [
            "monitoring.coreos.com/v1/ServiceMonitor",
            "monitoring.coreos.com/v1/PodMonitor",
            "monitoring.coreos.com/v1/PrometheusRule",
        ]
        .join(",");
        let text = works(
            "helm4",
            &[
                "template",
                "x",
                CHART,
                "--set",
                &enabled,
                "--api-versions",
                &has,
            ],
        );
        let wanted = format!("kind: {}{}", kind[..1].to_uppercase(), &kind[1..]);
        assert!(text.unwrap().contains(&wanted));
    }
}

/// The rules of the chart are the rules of the file, which tests/prometheus.rs tests one by one.
#[test]
fn the_rules_are_those_that_are_tested() {
    let has = "monitoring.coreos.com/v1/PrometheusRule";
    let Some(text) = works(
        "helm4",
        &[
            "template",
            "x",
            CHART,
            "--set",
            "prometheusRule.enabled=true",
            "--api-versions",
            has,
        ],
    ) else {
        return;
    };
    let names = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .map(str::trim)
            .map(|line| line.trim_start_matches("- "));
        let mut names: Vec<String> = lines
            .filter_map(|line| line.strip_prefix("alert: ").map(str::to_owned))
            .collect();
        names.sort();
        names
    };
    let file = std::fs::read_to_string(root().join(CHART).join("files/rules.yaml")).unwrap();
    assert!(names(&file).len() > 10);
    assert_eq!(names(&text), names(&file));
}

#[test]
fn every_value_is_in_the_readme() {
    let readme = std::fs::read_to_string(root().join(CHART).join("README.md")).unwrap();
    let values = std::fs::read_to_string(root().join(CHART).join("values.yaml")).unwrap();
    let keys = values
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, _)| key)
        .filter(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let mut count = 0;
    for key in keys {
        count += 1;
        let is_there =
            readme.contains(&format!("| `{key}` |")) || readme.contains(&format!("| `{key}."));
        assert!(is_there, "{key} is not in the README of the chart");
    }
    assert!(count > 30, "{count}");
}

/// Every object of every example is valid, field by field, where Kubernetes itself defines it, in the oldest version
/// that is supported and in the newest. (The rig's API server says the same of its own version.)
#[test]
fn what_is_rendered_is_valid_in_old_and_new_clusters() {
    let folder = tempfile::tempdir().unwrap();
    for (name, values) in sets() {
        let Some(all) = rendered("helm4", &values) else {
            return;
        };
        let file = folder.path().join(format!("{name}.yaml"));
        std::fs::write(&file, all.join("\n---\n")).unwrap();
        for version in ["1.33", "1.37"] {
            let arguments = ["--strict", "-k", version, file.to_str().unwrap()];
            let Some(said) = works("kubernetes-validate", &arguments) else {
                return;
            };
            let passed = said.matches("passed for resource deployment/").count();
            assert_eq!(passed, 1, "{said}");
        }
    }
}

#[test]
fn the_chart_says_of_itself_what_is_known() {
    let schema = "tests/chart/Chart.schema.yaml";
    works("yamale", &["-s", schema, &format!("{CHART}/Chart.yaml")]);
}

#[test]
fn dockerfile_and_scripts_have_no_known_pitfalls() {
    works("hadolint", &["Dockerfile"]);
    let scripts = [
        ".ci/run",
        "tests/all",
        "helm/try/run",
        "tests/fuzz/run",
        "tests/image",
        "tests/rig/build",
        "tests/rig/container",
        "tests/rig/shell",
        "tests/rig/up",
    ];
    let mut arguments = vec!["--severity=warning"];
    arguments.extend(scripts);
    works("shellcheck", &arguments);
}

#[test]
fn the_yaml_is_tidy() {
    let config = "{extends: default, rules: {line-length: disable, document-start: disable, comments: {min-spaces-from-content: 1}, \
                  braces: {max-spaces-inside: 1}, truthy: {check-keys: false}}}";
    let mut files = vec![
        format!("{CHART}/Chart.yaml"),
        format!("{CHART}/values.yaml"),
    ];
    files.extend(sets().iter().map(|(_, path)| path.display().to_string()));
    let mut arguments = vec!["--strict", "-d", config];
    arguments.extend(files.iter().map(String::as_str));
    works("yamllint", &arguments);
}
