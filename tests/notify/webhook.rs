//! Alertmanager tells us, and those who pretend to be it.

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::notify::alertmanager::Alertmanager;
use crate::notify::receivers::{Receiver, Reply as Answer};
use crate::program::{App, Leadsman, Reply, post, until};

const TOKEN: &str = "tok-of-the-webhook";

fn leadsman(folder: &std::path::Path) -> Leadsman {
    leadsman_with(folder, "")
}

fn leadsman_with(folder: &std::path::Path, more: &str) -> Leadsman {
    let token = folder.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let history = folder.join("history");
    std::fs::create_dir_all(&history).unwrap();
    let config = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"{}\"\n{more}\
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
    // Nor does one of another form, whatever it is.
    for (number, odd) in [
        "1",
        "null",
        "{}",
        "[[]]",
        "{\"status\":\"firing\",\"labels\":[]}",
    ]
    .into_iter()
    .enumerate()
    {
        let since = format!("2026-01-06T1{number}:00:00Z");
        let other = alert("HighErrors", "shop", &since);
        let reply = tell(&leadsman, notice(&format!("{odd},{other}")).as_bytes());
        assert_eq!(reply.status, 202, "{odd}: {}", reply.body);
        let counts: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(counts, serde_json::json!({"accepted": 1, "rejected": 1}));
    }
    assert_eq!((action("accepted"), action("rejected")), (8, 6));
    until("it is said", || {
        leadsman.said("cannot be read, and are left out")
    });
    // One of ours may have another name by the time that it comes back; its source says whose it is.
    let ours = alert("Renamed", "shop", "2026-01-05T10:00:00Z").replace(
        "\"team\":\"shop\"",
        "\"team\":\"shop\",\"source\":\"leadsman\"",
    );
    let ours = ours.replace("Renamed", "HighErrors");
    assert_eq!(tell(&leadsman, notice(&ours).as_bytes()).status, 202);
    assert_eq!((action("accepted"), action("ignored")), (8, 4));
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
        (notice("1,null").as_bytes(), 400),
        (
            good.replace("[{", "{\"0\":{")
                .replace("}]", "}}")
                .as_bytes(),
            400,
        ),
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
    let unauthenticated = Alertmanager::with(&url, None, None).unwrap();
    for address in [alertmanager.address, unauthenticated.address] {
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
        releases["releases"][0]["phase"], "not_installed",
        "an alert alone does nothing"
    );
}

/// One that repeats at once and truncates, with a proxy before us that is too busy at first.
#[test]
fn a_real_alertmanager_repeats_truncates_and_tries_again_after_503() {
    let folder = tempfile::tempdir().unwrap();
    let leadsman = leadsman(folder.path());
    let to = leadsman.address();
    let busy = Arc::new(AtomicUsize::new(2));
    let left = Arc::clone(&busy);
    let proxy = Receiver::start(move |asked| {
        let is_busy = left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_ok();
        if is_busy {
            return Answer::status(503).header("Retry-After: 1");
        }
        let token = asked.head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("authorization").then_some(value)
        });
        let headers = [
            ("Authorization", token.unwrap_or("")),
            ("Content-Type", "application/json"),
        ];
        Answer::status(post(to, "/api/v1/alerts", &headers, asked.body.as_bytes()).status)
    });
    let token = folder.path().join("token");
    let Some(alertmanager) = Alertmanager::routed(
        &proxy.url(),
        Some(&token),
        None,
        "group_by: [alertname], repeat_interval: 1s",
        ", max_alerts: 1",
    ) else {
        return;
    };
    let body = r#"[{"labels":{"alertname":"HighErrors","team":"shop"}},{"labels":{"alertname":"HighErrors","team":"web"}}]"#;
    let headers = [("Content-Type", "application/json")];
    let stored = post(
        alertmanager.address,
        "/api/v2/alerts",
        &headers,
        body.as_bytes(),
    );
    assert_eq!(stored.status, 200);
    until("it is heard after all, and then again", || {
        let action = |name: &str| {
            count(
                &leadsman,
                &format!("leadsman_webhook_alerts_total{{action=\"{name}\"}}"),
            )
        };
        action("accepted") == 1 && action("duplicate") >= 1
    });
    assert_eq!(busy.load(Ordering::Relaxed), 0);
    assert!(proxy.requests().len() >= 4, "two of them were refused");
    assert!(count(&leadsman, "leadsman_webhook_truncated_alerts_total") >= 1);
}

