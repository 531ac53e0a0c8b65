//! One story, told in order and once: in Slack, to a webhook that knows who it is from, and to an Alertmanager.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::notify::alertmanager::{Alertmanager, told};
use crate::notify::receivers::{Receiver, Reply};
use crate::notify::restart::{config, message, restart_with};
use crate::program::{App, Leadsman, until};

fn headlines(receiver: &Receiver) -> Vec<String> {
    headlines_in(&receiver.bodies())
}

fn headlines_in(bodies: &[String]) -> Vec<String> {
    let told = bodies
        .iter()
        .map(|body| serde_json::from_str::<Value>(body).unwrap());
    told.map(|message| message["text"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_rollback_is_told_as_one_story_once_and_in_order() {
    // The first time it is away, as Slack is at times; then it wants to be left alone for a moment.
    let slack = Receiver::start(|_| Reply::status(503));
    let webhook = Receiver::start(|_| Reply::status(200));
    let alertmanager = Receiver::start(|_| Reply::status(200).body("[]"));
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("history");
    let app = App::of(&history);
    until("the app's pods are Ready", || {
        std::fs::read_to_string(history.join("pods.json"))
            .is_ok_and(|text| text.contains("\"complete\":1"))
    });
    let address = folder.path().join("slack-url");
    std::fs::write(
        &address,
        format!("{}services/T0/B0/secret-part\n", slack.url()),
    )
    .unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "key\n").unwrap();
    let config = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\nexternal_url = \"https://leadsman.example.com/\"\n\
         [state]\ndirectory = \"state\"\n[alertmanager]\nurls = [\"{}\"]\nresend = \"1h\"\n\
         [slack]\nurl_file = \"{}\"\n[webhook]\nurl = \"{}hook\"\nsigning_key_file = \"{}\"\n\
         [[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\nbase_url = \"{}\"\nembedded = \"{}\"\nmode = \"enforce\"\n\
         interval = \"100ms\"\n[release.analysis]\nduration = \"60s\"\n\
         [[release.probe]]\nname = \"api\"\npath = \"/api/health\"\nexpect = {{ status = 200 }}\n",
        alertmanager.url(),
        address.display(),
        webhook.url(),
        key.display(),
        app.url(),
        history.display()
    );
    let mut leadsman = Leadsman::run(&config, &[]);
    until("there is a baseline", || {
        let probes: Value = serde_json::from_str(&leadsman.get("/api/v1/probes").body).unwrap();
        probes["probes"][0]["totals"]["success"].as_u64() >= Some(100)
    });
    let deploy = [
        "demo",
        "--deploy",
        "dead",
        "--history",
        history.to_str().unwrap(),
    ];
    let deployed = Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .args(deploy)
        .status()
        .unwrap();
    assert!(deployed.success());
    until("Slack was tried", || !slack.requests().is_empty());
    // Killed between the receiver's answer and the disk it would tell once more: nothing is lost, rather than nothing twice.
    until("it is stored who was told, and who waits", || {
        let stored = std::fs::read(leadsman.folder().join("state/alerts.json")).unwrap_or_default();
        let stored: Value = serde_json::from_slice(&stored).unwrap_or_default();
        let waiting = |name: &str| stored["state"]["waiting"][name].as_array().map(Vec::len);
        (waiting("slack"), waiting("webhook")) == (Some(1), Some(0))
    });
    // What waits survives a restart.
    leadsman.kill();
    let refused = slack.requests().len();
    slack.answers(|_| Reply::status(200));
    leadsman.start_again();
    until("all is told", || {
        headlines(&slack)
            .iter()
            .any(|line| line.ends_with("and all is well again"))
    });
    // Nothing more comes.
    std::thread::sleep(Duration::from_secs(3));
    let told = headlines_in(&slack.bodies()[refused..]);
    let story = [
        "shop/mykadoo: revision 2 made things worse",
        "shop/mykadoo: revision 2 was rolled back, and all is well again",
    ];
    assert_eq!(told, story);
    assert!(
        slack.requests()[0]
            .head
            .contains("POST /services/T0/B0/secret-part")
    );

    let hooks = webhook.requests();
    let steps: Vec<String> = hooks
        .iter()
        .map(|request| serde_json::from_str::<Value>(&request.body).unwrap())
        .map(|message| message["step"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(steps, ["regressed", "rolled_back"]);
    // The signature is that of openssl.
    let head = &hooks[0].head;
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix("x-leadsman-signature: t="))
        .unwrap();
    let (at, signature) = line.split_once(",v1=").unwrap();
    let signed = folder.path().join("signed");
    std::fs::write(&signed, format!("{at}.{}", hooks[0].body)).unwrap();
    let openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", "key"])
        .arg(&signed)
        .output();
    if let Ok(openssl) = openssl {
        let said = String::from_utf8_lossy(&openssl.stdout).into_owned();
        assert!(said.trim().ends_with(signature), "{said} {signature}");
    }

    // Alertmanager hears of the same: it regressed, that is over, it was rolled back.
    let alerts: Vec<Value> = alertmanager
        .requests()
        .iter()
        .filter(|request| request.head.starts_with("POST"))
        .flat_map(|request| serde_json::from_str::<Vec<Value>>(&request.body).unwrap())
        .collect();
    let of = |name: &str| -> Vec<&Value> {
        alerts
            .iter()
            .filter(|alert| alert["labels"]["alertname"] == name)
            .collect()
    };
    let regressed = of("LeadsmanReleaseRegressed");
    assert!(regressed.len() >= 2, "{alerts:#?}");
    assert!(
        regressed
            .iter()
            .all(|alert| alert["startsAt"] == regressed[0]["startsAt"])
    );
    assert!(
        regressed
            .iter()
            .all(|alert| alert["labels"] == regressed[0]["labels"])
    );
    assert_eq!(regressed[0]["labels"]["revision"], "2");
    let rolled = of("LeadsmanReleaseRolledBack");
    assert!(!rolled.is_empty(), "{alerts:#?}");
    let last = regressed.last().unwrap();
    assert!(
        last["endsAt"].as_str() <= rolled[0]["startsAt"].as_str(),
        "{last} {}",
        rolled[0]
    );
    assert_eq!(
        rolled[0]["annotations"]["runbook_url"],
        "https://leadsman.example.com/runbook#leadsmanreleaserolledback"
    );
    assert!(
        leadsman
            .get("/runbook")
            .body
            .contains("id=\"leadsmanreleaserolledback\"")
    );
    let said =
        leadsman.log() + &leadsman.get("/api/v1/alerts").body + &leadsman.get("/metrics").body;
    assert!(!said.contains("secret-part"), "{said}");
    assert!(
        said.contains("leadsman_messages_total{receiver=\"slack\",result=\"sent\"} 2"),
        "{said}"
    );
}

/// As Slack does it where there is too much at once. It says when it wants to hear of us again, which is later than we would
/// try; then what waits comes in order, and each once.
#[test]
fn what_slack_puts_off_comes_when_it_said_and_once() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&heard);
    let slack = Receiver::start(move |_| {
        let mut times = times.lock().unwrap();
        times.push(Instant::now());
        if times.len() == 1 {
            Reply::status(429)
                .header("Retry-After: 4")
                .body("rate_limited")
        } else {
            Reply::status(200).body("ok")
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let (state, address) = (folder.path().join("state"), folder.path().join("slack-url"));
    std::fs::write(&address, slack.url()).unwrap();
    let alertmanager = Receiver::start(|_| Reply::status(200).body("[]"));
    let more = format!("[slack]\nurl_file = {address:?}\n");
    let config = config(&alertmanager, &state, "tcp://127.0.0.1:1", &more);
    let mut leadsman = Leadsman::run(&config, &[]);
    restart_with(&mut leadsman, &state, |state| {
        state["waiting"] = json!({"slack": [message(1), message(2)]});
    });
    let counted = |result: &str| {
        let page = leadsman.get("/metrics").body;
        let start = format!("leadsman_messages_total{{receiver=\"slack\",result=\"{result}\"}} ");
        let found = page
            .lines()
            .find_map(|line| line.strip_prefix(&start)?.parse::<u64>().ok());
        found.unwrap_or(0)
    };
    until("both are told", || counted("sent") == 2);
    // Nothing more comes, not even after a restart.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((counted("failed"), counted("dropped")), (1, 0));
    until("it is stored that nothing waits", || {
        let stored = std::fs::read(state.join("alerts.json")).unwrap_or_default();
        let stored: Value = serde_json::from_slice(&stored).unwrap_or_default();
        stored["state"]["waiting"]["slack"] == json!([])
    });
    leadsman.kill();
    leadsman.start_again();
    std::thread::sleep(Duration::from_secs(2));
    let bodies = slack.bodies();
    assert_eq!(bodies.len(), 3, "{bodies:#?}");
    assert_eq!(bodies[0], bodies[1], "the same is sent again");
    assert_ne!(bodies[1], bodies[2]);
    let heard = heard.lock().unwrap();
    let waited = heard[1].duration_since(heard[0]);
    assert!(waited >= Duration::from_secs(4), "{waited:?}");
}

/// As docs/alerting.md shows it: the demo with a real Alertmanager and somebody in the place of Slack.
#[test]
fn the_demo_tells_one_story_to_an_alertmanager_and_to_slack() {
    let hears = Receiver::start(|_| Reply::status(200));
    let Some(alertmanager) = Alertmanager::start(&hears.url(), None) else {
        return;
    };
    let slack = Receiver::start(|_| Reply::status(200));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("slack-url"), slack.url()).unwrap();
    let url = format!("http://{}", alertmanager.address);
    let arguments = [
        "demo",
        "--scenario",
        "dead",
        "--alertmanager",
        &url,
        "--slack-url-file",
        "slack-url",
    ];
    let told_story = Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .args(arguments)
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(told_story.status.success(), "{told_story:?}");
    assert_eq!(
        headlines(&slack),
        [
            "demo/mykadoo: revision 3 made things worse",
            "demo/mykadoo: revision 3 was rolled back, and all is well again",
        ]
    );
    let regressed = "LeadsmanReleaseRegressed";
    until("the regression has ended", || {
        told(&hears, regressed, "resolved") == 1
    });
    assert_eq!(told(&hears, regressed, "firing"), 1);
    assert_eq!(told(&hears, "LeadsmanReleaseRolledBack", "firing"), 1);
    let bodies = hears.bodies();
    let first = |text: &str| bodies.iter().position(|body| body.contains(text));
    assert!(first(regressed) < first("LeadsmanReleaseRolledBack"));
    assert_eq!(bodies.len(), 3, "nothing else was told: {bodies:#?}");
}
