//! Tests each receiver, and Prometheus, without sending a message.

use std::time::Duration;

use reqwest::Client;
use tokio::task::JoinSet;
use url::Url;

use crate::config::settings::{
    AlertmanagerConfig, Auth, ReceiverConfig, Secret, Settings, TlsConfig,
};
use crate::notify;
use crate::platform::http_client::{authorized, cause, client, reveal};

/// Maximum wait for one answer, whatever the settings allow: a person waits at a terminal.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be said of one of them: whether it is well, and its line.
type ReceiverLine = (bool, String);

/// Tries them all; in the order of the configuration.
pub(super) async fn check(settings: &Settings) -> Vec<ReceiverLine> {
    let mut running = JoinSet::new();
    let mut number = 0;
    let mut spawn = |running: &mut JoinSet<(usize, Vec<ReceiverLine>)>, task: ReceiverCheck| {
        let place = number;
        number += 1;
        running.spawn(async move { (place, task.run().await) });
    };
    if let Some(alertmanagers) = &settings.alertmanager {
        for url in &alertmanagers.urls {
            let task = ReceiverCheck::Alertmanager(url.clone(), alertmanagers.clone());
            spawn(&mut running, task);
        }
    }
    for receiver in &settings.receivers {
        spawn(&mut running, ReceiverCheck::Receiver(receiver.clone()));
    }
    for release in &settings.releases {
        let Some(requests) = &release.requests else {
            continue;
        };
        let task = ReceiverCheck::Prometheus {
            of: format!("{}/{}", release.namespace, release.name),
            url: requests.prometheus.clone(),
            auth: requests.auth.clone(),
            tls: requests.tls.clone(),
        };
        spawn(&mut running, task);
    }
    let mut lines = Vec::new();
    while let Some(done) = running.join_next().await {
        lines.extend(done.ok());
    }
    lines.sort_by_key(|(number, _)| *number);
    lines.into_iter().flat_map(|(_, lines)| lines).collect()
}

enum ReceiverCheck {
    Alertmanager(Url, AlertmanagerConfig),
    Receiver(ReceiverConfig),
    Prometheus {
        of: String,
        url: Url,
        auth: Option<Auth>,
        tls: TlsConfig,
    },
}

impl ReceiverCheck {
    async fn run(self) -> Vec<ReceiverLine> {
        match self {
            Self::Alertmanager(url, settings) => alertmanager(&url, &settings).await,
            Self::Receiver(receiver) => {
                let name = receiver.name;
                // A message is no test: people would read it.
                let found = secrets(&receiver).map(|()| "its address and secrets can be read");
                vec![line(&format!("receiver {name}"), found)]
            }
            Self::Prometheus { of, url, auth, tls } => {
                let ready = match client(&tls, PATIENCE, None) {
                    Ok(client) => ready(&client, &url, auth.as_ref()).await,
                    Err(why) => Err(why),
                };
                let found = ready.map(|()| "is ready");
                vec![line(&format!("Prometheus of {of} {url}"), found)]
            }
        }
    }
}

/// Each address behind the name is one that is told.
async fn alertmanager(url: &Url, settings: &AlertmanagerConfig) -> Vec<ReceiverLine> {
    let what = format!("Alertmanager {url}");
    let addresses = match notify::addresses(url).await {
        Ok(addresses) => addresses,
        Err(why) => return vec![line(&what, Err(why))],
    };
    let mut asked = url.clone();
    if let Some(name) = &settings.tls.server_name {
        // Port, path and address stay as they are.
        let _ = asked.set_host(Some(name));
    }
    let mut lines = Vec::new();
    for address in addresses {
        let timeout = settings.timeout.min(PATIENCE);
        let ready = match client(&settings.tls, timeout, Some((&asked, address))) {
            Ok(client) => ready(&client, &asked, settings.auth.as_ref()).await,
            Err(why) => Err(why),
        };
        let found = ready.map(|()| "is ready");
        lines.push(line(&format!("{what} at {address}"), found));
    }
    lines
}

async fn ready(client: &Client, url: &Url, auth: Option<&Auth>) -> Result<(), String> {
    let mut url = url.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["-", "ready"]);
    }
    let answer = authorized(client.get(url), auth)?.send().await;
    let status = answer.map_err(|error| cause(&error))?.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("/-/ready answers {status}"))
    }
}

/// What is kept in files must be readable; none of it is shown.
fn secrets(receiver: &ReceiverConfig) -> Result<(), String> {
    let address = reveal(&receiver.url)?;
    // The error of the parser says nothing of the text, which may be a secret.
    Url::parse(&address).map_err(|error| format!("its address is none: {error}"))?;
    let mut all: Vec<&Secret> = receiver.signing_key.iter().collect();
    match &receiver.auth {
        Some(Auth::Bearer(token)) => all.push(token),
        Some(Auth::Basic { password, .. }) => all.push(password),
        None => {}
    }
    for secret in all {
        if reveal(secret)?.is_empty() {
            return Err("a secret is empty".to_owned());
        }
    }
    client(&receiver.tls, PATIENCE, None).map(|_| ())
}

fn line(what: &str, found: Result<&str, String>) -> ReceiverLine {
    match found {
        Ok(text) => (true, format!("good     {what} {text}")),
        Err(why) => (false, format!("bad      {what}: {why}")),
    }
}
