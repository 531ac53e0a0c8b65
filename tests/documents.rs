//! The documents against the program: links lead somewhere, examples and commands are understood, and each reference page
//! has what the program has, no more and no less.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use regex::Regex;

use crate::program::{Leadsman, until};
use crate::serve::guarded::ROUTES;

const PROGRAM: &str = env!("CARGO_BIN_EXE_leadsman");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files below a folder, by their names from the root of the repository.
fn files(folder: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files(&name, found);
        } else {
            found.push(name);
        }
    }
}

/// All documents, by name.
fn documents() -> BTreeMap<String, String> {
    let mut names = Vec::new();
    files("docs", &mut names);
    names.retain(|name| Path::new(name).extension().is_some_and(|end| end == "md"));
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "helm/leadsman/README.md",
    ] {
        names.push(name.to_owned());
    }
    let with_text = names.into_iter().map(|name| {
        let text = read(&name);
        (name, text)
    });
    with_text.collect()
}

/// The blocks of a document in one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let begins = format!("\n```{language}\n");
    let blocks = text.split(&begins).skip(1);
    blocks
        .map(|block| block.split("\n```").next().unwrap().to_owned() + "\n")
        .collect()
}

/// A document without its blocks of code.
fn prose(text: &str) -> String {
    text.split("\n```").step_by(2).collect()
}

/// The part below a heading, up to the next one of its level.
fn section<'a>(text: &'a str, heading: &str) -> Option<&'a str> {
    let begins = format!("\n## {heading}\n");
    let (_, section) = text.split_once(&begins)?;
    section.split("\n## ").next()
}

/// The anchors of a document, as GitHub makes them of its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let text = prose(text);
    for line in text.lines().filter(|line| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let fits = |c: &char| c.is_alphanumeric() || "-_ ".contains(*c);
        let anchor = heading.chars().filter(fits).collect::<String>();
        let is_new = anchors.insert(anchor.replace(' ', "-"));
        assert!(is_new, "a heading is there twice: {line}");
    }
    anchors
}

/// Whether a path from the root of the repository, perhaps with an anchor, is there.
fn resolves(target: &str) -> bool {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = root().join(file);
    if anchor.is_empty() {
        return path.exists();
    }
    std::fs::read_to_string(path).is_ok_and(|text| anchors(&text).contains(anchor))
}

#[test]
fn every_link_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut linked = BTreeSet::new();
    for (name, text) in documents() {
        for found in link.captures_iter(&prose(&text)) {
            let target = &found[1];
            if target.contains("://") {
                continue;
            }
            let mut from: PathBuf = Path::new(&name).parent().unwrap().into();
            if target.starts_with('#') {
                from = PathBuf::from(&name);
                from.set_file_name(format!("{}{target}", from.file_name().unwrap().display()));
            } else {
                for part in target.split('/') {
                    match part {
                        ".." => assert!(from.pop(), "{name}: {target}"),
                        part => from.push(part),
                    }
                }
            }
            let whole = from.to_str().unwrap();
            assert!(resolves(whole), "{name} links to {target}");
            if name == "README.md" {
                linked.insert(whole.split('#').next().unwrap().to_owned());
            }
        }
    }
    for name in documents().keys().filter(|name| *name != "README.md") {
        assert!(linked.contains(name), "README.md does not link to {name}");
    }
}

