//! `[release.requests]`: where users' requests are counted.

use std::time::Duration;

use super::alertmanager::url;
use super::probe_http::auth;
use super::settings::RequestCountsConfig;
use super::transport::tls;
use super::value_reader::{ConfigTable, ReaderNotes};

const INTERVAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// The longest query.
const MAX_QUERY: usize = 4096;

/// Reads the table, if there is one.
pub(super) fn requests(
    table: &mut ConfigTable,
    notes: &mut ReaderNotes,
) -> Option<RequestCountsConfig> {
    let mut table = ConfigTable::of(table.take("requests")?, notes);
    let (path, location) = (table.path.clone(), table.location.clone());
    let prometheus = table.take("prometheus");
    let prometheus = prometheus.and_then(|item| url(&item, notes));
    let mut query = |key: &'static str, notes: &mut ReaderNotes| {
        let (text, item) = table.text(key, notes)?;
        if text.contains("$interval") && text.len() <= MAX_QUERY {
            return Some(text);
        }
        notes.diagnostic(
            &item,
            "is no query over $interval",
            format!("write {key} = 'sum(increase(http_requests_total{{…}}[$interval]))'"),
        );
        None
    };
    let (errors, total) = (query("errors", notes), query("total", notes));
    let interval = table.duration("interval", INTERVAL, notes);
    let timeout = table.duration("timeout", TIMEOUT, notes);
    let auth = auth(&mut table, notes);
    let tls = table
        .take("tls")
        .map_or_else(Default::default, |item| tls(item, notes));
    notes.defaults(&path, &[("interval", &"\"1m\""), ("timeout", &"\"5s\"")]);
    table.end(notes);
    let (Some(prometheus), Some(errors), Some(total)) = (prometheus, errors, total) else {
        let help = "give prometheus, errors and total".to_owned();
        if notes.diagnostics.is_empty() {
            notes.complain(&path, &location, "is not complete", Some(help));
        }
        return None;
    };
    Some(RequestCountsConfig {
        prometheus,
        errors,
        total,
        interval: interval.unwrap_or(Duration::from_secs(60)),
        timeout: timeout.unwrap_or(Duration::from_secs(5)),
        auth,
        tls,
    })
}
