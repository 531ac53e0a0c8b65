//! Policies, webhooks and quotas that came after a revision: whether it can be gone back to is known beforehand.

use serde_json::{Value, json};

use crate::guarded::Guarded;
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

/// Which namespace a policy is for; all are the cluster's.
fn selector(cluster: &Cluster) -> Value {
    json!({"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}})
}

/// From now on a policy asks this of some objects.
fn ask(cluster: &Cluster, resource: (&str, &str, &str), condition: &str, message: &str) {
    let (group, plural, operation) = resource;
    let name = &cluster.namespace;
    let policy = json!({
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{"apiGroups": [group], "apiVersions": ["*"], "operations": [operation], "resources": [plural]}]},
            "validations": [{"expression": condition, "message": message}],
        },
    });
    let binding = json!({
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": selector(cluster)}},
    });
    let path = |plural: &str| format!("{GROUP}/{plural}");
    let send = |plural: &str, body| {
        cluster.send("POST", &path(plural), "application/json", body);
    };
    send("validatingadmissionpolicies", &policy);
    send("validatingadmissionpolicybindings", &binding);
}

/// Waits until the look of each minute knows; what it says.
#[track_caller]
fn failure(cluster: &Cluster, guarded: &Guarded<'_>, reason: &str, part: &str) -> String {
    let release = guarded.until(part, |release| {
        let failure = release["preflight_failure"].as_str();
        failure.is_some_and(|failure| failure.contains(part))
    });
    let metrics = guarded.leadsman.get("/metrics").body;
    let series = format!(
        "leadsman_rollback_ready{{namespace=\"{}\",reason=\"{reason}\",release=\"mykadoo\"}} 0",
        cluster.namespace
    );
    assert!(metrics.contains(&series), "{series} is not in:\n{metrics}");
    release["preflight_failure"].as_str().unwrap().to_owned()
}

/// The second revision is bad and is not rolled back, in these words, and nothing was written.
#[track_caller]
fn is_refused(cluster: &Cluster, guarded: &Guarded<'_>, bad: &[&str], says: &[&str]) {
    the_next_is_refused(cluster, guarded, 2, bad, says);
    assert_eq!(cluster.statuses(Helm::Four), "1 superseded, 2 deployed");
}

