//! Alertmanager tells us, and those who pretend to be it.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::alertmanager::Alertmanager;
use crate::program::{Leadsman, Reply, post, until};

const TOKEN: &str = "tok-of-the-webhook";

fn leadsman(folder: &std::path::Path) -> Leadsman {
    let token = folder.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let history = folder.join("history");
    std::fs::create_dir_all(&history).unwrap();
    let config = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"{}\"\n\
         [[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\nembedded = \"{}\"\n\
         [[release.probe]]\nname = \"api\"\nurl = \"tcp://127.0.0.1:1\"\n\
         [[release.alert]]\nmatch = {{ alertname = \"HighErrors\", team = \"shop|web\" }}\n",
        token.display(),
        history.display()
    );
    Leadsman::run(&config, &[])
}

fn notice(alerts: &str) -> String {
    format!(
        "{{\"version\":\"4\",\"groupKey\":\"g\",\"status\":\"firing\",\"new_field\":[1],\"alerts\":[{alerts}]}}"
    )
}

fn alert(name: &str, team: &str, since: &str) -> String {
    format!(
        "{{\"status\":\"firing\",\"labels\":{{\"alertname\":\"{name}\",\"team\":\"{team}\"}},\"startsAt\":\"{since}\",\
         \"endsAt\":\"0001-01-01T00:00:00Z\",\"fingerprint\":\"{name}\"}}"
    )
}

fn tell(leadsman: &Leadsman, body: &[u8]) -> Reply {
    let authorization = format!("Bearer {TOKEN}");
    let headers = [
        ("Authorization", authorization.as_str()),
        ("Content-Type", "application/json"),
    ];
    post(leadsman.address(), "/api/v1/alerts", &headers, body)
}

fn count(leadsman: &Leadsman, series: &str) -> u64 {
    let page = leadsman.get("/metrics").body;
    let found = page
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found
        .unwrap_or_else(|| panic!("no {series} in\n{page}"))
        .parse()
        .unwrap()
}

