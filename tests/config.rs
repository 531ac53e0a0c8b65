//! The reader of the configuration against everything that is not one: it may refuse, and must say where and why within
//! bounds; it may not panic, hang, or show a secret.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leadsman::config::settings::{Auth, ProbeKind, Secret};
use leadsman::config::{self, Diagnostics, Loaded, SourceLocation, Sources};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use tempfile::TempDir;

/// No complaint is longer than this, however many mistakes there are: a log line and a terminal must bear it.
const LONGEST_COMPLAINT: usize = 256 * 1024;

const EVERYTHING: &str = include_str!("config/everything.toml");

/// What never may be shown.
const SECRET: &str = "hunter2";

/// Files in a folder that goes away with it.
struct Files {
    _folder: TempDir,
    paths: Vec<PathBuf>,
    texts: Vec<Vec<u8>>,
}

fn files(texts: &[&[u8]]) -> Files {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let path = folder.path().join(format!("{index}.toml"));
        fs::write(&path, text).unwrap();
        paths.push(path);
    }
    Files {
        _folder: folder,
        paths,
        texts: texts.iter().map(|text| text.to_vec()).collect(),
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Loads, and holds what must hold of any outcome.
fn load(
    files: &Files,
    environment: &[(String, String)],
    flags: &[(String, String)],
) -> Result<Loaded, Diagnostics> {
    let sources = Sources {
        discovered: Vec::new(),
        files: files.paths.clone(),
        environment: environment.to_vec(),
        flags: flags.to_vec(),
    };
    let outcome = config::load(&sources);
    match &outcome {
        Err(diagnostics) => well_formed(diagnostics, files),
        Ok(loaded) => {
            assert!(loaded.settings.max_in_flight > 0);
            for probe in loaded.settings.probes() {
                assert!(probe.interval >= Duration::from_millis(100), "{}", probe.id);
                assert!(!probe.timeout.is_zero() && probe.timeout <= Duration::from_secs(60));
                assert!(probe.window >= Duration::from_secs(10));
            }
            for release in &loaded.settings.releases {
                assert!(!release.probes.is_empty(), "{} asks nothing", release.name);
            }
        }
    }
    outcome
}

/// At least one mistake; every place is inside its file; the text is bounded.
fn well_formed(diagnostics: &Diagnostics, files: &Files) {
    assert!(diagnostics.count() > 0 && diagnostics.iter().count() == diagnostics.count());
    // Finding a line takes as long as the file is; the first few hundred say enough about a file with a million.
    for diagnostic in diagnostics.iter().take(300) {
        assert!(!diagnostic.message.is_empty());
        let SourceLocation::File { file, .. } = &diagnostic.location else {
            assert_eq!(diagnostics.line_and_column(diagnostic), None);
            continue;
        };
        let Some((line, column)) = diagnostics.line_and_column(diagnostic) else {
            panic!("{diagnostic:?} has no line");
        };
        let text = String::from_utf8(files.texts[*file].clone()).unwrap();
        let shown = text.split('\n').nth(line - 1);
        let shown = shown.unwrap_or_else(|| panic!("{diagnostic:?}: there is no line {line}"));
        let most = shown.chars().count() + 1;
        assert!(
            (1..=most).contains(&column),
            "{diagnostic:?}: column {column} of {most}"
        );
    }
    for colours in [false, true] {
        let text = diagnostics.render(colours);
        assert!(text.len() < LONGEST_COMPLAINT, "{} bytes", text.len());
    }
}

#[track_caller]
fn refused(texts: &[&[u8]], why: &str) -> String {
    let diagnostics = load(&files(texts), &[], &[]).map(|_| ()).unwrap_err();
    let text = diagnostics.render(false);
    assert!(text.contains(why), "{text}");
    text
}

/// What stands in the shipped file for whoever writes the addresses.
#[test]
fn the_shipped_dependencies_are_right_once_they_are_not_comments() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("probes.toml")).unwrap();
    let (above, below) = text.split_at(text.find("# [[dependency]]").unwrap());
    let text = above.replace("# needs", "needs") + &below.replace("# ", "").replace('#', "");
    let loaded = load(&files(&[text.as_bytes()]), &[], &[]).unwrap();
    let names = loaded.settings.dependencies.iter();
    let names: Vec<&str> = names.map(|one| one.id.probe.as_str()).collect();
    assert_eq!(names, ["postgres", "redis"]);
    assert!(
        !loaded
            .hints
            .iter()
            .any(|hint| hint.contains("no probe needs"))
    );
    let needs = loaded.settings.releases[0].needs();
    let needs: Vec<String> = needs.iter().map(ToString::to_string).collect();
    assert_eq!(needs, names);
}

