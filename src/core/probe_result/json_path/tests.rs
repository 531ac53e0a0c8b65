//! Paths: what they find, and what they may cost.

use serde_json::json;

use super::*;
use crate::core::probe_result::expect::{JsonPlace, JsonRule, JsonTest};
use crate::core::probe_result::json::tests::{check, check_rule, more};

#[test]
fn paths() {
    let body = r#"{"checks":[{"name":"db","status":"ok","ms":9007199254740993},
        {"name":"redis","status":"ok","ms":2.50,"tags":["a","b"]},{"name":"x']['y","status":"down"}],"limit":2.5}"#;
    let found_by = |path: &str| {
        let query = jsonpath_rust::parser::parse_json_path(path).unwrap();
        let doc = JsonDoc::of(body.as_bytes()).unwrap();
        find(&doc, &query).unwrap().join(" ")
    };
    for (path, found) in [
        ("$.checks[*].status", r#""ok" "ok" "down""#),
        ("$.checks[0].name", r#""db""#),
        ("$.checks[-1].status", r#""down""#),
        ("$.checks[-4].status", ""),
        ("$.checks[9].status", ""),
        ("$.checks[:2].name", r#""db" "redis""#),
        ("$.checks[::-1].status", r#""down" "ok" "ok""#),
        ("$.checks[2:0:-1].status", r#""down" "ok""#),
        ("$.checks[::0].status", ""),
        ("$.checks[1:99].status", r#""ok" "down""#),
        ("$.checks[-2:].status", r#""ok" "down""#),
        ("$..tags[*]", r#""a" "b""#),
        ("$..ms", "9007199254740993 2.50"),
        ("$.checks[0]['name','status']", r#""db" "ok""#),
        ("$.checks[?@.status == 'down'].name", r#""x']['y""#),
        ("$.checks[?@.status != 'ok'].name", r#""x']['y""#),
        ("$.checks[?@.ms == 9007199254740991].name", ""),
        ("$.checks[?@.ms > 9007199254740991].name", r#""db""#),
        ("$.checks[?@.ms == $.limit].name", r#""redis""#),
        ("$.checks[?@.ms >= 2.5 && @.ms < 3].name", r#""redis""#),
        (
            "$.checks[?@.ms <= 2.5 || @.name == 'db'].name",
            r#""db" "redis""#,
        ),
        ("$.checks[?!@.ms].name", r#""x']['y""#),
        ("$.checks[?!(@.ms > 3)].name", r#""redis" "x']['y""#),
        ("$.checks[?@.tags == $.checks[1].tags].name", r#""redis""#),
        ("$.checks[?@.tags].name", r#""redis""#),
        ("$.checks[?length(@.name) == 5].name", r#""redis""#),
        ("$.checks[?length(@.tags) == 2].name", r#""redis""#),
        ("$.checks[?count(@.*) == 2].status", r#""down""#),
        ("$.checks[?value(@..name) == 'db'].status", r#""ok""#),
        ("$.checks[?match(@.name, 'r.*s')].status", r#""ok""#),
        ("$.checks[?match(@.name, 'edi')].status", ""),
        ("$.checks[?search(@.name, 'edi')].status", r#""ok""#),
        ("$.checks[?search(@.name, '(')].status", ""),
        ("$[?@ == 2.5]", "2.5"),
        ("$.nothing[*]", ""),
        ("$.limit[0]", ""),
    ] {
        assert_eq!(found_by(path), found, "{path}");
    }
}

#[test]
fn a_path_holds_where_its_test_holds_at_each_place() {
    let body = r#"[{"s":"ok"},{"s":"ok"},{"s":"down"}]"#;
    let ok = || JsonTest::Equals(json!("ok"));
    check_path("all", "[1]", "$[*]", JsonTest::Equals(json!(1)), "");
    check_path(
        "one differs",
        body,
        "$[*].s",
        ok(),
        r#"JSON at $[*].s is "down", expected "ok""#,
    );
    check_path(
        "none",
        body,
        "$[*].t",
        ok(),
        r#"JSON has nothing at $[*].t, expected "ok""#,
    );
    check_path(
        "none is wanted",
        body,
        "$[?@.s == 'failed']",
        JsonTest::Exists(false),
        "",
    );
    check_path("A15", "{}", "$..error", JsonTest::Exists(false), "");
    check_path("not a test", "[1]", "$[?length(@) in [1]]", ok(), "?");
    check_path(
        "no function of the RFC",
        "[[1]]",
        "$[?in(1, @)]",
        ok(),
        "JSON at $[?in(1, @)]: uses in(1) where RFC 9535 does not allow it; length, count and value are compared, \
         match and search are tests",
    );
}

#[test]
fn work_on_a_hostile_text_is_bounded() {
    let ones = format!("[{}1]", "1,".repeat(20_000));
    check_path(
        "many places",
        &ones,
        "$[*]",
        more(0),
        "JSON at $[*]: finds more than 10000 places",
    );
    // Every level is read once more for each level below it.
    let deep = format!(
        "{}{}{}",
        "[".repeat(100),
        "1,".repeat(400_000) + "1",
        "]".repeat(100)
    );
    check_path(
        "deep and large",
        &deep,
        "$..a",
        more(0),
        "JSON at $..a: needs too much work for a text of this size",
    );
    let name = "n".repeat(100_000);
    let long = format!(r#"{{"{name}":[{}1]}}"#, "1,".repeat(9_000));
    check_path("long names", &long, "$..*", JsonTest::Exists(true), "");
    let square = format!("[{}1]", "1,".repeat(9_000));
    check_path(
        "a filter that reads all for each",
        &square,
        "$[?count($[*]) > 1]",
        more(0),
        "JSON at $[?count($[*]) > 1]: needs too much work for a text of this size",
    );
    let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    check(
        "the depth that serde_json allows",
        &nested(127),
        "/0/0",
        JsonTest::Exists(true),
        "",
    );
    check(
        "one more",
        &nested(128),
        "",
        JsonTest::Exists(true),
        &format!(
            "the body is not JSON (nested more than 127 deep): {}…",
            "[".repeat(96)
        ),
    );
    let abyss = nested(1_000_000);
    check(
        "a million",
        &abyss,
        "",
        JsonTest::Exists(true),
        &format!(
            "the body is not JSON (nested more than 127 deep): {}…",
            "[".repeat(96)
        ),
    );
}

#[track_caller]
fn check_path(name: &str, body: &str, path: &str, test: JsonTest, why: &str) {
    let Ok(query) = jsonpath_rust::parser::parse_json_path(path) else {
        assert_eq!(why, "?", "{name}: not a path");
        return;
    };
    let place = JsonPlace::Path {
        query: Box::new(query),
        text: path.to_owned(),
    };
    let got = check_rule(JsonRule { place, test }, body.as_bytes());
    assert_eq!(got.err().unwrap_or_default(), why, "{name}");
}
