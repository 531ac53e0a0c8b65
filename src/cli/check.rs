//! `leadsman check`: shows all errors of the configuration, or the settings in force.

use std::process::ExitCode;

use clap::Args;

use super::{BAD_CONFIGURATION, ConfigArgs, print_diagnostics};
use crate::config::{Diagnostic, Loaded, NamedFile, Settings};
use crate::platform::files::named;

/// Options of `leadsman check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 when all is well, 2 for a mistake. A named file that cannot be used is a mistake. With --online also: a probe that was not good, a receiver that cannot be reached, a release that could not be rolled back, and a workload in `pods` that the release does not have.\n\n\
    Example:\n  leadsman check --overlay helm/overlays/probes.production.toml --print"
)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Show every setting in force, and where it was written
    #[arg(long)]
    print: bool,
    /// Also take one result of each probe, and look whether receivers can be reached, each release could be turned
    /// back, and its `pods` name workloads that it has
    #[arg(long)]
    online: bool,
    /// Do not look at the files that keys ending in _file name: for a machine without the cluster's Secrets, as in CI
    #[arg(long)]
    no_files: bool,
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
    let diagnostics = if args.no_files {
        Vec::new()
    } else {
        wrong_files(&loaded)
    };
    if !diagnostics.is_empty() {
        return print_diagnostics(&loaded.diagnostics(diagnostics));
    }
    for hint in loaded.hints.iter().take(MAX_HINTS) {
        say!("hint: {hint}");
    }
    if loaded.hints.len() > MAX_HINTS {
        say!("and {} more hints", loaded.hints.len() - MAX_HINTS);
    }
    let probes = loaded.settings.probes().count();
    let dependencies = match loaded.settings.dependencies.len() {
        0 => String::new(),
        1 => ", 1 dependency".to_owned(),
        many => format!(", {many} dependencies"),
    };
    say!(
        "The configuration is right: {} releases, {probes} probes{dependencies}.",
        loaded.settings.releases.len()
    );
    let files = loaded.settings.named_files.len();
    if args.no_files && files > 0 {
        if files == 1 {
            say!("Not looked at: the file that 1 key names.");
        } else {
            say!("Not looked at: the files that {files} keys name.");
        }
    }
    if args.online && !try_probes(&loaded.settings) {
        return ExitCode::from(BAD_CONFIGURATION);
    }
    ExitCode::SUCCESS
}

/// Named files that cannot be used, as mistakes of the configuration.
fn wrong_files(loaded: &Loaded) -> Vec<Diagnostic> {
    let of = |file: &NamedFile| {
        let why = named::trouble(file)?;
        Some(Diagnostic {
            path: file.key.clone(),
            message: format!("{} {why}", file.path.display()),
            help: Some(
                "mend the file or its path; --no-files leaves files out, on a machine that does not have them".into(),
            ),
            location: file.location.clone(),
            secret: false,
        })
    };
    let mut diagnostics: Vec<Diagnostic> =
        loaded.settings.named_files.iter().filter_map(of).collect();
    diagnostics.sort_by(|a, b| a.location.cmp(&b.location));
    diagnostics
}

fn print(loaded: &Loaded) {
    let wide = |of: fn(&crate::config::EffectiveSetting) -> usize| {
        loaded.in_force.iter().map(of).max().unwrap_or(0).min(60)
    };
    let (paths, values) = (
        wide(|setting| setting.path.len()),
        wide(|setting| setting.value.len()),
    );
    for setting in &loaded.in_force {
        let location = loaded.place_name(&setting.location);
        say!(
            "{:<paths$} = {:<values$}  # {location}",
            setting.path,
            setting.value
        );
    }
}
