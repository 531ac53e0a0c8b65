//! Turns the merged tree into checked settings.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::alert::alerts;
use super::alertmanager::alertmanager;
use super::combinations;
use super::dependency::{dependencies, needs, refuse_keys_of_releases, resolve};
use super::expect::LATENCY;
use super::kubernetes::kubernetes;
use super::kubernetes::lease;
use super::kubernetes::pods;
use super::messages::{slack, webhook};
use super::objective::objectives;
use super::probe_kind;
use super::request_counts::requests;
use super::rollback::controller;
use super::select;
use super::service::serve;
use super::settings::{
    DiscoveredRelease, KubernetesConfig, ModuleConfig, ProbeConfig, ProbeKind, ReleaseConfig,
    SelfCheckConfig, Settings, StateConfigMap,
};
use super::source_location::SourceLocation;
use super::target::Target;
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes};
use crate::core::analysis::MAX_ENDPOINTS;
use crate::core::rollout::Mode;
use crate::core::units::{Namespace, ProbeId, ProbeName, ReleaseName};

const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(86_400));
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(60));
const WINDOW: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));
const LATE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));

/// Built in, and said here once: what a probe has when neither it nor its release says otherwise.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_WINDOW: Duration = Duration::from_secs(300);

/// The most probes of one configuration: what a daemon of two cores can ask each second or so.
const MAX_PROBES: usize = 100_000;

/// Settings, as far as they could be read; they count only when there are no mistakes.
pub(super) fn settings(
    root: ConfigValue,
    discovered: &[DiscoveredRelease],
    notes: &mut ReaderNotes,
) -> Settings {
    let mut root = ConfigTable::of(root, notes);
    let max_in_flight = root
        .number("max_in_flight", (1, 1_000_000), notes)
        .unwrap_or(10_000);
    notes.defaults("", &[("max_in_flight", &max_in_flight)]);
    let has_cluster = root.has("kubernetes");
    let serve = serve(section(&mut root, "serve", notes), has_cluster, notes);
    let self_check = self_check(section(&mut root, "self_check", notes), notes);
    let state_table = section(&mut root, "state", notes);
    let kubernetes = root
        .has("kubernetes")
        .then(|| kubernetes(section(&mut root, "kubernetes", notes), notes));
    let (state, state_map) = state(state_table, kubernetes.as_ref(), notes);
    let lease = root.has("lease").then(|| {
        let table = section(&mut root, "lease", notes);
        lease(table, kubernetes.is_some(), state_map.is_some(), notes)
    });
    let alertmanager = root
        .has("alertmanager")
        .then(|| alertmanager(section(&mut root, "alertmanager", notes), notes));
    let mut receivers = Vec::new();
    if root.has("slack") {
        receivers.extend(slack(section(&mut root, "slack", notes), notes));
    }
    if root.has("webhook") {
        receivers.extend(webhook(section(&mut root, "webhook", notes), notes));
    }
    let declared = section(&mut root, "dependency", notes);
    let declared = dependencies(
        declared,
        self_check.control.as_deref(),
        notes,
        probe_of_no_release,
    );
    let has_modules = root.has("module");
    let modules = modules(section(&mut root, "module", notes), notes);
    let mut releases = Vec::new();
    let mut guarded = HashSet::new();
    let table = section(&mut root, "release", notes);
    let (many, single): (Vec<_>, Vec<_>) = entries(table)
        .into_iter()
        .partition(|(_, item)| select::is_one_for_many(item));
    let mut written: Vec<(String, ConfigValue, bool)> = single
        .into_iter()
        .map(|(id, item)| (id, item, false))
        .collect();
    let mut selections = Vec::new();
    for (id, item) in many {
        if kubernetes.is_none() {
            notes.diagnostic(
                &item,
                "selects releases where there is no cluster",
                "add [kubernetes], or name the release",
            );
        }
        let expanded = select::expand(&item, discovered, notes);
        selections.extend(expanded.selection);
        if expanded.releases.is_empty() {
            // Mistakes in it are found before there is a release that it is for.
            let before = notes.named_files.clone();
            release(&id, expanded.sample, kubernetes.is_some(), notes);
            // A file that is named after each release is not there for the sample.
            notes
                .named_files
                .retain(|key, _| before.contains_key(key) || select::writes(&item.node, &key.1));
        }
        for (name, item) in expanded.releases {
            written.push((format!("{id}.{name}"), item, true));
        }
    }
    for (id, item, is_selected) in written {
        let release = release(&id, item, kubernetes.is_some(), notes);
        let key = (release.0.namespace.clone(), release.0.name.clone());
        if is_selected && guarded.contains(&key) {
            // A release that is named has settings of its own.
            continue;
        }
        let is_new = guarded.insert(key);
        if !is_new {
            let message = format!(
                "{}/{} is guarded twice",
                release.0.namespace, release.0.name
            );
            notes.complain(
                &format!("release.{id}"),
                &release.1,
                message,
                Some("put all its probes into one".into()),
            );
        }
        if state.is_none() && release.0.is_guarded() && release.0.controller.mode != Mode::Off {
            notes.hint(
                &format!("release.{id}"),
                &release.1,
                "nothing survives a restart: neither the baseline, nor a watch, nor what was found bad",
                "name a directory with [state] directory = \"…\"",
            );
        }
        if !release.0.alerts.is_empty() && serve.token_file.is_none() && !serve.kubernetes_auth {
            let help = "add [serve] token_file = \"…\" and give Alertmanager the same token";
            notes.complain(
                &format!("release.{id}.alert"),
                &release.1,
                "would never hear of an alert: nobody may send any without a token",
                Some(help.to_owned()),
            );
        }
        releases.push(release.0);
    }
    let probes: usize = releases.iter().map(|release| release.probes.len()).sum();
    if probes > MAX_PROBES {
        notes.complain(
            "release",
            &SourceLocation::Default,
            format!("{probes} probes are more than {MAX_PROBES}"),
            None,
        );
    }
    let dependencies = resolve(declared, &releases, &selections, notes);
    if releases.is_empty() && selections.is_empty() && !has_modules && notes.diagnostics.is_empty()
    {
        let help =
            "add a [[release]] with a [[release.probe]], or a [[module]] for /probe".to_owned();
        notes.complain(
            "",
            &SourceLocation::Default,
            "there is nothing to probe",
            Some(help),
        );
    }
    root.end(notes);
    Settings {
        serve,
        max_in_flight: usize::try_from(max_in_flight).unwrap_or(1),
        self_check,
        dependencies,
        releases,
        selections,
        modules,
        alertmanager,
        receivers,
        kubernetes,
        lease,
        state,
        state_map,
        named_files: std::mem::take(&mut notes.named_files)
            .into_values()
            .collect(),
    }
}

