//! The checked settings, as the rest of the program uses them.
//!
//! The readers (`config::tables` and its neighbours) enforce the bounds that are named beside each field.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};
use url::Url;

pub use super::cluster_kind::ClusterKind;
pub use super::dependency::NeedsEntry;
use super::named_files::NamedFile;
use super::target::Target;
use crate::core::alerts::Labels;
use crate::core::analysis::Rule;
use crate::core::probe_result::expect::{Expect, Pattern};
use crate::core::rollout::Mode;
use crate::core::rollout::RolloutLimits;
use crate::core::slo::Objective;
use crate::core::units::{Namespace, ProbeId, ReleaseName};

/// All settings of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The HTTP listener.
    pub serve: ServeConfig,
    /// Maximum number of probes in flight, over all probes; 1 to 1 000 000.
    pub max_in_flight: usize,
    /// When to doubt ourselves instead of the targets.
    pub self_check: SelfCheckConfig,
    /// Things that belong to no release and that probes need, in the order of the file; at most 256.
    pub dependencies: Vec<Arc<ProbeConfig>>,
    /// The releases, in the order of the file.
    pub releases: Vec<ReleaseConfig>,
    /// Selectors of releases in namespaces.
    pub selections: Vec<ReleaseSelector>,
    /// What `/probe?module=` may name.
    pub modules: BTreeMap<String, ModuleConfig>,
    /// Where what must survive a restart is kept; nowhere unless said.
    pub state: Option<PathBuf>,
    /// ConfigMaps in which it is kept as well, for the next pod.
    pub state_map: Option<StateConfigMap>,
    /// Receivers of alerts; none by default.
    pub alertmanager: Option<AlertmanagerConfig>,
    /// Receivers of messages about rollouts: at most one Slack and one webhook.
    pub receivers: Vec<ReceiverConfig>,
    /// The cluster of the releases; without it they are probed and not analyzed.
    pub kubernetes: Option<KubernetesConfig>,
    /// The Lease by which several replicas agree on who acts; without it there is one replica.
    pub lease: Option<LeaseConfig>,
    /// The files that are named by keys ending in `_file`; each key once.
    pub named_files: Vec<NamedFile>,
}

/// `[lease]`: several replicas probe, and one acts.
#[derive(Debug, Clone, PartialEq)]
pub struct LeaseConfig {
    /// The name of the Lease.
    pub name: String,
    /// Its namespace; without it that of our own pod, or of the kubeconfig's context.
    pub namespace: Option<String>,
    /// What tells this replica from others; without it the host's name.
    pub identity: Option<String>,
    /// Where the other replicas reach this one, so that any of them can answer for the one that acts.
    pub address: Option<Url>,
    /// How they check whom they reach, where that is https.
    pub tls: TlsConfig,
    /// How often, and for how long.
    pub times: LeaseTimes,
    /// Whether each release has a Lease of its own, so that they are spread over the replicas.
    pub spread: bool,
}

/// The times of a Lease, as in client-go's leader election: renew < deadline < duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// It is renewed this often; 2 s by default.
    pub renew: Duration,
    /// A holder that could not renew it for this long stops acting; 10 s by default.
    pub deadline: Duration,
    /// Others take it when it was not renewed for this long; 15 s by default, whole seconds.
    pub duration: Duration,
}

/// `[slack]` or `[webhook]`: a receiver of messages about rollouts.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceiverConfig {
    /// `slack` or `webhook`.
    pub name: &'static str,
    /// Its message format.
    pub form: MessageFormat,
    /// Where; of Slack that is a secret.
    pub url: Secret,
    /// Credentials.
    pub auth: Option<Auth>,
    /// Signs what is sent, so that the receiver knows who it is from.
    pub signing_key: Option<Secret>,
    /// Whom to trust.
    pub tls: TlsConfig,
    /// Whether it also gets messages about revisions that passed or are inconclusive.
    pub kept: bool,
}

