//! Objects that Kubernetes does not define, held against tests/chart/shapes.yaml.

use serde_json::Value;

use crate::chart::{APIS, objects, read, sets};

/// What is wrong with a value, each with its place.
fn check(value: &Value, shape: &Value, place: &str, wrong: &mut Vec<String>) {
    match shape {
        Value::Object(fields) => {
            let Some(own) = value.as_object() else {
                wrong.push(format!("{place} is no object"));
                return;
            };
            for (key, value) in own {
                let place = format!("{place}.{key}");
                match fields.get(key).or_else(|| fields.get(&format!("{key}!"))) {
                    Some(shape) => check(value, shape, &place, wrong),
                    None => wrong.push(format!("{place} is not known")),
                }
            }
            let needed = fields.keys().filter_map(|key| key.strip_suffix('!'));
            for key in needed.filter(|key| !own.contains_key(*key)) {
                wrong.push(format!("{place}.{key} is missing"));
            }
        }
        Value::Array(of) => {
            let Some(own) = value.as_array().filter(|own| !own.is_empty()) else {
                wrong.push(format!("{place} is no list, or an empty one"));
                return;
            };
            for (at, value) in own.iter().enumerate() {
                check(value, &of[0], &format!("{place}[{at}]"), wrong);
            }
        }
        Value::String(name) => {
            let text = value.as_str();
            let is_it = match name.as_str() {
                "any" => true,
                "bool" => value.is_boolean(),
                "number" => value.is_u64(),
                "string" => text.is_some_and(|text| !text.is_empty()),
                "http or https" => text.is_some_and(|text| ["http", "https"].contains(&text)),
                "duration" => text.is_some_and(|text| {
                    let number = text.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
                    let unit = &text[number.len()..];
                    number.parse::<u64>().is_ok() && ["ms", "s", "m", "h", "d"].contains(&unit)
                }),
                "texts" => value
                    .as_object()
                    .is_some_and(|map| map.values().all(Value::is_string)),
                exactly => text == Some(exactly),
            };
            if !is_it {
                wrong.push(format!("{place} is {value}, not: {name}"));
            }
        }
        other => panic!("{place}: {other} is no shape"),
    }
}

fn shapes() -> Value {
    serde_saphyr::from_str(&read("tests/chart/shapes.yaml")).unwrap()
}

#[test]
fn objects_of_operators_have_no_field_that_these_do_not_know() {
    let shapes = shapes();
    let mut seen = Vec::new();
    for set in sets() {
        let Some(objects) = objects(&set) else { return };
        for object in &objects {
            let kind = object["kind"].as_str().unwrap();
            let Some(shape) = shapes.get(kind) else {
                continue;
            };
            let mut wrong = Vec::new();
            check(object, shape, kind, &mut wrong);
            assert_eq!(wrong, Vec::<String>::new(), "{}", set.name);
            seen.push(kind.to_owned());
        }
    }
    for api in APIS {
        let kind = api.rsplit('/').next().unwrap();
        assert!(seen.iter().any(|one| one == kind), "{kind} is in no set");
    }
}

/// A check that finds nothing must have looked.
#[test]
fn what_is_misspelt_missing_or_of_another_type_is_found() {
    let object = serde_json::json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "a", "namespace": "b", "labels": {"one": 1}},
        "spec": {"selector": {"matchLabels": {}}, "endpoints": [{"port": "http", "intervall": "1s", "scrapeTimeout": "10"}]},
    });
    let mut wrong = Vec::new();
    check(&object, &shapes()["ServiceMonitor"], "", &mut wrong);
    wrong.sort();
    assert_eq!(
        wrong,
        [
            ".metadata.labels is {\"one\":1}, not: texts",
            ".spec.endpoints[0].intervall is not known",
            ".spec.endpoints[0].scrapeTimeout is \"10\", not: duration",
        ]
    );
}
