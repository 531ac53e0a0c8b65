//! Manifests as charts render them, and as they should not.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const APP: &str = "\
---
# Source: shop/templates/web.yaml
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  strategy: {type: Recreate}
  template:
    spec:
      initContainers:
        - {name: migrate, image: 'shop:2'}
      containers:
        - name: web
          image: shop:2
          ports:
            - {name: http, containerPort: 8080}
            - {containerPort: 9090}
        - {name: side, image: proxy}
--- \t
# nothing but a comment
---
# Source: shop/templates/cm.yaml
apiVersion: v1
kind: ConfigMap
metadata: {name: web, namespace: other}
data:
  text: |
    a
      ---
    b
";

fn one(text: &str) -> Value {
    let text = format!("apiVersion: v1\nkind: A\nmetadata: {{name: a}}\nx: {text}\n");
    objects(&text).unwrap()[0].body["x"].clone()
}

fn refused(text: &str) -> ManifestError {
    objects(text).unwrap_err()
}

#[test]
fn objects_come_in_order_with_what_leadsman_asks() {
    let found = objects(APP).unwrap();
    let names: Vec<_> = found
        .iter()
        .map(|o| (o.kind.as_str(), o.name.as_str(), o.namespace.as_deref()))
        .collect();
    assert_eq!(
        names,
        [
            ("Deployment", "web", None),
            ("ConfigMap", "web", Some("other"))
        ]
    );
    let web = &found[0];
    assert!(web.is_workload() && web.stops_first());
    assert_eq!(web.images(), ["proxy", "shop:2"]);
    assert_eq!(
        (web.port("http"), web.port("8080"), web.port("9090")),
        (Some(8080), Some(8080), Some(9090))
    );
    assert_eq!((web.port("https"), web.port("1")), (None, None));
    let map = &found[1];
    assert!(!map.is_workload() && !map.stops_first() && map.images().is_empty());
    assert_eq!(map.body["data"]["text"], "a\n  ---\nb\n");
}

#[test]
fn scalars_are_those_of_yaml_1_1_as_helm_reads_them() {
    for (text, value) in [
        ("0644", json!(420)),
        ("0755", json!(493)),
        ("'0644'", json!("0644")),
        ("0o17", json!(15)),
        ("0x1f", json!(31)),
        ("0b11", json!(3)),
        ("1_000", json!(1000)),
        ("+5", json!(5)),
        ("yes", json!(true)),
        ("on", json!(true)),
        ("off", json!(false)),
        ("~", json!(null)),
        ("", json!(null)),
        ("2001-01-01", json!("2001-01-01")),
        ("\"on\"", json!("on")),
        ("-0644", json!(-420)),
        ("+0644", json!(420)),
        ("-0x1f", json!(-31)),
        ("0_7", json!(7)),
        ("00", json!(0)),
        ("-0", json!(0)),
        // No octal digits, so it is a fraction, of the same value.
        ("089", json!(89.0)),
        ("-089", json!(-89.0)),
        ("0b102", json!("0b102")),
        ("0xg", json!("0xg")),
        ("1:30", json!("1:30")),
        (
            "18446744073709551615",
            json!(18_446_744_073_709_551_615_u64),
        ),
        ("!!str 0644", json!("0644")),
        ("y", json!(true)),
    ] {
        assert_eq!(one(text), value, "{text}");
    }
}

#[test]
fn what_pods_read_is_known_wherever_it_stands() {
    let text = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      volumes:
        - {name: a, configMap: {name: of-volume}}
        - {name: b, secret: {secretName: of-volume}}
        - {name: c, projected: {sources: [{configMap: {name: of-part}}, {secret: {name: of-part}}]}}
        - {name: d, emptyDir: {}}
      initContainers:
        - {name: first, envFrom: [{configMapRef: {name: whole}}]}
      containers:
        - name: web
          envFrom: [{secretRef: {name: whole}}]
          env:
            - {name: A, value: plain}
            - {name: B, valueFrom: {configMapKeyRef: {name: one, key: b}}}
            - {name: C, valueFrom: {secretKeyRef: {name: one, key: c}}}
";
    let found = objects(text).unwrap();
    assert_eq!(
        found[0].sources(),
        [
            ("ConfigMap", "of-volume"),
            ("Secret", "of-volume"),
            ("ConfigMap", "of-part"),
            ("Secret", "of-part"),
            ("ConfigMap", "whole"),
            ("Secret", "whole"),
            ("ConfigMap", "one"),
            ("Secret", "one"),
        ]
    );
    assert!(objects(APP).unwrap()[1].sources().is_empty());
}

