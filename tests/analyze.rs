//! `leadsman analyze`: the worked vectors of the rule, and what it says to lines that are wrong.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const VECTORS: &str = include_str!("vectors/detection.jsonl");

fn judge(lines: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .args(["analyze", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines = lines.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output
}

fn results(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_worked_vector_gets_its_verdict_and_its_numbers() {
    let output = judge(VECTORS);
    assert!(output.status.success());
    let results = results(&output);
    let vectors: Vec<Value> = VECTORS
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(vectors.len(), 99);
    assert_eq!(results.len(), vectors.len());
    for (vector, result) in vectors.iter().zip(&results) {
        let name = &vector["name"];
        assert_eq!(&result["name"], name);
        for (key, expected) in vector["expect"].as_object().unwrap() {
            let got = &result[key];
            assert!(
                key == "why" || is_close(expected, got),
                "{name}: {key} is {got} and not {expected}"
            );
        }
    }
}

/// Whether two values are the same, numbers to a ten-thousandth.
fn is_close(expected: &Value, got: &Value) -> bool {
    match (expected, got) {
        (Value::Number(expected), Value::Number(got)) => {
            let (expected, got) = (expected.as_f64().unwrap(), got.as_f64().unwrap());
            (expected - got).abs() <= 1e-4 * expected.abs()
        }
        (Value::Object(expected), Value::Object(got)) => {
            expected.len() == got.len()
                && expected
                    .iter()
                    .all(|(key, value)| got.get(key).is_some_and(|got| is_close(value, got)))
        }
        (Value::Array(expected), Value::Array(got)) => {
            expected.len() == got.len()
                && expected
                    .iter()
                    .zip(got)
                    .all(|(value, got)| is_close(value, got))
        }
        _ => expected == got,
    }
}

/// The vectors' own sentences leave out what depends on the presentation; the counts in them are compared.
#[test]
fn the_reason_in_words_has_the_counts_of_the_vector() {
    let output = judge(VECTORS);
    let vectors = VECTORS
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut compared = 0;
    for (vector, result) in vectors.zip(results(&output)) {
        let Some(why) = vector["expect"]["why"].as_str() else {
            continue;
        };
        let counts = |text: &str| -> Option<String> {
            text.split_whitespace()
                .find(|word| word.contains('/'))
                .map(|word| word.trim_end_matches(';').to_owned())
        };
        if let Some(expected) = counts(why) {
            assert_eq!(
                counts(result["why"].as_str().unwrap()),
                Some(expected),
                "{}",
                vector["name"]
            );
            compared += 1;
        } else {
            // The program says more than some vectors: which workload it is, and what is normal for it.
            let said = result["why"].as_str().unwrap();
            let more = [
                (", which reads changed settings,", ""),
                (", up to 3 are normal for it", ""),
                ("new pod of web restarted", "new pod restarted"),
                (
                    "no new pod of web became Ready, and",
                    "no new pod became Ready, and",
                ),
                ("could not start for 60 s", "could not start for a minute"),
                ("the image cannot be pulled", "image"),
                (
                    "its pods could not be created for 60 s",
                    "pods of it cannot be created",
                ),
            ];
            let said = more.iter().fold(said.to_owned(), |said, (more, less)| {
                said.replace(more, less)
            });
            assert_eq!(said, why, "{}", vector["name"]);
        }
    }
    assert!(compared >= 8);
}

#[test]
fn a_wrong_line_is_named_and_the_others_are_judged() {
    let lines = concat!(
        "{\"name\":\"first\",\"ticks\":[[\"....\",3]]}\n",
        "not json\n",
        "\n",
        "{\"name\":\"last\",\"ticks\":[[\"....\",60]]}\n",
    );
    let output = judge(lines);
    assert_eq!(output.status.code(), Some(2));
    let results = results(&output);
    assert_eq!(results.len(), 2);
    assert_eq!(results[0]["verdict"], "watching");
    assert_eq!(results[1]["verdict"], "healthy");
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 2: "));
}

#[test]
fn each_wrong_field_is_named() {
    for (line, expected) in [
        (
            r#"{"name":"a","ticks":[["..?.",1]]}"#,
            r"ticks[0]: the character '?' in column 3",
        ),
        (
            r#"{"name":"a","ticks":[["....",1],["...",1]]}"#,
            "ticks[1]: the row has 3 characters for 4 endpoints",
        ),
        (
            r#"{"name":"a","ticks":[["....",-1]]}"#,
            "ticks[0][1]: invalid value: integer `-1`",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"baseline":[[-1,2],null,null,null]}"#,
            "baseline[0][0]: invalid value",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"baseline":[[3,2],null,null,null]}"#,
            "baseline[0] has 3 failures of 2",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"baseline":[[0,2]]}"#,
            "baseline has 1 entries for 4 endpoints",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"config":{"interval_s":0}}"#,
            "config.interval_s is 0",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"config":{"interval_s":NaN}}"#,
            "config.interval_s",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"config":{"intervals":1}}"#,
            "config.intervals: unknown field",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"settled_at":-4}"#,
            "settled_at is -4",
        ),
        (
            r#"{"name":"a","ticks":[["",1]]}"#,
            "ticks[0]: the row is empty",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"pods":[{"t":-1,"restarts":0,"waiting":null}]}"#,
            "pods[0].t",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"requests":{"interval_s":15,"baseline":[9,1],"scrapes":[]}}"#,
            "requests.baseline has 9 failures of 1",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"requests":{"interval_s":15,"baseline":[0,1],"scrapes":[[1.0,3,2]]}}"#,
            "requests.scrapes[0]",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"direct":[{"name":"n1","rev":"new","node":"a","from":0,"row":[["..",1]]}]}"#,
            "direct.n1.row[0]: the row has 2",
        ),
        (
            r#"{"name":"a","ticks":[["....",1]],"direct":[{"name":"n1","rev":"newer","node":"a","from":0,"row":[]}]}"#,
            "direct[0].rev",
        ),
        (r#"{"ticks":[["....",1]]}"#, "missing field `name`"),
        ("[1]", "invalid type"),
    ] {
        let output = judge(&format!("{line}\n"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(
            said.contains("line 1: ") && said.contains(expected),
            "{line}\nsaid: {said}"
        );
        assert!(output.stdout.is_empty(), "{line}");
    }
}

#[test]
fn a_repeat_of_billions_takes_no_memory() {
    let output = judge("{\"name\":\"long\",\"ticks\":[[\"....\",4000000000]]}\n");
    assert!(output.status.success());
    assert_eq!(results(&output)[0]["tick"], 59);
}

#[test]
fn columns_can_have_names_of_their_own() {
    let output = judge("{\"name\":\"own\",\"endpoints\":[\"a\",\"b\"],\"ticks\":[[\".x\",60]]}\n");
    assert_eq!(results(&output)[0]["reason"], "hard_down:b");
}
