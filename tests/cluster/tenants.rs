//! A tenant who may write Secrets in its own namespace, and what of the rest of the cluster it gets by way of Leadsman,
//! which may do everything here.

use std::io::Write as _;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::guarded::{Guarded, Settings, configuration};
use crate::program::run_apart;
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;

/// A service account that may do nothing but write Secrets in its namespace.
struct Tenant<'a> {
    cluster: &'a Cluster,
    token: String,
    /// A namespace that is none of its business.
    other: String,
}

impl<'a> Tenant<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let own = &cluster.namespace;
        let other = format!("{own}-other");
        for name in [own, &other] {
            if cluster.get(&format!("/api/v1/namespaces/{name}"))["kind"] == "Status" {
                let body = json!({"metadata": {"name": name}});
                cluster.send("POST", "/api/v1/namespaces", "application/json", &body);
            }
        }
        let victim = json!({"metadata": {"name": "victim"}, "data": {"a": "untouched"}});
        let maps = format!("/api/v1/namespaces/{other}/configmaps");
        cluster.send("POST", &maps, "application/json", &victim);
        let account = json!({"metadata": {"name": "tenant"}});
        let accounts = format!("/api/v1/namespaces/{own}/serviceaccounts");
        cluster.send("POST", &accounts, "application/json", &account);
        let group = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{own}");
        let role = json!({
            "metadata": {"name": "tenant"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "create", "update"]}]
        });
        cluster.send("POST", &format!("{group}/roles"), "application/json", &role);
        let binding = json!({
            "metadata": {"name": "tenant"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"},
            "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": own}]
        });
        let bindings = format!("{group}/rolebindings");
        cluster.send("POST", &bindings, "application/json", &binding);
        Self {
            token: cluster.token("tenant"),
            cluster,
            other,
        }
    }

    /// As the tenant.
    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut child = Command::new("curl")
            .args(["-s", "--max-time", "30", "--cacert"])
            .arg(self.cluster.folder().join("pki/ca.crt"))
            .args(["-X", method, "-H", "Content-Type: application/json"])
            .args(["-H", &format!("Authorization: Bearer {}", self.token)])
            .args(["--data-binary", "@-"])
            .arg(format!("https://127.0.0.1:6443{path}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(body.to_string().as_bytes()).unwrap();
        drop(stdin);
        serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap()
    }

    fn secrets(&self) -> String {
        format!("/api/v1/namespaces/{}/secrets", self.cluster.namespace)
    }

    fn record(&self, release: &str, revision: u32, manifest: &str, hooks: &Value) -> Value {
        let status = if revision == 1 {
            "superseded"
        } else {
            "deployed"
        };
        json!({
            "name": release, "namespace": self.cluster.namespace, "version": revision,
            "info": {
                "first_deployed": "2026-01-02T03:04:05Z", "last_deployed": "2026-01-02T03:04:05Z", "deleted": "",
                "description": "Upgrade complete", "status": status
            },
            "chart": {"metadata": {"name": "app", "version": "1.0.0", "apiVersion": "v2"}},
            "config": {}, "manifest": manifest, "hooks": hooks
        })
    }

    fn secret(object: &str, release: &str, revision: u32, record: &str) -> Value {
        let status = if revision == 1 {
            "superseded"
        } else {
            "deployed"
        };
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "helm.sh/release.v1",
            "metadata": {"name": object, "labels": {
                "owner": "helm", "name": release, "status": status, "version": revision.to_string()
            }},
            "data": {"release": STANDARD.encode(packed(record))}
        })
    }

    /// Writes a record by hand.
    #[track_caller]
    fn forge(&self, release: &str, revision: u32, record: &str) {
        let object = format!("sh.helm.release.v1.{release}.v{revision}");
        let secret = Self::secret(&object, release, revision, record);
        let answer = self.send("POST", &self.secrets(), &secret);
        assert_eq!(answer["kind"], "Secret", "{answer}");
    }

    /// Records of two revisions: the one to go back to, and the bad one.
    fn forge_two(&self, release: &str, target: &str, bad: &str) {
        for (revision, manifest) in [(1, target), (2, bad)] {
            let record = self.record(release, revision, manifest, &json!([]));
            self.forge(release, revision, &record.to_string());
        }
    }

    /// Has Leadsman go back to revision 1 with all rights of the cluster; its exit code and what it says.
    fn rolled_back(
        &self,
        release: &str,
        helm: &std::path::Path,
        more: &str,
    ) -> (Option<i32>, String) {
        let configuration = self.configuration(release, helm, more);
        let arguments = [
            "rollback",
            release,
            "1",
            "--direct",
            "--reason",
            "forged",
            "--timeout",
            "20s",
        ];
        let (code, text, said) = run_apart(&configuration, &arguments);
        (code, text + &said)
    }

    fn configuration(&self, release: &str, helm: &std::path::Path, more: &str) -> String {
        format!(
            "[kubernetes]\nkubeconfig = {:?}\nhelm = {:?}\nscratch = {:?}\n\
             [[release]]\nname = {release:?}\nnamespace = {:?}\nbase_url = \"http://app.invalid\"\nmode = \"enforce\"\n\
             [release.rollback]\n{more}\n[[release.probe]]\nname = \"a\"\nurl = \"tcp://127.0.0.1:6443\"\n",
            self.cluster.kubeconfig().display().to_string(),
            helm.display().to_string(),
            self.cluster
                .folder()
                .join(format!("{}.scratch", self.cluster.namespace))
                .display()
                .to_string(),
            self.cluster.namespace,
        )
    }

    /// Nothing called `evil` is anywhere but in the tenant's own namespace, and the victim is as it was.
    #[track_caller]
    fn has_got_nothing(&self, by: &str) {
        let name = self.evil();
        let mut places = Vec::new();
        for namespace in [self.other.as_str(), "kube-system", "default"] {
            for plural in ["configmaps", "serviceaccounts", "pods", "secrets"] {
                places.push(format!("/api/v1/namespaces/{namespace}/{plural}/{name}"));
            }
        }
        let group = "/apis/rbac.authorization.k8s.io/v1";
        places.push(format!("{group}/clusterrolebindings/{name}"));
        places.push(format!("{group}/clusterroles/{name}"));
        places.push(format!("/api/v1/namespaces/{name}"));
        for place in places {
            let found = self.cluster.get(&place);
            assert_eq!(found["reason"], "NotFound", "{by}: {place}: {found}");
        }
        let victim = self.cluster.get(&format!(
            "/api/v1/namespaces/{}/configmaps/victim",
            self.other
        ));
        assert_eq!(victim["data"]["a"], "untouched", "{by}: {victim}");
        assert_eq!(victim["metadata"]["labels"], Value::Null, "{by}: {victim}");
    }

    /// A name that no other test uses.
    fn evil(&self) -> String {
        format!("evil-{}", self.cluster.namespace)
    }

    fn object(&self, api_version: &str, kind: &str, namespace: &str, rest: &str) -> String {
        let name = self.evil();
        let namespace = if namespace.is_empty() {
            String::new()
        } else {
            format!(", namespace: {namespace}")
        };
        format!(
            "---\napiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\n{rest}"
        )
    }

    fn binding(&self) -> String {
        let rest = format!(
            "roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}\n\
             subjects: [{{kind: ServiceAccount, name: tenant, namespace: {}}}]\n",
            self.cluster.namespace
        );
        self.object(
            "rbac.authorization.k8s.io/v1",
            "ClusterRoleBinding",
            "",
            &rest,
        )
    }
}

