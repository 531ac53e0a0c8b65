#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use base64::Engine as _;

use super::*;
use crate::helm::record;

fn record(manifest: &str, hooks: &Value) -> HelmRecord {
    let json = json!({"name": "web", "version": 1, "manifest": manifest, "hooks": hooks});
    let payload = base64::engine::general_purpose::STANDARD.encode(json.to_string());
    record::decode("sh.helm.release.v1.web.v1", payload.as_bytes()).unwrap()
}

fn object(kind: &str, name: &str, more: &str) -> String {
    format!("---\napiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\n{more}\n")
}

fn planned(bad: &HelmRecord, target: &HelmRecord) -> Vec<DryRunStep> {
    let read = |record: &HelmRecord| manifest::objects(&record.manifest).unwrap();
    let objects = [read(bad), read(target), rbac::rollback_hooks(target)];
    steps(objects, &ApiScope::built_in("shop"), &|object| {
        marked(object, "web", "shop")
    })
}

#[test]
fn what_helm_writes_creates_and_deletes_is_tried() {
    let workload =
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 1}\n";
    let hook = json!([
        {"name": "before", "kind": "Job", "events": ["pre-rollback"], "manifest": object("Pod", "before", "")},
        {"name": "other", "kind": "Job", "events": ["pre-upgrade"], "manifest": object("Pod", "other", "")},
    ]);
    let bad = object("ConfigMap", "a", "data: {x: '2'}") + &object("ConfigMap", "gone", "");
    let target =
        object("ConfigMap", "a", "data: {x: '1'}") + &object("Secret", "new", "") + workload;
    let found = planned(&record(&bad, &json!([])), &record(&target, &hook));
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|step| {
            let what = match &step.what {
                DryRunVerb::Written { was: Some(_) } => "changed",
                DryRunVerb::Written { was: None } => "made",
                DryRunVerb::Hook => "hook",
                DryRunVerb::Deleted => "deleted",
            };
            (&*step.object.name, what)
        })
        .collect();
    let expected = [
        ("web", "made"),
        ("before", "hook"),
        ("a", "changed"),
        ("new", "made"),
        ("gone", "deleted"),
    ];
    assert_eq!(found, expected);
}

/// Policies ask for labels, and no manifest has those that helm adds.
#[test]
fn an_object_is_tried_with_the_marks_that_helm_adds_and_a_hook_without() {
    let target = object("ConfigMap", "a", "");
    let hook = json!([{"name": "b", "kind": "Pod", "events": ["post-rollback"], "manifest": object("Pod", "b", "")}]);
    let steps = planned(&record("", &json!([])), &record(&target, &hook));
    let label = "/metadata/labels/app.kubernetes.io~1managed-by";
    let place = "/metadata/annotations/meta.helm.sh~1release-namespace";
    let [hook, written] = &steps[..] else {
        unreachable!("{steps:?}");
    };
    assert_eq!(written.object.body.pointer(label), Some(&json!("Helm")));
    assert_eq!(written.object.body.pointer(place), Some(&json!("shop")));
    assert_eq!(hook.object.body.pointer(label), None);
}

#[test]
fn a_bound_that_is_reached_is_said() {
    let many: String = (0..=MAX_TRIED)
        .map(|number| object("ConfigMap", &format!("a{number}"), ""))
        .collect();
    let steps = planned(&record("", &json!([])), &record(&many, &json!([])));
    let (tried, said) = within_bounds(&steps);
    assert_eq!(tried, MAX_TRIED);
    let said = said.unwrap();
    assert!(
        said.contains("of 501 requests of helm the first 500"),
        "{said}"
    );
    assert_eq!(within_bounds(&steps[..20]), (20, None));
    let large = DryRunStep {
        object: ManifestObject {
            body: json!({"data": "x".repeat(MAX_BYTES)}),
            ..steps[0].object.clone()
        },
        what: DryRunVerb::Hook,
    };
    let (tried, said) = within_bounds(&[steps[0].clone(), large]);
    assert_eq!((tried, said.is_some()), (1, true));
}

#[tokio::test(start_paused = true)]
async fn the_minutely_look_tries_a_few_in_turn_and_what_was_refused() {
    let mut known = DryRunCache {
        key: "1 1".into(),
        at: Instant::now(),
        next: 0,
        refused: BTreeSet::from([9]),
        tried: StepResult::default(),
    };
    let refused = BTreeSet::from([9]);
    let mut next = |key: &str, steps| known.few(key, steps);
    assert_eq!(
        next("1 1", 10),
        Some((vec![0, 1, 2, 3, 9], refused.clone()))
    );
    assert_eq!(
        next("1 1", 10),
        Some((vec![4, 5, 6, 7, 9], refused.clone()))
    );
    assert_eq!(next("1 1", 10), Some((vec![0, 1, 8, 9], refused)));
    assert_eq!(next("2 1", 10), None, "another plan");
    assert_eq!(next("1 1", 0), None, "nothing to try");
    tokio::time::advance(ALL_EVERY).await;
    assert_eq!(next("1 1", 10), None, "all are due");
}

/// Nothing of somebody else's API server is deleted, not even as a try.
#[test]
fn kinds_of_others_are_told_from_those_of_kubernetes() {
    let of = |api_version: &str| ManifestObject {
        api_version: api_version.into(),
        kind: "Any".into(),
        namespace: None,
        name: "a".into(),
        body: Value::Null,
    };
    for own in ["v1", "apps/v1", "rbac.authorization.k8s.io/v1"] {
        assert!(is_built_in(&of(own)), "{own}");
    }
    for other in [
        "example.com/v1",
        "metrics.k8s.io/v1beta1",
        "gateway.networking.k8s.io/v1",
        "a/b/c",
    ] {
        assert!(!is_built_in(&of(other)), "{other}");
    }
}
