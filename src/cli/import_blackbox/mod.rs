//! `leadsman import-blackbox`: converts the modules of a blackbox.yml to ours, and lists what has no counterpart.
//!
//! Invariants:
//! - the output is TOML that our own reader accepts;
//! - nothing is lost silently: everything that is not imported unchanged is in the list, and in a comment above its
//!   module;
//! - a secret in the file is neither printed nor listed.

mod expect;
mod http;
mod module;
mod notation;
mod pattern;
mod tcp;
mod toml_text;
mod yaml;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{BAD_CONFIGURATION, terminal};
use module::ImportedModule;
use yaml::Yaml;

/// The largest file that is read, in and out: our own reader takes no larger one. The longest blackbox.yml in the wild
/// have a few thousand lines.
const FILE_LIMIT: usize = 1024 * 1024;

/// Options of `leadsman import-blackbox`.
#[derive(Debug, Args)]
#[command(
    after_help = "The modules are printed as TOML; what has no counterpart is listed on standard error.\n\
    Exit code: 0, or 2 when the file is not usable.\n\n\
    Example:\n  leadsman import-blackbox /etc/blackbox_exporter/blackbox.yml >> probes.toml"
)]
pub struct ImportArgs {
    /// The configuration of blackbox_exporter
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// What came of a blackbox.yml.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The modules, as our configuration has them.
    pub toml: String,
    /// How many modules there are in `toml`.
    pub modules: usize,
    /// What is not in `toml`, or not as it was, in the order of the file.
    pub left_out: Vec<Unsupported>,
}

/// Something that has no counterpart, or not quite the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The name of the module.
    pub module: String,
    /// The key below it, as `http.tls_config.max_version`.
    pub key: String,
    /// Why, and what to do about it.
    pub why: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.module, &self.key, &self.why].map(|part| one_line(part));
        f.write_str(&parts.join(": "))
    }
}

/// The start of a text from the file, fit for a comment and for a terminal.
fn one_line(text: &str) -> String {
    /// Longer than any name or reason that is meant.
    const MOST: usize = 300;
    let mut line = String::new();
    for c in text.chars() {
        if line.len() >= MOST {
            line.push('…');
            break;
        }
        if c.is_control() {
            line.extend(c.escape_debug());
        } else {
            line.push(c);
        }
    }
    line
}

pub(super) fn run(args: &ImportArgs) -> ExitCode {
    let imported = read(&args.file).and_then(|text| convert(&text));
    let imported = match imported {
        Ok(imported) => imported,
        Err(why) => {
            complain!("leadsman: {}: {why}", args.file.display());
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if let Err(error) = terminal::print_document(&imported.toml) {
        complain!("leadsman: cannot print the modules: {error}");
        return ExitCode::FAILURE;
    }
    for line in &imported.left_out {
        complain!("{line}");
    }
    let (modules, left_out) = (imported.modules, imported.left_out.len());
    complain!("{modules} modules imported; {left_out} settings without an equal counterpart.");
    ExitCode::SUCCESS
}

/// Reads the file within its bound. The error is what to say behind the name of the file.
fn read(path: &Path) -> Result<String, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let file = File::open(path).map_err(cannot)?;
    if file.metadata().map_err(cannot)?.is_dir() {
        return Err("is a directory; name the file in it".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() > FILE_LIMIT {
        return Err("is larger than 1 MiB; import a part of it at a time".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("is not UTF-8, from byte {at} on; save it as UTF-8")
    })
}

/// Turns the text of a blackbox.yml into our modules.
///
/// # Errors
/// Why the file is not usable at all, in words that follow its name.
pub fn convert(text: &str) -> Result<Imported, String> {
    let Yaml::Map(top) = yaml::parse(text)? else {
        return Err("is no table; a blackbox.yml has `modules:` at its top".to_owned());
    };
    let mut left_out = Vec::new();
    let mut modules = None;
    for (key, value) in top {
        match (key.as_str(), value) {
            ("modules", Yaml::Map(map)) => modules = Some(map),
            ("modules", _) => {
                return Err("has `modules` that are no table of names and modules".to_owned());
            }
            (_, _) => left_out.push(Unsupported {
                module: "(file)".to_owned(),
                key,
                why: "is not known at the top of a blackbox.yml".to_owned(),
            }),
        }
    }
    let modules = modules
        .filter(|modules| !modules.is_empty())
        .ok_or("has no `modules`, so there is nothing to import")?;

    let mut toml = String::from(HEAD);
    let mut count = 0;
    for (name, value) in modules {
        let mut module = ImportedModule::new(name);
        module.import(value);
        count += usize::from(module.is_asked());
        toml.push('\n');
        module.write(&mut toml);
        left_out.append(&mut module.left_out);
        // Aliases make much out of little, so the bound on what comes in is none on what goes out.
        if toml.len() > FILE_LIMIT {
            return Err("gives more than 1 MiB of modules; import a part of it at a time".into());
        }
    }
    Ok(Imported {
        toml,
        modules: count,
        left_out,
    })
}

const HEAD: &str = "\
# Modules for /probe?target=…&module=…, imported from a blackbox.yml.
#
# Two things are bounded here that blackbox_exporter leaves open: a body is bad when it is larger than 1 MiB, unless
# body_limit says more; and /probe asks only targets that are configured, or that serve.probe_allow lets through.
";

#[cfg(test)]
mod tests;