/// Base64 of gzip, as Helm stores a record.
fn packed(record: &str) -> String {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(record.as_bytes()).unwrap();
    STANDARD.encode(gzip.finish().unwrap())
}

/// An object that is the release's own.
const PLAIN: &str = "---\n# Source: app/templates/a.yaml\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: plain\ndata: {a: '1'}\n";
const PLAIN_BAD: &str = "---\n# Source: app/templates/a.yaml\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: plain\ndata: {a: '2'}\n";

#[test]
fn a_forged_record_of_a_guarded_app_changes_nothing_outside_its_namespace() {
    let Some(cluster) = Cluster::new("forged", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let tenant = Tenant::new(&cluster);
    let path = format!("{}/sh.helm.release.v1.mykadoo.v1", tenant.secrets());
    let mut secret = tenant.send("GET", &path, &json!({}));
    let payload = secret["data"]["release"].as_str().unwrap();
    let packed_bytes = STANDARD.decode(STANDARD.decode(payload).unwrap()).unwrap();
    let mut record: Value =
        serde_json::from_reader(flate2::read::GzDecoder::new(packed_bytes.as_slice())).unwrap();
    let manifest = record["manifest"].as_str().unwrap().to_owned()
        + &tenant.object("v1", "ServiceAccount", "kube-system", "")
        + &tenant.object(
            "v1",
            "Pod",
            &tenant.other,
            "spec: {containers: [{name: a, image: a}]}\n",
        )
        + &tenant.binding();
    record["manifest"] = manifest.into();
    secret["data"]["release"] = STANDARD.encode(packed(&record.to_string())).into();
    let answer = tenant.send("PUT", &path, &secret);
    assert_eq!(answer["kind"], "Secret", "{answer}");

    // Leadsman may do all.
    let settings = Settings::by(Helm::Four);
    let text = configuration(&cluster, &settings, &cluster.kubeconfig());
    let guarded = Guarded::allowed(&cluster, &text);
    let release = guarded.until("the obstacle is known", |release| {
        release["preflight_failure"].is_string()
    });
    let failure = release["preflight_failure"].as_str().unwrap();
    assert!(failure.contains("release.rollback.namespaces"), "{failure}");
    let series = format!(
        "leadsman_rollback_ready{{namespace=\"{}\",reason=\"foreign_namespace\",release=\"mykadoo\"}} 0",
        cluster.namespace
    );
    let metrics = guarded.leadsman.get("/metrics").body;
    assert!(metrics.contains(&series), "{metrics}");
    cluster.upgrade(&[DEAD]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "refused",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let said = ended["text"].as_str().unwrap();
    let name = tenant.evil();
    for part in [
        format!("ServiceAccount {name} in kube-system"),
        format!("Pod {name} in {}", tenant.other),
        "release.rollback.namespaces = [".to_owned(),
        format!("ClusterRoleBinding {name}"),
        "release.rollback.cluster_scoped = [\"ClusterRoleBinding\"]".to_owned(),
    ] {
        assert!(said.contains(&part), "{part} is not in: {said}");
    }
    assert_eq!(cluster.statuses(Helm::Four), "1 superseded, 2 deployed");
    tenant.has_got_nothing("a forged record");

    let (code, roles, said) = run_apart(&text, &["rbac"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        !roles.contains("kube-system") && !roles.contains("clusterrolebindings"),
        "{roles}"
    );
    for part in [
        format!("ServiceAccount {name} is in the namespace kube-system"),
        "set release.rollback.namespaces = [\"kube-system\"]".to_owned(),
        format!("ClusterRoleBinding {name} is in no namespace"),
        "set release.rollback.cluster_scoped = [\"ClusterRoleBinding\"]".to_owned(),
    ] {
        assert!(said.contains(&part), "{part} is not in: {said}");
    }
}

/// A record that is written so that somebody may overlook what it does.
struct Trick {
    name: &'static str,
    target: String,
    bad: String,
    hooks: Value,
    /// What is done to the target's JSON.
    edit: Box<dyn Fn(String) -> String>,
    /// What the refusal says.
    says: &'static str,
}

fn tricks(tenant: &Tenant<'_>) -> Vec<Trick> {
    let (other, name) = (&tenant.other, tenant.evil());
    let trick = |name, target: String, says| Trick {
        name,
        target,
        bad: PLAIN_BAD.to_owned(),
        hooks: json!([]),
        edit: Box::new(|text| text),
        says,
    };
    let map = |namespace: &str| tenant.object("v1", "ConfigMap", namespace, "data: {a: b}\n");
    let hook = |events: Value, manifest: String| {
        json!([{
            "name": name, "kind": "ConfigMap", "path": "app/templates/hook.yaml", "manifest": manifest,
            "events": events, "last_run": {"started_at": "", "completed_at": "", "phase": ""}
        }])
    };
    let item = format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, namespace: kube-system}}}}"
    );
    let evil_json = json!(format!("{PLAIN}{}", map("kube-system")));
    let keyed = move |text: String| {
        let open = text.strip_suffix('}').unwrap();
        format!("{open},\"MANIFEST\":{evil_json}}}")
    };
    let system = "in kube-system, outside the release's namespace";
    let asked = "foreign_namespace: helm asked to";
    vec![
        trick("plain", PLAIN.to_owned() + &map("kube-system"), system),
        trick(
            "quoted",
            PLAIN.to_owned() + &map("\"kube-\\x73ystem\""),
            system,
        ),
        trick(
            "tagged",
            PLAIN.to_owned() + &map("!!str kube-system"),
            system,
        ),
        trick(
            "json",
            format!(
                "{{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {{\"name\": \"{name}\", \"namespace\": \"kube-system\"}}}}\n"
            ),
            system,
        ),
        trick(
            "list",
            format!("{PLAIN}---\napiVersion: v1\nkind: List\nitems:\n- {item}\n"),
            system,
        ),
        trick(
            "items",
            format!(
                "{PLAIN}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\nitems:\n- {item}\n"
            ),
            "has items, and is no list",
        ),
        trick(
            "twice",
            format!(
                "{PLAIN}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {}, namespace: kube-system}}\n",
                tenant.cluster.namespace
            ),
            system,
        ),
        trick(
            "breaks",
            format!(
                "{PLAIN}---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name} # \u{85}  namespace: kube-system\n"
            ),
            "ends of lines",
        ),
        // Helm lets what is merged in win over what stands before it.
        trick(
            "merged",
            format!(
                "{PLAIN}---\napiVersion: v1\nkind: ConfigMap\nx: &x {{namespace: kube-system}}\nmetadata: {{name: {name}, namespace: {}, <<: *x}}\n",
                tenant.cluster.namespace
            ),
            asked,
        ),
        trick(
            "wide",
            PLAIN.to_owned() + &tenant.binding(),
            "release.rollback.cluster_scoped = [\"ClusterRoleBinding\"]",
        ),
        trick(
            "namespace",
            PLAIN.to_owned() + &tenant.object("v1", "Namespace", "", ""),
            "release.rollback.cluster_scoped = [\"Namespace\"]",
        ),
        trick(
            "unknown",
            PLAIN.to_owned() + &tenant.object("example.com/v1", "Thing", "kube-system", ""),
            "the cluster does not have example.com/v1 Thing",
        ),
        Trick {
            bad: format!(
                "{PLAIN_BAD}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: victim, namespace: {other}}}\n"
            ),
            ..trick("deleted", PLAIN.to_owned(), "ConfigMap victim in ")
        },
        Trick {
            hooks: hook(json!(["pre-rollback"]), map("kube-system")),
            ..trick("hook", PLAIN.to_owned(), system)
        },
        Trick {
            hooks: hook(json!(["post-rollback"]), map("") + &tenant.binding()),
            ..trick(
                "wide-hook",
                PLAIN.to_owned(),
                "release.rollback.cluster_scoped",
            )
        },
        Trick {
            hooks: hook(json!(["pre-rollback"]), "a: [".to_owned()),
            ..trick("broken-hook", PLAIN.to_owned(), "cannot be read")
        },
        Trick {
            edit: Box::new(|text| text.replacen("\"namespace\":\"", "\"namespace\":\"kube-", 1)),
            ..trick(
                "says",
                PLAIN.to_owned(),
                "says that it is of the namespace kube-",
            )
        },
        // Go takes keys in capitals for the same.
        Trick {
            edit: Box::new(keyed),
            ..trick("capitals", PLAIN.to_owned(), asked)
        },
    ]
}