/// An API server that answers nothing until it is opened, and then that there is no such object.
fn api_server(folder: &std::path::Path) -> (std::path::PathBuf, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let kubeconfig = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         users: [{{name: u, user: {{}}}}]\nclusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n",
        listener.local_addr().unwrap()
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let is_open = Arc::new(AtomicUsize::new(0));
    let opened = Arc::clone(&is_open);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut vec![0; 65536]);
            if opened.load(Ordering::SeqCst) == 1 {
                let body = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","message":"no","code":404}"#;
                let head =
                    "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nConnection: close";
                let _ = write!(
                    stream,
                    "{head}\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
        }
    });
    (kubeconfig, is_open)
}

/// A release takes none while its state cannot be read, here from an API server that is away. What has no room is
/// answered with 503, and a real Alertmanager brings it again by itself.
#[test]
fn a_real_alertmanager_comes_again_when_there_was_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let (kubeconfig, api_is_open) = api_server(folder.path());
    let leadsman = leadsman_with(
        folder.path(),
        &format!(
            "[kubernetes]\nkubeconfig = {kubeconfig:?}\nscratch = {:?}\n\
             [state]\nconfig_map = \"leadsman\"\nnamespace = \"leadsman\"\n",
            folder.path().join("scratch")
        ),
    );
    let action = |name: &str| {
        count(
            &leadsman,
            &format!("leadsman_webhook_alerts_total{{action=\"{name}\"}}"),
        )
    };
    let requests = |code: u16| {
        count(
            &leadsman,
            &format!("leadsman_webhook_requests_total{{code=\"{code}\"}}"),
        )
    };
    // As many as may wait.
    let all: Vec<String> = (0..1024)
        .map(|number| {
            alert("HighErrors", "shop", "2026-01-05T10:00:00Z").replace(
                "\"fingerprint\":\"HighErrors\"",
                &format!("\"fingerprint\":\"f{number}\""),
            )
        })
        .collect();
    for some in all.chunks(512) {
        let reply = tell(&leadsman, notice(&some.join(",")).as_bytes());
        assert_eq!(reply.status, 202, "{}", reply.body);
    }
    assert_eq!(count(&leadsman, "leadsman_webhook_queue_length"), 1024);
    let more = notice(&alert("HighErrors", "web", "2026-01-05T11:00:00Z"));
    let reply = tell(&leadsman, more.as_bytes());
    assert_eq!((reply.status, reply.header("Retry-After")), (503, "1"));
    assert!(reply.body.contains("alerts for a release are waiting"));
    // What was taken before is known also while there is no room.
    assert_eq!(
        tell(&leadsman, notice(&all[..9].join(",")).as_bytes()).status,
        202
    );
    assert_eq!((action("accepted"), action("duplicate")), (1024, 9));

    let url = format!("http://{}/api/v1/alerts", leadsman.address());
    let token = folder.path().join("token");
    let Some(alertmanager) = Alertmanager::with(&url, Some(&token), None) else {
        return;
    };
    let before = requests(503);
    let body = r#"[{"labels":{"alertname":"HighErrors","team":"web"}}]"#;
    let headers = [("Content-Type", "application/json")];
    let stored = post(
        alertmanager.address,
        "/api/v2/alerts",
        &headers,
        body.as_bytes(),
    );
    assert_eq!(stored.status, 200);
    until("it was sent away, and again", || {
        requests(503) >= before + 2
    });
    assert_eq!(action("accepted"), 1024);
    // Nothing is stored there: the release is guarded, and takes what waits.
    api_is_open.store(1, Ordering::SeqCst);
    until("it is heard after all", || action("accepted") == 1025);
    until("nothing waits", || {
        count(&leadsman, "leadsman_webhook_queue_length") == 0
    });
}