#[test]
fn a_file_with_every_key_is_right() {
    let loaded = load(&files(&[EVERYTHING.as_bytes()]), &[], &[]).unwrap();
    assert_eq!(loaded.settings.releases.len(), 2);
    assert_eq!(loaded.settings.probes().count(), 5);
}

#[test]
fn what_lies_at_the_top_level_is_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (overlay, namespace) in [
        (None, "mykadoo-production"),
        (Some("helm/overlays/probes.staging.toml"), "mykadoo-staging"),
        (
            Some("helm/overlays/probes.production.toml"),
            "mykadoo-production",
        ),
    ] {
        let mut paths = vec![root.join("probes.toml")];
        paths.extend(overlay.map(|overlay| root.join(overlay)));
        let sources = Sources {
            discovered: Vec::new(),
            files: paths,
            ..Sources::default()
        };
        let loaded = config::load(&sources).unwrap_or_else(|diagnostics| panic!("{diagnostics}"));
        let release = &loaded.settings.releases[0];
        assert_eq!(release.namespace.as_str(), namespace);
        let names: Vec<_> = release
            .probes
            .iter()
            .map(|probe| probe.id.probe.as_str())
            .collect();
        assert_eq!(names, ["api", "db", "redis", "web"]);
    }
}

#[test]
fn a_file_that_cannot_be_one_is_refused_after_a_bounded_read() {
    let began = worked();
    refused(&[&vec![b'['; 10 * 1024 * 1024]], "larger than 1 MiB");
    refused(&[b"a = \"\xff\""], "not UTF-8");
    refused(&[b""], "nothing to probe");
    refused(&[&b"[".repeat(1_000_000)], "not TOML");
    refused(&[&b"a.".repeat(400_000)], "not TOML");
    refused(
        &[format!("a = {}", "[".repeat(500_000)).as_bytes()],
        "not TOML",
    );
    refused(
        &[format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes()],
        "mistake",
    );
    refused(
        &[format!("{}b = 1", "a.".repeat(50)).as_bytes()],
        "nested too deeply",
    );
    refused(&["x = 1\n".repeat(150_000).as_bytes()], "more");
    let many = (0..60_000).fold(String::new(), |text, index| {
        text + &format!("k{index} = 1\n")
    });
    refused(&[many.as_bytes()], "more");
    // Ten times what it takes on a slow machine without optimisation; other work on the machine does not count.
    let took = worked().saturating_sub(began);
    assert!(took < Duration::from_secs(60), "{took:?}");
}

/// What this thread has worked so far.
fn worked() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap()
}

#[test]
fn a_path_that_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (path, why) in [
        (folder.path().to_owned(), "is a directory"),
        (folder.path().join("none.toml"), "cannot be read"),
    ] {
        let sources = Sources {
            discovered: Vec::new(),
            files: vec![path.clone()],
            ..Sources::default()
        };
        let text = config::load(&sources)
            .map(|_| ())
            .unwrap_err()
            .render(false);
        assert!(
            text.contains(why) && text.contains(&path.display().to_string()),
            "{text}"
        );
    }
}

#[test]
fn a_secret_in_a_file_or_flag_is_refused_unseen() {
    for line in [
        "password = \"S\"\nusername = \"u\"",
        "bearer_token = \"S\"",
        "headers = { Authorization = \"Bearer S\" }",
        "headers = { cookie = \"S\" }",
        "proxy = \"http://u:S@127.0.0.1:1\"",
        "url = \"http://u:S@127.0.0.1/\"",
        "url = \"http://S@127.0.0.1/\"",
        "password = 3 # S",
        "bearer_token = [\"S\"]",
    ] {
        let url = if line.starts_with("url") {
            ""
        } else {
            "url = \"http://127.0.0.1/\"\n"
        };
        let line = line.replace('S', SECRET);
        let text = format!(
            "[[release]]\nname = \"a\"\nnamespace = \"b\"\n[[release.probe]]\nname = \"p\"\n{url}{line}\n"
        );
        let diagnostics = load(&files(&[text.as_bytes()]), &[], &[])
            .map(|_| ())
            .unwrap_err();
        for colours in [false, true] {
            let said = diagnostics.render(colours);
            assert!(!said.contains(SECRET), "{said}");
        }
    }
}

