//! Rules about JSON; what is refused on purpose is listed beside the tests of `judge`.

use regex::Regex;
use serde_json::json;

use super::*;
use crate::core::probe_result::expect::{NumberComparison, Pattern};

#[test]
fn a_values() {
    let ok = || JsonTest::Equals(json!("ok"));
    check(
        "A12: no JSON",
        "<html>",
        "/status",
        ok(),
        "the body is not JSON (expected value at line 1 column 1): <html>",
    );
    check(
        "A12: empty",
        "",
        "/status",
        ok(),
        "the body is not JSON (EOF while parsing a value at line 1 column 0): it is empty",
    );
    check(
        "A12: emoji",
        "👻🔥",
        "/status",
        ok(),
        "the body is not JSON (expected value at line 1 column 1): 👻🔥",
    );
    check(
        "A12: more behind it",
        r#"{"status":"ok"} x"#,
        "/status",
        ok(),
        r#"the body is not JSON (trailing characters at line 1 column 17): {"status":"ok"} x"#,
    );
    check(
        "A10",
        "{}",
        "/status",
        ok(),
        r#"JSON has nothing at /status, expected "ok""#,
    );
    check(
        "A10",
        "{}",
        "/n",
        more(1),
        "JSON has nothing at /n, expected a number > 1",
    );
    check(
        "A10",
        "{}",
        "/n",
        like("."),
        "JSON has nothing at /n, expected a string that matches .",
    );
    check("A13", r#""ok""#, "", ok(), "");
    check("A13", "[1,2,3]", "/2", JsonTest::Equals(json!(3)), "");
    check("A13", "true", "", JsonTest::Equals(json!(true)), "");
    check(
        "A13",
        " true\n",
        "",
        JsonTest::Equals(json!(false)),
        "JSON at  is true, expected false",
    );
    check("A14", r#"{"status":"ok"}"#, "/status", ok(), "");
    check(
        "A14",
        r#"{"status":"down"}"#,
        "/status",
        ok(),
        r#"JSON at /status is "down", expected "ok""#,
    );
    check("A15", "{}", "/status", JsonTest::Exists(false), "");
    check(
        "A15",
        r#"{"status":1}"#,
        "/status",
        JsonTest::Exists(false),
        "JSON at /status is 1, expected nothing",
    );
    check(
        "A16",
        r#"{"a":"Gr\u00fc\u00DFe 世界"}"#,
        "/a",
        JsonTest::Equals(json!("Grüße 世界")),
        "",
    );
    check(
        "A16: no folding",
        r#"{"a":"e\u0301"}"#,
        "/a",
        JsonTest::Equals(json!("é")),
        r#"JSON at /a is "e\u0301", expected "é""#,
    );
    check("A34", "{}", "", JsonTest::Exists(true), "");
    check(
        "A34",
        "{",
        "",
        JsonTest::Exists(true),
        "the body is not JSON (EOF while parsing an object at line 1 column 1): {",
    );
    check(
        "a byte order mark is skipped",
        "\u{feff}{\"status\":\"ok\"}",
        "/status",
        ok(),
        "",
    );
    check(
        "the last of two counts",
        r#"{"status":"down","status":"ok"}"#,
        "/status",
        ok(),
        "",
    );
    check(
        "a missing place is another value",
        "{}",
        "/a",
        JsonTest::NotEquals(json!(1)),
        "",
    );
    check(
        "null is a place",
        r#"{"a":null}"#,
        "/a",
        JsonTest::Exists(true),
        "",
    );
    check(
        "not equals",
        r#"{"a":1.0}"#,
        "/a",
        JsonTest::NotEquals(json!(1)),
        "JSON at /a is 1.0, expected anything but 1",
    );
}

#[test]
fn a35_objects_may_hold_more_than_expected() {
    let body = r#"{"app":{"db":{"up":true,"ms":3},"v":"1"},"list":[{"a":1,"b":2}],"x":[]}"#;
    let equals = JsonTest::Equals;
    check(
        "nested",
        body,
        "",
        equals(json!({"app": {"db": {"up": true}}})),
        "",
    );
    check("in a list", body, "/list", equals(json!([{"a": 1}])), "");
    check("no members expected", body, "/app", equals(json!({})), "");
    check(
        "an array is no object",
        body,
        "/x",
        equals(json!({})),
        "JSON at /x is [], expected {}",
    );
    check(
        "lists are as long",
        body,
        "/list",
        equals(json!([])),
        r#"JSON at /list is [{"a":1,"b":2}], expected []"#,
    );
    check(
        "a missing member",
        body,
        "/app/db",
        equals(json!({"down": 1})),
        r#"JSON at /app/db is {"up":true,"ms":3}, expected {"down":1}"#,
    );
}

#[test]
fn g_places() {
    let body = r#"{"a":{"b":[10,[20,{"c":"deep"}]]},"":1,"m~n":2,"x/y":3,"null":null}"#;
    let equals = |value| JsonTest::Equals(value);
    check("G07: array index", body, "/a/b/0", equals(json!(10)), "");
    check(
        "G07: nested arrays",
        body,
        "/a/b/1/1/c",
        equals(json!("deep")),
        "",
    );
    check("G07: empty name", body, "/", equals(json!(1)), "");
    check("G07: escapes", body, "/m~0n", equals(json!(2)), "");
    check("G07: escapes", body, "/x~1y", equals(json!(3)), "");
    check(
        "G08: null",
        body,
        "/null",
        equals(json!("x")),
        r#"JSON at /null is null, expected "x""#,
    );
    check(
        "G08: null body",
        "null",
        "/a",
        equals(json!(1)),
        "JSON has nothing at /a, expected 1",
    );
    for place in [
        "/a/0",
        "/a/b/-1",
        "/a/b/2",
        "/a/b/-",
        "/a/b/00",
        "/a/b/+1",
        "/a/b/0/x",
        "/a/b/99999999999999999999",
    ] {
        let why = format!("JSON has nothing at {place}, expected 1");
        check("G08", body, place, equals(json!(1)), &why);
    }
    check("G12", body, "/a/b", JsonTest::Exists(true), "");
    check(
        "G12",
        body,
        "/a/z",
        JsonTest::Exists(true),
        "JSON has nothing at /a/z, expected something",
    );
    check(
        "G14: left",
        r#""up""#,
        "",
        JsonTest::OneOf(vec![json!("up"), json!("ok")]),
        "",
    );
    check(
        "G14: right",
        r#""ok""#,
        "",
        JsonTest::OneOf(vec![json!("up"), json!("ok")]),
        "",
    );
    check(
        "G14",
        r#""no""#,
        "",
        JsonTest::OneOf(vec![json!("up"), json!("ok")]),
        r#"JSON at  is "no", expected one of "up", "ok""#,
    );
}

#[test]
fn numbers_are_compared_by_their_digits() {
    let equals = |text: &str| JsonTest::Equals(serde_json::from_str(text).unwrap());
    check(
        "beyond 2^53",
        "9007199254740993",
        "",
        equals("9007199254740992"),
        "JSON at  is 9007199254740993, expected 9007199254740992",
    );
    check(
        "beyond 2^64",
        "18446744073709551617",
        "",
        more(u64::MAX),
        "",
    );
    check("one value, two texts", "1.50e1", "", equals("15"), "");
    check("tenths", "0.1", "", equals("0.1"), "");
    check(
        "a huge exponent",
        "1e999999999999999999999",
        "",
        more(5),
        "",
    );
    check("a tiny one", "1e-400", "", more(0), "");
    check("in a string", r#""42.5""#, "", more(42), "");
    check(
        "no number",
        r#""many""#,
        "",
        more(42),
        r#"JSON at  is "many", expected a number > 42"#,
    );
    check(
        "no number",
        "[43]",
        "",
        more(42),
        "JSON at  is [43], expected a number > 42",
    );
    check(
        "a string is no number",
        r#""1""#,
        "",
        equals("1"),
        r#"JSON at  is "1", expected 1"#,
    );
    check(
        "G10",
        r#""0x10""#,
        "",
        more(1),
        r#"JSON at  is "0x10", expected a number > 1"#,
    );
    for (comparison, below, same, above) in [
        (NumberComparison::Less, true, false, false),
        (NumberComparison::LessOrEqual, true, true, false),
        (NumberComparison::Greater, false, false, true),
        (NumberComparison::GreaterOrEqual, false, true, true),
    ] {
        for (text, holds) in [("499", below), ("500.0", same), ("501", above)] {
            let test = JsonTest::Compare(comparison, Decimal::parse("500").unwrap());
            let why = format!("JSON at  is {text}, expected a number {comparison} 500");
            check("G02", text, "", test, if holds { "" } else { &why });
        }
    }
}

#[test]
fn patterns_are_for_strings() {
    check("a string", r#"{"v":"1.2.3"}"#, "/v", like(r"^1\."), "");
    check(
        "unescaped first",
        r#"{"v":"\u0041\n"}"#,
        "/v",
        like("^A\n$"),
        "",
    );
    check(
        "a number",
        r#"{"v":12}"#,
        "/v",
        like("12"),
        "JSON at /v is 12, expected a string that matches 12",
    );
    check(
        "a bool",
        r#"{"v":true}"#,
        "/v",
        like("t"),
        "JSON at /v is true, expected a string that matches t",
    );
    check(
        "half a character",
        r#"{"v":"\ud800"}"#,
        "/v",
        like("."),
        r#"JSON at /v is "\ud800", expected a string that matches ."#,
    );
}

pub(in crate::core::probe_result) fn more(than: u64) -> JsonTest {
    JsonTest::Compare(
        NumberComparison::Greater,
        Decimal::parse(&than.to_string()).unwrap(),
    )
}

fn like(pattern: &str) -> JsonTest {
    JsonTest::Matches(Pattern(Regex::new(pattern).unwrap()))
}

pub(in crate::core::probe_result) fn parts(pointer: &str) -> Vec<String> {
    let parts = pointer.split('/').skip(1);
    parts
        .map(|part| part.replace("~1", "/").replace("~0", "~"))
        .collect()
}

/// `why` is the explanation; empty where the rule holds.
#[track_caller]
pub(in crate::core::probe_result) fn check(
    name: &str,
    body: &str,
    pointer: &str,
    test: JsonTest,
    why: &str,
) {
    let place = JsonPlace::Pointer {
        parts: parts(pointer),
        text: pointer.to_owned(),
    };
    let got = check_rule(JsonRule { place, test }, body.as_bytes());
    assert_eq!(got.err().unwrap_or_default(), why, "{name}");
}

pub(in crate::core::probe_result) fn check_rule(rule: JsonRule, body: &[u8]) -> Result<(), String> {
    super::check(&[rule], body)
}
