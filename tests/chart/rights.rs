//! The Roles of the chart hold what the program says that it needs.

use std::collections::BTreeSet;

use leadsman::config::settings::HelmDriver;
use leadsman::release::cluster::RbacRights;
use serde_json::Value;

use crate::chart::{Set, documents, objects, sets};

/// Group, resource and verb of each right in some rules.
fn rights(role: &Value) -> BTreeSet<[String; 3]> {
    let texts = |rule: &Value, key: &str| -> Vec<String> {
        let list = rule[key].as_array().into_iter().flatten();
        list.map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                for verb in texts(rule, "verbs") {
                    all.insert([group.clone(), resource.clone(), verb]);
                }
            }
        }
    }
    all
}

/// As `leadsman rbac` prints them.
fn printed(rights: &RbacRights) -> BTreeSet<[String; 3]> {
    let text = rights.manifest("leadsman", "leadsman", "leadsman");
    let documents = documents(&text);
    let role = documents
        .iter()
        .find(|text| text.contains("\nkind: Role\n"));
    self::rights(&serde_saphyr::from_str(role.unwrap()).unwrap())
}

fn set(name: &str) -> Set {
    sets().into_iter().find(|set| set.name == name).unwrap()
}

/// The rights of the Role, or ClusterRole, of that name.
fn given(objects: &[Value], name: &str) -> BTreeSet<[String; 3]> {
    let is_it = |object: &&Value| {
        object["rules"].is_array()
            && object["kind"].as_str().unwrap().ends_with("Role")
            && object["metadata"]["name"] == name
    };
    rights(objects.iter().find(is_it).unwrap())
}

#[test]
fn an_observer_may_what_the_program_needs_and_no_more() {
    let Some(objects) = objects(&set("staging")) else {
        return;
    };
    let needed = printed(&RbacRights::to_analyze(
        "mykadoo-staging",
        HelmDriver::Secret,
    ));
    assert_eq!(given(&objects, "leadsman"), needed);
    let mut own = RbacRights::to_keep_state("leadsman");
    own.extend(RbacRights::to_hold_lease("leadsman"));
    assert_eq!(given(&objects, "leadsman-own"), printed(&own));
}

#[test]
fn whoever_rolls_back_may_change_kinds_and_wait_for_hooks() {
    for (name, role, driver, records) in [
        ("production", "leadsman", HelmDriver::Secret, "secrets"),
        (
            "cluster-wide",
            "leadsman-leadsman",
            HelmDriver::ConfigMap,
            "configmaps",
        ),
    ] {
        let Some(objects) = objects(&set(name)) else {
            return;
        };
        let given = given(&objects, role);
        let mut needed = printed(&RbacRights::to_analyze("any", driver));
        let mut add = |group: &str, resource: &str, verbs: &[&str]| {
            for verb in verbs {
                needed.insert([group, resource, verb].map(str::to_owned));
            }
        };
        add("", records, &["get", "list", "create", "update"]);
        add("apps", "deployments", &["get", "create", "patch", "delete"]);
        let of_hooks = ["get", "list", "watch", "create", "patch", "delete"];
        for (group, resource) in [("batch", "jobs"), ("", "pods"), ("", "configmaps")] {
            add(group, resource, &of_hooks);
        }
        let missing: Vec<_> = needed.difference(&given).collect();
        assert!(missing.is_empty(), "{name}: {missing:?}");
        // Other people's secrets are not to be listed where the records are no Secrets.
        let list = ["", "secrets", "list"].map(str::to_owned);
        assert_eq!(given.contains(&list), records == "secrets", "{name}");
    }
}

#[test]
fn where_helm_acts_as_another_account_that_one_may_change_kinds_and_leadsman_may_act_as_it() {
    let Some(objects) = objects(&set("impersonate")) else {
        return;
    };
    let right =
        |group: &str, resource: &str, verb: &str| [group, resource, verb].map(str::to_owned);
    let in_team = |name: &str, namespace: &str| {
        let is_it = |object: &&Value| {
            object["kind"] == "Role"
                && object["metadata"]["name"] == name
                && object["metadata"]["namespace"] == namespace
        };
        objects.iter().find(is_it)
    };
    let own = in_team("leadsman", "team-a").unwrap();
    let impersonates = |rule: &&Value| rule["verbs"] == serde_json::json!(["impersonate"]);
    let rule = own["rules"].as_array().unwrap().iter().find(impersonates);
    assert_eq!(
        rule.unwrap()["resourceNames"],
        serde_json::json!(["deployer"])
    );
    let own = rights(own);
    for verb in ["create", "patch", "delete"] {
        assert!(!own.contains(&right("apps", "deployments", verb)), "{verb}");
        assert!(!own.contains(&right("", "secrets", verb)), "{verb}");
    }
    assert!(own.contains(&right("", "secrets", "update")));
    let helm = rights(in_team("leadsman-helm", "team-a").unwrap());
    for (group, resource, verb) in [
        ("apps", "deployments", "patch"),
        ("", "secrets", "create"),
        ("batch", "jobs", "watch"),
    ] {
        assert!(
            helm.contains(&right(group, resource, verb)),
            "{verb} {resource}"
        );
    }
    let bound = |object: &&Value| {
        object["kind"] == "RoleBinding" && object["metadata"]["name"] == "leadsman-helm"
    };
    let bindings: Vec<&Value> = objects.iter().filter(bound).collect();
    assert_eq!(bindings.len(), 1, "not where it only observes");
    assert_eq!(
        bindings[0]["subjects"],
        serde_json::json!([{"kind": "ServiceAccount", "name": "deployer", "namespace": "team-a"}])
    );
    assert!(in_team("leadsman-helm", "team-b").is_none());
    assert!(
        !rights(in_team("leadsman", "team-b").unwrap()).contains(&right("", "secrets", "update"))
    );
}
