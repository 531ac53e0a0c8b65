//! The keys of a connection: addresses, TLS, proxy, redirects.

use super::layers::NodeKind;
use super::probe_http::path;
use super::settings::{ConnectConfig, IpFamily, RedirectConfig, RedirectScope, TlsConfig};
use super::source_location::SourceLocation;
use super::target::Target;
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes, unfolded};

pub(super) fn redirects(table: &mut ConfigTable, notes: &mut ReaderNotes) -> RedirectConfig {
    let bounds = (0, 20);
    let Some(item) = table.take("redirects") else {
        return RedirectConfig::default();
    };
    let inner = unfolded(item);
    if !matches!(inner.node.kind, NodeKind::Table(_)) {
        let path = inner.path.clone();
        let max = match inner.node.kind {
            NodeKind::Int(number) => Some(number),
            NodeKind::Text(ref text) if inner.node.location.is_text() => text.trim().parse().ok(),
            _ => None,
        };
        let max = max
            .and_then(|max| u8::try_from(max).ok())
            .filter(|max| i64::from(*max) <= bounds.1);
        match max {
            Some(max) => {
                notes.holds(&path, max, &inner.node.location);
                return RedirectConfig {
                    max,
                    scope: RedirectScope::default(),
                };
            }
            None => notes.diagnostic(
                &inner,
                "is no number from 0 to 20",
                "write redirects = 3, or { max = 3, scope = \"all\" }",
            ),
        }
        return RedirectConfig::default();
    }
    let mut table = ConfigTable::of(inner, notes);
    let max = table.number("max", bounds, notes).unwrap_or(10);
    let scopes = [
        ("same-host", RedirectScope::SameHost),
        ("all", RedirectScope::All),
    ];
    let scope = table.word("scope", &scopes, notes).unwrap_or_default();
    table.end(notes);
    RedirectConfig {
        max: u8::try_from(max).unwrap_or(0),
        scope,
    }
}

pub(super) fn proxy(table: &mut ConfigTable, notes: &mut ReaderNotes) -> Option<Target> {
    let (text, item) = table.text("proxy", notes)?;
    match Target::parse(&text, "http") {
        Ok(target) if !target.is_https() && !target.is_tcp() => Some(target),
        Ok(_) => {
            notes.diagnostic(&item, "is no plain http proxy", "write http://host:port");
            None
        }
        Err(error) => {
            notes.diagnostic(
                &item,
                format!("the proxy {error}"),
                "write http://host:port",
            );
            None
        }
    }
}

pub(super) fn connect(table: &mut ConfigTable, notes: &mut ReaderNotes) -> ConnectConfig {
    let location = table.location_of("ip_fallback");
    let family = table
        .word(
            "ip",
            &[("any", None), ("4", Some(true)), ("6", Some(false))],
            notes,
        )
        .flatten();
    let fallback = table.switch("ip_fallback", notes);
    let ip = match (family, fallback) {
        (Some(true), fallback) => IpFamily::V4 {
            fallback: fallback.unwrap_or(false),
        },
        (Some(false), fallback) => IpFamily::V6 {
            fallback: fallback.unwrap_or(false),
        },
        (None, fallback) => {
            if fallback.is_some() {
                let location = location.unwrap_or(SourceLocation::Default).of_key();
                let help = "add ip = \"4\" or ip = \"6\"; without, any address is used".to_owned();
                notes.complain(
                    &table.path_of("ip_fallback"),
                    &location,
                    "says nothing without ip",
                    Some(help),
                );
            }
            IpFamily::Any
        }
    };
    ConnectConfig {
        ip,
        tls: table
            .take("tls")
            .map_or_else(TlsConfig::default, |item| tls(item, notes)),
    }
}

pub(super) fn tls(item: ConfigValue, notes: &mut ReaderNotes) -> TlsConfig {
    let mut table = ConfigTable::of(item, notes);
    let certificate = path(&mut table, "cert_file", notes);
    let key = path(&mut table, "key_file", notes);
    if certificate.is_some() != key.is_some() {
        let help = "give cert_file and key_file, both or none".to_owned();
        notes.complain(
            &table.path,
            &table.location,
            "has half of a client certificate",
            Some(help),
        );
    }
    let name = table.text("server_name", notes);
    if let Some((text, item)) = &name
        && rustls::pki_types::ServerName::try_from(text.as_str()).is_err()
    {
        notes.diagnostic(
            item,
            format!("{text:?} is no name of a server"),
            "write a host name or an address, without port",
        );
    }
    let tls = TlsConfig {
        ca_file: path(&mut table, "ca_file", notes),
        client_certificate: certificate.zip(key),
        server_name: name.map(|(text, _)| text),
        insecure_skip_verify: table.switch("insecure_skip_verify", notes).unwrap_or(false),
        only_tls13: table
            .word("min_version", &[("1.2", false), ("1.3", true)], notes)
            .unwrap_or(false),
        resume: table.switch("resume", notes).unwrap_or(false),
    };
    table.end(notes);
    tls
}
