//! `[serve]`: the listener and its limits.

use std::net::SocketAddr;
use std::time::Duration;

use super::alertmanager::url;
use super::settings::{ServeConfig, ServeTlsConfig};
use super::tables::directory;
use super::tables::written;
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes};
use super::values::pattern;

const OFFSET: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(10));

/// `has_cluster`: whether there is a `[kubernetes]`.
pub(super) fn serve(
    mut table: ConfigTable,
    has_cluster: bool,
    notes: &mut ReaderNotes,
) -> ServeConfig {
    let default = SocketAddr::from(([0, 0, 0, 0], 9616));
    let listen = match table.text("listen", notes) {
        None => default,
        Some((text, item)) => text.parse().unwrap_or_else(|_| {
            notes.diagnostic(
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
    let kubernetes_auth = table.switch("kubernetes_auth", notes).unwrap_or(false);
    if kubernetes_auth && !has_cluster {
        notes.complain(
            &table.path_of("kubernetes_auth"),
            &table.location,
            "needs a cluster to ask",
            Some("add [kubernetes], or use serve.token_file".to_owned()),
        );
    }
    let tls = table.take("tls").and_then(|item| tls(item, notes));
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
            ("kubernetes_auth", &kubernetes_auth),
        ],
    );
    table.end(notes);
    ServeConfig {
        listen,
        max_connections,
        probe_allow,
        probe_rate: u32::try_from(rate).unwrap_or(1),
        timeout_offset,
        token_file,
        kubernetes_auth,
        tls,
        external_url,
    }
}

fn tls(item: ConfigValue, notes: &mut ReaderNotes) -> Option<ServeTlsConfig> {
    let mut table = ConfigTable::of(item, notes);
    let certificate = directory(&mut table, "cert_file", notes);
    let key = directory(&mut table, "key_file", notes);
    let client_ca_file = directory(&mut table, "client_ca_file", notes);
    let pair = certificate.zip(key);
    if pair.is_none() {
        let help = "give cert_file and key_file".to_owned();
        notes.complain(
            &table.path,
            &table.location,
            "has no whole certificate",
            Some(help),
        );
    }
    table.end(notes);
    let (cert_file, key_file) = pair?;
    Some(ServeTlsConfig {
        cert_file,
        key_file,
        client_ca_file,
    })
}
