//! `leadsman run`: runs the daemon until a signal.

use std::fs::File;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Interval;

use super::signals::{SignalRequest, Signals};
use super::{ConfigArgs, runtime};
use crate::config::{self, DiscoveredRelease, Loaded, Settings};
use crate::daemon::Daemon;
use crate::http::ReloadRequest;

/// Options of `leadsman run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Signals: TERM and INT stop, a second one at once; HUP reads the configuration again, as does a change\nof its files.\n\n\
    Example:\n  leadsman run --config probes.toml --overlay helm/overlays/probes.staging.toml"
)]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where to listen, as 127.0.0.1:9616; the same as --set serve.listen=…
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Spread the releases over the replicas by a Lease each; the same as --set lease.spread=true
    #[arg(long)]
    spread: bool,
}

pub(super) fn run(args: &RunArgs) -> ExitCode {
    super::leave_no_core();
    let mut sources = args.config.clone();
    if let Some(listen) = &args.listen {
        sources.set.push(("serve.listen".into(), listen.clone()));
    }
    if args.spread {
        sources.set.push(("lease.spread".into(), "true".into()));
    }
    let loaded = match sources.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if !loaded.hints.is_empty() {
        tracing::info!(
            hints = loaded.hints.len(),
            "`leadsman check` has hints about the configuration"
        );
    }
    // Where each setting came from is of no use to the daemon, and takes more memory than the settings.
    let Loaded { settings, .. } = loaded;
    let Some(runtime) = runtime(workers(&settings)) else {
        return ExitCode::FAILURE;
    };
    let code = runtime.block_on(async {
        let signals = Signals::listen();
        let read = contents(&sources).await;
        match Box::pin(Daemon::start(settings)).await {
            Ok(daemon) => Box::pin(RunLoop::new(daemon, signals, &sources, read).run()).await,
            Err(error) => {
                complain!("leadsman: {error}");
                ExitCode::FAILURE
            }
        }
    });
    // A lookup of a name that hangs in the system's resolver must not hold up the exit.
    runtime.shutdown_background();
    code
}

/// The daemon with everything that it is told from outside.
struct RunLoop<'a> {
    daemon: Daemon,
    signals: Signals,
    sources: &'a ConfigArgs,
    discoveries: Option<watch::Receiver<Vec<DiscoveredRelease>>>,
    /// The releases that are selected.
    discovered: Vec<DiscoveredRelease>,
    reloads: Option<mpsc::Receiver<ReloadRequest>>,
    lead_changes: Arc<Notify>,
    look: Interval,
    /// What the files held when they were last read.
    read: [u8; 32],
    /// What they held at the last look.
    seen: [u8; 32],
}

impl<'a> RunLoop<'a> {
    fn new(mut daemon: Daemon, signals: Signals, sources: &'a ConfigArgs, read: [u8; 32]) -> Self {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self {
            discoveries: daemon.discovered(),
            discovered: Vec::new(),
            reloads: daemon.reloads(),
            lead_changes: daemon.lead_changes(),
            daemon,
            signals,
            sources,
            look,
            read,
            seen: read,
        }
    }

    /// Runs until a signal, or until something ends that should live as long as the process.
    async fn run(mut self) -> ExitCode {
        loop {
            let task = match self.next_event().await {
                LoopEvent::Task(task) => task,
                LoopEvent::Stop => break,
                LoopEvent::Failed(reason) => {
                    tracing::error!(
                        reason,
                        "A task that should live as long as the process has ended"
                    );
                    complain!("leadsman: {reason}");
                    self.daemon.stop().await;
                    return ExitCode::FAILURE;
                }
            };
            match self.carry_out_heeding_signals(task).await {
                StopSignals::None => {}
                StopSignals::One => break,
                StopSignals::Two => return ExitCode::FAILURE,
            }
        }
        tracing::info!("Stopping; a second signal stops at once");
        tokio::select! {
            () = self.daemon.stop() => ExitCode::SUCCESS,
            () = second_stop(&mut self.signals) => ExitCode::FAILURE,
        }
    }

    async fn next_event(&mut self) -> LoopEvent {
        let task = tokio::select! {
            asked = self.signals.next() => match asked {
                SignalRequest::Stop => return LoopEvent::Stop,
                SignalRequest::Reload => LoopTask::Reload(None),
            },
            _ = self.look.tick() => {
                let now = contents(self.sources).await;
                // One that is being written is looked at again before it is read.
                let is_whole = now == std::mem::replace(&mut self.seen, now);
                if now != self.read && is_whole {
                    tracing::info!("The configuration on the disk has changed");
                    LoopTask::Reload(None)
                } else {
                    LoopTask::Settle
                }
            }
            () = self.lead_changes.notified() => LoopTask::Follow,
            order = asked_for(&mut self.reloads) => LoopTask::Reload(Some(order)),
            found = next(&mut self.discoveries) => {
                tracing::info!(releases = found.len(), "The releases that are selected have changed");
                self.discovered = found;
                LoopTask::Reload(None)
            }
            reason = self.daemon.failed() => return LoopEvent::Failed(reason),
        };
        LoopEvent::Task(task)
    }

    /// It may have to wait for guards that end, and those for the cluster: signals are heard meanwhile.
    async fn carry_out_heeding_signals(&mut self, task: LoopTask) -> StopSignals {
        if matches!(task, LoopTask::Reload(_)) {
            // What is read now is no change to be found by the next look.
            self.read = contents(self.sources).await;
        }
        let mut stops = StopSignals::None;
        let mut work = pin!(carry_out(
            &self.daemon,
            task,
            self.sources,
            &self.discovered
        ));
        loop {
            tokio::select! {
                () = &mut work => return stops,
                asked = self.signals.next() => match (asked, stops) {
                    (SignalRequest::Stop, StopSignals::None) => stops = StopSignals::One,
                    (SignalRequest::Stop, StopSignals::One | StopSignals::Two) => return StopSignals::Two,
                    (SignalRequest::Reload, _) => {}
                }
            }
        }
    }
}

