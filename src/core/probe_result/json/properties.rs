//! What holds for every text.

use proptest::prelude::*;
use serde_json::json;

use super::tests::{check_rule, parts};
use super::*;

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec(("[ab01~/\\PC]{0,2}", inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Every pointer that leads somewhere in a value.
fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                pointers(member, &format!("{at}/{name}"), out);
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                pointers(element, &format!("{at}/{index}"), out);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

proptest! {
    #[test]
    fn a_pointer_leads_where_serde_json_says(value in any_json(), other in "(/[ab01~-]{0,2}){0,3}", pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        // Read again, because serde_json reads some numbers back less exactly than it wrote them.
        let model: Value = serde_json::from_str(&text).unwrap();
        let mut all = Vec::new();
        pointers(&value, "", &mut all);
        all.push(other);
        for pointer in all {
            let doc = JsonDoc::of(text.as_bytes()).unwrap();
            let found = doc.pointer(&parts(&pointer)).unwrap();
            let found = found.map(|place| serde_json::from_str::<Value>(place).unwrap());
            prop_assert_eq!(found.as_ref(), model.pointer(&pointer), "{}", pointer);
            if let Some(written) = value.pointer(&pointer) {
                let place = doc.pointer(&parts(&pointer)).unwrap().unwrap();
                prop_assert!(doc.equals(place, written).unwrap());
            }
        }
    }

    #[test]
    fn no_bytes_make_a_rule_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "[\\[\\]{}\",:0-9aeu\\\\ ]{0,80}") {
        for body in [bytes.as_slice(), text.as_bytes()] {
            let rule = JsonRule {
                place: JsonPlace::Path {
                    query: Box::new(jsonpath_rust::parser::parse_json_path("$..[?@.a == @[0] || length(@) > 1]").unwrap()),
                    text: String::new(),
                },
                test: JsonTest::Equals(json!({"a": [1]})),
            };
            let path = check_rule(rule, body);
            // What serde_json cannot read is never good; it refuses also what is too large for its numbers.
            if serde_json::from_slice::<IgnoredAny>(body).is_err() && !body.starts_with(b"\xef\xbb\xbf") {
                prop_assert!(path.is_err());
            }
        }
    }

    #[test]
    fn decimals_order_as_fractions_do(a in decimal(), b in decimal()) {
        let (x, y) = (Decimal::parse(&a.0).unwrap(), Decimal::parse(&b.0).unwrap());
        prop_assert_eq!(x.cmp(&y), a.1.cmp(&b.1), "{} {}", a.0, b.0);
        prop_assert_eq!(x == y, a.1 == b.1);
        prop_assert_eq!(Decimal::parse(&x.to_string()), Some(x));
    }
}

/// A number as text, and the same in units of 10^-14.
fn decimal() -> impl Strategy<Value = (String, i128)> {
    (
        any::<bool>(),
        0_i64..2000,
        prop::collection::vec(0_u8..10, 0..6),
        -8_i32..9,
    )
        .prop_map(|(negative, whole, fraction, power)| {
            let sign = if negative { "-" } else { "" };
            let digits: String = fraction.iter().map(ToString::to_string).collect();
            let point = if digits.is_empty() { "" } else { "." };
            let mantissa: i128 = format!("{whole}{digits}").parse().unwrap();
            let places = 14 + power - i32::try_from(digits.len()).unwrap();
            let units = mantissa * 10_i128.pow(u32::try_from(places).unwrap());
            (
                format!("{sign}{whole}{point}{digits}e{power}"),
                if negative { -units } else { units },
            )
        })
}
