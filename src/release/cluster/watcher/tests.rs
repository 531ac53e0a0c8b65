//! An API server that is played, request by request; time is played as well.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::Status;
use serde_json::json;
use tokio::time::Instant;

use super::*;

type Answer<T> = kube::Result<T>;

/// What the API server answers, in order; when nothing is left it hangs.
#[derive(Default)]
struct Played {
    lists: VecDeque<Answer<ListPage<ConfigMap>>>,
    watches: VecDeque<Answer<Vec<Answer<WatchEvent<ConfigMap>>>>>,
    asked: Vec<(Instant, String)>,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Played>>);

impl WatchSource for Server {
    type Item = ConfigMap;

    async fn list(&self, params: &ListParams) -> kube::Result<ListPage<ConfigMap>> {
        let next = {
            let mut played = self.0.lock().unwrap();
            let page = params.continue_token.clone().unwrap_or_default();
            played.asked.push((Instant::now(), format!("list {page}")));
            played.lists.pop_front()
        };
        match next {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    async fn watch(&self, _: &WatchParams, from: &str) -> kube::Result<WatchEvents<ConfigMap>> {
        let next = {
            let mut played = self.0.lock().unwrap();
            played.asked.push((Instant::now(), format!("watch {from}")));
            played.watches.pop_front()
        };
        match next {
            Some(answer) => Ok(futures::stream::iter(answer?).boxed()),
            None => std::future::pending().await,
        }
    }

    fn meta(item: &ConfigMap) -> &ObjectMeta {
        &item.metadata
    }
}

fn object(name: &str, version: &str) -> ConfigMap {
    let object = json!({"metadata": {"name": name, "resourceVersion": version}});
    serde_json::from_value(object).unwrap()
}

fn page(names: &[&str], version: &str, next: Option<&str>) -> ListPage<ConfigMap> {
    ListPage {
        items: names.iter().map(|name| object(name, version)).collect(),
        version: version.to_owned(),
        next: next.map(str::to_owned),
    }
}

fn rollback_error(code: u16, message: &str, retry_after: u32) -> kube::Error {
    let status = json!({
        "status": "Failure", "code": code, "message": message, "reason": "Played",
        "details": {"retryAfterSeconds": retry_after}
    });
    kube::Error::Api(Box::new(serde_json::from_value::<Status>(status).unwrap()))
}

fn unreadable() -> kube::Error {
    kube::Error::SerdeError(serde_json::from_str::<u8>("x").unwrap_err())
}

/// Follows until the server has nothing more to answer; what was told and what was asked.
async fn followed(played: Played) -> (Vec<String>, Vec<(Instant, String)>) {
    let server = Server(Arc::new(Mutex::new(played)));
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = {
        let told = Arc::clone(&told);
        move |one: CacheEvent<ConfigMap>| {
            let name = |object: ConfigMap| object.metadata.name.unwrap();
            let text = match one {
                CacheEvent::Begin => "begin".to_owned(),
                CacheEvent::Is(object) => format!("is {}", name(object)),
                CacheEvent::Gone(object) => format!("gone {}", name(object)),
                CacheEvent::End => "end".to_owned(),
                CacheEvent::Well => "well".to_owned(),
                CacheEvent::Fails(_) => "fails".to_owned(),
            };
            told.lock().unwrap().push(text);
        }
    };
    // What hangs at the end is a request without an answer; before its limit everything else has happened.
    let all = follow(server.clone(), ObjectSelector::default(), tell);
    let is_over = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let played = server.0.lock().unwrap();
            let last = played.asked.last().map(|(at, _)| *at);
            let is_idle = last.is_some_and(|at| at.elapsed() > PATIENCE.mul_f64(0.9));
            if is_idle && played.lists.is_empty() && played.watches.is_empty() {
                return;
            }
        }
    };
    tokio::select! {
        () = all => {}
        () = is_over => {}
    }
    let told = told.lock().unwrap().clone();
    let asked = server.0.lock().unwrap().asked.clone();
    (told, asked)
}

