//! `[serve]`: the listener and what it allows.

use std::net::SocketAddr;
use std::time::Duration;

use super::alertmanager::url;
use super::read::directory;
use super::read::written;
use super::reader::{Notes, Table};
use super::settings::Serve;
use super::values::pattern;

const OFFSET: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(10));

pub(super) fn serve(mut table: Table, notes: &mut Notes) -> Serve {
    let default = SocketAddr::from(([0, 0, 0, 0], 9616));
    let listen = match table.text("listen", notes) {
        None => default,
        Some((text, item)) => text.parse().unwrap_or_else(|_| {
            notes.mistake(
                &item,
                format!("{text:?} is no address with a port"),
                "write it as \"0.0.0.0:9616\" or \"[::]:9616\"",
            );
            default
        }),
    };
    let whole = |number: i64| usize::try_from(number).unwrap_or(1);
    let max_connections = table
        .number("max_connections", (1, 100_000), notes)
        .map_or(512, whole);
    let allow = table.list("probe_allow", notes).unwrap_or_default();
    let probe_allow = allow
        .iter()
        .filter_map(|item| pattern(item, notes))
        .collect();
    let rate = table
        .number("probe_rate", (1, 100_000), notes)
        .unwrap_or(1000);
    let timeout_offset = table
        .duration("timeout_offset", OFFSET, notes)
        .unwrap_or(Duration::from_millis(500));
    let token_file = directory(&mut table, "token_file", notes);
    let external_url = table
        .take("external_url")
        .and_then(|item| url(&item, notes));
    notes.defaults(
        "serve",
        &[
            ("listen", &format!("\"{listen}\"")),
            ("max_connections", &max_connections),
            ("probe_allow", &"[]"),
            ("probe_rate", &rate),
            ("timeout_offset", &written(timeout_offset)),
        ],
    );
    table.end(notes);
    Serve {
        listen,
        max_connections,
        probe_allow,
        probe_rate: u32::try_from(rate).unwrap_or(1),
        timeout_offset,
        token_file,
        external_url,
    }
}
