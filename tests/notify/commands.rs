//! Commands about those who are told, and about what is promised.

use std::process::Command;

use serde_json::Value;

use crate::notify::receivers::{Receiver, Reply};
use crate::program::{Leadsman, run_to_end, until};

fn slo(leadsman: &Leadsman, more: &[&str]) -> (Option<i32>, String) {
    let server = format!("http://{}", leadsman.address());
    let output = Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .args(["slo", "--server", &server])
        .args(more)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), said)
}

#[test]
fn slo_says_what_is_left_and_for_how_long() {
    let config = "[[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\ninterval = \"200ms\"\n\
                  objective = { availability = \"99%\" }\n\
                  [[release.probe]]\nname = \"api\"\nurl = \"tcp://127.0.0.1:1\"\n";
    let leadsman = Leadsman::run(config, &[]);
    until("the budget is being spent", || {
        slo(&leadsman, &[]).1.contains("at the burn of 1h")
    });
    let (code, text) = slo(&leadsman, &["mykadoo", "--tiers"]);
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("OBJECTIVE ") && lines[0].ends_with("LASTS"),
        "{text}"
    );
    assert!(
        lines[1].starts_with("shop/mykadoo availability  99 % in 30d"),
        "{text}"
    );
    // What fails always burns a hundred times as fast as it lasts, and stands below its title.
    let end = lines[0].find("BURN 5m").unwrap() + "BURN 5m".len();
    assert!(lines[1][..end].ends_with(" 100.00"), "{text}");
    assert!(text.contains("page-quick"), "{text}");
    let (code, text) = slo(&leadsman, &["--json"]);
    let all: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(all["objectives"][0]["target"], 0.99);
    assert!(
        all["objectives"][0]["lasts_s"].as_f64() > Some(0.0),
        "{all}"
    );
    assert_eq!(slo(&leadsman, &["other"]).0, Some(1));
}

#[test]
fn check_online_tries_those_who_are_told() {
    let well = Receiver::start(|_| Reply::status(200));
    let ill = Receiver::start(|_| Reply::status(503));
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "hunter2").unwrap();
    let config = |alertmanager: &str, key: &std::path::Path| {
        format!(
            "[alertmanager]\nurls = [\"{alertmanager}prefix\"]\n\
             [webhook]\nurl = \"http://127.0.0.1:1/\"\nsigning_key_file = \"{}\"\n\
             [[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\n\
             [[release.probe]]\nname = \"api\"\nurl = \"{}\"\n",
            key.display(),
            well.url()
        )
    };
    let online = ["check", "--online"];
    let (code, text) = run_to_end(&config(&well.url(), &key), &online);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("is ready"), "{text}");
    let asked = well.requests();
    assert!(
        asked
            .iter()
            .any(|request| request.head.starts_with("GET /prefix/-/ready "))
    );
    assert!(
        asked.iter().all(|request| request.head.starts_with("GET ")),
        "nobody is told"
    );
    let (code, text) = run_to_end(&config(&ill.url(), &key), &online);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("/-/ready answers 503"), "{text}");
    let gone = config(&well.url(), &folder.path().join("gone"));
    let (code, text) = run_to_end(&gone, &online);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("webhook.signing_key_file: "), "{text}");
    let (code, text) = run_to_end(&gone, &["check", "--online", "--no-files"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("bad      receiver webhook"), "{text}");
    assert!(!text.contains("hunter2"));
}
