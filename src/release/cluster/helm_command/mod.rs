//! Runs helm: its version, and a rollback.
//!
//! Helm runs in an environment of its own, because settings and plugins of the user who started Leadsman must not
//! affect it, and in a process group of its own, so that its children end with it. When its result is no longer awaited
//! (at a stop, or when the release gets other settings) it is killed. Otherwise a successor would take its record for
//! one that a killed helm left behind, and start a second helm.
//!
//! Helm's requests carry no fencing token, so the API server accepts them from a former leader. Instead, helm is killed
//! when leadership is lost, some seconds before another replica can become the leader; and the name of the record that
//! it creates can be created only once. Helm has no credentials: its requests go through [`super::helm_proxy`], which
//! ends with this process.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::{HelmDriver, RollbackPolicy, helm_limits};
use crate::core::units::{Namespace, ReleaseName, Revision};
use crate::helm::error::{self, HelmError};
use crate::platform::files;
use crate::platform::permit::Permit;

/// Bytes of helm's output that are kept; the rest is read and dropped.
const MAX_OUTPUT: usize = 64 * 1024;

/// Maximum duration of `helm version`, which sends no request.
pub(super) const VERSION_PATIENCE: Duration = Duration::from_secs(10);

/// The timeout that helm gets for each of its steps.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(110);

/// Helm is asked to end after this time, and killed some seconds later.
pub(super) const LONGEST: Duration = Duration::from_secs(150);
pub(super) const LAST_SECONDS: Duration = Duration::from_secs(5);

/// The oldest supported versions.
const OLDEST: [(u32, u32); 2] = [(3, 14), (4, 2)];

/// A version of helm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HelmVersion {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// How a run of helm ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HelmRun {
    /// It reports success.
    Well,
    /// It reports an error.
    Failed { class: HelmError, text: String },
    /// It was killed, by somebody or by us at the limit.
    Killed(String),
    /// It could not be started.
    NotStarted(String),
}

/// Helm's version.
///
/// # Errors
///
/// When there is no helm, or it is too old; the text says what to do.
pub(super) async fn version(policy: &RollbackPolicy) -> Result<HelmVersion, String> {
    let mut command = command(policy);
    command.args(["version", "--template", "{{.Version}}"]);
    let shown = policy.helm.display();
    let output = run(
        command,
        VERSION_PATIENCE,
        &policy.permit,
        policy.helm_memory,
    )
    .await
    .map_err(|error| {
        format!("helm cannot be started as {shown}: {error}; set kubernetes.helm to its path")
    })?;
    if HelmError::of(&output.stderr) == HelmError::OutOfMemory {
        return Err(helm_limits::needed_more(policy.helm_memory));
    }
    if output.end != HelmExit::Code(0) {
        return Err(format!(
            "{shown} does not tell its version: {}",
            error::shown(&output.stderr)
        ));
    }
    let version = parse(&output.stdout).ok_or_else(|| {
        format!(
            "{shown} says that its version is {:?}",
            output.stdout.trim()
        )
    })?;
    let is_young = OLDEST
        .iter()
        .any(|(major, minor)| version.major == *major && version.minor >= *minor);
    if !is_young && version.major <= 4 {
        return Err(format!(
            "{shown} is helm {}.{}; a rollback takes 3.14 or newer, or 4.2 or newer",
            version.major, version.minor
        ));
    }
    Ok(version)
}

/// Parses `v3.21.4+g1234567`.
fn parse(text: &str) -> Option<HelmVersion> {
    let mut numbers = text.trim().strip_prefix('v')?.split('.');
    Some(HelmVersion {
        major: numbers.next()?.parse().ok()?,
        minor: numbers.next()?.parse().ok()?,
    })
}

/// What to roll back.
pub(super) struct HelmRollback<'a> {
    pub(super) namespace: &'a Namespace,
    pub(super) release: &'a ReleaseName,
    pub(super) target: Revision,
    pub(super) driver: HelmDriver,
    pub(super) version: HelmVersion,
    /// Whether the target was applied server-side.
    pub(super) server_side: bool,
    /// Its way to the API server: [`super::helm_proxy`].
    pub(super) kubeconfig: &'a Path,
    /// Maximum duration, at most [`LONGEST`].
    pub(super) limit: Duration,
}

/// Runs one rollback.
pub(super) async fn rollback(policy: &RollbackPolicy, order: &HelmRollback<'_>) -> HelmRun {
    let limit = order.limit.min(LONGEST);
    let step = limit.min(STEP_LIMIT);
    let mut command = command(policy);
    command
        .env("HELM_DRIVER", order.driver.as_str())
        .env("KUBECONFIG", order.kubeconfig)
        .args([
            "rollback",
            order.release.as_str(),
            &order.target.to_string(),
        ])
        .args(["--namespace", order.namespace.as_str()])
        .args(["--history-max", "0"])
        .args(["--timeout", &format!("{}s", step.as_secs())]);
    if order.version.major >= 4 && order.server_side {
        // What others have set by hand since must not stop the way back.
        command.arg("--force-conflicts");
    }
    let killed_before = helm_limits::killed_for_memory();
    match run(command, limit, &policy.permit, policy.helm_memory).await {
        Err(error) => HelmRun::NotStarted(error.to_string()),
        Ok(output) => match output.end {
            HelmExit::Code(0) => HelmRun::Well,
            HelmExit::Code(_) => {
                let class = HelmError::of(&output.stderr);
                let text = if class == HelmError::OutOfMemory {
                    helm_limits::needed_more(policy.helm_memory)
                } else {
                    error::shown(&output.stderr)
                };
                HelmRun::Failed { class, text }
            }
            HelmExit::Signal if helm_limits::killed_for_memory() > killed_before => {
                HelmRun::Failed {
                    class: HelmError::OutOfMemory,
                    text: helm_limits::killed(policy.helm_memory),
                }
            }
            HelmExit::Signal => HelmRun::Killed("helm was killed".into()),
            HelmExit::TooLate => {
                HelmRun::Killed(format!("helm did not end within {} s", limit.as_secs()))
            }
        },
    }
}

