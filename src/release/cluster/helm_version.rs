//! Helm's version, asked once per binary instead of once per release and minute.
//!
//! The cache key is the file's size, inode and time: a replaced helm has others. A script may call another helm from
//! now on, so answers also expire after ten minutes. Only successes are cached.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::RollbackPolicy;
use super::helm_command::{self, HelmVersion};

/// How long an answer is used.
const SERVES: Duration = Duration::from_secs(600);

/// Binaries that are remembered; a configuration has one, tests have more.
const MAX_HELMS: usize = 16;

/// What tells a replaced file from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    stamp: Stamp,
    at: Instant,
    version: HelmVersion,
}

/// By file, and by helm's memory limit: with less memory it may not start.
static ANSWERS: Mutex<BTreeMap<(PathBuf, u64), Answer>> = Mutex::const_new(BTreeMap::new());

/// Helm's version.
///
/// # Errors
///
/// As [`helm_command::version`].
pub(super) async fn of(policy: &RollbackPolicy) -> Result<HelmVersion, String> {
    let Some((file, stamp)) = file_of(&policy.helm, std::env::var_os("PATH").as_deref()) else {
        // Which file it is the system knows, or what is wrong with it.
        return helm_command::version(policy).await;
    };
    let key = (file, policy.helm_memory);
    // Held meanwhile, so that all releases together start one helm. One that hangs must not hold up all of them in turn.
    let asking = tokio::time::timeout(helm_command::VERSION_PATIENCE, ANSWERS.lock()).await;
    let Ok(mut answers) = asking else {
        return helm_command::version(policy).await;
    };
    let serves = |answer: &Answer| answer.stamp == stamp && answer.at.elapsed() < SERVES;
    if let Some(answer) = answers.get(&key).filter(|answer| serves(answer)) {
        return Ok(answer.version);
    }
    answers.remove(&key);
    let version = helm_command::version(policy).await?;
    if answers.len() >= MAX_HELMS {
        answers.clear();
    }
    let at = Instant::now();
    answers.insert(key, Answer { stamp, at, version });
    Ok(version)
}

/// The file that will run, and its identity; `None` if that is not clear.
fn file_of(helm: &Path, path: Option<&OsStr>) -> Option<(PathBuf, Stamp)> {
    let at = |file: PathBuf| {
        let about = std::fs::metadata(&file).ok()?;
        let can_run = about.is_file() && about.permissions().mode() & 0o111 != 0;
        let stamp = Stamp {
            device: about.dev(),
            inode: about.ino(),
            size: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
        };
        can_run.then_some((file, stamp))
    };
    if helm.is_absolute() {
        return at(helm.to_owned());
    }
    let is_name = helm.components().count() == 1 && helm.file_name() == Some(helm.as_os_str());
    if !is_name {
        return None;
    }
    std::env::split_paths(path?)
        .filter(|folder| folder.is_absolute())
        .find_map(|folder| at(folder.join(helm)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use super::*;
    use crate::release::cluster::helm_command::tests::played;

    /// A helm that notes each run.
    const COUNTS: &str = "echo run >>runs; echo v3.20.1";

    fn runs(folder: &Path) -> usize {
        let text = std::fs::read_to_string(folder.join("runs")).unwrap_or_default();
        text.lines().count()
    }

    #[tokio::test]
    async fn three_hundred_releases_start_one_helm_and_another_one_when_it_is_replaced() {
        let played = played(COUNTS);
        let folder = played.folder.path();
        let asked = futures::future::join_all((0..300).map(|_| of(&played.policy))).await;
        assert!(
            asked
                .iter()
                .all(|version| version.as_ref().unwrap().minor == 20)
        );
        assert_eq!(runs(folder), 1);

        let next = folder.join("next");
        std::fs::write(&next, "#!/bin/sh\necho run >>runs; echo v4.3.0\n").unwrap();
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&next, &played.policy.helm).unwrap();
        assert_eq!(of(&played.policy).await.unwrap().major, 4);
        assert_eq!(of(&played.policy).await.unwrap().major, 4);
        assert_eq!(runs(folder), 2);

        std::fs::remove_file(&played.policy.helm).unwrap();
        let gone = of(&played.policy).await.unwrap_err();
        assert!(gone.contains("kubernetes.helm"), "{gone}");
    }

    #[tokio::test]
    async fn a_failure_is_not_remembered() {
        let played = played("test -e mended && echo v3.20.1 || exit 1");
        of(&played.policy).await.unwrap_err();
        std::fs::write(played.folder.path().join("mended"), "").unwrap();
        of(&played.policy).await.unwrap();
    }

    #[test]
    fn a_name_is_looked_for_in_the_path_and_nothing_is_guessed() {
        let played = played(COUNTS);
        let folder = played.folder.path();
        let path = std::env::join_paths([Path::new("/nowhere"), folder]).unwrap();
        let found = file_of(Path::new("helm"), Some(&path)).unwrap().0;
        assert_eq!(found, played.policy.helm);
        assert!(file_of(Path::new("bin/helm"), Some(&path)).is_none());
        assert!(file_of(Path::new("helm"), None).is_none());
        assert!(file_of(folder, None).is_none(), "a folder");
    }
}
