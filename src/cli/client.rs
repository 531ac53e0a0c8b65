//! The client for the daemon's API.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::{Certificate, Client, Method, StatusCode, header};
use serde_json::Value;
use tokio::time::Instant;

use super::BAD_CONFIGURATION;
use crate::http::MAX_REASON;
use crate::platform::files::named::{MAX_FILE, MAX_SECRET};
use crate::platform::files::read_theirs;

/// No daemon can be reached, or none that acts.
pub(super) const NO_DAEMON: u8 = 3;

/// There is no such release, or what was asked for is not there.
pub(super) const UNKNOWN: u8 = 1;

/// The longest that one answer may take; longer for what a replica passes on to another one: an order, or a recording.
const PATIENCE: Duration = Duration::from_secs(10);
const LONG_PATIENCE: Duration = Duration::from_secs(30);

/// The longest that a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long to retry while no replica leads: after a clean stop another one takes over within a second or two.
const WAIT: Duration = Duration::from_secs(5);

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);

/// The largest answer that is read.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Which daemon is asked.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    /// Where the daemon listens; http:// where no scheme is named
    #[arg(
        long,
        env = "LEADSMAN_SERVER",
        default_value = "http://127.0.0.1:9616",
        value_name = "URL",
        value_parser = server_url
    )]
    pub(super) server: String,
    /// The authorities that the daemon's certificate must come from, as PEM [default: those of the system]
    #[arg(long, env = "LEADSMAN_CA_FILE", value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// The namespace of the release; needed only where several have one of that name
    #[arg(long, short, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,
}