#[test]
fn anchors_and_merges_are_carried_out() {
    for (text, value) in [
        ("[&a 1, *a]", json!([1, 1])),
        (
            "{a: &x {p: 1, q: 2}, b: {<<: *x, q: 3}}",
            json!({"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
        ),
        // Of several the first one counts.
        (
            "{a: &x {p: 1}, b: &y {p: 2, r: 1}, c: {<<: [*x, *y]}}",
            json!({"a": {"p": 1}, "b": {"p": 2, "r": 1}, "c": {"p": 1, "r": 1}}),
        ),
        ("{'<<': 1}", json!({"<<": 1})),
    ] {
        assert_eq!(one(text), value, "{text}");
    }
}

#[test]
fn lists_are_taken_apart() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: A, metadata: {name: a}}\n\
                - {apiVersion: v1, kind: B, metadata: {name: b}}\n";
    let kinds: Vec<String> = objects(text).unwrap().into_iter().map(|o| o.kind).collect();
    assert_eq!(kinds, ["A", "B"]);
    let nested = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List, items: []}\n";
    assert_eq!(refused(nested).why, "has a list inside a list");
    assert_eq!(objects("").unwrap(), []);
    assert_eq!(objects("---\n---\n# a\n").unwrap(), []);
}

#[test]
fn what_is_no_manifest_is_refused_with_its_place_and_without_its_text() {
    let broken = refused(
        "---\n# Source: shop/templates/a.yaml\napiVersion: v1\nkind: A\nmetadata: {name: a}\n---\n\
                          # Source: shop/templates/b.yaml\nkind: [s3cret\n",
    );
    assert_eq!(
        (broken.document, broken.source_file.as_str()),
        (2, "shop/templates/b.yaml")
    );
    assert!(
        broken.to_string().contains("not YAML that can be read"),
        "{broken}"
    );
    assert!(!broken.to_string().contains("s3cret"), "{broken}");
    for (text, why) in [
        ("just a text", "has no kind"),
        ("kind: A", "has no apiVersion"),
        ("apiVersion: v1\nkind: A", "has no name"),
        (
            "apiVersion: v1\nkind: A\nmetadata: {name: ''}",
            "has no name",
        ),
        ("apiVersion: v1\nkind: 3", "has no kind"),
        ("[1, 2]", "has no kind"),
    ] {
        assert_eq!(refused(text).why, why, "{text}");
    }
    let unclosed = "apiVersion: v1\nkind: A\nmetadata: {name: a";
    assert!(
        refused(unclosed).why.contains("line"),
        "{}",
        refused(unclosed)
    );
}

#[test]
fn of_a_key_that_stands_twice_the_last_counts_as_with_helm() {
    let twice = "apiVersion: v1\nkind: A\nkind: B\nmetadata: {name: a, name: b}\ndata: {x: {y: 1}, x: {z: 2}}";
    let found = objects(twice).unwrap();
    assert_eq!((found[0].kind.as_str(), found[0].name.as_str()), ("B", "b"));
    assert_eq!(found[0].body["data"]["x"], json!({"z": 2}));
}

#[test]
fn a_manifest_that_explodes_is_refused() {
    let deep = format!("x: {}", "[".repeat(10_000));
    assert!(refused(&deep).why.starts_with("is not YAML"));
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{below}]\n");
    }
    assert!(refused(&laughs).why.starts_with("is not YAML"));
    let many = "---\napiVersion: v1\nkind: A\nmetadata: {name: a}\n".repeat(MAX_DOCUMENTS + 1);
    assert!(refused(&many).why.contains("more than"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(?s).{0,300}") {
        let _ = objects(&text);
    }

    #[test]
    fn a_manifest_with_a_piece_cut_out_is_read_or_refused(from in 0_usize..700, long in 0_usize..60) {
        let mut text: Vec<char> = APP.chars().collect();
        let from = from.min(text.len());
        let to = (from + long).min(text.len());
        text.drain(from..to);
        if let Ok(objects) = objects(&text.into_iter().collect::<String>()) {
            prop_assert!(objects.len() <= 2);
        }
    }
}
