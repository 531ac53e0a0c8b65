//! `/-/ready`: whether traffic should come, with warnings about unusable files.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::AppState;
use crate::config::NamedFile;
use crate::platform::files::named;

/// Minimum time between two checks of the named files.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Maximum wait for the disk; then the answer uses the last check.
const PATIENCE: Duration = Duration::from_secs(1);

/// Files that the answer names; the rest is counted.
const SHOWN: usize = 20;

/// Result of the last check.
#[derive(Debug, Default)]
pub(super) struct ReadinessCache(Mutex<Option<(Instant, Vec<String>)>>);

impl ReadinessCache {
    fn last(&self) -> Option<(Instant, Vec<String>)> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    fn note(&self, found: Vec<String>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((Instant::now(), found));
    }

    /// Makes the next answer check again.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Named files that cannot be used, one line each: the key, the file and why; nothing of their contents.
pub fn troubles(files: &[NamedFile]) -> Vec<String> {
    let of = |file: &NamedFile| {
        let why = named::trouble(file)?;
        Some(format!("{}: {} {why}", file.key, file.path.display()))
    };
    files.iter().filter_map(of).collect()
}

async fn file_troubles(shared: &Arc<AppState>) -> Vec<String> {
    let last = shared.looked.last();
    if let Some((at, found)) = &last
        && at.elapsed() < LOOK_EVERY
    {
        return found.clone();
    }
    let theirs = Arc::clone(shared);
    // What takes longer than our patience is noted all the same, for the next one who asks.
    let looking = tokio::task::spawn_blocking(move || {
        let found = troubles(&theirs.serving_config().files);
        theirs.looked.note(found.clone());
        found
    });
    if let Ok(Ok(found)) = tokio::time::timeout(PATIENCE, looking).await {
        return found;
    }
    let mut found = last.map_or_else(Vec::new, |(_, found)| found);
    shared.looked.note(found.clone());
    found.push("the disk does not answer".into());
    found
}

/// 200 even with warnings that no restart or other replica would fix: otherwise the status page and the metrics that
/// show them would be unreachable.
pub(super) async fn ready(State(shared): State<Arc<AppState>>) -> Response {
    if !shared.is_ready() {
        let text = "Leadsman is starting or stopping.\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    let mut text = "Leadsman is ready.\n".to_owned();
    if let Some(why) = shared.reload_trouble() {
        text.push_str(&format!(
            "The configuration on the disk is wrong, and the one before it stays in force:\n{why}\n"
        ));
    }
    let troubles = file_troubles(&shared).await;
    if !troubles.is_empty() {
        text.push_str("Degraded: what needs these files does not work until they can be used:\n");
        for trouble in troubles.iter().take(SHOWN) {
            text.push_str(trouble);
            text.push('\n');
        }
        if troubles.len() > SHOWN {
            text.push_str(&format!("and {} more\n", troubles.len() - SHOWN));
        }
    }
    (StatusCode::OK, text).into_response()
}