/// `[state]`: what must survive a restart.
fn state(
    mut table: ConfigTable,
    kubernetes: Option<&KubernetesConfig>,
    notes: &mut ReaderNotes,
) -> (Option<PathBuf>, Option<StateConfigMap>) {
    let path = directory(&mut table, "directory", notes);
    let map = table.text("config_map", notes);
    let namespace = table.text("namespace", notes);
    if let Some((text, item)) = &namespace {
        check_name(text, item, 63, notes);
    }
    let map = map.and_then(|(name, item)| {
        check_name(&name, &item, 63, notes);
        if kubernetes.is_none() {
            notes.diagnostic(
                &item,
                "names a ConfigMap where there is no cluster",
                "add [kubernetes], or use state.directory",
            );
            return None;
        }
        let namespace = namespace.map(|(text, _)| text);
        Some(StateConfigMap { name, namespace })
    });
    table.end(notes);
    // Recordings are too large for a ConfigMap, and last as long as the pod.
    let scratch = kubernetes.filter(|_| map.is_some());
    let path = path.or_else(|| scratch.map(|kubernetes| kubernetes.scratch.join("state")));
    (path, map)
}

/// A directory; an empty text would be the one where the program happens to be started.
pub(super) fn directory(
    table: &mut ConfigTable,
    key: &'static str,
    notes: &mut ReaderNotes,
) -> Option<PathBuf> {
    let (text, item) = table.text(key, notes)?;
    if text.trim().is_empty() {
        notes.diagnostic(
            &item,
            "names no directory",
            "write its path, or leave the key out",
        );
        return None;
    }
    Some(PathBuf::from(text))
}

fn section(root: &mut ConfigTable, key: &'static str, notes: &mut ReaderNotes) -> ConfigTable {
    match root.take(key) {
        Some(item) => ConfigTable::of(item, notes),
        None => ConfigTable::empty(key.to_owned()),
    }
}

fn entries(mut table: ConfigTable) -> Vec<(String, ConfigValue)> {
    table.rest()
}

