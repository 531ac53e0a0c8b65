#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::sync::Arc;

use super::*;

/// An API server that counts what it is asked.
#[derive(Clone, Default)]
struct Played(Arc<Mutex<Account>>);

#[derive(Default)]
struct Account {
    /// Verbs and resources that the rules have; `None`: they are incomplete.
    rules: Option<Vec<ResourceRule>>,
    /// What a single review grants.
    single: Vec<(String, &'static str)>,
    asked: (u32, u32),
}

impl Played {
    fn with(rules: Option<Vec<ResourceRule>>) -> Self {
        let played = Self::default();
        played.0.lock().unwrap().rules = rules;
        played
    }

    /// Reviews of rules, and of single rights.
    fn asked(&self) -> (u32, u32) {
        self.0.lock().unwrap().asked
    }
}

impl Reviewer for Played {
    async fn rules(&self, _: &str) -> Result<Option<Vec<ResourceRule>>, ApiError> {
        let mut account = self.0.lock().unwrap();
        account.asked.0 += 1;
        Ok(account.rules.clone())
    }

    async fn may(&self, place: &RightScope, verb: &str) -> Result<bool, ApiError> {
        let mut account = self.0.lock().unwrap();
        account.asked.1 += 1;
        let mut single = account.single.iter();
        Ok(single.any(|(plural, granted)| *plural == place.plural && *granted == verb))
    }
}

fn rule(group: &str, resource: &str, verbs: &[&str], names: &[&str]) -> ResourceRule {
    let owned = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
    ResourceRule {
        api_groups: Some(owned(&[group])),
        resources: Some(owned(&[resource])),
        verbs: owned(verbs),
        resource_names: (!names.is_empty()).then(|| owned(names)),
    }
}

fn needed() -> RbacRights {
    let mut rights = RbacRights::default();
    rights.add("shop", "apps", "deployments", &["get", "patch"]);
    rights.add("shop", "", "pods/log", &["get"]);
    rights
}

#[tokio::test(start_paused = true)]
async fn the_releases_of_a_namespace_ask_once_for_all_of_them_and_again_after_ten_minutes() {
    let everything = rule("*", "*", &["*"], &[]);
    let server = Played::with(Some(vec![everything]));
    let granted = GrantedRights::default();
    for _ in 0..300 {
        let missing = granted
            .missing(&server, &needed(), Asker::Rest)
            .await
            .unwrap();
        assert!(missing.is_empty(), "{missing:?}");
    }
    assert_eq!(server.asked(), (1, 0));
    tokio::time::advance(KEPT + Duration::from_secs(1)).await;
    granted
        .missing(&server, &needed(), Asker::Rest)
        .await
        .unwrap();
    assert_eq!(server.asked(), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_taken_away_is_missed_at_once_where_something_changed() {
    let server = Played::with(Some(vec![rule("*", "*", &["*"], &[])]));
    let granted = GrantedRights::default();
    granted
        .missing(&server, &needed(), Asker::Rest)
        .await
        .unwrap();
    server.0.lock().unwrap().rules = Some(vec![rule("apps", "deployments", &["get"], &[])]);
    tokio::time::advance(Duration::from_secs(60)).await;
    // Nothing is known of a change.
    let missing = granted
        .missing(&server, &needed(), Asker::Rest)
        .await
        .unwrap();
    assert!(missing.is_empty(), "{missing:?}");
    // A rollback, another revision, another answer.
    let missing = granted
        .missing(&server, &needed(), Asker::DryRun)
        .await
        .unwrap();
    assert_eq!(
        missing,
        ["get pods/log in shop", "patch deployments.apps in shop"]
    );
    assert_eq!(
        server.asked(),
        (2, 2),
        "a single review confirms what is missing"
    );

    // Something was forbidden, for whatever release.
    server.0.lock().unwrap().rules = Some(vec![rule("*", "*", &["*"], &[])]);
    let missing = granted
        .missing(&server, &needed(), Asker::Rest)
        .await
        .unwrap();
    assert_eq!(missing.len(), 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    granted.self_check();
    tokio::time::advance(Duration::from_secs(1)).await;
    let missing = granted
        .missing(&server, &needed(), Asker::Rest)
        .await
        .unwrap();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test(start_paused = true)]
async fn where_the_rules_are_incomplete_each_right_is_asked_for_and_remembered() {
    let server = Played::with(None);
    let single = [("deployments", "get"), ("deployments", "patch")];
    let single = single.map(|(plural, verb)| (plural.to_owned(), verb));
    server.0.lock().unwrap().single = single.into();
    let granted = GrantedRights::default();
    for _ in 0..5 {
        let missing = granted
            .missing(&server, &needed(), Asker::Rest)
            .await
            .unwrap();
        assert_eq!(missing, ["get pods/log in shop"]);
    }
    assert_eq!(server.asked(), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn what_lives_in_no_namespace_is_asked_for_by_itself() {
    // The rules of a namespace do not say whether they hold in it alone.
    let server = Played::with(Some(vec![rule("*", "*", &["*"], &[])]));
    let mut rights = RbacRights::default();
    rights.add("", "storage.k8s.io", "storageclasses", &["get"]);
    let granted = GrantedRights::default();
    let missing = granted
        .missing(&server, &rights, Asker::Rest)
        .await
        .unwrap();
    assert_eq!(missing, ["get storageclasses.storage.k8s.io"]);
    assert_eq!(server.asked(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn behind_an_authorizer_that_hangs_a_rollback_asks_by_itself_and_a_look_gives_up() {
    let server = Played::with(Some(vec![rule("*", "*", &["*"], &[])]));
    let granted = GrantedRights::default();
    let _hangs = granted.answers.lock().await;
    let began = Instant::now();
    let (server, needed) = (&server, &needed());
    let (rollback, look) = tokio::join!(
        granted.missing(server, needed, Asker::Rollback),
        granted.missing(server, needed, Asker::Rest)
    );
    assert!(rollback.unwrap().is_empty());
    assert_eq!(look, Err(ApiError::Busy));
    assert_eq!(began.elapsed().as_secs(), WAIT.as_secs());
    let began = Instant::now();
    granted
        .missing(server, needed, Asker::Rollback)
        .await
        .unwrap();
    assert_eq!(began.elapsed().as_secs(), SHORT_WAIT.as_secs());
    assert_eq!(server.asked(), (2, 0));
}

#[test]
fn rules_are_read_as_rbac_reads_them() {
    let place = |group: &str, plural: &str, name: &str| RightScope {
        namespace: "shop".into(),
        group: group.into(),
        plural: plural.into(),
        name: name.into(),
    };
    let candidates = [
        (rule("", "pods", &["get"], &[]), place("", "pods", ""), true),
        (rule("", "pods", &["*"], &[]), place("", "pods", ""), true),
        (
            rule("", "pods", &["list"], &[]),
            place("", "pods", ""),
            false,
        ),
        (
            rule("apps", "pods", &["get"], &[]),
            place("", "pods", ""),
            false,
        ),
        (
            rule("*", "*", &["get"], &[]),
            place("apps", "deployments", ""),
            true,
        ),
        (
            rule("", "pods", &["get"], &[]),
            place("", "pods/log", ""),
            false,
        ),
        (
            rule("", "pods/log", &["get"], &[]),
            place("", "pods/log", ""),
            true,
        ),
        (
            rule("", "*/log", &["get"], &[]),
            place("", "pods/log", ""),
            true,
        ),
        (
            rule("", "*/log", &["get"], &[]),
            place("", "pods", ""),
            false,
        ),
        (
            rule("", "pods", &["get"], &["a"]),
            place("", "pods", ""),
            false,
        ),
        (
            rule("", "pods", &["get"], &["a"]),
            place("", "pods", "a"),
            true,
        ),
        (
            rule("", "pods", &["get"], &["a"]),
            place("", "pods", "b"),
            false,
        ),
    ];
    for (rule, place, is_granted) in candidates {
        assert_eq!(has(&rule, &place, "get"), is_granted, "{rule:?} {place}");
    }
}