/// What the loop woke up for.
enum LoopEvent {
    Task(LoopTask),
    /// A signal.
    Stop,
    /// Something ended that should live as long as the process; what, in words.
    Failed(&'static str),
}

/// Signals to stop that came while something was carried out.
#[derive(Clone, Copy)]
enum StopSignals {
    None,
    One,
    Two,
}

/// What the loop has found to do.
enum LoopTask {
    /// Reload the configuration; the result goes to the caller, if there is one.
    Reload(Option<ReloadRequest>),
    /// The leader changed.
    Follow,
    /// An analysis may have ended that new settings wait for.
    Settle,
}

async fn carry_out(
    daemon: &Daemon,
    task: LoopTask,
    sources: &ConfigArgs,
    discovered: &[DiscoveredRelease],
) {
    match task {
        LoopTask::Reload(order) => {
            let came = reload(daemon, sources, discovered).await;
            if let Some(order) = order {
                // Whoever asked may have gone.
                let _ = order.send(came);
            }
        }
        LoopTask::Follow => daemon.follow().await,
        LoopTask::Settle => daemon.settle().await,
    }
}

/// Interval of checking the configuration files. They are compared by content, since a ConfigMap changes by replacing a
/// link, and editors write twice.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Bytes of a file that are compared.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Digest of the files. An unreadable one counts as empty, and the reload reports it.
async fn contents(sources: &ConfigArgs) -> [u8; 32] {
    let files = sources.sources().files;
    let read = tokio::task::spawn_blocking(move || {
        let mut digest = Sha256::new();
        for file in files {
            let mut bytes = Vec::new();
            let read =
                File::open(&file).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
            digest.update([u8::from(read.is_ok())]);
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(&bytes);
        }
        digest.finalize().into()
    });
    read.await.unwrap_or_default()
}

/// Probes per second that one thread runs with room to spare; a probe costs 50 to 250 µs.
const SOUNDINGS_PER_WORKER: f64 = 1500.0;

/// The fewest threads for the rate: each further one makes every probe more expensive, because threads wake one
/// another.
fn workers(settings: &Settings) -> usize {
    let rate: f64 = settings
        .probes()
        .chain(&settings.dependencies)
        .map(|probe| 1.0 / probe.interval.as_secs_f64())
        .sum();
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (1..cores)
        .find(|count| rate <= *count as f64 * SOUNDINGS_PER_WORKER)
        .unwrap_or(cores)
}

async fn second_stop(signals: &mut Signals) {
    while signals.next().await != SignalRequest::Stop {}
}

/// The releases that the selectors match, when they change.
async fn next(
    discoveries: &mut Option<watch::Receiver<Vec<DiscoveredRelease>>>,
) -> Vec<DiscoveredRelease> {
    if let Some(discoveries) = discoveries
        && discoveries.changed().await.is_ok()
    {
        return discoveries.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// The next reload request from HTTP.
async fn asked_for(reloads: &mut Option<mpsc::Receiver<ReloadRequest>>) -> ReloadRequest {
    if let Some(reloads) = reloads
        && let Some(order) = reloads.recv().await
    {
        return order;
    }
    std::future::pending().await
}

/// Reloads the configuration; returns its errors if it is invalid.
async fn reload(
    daemon: &Daemon,
    sources: &ConfigArgs,
    discovered: &[DiscoveredRelease],
) -> Result<(), String> {
    let mut sources = sources.sources();
    sources.discovered = discovered.to_vec();
    match tokio::task::spawn_blocking(move || config::load(&sources)).await {
        Ok(Ok(loaded)) => {
            daemon.apply(loaded.settings).await;
            Ok(())
        }
        Ok(Err(diagnostics)) => {
            let why = diagnostics.render(false);
            daemon.reload_failed(&why);
            tracing::error!(diagnostics = %why, "The configuration is wrong; the old one stays in force");
            Err(why)
        }
        Err(error) => {
            tracing::error!(%error, "Could not read the configuration");
            Err("the configuration could not be read; see the log".into())
        }
    }
}