#[test]
fn a_secret_from_the_environment_is_used_unseen() {
    let environment = pairs(&[(
        "LEADSMAN__RELEASE__SHOP__PROBE__TOKEN__BEARER_TOKEN",
        SECRET,
    )]);
    let text = EVERYTHING.replace("bearer_token_file = \"/run/secrets/token\"\n", "");
    let loaded = load(&files(&[text.as_bytes()]), &environment, &[]).unwrap();
    let token = loaded
        .settings
        .probes()
        .find(|probe| probe.id.probe.as_str() == "token")
        .unwrap();
    let ProbeKind::Http(http) = &token.kind else {
        panic!("asked by tcp");
    };
    assert_eq!(
        http.auth,
        Some(Auth::Bearer(Secret::Value(SECRET.to_owned())))
    );
    assert!(!format!("{loaded:?}").contains(SECRET));
}

/// One change of a text that was right.
#[derive(Debug, Clone)]
enum Change {
    Insert(Index, String),
    Remove(Index, usize),
    RemoveLine(Index),
    DoubleLine(Index, Index),
    Value(Index, String),
    Cut(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let bits = select(vec![
        "\"",
        "'",
        "[",
        "]",
        "{",
        "}",
        "=",
        "\n",
        "#",
        ".",
        "\"\"\"",
        "\\",
        "\u{0}",
        "é",
        "\u{1b}[31m",
        "\r",
        "\u{feff}",
    ]);
    prop_oneof![
        (any::<Index>(), bits).prop_map(|(at, bit)| Change::Insert(at, bit.to_owned())),
        (any::<Index>(), any::<String>()).prop_map(|(at, text)| Change::Insert(at, text)),
        (any::<Index>(), 1..20_usize).prop_map(|(at, many)| Change::Remove(at, many)),
        any::<Index>().prop_map(Change::RemoveLine),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::DoubleLine(from, to)),
        (any::<Index>(), value()).prop_map(|(at, value)| Change::Value(at, value)),
        any::<Index>().prop_map(Change::Cut),
    ]
}

/// TOML values that are right somewhere.
fn value() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        select(vec![
            "true",
            "0",
            "-1",
            "9223372036854775807",
            "99999999999999999999",
            "1e308",
            "nan",
            "-inf",
            "0x10",
            "1979-05-27",
            "\"\"",
            "\"0s\"",
            "\"5s\"",
            "\"100 years\"",
            "\"1 furlong\"",
            "\"64 KiB\"",
            "\"99999999999 MiB\"",
            "\"http://127.0.0.1/\"",
            "\"tcp://127.0.0.1\"",
            "\"ftp://a/\"",
            "\"://\"",
            "\"[\"",
            "\"$[\"",
            "\"299-200\"",
            "\"[::]:1\"",
            "\"\\u0000\"",
            "[]",
            "{}",
        ])
        .prop_map(str::to_owned),
        any::<i64>().prop_map(|number| number.to_string()),
        // What Rust escapes as \u{…} is no TOML, which is as good.
        any::<String>().prop_map(|text| format!("{text:?}")),
    ];
    scalar.prop_recursive(3, 12, 4, |inner| {
        let keys = select(vec![
            "name", "id", "max", "gt", "equals", "/a", "$.b", "X-A", "send", "a.b", "url",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::btree_map(keys, inner, 0..4).prop_map(|map| {
                let entries: Vec<_> = map
                    .iter()
                    .map(|(key, value)| format!("\"{key}\" = {value}"))
                    .collect();
                format!("{{ {} }}", entries.join(", "))
            }),
        ]
    })
}