/// A message format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageFormat {
    /// As Slack's incoming webhooks take it.
    Slack,
    /// As JSON.
    Json,
}

/// `[alertmanager]`: the Alertmanagers, all of which get the same alerts.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertmanagerConfig {
    /// Where they are, without `/api/v2`; each address of a name is one. 1 to 16.
    pub urls: Vec<Url>,
    /// Credentials for all of them.
    pub auth: Option<Auth>,
    /// Whom to trust, and our own certificate.
    pub tls: TlsConfig,
    /// Added to each alert that has no label of that name; at most 16.
    pub labels: Labels,
    /// What fires is sent again so often; 1 s to 1 h.
    pub resend: Duration,
    /// How long a request may take; 100 ms to 60 s.
    pub timeout: Duration,
    /// Whether an alert fires all the time, so that its absence can be noticed.
    pub watchdog: bool,
}

/// `state.config_map`: the ConfigMaps that hold what must survive a restart, one for each release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateConfigMap {
    /// What their names begin with.
    pub name: String,
    /// Where they are; without it in the namespace of our own pod, or of the kubeconfig's context.
    pub namespace: Option<String>,
}

/// `select` of a release: those of a namespace whose labels are so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseSelector {
    /// The namespace.
    pub namespace: Namespace,
    /// Labels, as `helm upgrade --labels` sets them; without any, all releases match.
    pub labels: BTreeMap<String, String>,
}

impl ReleaseSelector {
    /// Whether a release is one of these.
    pub fn takes(&self, release: &DiscoveredRelease) -> bool {
        release.namespace == self.namespace
            && self
                .labels
                .iter()
                .all(|(key, value)| release.labels.get(key) == Some(value))
    }
}

/// A release that the cluster has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiscoveredRelease {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: ReleaseName,
    /// Its labels, Helm's own left out.
    pub labels: BTreeMap<String, String>,
}

/// `[kubernetes]`: how to reach the cluster, and how to roll releases back there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// A kubeconfig file; without it we are the service account of our own pod.
    pub kubeconfig: Option<PathBuf>,
    /// The context in that file, when not its current one.
    pub context: Option<String>,
    /// The helm command: a path, or a name that is looked for in `PATH`.
    pub helm: PathBuf,
    /// The memory that helm may have, in bytes.
    pub helm_memory: u64,
    /// A directory that helm may write to, for what it keeps between runs.
    pub scratch: PathBuf,
    /// Where Helm keeps its records.
    pub driver: HelmDriver,
    /// Namespace and name of the release that Leadsman itself is; a selection leaves it out.
    pub own_release: Option<(String, String)>,
    /// The service account of each release's namespace that helm acts as, in the place of our own.
    pub impersonate: Option<String>,
}

/// Where Helm keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HelmDriver {
    /// In Secrets.
    #[default]
    Secret,
    /// In ConfigMaps.
    ConfigMap,
}

impl HelmDriver {
    /// The resource, as in an API path.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::ConfigMap => "configmaps",
        }
    }

    /// As `HELM_DRIVER` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::ConfigMap => "configmap",
        }
    }
}

impl Settings {
    /// All probes of all releases, in the order of the file; the control probe is not among them.
    pub fn probes(&self) -> impl Iterator<Item = &Arc<ProbeConfig>> {
        self.releases.iter().flat_map(|release| &release.probes)
    }
}

/// `[serve]`: the HTTP listener.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeConfig {
    /// The address to listen at; by default 0.0.0.0:9616.
    pub listen: SocketAddr,
    /// The most connections at a time; one more closes the one that has been idle for longest. 1 to 100 000.
    pub max_connections: usize,
    /// Which targets `/probe` may be sent to, besides the configured ones.
    pub probe_allow: Vec<Pattern>,
    /// The most `/probe` requests a second; 1 to 100 000.
    pub probe_rate: u32,
    /// Subtracted from the scrape timeout that Prometheus announces, so that our answer arrives in time; 0 to 10 s.
    pub timeout_offset: Duration,
    /// The file with the bearer token that may change something and see evidence.
    pub token_file: Option<PathBuf>,
    /// Whether callers whom the cluster knows and lets may, too; only with [`Settings::kubernetes`].
    pub kubernetes_auth: bool,
    /// TLS of the listener; plain HTTP without.
    pub tls: Option<ServeTlsConfig>,
    /// Where people reach the status page: links in alerts begin with it. Without it the host's name and the port.
    pub external_url: Option<Url>,
}