/// Links with the address of the repository, as those of the alerts; and files that the documents name.
#[test]
fn every_named_file_is_there() {
    let address = Regex::new(r"leadsman/leadsman/blob/main/([\w./#-]+)").unwrap();
    let mut sources = Vec::new();
    for folder in ["src", "helm", "docs"] {
        files(folder, &mut sources);
    }
    let mut count = 0;
    for name in sources {
        for found in address.captures_iter(&read(&name)) {
            let target = found[1].trim_end_matches('.');
            assert!(resolves(target), "{name} links to {target}");
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
    let file = Regex::new(r"`((?:helm|benches|tests|src|docs)/[\w./-]+)").unwrap();
    for (name, text) in documents()
        .iter()
        .filter(|(name, _)| *name != "CHANGELOG.md")
    {
        for found in file.captures_iter(&prose(text)) {
            assert!(
                root().join(&found[1]).exists(),
                "{name} names {}",
                &found[1]
            );
        }
    }
}

/// `ARCHITECTURE.md` names types, variants and functions; each is in the code.
#[test]
fn every_named_type_is_in_the_code() {
    let page = read("ARCHITECTURE.md");
    let mut sources = Vec::new();
    files("src", &mut sources);
    sources.retain(|file| Path::new(file).extension().is_some_and(|end| end == "rs"));
    let code: String = sources.iter().map(|file| read(file)).collect();
    let defined = Regex::new(r"\b(?:struct|enum|trait|type) (\w+)").unwrap();
    let types: BTreeSet<&str> = defined
        .captures_iter(&code)
        .map(|found| found.get(1).unwrap().as_str())
        // Macros define these, as `Reason { … }`.
        .chain(["Reason", "UnknownReason"])
        .collect();
    let name = Regex::new(r"`([A-Z]\w+)(?:::(\w+))?`").unwrap();
    let mut count = 0;
    for found in name
        .captures_iter(&prose(&page))
        .filter(|it| &it[1] != "CamelCase")
    {
        assert!(types.contains(&found[1]), "there is no type {}", &found[1]);
        if let Some(member) = found.get(2) {
            let member = Regex::new(&format!(r"\b{}\b", member.as_str())).unwrap();
            assert!(member.is_match(&code), "there is no {}", &found[0]);
        }
        count += 1;
    }
    assert!(count > 80, "{count}");
}

/// What an excerpt leaves out: a cluster, a release and the token that alerts need.
fn completed(excerpt: &str) -> String {
    const RELEASE: &str = "\n[[release]]\nname = \"a\"\nnamespace = \"b\"\nbase_url = \"http://a\"\n\
                           probe = [{ name = \"c\", path = \"/\" }]\n";
    let has = |header: &str| excerpt.lines().any(|line| line.starts_with(header));
    let mut text = String::new();
    if (has("[release.") || has("[[release.alert")) && !has("[[release]]") {
        text += RELEASE;
    }
    text += excerpt;
    if !has("[[release") && !has("[release.") {
        text += RELEASE;
    }
    if has("[[release.alert") {
        text += "\n[serve]\ntoken_file = \"/a\"\n";
    }
    if !has("[kubernetes]") {
        text += "\n[kubernetes]\n";
    }
    text
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder);
    // As at a terminal of this width.
    command.env("COLUMNS", "100").output().unwrap()
}

#[test]
fn every_example_of_a_configuration_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for (name, text) in documents() {
        for example in blocks(&text, "toml") {
            std::fs::write(folder.path().join("probes.toml"), completed(&example)).unwrap();
            let output = run(PROGRAM, &["check", "--no-files"], folder.path());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {said}\n{example}");
            count += 1;
        }
        for example in blocks(&text, "yaml") {
            serde_saphyr::from_str::<serde_json::Value>(&example)
                .unwrap_or_else(|error| panic!("{name}: {error}\n{example}"));
        }
    }
    assert!(count > 10, "{count}");
}

/// The commands of a document, each on one line, without its comment and without `&` at its end.
fn commands(text: &str) -> Vec<String> {
    let blocks = blocks(text, "console").concat().replace("\\\n", "");
    let commands = blocks.lines().filter_map(|line| line.strip_prefix("$ "));
    commands
        .map(|line| {
            let line = line.split("   # ").next().unwrap().trim();
            line.trim_end_matches(" &").to_owned()
        })
        .collect()
}

