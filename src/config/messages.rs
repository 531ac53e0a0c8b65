//! `[slack]` and `[webhook]`: who is told of rollouts in words.

use super::alertmanager::url;
use super::reader::{Notes, Table};
use super::request::{auth, secret};
use super::settings::{MessageForm, Receiver, Secret};
use super::way::tls;

/// Reads `[slack]`: its address is a secret.
pub(super) fn slack(mut table: Table, notes: &mut Notes) -> Option<Receiver> {
    let (path, place) = (table.path.clone(), table.place.clone());
    let address = secret(&mut table, "url", "url_file", notes);
    let receiver = common(&mut table, "slack", MessageForm::Slack, address, notes);
    table.end(notes);
    if receiver.is_none() {
        let help =
            "add url_file = \"…\", a file with the address of an incoming webhook".to_owned();
        notes.complain(&path, &place, "has no address", Some(help));
    }
    receiver
}

/// Reads `[webhook]`: its address is none, but may be in a file as well.
pub(super) fn webhook(mut table: Table, notes: &mut Notes) -> Option<Receiver> {
    let (path, place) = (table.path.clone(), table.place.clone());
    let address = if table.has("url_file") {
        secret(&mut table, "url", "url_file", notes)
    } else {
        let written = table.take("url");
        let known = written.and_then(|item| url(&item, notes));
        known.map(|url| Secret::Value(url.into()))
    };
    let signing_key = secret(&mut table, "signing_key", "signing_key_file", notes);
    let auth = auth(&mut table, notes);
    let receiver = common(&mut table, "webhook", MessageForm::Json, address, notes);
    table.end(notes);
    if receiver.is_none() && notes.mistakes.is_empty() {
        let help = "add url = \"https://…\"".to_owned();
        notes.complain(&path, &place, "has no address", Some(help));
    }
    receiver.map(|receiver| Receiver {
        auth,
        signing_key,
        ..receiver
    })
}

fn common(
    table: &mut Table,
    name: &'static str,
    form: MessageForm,
    address: Option<Secret>,
    notes: &mut Notes,
) -> Option<Receiver> {
    let kept = table.switch("kept", notes).unwrap_or(false);
    notes.defaults(&table.path.clone(), &[("kept", &"false")]);
    let tls = table
        .take("tls")
        .map_or_else(Default::default, |item| tls(item, notes));
    Some(Receiver {
        name,
        form,
        url: address?,
        auth: None,
        signing_key: None,
        tls,
        kept,
    })
}