fn requests(asked: &[(Instant, String)]) -> Vec<&str> {
    asked.iter().map(|(_, what)| what.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_too_old_or_too_new_takes_a_new_list_at_once() {
    for (code, message) in [
        (410, "too old resource version: 5 (9)"),
        (504, "Timeout: Too large resource version: 5, current: 2"),
    ] {
        let (told, asked) = followed(Played {
            lists: [Ok(page(&["a"], "5", None)), Ok(page(&["b"], "2", None))].into(),
            watches: [Err(rollback_error(code, message, 0))].into(),
            ..Played::default()
        })
        .await;
        let wanted = ["list ", "watch 5", "list ", "watch 2"];
        assert_eq!(requests(&asked), wanted, "{message}");
        let wanted = [
            "begin", "is a", "end", "well", "fails", "begin", "is b", "end", "well",
        ];
        assert_eq!(told, wanted, "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_server_says_how_long_it_wants_to_be_left_alone() {
    let (_, asked) = followed(Played {
        lists: [Ok(page(&["a"], "5", None))].into(),
        watches: (0..6)
            .map(|_| Err(rollback_error(429, "too many", 7)))
            .collect(),
        ..Played::default()
    })
    .await;
    // The place is as good as before, however often it is busy.
    assert!(asked[1..].iter().all(|(_, what)| what == "watch 5"));
    for pair in asked[1..].windows(2) {
        assert!(pair[1].0 - pair[0].0 >= Duration::from_secs(7));
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_read_again_and_again_takes_a_new_list() {
    let event = |version: &str| Ok(WatchEvent::Modified(object("a", version)));
    let (told, asked) = followed(Played {
        lists: [
            Ok(page(&["a"], "5", None)),
            Ok(page(&["a", "b"], "9", None)),
        ]
        .into(),
        watches: [
            Ok(vec![event("6"), Err(unreadable())]),
            Ok(vec![Err(unreadable())]),
            Ok(vec![Err(unreadable())]),
            Ok(vec![Err(unreadable())]),
        ]
        .into(),
        ..Played::default()
    })
    .await;
    // The first one led further; the three after it did not.
    let wanted = [
        "list ", "watch 5", "watch 6", "watch 6", "watch 6", "list ", "watch 9",
    ];
    assert_eq!(requests(&asked), wanted);
    assert_eq!(told.iter().filter(|what| *what == "is b").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_asked_for_the_same_place() {
    let away = || Err(kube::Error::Service("connection refused".into()));
    let (_, asked) = followed(Played {
        lists: [Ok(page(&[], "5", None))].into(),
        watches: (0..8).map(|_| away()).collect(),
        ..Played::default()
    })
    .await;
    assert!(asked[1..].iter().all(|(_, what)| what == "watch 5"));
    // And less and less often.
    let gaps: Vec<Duration> = asked[1..]
        .windows(2)
        .map(|two| two[1].0 - two[0].0)
        .collect();
    assert!(gaps.last().unwrap() > &(gaps[0] * 4), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_at_once_is_trouble_and_not_asked_in_a_circle() {
    let (told, asked) = followed(Played {
        lists: [Ok(page(&[], "5", None))].into(),
        watches: (0..5).map(|_| Ok(Vec::new())).collect(),
        ..Played::default()
    })
    .await;
    assert_eq!(told.iter().filter(|what| *what == "fails").count(), 5);
    let (first, last) = (asked[1].0, asked[6].0);
    assert!(last - first >= Duration::from_secs(5), "{:?}", last - first);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_in_the_middle_is_begun_anew_and_only_a_whole_one_ends() {
    let (told, asked) = followed(Played {
        lists: [
            Ok(page(&["a"], "5", Some("p2"))),
            Err(rollback_error(500, "etcdserver: leader changed", 0)),
            Ok(page(&["a"], "6", Some("p2"))),
            Ok(page(&["b"], "6", None)),
        ]
        .into(),
        ..Played::default()
    })
    .await;
    let wanted = ["list ", "list p2", "list ", "list p2", "watch 6"];
    assert_eq!(requests(&asked), wanted);
    let wanted = [
        "begin", "is a", "fails", "begin", "is a", "is b", "end", "well",
    ];
    assert_eq!(told, wanted);
}
