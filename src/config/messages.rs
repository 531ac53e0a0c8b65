//! `[slack]` and `[webhook]`: receivers of messages about rollouts.

use super::alertmanager::url;
use super::probe_http::{auth, secret};
use super::settings::{MessageFormat, ReceiverConfig, Secret};
use super::transport::tls;
use super::value_reader::{ConfigTable, ReaderNotes};

/// Reads `[slack]`: its address is a secret.
pub(super) fn slack(mut table: ConfigTable, notes: &mut ReaderNotes) -> Option<ReceiverConfig> {
    let (path, location) = (table.path.clone(), table.location.clone());
    let address = secret(&mut table, "url", "url_file", notes);
    let receiver = common(&mut table, "slack", MessageFormat::Slack, address, notes);
    table.end(notes);
    if receiver.is_none() {
        let help =
            "add url_file = \"…\", a file with the address of an incoming webhook".to_owned();
        notes.complain(&path, &location, "has no address", Some(help));
    }
    receiver
}

/// Reads `[webhook]`. Its address is not secret by itself, but may be in a file as well.
pub(super) fn webhook(mut table: ConfigTable, notes: &mut ReaderNotes) -> Option<ReceiverConfig> {
    let (path, location) = (table.path.clone(), table.location.clone());
    let address = if table.has("url_file") {
        secret(&mut table, "url", "url_file", notes)
    } else {
        let written = table.take("url");
        let known = written.and_then(|item| url(&item, notes));
        known.map(|url| Secret::Value(url.into()))
    };
    let signing_key = secret(&mut table, "signing_key", "signing_key_file", notes);
    let auth = auth(&mut table, notes);
    let receiver = common(&mut table, "webhook", MessageFormat::Json, address, notes);
    table.end(notes);
    if receiver.is_none() && notes.diagnostics.is_empty() {
        let help = "add url = \"https://…\"".to_owned();
        notes.complain(&path, &location, "has no address", Some(help));
    }
    receiver.map(|receiver| ReceiverConfig {
        auth,
        signing_key,
        ..receiver
    })
}

fn common(
    table: &mut ConfigTable,
    name: &'static str,
    form: MessageFormat,
    address: Option<Secret>,
    notes: &mut ReaderNotes,
) -> Option<ReceiverConfig> {
    let kept = table.switch("passed", notes).unwrap_or(false);
    notes.defaults(&table.path.clone(), &[("passed", &"false")]);
    let tls = table
        .take("tls")
        .map_or_else(Default::default, |item| tls(item, notes));
    Some(ReceiverConfig {
        name,
        form,
        url: address?,
        auth: None,
        signing_key: None,
        tls,
        kept,
    })
}
