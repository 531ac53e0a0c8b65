//! helm, played by a script where the real one cannot be made to show something.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config::settings::RollbackPermissions;
use crate::platform::permit::Permit;

pub(in crate::release::cluster) struct Played {
    pub(in crate::release::cluster) folder: tempfile::TempDir,
    pub(in crate::release::cluster) policy: RollbackPolicy,
}

/// A helm that does what the script says.
pub(in crate::release::cluster) fn played(script: &str) -> Played {
    let folder = tempfile::tempdir().unwrap();
    let helm = folder.path().join("helm");
    std::fs::write(&helm, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&helm, std::fs::Permissions::from_mode(0o755)).unwrap();
    let policy = RollbackPolicy {
        helm,
        helm_memory: 256 * 1024 * 1024,
        scratch: folder.path().to_owned(),
        cluster: "cluster".into(),
        may: RollbackPermissions::default(),
        permit: Permit::always(),
        enforces: true,
        by_person: false,
    };
    Played { folder, policy }
}

fn order<'a>(namespace: &'a Namespace, release: &'a ReleaseName, major: u32) -> HelmRollback<'a> {
    HelmRollback {
        namespace,
        release,
        target: Revision(7),
        driver: HelmDriver::Secret,
        version: HelmVersion { major, minor: 20 },
        server_side: true,
        kubeconfig: Path::new("/scratch/ours.kubeconfig"),
        limit: LONGEST,
    }
}

async fn rolled_back(script: &str, major: u32) -> (HelmRun, Played) {
    let played = played(script);
    let (namespace, release) = (Namespace::new("shop"), ReleaseName::new("web"));
    let ran = rollback(&played.policy, &order(&namespace, &release, major)).await;
    (ran, played)
}

#[test]
fn versions_are_read_with_and_without_what_follows_them() {
    let version = |major, minor| Some(HelmVersion { major, minor });
    assert_eq!(parse("v3.21.4+g1234567"), version(3, 21));
    assert_eq!(parse("v4.3.1\n"), version(4, 3));
    assert_eq!(parse("v4.3.1-rc.1"), version(4, 3));
    for wrong in ["", "3.21.4", "v", "vx.y", "version.BuildInfo{}"] {
        assert_eq!(parse(wrong), None, "{wrong:?}");
    }
}

#[tokio::test]
async fn a_helm_that_is_missing_or_too_old_is_named_with_the_way_out() {
    for old in ["v3.13.9", "v4.0.1", "v4.1.0", "v2.17.0"] {
        let played = played(&format!("echo {old}"));
        let said = version(&played.policy).await.unwrap_err();
        assert!(
            said.contains("3.14 or newer, or 4.2 or newer"),
            "{old}: {said}"
        );
    }
    for young in ["v3.14.0", "v3.21.4+gabc", "v4.2.0", "v5.0.0"] {
        let played = played(&format!("echo {young}"));
        assert!(version(&played.policy).await.is_ok(), "{young}");
    }
    let mut played = played("echo nonsense");
    assert!(
        version(&played.policy)
            .await
            .unwrap_err()
            .contains("nonsense")
    );
    played.policy.helm = "/nowhere/helm".into();
    let said = version(&played.policy).await.unwrap_err();
    assert!(
        said.contains("/nowhere/helm") && said.contains("kubernetes.helm"),
        "{said}"
    );
}

#[tokio::test]
async fn helm_is_told_exactly_what_to_do_and_sees_nothing_of_our_environment() {
    let (ran, played) = rolled_back("echo \"$@\" > arguments; env > environment", 4).await;
    assert_eq!(ran, HelmRun::Well);
    let read = |name: &str| std::fs::read_to_string(played.folder.path().join(name)).unwrap();
    assert_eq!(
        read("arguments").trim(),
        "rollback web 7 --namespace shop --history-max 0 --timeout 110s --force-conflicts"
    );
    let environment = read("environment");
    for name in [
        "HELM_PLUGINS",
        "HELM_DRIVER=secret",
        "KUBECONFIG=/scratch/ours.kubeconfig",
        "HOME",
        "NO_COLOR=1",
    ] {
        assert!(
            environment.contains(name),
            "{name} is not in:\n{environment}"
        );
    }
    assert!(!environment.contains("CARGO"), "{environment}");
    let (_, played) = rolled_back("echo \"$@\" > arguments", 3).await;
    let arguments = std::fs::read_to_string(played.folder.path().join("arguments")).unwrap();
    assert!(!arguments.contains("--force-conflicts"), "{arguments}");
}