fn self_check(mut table: ConfigTable, notes: &mut ReaderNotes) -> SelfCheckConfig {
    let late_after = table
        .duration("late_after", LATE, notes)
        .unwrap_or(Duration::from_millis(500));
    let hosts_failing = table
        .number("hosts_failing", (0, 100_000), notes)
        .unwrap_or(3);
    notes.defaults(
        "self_check",
        &[
            ("late_after", &written(late_after)),
            ("hosts_failing", &hosts_failing),
        ],
    );
    let control = table.take("control");
    let control = control.and_then(|item| probe_of_no_release("control", item, notes));
    table.end(notes);
    SelfCheckConfig {
        late_after,
        hosts_failing: usize::try_from(hosts_failing).unwrap_or(3),
        control: control.map(Arc::new),
    }
}

/// A `[[dependency]]`, or the control probe.
fn probe_of_no_release(
    id: &str,
    item: ConfigValue,
    notes: &mut ReaderNotes,
) -> Option<ProbeConfig> {
    let names = ProbeNames {
        namespace: "".into(),
        release: "".into(),
        base: None,
        times: ProbeTimes::built_in(),
        analysis_interval: None,
        has_release: false,
    };
    probe(id, item, &names, notes)
}

/// What a release gives its probes.
struct ProbeNames {
    namespace: Box<str>,
    release: Box<str>,
    base: Option<Target>,
    times: ProbeTimes,
    /// Of a release whose revisions are judged.
    analysis_interval: Option<Duration>,
    /// Whether there is a release.
    has_release: bool,
}

/// How often, how long, over what span: a release says it for all its probes, a probe for itself.
struct ProbeTimes {
    interval: (Duration, SourceLocation),
    timeout: (Duration, SourceLocation),
    window: (Duration, SourceLocation),
}

impl ProbeTimes {
    fn built_in() -> Self {
        Self {
            interval: (DEFAULT_INTERVAL, SourceLocation::Default),
            timeout: (DEFAULT_TIMEOUT, SourceLocation::Default),
            window: (DEFAULT_WINDOW, SourceLocation::Default),
        }
    }

    /// What a table says, and for the rest what holds above it.
    fn read(table: &mut ConfigTable, above: &Self, notes: &mut ReaderNotes) -> Self {
        let mut one = |key, bounds, above: &(Duration, SourceLocation)| {
            let location = table.location_of(key);
            let own = table.duration(key, bounds, notes);
            if location.is_none() {
                notes.holds(&table.path_of(key), written(above.0), &above.1);
            }
            own.zip(location).unwrap_or_else(|| above.clone())
        };
        Self {
            interval: one("interval", INTERVAL, &above.interval),
            timeout: one("timeout", TIMEOUT, &above.timeout),
            window: one("window", WINDOW, &above.window),
        }
    }
}

