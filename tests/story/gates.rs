//! What a pipeline hears of a revision on which there will never be a verdict.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::program::until;
use crate::story::{Guarded, PROGRAM, leadsman};

/// A gate that would wait for a quarter of an hour where it does not answer.
fn gate(guarded: &Guarded, arguments: &[&str]) -> (Option<i32>, String) {
    let server = format!("http://{}", guarded.daemon.address());
    let mut all = vec!["gate", "mykadoo", "--server", &server];
    all.extend(arguments);
    leadsman(&all, guarded.history.parent().unwrap())
}

#[track_caller]
fn answers(guarded: &Guarded, arguments: &[&str], code: i32, parts: &[&str]) {
    // Longer than it may take, and shorter than its own patience.
    let mut all = arguments.to_vec();
    all.extend(["--timeout", "60s"]);
    let (ended, text) = gate(guarded, &all);
    assert_eq!(ended, Some(code), "{arguments:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn the_gate_answers_at_once_where_there_is_nothing_to_wait_for() {
    let guarded = Guarded::start();
    let before = "Revision 1 served before Leadsman began to watch";
    answers(&guarded, &["1"], 12, &[before]);
    answers(&guarded, &[], 12, &[before]);
    guarded.deploy("healthy");
    until("it is seen", || guarded.release()["revision"] == 2);
    guarded.deploy("dead");
    until("it was rolled back", || guarded.outcome_of(3).is_some());
    until("the rollback is known", || {
        guarded.release()["revision"] == 4
    });
    let newest = "Revision 4 is the newest, and there is no verdict on revision 1";
    answers(&guarded, &["1"], 13, &[newest]);
    answers(&guarded, &["2"], 13, &["Revision 2: superseded"]);
    answers(&guarded, &["3"], 10, &["Revision 3: rolled back"]);
    // What Leadsman's rollback made is no deployment: the one that was deployed was rolled back.
    let made = "revision 4 is what the rollback of revision 3 made";
    answers(&guarded, &["4"], 10, &[made, "Revision 3: rolled back"]);
    answers(&guarded, &[], 10, &["Revision 3: rolled back"]);
    let (code, text) = gate(&guarded, &["1", "--json"]);
    let said: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &said["outcome"]), (Some(13), &"superseded".into()));
}

#[test]
fn the_gate_waits_a_stated_time_for_a_revision_to_appear() {
    let guarded = Guarded::start();
    let missing = [
        "shop/mykadoo has no revision 99 yet",
        "waits 30 s for it to appear",
        "waited 30 s for it",
    ];
    answers(&guarded, &["99"], 1, &missing);
    for wrong in ["0", "-1", "3rd"] {
        let (code, text) = gate(&guarded, &[wrong]);
        assert_eq!(code, Some(2), "{text}");
    }
    // One that comes in the meantime is waited for to its verdict.
    let server = format!("http://{}", guarded.daemon.address());
    let mut running = Command::new(PROGRAM)
        .args(["gate", "mykadoo", "2", "--server", &server])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    let mut said = String::new();
    while !said.contains("has no revision 2 yet") {
        said = lines.next().unwrap().unwrap();
    }
    guarded.deploy("dead");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let code = running.wait().unwrap().code();
    assert_eq!(code, Some(10), "{rest:?}");
    // Each line says how long it takes yet, and what stands for and against.
    let tells = |line: &String| {
        ["s left", "e-value", " of 1"]
            .iter()
            .all(|part| line.contains(part))
    };
    assert!(rest.iter().any(tells), "{rest:#?}");
}

#[test]
fn the_gate_says_at_once_that_nobody_judges() {
    let off = Guarded::with(|config| config.replace("mode = \"enforce\"", "mode = \"off\""));
    answers(&off, &["1"], 1, &["the mode of shop/mykadoo is off"]);
    answers(&off, &["7"], 1, &["the mode of shop/mykadoo is off"]);
    off.deploy("dead");
    answers(&off, &["2"], 1, &["the mode of shop/mykadoo is off"]);
    answers(&off, &[], 1, &["the mode of shop/mykadoo is off"]);
    assert_eq!(gate(&off, &["2", "--json"]).0, Some(1));
    let probed = Guarded::with(|config| {
        let lines = config.lines().filter(|line| !line.starts_with("embedded"));
        lines.map(|line| line.to_owned() + "\n").collect()
    });
    answers(&probed, &["1"], 1, &["shop/mykadoo is only probed"]);
    // What is not there is not waited for longer than it could take to appear.
    let gone = Guarded::with(|config| config.replace("history\"", "nothing\""));
    answers(&gone, &[], 1, &["is not installed"]);
    drop((off, probed, gone));
}

#[test]
fn the_gate_of_a_release_that_is_observed_tells_what_would_have_been() {
    let guarded = Guarded::with(|config| config.replace("\"enforce\"", "\"observe\""));
    guarded.deploy("dead");
    answers(
        &guarded,
        &["2"],
        11,
        &["Would have been rolled back in the mode enforce"],
    );
}
