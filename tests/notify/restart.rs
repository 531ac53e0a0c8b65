//! What a restart, a reload or a store that hangs changes for those who are told: nothing.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::notify::receivers::{Receiver, Reply};
use crate::program::{Leadsman, until, unused_port};

pub(crate) fn config(alertmanager: &Receiver, state: &Path, target: &str, more: &str) -> String {
    format!(
        "[state]\ndirectory = \"{}\"\n[alertmanager]\nurls = [\"{}\"]\nresend = \"1s\"\nwatchdog = true\n{more}\
         [[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\ninterval = \"500ms\"\n\
         [[release.probe]]\nname = \"api\"\nurl = \"{target}\"\ntimeout = \"400ms\"\n",
        state.display(),
        alertmanager.url()
    )
}

pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// Kills it, changes what it stored, and starts it again.
pub(crate) fn restart_with(leadsman: &mut Leadsman, state: &Path, edit: impl FnOnce(&mut Value)) {
    let file = state.join("alerts.json");
    until("the alerts are stored", || file.exists());
    leadsman.kill();
    let mut stored: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    edit(&mut stored["state"]);
    std::fs::write(&file, stored.to_string()).unwrap();
    leadsman.start_again();
}

/// An alert as it is stored that has fired for an hour.
pub(crate) fn firing(name: &str, place: &Value, since: u64) -> Value {
    let mut labels =
        json!({"alertname": name, "severity": "critical", "priority": "P1", "source": "leadsman"});
    for (key, value) in place.as_object().unwrap() {
        labels[key] = value.clone();
    }
    json!({
        "kind": name, "labels": labels, "text": "as it was", "fragment": "",
        "state": {"firing": {"since": since}}, "held": since,
    })
}

/// All that an Alertmanager was sent of an alert, in order.
pub(crate) fn sent(alertmanager: &Receiver, name: &str) -> Vec<Value> {
    let requests = alertmanager.requests();
    let shard_leaderships = requests
        .iter()
        .filter(|request| request.head.starts_with("POST"));
    shard_leaderships
        .flat_map(|request| serde_json::from_str::<Vec<Value>>(&request.body).unwrap())
        .filter(|alert| alert["labels"]["alertname"] == name)
        .collect()
}

#[test]
fn a_restart_in_the_middle_of_an_outage_tells_of_no_end() {
    let alertmanager = Receiver::start(|_| Reply::status(200).body("[]"));
    let app = Receiver::start(|_| Reply::status(500));
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let config = config(&alertmanager, &state, &app.url(), "");
    let mut leadsman = Leadsman::run(&config, &[]);
    let since = now_ms() - 3_600_000;
    let place = json!({"namespace": "shop", "release": "mykadoo", "probe": "api"});
    restart_with(&mut leadsman, &state, |state| {
        let alerts = state["alerts"].as_array_mut().unwrap();
        alerts.retain(|alert| alert["kind"] != "LeadsmanProbeFailing");
        alerts.push(firing("LeadsmanProbeFailing", &place, since));
    });
    // By then it has been seen to fail again; before that nobody knew.
    let name = "LeadsmanProbeFailing";
    until("it is sent with what was seen since", || {
        let sent = sent(&alertmanager, name);
        sent.iter().any(|alert| {
            let text = alert["annotations"]["description"].as_str().unwrap();
            text.contains("times in a row")
        })
    });
    let sent = sent(&alertmanager, name);
    assert!(sent.len() >= 2, "{sent:#?}");
    let first = &sent[0];
    for alert in &sent {
        assert_eq!(alert["startsAt"], first["startsAt"]);
        // Each firing one ends later than the one before; one that is over ended before it was sent.
        assert!(alert["endsAt"].as_str() >= first["endsAt"].as_str());
    }
    let shown: Value = serde_json::from_str(&leadsman.get("/api/v1/alerts").body).unwrap();
    let is_it = |alert: &&Value| alert["labels"]["alertname"] == name;
    let shown = shown["alerts"]
        .as_array()
        .unwrap()
        .iter()
        .find(is_it)
        .unwrap()
        .clone();
    assert_eq!(shown["state"], "firing", "{shown:#}");
}

#[test]
fn the_end_of_an_alert_is_sent_again_and_again() {
    let alertmanager = Receiver::start(|_| Reply::status(200).body("[]"));
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let config = config(&alertmanager, &state, "tcp://127.0.0.1:1", "");
    let mut leadsman = Leadsman::run(&config, &[]);
    // Of a release that nobody guards any more.
    let since = now_ms() - 3_600_000;
    let place = json!({"namespace": "shop", "release": "gone", "revision": "7"});
    let name = "LeadsmanReleaseRegressed";
    restart_with(&mut leadsman, &state, |state| {
        let alerts = state["alerts"].as_array_mut().unwrap();
        alerts.push(firing(name, &place, since));
    });
    // At first it may be sent as it was stored.
    let ended = || {
        let mut sent = sent(&alertmanager, name);
        let last = sent
            .last()
            .map_or(Value::Null, |alert| alert["endsAt"].clone());
        sent.retain(|alert| alert["endsAt"] == last);
        sent
    };
    until("its end is sent several times", || ended().len() >= 3);
    let all = sent(&alertmanager, name);
    assert!(
        all.iter()
            .all(|alert| alert["startsAt"] == all[0]["startsAt"])
    );
}

