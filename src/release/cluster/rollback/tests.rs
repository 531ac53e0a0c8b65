//! Rollbacks against records that a small API server keeps, by a helm that a script plays.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::extract::{Path as Place, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::repair::description;
use super::*;
use crate::config::settings::{HelmDriver, RollbackPermissions};
use crate::core::units::{Namespace, ReleaseName, Time};
use crate::platform::clock::Timeline;
use crate::platform::permit::Permit;
use crate::release::cluster::labels;
use crate::release::cluster::{NamespaceCache, RollbackPolicy};

/// The records as Secrets by revision. What helm writes it leaves as files `new-N` in the folder.
struct Store {
    folder: std::path::PathBuf,
    secrets: Mutex<BTreeMap<u32, Value>>,
}

impl Store {
    /// Revision 1 is good, 2 is another one, and what comes after them was made by rollbacks to 1.
    fn put(&self, revision: u32, status: &str, labels: &[(&str, &str)]) {
        let contents = if revision == 2 { "b" } else { "a" };
        let description = match (revision, status) {
            (1 | 2, _) => "Upgrade complete".to_owned(),
            (_, "failed") => "Rollback \"web\" failed: it did".to_owned(),
            _ => "Rollback to 1".to_owned(),
        };
        let record = json!({
            "name": "web", "version": revision,
            "info": {"status": status, "description": description},
            "manifest": format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {contents}}}\n"),
        });
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(record.to_string().as_bytes()).unwrap();
        let payload = STANDARD.encode(STANDARD.encode(gzip.finish().unwrap()));
        let mut all = json!({"owner": "helm", "name": "web", "status": status});
        for (name, value) in labels {
            all[*name] = (*value).into();
        }
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "helm.sh/release.v1",
            "metadata": {"name": format!("sh.helm.release.v1.web.v{revision}"), "labels": all, "resourceVersion": "1"},
            "data": {"release": payload},
        });
        self.secrets.lock().unwrap().insert(revision, secret);
    }

    fn take_what_helm_wrote(&self) {
        for revision in 1..10 {
            let file = self.folder.join(format!("new-{revision}"));
            if let Ok(status) = std::fs::read_to_string(&file) {
                std::fs::remove_file(&file).unwrap();
                self.put(revision, status.trim(), &[]);
            }
        }
    }

    fn created(&self, revision: u32, at: &str) {
        let mut secrets = self.secrets.lock().unwrap();
        let secret = secrets.get_mut(&revision).unwrap();
        secret["metadata"]["creationTimestamp"] = at.into();
    }

    fn label(&self, revision: u32, name: &str) -> Option<String> {
        let secrets = self.secrets.lock().unwrap();
        let labels = &secrets[&revision]["metadata"]["labels"];
        labels[name].as_str().map(str::to_owned)
    }
}

fn number(name: &str) -> u32 {
    name.rsplit_once(".v").unwrap().1.parse().unwrap()
}

async fn list(State(store): State<Arc<Store>>) -> Json<Value> {
    store.take_what_helm_wrote();
    let secrets = store.secrets.lock().unwrap();
    let items = secrets.values().map(|secret| {
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": secret["metadata"]})
    });
    let items: Vec<Value> = items.collect();
    Json(json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": items
    }))
}

async fn read(
    State(store): State<Arc<Store>>,
    Place(name): Place<String>,
) -> (StatusCode, Json<Value>) {
    let secret = store.secrets.lock().unwrap().get(&number(&name)).cloned();
    match secret {
        Some(secret) => (StatusCode::OK, Json(secret)),
        None => (
            StatusCode::NOT_FOUND,
            Json(json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"})),
        ),
    }
}

async fn replace(
    State(store): State<Arc<Store>>,
    Place(name): Place<String>,
    Json(mut secret): Json<Value>,
) -> Json<Value> {
    let mut secrets = store.secrets.lock().unwrap();
    let old = &secrets[&number(&name)]["metadata"]["resourceVersion"];
    assert_eq!(secret["metadata"]["resourceVersion"], *old, "guarded");
    let next = old.as_str().unwrap().parse::<u32>().unwrap() + 1;
    secret["metadata"]["resourceVersion"] = next.to_string().into();
    secrets.insert(number(&name), secret.clone());
    Json(secret)
}

struct World {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    cluster: Arc<ClusterEngine>,
    _serving: tokio::task::JoinHandle<()>,
}

impl World {
    /// With revisions 1, superseded, and 2, deployed; helm does what the script says.
    async fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store {
            folder: folder.path().to_owned(),
            secrets: Mutex::default(),
        });
        store.put(1, "superseded", &[]);
        store.put(2, "deployed", &[]);
        let routes = Router::new()
            .route("/api/v1/namespaces/shop/secrets", get(list))
            .route(
                "/api/v1/namespaces/shop/secrets/{name}",
                get(read).put(replace),
            )
            .with_state(Arc::clone(&store));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        let cache = NamespaceCache::new(
            client,
            Namespace::new("shop"),
            HelmDriver::Secret,
            Timeline::start(),
        );
        let policy = RollbackPolicy {
            helm: played(folder.path(), script),
            helm_memory: 256 * 1024 * 1024,
            scratch: folder.path().to_owned(),
            cluster: "cluster".into(),
            may: RollbackPermissions::default(),
            permit: Permit::always(),
            enforces: true,
            by_person: false,
        };
        Self {
            cluster: ClusterEngine::new(cache, ReleaseName::new("web"), policy),
            folder,
            store,
            _serving: serving,
        }
    }

    async fn plan(&self) -> RollbackPlan {
        let target = self.cluster.record(Revision(1)).await.unwrap().unwrap();
        RollbackPlan {
            bad: Revision(2),
            target: Revision(1),
            digest: target.digest(),
            reason: "hard_down".into(),
            fence: 7,
            is_dry_run: false,
        }
    }

    async fn rows(&self) -> Vec<RecordSummaryRow> {
        let release = ReleaseName::new("web");
        self.cluster.records.list(&release).await.unwrap()
    }

    fn status(&self, revision: u32) -> String {
        self.store.label(revision, "status").unwrap()
    }

    fn runs(&self) -> usize {
        let runs = std::fs::read_to_string(self.folder.path().join("runs"));
        runs.unwrap_or_default().lines().count()
    }
}

