//! What Helm makes of an object: the target's manifest merged into the live object. Pure.

use serde_json::{Map, Value};

/// Lists whose items are identified by one of these fields, as in the API server; all others are replaced as a whole.
const KEYED: [(&str, &[&str]); 12] = [
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("ephemeralContainers", &["name"]),
    ("volumes", &["name"]),
    ("env", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("secrets", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    ("ports", &["containerPort", "port"]),
    ("hostAliases", &["ip"]),
    ("topologySpreadConstraints", &["topologyKey"]),
];

/// In these only the fields of the target stay: the API server accepts one of their kinds at a time.
const EXCLUSIVE: [&str; 2] = ["strategy", A_VOLUME];

/// An item of `volumes`.
const A_VOLUME: &str = "volumes[]";

/// `will` over `live`: fields that `was` had and `will` has not are removed; fields in neither of them stay.
pub(super) fn merged(was: Option<&Value>, will: &Value, live: Option<&Value>) -> Value {
    value(None, was, will, live)
}

/// The JSON merge patch (RFC 7396) from `from` to `to`.
pub(super) fn patch(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return to.clone();
    };
    let mut patch = Map::new();
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, to) in to {
        match from.get(key) {
            Some(from) if from == to => {}
            Some(from) if from.is_object() && to.is_object() => {
                patch.insert(key.clone(), self::patch(from, to));
            }
            Some(_) | None => {
                patch.insert(key.clone(), to.clone());
            }
        }
    }
    Value::Object(patch)
}

fn value(field: Option<&str>, was: Option<&Value>, will: &Value, live: Option<&Value>) -> Value {
    match (will, live) {
        (Value::Object(will), live) => {
            let mut live = live.and_then(Value::as_object).cloned();
            if field.is_some_and(|field| EXCLUSIVE.contains(&field))
                && let Some(live) = &mut live
            {
                live.retain(|key, _| will.contains_key(key));
            }
            fields(was.and_then(Value::as_object), will, live)
        }
        (Value::Array(will), Some(Value::Array(live))) => {
            let was = was.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            items(field, was, will, live)
        }
        _ => will.clone(),
    }
}

fn fields(
    was: Option<&Map<String, Value>>,
    will: &Map<String, Value>,
    live: Option<Map<String, Value>>,
) -> Value {
    let mut all = live.unwrap_or_default();
    all.retain(|key, _| will.contains_key(key) || !was.is_some_and(|was| was.contains_key(key)));
    for (key, will) in will {
        // What a manifest sets to null is left out.
        if will.is_null() {
            all.remove(key);
            continue;
        }
        let was = was.and_then(|was| was.get(key));
        let live = all.remove(key);
        let merged = value(Some(key), was, will, live.as_ref());
        all.insert(key.clone(), merged);
    }
    Value::Object(all)
}

fn items(field: Option<&str>, was: &[Value], will: &[Value], live: &[Value]) -> Value {
    let keyed = KEYED.iter().find(|(name, _)| Some(*name) == field);
    let key = keyed.and_then(|(_, keys)| {
        let tells_apart = |key: &&&str| [was, will, live].iter().all(|all| are_apart(all, key));
        keys.iter().find(tells_apart)
    });
    let Some(key) = key else {
        return Value::Array(will.to_vec());
    };
    let of = |all: &'_ [Value], item: &Value| {
        let found = all.iter().find(|other| other.get(*key) == item.get(*key));
        found.cloned()
    };
    let each = (field == Some("volumes")).then_some(A_VOLUME);
    let mut all: Vec<Value> = will
        .iter()
        .map(|item| value(each, of(was, item).as_ref(), item, of(live, item).as_ref()))
        .collect();
    // What somebody else has added.
    let added = live
        .iter()
        .filter(|item| of(will, item).is_none() && of(was, item).is_none());
    all.extend(added.cloned());
    Value::Array(all)
}

