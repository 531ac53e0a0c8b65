//! `[kubernetes]`, `[lease]` and the pods that a probe reaches directly.

use std::path::PathBuf;
use std::time::Duration;

use super::alertmanager::url;
use super::settings::{HelmDriver, KubernetesConfig, LeaseConfig, LeaseTimes, PodTarget};
use super::tables::{check_name, directory, written};
use super::transport::tls;
use super::value_reader::{ConfigTable, ReaderNotes};
use super::values::size;

const DRIVERS: [(&str, HelmDriver); 2] = [
    ("secret", HelmDriver::Secret),
    ("configmap", HelmDriver::ConfigMap),
];

const DEFAULT_HELM: &str = "helm";
const DEFAULT_SCRATCH: &str = "/tmp/leadsman";

/// What helm may have of the memory, in bytes.
const DEFAULT_HELM_MEMORY: usize = 320 * MIB;
const HELM_MEMORY: (usize, usize) = (128 * MIB, 16 * 1024 * MIB);
const MIB: usize = 1024 * 1024;

/// Reads the table; that it is there says that releases are followed in the cluster.
pub(super) fn kubernetes(mut table: ConfigTable, notes: &mut ReaderNotes) -> KubernetesConfig {
    let path = table.path.clone();
    let kubeconfig = directory(&mut table, "kubeconfig", notes);
    let context = table.text("context", notes);
    if let Some((_, item)) = &context
        && kubeconfig.is_none()
    {
        notes.diagnostic(
            item,
            "is of no use without a kubeconfig",
            "add kubeconfig = \"…\", or leave it out to be the pod's own service account",
        );
    }
    let helm = directory(&mut table, "helm", notes);
    let helm_memory = table.take("helm_memory").and_then(|item| {
        let bytes = size(&item, HELM_MEMORY.1, notes)?;
        if bytes < HELM_MEMORY.0 {
            notes.diagnostic(
                &item,
                "is too little for any rollback",
                format!("give helm {} MiB or more", HELM_MEMORY.0 / MIB),
            );
        }
        Some(bytes)
    });
    let helm_memory = helm_memory.unwrap_or(DEFAULT_HELM_MEMORY);
    let scratch = directory(&mut table, "scratch", notes);
    let driver = table.word("driver", &DRIVERS, notes).unwrap_or_default();
    let own_release = table.text("own_release", notes).and_then(|(text, item)| {
        let parts = text.split_once('/');
        let parts = parts.filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
        if parts.is_none() {
            notes.diagnostic(
                &item,
                format!("{text:?} names no release"),
                "write NAMESPACE/NAME, as \"leadsman/leadsman\"",
            );
        }
        parts.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
    });
    let impersonate = table.text("impersonate", notes).map(|(text, item)| {
        check_name(&text, &item, 253, notes);
        text
    });
    notes.defaults(
        &path,
        &[
            ("helm", &format!("{DEFAULT_HELM:?}")),
            ("helm_memory", &DEFAULT_HELM_MEMORY),
            ("scratch", &format!("{DEFAULT_SCRATCH:?}")),
            ("driver", &format!("{:?}", driver.as_str())),
        ],
    );
    table.end(notes);
    KubernetesConfig {
        kubeconfig,
        context: context.map(|(text, _)| text),
        helm: helm.unwrap_or_else(|| PathBuf::from(DEFAULT_HELM)),
        helm_memory: helm_memory as u64,
        scratch: scratch.unwrap_or_else(|| PathBuf::from(DEFAULT_SCRATCH)),
        driver,
        own_release,
        impersonate,
    }
}

const LEASE_SPAN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// Reads `[lease]`. `keeps_state`: whether the state is where the next replica finds it.
pub(super) fn lease(
    mut table: ConfigTable,
    has_cluster: bool,
    keeps_state: bool,
    notes: &mut ReaderNotes,
) -> LeaseConfig {
    let (path, location) = (table.path.clone(), table.location.clone());
    let mut of = |key: &'static str, usual: u64, notes: &mut ReaderNotes| {
        let read = table.duration(key, LEASE_SPAN, notes);
        read.unwrap_or(Duration::from_secs(usual))
    };
    let times = LeaseTimes {
        renew: of("renew", 2, notes),
        deadline: of("deadline", 10, notes),
        duration: of("duration", 15, notes),
    };
    let mut wrong = |message: &str, help: &str| {
        notes.complain(&path, &location, message, Some(help.to_owned()));
    };
    if !has_cluster {
        wrong("needs a cluster", "add [kubernetes], or leave [lease] out");
    } else if !keeps_state {
        wrong(
            "would forget what the replica before it knew",
            "add config_map = \"leadsman\" to [state]",
        );
    }
    if times.renew * 2 > times.deadline
        || times.deadline + times.renew > times.duration
        || times.duration.subsec_nanos() != 0
    {
        wrong(
            "has times that do not fit together",
            "make deadline at least twice renew, and duration, in whole seconds, at least deadline and renew together",
        );
    }
    let spread = table.switch("spread", notes);
    let name = table.text("name", notes).map(|(text, item)| {
        check_name(&text, &item, 63, notes);
        text
    });
    let namespace = table.text("namespace", notes).map(|(text, item)| {
        check_name(&text, &item, 63, notes);
        text
    });
    let identity = table.text("identity", notes).map(|(text, item)| {
        if text.is_empty() || text.len() > 128 {
            notes.diagnostic(
                &item,
                "is no name",
                "write 1 to 128 characters, or leave it out",
            );
        }
        text
    });
    let address = table.take("address").and_then(|item| url(&item, notes));
    let tls = table
        .take("tls")
        .map_or_else(Default::default, |item| tls(item, notes));
    let name = name.unwrap_or_else(|| "leadsman".to_owned());
    notes.defaults(
        &path,
        &[
            ("name", &format!("{name:?}")),
            ("renew", &written(times.renew)),
            ("deadline", &written(times.deadline)),
            ("duration", &written(times.duration)),
            ("spread", &false),
        ],
    );
    table.end(notes);
    LeaseConfig {
        name,
        namespace,
        identity,
        address,
        tls,
        times,
        spread: spread.unwrap_or(false),
    }
}

/// Reads `pods`: `[http://|https://][WORKLOAD][:PORT]`, the port by name or number.
pub(super) fn pods(table: &mut ConfigTable, notes: &mut ReaderNotes) -> Option<PodTarget> {
    let (text, item) = table.text("pods", notes)?;
    let (tls, rest) = match text.split_once("://") {
        Some(("http", rest)) => (Some(false), rest),
        Some(("https", rest)) => (Some(true), rest),
        Some(_) => (None, ""),
        None => (None, text.as_str()),
    };
    let (workload, port) = rest.split_once(':').unwrap_or((rest, ""));
    let is_name = |name: &str| {
        name.len() <= 253
            && name.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)
            })
    };
    if (workload.is_empty() && port.is_empty())
        || !is_name(workload)
        || !is_name(port)
        || port == "0"
    {
        notes.diagnostic(
            &item,
            format!("{text:?} names no pods"),
            "write the Deployment, as \"web\", with its port where there are several, as \"web:http\" or \"web:8080\"",
        );
        return None;
    }
    let some = |text: &str| (!text.is_empty()).then(|| text.into());
    Some(PodTarget {
        workload: some(workload),
        port: some(port),
        tls,
    })
}