/// Whatever comes at once, each alert is taken, known or asked for again.
#[test]
fn of_a_flood_nothing_is_lost_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let leadsman = leadsman(folder.path());
    let (threads, each, alerts) = (8, 40, 64);
    let (mut taken, mut busy) = (0, 0);
    std::thread::scope(|scope| {
        let leadsman = &leadsman;
        let tellers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let (mut taken, mut busy) = (0, 0);
                    for number in 0..each {
                        let all: Vec<String> = (0..alerts)
                            .map(|alert_number| {
                                let print = format!("f{thread}-{number}-{alert_number}");
                                alert("HighErrors", "shop", "2026-01-05T10:00:00Z").replace(
                                    "\"fingerprint\":\"HighErrors\"",
                                    &format!("\"fingerprint\":\"{print}\""),
                                )
                            })
                            .collect();
                        let reply = tell(leadsman, notice(&all.join(",")).as_bytes());
                        match reply.status {
                            202 => taken += alerts,
                            503 => busy += 1,
                            status => panic!("{status}: {}", reply.body),
                        }
                    }
                    (taken, busy)
                })
            })
            .collect();
        for teller in tellers {
            let (more, refused) = teller.join().unwrap();
            taken += more;
            busy += refused;
        }
    });
    let requests = |code: u16| {
        count(
            &leadsman,
            &format!("leadsman_webhook_requests_total{{code=\"{code}\"}}"),
        )
    };
    assert_eq!(requests(202) + requests(503), threads * each);
    assert_eq!(requests(503), busy);
    let action = |name: &str| {
        count(
            &leadsman,
            &format!("leadsman_webhook_alerts_total{{action=\"{name}\"}}"),
        )
    };
    // Of what was answered with 503 a part may have been taken before there was no room.
    let counted = action("accepted") + action("duplicate");
    assert!(
        counted >= taken && counted <= taken + busy * alerts,
        "{counted} {taken} {busy}"
    );
    until("nothing waits", || {
        count(&leadsman, "leadsman_webhook_queue_length") == 0
    });
}

/// An alert that would reject means nothing where no revision is watched.
#[test]
fn a_convicting_alert_outside_a_watch_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("history");
    let app = App::of(&history);
    until("the app's pods are Ready", || {
        std::fs::read_to_string(history.join("pods.json"))
            .is_ok_and(|text| text.contains("\"complete\":1"))
    });
    let token = folder.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let config = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"{}\"\n\
         [[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\nbase_url = \"{}\"\nembedded = \"{}\"\nmode = \"enforce\"\n\
         [[release.probe]]\nname = \"api\"\npath = \"/api/health\"\n\
         [[release.alert]]\nmatch = {{ alertname = \"HighErrors\" }}\nweight = \"reject\"\n",
        token.display(),
        app.url(),
        history.display()
    );
    let leadsman = Leadsman::run(&config, &[]);
    let release = || -> Value {
        let all: Value = serde_json::from_str(&leadsman.get("/api/v1/releases").body).unwrap();
        all["releases"][0].clone()
    };
    until("nothing is watched", || release()["phase"] == "idle");
    let told = notice(&alert("HighErrors", "shop", "2199-01-01T00:00:00Z"));
    assert_eq!(tell(&leadsman, told.as_bytes()).status, 202);
    until("the guard has taken it", || {
        count(
            &leadsman,
            "leadsman_webhook_alerts_total{action=\"accepted\"}",
        ) == 1
            && count(&leadsman, "leadsman_webhook_queue_length") == 0
    });
    assert_eq!(release()["phase"], "idle");
    assert_eq!(release()["revision"], 1, "{:#}", release());
}
