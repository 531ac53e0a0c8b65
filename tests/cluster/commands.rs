//! The commands of people and pipelines, against a daemon that guards a real release.

use std::process::Command;

use serde_json::Value;

use crate::guarded::{Guarded, Settings, configuration};
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;

const PROGRAM: &str = env!("CARGO_BIN_EXE_leadsman");

/// Runs a command against the daemon; its exit code and what it said.
pub(crate) fn leadsman(guarded: &Guarded<'_>, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(PROGRAM)
        .args(arguments)
        .args([
            "--server",
            &format!("http://{}", guarded.leadsman.address()),
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

/// The pipeline must not go on as if all were well, and hears what a person can do.
#[test]
fn gate_tells_a_pipeline_of_a_rollback_that_failed() {
    let Some(cluster) = Cluster::new("gatefail", Helm::Four) else {
        return;
    };
    let hook = r#"hooks={"migrate":false,"rollback":"fail","sim":{}}"#;
    cluster.install(&[hook]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[DEAD, hook]);
    let (code, text) = leadsman(&guarded, &["gate", "mykadoo", "2"]);
    assert_eq!(code, Some(11), "{text}\n{}", guarded.leadsman.log());
    for part in [
        "Revision 2: rollback failed",
        "by hand: helm rollback mykadoo 1",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

/// What is paused shows nothing: neither well nor bad may be said of it.
#[test]
fn gate_tells_a_pipeline_that_nothing_can_be_said() {
    let Some(cluster) = Cluster::new("gateopen", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[r#"api={"paused":true}"#]);
    let (code, text) = leadsman(&guarded, &["gate", "mykadoo", "2"]);
    assert_eq!(code, Some(12), "{text}\n{}", guarded.leadsman.log());
    assert!(text.contains("Revision 2: inconclusive"), "{text}");
    cluster.only_events();
}

#[test]
fn gate_tells_a_pipeline_what_became_of_its_revision() {
    let Some(cluster) = Cluster::new("gate", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#]);
    let (code, text) = leadsman(&guarded, &["gate", "mykadoo", "2"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Revision 2: passed"), "{text}");

    cluster.upgrade(&[DEAD]);
    let (code, text) = leadsman(&guarded, &["gate", "mykadoo", "3"]);
    assert_eq!(code, Some(10), "{text}");
    assert!(text.contains("Revision 3: rolled back"), "{text}");

    cluster.upgrade(&[r#"api.image="mykadoo-api:5""#]);
    guarded.until("revision 5 is judged", |release| release["revision"] == 5);
    cluster.upgrade(&[r#"api.image="mykadoo-api:6""#]);
    let (code, text) = leadsman(&guarded, &["gate", "mykadoo", "5", "--json"]);
    assert_eq!(code, Some(13), "{text}");
    assert!(text.contains("\"outcome\":\"superseded\""), "{text}");

    let (code, text) = leadsman(&guarded, &["gate", "mykadoo", "99", "--timeout", "2s"]);
    assert_eq!(code, Some(124), "{text}");
    assert!(text.contains("has no revision 99 yet"), "{text}");
    assert_eq!(leadsman(&guarded, &["gate", "another"]).0, Some(1));

    let (code, text) = leadsman(&guarded, &["status"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("/mykadoo") && text.contains("enforce"),
        "{text}"
    );
    let (code, text) = leadsman(&guarded, &["status", "mykadoo"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("Probes") && text.contains("Revisions"),
        "{text}"
    );
    let (code, text) = leadsman(&guarded, &["history", "mykadoo"]);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "Revision 2: passed",
        "Revision 3: rolled back",
        "detect",
        "Revision 5: superseded",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let (code, text) = explained(&guarded, 3);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "made things worse",
        "The cluster when the verdict fell",
        "Differs in values",
        "api.sim",
        "Deployment mykadoo-api",
        "Log of mykadoo-api",
        "GET /api/health 503",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

/// What the runbook has people collect by hand is there when the verdict falls, before the rollback takes it away.
#[test]
fn the_evidence_is_what_a_person_would_have_looked_at() {
    let Some(cluster) = Cluster::new("evidence", Helm::Four) else {
        return;
    };
    let scaled = r#"autoscaling={"enabled":true,"min":2,"max":5}"#;
    cluster.install(&[scaled, r#"api.image="mykadoo-api:1""#]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[
        scaled,
        r#"api={"image":"mykadoo-api:2","sim":{"crash-after":"1s"}}"#,
    ]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let (code, text) = explained_with(&guarded, 2, &["--json"]);
    assert_eq!(code, Some(0), "{text}");
    let explained: Value = serde_json::from_str(&text).unwrap();
    let evidence = &explained["cluster"];
    let all = |part: &str| evidence[part].as_array().cloned().unwrap_or_default();
    let has = |part: &str, is_it: &dyn Fn(&Value) -> bool| {
        assert!(all(part).iter().any(is_it), "{part}: {evidence:#}");
    };
    let starts = |value: &Value, start: &str| {
        let text = value.as_str();
        text.is_some_and(|text| text.starts_with(start))
    };
    has("pods", &|pod| {
        let state = pod["state"].as_str().unwrap();
        pod["revision"] == 2 && state.contains("restarts") && state.contains("exit code 1")
    });
    has("pods", &|pod| pod["revision"] == 1);
    // The run that crashed says why, with what is secret in it hidden.
    let why = "panic: connection string postgres://***@db:5432/app refused";
    has("logs", &|log| {
        log["previous"] == true
            && log["container"] == "api"
            && starts(&log["pod"], "mykadoo-api-")
            && log["lines"].as_array().unwrap().contains(&why.into())
    });
    has("events", &|event| {
        event["reason"] == "BackOff"
            && event["message"] == "Back-off restarting failed container"
            && event["count"] == 1
            && starts(&event["object"], "Pod mykadoo-api-")
            && starts(&event["at"], "20")
    });
    has("workloads", &|line| {
        starts(line, "Deployment mykadoo-api: ")
    });
    has("workloads", &|line| {
        starts(line, "HorizontalPodAutoscaler mykadoo-api: ")
            && line.as_str().unwrap().contains(" of 2 to 5 pods, wants ")
    });
    assert_eq!(
        all("images"),
        ["Deployment mykadoo-api: mykadoo-api:1 -> mykadoo-api:2"]
    );
    assert_eq!(
        all("values"),
        [
            r#"api.image: "mykadoo-api:1" -> "mykadoo-api:2""#,
            r#"api.sim: none -> {"crash-after":"1s"}"#,
        ]
    );
    assert!(all("missing").is_empty(), "{evidence:#}");
}

/// What `leadsman explain` makes of the recording of a revision.
pub(crate) fn explained(guarded: &Guarded<'_>, revision: u32) -> (Option<i32>, String) {
    explained_with(guarded, revision, &[])
}

fn explained_with(guarded: &Guarded<'_>, revision: u32, flags: &[&str]) -> (Option<i32>, String) {
    let config = guarded.leadsman.folder().join("probes.toml");
    let output = Command::new(PROGRAM)
        .args(["explain", "--revision", &revision.to_string(), "--config"])
        .arg(&config)
        .args(flags)
        .current_dir(guarded.leadsman.folder())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

/// Whatever a bad revision carries with it, in its values, its manifest and its logs: none of it is shown anywhere.
#[test]
fn secrets_of_a_bad_revision_are_shown_nowhere() {
    let Some(cluster) = Cluster::new("secrets", Helm::Four) else {
        return;
    };
    let env = |password: &str| {
        format!(
            r#"api.env=[{{"name":"DB_PASSWORD","value":"{password}"}},{{"name":"DB_URL","value":"postgres://app:hun/ter2@{password}@db:5432/app"}},{{"name":"MODE","value":"{}"}}]"#,
            password.len()
        )
    };
    cluster.install(&[&env("hunter1")]);
    let guarded = Guarded::start(&cluster);
    // Its pods say a password when they crash.
    cluster.upgrade(&[r#"api.sim={"crash-after":"1s"}"#, &env("hunter22")]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let (code, text) = explained(&guarded, 2);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "DB_PASSWORD",
        "postgres://***@db:5432/app",
        "The cluster when the verdict fell",
        "Log of mykadoo-api",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let release = format!("/api/v1/releases/{}/mykadoo", cluster.namespace);
    let events = cluster.list("/apis/events.k8s.io/v1", "events");
    let ours = events
        .iter()
        .filter(|event| event["reportingController"] == "leadsman");
    let told: Vec<String> = ours.map(ToString::to_string).collect();
    assert!(!told.is_empty());
    for (place, text) in [
        ("explain", text),
        ("the log", guarded.leadsman.log()),
        ("the API", guarded.leadsman.get(&release).body),
        (
            "the API of rollouts",
            guarded.leadsman.get(&format!("{release}/rollouts")).body,
        ),
        ("the page", guarded.leadsman.get("/").body),
        ("metrics", guarded.leadsman.get("/metrics").body),
        ("Events", told.join("\n")),
        (
            "Helm's history",
            format!("{:?}", cluster.history(Helm::Four)),
        ),
    ] {
        for secret in ["hunter", "ter2"] {
            assert!(!text.contains(secret), "{secret} is in {place}:\n{text}");
        }
    }
}

/// A selection takes what it finds, and `leadsman rbac` as well.
#[test]
fn the_rights_of_a_selection_are_those_of_the_releases_that_it_takes() {
    let Some(cluster) = Cluster::new("selected", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let settings = Settings::by(Helm::Four);
    let selects = |kubeconfig: &std::path::Path| {
        let text = configuration(&cluster, &settings, kubeconfig);
        text.replace("name = \"mykadoo\"\n", "select = \"*\"\n")
    };
    let text = selects(&cluster.kubeconfig());
    assert!(text.contains("select = \"*\""), "{text}");
    let kubeconfig = cluster.least(&text);
    let guarded = Guarded::allowed(&cluster, &selects(&kubeconfig));
    cluster.upgrade(&[DEAD]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
}

#[test]
fn the_cluster_says_who_may_roll_back_and_who_may_see_evidence() {
    let Some(cluster) = Cluster::new("callers", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let settings = Settings::by(Helm::Four);
    let controllers = |kubeconfig: &std::path::Path| {
        let text = configuration(&cluster, &settings, kubeconfig);
        format!("[serve]\nlisten = \"127.0.0.1:0\"\nkubernetes_auth = true\n{text}")
    };
    let kubeconfig = cluster.least(&controllers(&cluster.kubeconfig()));
    let guarded = Guarded::allowed(&cluster, &controllers(&kubeconfig));
    let pipeline = cluster.caller("pipeline", "releases/rollback", "create");
    let reader = cluster.caller("reader", "releases/recording", "get");
    cluster.upgrade(&[DEAD]);
    assert_eq!(guarded.outcome(2)["outcome"], "rolled_back");

    let release = format!("/api/v1/releases/{}/mykadoo", cluster.namespace);
    let ask = |token: &str, path: &str| {
        let value = format!("Bearer {token}");
        let headers = [("Authorization", value.as_str())];
        let address = guarded.leadsman.address();
        let path = format!("{release}/{path}");
        if path.ends_with("rollback") {
            crate::program::post(address, &path, &headers, b"{}")
        } else {
            crate::program::request(address, "GET", &path, &headers)
        }
    };
    let recording = "rollouts/2/recording";
    // Without a reason nothing is rolled back, but who asks is let in.
    assert_eq!(ask(&pipeline, "rollback").status, 400);
    let refused = ask(&reader, "rollback");
    assert_eq!(refused.status, 403);
    for part in ["system:serviceaccount:", ":reader", "releases/rollback"] {
        assert!(refused.body.contains(part), "{}", refused.body);
    }
    assert_eq!(ask(&reader, recording).status, 200);
    assert_eq!(ask(&pipeline, recording).status, 403);
    assert_eq!(ask("no token of this cluster", recording).status, 401);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, &reader).unwrap();
    let file = file.display().to_string();
    let (code, text) = leadsman(&guarded, &["explain", "mykadoo", "--token-file", &file]);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "made things worse",
        "The cluster when the verdict fell",
        "Log of mykadoo-api",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let (code, text) = leadsman(&guarded, &["explain", "mykadoo"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("bearer token"), "{text}");

    // What is taken away is gone in a moment.
    let binding = format!(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings/reader",
        cluster.namespace
    );
    let nothing = serde_json::json!({});
    cluster.send("DELETE", &binding, "application/json", &nothing);
    crate::program::until("the reader may not any more", || {
        ask(&reader, recording).status == 403
    });
    let said = guarded.leadsman.log();
    assert!(!said.contains(&reader) && !said.contains(&pipeline));
}

#[test]
fn a_person_rolls_back_with_a_reason_and_a_token() {
    let Some(cluster) = Cluster::new("hand", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a secret that nobody knows\n").unwrap();
    // Even where Leadsman itself would only observe.
    let settings = Settings {
        mode: "enforce",
        ..Settings::by(Helm::Four)
    };
    let kubeconfig = cluster.least(&configuration(&cluster, &settings, &cluster.kubeconfig()));
    let settings = Settings {
        mode: "observe",
        ..settings
    };
    let text = configuration(&cluster, &settings, &kubeconfig);
    let text = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\ntoken_file = {:?}\n{text}",
        token.display().to_string()
    );
    let guarded = Guarded::allowed(&cluster, &text);
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#]);
    assert_eq!(guarded.outcome(2)["outcome"], "passed");

    let (code, text) = leadsman(
        &guarded,
        &["rollback", "mykadoo", "--reason", "the cart loses items"],
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("token"), "{text}");

    let file = token.display().to_string();
    let arguments = [
        "rollback",
        "mykadoo",
        "--reason",
        "the cart loses items",
        "--token-file",
        &file,
    ];
    let (code, text) = leadsman(&guarded, &arguments);
    assert_eq!(code, Some(0), "{text}\n{}", guarded.leadsman.log());
    assert_eq!(
        cluster.statuses(Helm::Three),
        "1 superseded, 2 superseded, 3 deployed"
    );
    let (_, _, description) = &cluster.history(Helm::Four)[2];
    assert!(
        description.contains("the cart loses items"),
        "{description}"
    );

    // To a revision of one's own choice.
    let arguments = [
        "rollback",
        "mykadoo",
        "2",
        "--reason",
        "it was not the cart",
        "--token-file",
        &file,
    ];
    let (code, text) = leadsman(&guarded, &arguments);
    assert_eq!(code, Some(0), "{text}\n{}", guarded.leadsman.log());
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:2"));
    let arguments = [
        "rollback",
        "mykadoo",
        "77",
        "--reason",
        "typing",
        "--token-file",
        &file,
    ];
    let (code, text) = leadsman(&guarded, &arguments);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("has no revision 77"), "{text}");
}

/// Two night watches act within a second, and one of them mistypes: one rollback, and each hears its own result.
#[test]
fn people_who_order_at_the_same_time_each_hear_their_own_result() {
    let Some(cluster) = Cluster::new("orders", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a secret that nobody knows\n").unwrap();
    let file = token.display().to_string();
    let settings = Settings::by(Helm::Four);
    let kubeconfig = cluster.least(&configuration(&cluster, &settings, &cluster.kubeconfig()));
    let text = configuration(&cluster, &settings, &kubeconfig);
    let text = format!("[serve]\nlisten = \"127.0.0.1:0\"\ntoken_file = {file:?}\n{text}");
    let guarded = Guarded::allowed(&cluster, &text);
    let (code, text) = leadsman(&guarded, &["gate", "mykadoo", "1"]);
    assert_eq!(code, Some(12), "{text}");
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#]);
    guarded.until("revision 2 is judged", |release| release["at_hand"] == 2);
    let order = |more: &[&str]| {
        let order = [
            "rollback",
            "mykadoo",
            "--reason",
            "the cart",
            "--token-file",
            &file,
        ];
        leadsman(&guarded, &[&order[..], more].concat())
    };
    for (revision, code, says) in [
        ("99", 1, "has no revision 99; it can go back to: 1"),
        ("2", 11, "revision 2 is the one that is installed"),
    ] {
        let (ended, text) = order(&[revision]);
        assert_eq!(ended, Some(code), "{text}");
        assert!(text.contains(says), "{text}");
    }
    // The revision is judged on, and nobody was told.
    let release = guarded.release();
    assert_eq!(release["at_hand"], 2, "{release:#}");
    assert_eq!(release["alerts"].to_string(), "[]");
    assert_eq!(cluster.statuses(Helm::Four), "1 superseded, 2 deployed");
    let (first, second) = std::thread::scope(|scope| {
        let (first, second) = (scope.spawn(|| order(&[])), scope.spawn(|| order(&[])));
        (first.join().unwrap(), second.join().unwrap())
    });
    for (code, text) in [&first, &second] {
        assert_eq!(*code, Some(0), "{text}\n{}", guarded.leadsman.log());
        assert!(text.contains("rolled back"), "{text}");
    }
    let joins = "is under way already; yours joins it";
    assert!(
        first.1.contains(joins) ^ second.1.contains(joins),
        "{first:?} {second:?}"
    );
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 deployed"
    );
    // Of what the rollback made, and of what it undid, a pipeline hears the same.
    for revision in ["2", "3"] {
        let (code, text) = leadsman(&guarded, &["gate", "mykadoo", revision]);
        assert_eq!(code, Some(10), "{text}");
        assert!(text.contains("Revision 2: rolled back"), "{text}");
    }
    let (code, text) = leadsman(&guarded, &["gate", "mykadoo", "1"]);
    assert_eq!(code, Some(13), "{text}");
    // The commit is reverted, and the pipeline deploys what serves already: who has not heard of that goes back no further.
    cluster.upgrade(&[]);
    assert_eq!(guarded.outcome(4)["outcome"], "unchanged");
    let (code, text) = order(&[]);
    assert_eq!(code, Some(11), "{text}");
    let says =
        "revision 4 has the contents of revision 3, which is what the rollback of revision 2 made";
    assert!(text.contains(says), "{text}");
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
}

#[test]
fn a_person_rolls_back_without_a_daemon() {
    let Some(cluster) = Cluster::new("direct", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#]);
    cluster.upgrade(&[DEAD]);
    let settings = Settings::by(Helm::Three);
    let kubeconfig = cluster.least(&configuration(&cluster, &settings, &cluster.kubeconfig()));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("probes.toml"),
        configuration(&cluster, &settings, &kubeconfig),
    )
    .unwrap();
    // Whether it could be done is seen beforehand.
    let output = Command::new(PROGRAM)
        .args(["check", "--online"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("/mykadoo could be rolled back"), "{text}");
    let output = Command::new(PROGRAM)
        .args([
            "rollback",
            "mykadoo",
            "--direct",
            "--reason",
            "the daemon is down",
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("to the contents of revision 2"), "{text}");
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 superseded, 4 deployed"
    );
    let (_, _, description) = &cluster.history(Helm::Four)[3];
    assert!(description.contains("the daemon is down"), "{description}");
}

#[test]
fn releases_that_are_selected_come_and_go_without_a_restart() {
    let Some(cluster) = Cluster::new("many", Helm::Four) else {
        return;
    };
    let install = |name: &str, label: &str| {
        let mut arguments = vec!["install", name, crate::rig::CHART, "--create-namespace"];
        arguments.extend(["--labels", label]);
        cluster.helm(&arguments);
    };
    install("one", "team=shop");
    install("other", "team=bank");
    let text = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\n[kubernetes]\nkubeconfig = {:?}\nscratch = \"scratch\"\n\
         [[release]]\nselect = \"team=shop\"\nnamespace = {:?}\nbase_url = \"http://{{release}}-api.invalid\"\n\
         [[release.probe]]\nname = \"api\"\npath = \"/api/health\"\npods = \"{{release}}-api\"\n",
        cluster.kubeconfig().display().to_string(),
        cluster.namespace
    );
    let leadsman = crate::program::Leadsman::run(&text, &[]);
    let names = || -> Vec<String> {
        let body: serde_json::Value =
            serde_json::from_str(&leadsman.get("/api/v1/releases").body).unwrap();
        let releases = body["releases"].as_array().unwrap().iter();
        let known = releases.filter(|release| release["phase"] == "idle");
        known
            .map(|release| release["release"].as_str().unwrap().to_owned())
            .collect()
    };
    crate::program::until("one is found", || names() == ["one"]);
    install("two", "team=shop");
    crate::program::until("two is found", || names() == ["one", "two"]);
    let probes = leadsman.get("/api/v1/probes").body;
    assert!(probes.contains("http://two-api.invalid"), "{probes}");
    cluster.helm(&["uninstall", "one"]);
    crate::program::until("one is gone", || names() == ["two"]);
}
