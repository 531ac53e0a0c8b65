//! One replica, or two, at an API server that keeps one Lease and can be made slow.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::*;

const TIMES: LeaseTimes = LeaseTimes {
    renew: Duration::from_millis(100),
    deadline: Duration::from_secs(1),
    duration: Duration::from_millis(1500),
};

/// What the API server has, and how it behaves.
#[derive(Default)]
struct Server {
    lease: Mutex<Option<Value>>,
    version: AtomicU64,
    /// The next write is carried out, and answered only after the deadline.
    is_late: AtomicBool,
    /// The next write is carried out, and never answered.
    is_silent: AtomicBool,
}

/// A way to it; while it is cut off nothing is answered.
#[derive(Clone)]
struct Way {
    server: Arc<Server>,
    is_cut: Arc<AtomicBool>,
}

type Answer = (StatusCode, Json<Value>);

fn refusal(code: StatusCode) -> Answer {
    let reason = if code == StatusCode::NOT_FOUND {
        "NotFound"
    } else {
        "Conflict"
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": reason, "message": ""});
    (code, Json(status))
}

async fn answer(
    State(Way { server, is_cut }): State<Way>,
    method: Method,
    body: Option<Json<Value>>,
) -> Answer {
    if is_cut.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    let written = {
        let mut lease = server.lease.lock().unwrap();
        let there = lease.clone();
        let Some(Json(mut new)) = body else {
            return there.map_or(refusal(StatusCode::NOT_FOUND), |there| {
                (StatusCode::OK, Json(there))
            });
        };
        let is_as_read = match &there {
            Some(there) => {
                there["metadata"]["resourceVersion"] == new["metadata"]["resourceVersion"]
            }
            None => method == Method::POST,
        };
        if !is_as_read {
            return refusal(if there.is_some() {
                StatusCode::CONFLICT
            } else {
                StatusCode::NOT_FOUND
            });
        }
        let version = server.version.fetch_add(1, Ordering::Relaxed) + 1;
        new["metadata"]["resourceVersion"] = version.to_string().into();
        *lease = Some(new.clone());
        new
    };
    if server.is_silent.swap(false, Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    if server.is_late.swap(false, Ordering::Relaxed) {
        tokio::time::sleep(TIMES.deadline * 2).await;
    }
    (StatusCode::OK, Json(written))
}

struct Silent;

impl LeaseObserver for Silent {
    fn leadership(&self, _: bool) {}
    fn failed(&self) {}
    fn changed(&self) {}
}

impl Server {
    /// Another way to it, and whether it is cut off.
    async fn way(self: &Arc<Self>) -> (Client, Arc<AtomicBool>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let is_cut = Arc::new(AtomicBool::new(false));
        let way = Way {
            server: Arc::clone(self),
            is_cut: Arc::clone(&is_cut),
        };
        let router = Router::new().fallback(answer).with_state(way);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::try_from(kube::Config::new(url.parse().unwrap()));
        (client.unwrap(), is_cut)
    }

    fn fence(&self) -> u64 {
        let lease = self.lease.lock().unwrap();
        let fence = &lease.as_ref().unwrap()["metadata"]["annotations"][FENCE];
        fence.as_str().unwrap().parse().unwrap()
    }
}

/// A replica at work.
struct Replica {
    permit: Permit,
    status: watch::Receiver<LeaderStatus>,
    stop: CancellationToken,
}

fn replica(client: &Client, name: &str) -> Replica {
    let candidate = LeaderElector::new(
        client.clone(),
        "leadsman",
        "leadsman",
        name.into(),
        None,
        TIMES,
        None,
        Arc::new(Silent),
    );
    let (permit, status) = (candidate.permit(), candidate.status());
    let stop = CancellationToken::new();
    tokio::spawn(candidate.run(stop.clone()));
    Replica {
        permit,
        status,
        stop,
    }
}

impl Replica {
    /// Waits until it acts; its number.
    async fn acts(&mut self) -> u64 {
        let leadership = |status: &LeaderStatus| matches!(status, LeaderStatus::Leads { .. });
        let status = self.status.wait_for(leadership);
        let status = tokio::time::timeout(Duration::from_secs(30), status);
        let LeaderStatus::Leads { fence } = *status.await.unwrap().unwrap() else {
            unreachable!("it was waited for")
        };
        fence
    }

    async fn waits(&mut self) {
        let follows = |status: &LeaderStatus| matches!(status, LeaderStatus::Follows { .. });
        let status = self.status.wait_for(follows);
        let status = tokio::time::timeout(Duration::from_secs(30), status);
        let _ = status.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn one_whose_renewal_was_answered_too_late_begins_anew() {
    let server = Arc::new(Server::default());
    let (client, _) = server.way().await;
    let mut one = replica(&client, "one");
    let first = one.acts().await;
    server.is_late.store(true, Ordering::Relaxed);
    // Whatever ran under the old permit has ended itself: it must not be taken for still running.
    one.waits().await;
    let second = one.acts().await;
    assert!(second > first, "{second} {first}");
    assert_eq!(one.permit.fence(), Some(second));
}

#[tokio::test]
async fn one_that_never_heard_that_it_got_the_lease_takes_it_without_waiting_for_itself() {
    let server = Arc::new(Server::default());
    let (client, _) = server.way().await;
    server.is_silent.store(true, Ordering::Relaxed);
    let mut one = replica(&client, "one");
    let fence = one.acts().await;
    // The first time was not heard of, and counts all the same.
    assert_eq!(server.fence(), fence);
}

#[tokio::test]
async fn a_lease_that_is_deleted_is_not_taken_while_its_holder_may_still_act() {
    let server = Arc::new(Server::default());
    let ((mine, is_cut), (theirs, _)) = (server.way().await, server.way().await);
    let mut one = replica(&mine, "one");
    let first = one.acts().await;
    let mut two = replica(&theirs, "two");
    let has_seen =
        |status: &LeaderStatus| matches!(status, LeaderStatus::Follows { leader: Some(_) });
    let seen = two.status.wait_for(has_seen);
    let seen = tokio::time::timeout(Duration::from_secs(30), seen).await;
    drop(seen.unwrap().unwrap());
    // The first one does not get to know what has been done.
    is_cut.store(true, Ordering::Relaxed);
    server.lease.lock().unwrap().take();
    let second = two.acts().await;
    assert!(!one.permit.holds());
    assert!(second > first, "{second} {first}");
}

#[tokio::test]
async fn another_one_acts_once_the_first_may_not_any_more() {
    let server = Arc::new(Server::default());
    let ((mine, is_cut), (theirs, _)) = (server.way().await, server.way().await);
    let mut one = replica(&mine, "one");
    let first = one.acts().await;
    let mut two = replica(&theirs, "two");
    is_cut.store(true, Ordering::Relaxed);
    let second = two.acts().await;
    assert!(!one.permit.holds());
    assert!(second > first, "{second} {first}");
    // Given back, it is taken by whoever waits.
    is_cut.store(false, Ordering::Relaxed);
    one.waits().await;
    two.stop.cancel();
    assert!(one.acts().await > second);
}

/// A replica that knows of other Leases, and how it gives this one to another.
fn one_of_many(client: &Client, name: &str, others: &[(&str, &str)]) -> (Replica, Transfer) {
    let balance = LeaseBalance::new(name);
    for (lease, holder) in others {
        balance.note(lease, holder);
    }
    let candidate = LeaderElector::new(
        client.clone(),
        "leadsman",
        "leadsman.shop.web",
        name.into(),
        None,
        TIMES,
        Some(Arc::new(balance)),
        Arc::new(Silent),
    );
    let (permit, status) = (candidate.permit(), candidate.status());
    let transfer = candidate.transfer();
    let stop = CancellationToken::new();
    tokio::spawn(candidate.run(stop.clone()));
    let replica = Replica {
        permit,
        status,
        stop,
    };
    (replica, transfer)
}

#[tokio::test]
async fn whoever_has_fewer_asks_and_is_given() {
    let server = Arc::new(Server::default());
    let (client, _) = server.way().await;
    let (mut one, mut transfer) = one_of_many(&client, "one", &[("a", "one"), ("b", "one")]);
    let first = one.acts().await;
    let (mut two, _) = one_of_many(&client, "two", &[("a", "one"), ("b", "one")]);
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while transfer.wanted_by().is_none() {
        assert!(tokio::time::Instant::now() < until, "nobody asks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(transfer.wanted_by().as_deref(), Some("two"));
    // A wish takes nothing away.
    assert_eq!(one.permit.fence(), Some(first));
    transfer.hand_over().await;
    assert!(!one.permit.holds());
    let second = two.acts().await;
    assert!(second > first && two.permit.holds(), "{second} {first}");
    // The one that gave it does not want it back at once, and nobody asks for it any more.
    tokio::time::sleep(TIMES.renew * 3).await;
    assert!(two.permit.holds() && !one.permit.holds());
    let lease = server.lease.lock().unwrap().clone().unwrap();
    assert_eq!(lease["metadata"]["annotations"].get(WANTED_BY), None);
    two.stop.cancel();
    two.waits().await;
    // It is free, and the other one takes it after all.
    assert!(one.acts().await > second);
}

#[tokio::test]
async fn nobody_asks_where_it_is_even() {
    let server = Arc::new(Server::default());
    let (client, _) = server.way().await;
    let (mut one, transfer) = one_of_many(&client, "one", &[]);
    one.acts().await;
    let (two, _) = one_of_many(&client, "two", &[]);
    tokio::time::sleep(LOOK_EVERY * 3).await;
    assert_eq!(transfer.wanted_by(), None);
    assert!(!two.permit.holds());
}