/// The program takes each of its commands as it stands: with `--help` behind it, it reads the others' options first.
#[test]
fn every_command_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let stubs = format!(
        "set -o pipefail; revision=2; leadsman() {{ '{PROGRAM}' \"$@\" --help; }}; \
         cargo() {{ shift 3; leadsman \"$@\"; }}; kubectl() {{ cat; }}; "
    );
    let mut used = BTreeSet::new();
    for (name, text) in documents() {
        for command in commands(&text) {
            let program = command.split(' ').next().unwrap();
            if program == "leadsman" || command.starts_with("cargo run --release -- ") {
                let script = format!("{stubs}{command}");
                let output = run("bash", &["-c", &script], folder.path());
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{name}: {command}\n{said}");
                used.insert(command);
            }
        }
    }
    assert!(used.len() > 15, "{used:?}");
}

/// Those of the other page are carried out in a cluster, see tests/cluster/newcomer.rs.
#[test]
fn the_installation_in_the_readme_is_that_of_its_page() {
    let page = commands(&read("docs/install-kubernetes.md"));
    let readme = commands(&read("README.md"));
    let others = readme
        .iter()
        .filter(|command| !command.starts_with("cargo "));
    assert_eq!(others.clone().count(), 2);
    for command in others {
        assert!(page.contains(command), "{command}");
    }
}

/// The text between backticks.
fn words(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The rows of the tables of a part: their cells.
fn rows(part: &str) -> Vec<Vec<&str>> {
    let rows = part.lines().filter(|line| line.starts_with("| "));
    rows.map(|row| {
        let row = row.trim_start_matches("| ").trim_end_matches('|');
        row.split(" | ").map(str::trim).collect()
    })
    .collect()
}

/// Names of metrics: what stands in the sources as a whole text.
fn metrics_of_the_program() -> BTreeSet<String> {
    let name = Regex::new("\"(leadsman_[a-z_]+[a-z])\"").unwrap();
    let mut sources = Vec::new();
    files("src", &mut sources);
    sources.retain(|file| Path::new(file).extension().is_some_and(|end| end == "rs"));
    let texts: String = sources.iter().map(|file| read(file)).collect();
    let all: BTreeSet<String> = name
        .captures_iter(&texts)
        .map(|found| found[1].to_owned())
        .collect();
    let of_another = |name: &&String| {
        ["_bucket", "_count", "_sum"].iter().any(|end| {
            name.strip_suffix(end)
                .is_some_and(|name| all.contains(name))
        })
    };
    all.iter()
        .filter(|name| !of_another(name))
        .cloned()
        .collect()
}

#[test]
fn every_metric_is_in_its_page_with_its_labels() {
    let page = read("docs/reference/metrics.md");
    let program = metrics_of_the_program();
    let mut named = BTreeMap::new();
    for part in page.split("\n## ") {
        for row in rows(part) {
            for name in words(row[0])
                .into_iter()
                .filter(|name| program.contains(*name))
            {
                let is_new = named.insert(name, part).is_none();
                assert!(is_new, "{name} is there twice");
            }
        }
    }
    for name in &program {
        assert!(named.contains_key(name.as_str()), "{name} has no row");
    }
    let all = words(&page).into_iter();
    for name in all.filter(|word| word.starts_with("leadsman_")) {
        assert!(program.contains(name), "there is no metric {name}");
    }
    // Labels, of those metrics that have values in the snapshot or now.
    let label = Regex::new("([a-z]+)=\"").unwrap();
    let mut labels = 0;
    let pages = read("tests/snapshots/metrics.prom") + &metrics_now();
    for line in pages.lines().filter(|line| line.starts_with("leadsman_")) {
        let Some((name, rest)) = line.split_once('{') else {
            continue;
        };
        let whole = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|end| {
                name.strip_suffix(end)
                    .filter(|name| program.contains(*name))
            })
            .unwrap_or(name);
        for label in label.captures_iter(rest).filter(|found| &found[1] != "le") {
            let part = words(named[whole]);
            assert!(
                part.contains(&&label[1]),
                "{whole} has the label {}",
                &label[1]
            );
            labels += 1;
        }
    }
    assert!(labels > 300, "{labels}");
}