/// `[serve.tls]`: files that are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeTlsConfig {
    /// The certificate, and those between it and the authority, as PEM.
    pub cert_file: PathBuf,
    /// Its key, as PEM.
    pub key_file: PathBuf,
    /// Certificate authorities for client certificates; without it no client certificate is requested.
    pub client_ca_file: Option<PathBuf>,
}

/// When a result is unknown because we, and not the target, are in trouble.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfCheckConfig {
    /// A probe that started or ended this much later than it should have is unknown; 50 ms to 1 min.
    pub late_after: Duration,
    /// If the targets of at least this many different hosts all fail to connect, our own network is suspect; 0 is
    /// never.
    pub hosts_failing: usize,
    /// The control probe, of a target outside all releases. While it fails, failures are unknown.
    pub control: Option<Arc<ProbeConfig>>,
}

/// One `[[release]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseConfig {
    /// The name that Helm knows.
    pub name: ReleaseName,
    /// The namespace that it lives in.
    pub namespace: Namespace,
    /// Its probes, in the order of the file; names are unique.
    pub probes: Vec<Arc<ProbeConfig>>,
    /// How its revisions are analyzed and rolled back.
    pub controller: GuardConfig,
    /// The directory with its history, if it is an embedded release; then its revisions are analyzed.
    pub embedded: Option<PathBuf>,
    /// Whether it is in the cluster of `[kubernetes]`; then its revisions are analyzed.
    pub in_cluster: bool,
    /// What is promised of all its probes together.
    pub objectives: ObjectivesConfig,
    /// Alerts that are evidence about it; at most 32.
    pub alerts: Vec<AlertRule>,
    /// Where its users' requests are counted.
    pub requests: Option<RequestCountsConfig>,
}

/// `[release.requests]`: users' requests, counted by Prometheus.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestCountsConfig {
    /// Where Prometheus is, without `/api/v1`.
    pub prometheus: Url,
    /// PromQL for failed requests; `$interval` stands for the span. At most 4096 bytes.
    pub errors: String,
    /// The same for all requests.
    pub total: String,
    /// Interval of counting during an analysis; 5 s to 5 min, at least four scrapes.
    pub interval: Duration,
    /// How long an answer may take; 100 ms to 30 s.
    pub timeout: Duration,
    /// Credentials.
    pub auth: Option<Auth>,
    /// Whom to trust.
    pub tls: TlsConfig,
}

/// `[[release.alert]]`: alerts of Alertmanager that are evidence about a release.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertRule {
    /// All of these labels must match; never empty.
    pub labels: Vec<(String, Pattern)>,
    /// What it means when one fires.
    pub weight: AlertWeight,
}

/// What an alert means that began under a new revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertWeight {
    /// It is noted.
    Note,
    /// A revision does not pass while it fires.
    #[default]
    #[serde(alias = "doubt")]
    Inconclusive,
    /// It rejects.
    #[serde(alias = "convict")]
    Reject,
}

impl ReleaseConfig {
    /// Whether its revisions are analyzed.
    pub fn is_guarded(&self) -> bool {
        self.embedded.is_some() || self.in_cluster
    }

    /// What its probes need, each once, in the order in which they first name it; at most 64.
    pub fn needs(&self) -> Vec<&NeedsEntry> {
        let mut needs = Vec::new();
        for need in self.probes.iter().flat_map(|probe| &probe.needs) {
            if !needs.contains(&need) {
                needs.push(need);
            }
        }
        needs
    }
}

