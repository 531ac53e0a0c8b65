#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::io::Write as _;

use base64::Engine as _;

use super::*;
use crate::helm::record;

/// A record with this manifest and these hooks (JSON).
fn record(manifest: &str, hooks: &str, annotations: &str) -> HelmRecord {
    let manifest = serde_json::to_string(manifest).unwrap();
    let json = format!(
        r#"{{"name":"web","version":1,"info":{{"status":"deployed"}},"chart":{{"metadata":{{"name":"web","annotations":{annotations}}}}},"manifest":{manifest},"hooks":{hooks}}}"#
    );
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(json.as_bytes()).unwrap();
    let payload = base64::engine::general_purpose::STANDARD.encode(gzip.finish().unwrap());
    record::decode("sh.helm.release.v1.web.v1", payload.as_bytes()).unwrap()
}

pub(in super::super) fn plain(manifest: &str) -> HelmRecord {
    record(manifest, "[]", "{}")
}

fn reasons(
    bad: &HelmRecord,
    target: &HelmRecord,
    allowed: &CheckPermissions<'_>,
) -> Vec<&'static str> {
    let failures = look(bad, target, allowed);
    failures.iter().map(|one| one.reason).collect()
}

fn look(
    bad: &HelmRecord,
    target: &HelmRecord,
    allowed: &CheckPermissions<'_>,
) -> Vec<PreflightFailure> {
    failures(&CheckContext::new(bad, target, &scope(), allowed))
}

fn scope() -> ApiScope {
    ApiScope::built_in("shop")
}

const NONE: &[&str] = &[];

const CONFIG: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n";
const CLAIM: &str = "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  name: data\n";

#[test]
fn an_ordinary_revision_can_be_rolled_back() {
    let (bad, target) = (plain(CONFIG), plain(CONFIG));
    assert_eq!(reasons(&bad, &target, &CheckPermissions::default()), NONE);
}

#[test]
fn data_is_not_deleted_unless_its_kind_is_allowed() {
    let (bad, target) = (plain(&format!("{CONFIG}{CLAIM}")), plain(CONFIG));
    let failures = look(&bad, &target, &CheckPermissions::default());
    assert_eq!(failures[0].reason, "deletes_data");
    assert!(
        failures[0].text.contains("PersistentVolumeClaim data"),
        "{}",
        failures[0].text
    );
    let kinds = ["PersistentVolumeClaim".to_owned()];
    let allowed = CheckPermissions {
        kinds: &kinds,
        ..CheckPermissions::default()
    };
    assert_eq!(reasons(&bad, &target, &allowed), NONE);
    // Helm keeps what is marked so.
    let kept = "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  name: data\n  annotations:\n    helm.sh/resource-policy: keep\n";
    assert_eq!(
        reasons(
            &plain(&format!("{CONFIG}{kept}")),
            &target,
            &CheckPermissions::default()
        ),
        NONE
    );
    // Going forward to a revision that has more is no deletion.
    assert_eq!(reasons(&target, &bad, &CheckPermissions::default()), NONE);
}

#[test]
fn fields_that_cannot_be_changed_are_named() {
    let set = |template: &str| {
        plain(&format!(
            "apiVersion: apps/v1\nkind: StatefulSet\nmetadata:\n  name: queue\nspec:\n  serviceName: {template}\n"
        ))
    };
    let failures = look(&set("a"), &set("b"), &CheckPermissions::default());
    assert_eq!(failures[0].reason, "immutable");
    assert!(
        failures[0]
            .text
            .contains("StatefulSet queue spec.serviceName"),
        "{}",
        failures[0].text
    );
    assert_eq!(
        reasons(&set("a"), &set("a"), &CheckPermissions::default()),
        NONE
    );
    // What one of them alone has cannot be added or taken away, unless it is none.
    let disk = "a\n  volumeClaimTemplates: [{metadata: {name: disk}}]";
    for (bad, target) in [(disk, "a"), ("a", disk)] {
        let found = reasons(&set(bad), &set(target), &CheckPermissions::default());
        assert_eq!(found, ["immutable"]);
    }
    let no_disk = "a\n  volumeClaimTemplates: []";
    assert_eq!(
        reasons(&set("a"), &set(no_disk), &CheckPermissions::default()),
        NONE
    );
}

/// What differs between a manifest's object before and after, as far as it cannot be changed.
fn fixed(was: &str, will: &str) -> Vec<String> {
    let one = |text: &str| manifest::objects(text).unwrap().remove(0);
    fixed_changes(&one(was), &one(will))
}

