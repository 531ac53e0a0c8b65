//! An API server that is played: what is in a ConfigMap comes back to whoever may have it, and to nobody else.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::tests::Noted;
use super::super::{AGREES, StateStore, StoredKind, StoredState};
use super::*;
use crate::core::units::{Namespace, ReleaseName, Revision, Time};
use crate::platform::clock;
use crate::platform::permit::HeldLease;

#[derive(Default)]
pub(crate) struct World {
    maps: BTreeMap<String, Value>,
    version: u64,
    /// The server's clock, in seconds.
    now: u64,
    /// What it answers instead of doing anything.
    pub(crate) refuses: Option<u16>,
    /// What becomes of the ConfigMap in the moment before somebody goes on with it.
    last_word: Option<Value>,
    writes: u32,
}

type Played = Arc<Mutex<World>>;
type Asked = Query<HashMap<String, String>>;

impl World {
    fn answer(&self, code: StatusCode, body: &Value) -> Response {
        let date = UNIX_EPOCH + Duration::from_secs(self.now);
        let date = HeaderValue::from_str(&httpdate::fmt_http_date(date)).unwrap();
        let mut headers = HeaderMap::from_iter([(http::header::DATE, date)]);
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        (code, headers, body.to_string()).into_response()
    }

    fn refusal(&self, code: u16) -> Response {
        let status = json!({"kind": "Status", "status": "Failure", "code": code, "reason": "No", "message": "no"});
        self.answer(StatusCode::from_u16(code).unwrap(), &status)
    }

    fn write(&mut self, manager: &str, mut map: Value) -> Response {
        self.writes += 1;
        let name = map["metadata"]["name"].as_str().unwrap().to_owned();
        if manager == TAKER
            && let Some(word) = self.last_word.take()
        {
            self.maps.insert(name.clone(), word);
        }
        let there = self.maps.get(&name);
        let version = there.map_or(&Value::Null, |there| &there["metadata"]["resourceVersion"]);
        if *version != map["metadata"]["resourceVersion"] {
            return self.refusal(409);
        }
        let is_same = there.is_some_and(|there| there["binaryData"] == map["binaryData"]);
        let before = there.map(|there| there["metadata"]["managedFields"].clone());
        let mut entries = before.unwrap_or_else(|| json!([]));
        let entries = entries.as_array_mut().unwrap();
        let fields = if is_same {
            json!({"f:metadata": {}})
        } else {
            entries.clear();
            json!({"f:binaryData": {}, "f:metadata": {}})
        };
        let time = Timestamp::from_second(i64::try_from(self.now).unwrap()).unwrap();
        entries.push(json!({
            "manager": manager,
            "operation": "Update",
            "fieldsV1": fields,
            "time": time.to_string(),
        }));
        map["metadata"]["managedFields"] = json!(entries);
        self.version += 1;
        map["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.maps.insert(name, map.clone());
        self.answer(StatusCode::OK, &map)
    }
}

async fn read(State(world): State<Played>, Path(name): Path<String>) -> Response {
    let world = world.lock().unwrap();
    match (world.refuses, world.maps.get(&name)) {
        (Some(code), _) => world.refusal(code),
        (None, Some(map)) => world.answer(StatusCode::OK, map),
        (None, None) => world.refusal(404),
    }
}

async fn write(State(world): State<Played>, Query(asked): Asked, body: String) -> Response {
    let mut world = world.lock().unwrap();
    if let Some(code) = world.refuses {
        return world.refusal(code);
    }
    let map = serde_json::from_str(&body).unwrap();
    let manager = asked.get("fieldManager").cloned().unwrap_or_default();
    world.write(&manager, map)
}

pub(crate) struct Cluster {
    world: Played,
    client: Client,
}

const SERVER_NOW: u64 = 1_700_000_000;

impl Cluster {
    pub(crate) async fn new() -> Self {
        let world = Played::default();
        world.lock().unwrap().now = SERVER_NOW;
        let all = "/api/v1/namespaces/ours/configmaps";
        let router = Router::new()
            .route(all, post(write))
            .route(&format!("{all}/{{name}}"), get(read).put(write))
            .with_state(Arc::clone(&world));
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", tcp.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(tcp, router).await });
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        Self { world, client }
    }

    pub(crate) fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn map(&self, name: &str) -> Value {
        self.world().maps.get(name).cloned().unwrap_or_default()
    }

