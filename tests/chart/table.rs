//! The table of values in the README of the chart is made of values.yaml.

use serde_json::Value;

use crate::chart::{CHART, read, root};

const HEADING: &str = "## Values\n";

/// One row for each key with a line `# -- text` above it; a block without such a line is one row for each of its keys.
fn table() -> String {
    let text = read(&format!("{CHART}/values.yaml"));
    let values: Value = serde_saphyr::from_str(&text).unwrap();
    let mut rows = String::from("\n| value | default | |\n|---|---|---|\n");
    let mut path: Vec<(usize, &str)> = Vec::new();
    let mut about = None;
    // What stands deeper than this is part of a row.
    let mut within = usize::MAX;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let bare = line.trim_start();
        let depth = line.len() - bare.len();
        if depth > within {
            continue;
        }
        within = usize::MAX;
        if let Some(text) = bare.strip_prefix("# -- ") {
            about = Some(text);
        }
        let Some((key, _)) = bare.split_once(':').filter(|_| !bare.starts_with('#')) else {
            continue;
        };
        path.retain(|(above, _)| *above < depth);
        path.push((depth, key));
        let keys: Vec<&str> = path.iter().map(|(_, key)| *key).collect();
        let value = values.pointer(&format!("/{}", keys.join("/"))).unwrap();
        let Some(about) = about.take() else {
            let has_keys = value.as_object().is_some_and(|map| !map.is_empty());
            assert!(has_keys, "{} has no line `# -- …`", keys.join("."));
            continue;
        };
        within = depth;
        let shown = match value {
            Value::Object(map) if !map.is_empty() => "see values.yaml".to_owned(),
            Value::Array(list) if !list.is_empty() => "see values.yaml".to_owned(),
            Value::String(text) if text.contains('\n') => "see values.yaml".to_owned(),
            short => format!("`{short}`"),
        };
        rows += &format!("| `{}` | {shown} | {about} |\n", keys.join("."));
    }
    assert!(rows.lines().count() > 90);
    rows
}

/// `UPDATE_SNAPSHOTS=1` writes it.
#[test]
fn every_value_is_in_the_readme_with_its_default() {
    let name = format!("{CHART}/README.md");
    let readme = read(&name);
    let (before, rest) = readme.split_once(HEADING).unwrap();
    let after = rest.find("\n## ").map_or("", |at| &rest[at..]);
    let wanted = format!("{before}{HEADING}{}{after}", table());
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(root().join(name), wanted).unwrap();
        return;
    }
    assert!(
        readme == wanted,
        "the table of {name} is not that of values.yaml; UPDATE_SNAPSHOTS=1 writes it"
    );
}