/// Whether each item has the field, with a unique value.
fn are_apart(items: &[Value], key: &str) -> bool {
    let keys: Vec<Option<&Value>> = items.iter().map(|item| item.get(key)).collect();
    keys.iter()
        .enumerate()
        .all(|(at, key)| key.is_some() && !keys[..at].contains(key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As in Helm: additions of the bad revision go, those of the API server and others stay.
    #[test]
    fn a_workload_goes_back_and_keeps_what_others_added() {
        let container = |image: &str| json!({"name": "api", "image": image, "env": [{"name": "A", "value": "1"}]});
        let was = json!({"spec": {"replicas": 2, "paused": true, "template": {"spec": {"containers": [
            {"name": "api", "image": "api:2", "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "2"}]},
            {"name": "sidecar", "image": "sidecar:2"}]}}}});
        let will = json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [container("api:1")]}}}});
        let live = json!({"metadata": {"uid": "7"}, "spec": {"replicas": 2, "paused": true, "progressDeadlineSeconds": 600,
            "template": {"spec": {"dnsPolicy": "ClusterFirst", "containers": [
                {"name": "api", "image": "api:2", "imagePullPolicy": "Always",
                 "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "2"}, {"name": "BY_HAND", "value": "3"}]},
                {"name": "sidecar", "image": "sidecar:2"}, {"name": "injected", "image": "mesh"}]}}}});
        let expected = json!({"metadata": {"uid": "7"}, "spec": {"replicas": 2, "progressDeadlineSeconds": 600,
            "template": {"spec": {"dnsPolicy": "ClusterFirst", "containers": [
                {"name": "api", "image": "api:1", "imagePullPolicy": "Always",
                 "env": [{"name": "A", "value": "1"}, {"name": "BY_HAND", "value": "3"}]},
                {"name": "injected", "image": "mesh"}]}}}});
        assert_eq!(merged(Some(&was), &will, Some(&live)), expected);
    }

    #[test]
    fn lists_that_have_no_key_are_replaced() {
        let was = json!({"rules": [{"verbs": ["get"]}], "args": ["a"]});
        let will = json!({"rules": [{"verbs": ["list"]}], "args": ["b"], "ports": [{"port": 1}, {"port": 1, "protocol": "UDP"}]});
        let live = json!({"rules": [{"verbs": ["get"]}, {"verbs": ["watch"]}], "args": ["a", "c"], "ports": [{"port": 1}]});
        assert_eq!(merged(Some(&was), &will, Some(&live)), will);
    }

    /// The API server has filled in a default, and rejects both together.
    #[test]
    fn of_two_kinds_that_exclude_one_another_the_target_s_stays() {
        let was = json!({"volumes": [{"name": "a"}]});
        let will = json!({"strategy": {"type": "Recreate"}, "volumes": [{"name": "a", "secret": {"secretName": "b"}}]});
        let live = json!({
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "volumes": [{"name": "a", "emptyDir": {}}],
        });
        assert_eq!(merged(Some(&was), &will, Some(&live)), will);
        let secret =
            json!({"volumes": [{"name": "a", "secret": {"secretName": "b", "defaultMode": 420}}]});
        let will = json!({"volumes": [{"name": "a", "secret": {"secretName": "b"}}]});
        assert_eq!(merged(Some(&was), &will, Some(&secret)), secret);
    }

    #[test]
    fn a_patch_holds_what_differs_and_nothing_else() {
        let from = json!({"a": 1, "b": {"c": 1, "d": [1, 2]}, "e": 5, "f": {}});
        let to = json!({"a": 1, "b": {"c": 2, "d": [1]}, "f": {}, "g": null});
        let expected = json!({"b": {"c": 2, "d": [1]}, "e": null, "g": null});
        assert_eq!(patch(&from, &to), expected);
        assert_eq!(patch(&from, &from), json!({}));
    }

    #[test]
    fn what_a_manifest_sets_to_null_is_left_out() {
        let will = json!({"metadata": {"creationTimestamp": null, "name": "a"}});
        let live = json!({"metadata": {"name": "a", "uid": "7"}});
        let all = merged(None, &will, Some(&live));
        assert_eq!(all, live);
        assert_eq!(patch(&live, &all), json!({}));
    }
}