#[test]
fn what_is_sealed_or_a_class_of_storage_cannot_be_changed() {
    let none: &[&str] = &[];
    let map =
        |rest: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\n{rest}");
    for (was, will, expected) in [
        // Open ones can be changed, and sealed.
        ("data: {x: '1'}", "data: {x: '2'}", none),
        ("data: {x: '1'}", "immutable: true\ndata: {x: '1'}", none),
        ("immutable: false\ndata: {x: '1'}", "data: {x: '2'}", none),
        (
            "immutable: true\ndata: {x: '1'}",
            "immutable: true\ndata: {x: '1'}\nbinaryData: {}",
            none,
        ),
        (
            "immutable: true\ndata: {x: '1'}",
            "immutable: true\ndata: {x: '2'}",
            &["ConfigMap a data"],
        ),
        (
            "immutable: true",
            "immutable: true\nbinaryData: {x: aGk=}",
            &["ConfigMap a binaryData"],
        ),
        ("immutable: true", "", &["ConfigMap a immutable"]),
    ] {
        assert_eq!(fixed(&map(was), &map(will)), expected, "{was} to {will}");
    }
    let secret = |rest: &str| {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\nimmutable: true\n{rest}")
    };
    let found = fixed(&secret("stringData: {x: a}"), &secret("stringData: {x: b}"));
    assert_eq!(found, ["Secret a stringData"]);
    let class = |rest: &str| {
        format!(
            "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: fast}}\nprovisioner: p\n{rest}"
        )
    };
    for (was, will, expected) in [
        ("parameters: {type: a}", "parameters: {type: a}", none),
        ("parameters: {}", "", none),
        ("", "reclaimPolicy: Delete", none),
        (
            "allowVolumeExpansion: true",
            "allowVolumeExpansion: false",
            none,
        ),
        (
            "parameters: {type: a}",
            "parameters: {type: b}",
            &["StorageClass fast parameters"],
        ),
        (
            "",
            "parameters: {type: b}",
            &["StorageClass fast parameters"],
        ),
        (
            "reclaimPolicy: Retain",
            "reclaimPolicy: Delete",
            &["StorageClass fast reclaimPolicy"],
        ),
    ] {
        assert_eq!(
            fixed(&class(was), &class(will)),
            expected,
            "{was} to {will}"
        );
    }
}

#[test]
fn a_job_that_may_have_migrated_data_stops_the_rollback_unless_it_is_said_to_be_compatible() {
    let hook = |kind: &str, event: &str, phase: &str| {
        format!(
            r#"[{{"name":"migrate","kind":"{kind}","events":["{event}"],"last_run":{{"phase":"{phase}"}}}}]"#
        )
    };
    let target = plain(CONFIG);
    let bad = record(CONFIG, &hook("Job", "pre-upgrade", "Succeeded"), "{}");
    assert_eq!(
        reasons(&bad, &target, &CheckPermissions::default()),
        ["migrations"]
    );
    let allowed = CheckPermissions {
        migrations: true,
        ..CheckPermissions::default()
    };
    assert_eq!(reasons(&bad, &target, &allowed), NONE);
    for harmless in [
        hook("Job", "test", "Succeeded"),
        hook("Job", "pre-upgrade", ""),
        hook("ConfigMap", "pre-upgrade", "Succeeded"),
    ] {
        assert_eq!(
            reasons(
                &record(CONFIG, &harmless, "{}"),
                &target,
                &CheckPermissions::default()
            ),
            NONE
        );
    }
}

