#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use super::contents::odd;
use super::*;
use crate::helm::manifest;

fn objects(text: &str) -> Vec<ManifestObject> {
    manifest::objects(text).unwrap()
}

fn contents(bad: &str, target: &str, hooks: &str) -> Contents {
    Contents {
        bad: objects(bad),
        target: objects(target),
        hooks: objects(hooks),
    }
}

fn scope() -> ApiScope {
    let mut scope = ApiScope::built_in("shop");
    for (api_version, kind, plural, is_namespaced) in [
        (
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            "clusterroles",
            false,
        ),
        ("example.com/v1", "Zone", "zones", false),
        ("example.com/v1", "Site", "sites", true),
    ] {
        let resource = ApiResourceKind {
            plural: plural.to_owned(),
            is_namespaced,
        };
        scope
            .kinds
            .insert((api_version.to_owned(), kind.to_owned()), resource);
    }
    scope
}

/// An object with its namespace, when it writes one.
fn one(api_version: &str, kind: &str, name: &str, namespace: &str) -> String {
    let namespace = if namespace.is_empty() {
        String::new()
    } else {
        format!(", namespace: {namespace}")
    };
    format!("---\napiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\n")
}

const CONFIG: &str = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";

fn role(verbs: &str) -> String {
    format!(
        "{}rules: [{{apiGroups: [''], resources: [pods], verbs: [{verbs}]}}]\n",
        one("rbac.authorization.k8s.io/v1", "ClusterRole", "reader", "")
    )
}

#[track_caller]
fn check(contents: &Contents, may: &RollbackPermissions, expected: &[(&str, &str)]) {
    let found = scope().refusals(contents, may);
    let reasons: Vec<&str> = found.iter().map(|one| one.reason).collect();
    let wanted: Vec<&str> = expected.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(reasons, wanted, "{found:?}");
    for (one, (_, part)) in found.iter().zip(expected) {
        assert!(one.text.contains(part), "{part} is not in {}", one.text);
    }
}

#[test]
fn what_is_outside_the_namespace_is_refused_wherever_it_comes_from() {
    let none = RollbackPermissions::default();
    check(&contents(CONFIG, CONFIG, CONFIG), &none, &[]);
    let foreign = one("v1", "ServiceAccount", "evil", "kube-system");
    let named = "ServiceAccount evil in kube-system, outside the release's namespace shop; if the release owns that, set release.rollback.namespaces = [\"kube-system\"]";
    for (bad, target, hooks) in [
        // Made, deleted, left as it is, and made by a hook.
        (CONFIG, foreign.as_str(), ""),
        (&foreign, CONFIG, ""),
        (&foreign, &foreign, ""),
        (CONFIG, CONFIG, &foreign),
    ] {
        check(
            &contents(bad, target, hooks),
            &none,
            &[("foreign_namespace", named)],
        );
    }
    let allowed = RollbackPermissions {
        namespaces: vec!["kube-system".to_owned()],
        ..RollbackPermissions::default()
    };
    check(&contents(CONFIG, &foreign, &foreign), &allowed, &[]);
    // Kinds that only the cluster knows.
    let site = one("example.com/v1", "Site", "s", "other");
    check(
        &contents(&site, CONFIG, ""),
        &allowed,
        &[("foreign_namespace", "Site s in other")],
    );
}

#[test]
fn what_is_in_no_namespace_is_refused_unless_it_stays_as_it_is_or_its_kind_is_allowed() {
    let none = RollbackPermissions::default();
    let named = "ClusterRole reader, in no namespace";
    for (bad, target, hooks) in [
        (CONFIG.to_owned(), role("get"), String::new()),
        (role("get"), CONFIG.to_owned(), String::new()),
        (role("list"), role("get"), String::new()),
        (CONFIG.to_owned(), CONFIG.to_owned(), role("get")),
        // The same twice is one that may be either.
        (role("get"), role("get") + &role("list"), String::new()),
        (role("get") + &role("list"), role("get"), String::new()),
    ] {
        check(
            &contents(&bad, &target, &hooks),
            &none,
            &[("cluster_scoped", named)],
        );
    }
    let same = contents(&role("get"), &role("get"), "");
    check(&same, &none, &[]);
    let scope = scope();
    let left_alone = scope.left_alone(&same, &none);
    let paths: Vec<&String> = left_alone.keys().collect();
    assert_eq!(
        paths,
        ["/apis/rbac.authorization.k8s.io/v1/clusterroles/reader"]
    );
    let allowed = RollbackPermissions {
        cluster_scoped: vec!["ClusterRole".parse().unwrap()],
        ..RollbackPermissions::default()
    };
    check(&contents(&role("list"), &role("get"), ""), &allowed, &[]);
    // Helm puts right then what somebody has changed.
    assert!(scope.left_alone(&same, &allowed).is_empty());
    let kinds = scope.allowed_kinds(&allowed);
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        [(
            "rbac.authorization.k8s.io".to_owned(),
            "clusterroles".to_owned()
        )]
    );
    let zone = one("example.com/v1", "Zone", "z", "");
    check(
        &contents(CONFIG, &zone, ""),
        &allowed,
        &[("cluster_scoped", "cluster_scoped = [\"Zone.example.com\"]")],
    );
}