fn release(
    id: &str,
    item: ConfigValue,
    has_cluster: bool,
    notes: &mut ReaderNotes,
) -> (ReleaseConfig, SourceLocation) {
    let mut table = ConfigTable::of(item, notes);
    let location = table.location.clone();
    table.text("id", notes);
    let name = table.text("name", notes).map_or_else(
        || id.to_owned(),
        |(text, item)| {
            check_name(&text, &item, 53, notes);
            text
        },
    );
    let namespace = if let Some((text, item)) = table.text("namespace", notes) {
        check_name(&text, &item, 63, notes);
        text
    } else {
        let help = "add namespace = \"…\", the one that Helm installs the release into".to_owned();
        notes.complain(&table.path, &location, "has no namespace", Some(help));
        String::new()
    };
    let base = table
        .text("base_url", notes)
        .and_then(|(text, item)| target(&text, &item, notes));
    let says_mode = table.has("mode") || table.has("rollback");
    let controller = controller(&mut table, notes);
    let embedded = directory(&mut table, "embedded", notes);
    let in_cluster = has_cluster && embedded.is_none() && controller.mode != Mode::Off;
    let times = ProbeTimes::read(&mut table, &ProbeTimes::built_in(), notes);
    let names = ProbeNames {
        namespace: namespace.into(),
        release: name.into(),
        base,
        times,
        analysis_interval: (embedded.is_some() || in_cluster).then(|| controller.interval()),
        has_release: true,
    };
    let mut probes = Vec::new();
    let written = section(&mut table, "probe", notes);
    for (id, item) in entries(written) {
        probes.extend(probe(&id, item, &names, notes).map(Arc::new));
    }
    if probes.is_empty() && notes.diagnostics.is_empty() {
        notes.complain(
            &table.path,
            &location,
            "has no probe",
            Some("add a [[release.probe]] below it".into()),
        );
    }
    let has_threshold = probes.iter().any(|probe| probe.latency_objective.is_some());
    let objectives = objectives(&mut table, has_threshold, notes);
    let alerts = alerts(&mut table, notes);
    let requests = requests(&mut table, notes);
    if says_mode && embedded.is_none() && !has_cluster {
        notes.hint(
            &table.path,
            &location,
            "nothing tells when a new revision appears",
            "add [kubernetes] to follow releases in a cluster; without it they are only probed",
        );
    }
    if in_cluster {
        let watch = Duration::from_secs_f64(controller.rule.analysis_s);
        let all = probes.iter().map(|probe: &Arc<ProbeConfig>| &**probe);
        combinations::of_probes(&table.path, &location, watch, all, notes);
    }
    if (embedded.is_some() || in_cluster) && probes.len() > MAX_ENDPOINTS {
        let message =
            format!("has more than {MAX_ENDPOINTS} probes, which is what a verdict takes");
        notes.complain(&table.path, &location, message, None);
    }
    table.end(notes);
    let release = ReleaseConfig {
        name: ReleaseName::new(names.release),
        namespace: Namespace::new(names.namespace),
        probes,
        controller,
        embedded,
        in_cluster,
        objectives,
        alerts,
        requests,
    };
    (release, location)
}

/// Names as Kubernetes allows them: they become labels, and parts of the names of Secrets.
pub(super) fn check_name(text: &str, item: &ConfigValue, longest: usize, notes: &mut ReaderNotes) {
    let inner = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
    };
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    if bytes.len() > longest
        || !bytes.iter().copied().all(inner)
        || !edge(bytes.first())
        || !edge(bytes.last())
    {
        let help = format!(
            "use at most {longest} small letters, digits, dashes and dots, with a letter or digit at both ends"
        );
        notes.diagnostic(
            item,
            format!("{text:?} is no name that Kubernetes allows"),
            help,
        );
    }
}

fn target(text: &str, item: &ConfigValue, notes: &mut ReaderNotes) -> Option<Target> {
    if !text.contains("://") {
        notes.diagnostic(
            item,
            format!("{text:?} names no scheme"),
            format!("write \"http://{text}\" or \"https://{text}\""),
        );
        return None;
    }
    match Target::parse(text, "http") {
        Ok(target) => Some(target),
        Err(error) => {
            // The text may hold the credentials that are complained about.
            notes.diagnostic(
                item,
                format!("the URL {error}"),
                "write it as \"https://example.com/path\" or \"tcp://host:port\"",
            );
            None
        }
    }
}

fn probe(
    id: &str,
    item: ConfigValue,
    names: &ProbeNames,
    notes: &mut ReaderNotes,
) -> Option<ProbeConfig> {
    let mut table = ConfigTable::of(item, notes);
    let location = table.location.clone();
    table.text("id", notes);
    let name = match table.text("name", notes) {
        Some((text, item)) => {
            let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if text.is_empty() || text.len() > 63 || !text.chars().all(fits) {
                notes.diagnostic(
                    &item,
                    format!("{text:?} is no name for a probe"),
                    "use at most 63 letters, digits, -, _ and .",
                );
            }
            text
        }
        None => id.to_owned(),
    };
    let asked = asked_target(&mut table, names, &location, notes);
    let times = ProbeTimes::read(&mut table, &names.times, notes);
    let (interval, timeout, window) = (times.interval.0, times.timeout.0, times.window.0);
    let latency_objective = table.duration("latency_objective", LATENCY, notes);
    let (mut aim, mut needed, mut promised) = Default::default();
    if names.has_release {
        aim = pods(&mut table, notes);
        needed = needs(&mut table, notes);
        promised = objectives(&mut table, latency_objective.is_some(), notes);
    } else {
        refuse_keys_of_releases(&mut table, notes);
    }
    if interval < timeout {
        let in_flight = timeout.as_nanos().div_ceil(interval.as_nanos().max(1)) + 1;
        let message = format!(
            "the interval {} is shorter than the timeout {}",
            humantime::format_duration(interval),
            humantime::format_duration(timeout)
        );
        let help = format!(
            "that is fine: results start on time whether or not the last came back, at most {in_flight} at once"
        );
        notes.hint(&table.path, &location, message, help);
    }
    if window < interval * 2 {
        let message = format!(
            "the window {} holds less than two results at an interval of {}",
            humantime::format_duration(window),
            humantime::format_duration(interval)
        );
        notes.hint(
            &table.path,
            &location,
            message,
            "make the window longer, to see rates and quantiles",
        );
    }
    let is_tcp = asked.as_ref().is_some_and(Target::is_tcp);
    let kind = if is_tcp {
        ProbeKind::Tcp(Box::new(probe_kind::tcp(&mut table, notes)))
    } else {
        ProbeKind::Http(Box::new(probe_kind::http(&mut table, notes)))
    };
    probe_kind::defaults(&table.path, is_tcp, notes);
    table.end(notes);
    Some(ProbeConfig {
        id: ProbeId {
            namespace: Namespace::new(names.namespace.clone()),
            release: ReleaseName::new(names.release.clone()),
            probe: ProbeName::new(name),
        },
        target: asked?,
        kind,
        interval,
        analysis_interval: names.analysis_interval,
        timeout,
        window,
        latency_objective,
        pods: aim,
        needs: needed,
        objectives: promised,
    })
}