#[test]
fn notifications_are_checked_counted_and_taken_once() {
    let folder = tempfile::tempdir().unwrap();
    let leadsman = leadsman(folder.path());
    let good = notice(&alert(
        "HighErrors",
        "shop",
        "2026-01-05T10:00:00.123456789+01:00",
    ));
    let no_token = post(leadsman.address(), "/api/v1/alerts", &[], good.as_bytes());
    assert_eq!(no_token.status, 401);
    let wrong = [("Authorization", "Bearer wrong")];
    assert_eq!(
        post(
            leadsman.address(),
            "/api/v1/alerts",
            &wrong,
            good.as_bytes()
        )
        .status,
        401
    );

    let action = |name: &str| {
        count(
            &leadsman,
            &format!("leadsman_webhook_alerts_total{{action=\"{name}\"}}"),
        )
    };
    assert_eq!(tell(&leadsman, good.as_bytes()).status, 202);
    assert_eq!((action("accepted"), action("duplicate")), (1, 0));
    assert_eq!(tell(&leadsman, good.as_bytes()).status, 202);
    assert_eq!((action("accepted"), action("duplicate")), (1, 1));
    // Another episode is news; another team, another alert, and our own are not for this release.
    let later = notice(&alert("HighErrors", "web", "2026-01-05T11:00:00Z"));
    assert_eq!(tell(&leadsman, later.as_bytes()).status, 202);
    for (name, team) in [
        ("HighErrors", "shop2"),
        ("Other", "shop"),
        ("LeadsmanReleaseRegressed", "shop"),
    ] {
        let other = notice(&alert(name, team, "2026-01-05T10:00:00Z"));
        assert_eq!(tell(&leadsman, other.as_bytes()).status, 202);
    }
    assert_eq!((action("accepted"), action("ignored")), (2, 3));
    let truncated = good.replacen('{', "{\"truncatedAlerts\":7,", 1);
    assert_eq!(tell(&leadsman, truncated.as_bytes()).status, 202);
    assert_eq!(
        count(&leadsman, "leadsman_webhook_truncated_alerts_total"),
        7
    );

    // One alert that is too long takes none of the others with it.
    let long = alert("HighErrors", &"x".repeat(1025), "2026-01-05T10:00:00Z");
    let other = alert("HighErrors", "shop", "2026-01-05T12:00:00Z");
    let both = notice(&format!("{long},{other}"));
    assert_eq!(tell(&leadsman, both.as_bytes()).status, 202);
    assert_eq!((action("accepted"), action("rejected")), (3, 1));
    // One of ours may have another name by the time that it comes back; its source says whose it is.
    let ours = alert("Renamed", "shop", "2026-01-05T10:00:00Z").replace(
        "\"team\":\"shop\"",
        "\"team\":\"shop\",\"source\":\"leadsman\"",
    );
    let ours = ours.replace("Renamed", "HighErrors");
    assert_eq!(tell(&leadsman, notice(&ours).as_bytes()).status, 202);
    assert_eq!((action("accepted"), action("ignored")), (3, 4));
    assert_eq!(count(&leadsman, "leadsman_webhook_queue_capacity"), 1024);
    until("nothing waits", || {
        count(&leadsman, "leadsman_webhook_queue_length") == 0
    });

    let nested = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_unknown = good.replace("\"new_field\":[1]", &format!("\"new_field\":{nested}"));
    let deep_label = good.replace("\"team\":\"shop\"", &format!("\"team\":{nested}"));
    let deep = format!(
        "{{\"version\":{}{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let many = vec![alert("HighErrors", "shop", "2026-01-05T10:00:00Z"); 513].join(",");
    let large = vec![b' '; 100 * 1024 * 1024];
    for (body, status) in [
        (&b""[..], 400),
        (b"{}", 400),
        (b"[1,2]", 400),
        (b"not json", 400),
        (&[0xff, 0xfe, 0x00], 400),
        (deep.as_bytes(), 400),
        (notice(&many).as_bytes(), 400),
        // What is not known is skipped without being kept, however deep it is.
        (deep_unknown.as_bytes(), 202),
        (deep_label.as_bytes(), 400),
        (good.replace("\"4\"", "\"3\"").as_bytes(), 400),
        (good.replace("\"4\"", "4").as_bytes(), 400),
        (good.replace("2026-01-05T10", "yesterday").as_bytes(), 400),
        (&large, 413),
    ] {
        let reply = tell(&leadsman, body);
        assert_eq!(reply.status, status, "{}", reply.body);
        assert!(!reply.body.contains(TOKEN));
    }
    assert_eq!(
        count(&leadsman, "leadsman_webhook_requests_total{code=\"401\"}"),
        2
    );
    assert_eq!(
        count(&leadsman, "leadsman_webhook_requests_total{code=\"413\"}"),
        1
    );
    // After all of that it is as well as before.
    assert_eq!(tell(&leadsman, good.as_bytes()).status, 202);
    assert!(!leadsman.log().contains(TOKEN));
}

#[test]
fn without_a_token_of_ours_nobody_may_tell_us_anything() {
    let config = "[[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\n\
                  [[release.probe]]\nname = \"api\"\nurl = \"tcp://127.0.0.1:1\"\n";
    let leadsman = Leadsman::run(config, &[]);
    let body = notice(&alert("HighErrors", "shop", "2026-01-05T10:00:00Z"));
    assert_eq!(tell(&leadsman, body.as_bytes()).status, 403);
}

/// A real Alertmanager reaches us with the token, and one without it is refused.
#[test]
fn a_real_alertmanager_reaches_us() {
    let folder = tempfile::tempdir().unwrap();
    let leadsman = leadsman(folder.path());
    let url = format!("http://{}/api/v1/alerts", leadsman.address());
    let token = folder.path().join("token");
    let Some(alertmanager) = Alertmanager::with(&url, Some(&token), None) else {
        return;
    };
    let stranger = Alertmanager::with(&url, None, None).unwrap();
    for address in [alertmanager.address, stranger.address] {
        let body = r#"[{"labels":{"alertname":"HighErrors","team":"shop"}}]"#;
        let headers = [("Content-Type", "application/json")];
        assert_eq!(
            post(address, "/api/v2/alerts", &headers, body.as_bytes()).status,
            200
        );
    }
    until("one is heard, the other refused", || {
        count(
            &leadsman,
            "leadsman_webhook_alerts_total{action=\"accepted\"}",
        ) == 1
            && count(&leadsman, "leadsman_webhook_requests_total{code=\"401\"}") >= 1
    });
    // Who is told that there is no room comes again; here the process is away for a moment.
    let stopped = |signal: &str| {
        let pid = leadsman.pid().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    };
    stopped("-STOP");
    let body = r#"[{"labels":{"alertname":"HighErrors","team":"web"}}]"#;
    let headers = [("Content-Type", "application/json")];
    assert_eq!(
        post(
            alertmanager.address,
            "/api/v2/alerts",
            &headers,
            body.as_bytes()
        )
        .status,
        200
    );
    std::thread::sleep(Duration::from_secs(2));
    stopped("-CONT");
    until("it is heard after all", || {
        count(
            &leadsman,
            "leadsman_webhook_alerts_total{action=\"accepted\"}",
        ) == 2
    });
    let releases: Value = serde_json::from_str(&leadsman.get("/api/v1/releases").body).unwrap();
    assert_eq!(
        releases["releases"][0]["phase"], "absent",
        "an alert alone does nothing"
    );
}