/// What had ended before the restart is told on for the rest of its quarter of an hour, also where it was about to begin
/// again; what had ended longer ago is not.
#[test]
fn an_end_of_before_the_restart_is_sent_on() {
    let alertmanager = Receiver::start(|_| Reply::status(200).body("[]"));
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let config = config(&alertmanager, &state, "tcp://127.0.0.1:1", "");
    let mut leadsman = Leadsman::run(&config, &[]);
    let now = now_ms();
    let ago = |minutes: u64| now - minutes * 60_000;
    let probe = json!({"namespace": "shop", "release": "mykadoo", "probe": "api"});
    let gone =
        |revision: &str| json!({"namespace": "shop", "release": "gone", "revision": revision});
    let ended = |name: &str, place: &Value, state: Value| {
        let mut alert = firing(name, place, ago(60));
        alert["state"] = state;
        alert
    };
    let (regressed, failing) = ("LeadsmanReleaseRegressed", "LeadsmanProbeFailing");
    let lately = json!({"since": ago(60), "at": ago(5)});
    restart_with(&mut leadsman, &state, |state| {
        let alerts = state["alerts"].as_array_mut().unwrap();
        alerts.retain(|alert| alert["kind"] != failing);
        alerts.push(ended(regressed, &gone("7"), json!({"resolved": lately})));
        let long_ago = json!({"since": ago(60), "at": ago(20)});
        alerts.push(ended(regressed, &gone("6"), json!({"resolved": long_ago})));
        // Its probe fails, and has not for long enough.
        let again = json!({"since": now, "before": lately});
        alerts.push(ended(failing, &probe, json!({"pending": again})));
    });
    let of = |name: &str, revision: &str| {
        let mut all = sent(&alertmanager, name);
        all.retain(|alert| {
            let labels = &alert["labels"];
            name == failing || labels["revision"] == revision
        });
        all
    };
    until("both are sent several times", || {
        of(regressed, "7").len() >= 3 && of(failing, "").len() >= 3
    });
    let first = &of(regressed, "7")[0];
    assert!(first["endsAt"].as_str() > first["startsAt"].as_str());
    for alert in of(regressed, "7").iter().chain(&of(failing, "")) {
        assert_eq!(alert["endsAt"], first["endsAt"], "{alert:#}");
        assert_eq!(alert["startsAt"], first["startsAt"], "{alert:#}");
    }
    // It may be sent before anybody has looked.
    let (before, told) = (of(regressed, "6").len(), of(regressed, "7").len());
    until("the other is sent on", || {
        of(regressed, "7").len() >= told + 2
    });
    assert_eq!(of(regressed, "6").len(), before);
}

/// A message about a revision that waits to be told.
pub(crate) fn message(revision: u32) -> Value {
    let at = Duration::from_millis(now_ms()).as_secs_f64();
    json!({
        "namespace": "shop", "release": "mykadoo", "revision": revision, "step": "regressed",
        "headline": "", "text": "", "reason": "", "since": at, "at": at, "command": "",
        "link": null, "is_urgent": true,
    })
}

#[test]
fn a_reload_that_changes_a_receiver_tells_nothing_twice_and_loses_nothing() {
    let alertmanager = Receiver::start(|_| Reply::status(200).body("[]"));
    let hook = Receiver::start(|_| Reply::status(200).after(Duration::from_secs(1)));
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let more = format!("[webhook]\nurl = \"{}hook\"\n", hook.url());
    let config = |more: &str| {
        let text = config(&alertmanager, &state, "tcp://127.0.0.1:1", more);
        format!("[serve]\nlisten = \"127.0.0.1:0\"\n{text}")
    };
    let mut leadsman = Leadsman::run(&config(&more), &[]);
    restart_with(&mut leadsman, &state, |state| {
        state["waiting"] = json!({"webhook": (1..=4).map(message).collect::<Vec<_>>()});
    });
    until("the first is on its way", || !hook.requests().is_empty());
    leadsman.rewrite(&config(&format!("{more}passed = true\n")));
    leadsman.signal("HUP");
    let count = || {
        let page = leadsman.get("/metrics").body;
        page.contains("leadsman_messages_total{receiver=\"webhook\",result=\"sent\"} 4")
    };
    until("all are told", count);
    until("it is stored that nothing waits", || {
        let stored = std::fs::read(state.join("alerts.json")).unwrap_or_default();
        let stored: Value = serde_json::from_slice(&stored).unwrap_or_default();
        stored["state"]["waiting"]["webhook"] == json!([])
    });
    let revisions: Vec<u64> = hook
        .bodies()
        .iter()
        .map(|body| serde_json::from_str::<Value>(body).unwrap())
        .map(|message| message["revision"].as_u64().unwrap())
        .collect();
    assert_eq!(revisions, [1, 2, 3, 4]);
}