/// `mode` and `[release.rollback]`: how the revisions of a release are analyzed and rolled back.
#[derive(Debug, Clone, PartialEq)]
pub struct GuardConfig {
    /// Whether, and how far.
    pub mode: Mode,
    /// The rule of the verdict; checked.
    pub rule: Rule,
    /// What an alarm of the bake does.
    pub bake: BakeAction,
    /// Rollbacks in 24 h, at most; 0 to 100.
    pub max_per_day: u32,
    /// What a rollback in a cluster may do.
    pub may: RollbackPermissions,
}

/// What an alarm of the bake does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BakeAction {
    /// A notice is sent, and the revision is not known to be good.
    #[default]
    Notify,
    /// The revision is rolled back.
    Rollback,
    /// No revision bakes: it is known to be good when it has passed its analysis.
    Off,
}

impl BakeAction {
    /// As it is written in the settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Rollback => "rollback",
            Self::Off => "off",
        }
    }
}

/// What a rollback in a cluster may do; the defaults are the careful ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollbackPermissions {
    /// Roll back a revision whose `helm upgrade` still waits for its pods.
    pub while_pending: bool,
    /// Roll back a revision whose hooks have run jobs: its migrations are compatible with the old code.
    pub after_migrations: bool,
    /// Patterns of hooks that migrate nothing, as `*-admission-*`.
    pub no_migrations: Vec<String>,
    /// Roll back a release that Flux or Argo CD keeps.
    pub against_gitops: bool,
    /// Kinds that may be deleted although data hangs on them, as `PersistentVolumeClaim`.
    pub delete: Vec<String>,
    /// Namespaces beside the release's own in which a rollback may change objects.
    pub namespaces: Vec<String>,
    /// Kinds of objects in no namespace that a rollback may change, as `ClusterRole` or `ClusterIssuer.cert-manager.io`.
    pub cluster_scoped: Vec<ClusterKind>,
    /// Delete pods of the bad revision that block their StatefulSet.
    pub unblock_statefulsets: bool,
}

impl Default for RollbackPermissions {
    fn default() -> Self {
        Self {
            while_pending: true,
            after_migrations: false,
            no_migrations: Vec::new(),
            against_gitops: false,
            delete: Vec::new(),
            namespaces: Vec::new(),
            cluster_scoped: Vec::new(),
            unblock_statefulsets: true,
        }
    }
}

impl GuardConfig {
    /// The limits for the life of a revision.
    pub fn limits(&self) -> RolloutLimits {
        RolloutLimits {
            mode: self.mode,
            max_per_day: self.max_per_day,
            watch: Duration::from_secs_f64(self.rule.longest_s()),
            settle_cap: Duration::from_secs_f64(self.rule.settle_unknown_s),
        }
    }

    /// Interval of probes during an analysis.
    pub fn interval(&self) -> Duration {
        Duration::from_secs_f64(self.rule.interval_s)
    }
}

/// One `[[release.probe]]` or `[[dependency]]`: a request, its target, and its interval.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeConfig {
    /// Namespace, release and name; those of a dependency are empty.
    pub id: ProbeId,
    /// The target.
    pub target: Target,
    /// How, and what counts as a good answer.
    pub kind: ProbeKind,
    /// From one due time to the next; 100 ms to 1 day.
    pub interval: Duration,
    /// The interval during an analysis of its release, or of one that needs it; `None` without analyses.
    pub analysis_interval: Option<Duration>,
    /// Timeout of one probe; 1 ms to 60 s.
    pub timeout: Duration,
    /// The span of the rolling window; 10 s to 1 h.
    pub window: Duration,
    /// The latency that is promised; an edge of the histogram. 1 ms to 60 s.
    pub latency_objective: Option<Duration>,
    /// Pods that are also probed directly, during an analysis.
    pub pods: Option<PodTarget>,
    /// What its answers hang on: while one of these fails, its failures are unknown.
    pub needs: Vec<NeedsEntry>,
    /// What is promised of it alone.
    pub objectives: ObjectivesConfig,
}

