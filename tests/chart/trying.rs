//! helm/try/run asks and changes nothing but the cluster that it was told, and removes nothing but what it has made.
//! In the place of helm, kubectl and the others stand programs that write down how they were called.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::chart::root;

/// Each writes down its name and its arguments; `ours` holds the namespaces that carry the label, `foreign` those that do
/// not, `ending` the answer about the bad revision.
const STAND_IN: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
name="$(basename "$0")"
echo "$name $*" >>calls
case "$name $*" in
"kubectl "*" get namespace "*)
    for namespace in $(cat ours); do
        case "$* " in *"metadata.name=$namespace "*) echo "namespace/$namespace" ;; esac
    done ;;
"kubectl "*" create --filename -")
    made="$(cat)"
    echo "$made" >>made
    for namespace in $(cat foreign); do
        case "$made" in *"\"name\":\"$namespace\""*) exit 1 ;; esac
    done ;;
"kubectl "*" port-forward "*) echo "Forwarding from 127.0.0.1:34567 -> 9616" ;;
"helm "*" list "*) echo '[{"name":"mykadoo","revision":"1"}]' ;;
"curl "*/rollouts/2) cat outcome ;;
"curl "*) echo '{"phase":"idle"}' ;;
esac
"#;

struct Tried {
    is_well: bool,
    calls: Vec<String>,
    made: String,
    said: String,
}

fn tried(arguments: &[&str], ours: &str, foreign: &str, outcome: &str) -> Tried {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for program in ["helm", "kubectl", "kind", "docker", "curl", "sleep"] {
        std::fs::write(at(program), STAND_IN).unwrap();
        std::fs::set_permissions(at(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let answer = format!("{{\"revision\":2,\"outcome\":\"{outcome}\"}}");
    for (name, text) in [("ours", ours), ("foreign", foreign), ("outcome", &answer)] {
        std::fs::write(at(name), text).unwrap();
    }
    let path = std::env::var("PATH").unwrap();
    let output = Command::new(root().join("helm/try/run"))
        .args(arguments)
        .env("PATH", format!("{}:{path}", folder.path().display()))
        .output()
        .unwrap();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    Tried {
        is_well: output.status.success(),
        calls: read(&at("calls")).lines().map(str::to_owned).collect(),
        made: read(&at("made")),
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Tried {
    fn of<'a>(&'a self, words: &'a str) -> impl Iterator<Item = &'a String> {
        self.calls.iter().filter(move |call| call.contains(words))
    }

    /// Every call of helm and kubectl says which cluster.
    #[track_caller]
    fn names(&self, context: &str) {
        for call in &self.calls {
            let is_told = match call.split_once(' ').unwrap() {
                ("helm", rest) => rest.starts_with(&format!("--kube-context {context} ")),
                ("kubectl", rest) => rest.starts_with(&format!("--context {context} ")),
                _ => true,
            };
            assert!(is_told, "{call}");
        }
    }
}

#[test]
fn removing_touches_the_cluster_that_was_named_and_what_was_made_here() {
    let arguments = ["--remove", "--context", "other"];
    let tried = self::tried(&arguments, "leadsman-try leadsman-try-app", "", "");
    assert!(tried.is_well, "{}", tried.said);
    tried.names("other");
    assert_eq!(tried.of("uninstall").count(), 2);
    let deleted: Vec<_> = tried.of("delete").collect();
    assert_eq!(
        deleted,
        ["kubectl --context other delete namespace --selector leadsman.io/try=yes"]
    );
    // What only has the names is left alone.
    let tried = self::tried(&arguments, "", "leadsman-try leadsman-try-app", "");
    assert!(tried.is_well, "{}", tried.said);
    assert_eq!(tried.of("uninstall").count(), 0);
    // Of kind it is the cluster of its own.
    let tried = self::tried(&["--remove"], "", "", "");
    assert_eq!(tried.calls, ["kind delete cluster --name leadsman-try"]);
}

#[test]
fn it_is_content_only_when_the_release_is_well_again() {
    let arguments = ["--context", "other", "--image", "registry:5000/leadsman"];
    let tried = self::tried(&arguments, "", "", "rolled_back");
    assert!(tried.is_well, "{}", tried.said);
    tried.names("other");
    for name in ["leadsman-try", "leadsman-try-app"] {
        let meta = format!("{{\"name\":\"{name}\",\"labels\":{{\"leadsman.io/try\":\"yes\"}}}}");
        assert!(tried.made.contains(&meta), "{}", tried.made);
    }
    assert!(tried.of("http://127.0.0.1:34567/").count() > 1);
    for outcome in ["still_failing", "passed", "rollback_failed"] {
        let tried = self::tried(&arguments, "", "", outcome);
        assert!(!tried.is_well && tried.said.contains(outcome), "{outcome}");
    }
    // A namespace of somebody else is no place for it.
    let tried = self::tried(
        &arguments,
        "leadsman-try",
        "leadsman-try-app",
        "rolled_back",
    );
    assert!(!tried.is_well && tried.said.contains("was not made here"));
    assert_eq!(tried.of("upgrade").count(), 0);
}

#[test]
fn an_image_may_have_a_port_a_tag_or_a_digest() {
    for (image, set) in [
        ("leadsman", "image.repository=leadsman"),
        (
            "registry:5000/leadsman",
            "image.repository=registry:5000/leadsman",
        ),
        (
            "registry:5000/leadsman:1.0",
            "image.repository=registry:5000/leadsman --set-string image.tag=1.0",
        ),
        (
            "a.example.com/b/leadsman@sha256:12",
            "image.repository=a.example.com/b/leadsman --set-string image.digest=sha256:12",
        ),
    ] {
        let arguments = ["--context", "other", "--image", image];
        let tried = self::tried(&arguments, "", "", "rolled_back");
        let installed = tried.of("--install leadsman helm/leadsman").next();
        let wanted = format!("--set-string {set} --wait");
        assert!(installed.unwrap().contains(&wanted), "{installed:?}");
    }
}