/// The same of another revision.
#[track_caller]
fn the_next_is_refused(
    cluster: &Cluster,
    guarded: &Guarded<'_>,
    revision: u64,
    bad: &[&str],
    says: &[&str],
) {
    let values: Vec<&str> = [&[DEAD, "setting=\"2\""], bad].concat();
    cluster.upgrade(&values);
    let ended = guarded.outcome(revision);
    assert_eq!(
        ended["outcome"],
        "refused",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let text = ended["text"].as_str().unwrap();
    for part in says {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    let command = format!("helm rollback mykadoo {} --namespace", revision - 1);
    assert!(text.contains(&command), "{text}");
    cluster.only_events();
}

#[track_caller]
fn an_image_is_not_let_in(name: &str, helm: Helm) {
    let Some(cluster) = Cluster::new(name, helm) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let deployments = ("apps", "deployments", "*");
    let condition = "object.spec.template.spec.containers.all(it, it.image != 'mykadoo-api:1')";
    ask(
        &cluster,
        deployments,
        condition,
        "images of last year are not let in",
    );
    let words = "denied request: images of last year are not let in";
    let said = failure(&cluster, &guarded, "policy", words);
    assert!(said.contains("Deployment mykadoo-api"), "{said}");
    assert!(!said.contains("mykadoo-web"), "{said}");
    let bad = [r#"api.image="mykadoo-api:2""#];
    is_refused(&cluster, &guarded, &bad, &["Deployment mykadoo-api", words]);
}

#[test]
fn an_image_that_a_policy_no_longer_lets_in_is_not_gone_back_to_by_helm_3() {
    an_image_is_not_let_in("image3", Helm::Three);
}

#[test]
fn an_image_that_a_policy_no_longer_lets_in_is_not_gone_back_to_by_helm_4() {
    an_image_is_not_let_in("image4", Helm::Four);
}

#[track_caller]
fn a_label_is_missing(name: &str, helm: Helm) {
    let Some(cluster) = Cluster::new(name, helm) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let maps = ("", "configmaps", "UPDATE");
    ask(
        &cluster,
        maps,
        "'team' in object.metadata.labels",
        "name your team",
    );
    let words = "denied request: name your team";
    failure(&cluster, &guarded, "policy", words);
    let bad = [r#"labels={"team":"shop"}"#];
    is_refused(
        &cluster,
        &guarded,
        &bad,
        &["ConfigMap mykadoo-settings", words],
    );
}

#[test]
fn a_label_that_a_policy_asks_for_and_the_target_lacks_is_known_with_helm_3() {
    a_label_is_missing("label3", Helm::Three);
}

#[test]
fn a_label_that_a_policy_asks_for_and_the_target_lacks_is_known_with_helm_4() {
    a_label_is_missing("label4", Helm::Four);
}

/// What only the bad revision has is deleted.
#[test]
fn an_object_that_a_policy_does_not_let_go_is_known() {
    let Some(cluster) = Cluster::new("stays", Helm::Four) else {
        return;
    };
    let with_autoscaling = r#"autoscaling={"enabled":true,"min":3,"max":5}"#;
    // The rights are those that the stored revisions take.
    cluster.install(&[with_autoscaling]);
    cluster.upgrade(&[r#"autoscaling={"enabled":false}"#]);
    let guarded = Guarded::start(&cluster);
    let scalers = ("autoscaling", "horizontalpodautoscalers", "DELETE");
    // Not of others: the namespace goes away after the test. What is tried shows when the policy is in force.
    let condition = "!(request.dryRun || request.userInfo.username.endsWith(':leadsman'))";
    ask(&cluster, scalers, condition, "autoscalers stay");
    let group = "/apis/autoscaling/v2";
    let path = format!(
        "{group}/namespaces/{}/horizontalpodautoscalers",
        cluster.namespace
    );
    let scaler = json!({
        "metadata": {"name": "tried"},
        "spec": {"maxReplicas": 1, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "nobody"}},
    });
    cluster.send("POST", &path, "application/json", &scaler);
    crate::program::until("the policy is in force", || {
        let tried = format!("{path}/tried?dryRun=All");
        let answer = cluster.answer("DELETE", &tried, "application/json", "");
        answer["message"]
            .as_str()
            .unwrap_or_default()
            .contains("autoscalers stay")
    });
    let words = ["HorizontalPodAutoscaler mykadoo-api", "autoscalers stay"];
    the_next_is_refused(&cluster, &guarded, 3, &[with_autoscaling], &words);
    let left = cluster.list(group, "horizontalpodautoscalers");
    assert_eq!(left.len(), 2);
}

/// Hooks of the rollback are created as well.
#[test]
fn a_quota_that_has_no_room_for_a_hook_of_the_rollback_is_known() {
    let Some(cluster) = Cluster::new("quota", Helm::Three) else {
        return;
    };
    let hook = r#"hooks={"migrate":false,"rollback":"ok","sim":{}}"#;
    cluster.install(&[hook]);
    let guarded = Guarded::start(&cluster);
    let quota = json!({"metadata": {"name": "few"}, "spec": {"hard": {"count/jobs.batch": "0"}}});
    let path = format!("/api/v1/namespaces/{}/resourcequotas", cluster.namespace);
    cluster.send("POST", &path, "application/json", &quota);
    let words = "exceeded quota: few";
    failure(&cluster, &guarded, "policy", words);
    let says = ["Job mykadoo-before-rollback", words];
    is_refused(&cluster, &guarded, &[hook], &says);
}

/// What is away comes back: that is waited for, and nothing is begun meanwhile.
#[test]
fn a_webhook_that_does_not_answer_is_waited_for() {
    let Some(cluster) = Cluster::new("webhook", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let name = &cluster.namespace;
    let webhook = json!({
        "metadata": {"name": name},
        "webhooks": [{
            "name": "team.example.com",
            "clientConfig": {"url": "https://127.0.0.1:9/"},
            "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 5,
            "admissionReviewVersions": ["v1"],
            "namespaceSelector": selector(&cluster),
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["configmaps"]}],
            // People can still deploy.
            "matchConditions": [{"name": "leadsman", "expression": "request.userInfo.username.endsWith(':leadsman')"}],
        }],
    });
    let path = format!("{GROUP}/validatingwebhookconfigurations");
    cluster.send("POST", &path, "application/json", &webhook);
    let words = "failed calling webhook \"team.example.com\"";
    let said = failure(&cluster, &guarded, "webhook_away", words);
    assert!(said.contains("does not answer"), "{said}");
    cluster.upgrade(&[DEAD, "setting=\"2\""]);
    crate::program::until("it is waited for", || {
        guarded
            .leadsman
            .said("The rollback waits: a webhook that the API server has to ask does not answer")
    });
    cluster.only_events();
    let path = format!("{path}/{name}");
    cluster.send("DELETE", &path, "application/json", &json!({}));
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
}