    fn fence(&self) -> Value {
        self.map(MAP)["metadata"]["annotations"][FENCE].clone()
    }

    /// A replica in its own turn; without one there is nobody else.
    pub(crate) fn replica(&self, term: Option<u64>) -> Replica {
        let folder = tempfile::tempdir().unwrap();
        let maps = ConfigMaps::new(self.client.clone(), "ours", "leadsman");
        let mut store = StateStore::open(folder.path()).unwrap().with_maps(maps);
        let (lease, held) = watch::channel(None);
        if let Some(fence) = term {
            let until = clock::now() + Duration::from_secs(3600);
            lease.send_replace(Some(HeldLease { until, fence }));
            store = store.with_permit(Permit::of(held));
        }
        Replica {
            store,
            lease,
            folder,
        }
    }
}

pub(crate) struct Replica {
    pub(crate) store: StateStore,
    pub(crate) lease: watch::Sender<Option<HeldLease>>,
    pub(crate) folder: tempfile::TempDir,
}

const MAP: &str = "leadsman.state.shop.web";

fn names() -> (Namespace, ReleaseName) {
    (Namespace::new("shop"), ReleaseName::new("web"))
}

fn at(seconds: u64) -> Time {
    Time::from_millis(seconds * 1000)
}

impl Replica {
    fn load_at(&self, kind: StoredKind, seconds: u64) -> StoredState<Noted> {
        let (namespace, release) = names();
        self.store.load(kind, &namespace, &release, at(seconds))
    }

    fn save_at(&self, kind: StoredKind, noted: u64, seconds: u64) -> io::Result<()> {
        let (namespace, release) = names();
        let noted = Noted(at(noted));
        self.store
            .save(kind, &namespace, &release, &noted, at(seconds))
    }

    fn load(&self) -> StoredState<Noted> {
        self.load_at(StoredKind::State, SERVER_NOW)
    }

    fn save(&self, noted: u64) -> io::Result<()> {
        self.save_at(StoredKind::State, noted, SERVER_NOW)
    }