/// Folders below the scratch directory: an empty one for plugins, and those where helm and its children store what they
/// like.
const FOLDERS: [&str; 5] = ["no-plugins", "kube", "cache", "config", "data"];

/// Creates the directory that helm may write to, accessible to our user alone.
///
/// # Errors
///
/// When it cannot be created, or others could write there; in words, with the way out.
pub fn prepare_scratch(scratch: &Path) -> Result<(), String> {
    let folders = FOLDERS.map(|folder| scratch.join(folder));
    std::iter::once(scratch)
        .chain(folders.iter().map(PathBuf::as_path))
        .try_for_each(|path| {
            files::private_directory(path).map_err(|error| {
                format!(
                    "{} cannot be used: {error}; or set kubernetes.scratch to another directory that helm may write to",
                    path.display()
                )
            })
        })
}

fn command(policy: &RollbackPolicy) -> Command {
    let scratch = &policy.scratch;
    let folder = |name: &str| scratch.join(name);
    let mut command = Command::new(&policy.helm);
    // What finds helm finds what helm calls for a token.
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    if policy.by_person {
        // Programs that get a person's token need that person's environment; Helm's own settings are ours all the same.
        for (name, _) in std::env::vars_os() {
            let is_of_helm = name.to_str().is_some_and(|name| name.starts_with("HELM_"));
            if is_of_helm || name == "KUBECONFIG" {
                command.env_remove(&name);
            }
        }
    } else {
        command.env_clear().env("HOME", scratch);
    }
    let (limit, memory) = helm_limits::variable(policy.helm_memory);
    command
        .env("PATH", path)
        .env(limit, memory)
        .env("TMPDIR", scratch)
        .env("KUBECACHEDIR", folder("kube"))
        .env("HELM_CACHE_HOME", folder("cache"))
        .env("HELM_CONFIG_HOME", folder("config"))
        .env("HELM_DATA_HOME", folder("data"))
        .env("HELM_PLUGINS", folder("no-plugins"))
        .env("NO_COLOR", "1")
        .current_dir(scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HelmExit {
    Code(i32),
    Signal,
    TooLate,
}

struct HelmOutput {
    end: HelmExit,
    stdout: String,
    stderr: String,
}

async fn run(
    mut command: Command,
    limit: Duration,
    permit: &Permit,
    memory: u64,
) -> io::Result<HelmOutput> {
    let mut child = command.spawn()?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let mut group = ProcessGroup(id.and_then(Pid::from_raw));
    // Nobody has waited for it yet, so the number is still its own.
    if let Some(helm) = group.0 {
        helm_limits::limit(helm, memory);
    }
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (stdout, stderr, status) = tokio::join!(kept(stdout), kept(stderr), child.wait());
        status.map(|status| (status.code(), stdout, stderr))
    };
    tokio::pin!(work);
    let mut is_late = false;
    let mut ended = tokio::select! {
        ended = tokio::time::timeout(limit, &mut work) => ended,
        () = permit.lost() => {
            // Somebody else may act at once; there is no time for manners.
            group.signal(Signal::KILL);
            work.await?;
            group.has_ended();
            return Ok(HelmOutput {
                end: HelmExit::Signal,
                stdout: String::new(),
                stderr: String::new(),
            });
        }
    };
    if ended.is_err() {
        is_late = true;
        group.signal(Signal::TERM);
        ended = tokio::time::timeout(LAST_SECONDS, &mut work).await;
    }
    let (code, stdout, stderr) = if let Ok(ended) = ended {
        ended?
    } else {
        group.signal(Signal::KILL);
        work.await?
    };
    group.has_ended();
    let end = match code {
        _ if is_late => HelmExit::TooLate,
        Some(code) => HelmExit::Code(code),
        None => HelmExit::Signal,
    };
    Ok(HelmOutput {
        end,
        stdout,
        stderr,
    })
}

/// The processes of one helm. Dropping it kills them: the future that waited for them is gone.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // It may have ended by itself in this moment.
            let _ = kill_process_group(group, signal);
        }
    }

    /// The group has ended; its number may belong to other processes from now on.
    const fn has_ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // It cannot be waited for here, so there is no time for manners either.
        self.signal(Signal::KILL);
    }
}

/// Reads to the end, and keeps the beginning.
async fn kept(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut buffer = vec![0; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&buffer[..room]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
pub(super) mod tests;