/// A disk that does not answer: here a pipe that nobody reads, in the place of the file.
#[test]
fn a_store_that_hangs_holds_up_nobody() {
    let alertmanager = Receiver::start(|_| Reply::status(200).body("[]"));
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let pipe = state.join("alerts.json.new");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let config = config(&alertmanager, &state, "tcp://127.0.0.1:1", "");
    let mut leadsman = Leadsman::run(&config, &[]);
    until("it is told again and again", || {
        sent(&alertmanager, "LeadsmanWatchdog").len() >= 3
    });
    leadsman.signal("TERM");
    assert_eq!(leadsman.exit_code(Duration::from_secs(60)), Some(0));
}

#[test]
fn an_alertmanager_that_lost_everything_has_confirmed_nothing_any_more() {
    let body = "[{\"labels\":{\"alertname\":\"LeadsmanWatchdog\",\"priority\":\"P3\",\"severity\":\"info\",\"source\":\"leadsman\"}}]";
    let alertmanager = Receiver::start(move |_| Reply::status(200).body(body));
    let folder = tempfile::tempdir().unwrap();
    let config = config(&alertmanager, folder.path(), "tcp://127.0.0.1:1", "");
    let leadsman = Leadsman::run(&config, &[]);
    let confirmed = || {
        let alerts: Value = serde_json::from_str(&leadsman.get("/api/v1/alerts").body).unwrap();
        let alerts = alerts["alerts"].as_array().unwrap();
        // The failing probe's may stand before it.
        let watchdog = |alert: &&Value| alert["labels"]["alertname"] == "LeadsmanWatchdog";
        alerts.iter().find(watchdog)?["confirmed_by"]
            .as_array()
            .map(Vec::len)
    };
    until("it is confirmed", || confirmed() == Some(1));
    alertmanager.answers(|_| Reply::status(200).body("[]"));
    until("it is not any more", || confirmed() == Some(0));
    until("that is counted", || {
        let page = leadsman.get("/metrics").body;
        let mut lines = page.lines();
        lines.any(|line| {
            line.starts_with("leadsman_alertmanager_unconfirmed_alerts") && line.ends_with(" 1")
        })
    });
}

/// One that refuses each message for good, as Slack does once its webhook is revoked, is as bad as one that is away.
#[test]
fn a_receiver_that_refuses_a_message_for_good_is_told_of() {
    let alertmanager = Receiver::start(|_| Reply::status(200).body("[]"));
    let hook = Receiver::start(|_| Reply::status(404));
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let more = format!("[webhook]\nurl = \"{}hook\"\n", hook.url());
    let config = config(&alertmanager, &state, "tcp://127.0.0.1:1", &more);
    let mut leadsman = Leadsman::run(&config, &[]);
    restart_with(&mut leadsman, &state, |state| {
        state["waiting"] = json!({"webhook": [message(1)]});
    });
    until("it is told of", || {
        let alerts: Value = serde_json::from_str(&leadsman.get("/api/v1/alerts").body).unwrap();
        let alerts = alerts["alerts"].as_array().unwrap();
        alerts.iter().any(|alert| {
            alert["labels"]["alertname"] == "LeadsmanDeliveryFailing"
                && alert["labels"]["receiver"] == "webhook"
        })
    });
    assert_eq!(hook.requests().len(), 1, "it is not told again");
}

/// Nothing else answers either, so what the probe says counts for nothing: people hear of that, and not of the probe.
#[test]
fn trouble_of_its_own_is_told_after_two_minutes_and_no_probe_is_blamed() {
    let alertmanager = Receiver::start(|_| Reply::status(200));
    let (state, refused) = (tempfile::tempdir().unwrap(), unused_port());
    let more = format!(
        "[self_check]\ncontrol = {{ url = \"tcp://127.0.0.1:{refused}\", interval = \"500ms\" }}\n"
    );
    let target = format!("http://127.0.0.1:{refused}/");
    let text = config(&alertmanager, state.path(), &target, &more);
    let leadsman = Leadsman::run(&text, &[]);
    let patience = std::time::Duration::from_secs(200);
    let deadline = std::time::Instant::now() + patience;
    while sent(&alertmanager, "LeadsmanSelfCheckFailing").is_empty() {
        assert!(std::time::Instant::now() < deadline, "{}", leadsman.log());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(sent(&alertmanager, "LeadsmanProbeFailing").is_empty());
}