#[tokio::test]
async fn what_helm_says_is_classed_bounded_and_free_of_log_lines() {
    let script = "echo 'W1123 10:00:00.000000 1 x.go:1] noise' >&2; echo 'Error: release: already exists' >&2; exit 1";
    let (ran, _) = rolled_back(script, 4).await;
    let HelmRun::Failed { class, text } = ran else {
        panic!("{ran:?}")
    };
    assert_eq!(
        (class, text.as_str()),
        (HelmError::Overtaken, "Error: release: already exists")
    );

    let (ran, _) = rolled_back(
        "yes 'a line of endless output' | head -c 30000000 >&2; exit 1",
        4,
    )
    .await;
    let HelmRun::Failed { text, .. } = ran else {
        panic!("{ran:?}")
    };
    assert!(text.chars().count() <= 1001);
}

#[tokio::test]
async fn a_helm_that_is_killed_is_no_success() {
    let (ran, _) = rolled_back("kill -9 $$", 4).await;
    assert_eq!(ran, HelmRun::Killed("helm was killed".into()));
}

#[tokio::test]
async fn a_helm_that_hangs_is_ended_with_all_that_it_started() {
    let played = played("sleep 1000 & echo $! > child; wait");
    let begun = std::time::Instant::now();
    let output = run(
        command(&played.policy),
        Duration::from_millis(300),
        &Permit::always(),
        256 * 1024 * 1024,
    )
    .await
    .unwrap();
    assert_eq!(output.end, HelmExit::TooLate);
    assert!(begun.elapsed() < Duration::from_secs(30));
    ends(&played, "child").await;
}

/// Waits until a process is gone, or dead and not yet collected.
async fn ends(played: &Played, file: &str) {
    let id = std::fs::read_to_string(played.folder.path().join(file)).unwrap();
    let stat = format!("/proc/{}/stat", id.trim());
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(
            std::time::Instant::now() < until,
            "the {file} process goes on"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn helm_for_a_person_has_that_persons_environment() {
    let mut played = played("env > environment; echo \"$@\" > arguments");
    played.policy.by_person = true;
    let (namespace, release) = (Namespace::new("shop"), ReleaseName::new("web"));
    let mut order = order(&namespace, &release, 4);
    order.limit = Duration::from_secs(40);
    assert_eq!(rollback(&played.policy, &order).await, HelmRun::Well);
    let read = |name: &str| std::fs::read_to_string(played.folder.path().join(name)).unwrap();
    let environment = read("environment");
    for name in ["PATH", "HOME"] {
        let own = format!("{name}={}\n", std::env::var(name).unwrap());
        assert!(
            environment.contains(&own),
            "{own} is not in:\n{environment}"
        );
    }
    // A run that is begun late has less time.
    assert!(read("arguments").contains("--timeout 40s"));
}

#[tokio::test]
async fn a_helm_that_nobody_waits_for_any_more_is_killed_with_all_that_it_started() {
    let played =
        played("echo $$ > helm.id; sleep 1000 & echo $! > child.new; mv child.new child; wait");
    let policy = played.policy.clone();
    let waits = tokio::spawn(async move {
        let (namespace, release) = (Namespace::new("shop"), ReleaseName::new("web"));
        rollback(&policy, &order(&namespace, &release, 4)).await
    });
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while !played.folder.path().join("child").exists() {
        assert!(std::time::Instant::now() < until, "helm does not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    waits.abort();
    assert!(waits.await.unwrap_err().is_cancelled());
    ends(&played, "helm.id").await;
    ends(&played, "child").await;
}