#[test]
fn no_trick_of_a_record_gets_anything_outside_its_namespace() {
    for helm in [Helm::Three, Helm::Four] {
        let Some(cluster) = Cluster::new("tricks", helm) else {
            return;
        };
        let tenant = Tenant::new(&cluster);
        for trick in tricks(&tenant) {
            let name = trick.name;
            let target = tenant
                .record(name, 1, &trick.target, &trick.hooks)
                .to_string();
            tenant.forge(name, 1, &(trick.edit)(target));
            tenant.forge(
                name,
                2,
                &tenant.record(name, 2, &trick.bad, &json!([])).to_string(),
            );
            let (code, said) = tenant.rolled_back(name, &helm.path(), "");
            tenant.has_got_nothing(&format!("{name}: {said}"));
            assert_eq!(code, Some(11), "{name}: {said}");
            assert!(
                said.contains(trick.says),
                "{name}: {:?} is not in: {said}",
                trick.says
            );
        }
    }
}

/// A record that Leadsman does not see as one of the release, and Helm does: it is the newest to Helm, so what it names
/// and the target does not would be deleted.
#[test]
fn a_record_under_another_name_deletes_nothing_outside_its_namespace() {
    for helm in [Helm::Three, Helm::Four] {
        let Some(cluster) = Cluster::new("hidden", helm) else {
            return;
        };
        let tenant = Tenant::new(&cluster);
        tenant.forge_two("app", PLAIN, PLAIN_BAD);
        let victim = format!(
            "{PLAIN_BAD}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: victim, namespace: {}}}\n",
            tenant.other
        );
        let record = tenant.record("app", 9, &victim, &json!([])).to_string();
        let mut secret = Tenant::secret("hidden", "app", 9, &record);
        secret["type"] = "Opaque".into();
        let answer = tenant.send("POST", &tenant.secrets(), &secret);
        assert_eq!(answer["kind"], "Secret", "{answer}");
        let (_, said) = tenant.rolled_back("app", &helm.path(), "");
        tenant.has_got_nothing(&said);
    }
}

