//! `leadsman run`: the daemon, until a signal.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::Args;
use tokio::sync::watch;

use super::signals::{Asked, Signals};
use super::{ConfigArgs, runtime};
use crate::config::{self, Discovered, Loaded, Settings};
use crate::daemon::Daemon;

/// Options of `leadsman run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Signals: TERM and INT stop, a second one at once; HUP reads the configuration again.\n\n\
    Example:\n  leadsman run --config probes.toml --overlay helm/overlays/probes.staging.toml"
)]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where to listen, as 127.0.0.1:9616; the same as --set serve.listen=…
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

pub(super) fn run(args: &RunArgs) -> ExitCode {
    let mut sources = args.config.clone();
    if let Some(listen) = &args.listen {
        sources.set.push(("serve.listen".into(), listen.clone()));
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
        let mut signals = Signals::listen();
        let mut daemon = match Daemon::start(settings).await {
            Ok(daemon) => daemon,
            Err(error) => {
                eprintln!("leadsman: {error}");
                return ExitCode::FAILURE;
            }
        };
        let mut discoveries = daemon.discovered();
        let mut discovered = Vec::new();
        loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Stop => break,
                    Asked::Reload => reload(&daemon, &sources, &discovered).await,
                },
                found = next(&mut discoveries) => {
                    tracing::info!(releases = found.len(), "The releases that are selected have changed");
                    discovered = found;
                    reload(&daemon, &sources, &discovered).await;
                }
                reason = daemon.failed() => {
                    tracing::error!(reason, "A task that should live as long as the process has ended");
                    eprintln!("leadsman: {reason}");
                    daemon.stop().await;
                    return ExitCode::FAILURE;
                }
            }
        }
        tracing::info!("Stopping; a second signal stops at once");
        tokio::select! {
            () = daemon.stop() => ExitCode::SUCCESS,
            () = second_stop(&mut signals) => ExitCode::FAILURE,
        }
    });
    // A lookup of a name that hangs in the system's resolver must not hold up the exit.
    runtime.shutdown_background();
    code
}

/// Soundings a second that one thread takes with room to spare; a sounding costs 50 to 250 µs.
const SOUNDINGS_PER_WORKER: f64 = 1500.0;

/// As few threads as the rate needs: each further one makes every sounding dearer, because threads wake one another.
fn workers(settings: &Settings) -> usize {
    let rate: f64 = settings
        .probes()
        .map(|probe| 1.0 / probe.interval.as_secs_f64())
        .sum();
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (1..cores)
        .find(|count| rate <= *count as f64 * SOUNDINGS_PER_WORKER)
        .unwrap_or(cores)
}

async fn second_stop(signals: &mut Signals) {
    while signals.next().await != Asked::Stop {}
}

/// The releases that are selected, when they change.
async fn next(discoveries: &mut Option<watch::Receiver<Vec<Discovered>>>) -> Vec<Discovered> {
    if let Some(discoveries) = discoveries
        && discoveries.changed().await.is_ok()
    {
        return discoveries.borrow_and_update().clone();
    }
    std::future::pending().await
}

async fn reload(daemon: &Daemon, sources: &ConfigArgs, discovered: &[Discovered]) {
    let mut sources = sources.sources();
    sources.discovered = discovered.to_vec();
    match tokio::task::spawn_blocking(move || config::load(&sources)).await {
        Ok(Ok(loaded)) => daemon.apply(loaded.settings).await,
        Ok(Err(mistakes)) => {
            daemon.reload_failed();
            tracing::error!(mistakes = %mistakes.render(false), "The configuration is wrong; the old one stays in force");
        }
        Err(error) => tracing::error!(%error, "Could not read the configuration"),
    }
}