    fn fence(&self) -> u64 {
        let (namespace, release) = names();
        self.store.fence(StoredKind::State, &namespace, &release)
    }
}

fn noted(seconds: u64) -> StoredState<Noted> {
    StoredState::State(Noted(at(seconds)))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_unknown_and_is_not_written_over() {
    let cluster = Cluster::new().await;
    let first = cluster.replica(Some(1));
    assert_eq!(first.load(), StoredState::Nothing);
    first.save(5).unwrap();
    // It acted long ago as well, so it has a file of its own, which is old.
    let second = cluster.replica(Some(2));
    second.save(1).unwrap_err();
    for code in [429, 500, 403] {
        cluster.world().refuses = Some(code);
        let found = second.load();
        let StoredState::Unknown(why) = found else {
            panic!("{found:?}");
        };
        assert!(why.contains("ConfigMap"), "{why}");
        second.save(1).unwrap_err();
    }
    cluster.world().refuses = None;
    let refused = second.save(1).unwrap_err().to_string();
    assert!(refused.contains("was not read"), "{refused}");
    assert_eq!(second.load(), noted(5));
    second.save(6).unwrap();
    assert_eq!(cluster.replica(Some(3)).load(), noted(6));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_replicas_too_a_blip_is_not_the_end_of_what_is_stored() {
    let cluster = Cluster::new().await;
    let first = cluster.replica(None);
    assert_eq!(first.load(), StoredState::Nothing);
    first.save(5).unwrap();
    let second = cluster.replica(None);
    cluster.world().refuses = Some(429);
    assert!(matches!(second.load(), StoredState::Unknown(_)));
    cluster.world().refuses = None;
    second.save(1).unwrap_err();
    // The file that this left is as new as the ConfigMap; the newer of both counts.
    assert_eq!(second.load_at(StoredKind::State, SERVER_NOW), noted(1));
    second
        .save_at(StoredKind::State, 7, SERVER_NOW + 1)
        .unwrap();
    let third = cluster.replica(None);
    assert_eq!(third.load_at(StoredKind::State, SERVER_NOW + 1), noted(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_acted_before_writes_nothing_after_it_was_read() {
    let cluster = Cluster::new().await;
    let first = cluster.replica(Some(1));
    first.load();
    first.save(5).unwrap();
    assert_eq!(cluster.replica(Some(2)).load(), noted(5));
    // Its own clock says that it still may.
    let refused = first.save(6).unwrap_err().to_string();
    assert!(refused.contains("only one may"), "{refused}");
    assert_eq!(cluster.fence(), "2");
    assert_eq!(cluster.replica(Some(3)).load(), noted(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_word_of_whoever_acted_before_is_read() {
    let cluster = Cluster::new().await;
    let first = cluster.replica(Some(1));
    first.load();
    first.save(6).unwrap();
    let last_word = cluster.map(MAP);
    first.save(5).unwrap();
    // In between comes what is the last word here: it has another version than the one that was read.
    cluster.world().last_word = Some(last_word);
    assert_eq!(cluster.replica(Some(2)).load(), noted(6));
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_only_grow_also_when_the_lease_counts_anew() {
    let cluster = Cluster::new().await;
    let mut last = 0;
    for term in [Some(9), Some(1), None, Some(4), Some(40)] {
        let replica = cluster.replica(term);
        replica.load();
        replica.save(5).unwrap();
        let fence = replica.fence();
        assert!(fence > last && fence >= term.unwrap_or(0), "{fence}");
        assert_eq!(cluster.fence(), fence.to_string());
        last = fence;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_permit_nothing_is_sent() {
    let cluster = Cluster::new().await;
    let replica = cluster.replica(Some(1));
    replica.load();
    replica.save(5).unwrap();
    replica.lease.send_replace(None);
    let before = cluster.world().writes;
    replica.save(6).unwrap_err();
    assert!(matches!(replica.load(), StoredState::Unknown(_)));
    assert_eq!(cluster.world().writes, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_times_of_a_clock_forty_minutes_off_are_moved_to_ours() {
    for (writer, reader) in [
        (SERVER_NOW + 2400, SERVER_NOW),
        (SERVER_NOW - 2400, SERVER_NOW),
        (SERVER_NOW, SERVER_NOW + 2400),
        (SERVER_NOW + 2400, SERVER_NOW + 2400),
    ] {
        let cluster = Cluster::new().await;
        let first = cluster.replica(Some(1));
        first.load();
        // Something began a minute before. It is taken over after 20 s, and again before that one has written anything.
        first
            .save_at(StoredKind::State, writer - 60, writer)
            .unwrap();
        for (term, later) in [(2, 20), (3, 40)] {
            cluster.world().now = SERVER_NOW + later;
            let replica = cluster.replica(Some(term));
            let found = replica.load_at(StoredKind::State, reader + later);
            let StoredState::State(Noted(began)) = found else {
                panic!("{found:?}");
            };
            let since = Time::from_millis((reader + later) * 1000).since(began);
            let should = Duration::from_secs(60 + later);
            // Whole seconds, and what the request took.
            assert!(since.abs_diff(should) < AGREES, "{since:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_kept_each_time_and_never_written_over() {
    let cluster = Cluster::new().await;
    let replica = cluster.replica(Some(1));
    replica.load();
    replica.save(5).unwrap();
    let spoil = |text: &str| {
        let packed = packed(text.as_bytes()).unwrap();
        let mut world = cluster.world();
        let map = world.maps.get_mut(MAP).unwrap();
        map["binaryData"][KEY] = json!(ByteString(packed));
        map["binaryData"].clone()
    };
    for number in 1..=MAX_ASIDE {
        let spoilt = spoil(&format!("of a newer one, {number}"));
        let excluded = match number {
            1 => format!("{MAP}.aside"),
            _ => format!("{MAP}.aside-{number}"),
        };
        // Twice, as when it is killed before it writes a state of its own.
        for _ in 0..2 {
            let found = replica.load();
            let StoredState::Quarantined(why) = found else {
                panic!("{found:?}");
            };
            assert!(why.contains(&excluded), "{why}");
            let map = cluster.map(&excluded);
            assert_eq!(map["binaryData"], spoilt);
            assert!(map["metadata"]["annotations"][FENCE].is_string());
        }
        replica.save(6).unwrap();
    }
    let spoilt = spoil("one too many");
    let found = replica.load();
    let StoredState::Unknown(why) = found else {
        panic!("{found:?}");
    };
    assert!(why.contains("delete them"), "{why}");
    replica.save(7).unwrap_err();
    assert_eq!(cluster.map(MAP)["binaryData"], spoilt);
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_that_each_keeps_by_itself_replace_those_of_another_but_not_unread_ones() {
    let cluster = Cluster::new().await;
    let first = cluster.replica(Some(1));
    first.load_at(StoredKind::Spans, SERVER_NOW);
    first.save_at(StoredKind::Spans, 5, SERVER_NOW).unwrap();
    let (second, third) = (cluster.replica(Some(2)), cluster.replica(Some(3)));
    assert_eq!(second.load_at(StoredKind::Spans, SERVER_NOW), noted(5));
    first.save_at(StoredKind::Spans, 6, SERVER_NOW).unwrap();
    second.save_at(StoredKind::Spans, 7, SERVER_NOW).unwrap();
    let (namespace, release) = names();
    assert!(
        !third
            .store
            .is_known(StoredKind::Spans, &namespace, &release)
    );
    third.save_at(StoredKind::Spans, 8, SERVER_NOW).unwrap_err();
    assert_eq!(third.load_at(StoredKind::Spans, SERVER_NOW), noted(7));
    third.save_at(StoredKind::Spans, 8, SERVER_NOW).unwrap();
}

/// By whoever acts, and only the newest: a pod's disk is small, and a ConfigMap even more so.
#[tokio::test(flavor = "multi_thread")]
async fn the_recording_of_a_watch_is_found_by_whoever_goes_on_elsewhere() {
    let cluster = Cluster::new().await;
    let (first, second) = (cluster.replica(Some(1)), cluster.replica(Some(2)));
    let (namespace, release) = names();
    let keep = |replica: &Replica, revision: u32| {
        let path = replica.folder.path().join("recording.jsonl");
        let text = format!("{{\"line\":\"head\",\"revision\":{revision}}}\n{{\"line\":\"end\"}}\n");
        std::fs::write(&path, text).unwrap();
        replica.store.keep_recording(&namespace, &release, &path)
    };
    let found = |replica: &Replica, revision: u32| {
        let found = replica
            .store
            .recording(&namespace, &release, Revision(revision));
        found
            .unwrap()
            .map(|bytes| String::from_utf8(bytes).unwrap())
    };
    assert_eq!(found(&second, 2), None);
    keep(&first, 2).unwrap();
    assert!(found(&second, 2).unwrap().ends_with("{\"line\":\"end\"}\n"));
    assert_eq!(found(&second, 3), None, "it is of another revision");
    // Of a watch that it went on with, the second one has a part.
    let part = "{\"line\":\"head\",\"revision\":2,\"goes_on\":{}}\n";
    let own = second.folder.path().join("recordings/shop.web.v2.7.jsonl");
    std::fs::write(&own, part).unwrap();
    assert_ne!(found(&second, 2).unwrap(), part);
    cluster.world().refuses = Some(500);
    assert_eq!(found(&second, 2).unwrap(), part);
    cluster.world().refuses = None;
    std::fs::write(&own, "{\"line\":\"head\",\"revision\":2}\n").unwrap();
    assert_eq!(
        found(&second, 2).unwrap().lines().count(),
        1,
        "its own is whole"
    );
    std::fs::remove_file(&own).unwrap();
    // It replaces what another one has kept.
    keep(&second, 4).unwrap();
    assert_eq!(found(&first, 2), None);
    assert!(found(&first, 4).is_some());
    first.lease.send_replace(None);
    keep(&first, 2).unwrap_err();
    assert!(found(&second, 4).is_some());
    cluster.world().refuses = Some(500);
    let refused = second.store.recording(&namespace, &release, Revision(4));
    assert!(refused.is_err());
}

#[test]
fn time_is_told_by_who_wrote_the_state_and_not_by_who_goes_on_with_it() {
    let entry =
        |fields: Value, time: &str| json!({"manager": "any", "fieldsV1": fields, "time": time});
    let map = |entries: Vec<Value>| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"managedFields": entries}})).unwrap()
    };
    let state = entry(json!({"f:binaryData": {}}), "2026-01-02T03:04:05Z");
    let goes_on = entry(json!({"f:metadata": {}}), "2026-01-02T04:00:00Z");
    let at = written_at(&map(vec![goes_on.clone(), state])).unwrap();
    assert_eq!(at.to_string(), "2026-01-02T03:04:05Z");
    assert_eq!(written_at(&map(vec![goes_on])), None);
    assert_eq!(written_at(&ConfigMap::default()), None);
}