/// The record is changed after the last look, and before helm reads it.
#[test]
fn a_record_that_is_changed_in_between_gets_nothing_outside_its_namespace() {
    for helm in [Helm::Three, Helm::Four] {
        let Some(cluster) = Cluster::new("between", helm) else {
            return;
        };
        let tenant = Tenant::new(&cluster);
        tenant.forge_two("app", PLAIN, PLAIN_BAD);
        let evil = format!(
            "{PLAIN}{}",
            tenant.object("v1", "ConfigMap", "kube-system", "")
        );
        let record = tenant.record("app", 1, &evil, &json!([])).to_string();
        let object = "sh.helm.release.v1.app.v1";
        let file = cluster.folder().join(format!("{}.json", cluster.namespace));
        let body = Tenant::secret(object, "app", 1, &record).to_string();
        std::fs::write(&file, body).unwrap();
        let script = format!(
            "case \"$*\" in *rollback*) curl -sf -o /dev/null --cacert {} -X PUT -H 'Content-Type: application/json' -H 'Authorization: Bearer {}' --data-binary @{} https://127.0.0.1:6443{}/{object} || exit 9;; esac\nexec \"$HELM\" \"$@\"",
            cluster.folder().join("pki/ca.crt").display(),
            tenant.token,
            file.display(),
            tenant.secrets(),
        );
        let played = cluster.played_helm(&script);
        let (code, said) = tenant.rolled_back("app", &played, "");
        tenant.has_got_nothing(&said);
        assert_eq!(code, Some(11), "{said}");
        assert!(said.contains("foreign_namespace: helm asked to"), "{said}");
        assert!(
            said.contains("release.rollback.namespaces = [\"kube-system\"]"),
            "{said}"
        );
        // What was begun does not stand in the way of an upgrade.
        let history = cluster.helm(&["history", "app", "-o", "json"]);
        assert!(!history.contains("pending"), "{history}");
    }
}