/// The metrics of a daemon that guards an embedded release.
fn metrics_now() -> String {
    const CONFIG: &str = "[serve]\nlisten = \"127.0.0.1:0\"\n\
        [[dependency]]\nname = \"d\"\nurl = \"tcp://127.0.0.1:1\"\n\
        [[release]]\nname = \"a\"\nnamespace = \"b\"\nembedded = \"no-history\"\n\
        objective = { availability = \"99%\" }\n\
        [[release.probe]]\nname = \"c\"\nurl = \"tcp://127.0.0.1:1\"\n";
    let leadsman = Leadsman::run(CONFIG, &[]);
    let mut page = String::new();
    until("the release is guarded", || {
        page = leadsman.get("/metrics").body;
        page.contains("\nleadsman_rollout_phase{")
    });
    page
}

/// Phases, outcomes, reasons and the like.
#[test]
fn every_value_of_a_label_is_explained() {
    let metrics = read("docs/reference/metrics.md");
    let decides = read("docs/how-it-decides.md");
    let value = Regex::new("(phase|outcome|end|mode|result|reason|window)=\"([^\"]+)\"").unwrap();
    let mut values = BTreeSet::new();
    for line in metrics_now().lines().filter(|line| !line.starts_with('#')) {
        for found in value.captures_iter(line) {
            // These are only counted to see how /probe and receivers are used.
            if !["leadsman_probe_requests_", "leadsman_messages_"]
                .iter()
                .any(|start| line.starts_with(start))
            {
                values.insert((found[1].to_owned(), found[2].to_owned()));
            }
        }
    }
    assert!(values.len() > 60, "{values:?}");
    for (label, value) in &values {
        let page = match label.as_str() {
            "outcome" => &decides,
            "phase" if !words(&metrics).contains(&value.as_str()) => &decides,
            _ => &metrics,
        };
        assert!(words(page).contains(&value.as_str()), "{label}: {value}");
    }
}