#[test]
fn what_flux_or_argo_cd_keeps_and_what_a_chart_denies_is_left_alone() {
    let marked = |mark: &str| plain(&format!("{CONFIG}  labels:\n    {mark}: web\n"));
    let target = plain(CONFIG);
    for mark in ["helm.toolkit.fluxcd.io/name", "argocd.argoproj.io/instance"] {
        assert_eq!(
            reasons(&marked(mark), &target, &CheckPermissions::default()),
            ["kept_by_another"],
            "{mark}"
        );
        let allowed = CheckPermissions {
            gitops_owner: true,
            ..CheckPermissions::default()
        };
        assert_eq!(reasons(&marked(mark), &target, &allowed), NONE);
    }
    let denied = record(CONFIG, "[]", r#"{"leadsman.io/rollback":"deny"}"#);
    assert_eq!(
        reasons(&denied, &target, &CheckPermissions::default()),
        ["denied"]
    );
}

#[test]
fn definitions_that_helm_leaves_as_they_are_are_named_when_they_differ() {
    let with = |crds: &[(&str, &str)]| {
        let crds = crds.iter().map(|(name, digest)| {
            (
                (*name).to_owned(),
                crate::core::revision_ledger::ContentDigest((*digest).into()),
            )
        });
        HelmRecord {
            crds: crds.collect(),
            ..plain(CONFIG)
        }
    };
    let one = with(&[("crds/a.yaml", "1"), ("crds/b.yaml", "2")]);
    assert_eq!(other_crds(&one, &one), None);
    let line = other_crds(&with(&[("crds/a.yaml", "1"), ("crds/b.yaml", "3")]), &one).unwrap();
    assert!(line.contains("differ in crds/b.yaml: "), "{line}");
    let line = other_crds(&one, &with(&[])).unwrap();
    assert!(
        line.contains("differ in crds/a.yaml, crds/b.yaml: "),
        "{line}"
    );
    // It is said, and stops nothing.
    assert_eq!(
        reasons(&one, &with(&[]), &CheckPermissions::default()),
        NONE
    );
}

#[test]
fn a_manifest_that_is_not_yaml_is_an_obstacle_that_names_its_revision() {
    let failures = look(
        &plain("a: [\n"),
        &plain(CONFIG),
        &CheckPermissions::default(),
    );
    assert_eq!(failures[0].reason, "manifest");
    assert!(
        failures[0].text.contains("revision 1"),
        "{}",
        failures[0].text
    );
}

#[test]
fn what_comes_back_is_named() {
    let web = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  replicas: 2\n";
    let scaler = "---\napiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata:\n  name: web\nspec:\n  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}\n";
    let (bad, target) = (
        plain(&format!("{web}{scaler}")),
        plain(&format!("{CONFIG}{web}")),
    );
    let names: Vec<String> = returning(&bad, &target, &scope())
        .into_iter()
        .map(|object| format!("{} {}", object.kind, object.name))
        .collect();
    assert_eq!(names, ["ConfigMap a"]);
    assert!(returning(&target, &target, &scope()).is_empty());
}

#[test]
fn a_record_that_is_as_large_as_can_be_is_known_beforehand() {
    let small = plain(CONFIG);
    assert!(small.size > 100);
    let large = HelmRecord {
        size: record_patch::MAX_DATA - 100,
        ..small.clone()
    };
    assert_eq!(
        reasons(&small, &large, &CheckPermissions::default()),
        ["too_large"]
    );
    assert_eq!(reasons(&large, &small, &CheckPermissions::default()), NONE);
}

#[test]
fn a_workload_that_reads_what_changes_and_is_not_restarted_is_named_with_the_command() {
    let map = |value: &str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{x: '{value}'}}\n"
        )
    };
    let web = |image: &str, read: &str| {
        format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec: {{template: {{spec: {{containers: [{{name: web, image: {image}, envFrom: [{{configMapRef: {{name: {read}}}}}]}}]}}}}}}\n"
        )
    };
    let both = |value: &str, image: &str, read: &str| {
        plain(&format!("{}{}", map(value), web(image, read)))
    };
    let lines = not_restarted(&both("2", "i", "a"), &both("1", "i", "a"), &scope(), "shop");
    assert_eq!(
        lines,
        [
            "The rollback changes ConfigMap a, and does not restart Deployment web, whose template is the same; if it reads them only when it starts: kubectl rollout restart deployment/web --namespace shop"
        ]
    );
    for (bad, target) in [
        // The same contents; a template of its own; something else is read.
        (both("1", "i", "a"), both("1", "i", "a")),
        (both("2", "j", "a"), both("1", "i", "a")),
        (both("2", "i", "b"), both("1", "i", "b")),
        (plain(&web("i", "a")), both("1", "i", "a")),
    ] {
        assert!(not_restarted(&bad, &target, &scope(), "shop").is_empty());
    }
}