fn played(folder: &Path, script: &str) -> std::path::PathBuf {
    let helm = folder.join("helm");
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *version*) echo v4.2.0; exit 0;; esac\necho run >> runs\n{script}\n"
    );
    std::fs::write(&helm, text).unwrap();
    std::fs::set_permissions(&helm, std::fs::Permissions::from_mode(0o755)).unwrap();
    helm
}

#[tokio::test]
async fn a_run_that_fails_is_marked_and_followed_by_one_that_works() {
    let world = World::new(
        "if [ ! -e once ]; then touch once; echo failed > new-3; echo 'Error: etcdserver: request timed out' >&2; exit 1; fi\n\
         echo deployed > new-4",
    )
    .await;
    let report = world.cluster.roll_back(&world.plan().await).await.unwrap();
    assert_eq!(report.created_revision, Revision(4));
    assert_eq!(world.runs(), 2);
    // One of us that comes later steps over it.
    assert_eq!(world.store.label(3, labels::MADE).as_deref(), Some("3"));
    assert_eq!(world.status(3), "failed");
    assert_eq!(world.store.label(4, labels::MADE).as_deref(), Some("4"));
    assert_eq!(
        world.store.label(4, labels::TURNED_BACK).as_deref(),
        Some("2")
    );
    let digest = world.store.label(4, labels::DIGEST).unwrap();
    assert!(world.plan().await.digest.0.starts_with(&digest));
    assert!(world.cluster.left().is_none());
}

#[tokio::test]
async fn a_long_reason_is_cut_in_the_record_and_the_digest_is_not() {
    let world = World::new("echo deployed > new-3").await;
    let long = "é".repeat(300);
    let plan = RollbackPlan {
        reason: long,
        ..world.plan().await
    };
    world.cluster.roll_back(&plan).await.unwrap();
    let created_revision = world.cluster.record(Revision(3)).await.unwrap().unwrap();
    let said = created_revision.description;
    let digest: String = plan.digest.0.chars().take(12).collect();
    assert_eq!(said.chars().count(), 256, "{said}");
    assert!(
        said.starts_with("Rollback to 1 by Leadsman: revision 2: éé"),
        "{said}"
    );
    assert!(said.ends_with(&format!("é…; contents {digest}")), "{said}");
    let short = RollbackPlan {
        reason: "hard_down".into(),
        ..plan
    };
    assert_eq!(
        description(&short, &digest),
        format!("Rollback to 1 by Leadsman: revision 2: hard_down; contents {digest}")
    );
}

#[tokio::test]
async fn a_record_that_a_failing_helm_leaves_pending_is_put_right() {
    let world = World::new(
        "echo pending-rollback > new-3; echo 'Error: warning: Hook pre-rollback a.yaml failed: it did' >&2; exit 1",
    )
    .await;
    let rollback_error = world.cluster.roll_back(&world.plan().await).await;
    let text = rollback_error.unwrap_err().to_string();
    assert!(
        text.contains("it did") && text.contains("by hand: helm rollback web 1 --namespace shop"),
        "{text}"
    );
    assert_eq!((world.status(3).as_str(), world.runs()), ("failed", 1));
}