/// Whoever may define kinds may define one of any name.
#[test]
fn a_kind_of_the_same_name_in_another_group_is_not_allowed_with_it() {
    let mut scope = scope();
    let own = ("example.com/v1".to_owned(), "ClusterRole".to_owned());
    let resource = ApiResourceKind {
        plural: "clusterroles".to_owned(),
        is_namespaced: false,
    };
    scope.kinds.insert(own, resource);
    let other = contents(CONFIG, &one("example.com/v1", "ClusterRole", "r", ""), "");
    let of_kubernetes = "rbac.authorization.k8s.io";
    for (written, allows, group) in [
        ("ClusterRole", false, of_kubernetes),
        (
            "ClusterRole.rbac.authorization.k8s.io",
            false,
            of_kubernetes,
        ),
        ("ClusterRole.example.com", true, "example.com"),
    ] {
        let may = RollbackPermissions {
            cluster_scoped: vec![written.parse().unwrap()],
            ..RollbackPermissions::default()
        };
        let found = scope.refusals(&other, &may);
        assert_eq!(found.is_empty(), allows, "{written}: {found:?}");
        assert_eq!(scope.is_allowed(&objects(&role("get"))[0], &may), !allows);
        let kinds = scope.allowed_kinds(&may);
        let expected = (group.to_owned(), "clusterroles".to_owned());
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn an_object_that_spells_out_its_namespace_is_the_same_object() {
    let scope = scope();
    let plain = objects(CONFIG).remove(0);
    let spelt = objects(&one("v1", "ConfigMap", "a", "shop")).remove(0);
    let other = objects(&one("v1", "ConfigMap", "a", "tools")).remove(0);
    assert_eq!(scope.identity(&plain), scope.identity(&spelt));
    assert_ne!(scope.identity(&plain), scope.identity(&other));
    // Of a kind that lives in none, the namespace says nothing; but Helm would take it for two objects.
    let zone = one("example.com/v1", "Zone", "z", "");
    let written = one("example.com/v1", "Zone", "z", "shop");
    let (plain, spelt) = (objects(&zone).remove(0), objects(&written).remove(0));
    assert_eq!(scope.identity(&plain), scope.identity(&spelt));
    let allowed = RollbackPermissions {
        cluster_scoped: vec!["Zone.example.com".parse().unwrap()],
        ..RollbackPermissions::default()
    };
    let expected = [("cluster_scoped", "two objects and delete it")];
    check(&contents(&zone, &written, ""), &allowed, &expected);
    // Another version of an API is the same object, another group is not, as with Helm.
    let of = |api_version: &str| objects(&one(api_version, "Ingress", "web", "")).remove(0);
    let (old, beta) = (of("extensions/v1beta1"), of("networking.k8s.io/v1beta1"));
    let new = of("networking.k8s.io/v1");
    assert_eq!(scope.identity(&beta), scope.identity(&new));
    assert_ne!(scope.identity(&old), scope.identity(&new));
}

#[test]
fn more_objects_than_are_looked_at_and_names_that_are_none_are_said_in_bounds() {
    let many: String = (0..=MAX_OBJECTS)
        .map(|n| one("v1", "ConfigMap", &format!("c{n}"), "other"))
        .collect();
    let found = scope().refusals(
        &contents(CONFIG, &many, ""),
        &RollbackPermissions::default(),
    );
    let reasons: Vec<&str> = found.iter().map(|one| one.reason).collect();
    assert_eq!(reasons, ["too_large", "foreign_namespace"]);
    assert!(found[1].text.contains("and 1996 more"), "{}", found[1].text);
    assert_eq!(shown("a\u{1b}[2Jb"), "a[2Jb");
    assert_eq!(shown(&"x".repeat(1000)).len(), 100);
}

#[test]
fn a_text_that_another_reader_may_take_for_something_else_is_refused() {
    for plain in [
        CONFIG,
        "a: b\r\n--- # and\r\n---\t\nc: \"tab\\t\"\n",
        "x: |\n  ---a\n",
    ] {
        assert_eq!(odd(plain), None, "{plain:?}");
    }
    for odd_one in [
        "a: b # \u{85}namespace: kube-system",
        "a: b # \u{2028}c: d",
        "a: b # \rc: d",
        "a: b\u{0}",
        "\u{feff}a: b",
        "---a: b",
        "--- {a: b}",
    ] {
        assert!(odd(odd_one).is_some(), "{odd_one:?}");
    }
}