/// The address of a daemon, without a slash at its end.
fn server_url(text: &str) -> Result<String, String> {
    let text = text.trim();
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let example = "write it as http://127.0.0.1:9616";
    let url = url::Url::parse(&whole).map_err(|error| format!("{error}; {example}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() {
        return Err(format!("it is not an http or https address; {example}"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// The number of a revision.
pub(super) fn revision(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("a revision is a whole number from 1 on, as `helm history` shows it".into()),
    }
}

/// A reason that can be written into the history.
pub(super) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("say why; it is written into the history of the release".into());
    }
    if text.len() > MAX_REASON {
        return Err(format!("it has more than {MAX_REASON} bytes"));
    }
    Ok(text.to_owned())
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RequestError {
    /// No daemon can be reached.
    Unreachable(String),
    /// A daemon answers, but no replica can do this at the moment.
    NotNow(String),
    /// The daemon says no: its status and its words.
    Refused(u16, String),
    /// There is no such release.
    Unknown(String),
    /// There are several of that name.
    Ambiguous(String),
    /// What was said on the command line cannot be used.
    Mistake(String),
}

impl RequestError {
    /// Why, in words.
    pub(super) fn why(&self) -> &str {
        match self {
            Self::Unreachable(why)
            | Self::NotNow(why)
            | Self::Refused(_, why)
            | Self::Unknown(why)
            | Self::Ambiguous(why)
            | Self::Mistake(why) => why,
        }
    }

    /// Prints it, and gives the exit code.
    pub(super) fn report(&self) -> ExitCode {
        match self {
            Self::Unreachable(why) => {
                complain!(
                    "leadsman: {why}; start one with `leadsman run`, or name another with --server"
                );
                ExitCode::from(NO_DAEMON)
            }
            Self::NotNow(why) => {
                complain!("leadsman: {why}");
                ExitCode::from(NO_DAEMON)
            }
            Self::Refused(_, why) | Self::Unknown(why) | Self::Ambiguous(why) => {
                complain!("leadsman: {why}");
                ExitCode::from(UNKNOWN)
            }
            Self::Mistake(why) => {
                complain!("leadsman: {why}");
                ExitCode::from(BAD_CONFIGURATION)
            }
        }
    }
}

/// A daemon.
pub(super) struct DaemonClient {
    client: Client,
    server: String,
    wait: Duration,
}

/// What goes with a request.
#[derive(Default)]
struct RequestParts<'a> {
    body: Option<&'a Value>,
    token: Option<&'a str>,
    /// What tells an order that is sent again from a new one.
    key: Option<&'a str>,
}

/// What was answered.
struct DaemonResponse {
    status: StatusCode,
    /// Whether it says that it may be asked again.
    may_repeat: bool,
    bytes: Vec<u8>,
}

impl DaemonClient {
    /// Nothing is asked yet.
    pub(super) fn new(args: &ServerArgs) -> Result<Self, RequestError> {
        // A provider that is installed already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if let Some(file) = &args.ca_file {
            let unusable = |why: String| {
                RequestError::Mistake(format!(
                    "--ca-file {} cannot be used: {why}",
                    file.display()
                ))
            };
            let pem = read_theirs(file, MAX_FILE).map_err(|error| unusable(error.to_string()))?;
            let authorities =
                Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
            if authorities.is_empty() {
                return Err(unusable("there is no certificate in it".into()));
            }
            builder = builder.tls_certs_only(authorities);
        }
        let client = builder
            .build()
            .map_err(|error| RequestError::Unreachable(format!("no HTTP client: {error}")))?;
        Ok(Self {
            client,
            server: args.server.clone(),
            wait: WAIT,
        })
    }

    /// The same, with another time to retry while no replica leads.
    pub(super) fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// What stands at a path.
    pub(super) async fn get(&self, path: &str) -> Result<Value, RequestError> {
        self.ask(Method::GET, path, &RequestParts::default()).await
    }

    /// Sends an order, and sends it again where its answer does not come: the key says that it is the same one.
    pub(super) async fn order(
        &self,
        path: &str,
        body: &Value,
        token: Option<&str>,
        key: &str,
    ) -> Result<Value, RequestError> {
        let began = Instant::now();
        loop {
            let sent = RequestParts {
                body: Some(body),
                token,
                key: Some(key),
            };
            let answer = self.ask(Method::POST, path, &sent).await;
            let may_pass = matches!(
                answer,
                Err(RequestError::NotNow(_) | RequestError::Unreachable(_))
            );
            if !may_pass || began.elapsed() + AGAIN >= self.wait {
                return answer;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The bytes at a path that takes a token; at most `most` of them.
    pub(super) async fn get_bytes(
        &self,
        path: &str,
        token: Option<&str>,
        most: usize,
    ) -> Result<Vec<u8>, RequestError> {
        let sent = RequestParts {
            token,
            ..RequestParts::default()
        };
        let reply = self.fetch(Method::GET, path, &sent, most).await?;
        if reply.status.is_success() {
            return Ok(reply.bytes);
        }
        Err(self.refusal(&reply))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        sent: &RequestParts<'_>,
    ) -> Result<Value, RequestError> {
        let reply = self.fetch(method, path, sent, MAX_ANSWER).await?;
        if reply.status.is_success() {
            // Whatever is there, it is no Leadsman.
            return serde_json::from_slice(&reply.bytes)
                .map_err(|_| self.no_leadsman(reply.status));
        }
        Err(self.refusal(&reply))
    }

    fn refusal(&self, reply: &DaemonResponse) -> RequestError {
        let status = reply.status;
        let Ok(problem) = serde_json::from_slice::<Value>(&reply.bytes) else {
            return self.no_leadsman(status);
        };
        let detail = problem["detail"].as_str().unwrap_or("no reason is given");
        if status == StatusCode::NOT_FOUND {
            return RequestError::Unknown(detail.to_owned());
        }
        let why = format!("{} says {status}: {detail}", self.server);
        if is_passing(status) {
            return RequestError::NotNow(why);
        }
        RequestError::Refused(status.as_u16(), why)
    }

    fn no_leadsman(&self, status: StatusCode) -> RequestError {
        RequestError::Unreachable(if is_passing(status) {
            format!("{} says {status}: no Leadsman is behind it", self.server)
        } else {
            format!("what answers at {} ({status}) is no Leadsman", self.server)
        })
    }

    /// Sends a request, and retries for a while if no replica leads and nothing was done.
    async fn fetch(
        &self,
        method: Method,
        path: &str,
        sent: &RequestParts<'_>,
        most: usize,
    ) -> Result<DaemonResponse, RequestError> {
        let began = Instant::now();
        loop {
            let reply = self.fetch_once(&method, path, sent, most).await?;
            let may_repeat = reply.may_repeat || method == Method::GET;
            let is_over = began.elapsed() + AGAIN >= self.wait;
            if !is_passing(reply.status) || !may_repeat || is_over {
                return Ok(reply);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn fetch_once(
        &self,
        method: &Method,
        path: &str,
        sent: &RequestParts<'_>,
        most: usize,
    ) -> Result<DaemonResponse, RequestError> {
        let RequestParts { body, token, key } = *sent;
        let is_kind = *method == Method::GET;
        let away = |error: reqwest::Error| {
            let is_unheard = is_kind || error.is_connect();
            // The address stands in front already.
            let why = chain(&error.without_url());
            if is_unheard {
                return RequestError::Unreachable(format!(
                    "no daemon answers at {}: {why}",
                    self.server
                ));
            }
            RequestError::NotNow(format!(
                "the answer of {} did not come ({why}), so it may have been done; `leadsman status` tells",
                self.server
            ))
        };
        let url = format!("{}{path}", self.server);
        let patience = if is_kind && token.is_none() {
            PATIENCE
        } else {
            LONG_PATIENCE
        };
        let mut request = self.client.request(method.clone(), &url).timeout(patience);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let mut response = request.send().await.map_err(away)?;
        let status = response.status();
        let may_repeat = response.headers().contains_key(header::RETRY_AFTER);
        let mut bytes = Vec::new();
        while let Some(part) = response.chunk().await.map_err(away)? {
            if bytes.len() + part.len() > most {
                let text = format!("{} answers with more than {most} bytes", self.server);
                return Err(RequestError::Refused(status.as_u16(), text));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(DaemonResponse {
            status,
            may_repeat,
            bytes,
        })
    }

    /// All releases.
    pub(super) async fn releases(&self) -> Result<Vec<Value>, RequestError> {
        let mut answer = self.get("/api/v1/releases").await?;
        match answer["releases"].take() {
            Value::Array(releases) => Ok(releases),
            _ => Err(RequestError::Unreachable(format!(
                "what answers at {} is no Leadsman",
                self.server
            ))),
        }
    }

    /// The release of that name: its namespace and what is known of it.
    pub(super) async fn release(
        &self,
        name: &str,
        namespace: Option<&str>,
    ) -> Result<(String, Value), RequestError> {
        let text = |release: &Value, key: &str| release[key].as_str().unwrap_or("").to_owned();
        let mut found: Vec<Value> = self
            .releases()
            .await?
            .into_iter()
            .filter(|release| {
                text(release, "release") == name
                    && namespace.is_none_or(|wanted| text(release, "namespace") == wanted)
            })
            .collect();
        match found.len() {
            0 => Err(RequestError::Unknown(format!(
                "{} knows no release {name}{}; `leadsman status` names those that it knows",
                self.server,
                namespace.map_or_else(String::new, |namespace| format!(" in {namespace}"))
            ))),
            1 => {
                let release = found.remove(0);
                Ok((text(&release, "namespace"), release))
            }
            _ => {
                let all: Vec<String> = found
                    .iter()
                    .map(|release| text(release, "namespace"))
                    .collect();
                Err(RequestError::Ambiguous(format!(
                    "{name} is in {}; say which with --namespace",
                    all.join(" and ")
                )))
            }
        }
    }

    /// The watches of a release that have ended, the oldest first.
    pub(super) async fn rollouts(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Vec<Value>, RequestError> {
        let path = format!("/api/v1/releases/{namespace}/{name}/rollouts");
        let mut answer = self.get(&path).await?;
        match answer["rollouts"].take() {
            Value::Array(rollouts) => Ok(rollouts),
            _ => Ok(Vec::new()),
        }
    }
}

/// Answers that a retry may change: no replica leads at the moment, or a proxy in between says so.
fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// An error and its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// A token, from a file; never from the command line, where everybody can read it.
#[derive(Debug, Clone, Args)]
pub(crate) struct TokenArgs {
    /// The file with a bearer token: that of the daemon's serve.token_file, or one that the cluster knows
    #[arg(long, env = "LEADSMAN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl TokenArgs {
    /// The token; an error in words when its file cannot be read.
    pub(super) fn token(&self) -> Result<Option<String>, String> {
        let Some(file) = &self.token_file else {
            return Ok(None);
        };
        super::leave_no_core();
        let token = read_theirs(file, MAX_SECRET)
            .map_err(|error| format!("--token-file {} cannot be read: {error}", file.display()))?;
        let token = String::from_utf8(token)
            .map_err(|_| format!("--token-file {} is not a text", file.display()))?;
        Ok(Some(token.trim().to_owned()))
    }
}