/// `objective`: what is promised.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObjectivesConfig {
    /// The share of successes.
    pub availability: Option<Objective>,
    /// The share of results within the probe's `latency_objective`.
    pub latency: Option<Objective>,
}

/// `pods`: which pods of a release a probe asks directly, and at which port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodTarget {
    /// The Deployment, StatefulSet or DaemonSet; without it the only one with that port.
    pub workload: Option<Box<str>>,
    /// The container port by name or number; without it the pod's first one.
    pub port: Option<Box<str>>,
    /// Whether the pods speak TLS; without it as the port's name and number suggest.
    pub tls: Option<bool>,
}

impl ProbeConfig {
    /// The shorter of both intervals.
    pub fn shortest_interval(&self) -> Duration {
        let watched = self.analysis_interval.unwrap_or(self.interval);
        self.interval.min(watched)
    }

    /// Maximum number of this probe in flight: as many as can be due within one timeout, and one more, so that a target
    /// that hangs costs no slot.
    pub fn max_in_flight(&self) -> u32 {
        let interval = self.shortest_interval();
        if interval > self.timeout {
            return 1;
        }
        let slots = self.timeout.as_nanos().div_ceil(interval.as_nanos().max(1));
        u32::try_from(slots).unwrap_or(u32::MAX - 1) + 1
    }
}

/// One `[[module]]`: a request without a target, for `/probe?target=…&module=…`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleConfig {
    /// The name that the request gives.
    pub name: String,
    /// How to ask, and what counts as a good answer.
    pub kind: ProbeKind,
    /// The timeout; the scrape timeout may shorten it. `None`: the scrape timeout alone.
    pub timeout: Option<Duration>,
}

/// How to ask.
#[derive(Debug, Clone, PartialEq)]
pub enum ProbeKind {
    /// One HTTP request, with the redirects that it is allowed to follow.
    Http(Box<HttpProbeConfig>),
    /// A TCP connection, and what is said on it.
    Tcp(Box<TcpProbeConfig>),
}

impl ProbeKind {
    /// What the answer must be like.
    pub fn expect(&self) -> Option<&Expect> {
        match self {
            Self::Http(http) => Some(&http.expect),
            Self::Tcp(_) => None,
        }
    }
}

/// An HTTP request and what is expected of its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpProbeConfig {
    /// GET unless said otherwise.
    pub method: Method,
    /// Sent as they are, in this order; `Host` is in `host`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Overrides the authority that the target sees.
    pub host: Option<String>,
    /// The request's body; at most 1 MiB.
    pub body: RequestBody,
    /// Credentials for the target itself.
    pub auth: Option<Auth>,
    /// Whether to follow redirects, and how far.
    pub redirects: RedirectConfig,
    /// Which versions of HTTP to offer.
    pub http: HttpVersions,
    /// Connection and TLS.
    pub connect: ConnectConfig,
    /// A new connection for each probe, or kept ones.
    pub connection: ConnectionReuse,
    /// `http://host:port` of a proxy; none unless asked for, and never from the environment.
    pub proxy: Option<Target>,
    /// Do not resolve the target ourselves when a proxy does.
    pub proxy_resolves: bool,
    /// The most bytes read of a body, on the wire and unpacked; 0 to 64 MiB, by default 1 MiB.
    pub body_limit: usize,
    /// The content coding to unpack, if the target uses it.
    pub compression: Option<Compression>,
    /// What counts as a good answer.
    pub expect: Expect,
}

/// Where a request's body comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RequestBody {
    /// No body at all.
    #[default]
    None,
    /// These bytes.
    Inline(bytes::Bytes),
    /// The content of this file, re-read when it changes.
    File(PathBuf),
}

