#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use super::*;
use crate::core::units::{ReleaseName, Revision};

/// What a manifest, and the manifests of hooks, say.
fn workloads(manifest: &str, hooks: &[&str]) -> RevisionWorkloads {
    let hook = |text: &&str| {
        let object = manifest::objects(text).unwrap().remove(0);
        crate::helm::record::HelmHook {
            name: object.name,
            kind: object.kind,
            manifest: (*text).to_owned(),
            events: vec!["pre-upgrade".into()],
            phase: String::new(),
        }
    };
    let record = HelmRecord {
        namespace: String::new(),
        name: ReleaseName::new("web"),
        revision: Revision(1),
        status: crate::core::revision_ledger::RevisionStatus::Deployed,
        description: String::new(),
        chart: String::new(),
        app_version: String::new(),
        chart_annotations: BTreeMap::new(),
        crds: BTreeMap::new(),
        config: None,
        manifest: manifest.to_owned(),
        hooks: hooks.iter().map(hook).collect(),
        server_side: false,
        size: 0,
    };
    RevisionWorkloads::of(&record, &manifest::objects(manifest).unwrap())
}

fn web() -> WorkloadId {
    ("Deployment".into(), "web".into())
}

const BEFORE: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  template:
    metadata: {labels: {app: web}}
    spec:
      initContainers:
        - {name: wait, image: "wait:1"}
      containers:
        - name: app
          image: "web:1"
          resources: {limits: {cpu: 1}}
          envFrom:
            - configMapRef: {name: settings}
          env:
            - name: KEY
              valueFrom: {secretKeyRef: {name: key, key: key}}
      volumes:
        - {name: files, configMap: {name: files}}
        - name: all
          projected:
            sources:
              - secret: {name: certificate}
        - {name: driver, csi: {driver: a, nodePublishSecretRef: {name: driver}}}
      imagePullSecrets:
        - {name: registry}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {key: abc}
"#;

/// A ConfigMap or Secret of the chart.
fn source(kind: &str, name: &str, value: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\ndata: {{value: {value}}}\n"
    )
}

#[track_caller]
fn check(rule: &str, before: &str, now: &str, expected: Option<WorkloadDiff>) {
    let (before, now) = (workloads(before, &[]), workloads(now, &[]));
    assert_eq!(now.change_since(&before, &web()), Ok(expected), "{rule}");
}

#[test]
fn the_template_counts_and_nothing_else_of_a_workload() {
    let with = |from: &str, to: &str| {
        assert!(BEFORE.contains(from), "{from}");
        BEFORE.replacen(from, to, 1)
    };
    let template = Some(WorkloadDiff::Template);
    check("the same", BEFORE, BEFORE, None);
    let scaled = with("replicas: 3", "replicas: 5");
    check("other replicas", BEFORE, &scaled, None);
    check("an image", BEFORE, &with("web:1", "web:2"), template);
    let labels = "metadata: {labels: {app: web}}";
    let checksum = "metadata: {labels: {app: web}, annotations: {checksum/config: abc}}";
    check("an annotation", BEFORE, &with(labels, checksum), template);
    let init = with("wait:1", "wait:2");
    check("an init container", BEFORE, &init, template);
}

#[test]
fn it_is_compared_as_the_api_server_sees_it() {
    let with = |from: &str, to: &str| {
        assert!(BEFORE.contains(from), "{from}");
        BEFORE.replacen(from, to, 1)
    };
    let same = [
        (
            "{name: wait, image: \"wait:1\"}",
            "{image: \"wait:1\", name: wait}",
        ),
        ("{limits: {cpu: 1}}", "{requests: {}, limits: {cpu: \"1\"}}"),
        (
            "imagePullSecrets:",
            "nodeSelector: null\n      tolerations: []\n      imagePullSecrets:",
        ),
        ("stringData: {key: abc}", "data: {key: YWJj}"),
        (
            "metadata: {name: key}",
            "metadata: {name: key, labels: {chart: web-2}}",
        ),
    ];
    for (from, to) in same {
        check(to, BEFORE, &with(from, to), None);
    }
    // Nothing is selected by none, and everything by an empty one.
    let spread = |selector: &str| {
        let list = format!("topologySpreadConstraints: [{{maxSkew: 1{selector}}}]");
        with(
            "imagePullSecrets:",
            &format!("{list}\n      imagePullSecrets:"),
        )
    };
    let all = spread(", labelSelector: {}");
    check(
        "a selector",
        &spread(""),
        &all,
        Some(WorkloadDiff::Template),
    );
}

