//! The commands. Each is a thin shell around the library: it reads the configuration, does one thing, and returns an
//! exit code.

/// Prints a line.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::terminal::print(&format!($($text)*)) };
}

/// Prints a line on standard error.
macro_rules! complain {
    ($($text:tt)*) => { $crate::cli::terminal::complain(&format!($($text)*)) };
}

pub mod analyze;
pub mod check;
mod client;
pub mod demo;
pub mod explain;
pub mod gate;
pub mod import_blackbox;
pub mod logging;
mod online;
pub mod probe;
pub mod rbac;
pub mod replay;
pub mod rollback;
pub mod run;
pub mod signals;
pub mod slo;
pub mod status;
mod terminal;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::config::{self, Diagnostics, Loaded, Sources};
use logging::LogFormat;

/// The configuration, or a command's usage, is wrong.
pub const BAD_CONFIGURATION: u8 = 2;

/// What is logged unless said otherwise. The Kubernetes client tells of each request that fails; we tell once.
const NORMAL: &str = "info,kube_client=off";
const QUIET: &str = "error,kube_client=off";

/// Where the configuration is looked for when nobody says.
const DEFAULT_FILES: [&str; 2] = ["probes.toml", "/etc/leadsman/probes.toml"];

/// Probes a running application.
#[derive(Debug, Parser)]
#[command(name = "leadsman", version, max_term_width = 100, after_help = EXAMPLE)]
pub struct Cli {
    #[command(subcommand)]
    command: CliCommand,
    /// How log lines look: text on a terminal, else json
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, off, or a filter as info,leadsman::probe=debug
    ///
    /// [default: info; for demo error, since it shows what happens itself]
    #[arg(long, global = true, env = "LEADSMAN_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
}

const EXAMPLE: &str = "Example:
  leadsman demo --app-only &
  leadsman check
  leadsman run --set release.mykadoo.base_url=http://127.0.0.1:8080
  curl http://127.0.0.1:9616/metrics";

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Probe until told to stop, and show them to Prometheus
    Run(run::RunArgs),
    /// Read the configuration and show every mistake at once
    Check(check::CheckArgs),
    /// Take one result and show its phases
    Probe(probe::ProbeArgs),
    /// Serve a small app to try Leadsman on
    Demo(demo::DemoArgs),
    /// Apply the rule to recorded streams of results
    Analyze(analyze::AnalyzeArgs),
    /// Judge a recorded watch again, also with other settings
    Replay(replay::ReplayArgs),
    /// Show why a verdict fell
    Explain(explain::ExplainArgs),
    /// Wait for the verdict on a revision, after `helm upgrade`
    Gate(gate::GateArgs),
    /// Roll a release back by hand
    Rollback(rollback::RollbackArgs),
    /// Show what the daemon knows of its releases
    Status(status::StatusArgs),
    /// Objectives: how much of each error budget is left, and how fast it is being spent
    Slo(slo::SloArgs),
    /// Show how the watches of a release ended
    History(status::HistoryArgs),
    /// Print the least Role that the guarded releases need
    Rbac(rbac::RbacArgs),
    /// Turn a blackbox.yml into our modules
    ImportBlackbox(import_blackbox::ImportArgs),
}

/// Where the settings come from; the same for all commands.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// The configuration [default: probes.toml, else /etc/leadsman/probes.toml]
    #[arg(long, short, env = "LEADSMAN_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A file whose settings win over those of --config; may be repeated, later ones win
    #[arg(
        long,
        env = "LEADSMAN_OVERLAY",
        value_delimiter = ',',
        value_name = "FILE"
    )]
    pub overlay: Vec<PathBuf>,
    /// A setting that wins over all files, as release.mykadoo.base_url=http://127.0.0.1:8080
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub set: Vec<(String, String)>,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl ConfigArgs {
    /// The layers, in the order in which later ones win.
    pub fn sources(&self) -> Sources {
        let first = self.config.clone().unwrap_or_else(|| {
            let found = DEFAULT_FILES.iter().find(|file| Path::new(file).exists());
            PathBuf::from(found.unwrap_or(&DEFAULT_FILES[0]))
        });
        Sources {
            files: std::iter::once(first)
                .chain(self.overlay.iter().cloned())
                .collect(),
            // A variable that is not text cannot be one of ours.
            environment: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            flags: self.set.clone(),
            discovered: Vec::new(),
        }
    }

    /// Whether a configuration was named, or one exists at the default place.
    pub(crate) fn is_there(&self) -> bool {
        self.config.is_some() || DEFAULT_FILES.iter().any(|file| Path::new(file).exists())
    }

    /// Reads the settings, or prints every mistake and gives the exit code.
    pub(crate) fn load(&self) -> Result<Loaded, ExitCode> {
        config::load(&self.sources()).map_err(|diagnostics| print_diagnostics(&diagnostics))
    }
}

pub(crate) fn print_diagnostics(diagnostics: &Diagnostics) -> ExitCode {
    terminal::complain_lines(&diagnostics.render(terminal::has_log_colours()));
    ExitCode::from(BAD_CONFIGURATION)
}

/// What is in memory, tokens among it, is not for a file that lies about, nor for another process of the same user.
fn leave_no_core() {
    // helm inherits this one. A node that pipes cores into a program does not look at it, and looks at the other.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Both are always allowed; where something forbids them all the same, the node says what becomes of cores.
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// The runtime of a command; says why when there can be none.
fn runtime(workers: usize) -> Option<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("leadsman")
        .enable_all()
        .build()
        .inspect_err(|error| complain!("leadsman: cannot start threads: {error}"))
        .ok()
}

/// Reads the command line, runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    crate::platform::files::keep_to_ourselves();
    let quiet = matches!(cli.command, CliCommand::Demo(_));
    let normal = if quiet { QUIET } else { NORMAL };
    if let Err(text) = logging::start(cli.log_format, cli.log_level.as_deref(), normal) {
        complain!("leadsman: {text}");
        return ExitCode::from(BAD_CONFIGURATION);
    }
    match &cli.command {
        CliCommand::Run(args) => run::run(args),
        CliCommand::Check(args) => check::run(args, online::check),
        CliCommand::Probe(args) => probe::run(args),
        CliCommand::Demo(args) => demo::run(args),
        CliCommand::Analyze(args) => analyze::run(args),
        CliCommand::Replay(args) => replay::run(args),
        CliCommand::Explain(args) => explain::run(args),
        CliCommand::Gate(args) => gate::run(args),
        CliCommand::Rollback(args) => rollback::run(args),
        CliCommand::Status(args) => status::status(args),
        CliCommand::Slo(args) => slo::slo(args),
        CliCommand::History(args) => status::history(args),
        CliCommand::Rbac(args) => rbac::run(args),
        CliCommand::ImportBlackbox(args) => import_blackbox::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn no_core_is_left_of_who_reads_a_token() {
        super::leave_no_core();
        let left = rustix::process::getrlimit(super::Resource::Core);
        assert_eq!((left.current, left.maximum), (Some(0), Some(0)));
        let now = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(now, super::DumpableBehavior::NotDumpable);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