/// A TCP dialogue.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpProbeConfig {
    /// Steps after the connection (and TLS, where `tls`) stands; at most 64.
    pub dialogue: Vec<TcpStep>,
    /// Whether to start with TLS.
    pub tls: bool,
    /// Connection and TLS.
    pub connect: ConnectConfig,
    /// The longest answer that is counted as good.
    pub max_latency: Option<Duration>,
    /// How long the certificate must at least remain valid.
    pub certificate_valid_for: Option<Duration>,
}

/// One step of a TCP dialogue.
#[derive(Debug, Clone)]
pub enum TcpStep {
    /// Wait for a line that matches; lines are at most 64 KiB. Groups may be named in later sends as `${1}` or `${name}`.
    Expect(regex::bytes::Regex),
    /// Send this text as it stands.
    Send(String),
    /// Turn to TLS here, as after STARTTLS.
    StartTls,
}

impl PartialEq for TcpStep {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Expect(a), Self::Expect(b)) => a.as_str() == b.as_str(),
            (Self::Send(a), Self::Send(b)) => a == b,
            (Self::StartTls, Self::StartTls) => true,
            (Self::Expect(_) | Self::Send(_) | Self::StartTls, _) => false,
        }
    }
}

/// How to reach the target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectConfig {
    /// Which addresses of a name to use.
    pub ip: IpFamily,
    /// TLS settings; without effect on a plain target.
    pub tls: TlsConfig,
}

/// Which addresses of a name to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IpFamily {
    /// The system's order; the next address is tried when one refuses.
    #[default]
    Any,
    /// The first IPv4 address; with `fallback`, the first IPv6 address if there is none.
    V4 {
        /// Whether the other family will do.
        fallback: bool,
    },
    /// The first IPv6 address; with `fallback`, the first IPv4 address if there is none.
    V6 {
        /// Whether the other family will do.
        fallback: bool,
    },
}

/// TLS settings. Probes with equal settings share one client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TlsConfig {
    /// PEM file of the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files of our own certificate and its key; both or none.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Overrides the name that is sent (SNI) and verified.
    pub server_name: Option<String>,
    /// Accept any certificate.
    pub insecure_skip_verify: bool,
    /// TLS 1.3 only.
    pub only_tls13: bool,
    /// Resume sessions. Off by default: a resumed session does not show the certificate of today.
    pub resume: bool,
}

/// Which versions of HTTP a request offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HttpVersions {
    /// HTTP/2 or HTTP/1.1 by ALPN on TLS, HTTP/1.1 on plain connections.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; on plain connections with prior knowledge.
    Http2,
}

/// Whether a probe opens a connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConnectionReuse {
    /// Each probe exercises resolve, connect and TLS.
    #[default]
    New,
    /// The connection of an earlier probe is reused.
    KeepAlive,
}

/// How redirects are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RedirectConfig {
    /// Maximum number of redirects; 0 to 20. With 0 the 3xx answer itself is checked.
    pub max: u8,
    /// Where they may lead.
    pub scope: RedirectScope,
}

/// Where a redirect may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RedirectScope {
    /// Only to the original host, on any port and scheme.
    #[default]
    SameHost,
    /// Anywhere. Credentials do not go along to another host.
    All,
}

/// A content coding that a probe unpacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip
    Gzip,
    /// zlib, as HTTP means "deflate"
    Deflate,
    /// brotli
    Brotli,
}

/// Credentials for a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// RFC 7617.
    Basic {
        /// The user name; not treated as a secret.
        username: String,
        /// The password.
        password: Secret,
    },
    /// RFC 6750.
    Bearer(Secret),
}

/// A secret, or where to read it. It is never printed: `Debug` shows where it comes from only.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// Came from the environment.
    Value(String),
    /// Is in this file, which is re-read when it changes; white space at its end is not part of it.
    File(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("<secret from the environment>"),
            Self::File(path) => write!(f, "<secret in {}>", path.display()),
        }
    }
}
