//! Requests about all releases, if each of them has a Lease of its own: asks every replica that leads some of them,
//! concurrently. Each answers for itself alone.
//!
//! Invariants:
//! - a request asks each replica once, however many releases it leads, and waits at most [`PATIENCE`] for it;
//! - data about a release comes from the replica that leads it, or the answer says why it does not;
//! - a request from another replica is answered without asking a third one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::leader_proxy::{ReplicaRequest, is_passed_on};
use super::status::ReleaseView;
use super::{AppState, LeaderProxy, LeaderRoute, Routing, response_budget, too_busy};

/// Maximum wait for the other replicas: shorter than that of the status page, because writing the answer comes on top.
const PATIENCE: Duration = Duration::from_secs(2);

/// Maximum size of one replica's list: as much as a command reads of all of them.
const MAX_LIST: usize = 16 * 1024 * 1024;

/// A release: its namespace and name.
type GatheredRelease = (String, String);

/// The answers of the other replicas.
pub(super) struct FanOutResults {
    answers: Arc<Routing>,
    /// Whether another replica asks, which asks the others itself.
    is_passed_on: bool,
    /// The lists by replica, or why there is none.
    said: BTreeMap<String, Result<Bytes, String>>,
}

/// Asks the other replicas for a path.
pub(super) async fn fan_out(
    shared: &AppState,
    path: &'static str,
    headers: &HeaderMap,
) -> Result<FanOutResults, Response> {
    let mut gathered = FanOutResults {
        answers: shared.answers(),
        is_passed_on: is_passed_on(headers),
        said: BTreeMap::new(),
    };
    if gathered.is_passed_on {
        return Ok(gathered);
    }
    let others = others(&gathered.answers);
    let Some(_turns) = shared.forwards.gathered(others.len()) else {
        return Err(too_busy("lists are gathered from the other replicas"));
    };
    let asked = ReplicaRequest {
        method: Method::GET,
        path,
        headers: HeaderMap::new(),
        body: Bytes::new(),
        patience: PATIENCE,
        most: MAX_LIST,
    };
    for (identity, said) in ask(&others, &asked).await {
        let said = match said {
            Ok(bytes) => {
                let held = shared.response_budget.hold(bytes).await;
                held.ok_or_else(|| format!("too many {}", response_budget::WAITING))
            }
            Err(why) => Err(why),
        };
        if let Err(why) = &said {
            tracing::debug!(identity, why, "A replica that acts could not be asked");
        }
        gathered.said.insert(identity, said);
    }
    Ok(gathered)
}

/// The connections to the other replicas, or why there is none.
pub(super) type OtherReplicas = BTreeMap<String, Result<Arc<LeaderProxy>, String>>;

/// The other replicas that lead a release, each once.
pub(super) fn others(answers: &Routing) -> OtherReplicas {
    let mut others = OtherReplicas::new();
    let Routing::Each(each) = answers else {
        return others;
    };
    for leader_route in each.values() {
        let LeaderRoute::Elsewhere { identity, forward } = leader_route else {
            continue;
        };
        // One way to reach it is enough.
        let known = others.get(identity);
        if known.is_none_or(|known| known.is_err() && forward.is_ok()) {
            others.insert(identity.clone(), forward.clone());
        }
    }
    others
}

/// Asks all of them concurrently.
pub(super) async fn ask(
    others: &OtherReplicas,
    asked: &ReplicaRequest,
) -> Vec<(String, Result<Vec<u8>, String>)> {
    let asking = others.iter().map(async |(identity, forward)| {
        let said = match forward {
            Ok(forward) => forward.ask(asked).await,
            Err(why) => Err(why.clone()),
        };
        (identity.clone(), said)
    });
    futures::future::join_all(asking).await
}

/// One list of several replicas.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum FanOutEntry<'a, T> {
    Ours(T),
    /// As the other replica wrote it.
    Theirs(&'a RawValue),
}

/// One replica's answer to any of the requests.
#[derive(Default, Deserialize)]
struct FanOutLists<'a> {
    #[serde(borrow, default)]
    releases: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    alerts: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    objectives: Vec<&'a RawValue>,
}

/// What an entry is about.
#[derive(Deserialize)]
struct EntrySubject {
    namespace: Option<String>,
    release: Option<String>,
}

impl EntrySubject {
    fn key(self) -> Option<GatheredRelease> {
        Some((self.namespace?, self.release?))
    }
}

/// The same of an alert.
#[derive(Deserialize)]
struct AlertSubjectLabels {
    labels: EntrySubject,
}