#[test]
fn every_command_is_in_its_page_with_its_options() {
    // These are said once, at the top.
    const OF_ALL: [&str; 4] = ["--log-format", "--log-level", "--help", "--version"];
    let page = read("docs/reference/cli.md");
    let here = Path::new(".");
    let help = |arguments: &[&str]| {
        let output = run(PROGRAM, arguments, here);
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let option = Regex::new(r"(?m)^ +(?:-\w, )?(--[a-z-]+)").unwrap();
    let variable = Regex::new(r"\[env: (\w+)=").unwrap();
    let written = Regex::new("`(--[a-z-]+)").unwrap();
    let all = help(&["--help"]);
    let (_, list) = all.split_once("\nCommands:\n").unwrap();
    let list = list.split("\n\n").next().unwrap();
    let mut known: BTreeSet<&str> = list
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    known.remove("help");
    for command in &known {
        let part = section(&page, &format!("leadsman {command}"))
            .unwrap_or_else(|| panic!("leadsman {command} has no part"));
        let help = help(&[command, "--help"]);
        let options: BTreeSet<&str> = option
            .captures_iter(&help)
            .map(|found| found.get(1).unwrap().as_str())
            .filter(|option| !OF_ALL.contains(option))
            .collect();
        let said: BTreeSet<&str> = written
            .captures_iter(part)
            .map(|found| found.get(1).unwrap().as_str())
            .collect();
        assert_eq!(said, options, "leadsman {command}");
        for found in variable.captures_iter(&help) {
            assert!(page.contains(&format!("`{}`", &found[1])), "{}", &found[1]);
        }
    }
    let parts = page
        .lines()
        .filter_map(|line| line.strip_prefix("## leadsman "));
    assert_eq!(parts.collect::<BTreeSet<_>>(), known);
}

/// Where a key stands in the page: the heading of its part, and its name there. Nothing for what a row says as a whole.
fn place(path: &[&str]) -> Option<(String, String)> {
    const WHOLE: [&str; 10] = [
        "headers",
        "json",
        "header_matches",
        "header_not_matches",
        "labels",
        "match",
        "redirects",
        "migrations",
        "dialogue",
        "control",
    ];
    let (key, tables) = path.split_last()?;
    if tables.iter().any(|table| WHOLE.contains(table)) {
        return None;
    }
    let heading = match tables {
        [] if ["release", "module", "dependency"].contains(key) => return None,
        [] if ["serve", "self_check", "state", "lease", "kubernetes"].contains(key) => return None,
        [] if ["alertmanager", "slack", "webhook"].contains(key) => return None,
        [] => "Top level".to_owned(),
        ["serve", "tls"] => "`[serve.tls]`".to_owned(),
        [.., "tls"] => "`tls`".to_owned(),
        [.., "objective"] => "`objective`".to_owned(),
        ["release", "probe", "expect"] => "`[release.probe.expect]`".to_owned(),
        ["release", "probe"] | ["dependency"] => "`[[release.probe]]`".to_owned(),
        ["module"] if !["name", "kind", "timeout"].contains(key) => {
            "`[[release.probe]]`".to_owned()
        }
        ["release" | "module"] | ["release", "alert"] => format!("`[[{}]]`", tables.join(".")),
        _ => format!("`[{}]`", tables.join(".")),
    };
    Some((heading, (*key).to_owned()))
}

fn keys<'a>(
    table: &'a toml::Table,
    path: &mut Vec<&'a str>,
    found: &mut BTreeSet<(String, String)>,
) {
    for (key, value) in table {
        path.push(key);
        found.extend(place(path));
        match value {
            toml::Value::Table(table) => keys(table, path, found),
            toml::Value::Array(list) => {
                for table in list.iter().filter_map(toml::Value::as_table) {
                    keys(table, path, found);
                }
            }
            _ => {}
        }
        path.pop();
    }
}

/// The first and the second cell of the row of a key.
fn row_of<'a>(page: &'a str, heading: &str, key: &str) -> (Vec<&'a str>, &'a str) {
    let part = section(page, heading).unwrap_or_else(|| panic!("there is no part {heading}"));
    let found = rows(part)
        .into_iter()
        .find(|row| words(row[0]).contains(&key));
    let row = found.unwrap_or_else(|| panic!("{heading} has no row for {key}"));
    (words(row[0]), row[1])
}

#[test]
fn every_key_is_in_its_page() {
    let page = read("docs/reference/configuration.md");
    let everything: toml::Table = read("tests/config/everything.toml").parse().unwrap();
    let mut found = BTreeSet::new();
    keys(&everything, &mut Vec::new(), &mut found);
    assert!(found.len() > 130, "{}", found.len());
    for (heading, key) in &found {
        row_of(&page, heading, key);
    }
    // No key is there that the program does not know; these are in no file that is right as a whole.
    let further = ["select", "spread", "url_file"];
    let all: BTreeSet<&str> = found.iter().map(|(_, key)| key.as_str()).collect();
    let parts = page
        .split("\n## ")
        .skip_while(|part| !part.starts_with("Top level"));
    for row in parts.flat_map(rows) {
        for key in words(row[0]) {
            assert!(all.contains(key) || further.contains(&key), "{key}");
        }
    }
}

