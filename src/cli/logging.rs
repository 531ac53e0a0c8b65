//! Log lines: text on a terminal, JSON otherwise, or as asked for.

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

/// Starts logging to standard error. `level` is a level or a filter as `tracing-subscriber` reads it.
///
/// # Errors
/// A text that says why `level` is not usable.
pub(super) fn start(format: Option<LogFormat>, level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| {
        format!("--log-level {level:?} is not a level or filter: {error}; try info or debug")
    })?;
    let format = format.unwrap_or(if terminal::is_log_watched() {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| terminal::Log);
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
