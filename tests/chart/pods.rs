//! Pods keep to the restricted profile of Pod Security, and policies let through who must come.

use serde_json::{Map, Value};

use crate::chart::{Set, objects, of_kind, sets};

/// The specifications of all pods that a set renders, by the kind of object that they are in.
fn pods(objects: &[Value]) -> Vec<(&str, &Value)> {
    objects
        .iter()
        .filter_map(|object| match object["kind"].as_str()? {
            "Pod" => Some(("Pod", &object["spec"])),
            kind => object["spec"]["template"]["spec"]
                .is_object()
                .then(|| (kind, &object["spec"]["template"]["spec"])),
        })
        .collect()
}

/// What of <https://kubernetes.io/docs/concepts/security/pod-security-standards/> a pod does not keep to: the restricted
/// profile, which holds the baseline one. A field of the pod counts where the container does not have its own.
fn breaches(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            found.push(what);
        }
    };
    let is_off = |value: &Value| value.is_null() || value == false;
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        must(is_off(&pod[field]), field.to_owned());
    }
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let kinds = [
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        ];
        let fields = volume.as_object().unwrap().keys();
        for field in fields.filter(|field| *field != "name") {
            must(kinds.contains(&field.as_str()), format!("volume {field}"));
        }
    }
    let of_pod = &pod["securityContext"];
    must(of_pod["sysctls"].is_null(), "sysctls".to_owned());
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    let all = containers.iter().filter_map(|list| pod[*list].as_array());
    for container in all.flatten() {
        let own = &container["securityContext"];
        let field = |name: &str| {
            let value = &own[name];
            if value.is_null() {
                &of_pod[name]
            } else {
                value
            }
        };
        let name = container["name"].as_str().unwrap();
        let mut must = |holds: bool, what: &str| must(holds, format!("{name}: {what}"));
        must(is_off(&own["privileged"]), "privileged");
        must(
            own["allowPrivilegeEscalation"] == false,
            "allowPrivilegeEscalation",
        );
        must(field("runAsNonRoot") == true, "runAsNonRoot");
        must(
            field("runAsUser").as_u64().is_some_and(|user| user > 0),
            "runAsUser",
        );
        let seccomp = field("seccompProfile")["type"].as_str();
        must(
            seccomp.is_some_and(|kind| ["RuntimeDefault", "Localhost"].contains(&kind)),
            "seccompProfile",
        );
        must(
            own["capabilities"]["drop"] == serde_json::json!(["ALL"]),
            "capabilities.drop",
        );
        must(own["capabilities"]["add"].is_null(), "capabilities.add");
        for unset in [
            "seLinuxOptions",
            "appArmorProfile",
            "windowsOptions",
            "procMount",
        ] {
            must(field(unset).is_null(), unset);
        }
        let ports = container["ports"].as_array().into_iter().flatten();
        must(
            ports.into_iter().all(|port| port["hostPort"].is_null()),
            "hostPort",
        );
        for handler in [
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            let text = container[handler].to_string();
            must(!text.contains("\"host\":"), handler);
        }
        // Not of the profile: ours.
        must(
            own["readOnlyRootFilesystem"] == true,
            "readOnlyRootFilesystem",
        );
        must(
            container["resources"]["limits"]["memory"].is_string(),
            "limits.memory",
        );
    }
    found
}

#[test]
fn each_pod_keeps_to_the_restricted_profile() {
    for set in sets() {
        let Some(objects) = objects(&set) else { return };
        let pods = pods(&objects);
        let kinds: Vec<&str> = pods.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, ["Deployment", "Pod"], "{}", set.name);
        for (kind, pod) in pods {
            assert_eq!(
                breaches(pod),
                Vec::<String>::new(),
                "{} of {}",
                kind,
                set.name
            );
            assert_eq!(pod["enableServiceLinks"], false);
        }
    }
}

#[test]
fn each_breach_of_the_profile_is_found() {
    let good = serde_json::json!({
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "one",
            "resources": {"limits": {"memory": "1Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}
            }
        }]
    });
    assert_eq!(breaches(&good), Vec::<String>::new());
    for (place, value) in [
        ("/hostNetwork", "true"),
        (
            "/volumes",
            "[{\"name\": \"a\", \"hostPath\": {\"path\": \"/\"}}]",
        ),
        ("/securityContext/sysctls", "[]"),
        ("/securityContext/runAsUser", "0"),
        (
            "/securityContext/seccompProfile",
            "{\"type\": \"Unconfined\"}",
        ),
        ("/containers/0/ports", "[{\"hostPort\": 80}]"),
        (
            "/containers/0/livenessProbe",
            "{\"httpGet\": {\"host\": \"a\"}}",
        ),
        ("/containers/0/securityContext/privileged", "true"),
        ("/containers/0/securityContext/runAsNonRoot", "false"),
        ("/containers/0/securityContext/procMount", "\"Unmasked\""),
        (
            "/containers/0/securityContext/capabilities",
            "{\"drop\": [\"ALL\"], \"add\": [\"CHOWN\"]}",
        ),
        (
            "/containers/0/securityContext/allowPrivilegeEscalation",
            "null",
        ),
    ] {
        let mut pod = good.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = serde_json::from_str(value).unwrap();
        assert_eq!(breaches(&pod).len(), 1, "{place}");
    }
}

/// Whether a selector's labels are among an object's.
fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted: &Map<String, Value> = selector.as_object().unwrap();
    !wanted.is_empty() && wanted.iter().all(|(key, value)| labels[key] == *value)
}

fn set(name: &str) -> Set {
    sets().into_iter().find(|set| set.name == name).unwrap()
}

#[test]
fn a_policy_lets_the_replicas_the_test_and_the_ingress_in_and_nobody_takes_the_test_for_a_replica()
{
    for name in ["production", "odd"] {
        let Some(objects) = objects(&set(name)) else {
            return;
        };
        let of_test = &of_kind(&objects, "Pod").unwrap()["metadata"]["labels"];
        let deployment = of_kind(&objects, "Deployment").unwrap();
        let of_replica = &deployment["spec"]["template"]["metadata"]["labels"];
        for selector in [
            &of_kind(&objects, "Service").unwrap()["spec"]["selector"],
            &deployment["spec"]["selector"]["matchLabels"],
        ] {
            assert!(selects(selector, of_replica) && !selects(selector, of_test));
        }
        let policy = &of_kind(&objects, "NetworkPolicy").unwrap()["spec"];
        assert!(selects(&policy["podSelector"]["matchLabels"], of_replica));
        let lets = |peers: &Value, labels: &Value| {
            let mut peers = peers.as_array().unwrap().iter();
            peers.any(|peer| {
                peer["podSelector"].is_object()
                    && selects(&peer["podSelector"]["matchLabels"], labels)
            })
        };
        let from = &policy["ingress"][0]["from"];
        assert!(lets(from, of_test) && lets(from, of_replica), "{from}");
        if name == "production" {
            assert!(from.to_string().contains("ingress-nginx"), "{from}");
            continue;
        }
        let out = policy["egress"].as_array().unwrap();
        let to_replicas = |rule: &Value| rule["to"].is_array() && lets(&rule["to"], of_replica);
        assert!(out.iter().any(to_replicas), "{out:?}");
        let names = out.iter().find(|rule| rule["to"].is_null()).unwrap();
        let ports: Vec<_> = names["ports"].as_array().unwrap().iter().collect();
        assert!(ports.iter().all(|port| port["port"] == 53) && ports.len() == 2);
    }
}
