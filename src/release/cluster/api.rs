//! Access to the API server, and its errors in words.

use std::fmt::Write as _;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use kube::config::KubeConfigOptions;
use kube::config::Kubeconfig;
use kube::{Client, Config};
use sha2::{Digest as _, Sha256};

use crate::config::settings::KubernetesConfig;
use crate::core::evidence::redacted_to;
use crate::helm::error::without_values;
use crate::kubernetes::client::{self, WriteError};

/// Maximum duration of one request. A watch has its own limit.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How to reach the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiAccess {
    /// As this pod, with the service account's token and the environment.
    InCluster,
    /// By a kubeconfig file and a context, by default its current one.
    File {
        /// The file.
        path: PathBuf,
        /// The context in it.
        context: Option<String>,
    },
}

impl ApiAccess {
    /// As the settings say.
    pub fn of(settings: &KubernetesConfig) -> Self {
        match &settings.kubeconfig {
            Some(path) => Self::File {
                path: path.clone(),
                context: settings.context.clone(),
            },
            None => Self::InCluster,
        }
    }
}

/// Why a request to the API server failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    /// It answered with an error.
    #[error("the API server says {code} {reason}: {message}")]
    Answer {
        /// HTTP status.
        code: u16,
        /// As `Forbidden`.
        reason: String,
        /// Its message.
        message: String,
        /// Seconds after which it wants to be asked again; 0 if it does not say.
        retry_after: u32,
    },
    /// No complete answer arrived.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// The request was not sent, because the API server answers others slowly.
    #[error("the API server is busy: it is slow to say what rights there are")]
    Busy,
    /// The cluster does not have this kind.
    #[error("the cluster does not have this kind")]
    NoSuchKind,
    /// Not sent, or given up: this replica is no longer the leader.
    #[error("another replica acts from now on")]
    NotOurs,
    /// The answer cannot be parsed.
    #[error("the API server's answer cannot be read: {0}")]
    Unreadable(String),
}

impl ApiError {
    /// Whether the API server answered with this status.
    pub(super) fn is(&self, status: u16) -> bool {
        matches!(self, Self::Answer { code, .. } if *code == status)
    }

    /// Whether a retry may succeed soon.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Answer { code, message, .. } => {
                *code == 429 || *code >= 500 || message.contains("etcdserver")
            }
            Self::Unreachable(_) | Self::Busy => true,
            Self::Unreadable(_) | Self::NoSuchKind | Self::NotOurs => false,
        }
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Answer {
                code: status.code,
                retry_after: status
                    .details
                    .as_ref()
                    .map_or(0, |details| details.retry_after_seconds),
                reason: status.reason,
                message: bounded(&status.message),
            },
            kube::Error::Discovery(_) => Self::NoSuchKind,
            kube::Error::SerdeError(error) => Self::Unreadable(bounded(&error.to_string())),
            other => Self::Unreachable(bounded(&chain(&other))),
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NotHeld => Self::NotOurs,
            WriteError::TimedOut(limit) => no_answer(limit),
            WriteError::Refused(error) => error.into(),
        }
    }
}

fn no_answer(limit: Duration) -> ApiError {
    ApiError::Unreachable(format!("no answer within {} s", limit.as_secs()))
}

/// An error and its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

/// Characters of the API server's text that are shown.
const MAX_TEXT: usize = 500;

/// Redacts and shortens a message: the API server quotes rejected objects whole, secrets included.
fn bounded(text: &str) -> String {
    redacted_to(&without_values(text), MAX_TEXT)
}

/// A client for the API server. Sends no request yet.
///
/// # Errors
///
/// When the kubeconfig or the pod's own files cannot be used.
pub async fn connect(access: &ApiAccess) -> Result<Client, String> {
    ApiConnector::new(access).await?.client()
}

/// Makes clients for the API server, as ourselves or as another account.
pub struct ApiConnector(Config);

impl ApiConnector {
    /// Reads how to reach the API server. Sends no request yet.
    ///
    /// # Errors
    ///
    /// When the kubeconfig or the pod's own files cannot be used.
    pub async fn new(access: &ApiAccess) -> Result<Self, String> {
        config(access).await.map(Self)
    }

    /// A name for the cluster, made from its host. Helm caches the kinds of each cluster; caches of two clusters must
    /// not mix.
    pub fn cluster(&self) -> String {
        let digest = Sha256::digest(self.0.cluster_url.to_string());
        let mut name = "cluster".to_owned();
        for byte in digest.iter().take(8) {
            // Writing to a text cannot fail.
            let _ = write!(name, "-{byte:02x}");
        }
        name
    }

    /// A client as ourselves.
    ///
    /// # Errors
    /// When certificates or credentials cannot be read.
    pub fn client(&self) -> Result<Client, String> {
        client(self.0.clone())
    }

    /// A client that impersonates a service account, and the account's name for texts. It has the rights of that
    /// account; ours only need to allow the impersonation.
    ///
    /// # Errors
    ///
    /// As [`ApiConnector::client`].
    pub fn acting_as(&self, namespace: &str, account: &str) -> Result<(Client, String), String> {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let mut config = self.0.clone();
        config.auth_info.impersonate = Some(user.clone());
        // Those that a kubeconfig may name are of somebody else.
        config.auth_info.impersonate_groups = None;
        config.auth_info.impersonate_uid = None;
        config.auth_info.impersonate_user_extra = None;
        Ok((client(config)?, user))
    }
}

async fn config(access: &ApiAccess) -> Result<Config, String> {
    let config = match access {
        ApiAccess::InCluster => Config::incluster().map_err(|error| {
            format!("the service account of this pod cannot be used: {error}; set kubernetes.kubeconfig outside a cluster")
        })?,
        ApiAccess::File { path, context } => {
            let unusable =
                |error: &dyn std::error::Error| format!("{} cannot be used: {}", path.display(), chain(error));
            let file = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
            let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| unusable(&error))?
        }
    };
    Ok(config)
}

fn client(config: Config) -> Result<Client, String> {
    client::client(config)
        .map_err(|error| format!("no client for the API server: {}", chain(&error)))
}

/// Waits for an answer, at most for [`PATIENCE`].
///
/// # Errors
///
/// The API server's error, or that it did not answer.
pub(super) async fn ask<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(_) => Err(no_answer(PATIENCE)),
    }
}