#[test]
fn every_default_is_as_the_page_says() {
    const TABLES: &str = r#"
        kubernetes = {}
        lease = {}
        state = { config_map = "a" }
        alertmanager = { urls = ["http://a:9093"] }
        slack = { url_file = "/a" }
        webhook = { url = "http://a" }
        serve = { token_file = "/a" }
        [[module]]
        name = "a"
        [[release]]
        name = "a"
        namespace = "b"
        base_url = "http://a"
        objective = { availability = "99%" }
        alert = [{ match = { alertname = "a" } }]
        requests = { prometheus = "http://a", errors = "increase(a[$interval])", total = "increase(a[$interval])" }
        [[release.probe]]
        name = "a"
        path = "/"
        [[release.probe]]
        name = "b"
        url = "tcp://a:1"
    "#;
    const MIB: u64 = 1024 * 1024;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("probes.toml"), TABLES).unwrap();
    let output = run(PROGRAM, &["check", "--no-files", "--print"], folder.path());
    let printed = String::from_utf8(output.stdout).unwrap();
    let page = read("docs/reference/configuration.md");
    let mut count = 0;
    for line in printed
        .lines()
        .filter_map(|line| line.strip_suffix("# default"))
    {
        let (path, value) = line.split_once(" = ").unwrap();
        // Names stand behind these.
        let mut path: Vec<&str> = path.trim().split('.').collect();
        for table in ["release", "probe", "alert", "module"] {
            if let Some(at) = path.iter().position(|part| *part == table) {
                path.remove(at + 1);
            }
        }
        // A probe has those of its release.
        let is_inherited = path[..] != ["release", path[path.len() - 1]]
            && ["interval", "timeout", "window"].contains(&path[path.len() - 1])
            && path.contains(&"probe");
        let Some((heading, key)) = place(&path).filter(|_| !is_inherited) else {
            continue;
        };
        let value = match value.trim().parse::<u64>() {
            Ok(bytes) if bytes >= MIB && bytes % MIB == 0 => format!("{} MiB", bytes / MIB),
            _ => value.trim().to_owned(),
        };
        let (keys, defaults) = row_of(&page, &heading, &key);
        let at = keys.iter().position(|found| *found == key).unwrap();
        let default = defaults.split(", ").nth(at).unwrap_or_default();
        assert_eq!(default.trim_matches('`'), value, "{heading} {key}");
        count += 1;
    }
    assert!(count > 50, "{count}\n{printed}");
}

#[test]
fn every_route_is_in_its_page() {
    let page = read("docs/reference/http-api.md");
    let table = rows(&page).into_iter().filter_map(|row| {
        let (method, path) = words(row[0]).first()?.split_once(' ')?;
        let route = (method, path, row.get(1) == Some(&"protected"));
        path.starts_with('/').then_some(route)
    });
    let routes: BTreeSet<_> = ROUTES.iter().copied().collect();
    assert_eq!(table.collect::<BTreeSet<_>>(), routes);
}

#[test]
fn every_alert_has_its_part_of_the_runbook() {
    let runbook = read("docs/runbook.md");
    let rules = read("helm/leadsman/files/rules.yaml");
    let of_rules = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let own = leadsman::core::alerts::AlertKind::ALL
        .iter()
        .map(|kind| kind.name());
    let alerts: BTreeSet<&str> = of_rules.chain(own.clone()).collect();
    let parts = runbook.lines().filter_map(|line| line.strip_prefix("## "));
    assert_eq!(parts.collect::<BTreeSet<_>>(), alerts);
    for alert in alerts {
        let part = section(&runbook, alert).unwrap();
        for what in ["- **Meaning:** ", "- **Look at:** ", "- **Do:** "] {
            assert!(part.contains(what), "{alert}: {what}");
        }
    }
    for kind in leadsman::core::alerts::AlertKind::ALL {
        let part = section(&runbook, kind.name()).unwrap();
        let first = format!("\n{} · {}\n", kind.priority(), kind.severity().as_str());
        assert!(part.starts_with(&first), "{}: {first}", kind.name());
        let table = read("docs/alerting.md");
        assert!(
            table.contains(&format!("`{}`", kind.name())),
            "{}",
            kind.name()
        );
    }
}