#[tokio::test]
async fn after_a_restart_runs_of_ours_that_failed_are_stepped_over() {
    let world = World::new("").await;
    let plan = world.plan().await;
    world.store.put(3, "failed", &[(labels::MADE, "3")]);
    world.store.put(4, "pending-rollback", &[]);
    let found = world.cluster.found(&plan, plan.bad).await.unwrap();
    assert!(matches!(found, RollbackProgress::Pending(row) if row.revision == Revision(4)));
    // What somebody else did in between is theirs.
    world.store.put(3, "failed", &[]);
    let found = world.cluster.found(&plan, plan.bad).await.unwrap();
    assert!(matches!(found, RollbackProgress::Overtaken(Revision(4))));
    // A label that Helm handed on names another revision.
    world.store.put(3, "failed", &[(labels::MADE, "1")]);
    let found = world.cluster.found(&plan, plan.bad).await.unwrap();
    assert!(matches!(found, RollbackProgress::Overtaken(Revision(4))));
}

#[tokio::test]
async fn what_a_rollback_that_was_given_up_left_is_put_right_later() {
    let world = World::new("").await;
    let plan = world.plan().await;
    let now = world.cluster.cache.now();
    let given_up = || world.cluster.set_left(Some((plan.clone(), now)));
    given_up();
    world.store.put(3, "pending-rollback", &[]);
    world.cluster.finish_left().await;
    assert_eq!(world.status(3), "failed");
    assert!(world.cluster.left().is_none());
    // Helm may have come to its end after all.
    given_up();
    world.store.put(3, "deployed", &[]);
    world.cluster.finish_left().await;
    assert_eq!(world.store.label(3, labels::MADE).as_deref(), Some("3"));
    // Where nothing came of it nothing will: what comes later is somebody else's.
    world.store.secrets.lock().unwrap().remove(&3);
    given_up();
    world.cluster.finish_left().await;
    assert!(world.cluster.left().is_none());
    world.store.put(3, "pending-rollback", &[]);
    world.cluster.finish_left().await;
    assert_eq!(world.status(3), "pending-rollback");
    // So is what was begun after it was given up, and what goes back to other contents.
    world
        .cluster
        .set_left(Some((plan.clone(), Time::default())));
    world.store.created(3, "2026-01-01T00:00:00Z");
    world.cluster.finish_left().await;
    assert_eq!(world.status(3), "pending-rollback");
    let digest = crate::core::revision_ledger::ContentDigest("other".into());
    let other = RollbackPlan { digest, ..plan };
    world.cluster.set_left(Some((other, now)));
    world.cluster.finish_left().await;
    assert_eq!(world.status(3), "pending-rollback");
    assert!(world.cluster.left().is_none());
}

#[tokio::test]
async fn what_somebody_uninstalls_is_left_alone() {
    let world = World::new("echo deployed > new-3").await;
    let plan = world.plan().await;
    for status in ["uninstalling", "uninstalled"] {
        world.store.put(2, status, &[]);
        let before = world.cluster.may_be_rolled_back(&plan).await.unwrap_err();
        let during = world.cluster.roll_back(&plan).await.unwrap_err();
        for rollback_error in [before, during] {
            assert_eq!(rollback_error.reason(), "uninstalled", "{rollback_error}");
        }
    }
    assert_eq!(world.runs(), 0);
}

#[tokio::test]
async fn a_refusal_names_the_command_for_a_person() {
    let world = World::new("").await;
    let plan = world.plan().await;
    let changed = RollbackPlan {
        digest: crate::core::revision_ledger::ContentDigest("other".into()),
        ..plan.clone()
    };
    let gone = world
        .cluster
        .may_be_rolled_back(&changed)
        .await
        .unwrap_err();
    assert_eq!(gone.reason(), "target_gone");
    let text = gone.told(world.cluster.cache.namespace(), &world.cluster.release);
    assert!(text.contains("helm history web --namespace shop"), "{text}");
}

#[tokio::test]
async fn a_record_whose_label_says_so_is_not_rolled_back() {
    let world = World::new("").await;
    let plan = world.plan().await;
    world
        .store
        .put(2, "deployed", &[("leadsman.io/rollback", "allow")]);
    let other = world.cluster.may_be_rolled_back(&plan).await;
    assert_ne!(other.unwrap_err().reason(), "denied");
    world
        .store
        .put(2, "deployed", &[("leadsman.io/rollback", "deny")]);
    let denied = world.cluster.may_be_rolled_back(&plan).await.unwrap_err();
    assert_eq!(denied.reason(), "denied");
    let text = denied.to_string();
    for part in [
        "the record's label says leadsman.io/rollback: deny",
        "helm rollback web 1",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn records_are_put_right_only_by_who_turned_them_back_or_may() {
    let mut world = World::new("").await;
    world.store.put(3, "deployed", &[(labels::MADE, "3")]);
    let cluster = Arc::get_mut(&mut world.cluster).unwrap();
    cluster.policy.enforces = false;
    // Two records are deployed, as after an upgrade that waited.
    world.cluster.repair_records(&world.rows().await).await;
    assert_eq!(world.status(2), "deployed");
    world.cluster.set_made(Revision(3));
    world.cluster.repair_records(&world.rows().await).await;
    assert_eq!(world.status(2), "superseded");
}