/// The parsed lists of the other replicas.
pub(super) struct ReplicaLists<'a> {
    gathered: &'a FanOutResults,
    lists: BTreeMap<&'a str, Result<FanOutLists<'a>, &'a str>>,
}

impl FanOutResults {
    pub(super) fn read(&self) -> ReplicaLists<'_> {
        let lists = self.said.iter().map(|(identity, said)| {
            let lists = match said {
                Ok(bytes) => {
                    serde_json::from_slice(bytes).map_err(|_| "what it answers is not understood")
                }
                Err(why) => Err(why.as_str()),
            };
            (identity.as_str(), lists)
        });
        ReplicaLists {
            lists: lists.collect(),
            gathered: self,
        }
    }

    /// The leader of a release; `None` if unknown, so that this replica answers.
    fn leader_route(&self, key: &GatheredRelease) -> Option<&LeaderRoute> {
        match &*self.answers {
            // We do, or would not be asked.
            Routing::One(_) => None,
            Routing::Each(each) => each.get(key),
        }
    }
}

impl<'a> ReplicaLists<'a> {
    /// The releases in our order, each as its leader shows it.
    pub(super) fn releases(&self, own: Vec<ReleaseView>) -> Vec<FanOutEntry<'a, ReleaseView>> {
        let mut theirs: HashMap<(&str, GatheredRelease), &'a RawValue> = HashMap::new();
        for (identity, lists) in self.heard() {
            for raw in &lists.releases {
                let about = serde_json::from_str::<EntrySubject>(raw.get());
                if let Some(key) = about.ok().and_then(EntrySubject::key) {
                    theirs.insert((identity, key), raw);
                }
            }
        }
        let merged = own.into_iter().filter_map(|view| {
            let key = (view.controller.namespace.clone(), view.controller.release.clone());
            let leader_route = match self.gathered.leader_route(&key) {
                None | Some(LeaderRoute::Here) => return Some(FanOutEntry::Ours(view)),
                // Whoever asks knows better whom to ask.
                Some(_) if self.gathered.is_passed_on => return None,
                Some(leader_route) => leader_route,
            };
            let says = match leader_route {
                LeaderRoute::Elsewhere { identity, .. } => {
                    if let Some(raw) = theirs.get(&(identity.as_str(), key)) {
                        return Some(FanOutEntry::Theirs(raw));
                    }
                    match self.lists.get(identity.as_str()) {
                        Some(Err(why)) => format!(
                            "The replica {identity} acts for it, and cannot be asked at the moment: {why}"
                        ),
                        Some(Ok(_)) | None => format!(
                            "The replica {identity} does not act for it any more; another one takes over within some seconds"
                        ),
                    }
                }
                LeaderRoute::Nobody | LeaderRoute::Here => {
                    "No replica acts for it at the moment; one takes over within some seconds".into()
                }
            };
            Some(FanOutEntry::Ours(view.unheard(says)))
        });
        merged.collect()
    }

    /// The alerts of all replicas, ours first. `about` gives the namespace and name of an alert's release.
    pub(super) fn alerts<T>(
        &self,
        own: impl Iterator<Item = T>,
        about: impl Fn(&T) -> Option<(&str, &str)>,
    ) -> Vec<FanOutEntry<'a, T>> {
        self.joined(
            own,
            about,
            |lists| &lists.alerts,
            |raw| Some(serde_json::from_str::<AlertSubjectLabels>(raw).ok()?.labels),
        )
    }

    /// The objectives of all replicas, in the same way.
    pub(super) fn objectives<T>(
        &self,
        own: impl Iterator<Item = T>,
        about: impl Fn(&T) -> Option<(&str, &str)>,
    ) -> Vec<FanOutEntry<'a, T>> {
        self.joined(
            own,
            about,
            |lists| &lists.objectives,
            |raw| serde_json::from_str(raw).ok(),
        )
    }

    fn joined<T>(
        &self,
        own: impl Iterator<Item = T>,
        about: impl Fn(&T) -> Option<(&str, &str)>,
        list: impl for<'l> Fn(&'l FanOutLists<'a>) -> &'l Vec<&'a RawValue>,
        about_raw: impl Fn(&str) -> Option<EntrySubject>,
    ) -> Vec<FanOutEntry<'a, T>> {
        let own = own.filter(|entry| {
            about(entry).is_none_or(|(namespace, name)| {
                self.tells_of(None, &(namespace.to_owned(), name.to_owned()))
            })
        });
        let mut joined: Vec<_> = own.map(FanOutEntry::Ours).collect();
        for (identity, lists) in self.heard() {
            let theirs = list(lists).iter().filter(|raw| {
                about_raw(raw.get()).is_some_and(|about| {
                    about
                        .key()
                        .is_none_or(|key| self.tells_of(Some(identity), &key))
                })
            });
            joined.extend(theirs.map(|raw| FanOutEntry::Theirs(raw)));
        }
        joined
    }

    /// Whether a replica answers for a release; `None` is this replica.
    fn tells_of(&self, replica: Option<&str>, key: &GatheredRelease) -> bool {
        match self.gathered.leader_route(key) {
            None | Some(LeaderRoute::Here) => replica.is_none(),
            Some(LeaderRoute::Elsewhere { identity, .. }) => replica == Some(identity),
            Some(LeaderRoute::Nobody) => false,
        }
    }

    fn heard(&self) -> impl Iterator<Item = (&'a str, &FanOutLists<'a>)> {
        let lists = self.lists.iter();
        lists.filter_map(|(identity, lists)| Some((*identity, lists.as_ref().ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::TlsConfig;
    use crate::http::status::GuardView;
    use serde_json::{Value, json};

    fn key(name: &str) -> GatheredRelease {
        ("shop".into(), name.into())
    }

    fn by(identity: &str) -> LeaderRoute {
        LeaderRoute::Elsewhere {
            identity: identity.into(),
            forward: Err("it is not asked here".into()),
        }
    }

    /// `a` is ours, `b` and `f` belong to leadsman-1, `c` to leadsman-2, `d` has no leader; other releases have no
    /// Lease.
    fn gathered(said: &[(&str, Result<Value, &str>)]) -> FanOutResults {
        let each = [
            ("a", LeaderRoute::Here),
            ("b", by("leadsman-1")),
            ("c", by("leadsman-2")),
            ("d", LeaderRoute::Nobody),
            ("f", by("leadsman-1")),
        ];
        let each = each.map(|(name, leader_route)| (key(name), leader_route));
        let said = said.iter().map(|(identity, said)| {
            let said = said.as_ref();
            let said = said.map(|said| Bytes::from(said.to_string()));
            (
                (*identity).to_owned(),
                said.map_err(|why| (*why).to_owned()),
            )
        });
        FanOutResults {
            answers: Arc::new(Routing::Each(each.into())),
            is_passed_on: false,
            said: said.collect(),
        }
    }

    fn ours() -> Vec<ReleaseView> {
        let views = ["f", "a", "b", "c", "d", "e"].map(|name| {
            ReleaseView::bare(GuardView {
                namespace: "shop".into(),
                release: name.into(),
                mode: "observe",
                phase: "ours".into(),
                says: "ours".into(),
                ..GuardView::default()
            })
        });
        views.into()
    }

    fn theirs(name: &str, says: &str) -> Value {
        json!({ "namespace": "shop", "release": name, "phase": "theirs", "says": says })
    }

    /// The name, the phase and what is said, one line each.
    fn told(gathered: &FanOutResults) -> Vec<String> {
        let merged = serde_json::to_string(&gathered.read().releases(ours())).unwrap();
        let merged: Vec<Value> = serde_json::from_str(&merged).unwrap();
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
        let lines = merged.iter().map(|entry| {
            ["release", "phase", "says"]
                .map(|key| text(entry, key))
                .join(" ")
        });
        lines.collect()
    }

    #[test]
    fn each_release_is_told_of_by_the_replica_that_acts_for_it() {
        let first = json!({ "releases": [
            theirs("b", "it steers"),
            // What it does not act for, and what is nothing, changes nothing.
            theirs("a", "a lie"), theirs("c", "a lie"), theirs("d", "a lie"), theirs("e", "a lie"),
            7, { "release": "f" },
        ] });
        let gathered = gathered(&[
            ("leadsman-1", Ok(first)),
            ("leadsman-2", Err("no answer in time")),
        ]);
        assert_eq!(
            told(&gathered),
            [
                "f unknown The replica leadsman-1 does not act for it any more; another one takes over within some seconds",
                "a ours ours",
                "b theirs it steers",
                "c unknown The replica leadsman-2 acts for it, and cannot be asked at the moment: no answer in time",
                "d unknown No replica acts for it at the moment; one takes over within some seconds",
                "e ours ours",
            ]
        );
    }

    #[test]
    fn an_answer_that_is_none_is_as_good_as_no_answer() {
        for nonsense in [json!("hello"), json!({ "releases": 3 })] {
            let gathered = gathered(&[
                ("leadsman-1", Ok(nonsense)),
                (
                    "leadsman-2",
                    Ok(json!({ "releases": [theirs("c", "it steers")] })),
                ),
            ]);
            let told = told(&gathered);
            assert!(
                told[0].ends_with("what it answers is not understood"),
                "{told:?}"
            );
            assert_eq!(told[3], "c theirs it steers");
        }
    }

    #[test]
    fn another_replica_is_told_only_of_what_we_act_for() {
        let mut gathered = gathered(&[]);
        gathered.is_passed_on = true;
        assert_eq!(told(&gathered), ["a ours ours", "e ours ours"]);
        gathered.answers = Arc::new(Routing::One(LeaderRoute::Here));
        assert_eq!(told(&gathered).len(), ours().len());
    }

    #[test]
    fn what_cannot_be_heard_of_is_not_said_to_be_only_probed() {
        let view = |engine| {
            let mut view = ours().remove(0);
            Arc::make_mut(&mut view.controller).engine = engine;
            serde_json::to_value(view.unheard("why".into())).unwrap()
        };
        let unknown = view(None);
        assert_eq!(
            (&unknown["engine"], &unknown["mode"]),
            (&json!("unknown"), &json!("unknown"))
        );
        let known = view(Some("helm"));
        assert_eq!(
            (&known["engine"], &known["mode"]),
            (&json!("helm"), &json!("observe"))
        );
        assert_eq!(known["revision"], Value::Null);
    }

    #[test]
    fn alerts_and_objectives_of_a_release_come_from_one_replica_and_what_is_of_none_from_all() {
        fn about<'a>(entry: &'a (&str, i32)) -> Option<(&'a str, &'a str)> {
            (!entry.0.is_empty()).then_some(("shop", entry.0))
        }
        let own = [("a", 1), ("b", 2), ("", 3), ("d", 4), ("e", 5)];
        let alert =
            |release: &str| json!({ "labels": { "namespace": "shop", "release": release } });
        let objective = |release: &str| json!({ "namespace": "shop", "release": release });
        let names = ["a", "b", "c", "f", "e"];
        let mut alerts: Vec<Value> = names.iter().map(|name| alert(name)).collect();
        alerts.extend([json!({ "labels": { "alertname": "itself" } }), json!(null)]);
        let objectives: Vec<Value> = names.iter().map(|name| objective(name)).collect();
        let first = json!({ "alerts": alerts, "objectives": objectives });
        let gathered = gathered(&[("leadsman-1", Ok(first)), ("leadsman-2", Err("away"))]);
        let heard = gathered.read();
        let json = |list: &[FanOutEntry<'_, (&str, i32)>]| -> Vec<Value> {
            serde_json::from_str(&serde_json::to_string(list).unwrap()).unwrap()
        };
        let ours = [json!(["a", 1]), json!(["", 3]), json!(["e", 5])];
        let expected = [
            alert("b"),
            alert("f"),
            json!({ "labels": { "alertname": "itself" } }),
        ];
        let joined = json(&heard.alerts(own.into_iter(), about));
        assert_eq!(joined, [&ours[..], &expected[..]].concat());
        let joined = json(&heard.objectives(own.into_iter(), about));
        assert_eq!(
            joined,
            [&ours[..], &[objective("b"), objective("f")]].concat()
        );
    }

    #[tokio::test]
    async fn a_replica_that_acts_for_several_releases_is_asked_once() {
        let one = LeaderRoute::Elsewhere {
            identity: "leadsman-1".into(),
            forward: LeaderProxy::to("http://127.0.0.1:1", &TlsConfig::default()).map(Arc::new),
        };
        let each = [
            ("a", by("leadsman-1")),
            ("b", one),
            ("c", by("leadsman-1")),
            ("d", LeaderRoute::Nobody),
            ("e", LeaderRoute::Here),
            ("f", by("leadsman-2")),
        ];
        let each = each.map(|(name, leader_route)| (key(name), leader_route));
        let others = others(&Routing::Each(each.into()));
        let reached = others
            .iter()
            .map(|(name, forward)| (name.as_str(), forward.is_ok()));
        assert_eq!(
            reached.collect::<Vec<_>>(),
            [("leadsman-1", true), ("leadsman-2", false)]
        );
        assert!(super::others(&Routing::One(by("leadsman-1"))).is_empty());
    }
}