/// A duration as one writes it.
pub(super) fn written(span: Duration) -> String {
    format!("\"{}\"", humantime::format_duration(span))
}

fn asked_target(
    table: &mut ConfigTable,
    names: &ProbeNames,
    location: &SourceLocation,
    notes: &mut ReaderNotes,
) -> Option<Target> {
    let url = table.text("url", notes);
    let path = table.text("path", notes);
    match (url, path, &names.base) {
        (Some((_, item)), Some(_), _) => {
            notes.diagnostic(
                &item,
                "stands beside path",
                "give either url, or a path below the release's base_url",
            );
            None
        }
        (Some((text, item)), None, _) => target(&text, &item, notes),
        (None, Some((text, item)), _) if !text.starts_with('/') => {
            notes.diagnostic(
                &item,
                format!("{text:?} is no path"),
                format!("write \"/{text}\""),
            );
            None
        }
        (None, Some((text, item)), Some(base)) => {
            let root = base.to_string();
            let joined = format!("{}{text}", root.trim_end_matches('/'));
            target(&joined, &item, notes)
        }
        (None, Some((_, item)), None) => {
            notes.diagnostic(
                &item,
                "has nothing to be appended to",
                "give the release a base_url, or the probe a url",
            );
            None
        }
        (None, None, _) => {
            let help = "add path = \"/…\" (below base_url) or url = \"…\"".to_owned();
            notes.complain(&table.path, location, "asks nobody", Some(help));
            None
        }
    }
}

fn modules(mut table: ConfigTable, notes: &mut ReaderNotes) -> BTreeMap<String, ModuleConfig> {
    let mut modules = BTreeMap::new();
    for (id, item) in table.rest() {
        let mut table = ConfigTable::of(item, notes);
        let name = table.text("name", notes).map_or(id, |(text, _)| text);
        let is_tcp = table
            .word("kind", &[("http", false), ("tcp", true)], notes)
            .unwrap_or(false);
        let timeout = table.duration("timeout", TIMEOUT, notes);
        let kind = if is_tcp {
            ProbeKind::Tcp(Box::new(probe_kind::tcp(&mut table, notes)))
        } else {
            ProbeKind::Http(Box::new(probe_kind::http(&mut table, notes)))
        };
        table.end(notes);
        modules.insert(
            name.clone(),
            ModuleConfig {
                name,
                kind,
                timeout,
            },
        );
    }
    // What users of blackbox_exporter expect to be there.
    let mut quiet = ReaderNotes::default();
    for (name, kind) in [
        (
            "http_2xx",
            ProbeKind::Http(Box::new(probe_kind::http(
                &mut ConfigTable::empty(String::new()),
                &mut quiet,
            ))),
        ),
        (
            "tcp_connect",
            ProbeKind::Tcp(Box::new(probe_kind::tcp(
                &mut ConfigTable::empty(String::new()),
                &mut quiet,
            ))),
        ),
    ] {
        modules
            .entry(name.to_owned())
            .or_insert_with(|| ModuleConfig {
                name: name.to_owned(),
                kind,
                timeout: None,
            });
    }
    modules
}