/// What both revisions have, and what the configuration allows.
#[test]
fn what_stays_as_it_is_needs_no_permission_and_what_is_allowed_is_done() {
    for helm in [Helm::Three, Helm::Four] {
        let Some(cluster) = Cluster::new("allowed", helm) else {
            return;
        };
        let tenant = Tenant::new(&cluster);
        let same = tenant.binding();
        // It is not there, and does not come: both records may lie.
        tenant.forge_two(
            "same",
            &format!("{PLAIN}{same}"),
            &format!("{PLAIN_BAD}{same}"),
        );
        let (code, said) = tenant.rolled_back("same", &helm.path(), "");
        assert!(said.contains("made revision 3"), "{code:?} {said}");
        tenant.has_got_nothing(&said);
        let own = format!("/api/v1/namespaces/{}/configmaps/plain", cluster.namespace);
        assert_eq!(cluster.get(&own)["data"]["a"], "1");

        let role = tenant.object(
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            "",
            "rules: []\n",
        );
        let map = tenant.object("v1", "ConfigMap", &tenant.other, "");
        tenant.forge_two("meant", &format!("{PLAIN}{map}{role}"), PLAIN_BAD);
        let more = format!(
            "namespaces = [{:?}]\ncluster_scoped = [\"ClusterRole\"]",
            tenant.other
        );
        let (code, said) = tenant.rolled_back("meant", &helm.path(), &more);
        assert!(said.contains("made revision 3"), "{code:?} {said}");
        let name = tenant.evil();
        let made = cluster.get(&format!(
            "/api/v1/namespaces/{}/configmaps/{name}",
            tenant.other
        ));
        assert_eq!(made["kind"], "ConfigMap", "{made}");
        let made = format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}");
        assert_eq!(cluster.get(&made)["kind"], "ClusterRole");
        cluster.send("DELETE", &made, "application/json", &json!({}));
    }
}