#[test]
fn settings_that_its_pods_read_count_and_no_others() {
    for (kind, name) in [
        ("ConfigMap", "settings"),
        ("ConfigMap", "files"),
        ("Secret", "certificate"),
        ("Secret", "driver"),
        ("Secret", "registry"),
    ] {
        let before = BEFORE.to_owned() + &source(kind, name, "YQ==");
        let other = BEFORE.to_owned() + &source(kind, name, "Yg==");
        check(name, &before, &before, None);
        check(name, &before, &other, Some(WorkloadDiff::Config));
        check(name, BEFORE, &other, Some(WorkloadDiff::Config));
    }
    let unread = BEFORE.to_owned() + &source("ConfigMap", "unread", "a");
    check("unread", BEFORE, &unread, None);
    // A name is that of one kind.
    let other_kind = BEFORE.to_owned() + &source("Secret", "settings", "YQ==");
    check("of another kind", BEFORE, &other_kind, None);
    let key = BEFORE.replace("stringData: {key: abc}", "stringData: {key: abd}");
    check("a Secret", BEFORE, &key, Some(WorkloadDiff::Config));
    let elsewhere = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: b}\ndata: {a: b}\n";
    let in_a = BEFORE.replace(
        "metadata: {name: web}",
        "metadata: {name: web, namespace: a}",
    );
    let foreign = in_a.clone() + elsewhere;
    check("in another namespace", &in_a, &foreign, None);
    // Both at once: its pods are made anew.
    let both = BEFORE.replace("web:1", "web:2") + &source("ConfigMap", "settings", "a");
    check("both", BEFORE, &both, Some(WorkloadDiff::Template));
}

#[test]
fn what_is_mounted_comes_to_pods_that_run_on() {
    let mounts = "image: \"web:1\"\n          volumeMounts: [{name: files, mountPath: /etc/files}]";
    let mounting = BEFORE.replace("image: \"web:1\"", mounts);
    let part = mounting.replace("/etc/files}", "/etc/files, subPath: one}");
    for (rule, manifest, name, expected) in [
        ("mounted", &mounting, "files", Some(true)),
        (
            "a part of it, which stays as it is",
            &part,
            "files",
            Some(false),
        ),
        ("its environment", &mounting, "settings", Some(false)),
        ("not read", &mounting, "unread", None),
    ] {
        let with = |value: &str| format!("{manifest}{}", source("ConfigMap", name, value));
        let (before, now) = (workloads(&with("a"), &[]), workloads(&with("b"), &[]));
        let found = now.not_restarted_since(&before);
        let is_mounted = found.first().map(|one| one.is_mounted);
        assert_eq!(is_mounted, expected, "{rule}");
        assert!(now.not_restarted_since(&now).is_empty());
        // One whose template changed as well is restarted.
        let other = workloads(&with("b").replace("wait:1", "wait:2"), &[]);
        assert!(other.not_restarted_since(&before).is_empty(), "{rule}");
    }
}

#[test]
fn a_service_selects_one_colour() {
    let colour = |name: &str| {
        format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec: {{template: {{metadata: {{labels: {{app: web, colour: {name}}}}}}}}}\n"
        )
    };
    let service = |name: &str, colour: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: web, colour: {colour}}}}}\n"
        )
    };
    let selected = |services: &[String], host: &str| {
        let manifest = colour("blue") + &colour("green") + &services.concat();
        let workloads = workloads(&manifest, &[]);
        let is_selected = |name: &&str| {
            let id = ("Deployment".into(), (*name).into());
            workloads.is_selected(&id, host)
        };
        ["blue", "green", "other"]
            .into_iter()
            .filter(is_selected)
            .collect::<Vec<_>>()
    };
    // Of another workload nothing is known.
    let web = service("web", "blue");
    for host in ["web", "web.shop.svc", "shop.example.com", "10.1.2.3"] {
        assert_eq!(
            selected(std::slice::from_ref(&web), host),
            ["blue", "other"],
            "{host}"
        );
    }
    let both = [web, service("preview", "green")];
    assert_eq!(selected(&both, "web.shop"), ["blue", "other"]);
    assert_eq!(selected(&both, "preview.shop"), ["green", "other"]);
    let all = ["blue", "green", "other"];
    assert_eq!(selected(&both, "shop.example.com"), all);
    assert_eq!(selected(&[], "web"), all);
}

#[test]
fn settings_that_a_hook_makes_count_as_well() {
    let hook = |value: &str| source("ConfigMap", "settings", value);
    let before = workloads(BEFORE, &[&hook("a")]);
    let now = workloads(BEFORE, &[&hook("b")]);
    let same = workloads(BEFORE, &[&hook("a")]);
    assert_eq!(
        now.change_since(&before, &web()),
        Ok(Some(WorkloadDiff::Config))
    );
    assert_eq!(same.change_since(&before, &web()), Ok(None));
}

#[test]
fn a_new_workload_is_a_change_and_one_that_is_not_there_is_unknown() {
    let before = workloads("", &[]);
    let now = workloads(BEFORE, &[]);
    let template = Ok(Some(WorkloadDiff::Template));
    assert_eq!(now.change_since(&before, &web()), template);
    assert_eq!(before.change_since(&now, &web()), Err(UnknownWorkload));
    let other = ("StatefulSet".into(), "web".into());
    assert_eq!(now.change_since(&before, &other), Err(UnknownWorkload));
}

#[test]
fn containers_that_the_chart_does_not_know_are_told_apart() {
    let known = workloads(BEFORE, &[]);
    for (container, is_known) in [("app", true), ("wait", true), ("istio-proxy", false)] {
        assert_eq!(
            known.has_container(&web(), container),
            is_known,
            "{container}"
        );
    }
    let other = ("DaemonSet".into(), "agent".into());
    assert!(
        known.has_container(&other, "agent"),
        "nothing is known of it"
    );
}
