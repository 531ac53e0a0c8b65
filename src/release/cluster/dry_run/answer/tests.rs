#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use serde_json::Value;

use super::*;

fn said(code: u16, message: &str) -> ApiError {
    ApiError::Answer {
        code,
        reason: String::new(),
        message: message.into(),
        retry_after: 0,
    }
}

/// In the words of Kubernetes 1.36.
#[test]
fn who_refuses_is_told_from_who_is_away_and_from_what_says_nothing() {
    let policy = r#"deployments.apps "web" is forbidden: ValidatingAdmissionPolicy 'a' with binding 'b' denied request: no label"#;
    let webhook = r#"admission webhook "a.example.com" denied the request: no label"#;
    let quota = r#"configmaps "a" is forbidden: exceeded quota: few, requested: count/configmaps=1, used: count/configmaps=3, limited: count/configmaps=3"#;
    for (code, message) in [
        (422, policy),
        (403, policy),
        (400, webhook),
        (403, webhook),
        (500, webhook),
        (403, quota),
    ] {
        let answer = of(said(code, message)).unwrap();
        assert_eq!(answer, DryRunAnswer::Denied(message.into()), "{code}");
    }
    let away = r#"Internal error occurred: failed calling webhook "a.example.com": failed to call webhook: Post "https://10.0.0.9:443/?timeout=10s": context deadline exceeded"#;
    assert_eq!(
        of(said(500, away)).unwrap(),
        DryRunAnswer::Away(away.into())
    );
    let no_try = r#"admission webhook "a.example.com" does not support dry run"#;
    assert_eq!(
        of(said(400, no_try)).unwrap(),
        DryRunAnswer::NoTry(no_try.into())
    );
    for rights in [
        r#"roles.rbac.authorization.k8s.io "a" is forbidden: user "x" (groups=["y"]) is attempting to grant RBAC permissions not currently held:"#,
        r#"deployments.apps "web" is forbidden: User "x" cannot patch resource "deployments""#,
    ] {
        assert_eq!(of(said(403, rights)).unwrap(), DryRunAnswer::NoRight);
    }
    let invalid = r#"Job.batch "a" is invalid: spec.template: field is immutable"#;
    assert_eq!(
        of(said(422, invalid)).unwrap(),
        DryRunAnswer::Invalid(invalid.into())
    );
    for nothing in [
        said(404, r#"namespaces "new" not found"#),
        said(409, r#"jobs.batch "a" already exists"#),
        ApiError::Unreadable("x".into()),
    ] {
        assert_eq!(
            of(nothing.clone()).unwrap(),
            DryRunAnswer::Taken,
            "{nothing}"
        );
    }
    for trouble in [
        said(429, "too many requests"),
        said(503, "the server is currently unable to handle the request"),
        said(500, "etcdserver: request timed out"),
        ApiError::Unreachable("connection refused".into()),
    ] {
        assert_eq!(of(trouble.clone()), Err(trouble));
    }
}

fn named(name: &str) -> ManifestObject {
    ManifestObject {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        namespace: None,
        name: name.into(),
        body: Value::Null,
    }
}

#[test]
fn what_was_said_is_told_with_the_object_and_within_bounds() {
    let objects: Vec<ManifestObject> = (0..20).map(|number| named(&format!("a{number}"))).collect();
    let denied = DryRunAnswer::Denied("no label".into());
    let tried = together(objects.iter().map(|object| (object, &denied)));
    let [failure] = &tried.failures[..] else {
        unreachable!("{tried:?}");
    };
    assert_eq!(failure.reason, "policy");
    assert!(
        failure.text.contains("ConfigMap a0 (no label), ConfigMap a1 (no label), ConfigMap a2 (no label), ConfigMap a3")
            && failure.text.contains("and 12 more"),
        "{}",
        failure.text
    );
    let (away, untried) = (
        DryRunAnswer::Away("timeout".into()),
        DryRunAnswer::NoTry("no".into()),
    );
    let answers = [(&objects[0], &away), (&objects[1], &untried)];
    let tried = together(answers.into_iter());
    assert_eq!(tried.failures, []);
    assert!(tried.away.unwrap().contains("ConfigMap a0 (timeout)"));
    assert_eq!(
        tried.untried,
        ["what a webhook says is known when helm writes ConfigMap a1 (no)"]
    );
}

#[test]
fn words_of_others_move_no_terminal() {
    let hostile = "a\u{1b}]0;title\u{7}\nb\u{202e}c\r";
    assert_eq!(
        printable(hostile),
        "a\\u{1b}]0;title\\u{7} b\\u{202e}c\\u{d}"
    );
}
