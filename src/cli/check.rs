//! `leadsman check`: is the configuration right, and what is in force.

use std::process::ExitCode;

use clap::Args;

use super::{BAD_CONFIGURATION, ConfigArgs};
use crate::config::{Loaded, Settings};

/// Options of `leadsman check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 when all is well, 2 for a mistake or, with --online, a probe that was not good.\n\n\
    Example:\n  leadsman check --overlay helm/overlays/probes.production.toml --print"
)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Show every setting in force, and where it was written
    #[arg(long)]
    print: bool,
    /// Also take one sounding of each probe, and look whether each release could be turned back
    #[arg(long)]
    online: bool,
}

/// Hints that are shown; a configuration made by a program has one for each probe.
const MAX_HINTS: usize = 20;

pub(super) fn run(args: &CheckArgs, try_probes: fn(&Settings) -> bool) -> ExitCode {
    let loaded = match args.config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if args.print {
        print(&loaded);
    }
    for hint in loaded.hints.iter().take(MAX_HINTS) {
        say!("hint: {hint}");
    }
    if loaded.hints.len() > MAX_HINTS {
        say!("and {} more hints", loaded.hints.len() - MAX_HINTS);
    }
    let probes = loaded.settings.probes().count();
    say!(
        "The configuration is right: {} releases, {probes} probes.",
        loaded.settings.releases.len()
    );
    if args.online && !try_probes(&loaded.settings) {
        return ExitCode::from(BAD_CONFIGURATION);
    }
    ExitCode::SUCCESS
}

fn print(loaded: &Loaded) {
    let wide = |of: fn(&crate::config::InForce) -> usize| {
        loaded.in_force.iter().map(of).max().unwrap_or(0).min(60)
    };
    let (paths, values) = (
        wide(|setting| setting.path.len()),
        wide(|setting| setting.value.len()),
    );
    for setting in &loaded.in_force {
        let place = loaded.place_name(&setting.place);
        say!(
            "{:<paths$} = {:<values$}  # {place}",
            setting.path,
            setting.value
        );
    }
}
