//! `[alertmanager]`: the Alertmanagers that get our alerts.

use std::time::Duration;

use url::Url;

use super::probe_http::auth;
use super::settings::AlertmanagerConfig;
use super::transport::tls;
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes};
use crate::core::alerts::Labels;

/// Alertmanagers of one configuration.
const MAX_URLS: usize = 16;

/// External labels.
const MAX_LABELS: usize = 16;

const RESEND: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Reads the table.
pub(super) fn alertmanager(mut table: ConfigTable, notes: &mut ReaderNotes) -> AlertmanagerConfig {
    let path = table.path.clone();
    let location = table.location.clone();
    let written = table.list("urls", notes).unwrap_or_default();
    let urls: Vec<Url> = written.iter().filter_map(|item| url(item, notes)).collect();
    if written.is_empty() {
        let help = "add urls = [\"http://alertmanager-operated.monitoring:9093\"]".to_owned();
        notes.complain(&path, &location, "names no Alertmanager", Some(help));
    }
    if written.len() > MAX_URLS {
        let message = format!("names {} Alertmanagers", written.len());
        let help =
            format!("write at most {MAX_URLS}; a name with several addresses is all of them");
        notes.complain(&table.path_of("urls"), &location, message, Some(help));
    }
    let settings = AlertmanagerConfig {
        urls,
        auth: auth(&mut table, notes),
        tls: table
            .take("tls")
            .map_or_else(Default::default, |item| tls(item, notes)),
        labels: table
            .take("labels")
            .map_or_else(Labels::new, |item| labels(item, notes)),
        resend: table
            .duration("resend", RESEND, notes)
            .unwrap_or(Duration::from_secs(60)),
        timeout: table
            .duration("timeout", TIMEOUT, notes)
            .unwrap_or(Duration::from_secs(10)),
        watchdog: table.switch("watchdog", notes).unwrap_or(false),
    };
    notes.defaults(
        &path,
        &[
            ("resend", &"\"1m\""),
            ("timeout", &"\"10s\""),
            ("watchdog", &"false"),
        ],
    );
    table.end(notes);
    settings
}

/// An absolute http or https URL without credentials.
pub(super) fn url(item: &ConfigValue, notes: &mut ReaderNotes) -> Option<Url> {
    let Some(text) = item.text() else {
        notes.diagnostic(item, "is no text", "write a URL in quotes");
        return None;
    };
    let help = "write it as \"http://alertmanager-operated.monitoring:9093\"";
    match Url::parse(text) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            let help = "use bearer_token_file, or username and password_file";
            let location = item.node.location.of_key();
            // Not shown: it holds a secret.
            notes.complain(
                &item.path,
                &location,
                "holds credentials",
                Some(help.into()),
            );
            None
        }
        Ok(url)
            if matches!(url.scheme(), "http" | "https")
                && url.query().is_none()
                && url.fragment().is_none() =>
        {
            notes.holds(&item.path, format!("{text:?}"), &item.node.location);
            Some(url)
        }
        Ok(_) => {
            notes.diagnostic(
                item,
                format!("{text:?} is no http or https URL of a server"),
                help,
            );
            None
        }
        Err(error) => {
            notes.diagnostic(item, format!("{text:?} is no URL: {error}"), help);
            None
        }
    }
}

/// Labels of Prometheus: classic names, texts.
pub(super) fn labels(item: ConfigValue, notes: &mut ReaderNotes) -> Labels {
    let mut labels = Labels::new();
    for (name, item) in ConfigTable::of(item, notes).rest() {
        let is_name = !name.is_empty()
            && name.bytes().enumerate().all(|(at, byte)| {
                byte.is_ascii_alphabetic() || byte == b'_' || (at > 0 && byte.is_ascii_digit())
            });
        if !is_name || name.len() > 128 {
            let help = "a label is letters, digits and _, and begins with no digit";
            notes.diagnostic(&item, format!("{name:?} is no name of a label"), help);
        } else if let Some(text) = item.text().filter(|text| text.len() <= 1024) {
            notes.holds(&item.path, format!("{text:?}"), &item.node.location);
            labels.insert(name, text.to_owned());
        } else {
            notes.diagnostic(&item, "is no label", "write a text of at most 1024 bytes");
        }
    }
    if labels.len() > MAX_LABELS {
        notes.complain(
            "labels",
            &super::source_location::SourceLocation::Default,
            format!("there are {} labels", labels.len()),
            Some(format!("write at most {MAX_LABELS}")),
        );
    }
    labels
}