#[test]
fn what_owns_data_is_not_deleted_and_what_only_says_how_is() {
    let set = |retention: &str, replicas: u32| {
        format!(
            "---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata:\n  name: db\nspec:\n  replicas: {replicas}\n  persistentVolumeClaimRetentionPolicy: {{{retention}}}\n  volumeClaimTemplates: [{{metadata: {{name: data}}}}]\n"
        )
    };
    let custom = |group: &str, kind: &str| {
        format!("---\napiVersion: {group}/v1\nkind: {kind}\nmetadata:\n  name: main\n")
    };
    let refused = |bad: &str, target: &str, kind: &str| {
        let bad = plain(&format!("{CONFIG}{bad}"));
        let target = plain(&format!("{CONFIG}{target}"));
        let kinds = [kind.to_owned()];
        let allowed = CheckPermissions {
            kinds: &kinds,
            ..CheckPermissions::default()
        };
        let failures = look(&bad, &target, &allowed);
        failures.first().map(|one| one.text.clone())
    };
    let deleted = set("whenDeleted: Delete", 3);
    let said = refused(&deleted, "", "").unwrap();
    assert!(
        said.contains("StatefulSet db, whose claims go with it"),
        "{said}"
    );
    assert_eq!(refused(&deleted, "", "StatefulSet"), None);
    assert_eq!(refused(&set("whenDeleted: Retain", 3), "", ""), None);
    let (three, one) = (set("whenScaled: Delete", 3), set("whenScaled: Delete", 1));
    let said = refused(&three, &one, "").unwrap();
    assert!(said.contains("from 3 pods to 1"), "{said}");
    assert_eq!(refused(&one, &three, ""), None);
    let said = refused(&custom("postgresql.cnpg.io", "Cluster"), "", "").unwrap();
    assert!(said.contains("Cluster main (postgresql.cnpg.io)"), "{said}");
    // In the same group as harmless ones.
    for (group, kind) in [
        ("argoproj.io", "Application"),
        ("monitoring.coreos.com", "Prometheus"),
        ("external-secrets.io", "PushSecret"),
    ] {
        assert!(refused(&custom(group, kind), "", "").is_some(), "{kind}");
    }
    for (group, kind) in [
        ("argoproj.io", "Rollout"),
        ("monitoring.coreos.com", "ServiceMonitor"),
        ("networking.istio.io", "VirtualService"),
        ("networking.k8s.io", "Ingress"),
        ("rbac.authorization.k8s.io", "Role"),
        ("policy", "PodDisruptionBudget"),
    ] {
        assert_eq!(refused(&custom(group, kind), "", ""), None, "{group}");
    }
}

#[test]
fn a_job_that_is_gone_is_made_anew_whatever_its_template_was() {
    let job = |image: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: seed\nspec:\n  template:\n    spec:\n      containers: [{{name: a, image: {image}}}]\n"
        )
    };
    let (bad, target) = (plain(&job("b")), plain(&job("a")));
    let fixed = with_fixed_changes(&bad, &target, &scope());
    assert_eq!(fixed.len(), 1);
    assert_eq!(
        reasons(&bad, &target, &CheckPermissions::default()),
        ["immutable"]
    );
    let allowed = CheckPermissions {
        gone: &fixed,
        ..CheckPermissions::default()
    };
    assert_eq!(reasons(&bad, &target, &allowed), NONE);
    let lines = not_hooks(&bad, &target, &scope());
    assert!(
        lines[0].starts_with("Job seed of revision 1 differs"),
        "{lines:?}"
    );
}

/// Each thing that stands in the way gives its own reason, and all of them are named in their order.
#[test]
fn each_check_gives_its_reason_and_the_first_one_counts() {
    type Change = fn(&mut CheckContext<'_>);
    let out_of_scope = [PreflightFailure {
        reason: "foreign",
        text: "it is of another namespace".into(),
    }];
    let scope = scope();
    let (bad, target) = (plain(CONFIG), plain(CONFIG));
    let may = CheckPermissions {
        gitops_owner: true,
        ..CheckPermissions::default()
    };
    let may_not = CheckPermissions::default();
    let moved: Change = |context| {
        context.moved = Some(PreflightFailure {
            reason: "moved",
            text: "another image".into(),
        });
    };
    let kept: Change = |context| context.gitops_owner = Some("Flux");
    let label: Change = |context| context.is_denied = true;
    let table: [(&[Change], bool, &CheckPermissions<'_>, &[&str]); 8] = [
        (&[], false, &may_not, &[]),
        (&[label], false, &may_not, &["denied"]),
        (&[moved], false, &may_not, &["moved"]),
        (&[kept], false, &may_not, &["kept_by_another"]),
        (&[kept], false, &may, &[]),
        (&[], true, &may_not, &["foreign"]),
        (&[moved], true, &may_not, &["foreign", "moved"]),
        (
            &[kept, moved, label],
            true,
            &may_not,
            &["denied", "foreign", "moved", "kept_by_another"],
        ),
    ];
    for (changes, is_out_of_scope, allowed, expected) in table {
        let mut context = CheckContext::new(&bad, &target, &scope, allowed);
        for change in changes {
            change(&mut context);
        }
        if is_out_of_scope {
            context.out_of_scope = &out_of_scope;
        }
        let found: Vec<_> = failures(&context).iter().map(|one| one.reason).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn what_is_found_twice_is_said_once() {
    let (bad, target) = (plain("a: [\n"), plain(CONFIG));
    let (scope, allowed) = (scope(), CheckPermissions::default());
    let mut context = CheckContext::new(&bad, &target, &scope, &allowed);
    let found = failures(&context);
    assert_eq!(found.len(), 1, "{found:?}");
    context.out_of_scope = &found;
    assert_eq!(failures(&context), found);
}
