//! Sets up log lines: text on a terminal, JSON otherwise, or as requested.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::terminal;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The levels, as they are named to people.
const LEVELS: &str = "error, warn, info, debug, trace, off";

/// Starts logging to standard error. `level` is a level, or a filter of `tracing-subscriber` as
/// `info,leadsman::probe=debug`; `normal` is what is logged where nothing is said about all targets.
///
/// # Errors
/// A text that says why `level` is not usable. Nothing is taken for a filter that silences everything by mistake.
pub(super) fn start(
    format: Option<LogFormat>,
    level: Option<&str>,
    normal: &str,
) -> Result<(), String> {
    let filter = match level.map(str::trim).filter(|level| !level.is_empty()) {
        Some(level) => filter_of(level, normal).map_err(|why| {
            format!(
                "the log level {level:?} is not valid: {why}; write one of {LEVELS}, or a filter as \
                 info,leadsman::probe=debug"
            )
        })?,
        None => normal.to_owned(),
    };
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| format!("the log level {filter:?} is not valid: {error}"))?;
    let format = format.unwrap_or(if terminal::is_log_watched() {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| terminal::LogWriter);
    // The second start in one process (tests) keeps the first; there is nothing to tell anybody.
    let _ = match format {
        LogFormat::Text => builder
            .with_ansi(terminal::has_log_colours())
            .with_target(false)
            .try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_ansi(false)
            .try_init(),
    };
    Ok(())
}

/// A filter with each level in its usual spelling. A directive for one target alone says nothing of the others, which
/// keep what is normal.
fn filter_of(text: &str, normal: &str) -> Result<String, String> {
    let mut directives = Vec::new();
    let mut says_all = false;
    for directive in split(text) {
        let directive = directive.trim();
        match directive.rsplit_once('=') {
            // The part behind the last bracket is the level, if any.
            Some((target, level)) if !level.contains(']') => {
                let known = level_of(level).ok_or_else(|| format!("{level:?} is not a level"))?;
                if target.is_empty() {
                    return Err(format!("{directive:?} names no target"));
                }
                directives.push(format!("{target}={known}"));
            }
            _ => match level_of(directive) {
                Some(known) => {
                    says_all = true;
                    directives.push(known.to_owned());
                }
                None if is_target(directive) => directives.push(directive.to_owned()),
                None => return Err(format!("{directive:?} is not a level")),
            },
        }
    }
    if !says_all {
        directives.insert(0, normal.to_owned());
    }
    let filter = directives.join(",");
    match EnvFilter::try_new(&filter) {
        Ok(_) => Ok(filter),
        Err(error) => Err(error.to_string()),
    }
}

/// Splits at commas, but not within the brackets of a span.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    text.split(|c: char| {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth <= 0
    })
    .collect()
}

/// The level of this name, as people write it.
fn level_of(text: &str) -> Option<&'static str> {
    let known = ["error", "warn", "info", "debug", "trace", "off"];
    let text = text.trim().to_ascii_lowercase();
    if text == "warning" {
        return Some("warn");
    }
    known.into_iter().find(|level| *level == text)
}

/// Whether it is a target by itself, of which everything is shown: a misspelt level is none.
fn is_target(text: &str) -> bool {
    let of_ours = text == "leadsman" || text.starts_with("leadsman::");
    of_ours || text.contains("::") || (text.contains('[') && text.ends_with(']'))
}