/// A chart version that begins to write the namespace: the objects are the same.
#[test]
fn a_namespace_that_is_spelt_out_makes_no_other_object() {
    for helm in [Helm::Three, Helm::Four] {
        let Some(cluster) = Cluster::new("spelt", helm) else {
            return;
        };
        let tenant = Tenant::new(&cluster);
        // A namespace that is spelt out is the same one, also to Helm 3.
        let spelt = PLAIN_BAD.replace(
            "  name: plain\n",
            &format!("  name: plain\n  namespace: {}\n", cluster.namespace),
        );
        let claim = |namespace: &str| {
            format!(
                "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: disk{namespace}}}\nspec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}\n"
            )
        };
        let claims = format!(
            "/api/v1/namespaces/{}/persistentvolumeclaims",
            cluster.namespace
        );
        cluster.send_text("POST", &claims, "application/yaml", &claim(""));
        let written = format!(
            "{spelt}{}",
            claim(&format!(", namespace: {}", cluster.namespace))
        );
        tenant.forge_two("spelt", &format!("{PLAIN}{}", claim("")), &written);
        let (code, said) = tenant.rolled_back("spelt", &helm.path(), "");
        assert!(said.contains("made revision 3"), "{code:?} {said}");
        let disk = cluster.get(&format!("{claims}/disk"));
        assert_eq!(disk["metadata"]["deletionTimestamp"], Value::Null, "{disk}");
        assert_eq!(disk["kind"], "PersistentVolumeClaim", "{disk}");
    }
}

#[test]
fn helm_acts_as_the_account_that_is_named_and_may_do_what_that_may() {
    for helm in [Helm::Three, Helm::Four] {
        let Some(cluster) = Cluster::new("acts", helm) else {
            return;
        };
        cluster.install(&[]);
        let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", cluster.namespace);
        let account = json!({"metadata": {"name": "deployer"}});
        cluster.send("POST", &accounts, "application/json", &account);
        let settings = Settings::by(helm);
        let text = |kubeconfig: &std::path::Path| {
            let text = configuration(&cluster, &settings, kubeconfig);
            text.replacen(
                "[kubernetes]\n",
                "[kubernetes]\nimpersonate = \"deployer\"\n",
                1,
            )
        };
        let kubeconfig = cluster.least(&text(&cluster.kubeconfig()));
        let user = format!("system:serviceaccount:{}:deployer", cluster.namespace);
        let group = format!(
            "/apis/rbac.authorization.k8s.io/v1/namespaces/{}",
            cluster.namespace
        );
        // Leadsman itself may change nothing of the app.
        let own = cluster.get(&format!("{group}/roles/leadsman")).to_string();
        assert!(
            own.contains("impersonate") && !own.contains("\"create\",\"patch\",\"delete\""),
            "{own}"
        );
        // Without its Role the account may nothing, whatever Leadsman may.
        let binding = format!("{group}/rolebindings/leadsman-helm-{}", cluster.namespace);
        let mut bound = cluster.get(&binding);
        cluster.send("DELETE", &binding, "application/json", &json!({}));
        let (_, said, more) = run_apart(&text(&cluster.kubeconfig()), &["check", "--online"]);
        for part in [
            "rights are missing",
            "patch deployments.apps in",
            &format!("for {user}"),
        ] {
            assert!(said.contains(part), "{part} is not in: {said}{more}");
        }
        bound["metadata"] = json!({"name": bound["metadata"]["name"]});
        cluster.send(
            "POST",
            &format!("{group}/rolebindings"),
            "application/json",
            &bound,
        );

        let guarded = Guarded::allowed(&cluster, &text(&kubeconfig));
        cluster.upgrade(&[DEAD]);
        let ended = guarded.outcome(2);
        assert_eq!(
            ended["outcome"],
            "rolled_back",
            "{ended:#}\n{}",
            guarded.leadsman.log()
        );
        // Who is meant by the audit log is the one who acts; beside that it says as whom.
        let audit = std::fs::read_to_string(cluster.folder().join("audit.log")).unwrap();
        let made = audit
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut made = made.filter(|event| {
            event["objectRef"]["namespace"] == cluster.namespace.as_str()
                && event["objectRef"]["resource"] == "deployments"
                && event["impersonatedUser"]["username"] == user.as_str()
        });
        let event = made.next().expect("helm acts as the account");
        assert_eq!(
            event["user"]["username"],
            cluster.account().as_str(),
            "{event}"
        );
        let alone = cluster.writes(&cluster.account());
        assert!(
            alone
                .iter()
                .any(|write| write.starts_with("update secrets/")),
            "{alone:?}"
        );
    }
}