fn changed(text: &str, changes: &[Change]) -> String {
    let mut text = text.to_owned();
    for change in changes {
        let place = |index: &Index, text: &str| {
            let mut at = index.index(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        match change {
            Change::Insert(at, bit) => {
                let at = place(at, &text);
                text.insert_str(at, bit);
                continue;
            }
            Change::Remove(at, many) => {
                let at = place(at, &text);
                text = text
                    .chars()
                    .enumerate()
                    .filter(|(index, _)| !(at..at + many).contains(index))
                    .map(|(_, c)| c)
                    .collect();
                continue;
            }
            Change::Cut(at) => {
                text.truncate(place(at, &text));
                continue;
            }
            Change::RemoveLine(at) => {
                lines.remove(at.index(lines.len()));
            }
            Change::DoubleLine(from, to) => {
                let line = lines[from.index(lines.len())].clone();
                lines.insert(to.index(lines.len()), line);
            }
            Change::Value(at, value) => {
                let with_value: Vec<usize> = (0..lines.len())
                    .filter(|line| lines[*line].contains(" = "))
                    .collect();
                if !with_value.is_empty() {
                    let line = &mut lines[with_value[at.index(with_value.len())]];
                    let key = line.split(" = ").next().unwrap_or("").to_owned();
                    *line = format!("{key} = {value}");
                }
            }
        }
        text = lines.join("\n");
    }
    text
}

fn variable() -> impl Strategy<Value = (String, String)> {
    let part = prop_oneof![
        select(vec![
            "RELEASE",
            "SHOP",
            "SHOP_STAGING",
            "PROBE",
            "API",
            "TOKEN",
            "MODULE",
            "HTTP_POST",
            "SERVE",
            "LISTEN",
            "TLS",
            "EXPECT",
            "STATUS",
            "HEADERS",
            "TIMEOUT",
            "URL",
            "DIALOGUE",
            "DOUBT",
            "CONTROL",
            "MAX_IN_FLIGHT",
            "",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    let texts = prop_oneof![value(), any::<String>(), "[0-9a-z]{0,5}"];
    (prop::collection::vec(part, 0..6), texts)
        .prop_map(|(parts, text)| (format!("LEADSMAN__{}", parts.join("__")), text))
}

fn flag() -> impl Strategy<Value = (String, String)> {
    variable().prop_map(|(name, text)| {
        let path = name.trim_start_matches("LEADSMAN__").to_lowercase();
        (
            path.replace("__", ".")
                .replace("shop_staging", "shop-staging"),
            text,
        )
    })
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = load(&files(&[&bytes]), &[], &[]);
    }

    #[test]
    fn any_text_is_answered(text in any::<String>(), under in select(vec!["", "[[release]]\n", "[serve]\n", "a = "])) {
        let _ = load(&files(&[format!("{under}{text}").as_bytes()]), &[], &[]);
    }

    #[test]
    fn a_file_that_was_changed_is_answered(changes in prop::collection::vec(change(), 1..6)) {
        let text = changed(EVERYTHING, &changes);
        let _ = load(&files(&[text.as_bytes()]), &[], &[]);
    }

    #[test]
    fn any_value_for_any_key_is_answered(
        values in prop::collection::vec((any::<Index>(), value()), 1..4),
    ) {
        let changes: Vec<_> = values.into_iter().map(|(at, value)| Change::Value(at, value)).collect();
        let text = changed(EVERYTHING, &changes);
        let _ = load(&files(&[text.as_bytes()]), &[], &[]);
    }

    #[test]
    fn any_overlay_is_answered(
        first in prop::collection::vec(change(), 0..2),
        second in prop::collection::vec(change(), 1..4),
    ) {
        let texts = [changed(EVERYTHING, &first), changed(EVERYTHING, &second)];
        let _ = load(&files(&[texts[0].as_bytes(), texts[1].as_bytes()]), &[], &[]);
    }

    #[test]
    fn any_variable_and_any_flag_is_answered(
        variables in prop::collection::vec(variable(), 0..3),
        flags in prop::collection::vec(flag(), 0..3),
    ) {
        let _ = load(&files(&[EVERYTHING.as_bytes()]), &variables, &flags);
    }

    #[test]
    fn an_overlay_of_the_same_changes_nothing(times in 1..4_usize) {
        let once = load(&files(&[EVERYTHING.as_bytes()]), &[], &[]).unwrap();
        let again = load(&files(&vec![EVERYTHING.as_bytes(); times]), &[], &[]).unwrap();
        let in_force = |loaded: &Loaded| -> BTreeSet<(String, String)> {
            let pairs = loaded.in_force.iter();
            pairs.map(|setting| (setting.path.clone(), setting.value.clone())).collect()
        };
        prop_assert_eq!(in_force(&once), in_force(&again));
        let ids = |loaded: &Loaded| -> Vec<String> {
            loaded.settings.probes().map(|probe| probe.id.to_string()).collect()
        };
        prop_assert_eq!(ids(&once), ids(&again));
    }
}
