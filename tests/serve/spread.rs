//! Several replicas, each of which acts for some of the releases: whichever is asked, the answer tells of all.

use std::sync::Arc;
use std::time::Instant;

use leadsman::config::settings::TlsConfig as LeaseTls;
use leadsman::http::status::{GuardView, ObjectiveView};
use leadsman::http::{
    AlertSubscriber, LeaderProxy, LeaderRoute, ReceivedAlert, Routing, ServingConfig, Shard,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::program::{Reply, hanging_server, post, request, unused_port};
use crate::serve::replica::{LONG, Made, Replica, empty, series, settings, token};

const RELEASES: [&str; 4] = ["a", "b", "c", "d"];
const ALERTS: &str = "/api/v1/alerts";

/// A replica that acts for one release, and what that is told of alerts.
fn replica(name: &str, holds: &str) -> (Replica, mpsc::Receiver<ReceivedAlert>, tempfile::TempDir) {
    let (folder, file) = token();
    let replica = Replica::start(Made {
        token_file: Some(file),
        ..Made::default()
    });
    let settings = settings(&RELEASES);
    let view = GuardView {
        namespace: "shop".into(),
        release: holds.into(),
        phase: "analyzing".into(),
        says: format!("{name} watches it"),
        ..GuardView::default()
    };
    let of = settings.releases.iter();
    let rules = of.filter(|release| release.name.to_string() == holds);
    let rules = rules.flat_map(|release| release.alerts.clone()).collect();
    let key = ("shop".to_owned(), holds.to_owned());
    let (to, heard) = mpsc::channel(4);
    replica.shared.replace_serving_config(ServingConfig {
        series: series(&settings),
        controllers: vec![watch::channel(Arc::new(view)).1],
        orders: [(key.clone(), replica.orders.clone())].into(),
        alerts: vec![AlertSubscriber {
            release: key,
            rules,
            to,
        }],
        token_file: replica.token_file.clone(),
        ..empty()
    });
    let objective = ObjectiveView {
        namespace: "shop".into(),
        release: holds.into(),
        probe: None,
        objective: "availability",
        target: 0.99,
        window: "30d".into(),
        success: 0,
        failure: 0,
        budget_remaining: 1.0,
        lasts_s: None,
        burns: Vec::new(),
        tiers: Vec::new(),
        revisions: Vec::new(),
    };
    let share = Shard::Release("shop".into(), holds.into());
    let objectives = vec![Arc::new(objective)];
    replica.shared.show_objectives(&share, objectives);
    (replica, heard, folder)
}

fn at(identity: &str, address: &str) -> LeaderRoute {
    LeaderRoute::Elsewhere {
        identity: identity.into(),
        forward: LeaderProxy::to(address, &LeaseTls::default()).map(Arc::new),
    }
}

fn each<const N: usize>(leadership: [(&str, LeaderRoute); N]) -> Routing {
    let leadership = leadership.map(|(name, lead)| (("shop".to_owned(), name.to_owned()), lead));
    Routing::Each(leadership.into())
}

/// The name of each release, its phase and what is said of it.
fn told(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer: Value = serde_json::from_str(&reply.body).unwrap();
    let releases = answer["releases"].as_array().unwrap().iter();
    let text = |release: &Value, key: &str| release[key].as_str().unwrap().to_owned();
    let lines = releases.map(|release| {
        assert_eq!(release["probes"].as_array().unwrap().len(), 1);
        ["release", "phase", "says"]
            .map(|key| text(release, key))
            .join(" ")
    });
    lines.collect()
}

#[test]
fn whichever_replica_is_asked_tells_of_all_releases() {
    let (one, _, _one) = replica("one", "a");
    let (two, _, _two) = replica("two", "b");
    let nobody = "unknown No replica acts for it at the moment; one takes over within some seconds";
    let tell_of = |d: &LeaderRoute, says: &str, replica: &Replica, paths: &[&str]| {
        one.shared.set_answers(each([
            ("a", LeaderRoute::Here),
            ("b", at("two", &two.url())),
            ("c", LeaderRoute::Nobody),
            ("d", d.clone()),
        ]));
        two.shared.set_answers(each([
            ("a", at("one", &one.url())),
            ("b", LeaderRoute::Here),
            ("c", LeaderRoute::Nobody),
            ("d", d.clone()),
        ]));
        for path in paths {
            assert_eq!(
                told(&replica.get(path, None)),
                [
                    "a analyzing one watches it",
                    "b analyzing two watches it",
                    &format!("c {nobody}"),
                    &format!("d {says}"),
                ]
            );
        }
    };
    let lists = ["/api/v1/releases", "/api/v1/status"];
    let hangs = at("three", &format!("http://{}", hanging_server()));
    let says = "unknown The replica three acts for it, and cannot be asked at the moment: no answer in time";
    let began = Instant::now();
    tell_of(&hangs, says, &one, &lists);
    // It delays each of them by two seconds.
    assert!(began.elapsed() < LONG / 4, "{:?}", began.elapsed());
    for replica in [&one, &two] {
        tell_of(&LeaderRoute::Nobody, nobody, replica, &lists);
        let objectives = replica.get("/api/v1/objectives", None);
        let objectives: Value = serde_json::from_str(&objectives.body).unwrap();
        let objectives = objectives["objectives"].as_array().unwrap().iter();
        let mut names: Vec<_> = objectives
            .map(|one| one["release"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(replica.get(ALERTS, None).body, r#"{"alerts":[]}"#);
    }
    let packed = request(
        one.address,
        "GET",
        "/api/v1/releases",
        &[("Accept-Encoding", "gzip")],
    );
    assert_eq!(packed.header("content-encoding"), "gzip");
    // Who is asked by another replica answers of itself, at once.
    let passed_on = [("X-Leadsman-Forwarded", "1")];
    let itself = request(one.address, "GET", "/api/v1/releases", &passed_on);
    assert_eq!(told(&itself), ["a analyzing one watches it"]);
}

#[test]
fn what_is_asked_of_one_release_is_answered_by_the_replica_that_acts_for_it() {
    let (one, _, _one) = replica("one", "a");
    let (two, _, _two) = replica("two", "b");
    one.shared.set_answers(each([
        ("a", LeaderRoute::Here),
        ("b", at("two", &two.url())),
        ("c", LeaderRoute::Nobody),
    ]));
    for (path, says) in [
        ("a", "one watches"),
        ("b", "two watches"),
        ("%62", "two watches"),
    ] {
        let reply = one.get(&format!("/api/v1/releases/shop/{path}"), None);
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.body.contains(says), "{path}: {}", reply.body);
    }
    let nobody = one.get("/api/v1/releases/shop/c", None);
    assert_eq!((nobody.status, nobody.header("retry-after")), (503, "1"));
    assert!(
        nobody.body.contains("no replica acts for this release"),
        "{}",
        nobody.body
    );
    assert_eq!(one.get("/api/v1/releases/shop/e", None).status, 404);

    let order = r#"{ "reason": "the cart loses items" }"#;
    let roll_back = "/api/v1/releases/shop/b/rollback";
    assert_eq!(one.post(roll_back, Some("tok-wrong"), order).status, 401);
    assert_eq!(one.post(roll_back, Some("tok-right"), order).status, 202);
    assert_eq!((one.done(), two.done()), (0, 1));

    // It has given the release away, and we have not heard of it.
    two.shared.set_answers(each([("b", at("one", &one.url()))]));
    let late = one.get("/api/v1/releases/shop/b", None);
    assert_eq!(late.status, 503, "{}", late.body);
    let told = told(&one.get("/api/v1/releases", None));
    assert!(
        told[1].contains("two does not act for it any more"),
        "{told:?}"
    );
}

fn notice(names: &[&str]) -> String {
    let alerts = names.iter().map(|name| {
        json!({
            "status": "firing",
            "labels": { "alertname": name },
            "startsAt": "2026-01-01T00:00:00Z",
            "fingerprint": name,
        })
    });
    let alerts: Vec<Value> = alerts.collect();
    json!({ "version": "4", "groupKey": "g", "status": "firing", "alerts": alerts }).to_string()
}

fn names(heard: &mut mpsc::Receiver<ReceivedAlert>) -> Vec<String> {
    std::iter::from_fn(|| heard.try_recv().ok())
        .map(|alert| alert.name)
        .collect()
}

#[test]
fn alerts_reach_every_replica_that_acts_for_a_release() {
    let (one, mut of_one, _one) = replica("one", "a");
    let (two, mut of_two, _two) = replica("two", "b");
    let two_is_at = |address: &str| {
        one.shared
            .set_answers(each([("a", LeaderRoute::Here), ("b", at("two", address))]));
    };
    two.shared.set_answers(each([
        ("a", at("one", &one.url())),
        ("b", LeaderRoute::Here),
    ]));
    two_is_at(&two.url());
    let send = |body: &str| one.post(ALERTS, Some("tok-right"), body);
    let counts = |reply: &Reply| -> Value {
        assert_eq!(reply.status, 202, "{}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    };

    // What we would not take ourselves goes nowhere.
    assert_eq!(one.post(ALERTS, None, &notice(&["b"])).status, 401);
    assert_eq!(
        one.post(ALERTS, Some("tok-wrong"), &notice(&["b"])).status,
        401
    );
    assert_eq!(send("{").status, 400);
    assert_eq!((names(&mut of_one), names(&mut of_two)), (vec![], vec![]));

    let all = notice(&["a", "b", "both", "other"]);
    assert_eq!(counts(&send(&all)), json!({ "accepted": 4, "ignored": 4 }));
    assert_eq!(names(&mut of_one), ["a", "both"]);
    assert_eq!(names(&mut of_two), ["b", "both"]);
    assert_eq!(counts(&send(&all)), json!({ "duplicate": 4, "ignored": 4 }));

    // Another replica that passes it on wants it taken here alone.
    let headers = [
        ("Authorization", "Bearer tok-right"),
        ("X-Leadsman-Forwarded", "1"),
    ];
    let passed_on = post(one.address, ALERTS, &headers, all.as_bytes());
    assert_eq!(counts(&passed_on), json!({ "duplicate": 2, "ignored": 2 }));

    // While one of them cannot be reached, or nobody acts, it is to come again; the others have it all the same.
    let mut more = of_one;
    for (name, says) in [
        ("away", "the replica two has not taken it"),
        ("nobody", "no replica acts"),
    ] {
        if name == "away" {
            two_is_at(&format!("http://127.0.0.1:{}", unused_port()));
        } else {
            one.shared
                .set_answers(each([("a", LeaderRoute::Here), ("b", LeaderRoute::Nobody)]));
        }
        let body = notice(&["both"]).replace("2026", if name == "away" { "2027" } else { "2028" });
        let refused = send(&body);
        assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
        assert!(refused.body.contains(says), "{}", refused.body);
        assert_eq!(names(&mut more), ["both"], "{name}");
        two_is_at(&two.url());
        assert_eq!(
            counts(&send(&body)),
            json!({ "accepted": 1, "duplicate": 1 })
        );
        assert_eq!(names(&mut of_two), ["both"], "{name}");
    }
}

/// What one release has heard is news to another that is acted for here since: its alert came while nobody had it.
#[test]
fn a_repeated_alert_reaches_a_release_that_was_taken_over_meanwhile() {
    let (one, mut of_one, _one) = replica("one", "a");
    one.shared
        .set_answers(each([("a", LeaderRoute::Here), ("b", LeaderRoute::Nobody)]));
    let send = || {
        one.post(ALERTS, Some("tok-right"), &notice(&["both"]))
            .status
    };
    assert_eq!(send(), 503);
    assert_eq!(names(&mut of_one), ["both"]);
    let settings = settings(&RELEASES);
    let (to, mut of_b) = mpsc::channel(4);
    let (again, mut of_a) = mpsc::channel(4);
    let alerts = settings.releases.iter().zip([again, to]);
    one.shared.replace_serving_config(ServingConfig {
        series: series(&settings),
        alerts: alerts
            .map(|(release, to)| AlertSubscriber {
                release: (release.namespace.to_string(), release.name.to_string()),
                rules: release.alerts.clone(),
                to,
            })
            .collect(),
        token_file: one.token_file.clone(),
        ..empty()
    });
    one.shared
        .set_answers(each([("a", LeaderRoute::Here), ("b", LeaderRoute::Here)]));
    assert_eq!(send(), 202);
    assert_eq!(names(&mut of_b), ["both"]);
    assert!(names(&mut of_a).is_empty());
}
