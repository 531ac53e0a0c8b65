//! `[kubernetes]`: the cluster that the releases live in; and which pods a probe asks directly.

use std::path::PathBuf;

use super::read::directory;
use super::reader::{Notes, Table};
use super::settings::{Aim, Driver, Kubernetes};

const DRIVERS: [(&str, Driver); 2] = [("secret", Driver::Secret), ("configmap", Driver::ConfigMap)];

const DEFAULT_HELM: &str = "helm";
const DEFAULT_SCRATCH: &str = "/tmp/leadsman";

/// Reads the table; that it is there says that releases are followed in the cluster.
pub(super) fn kubernetes(mut table: Table, notes: &mut Notes) -> Kubernetes {
    let path = table.path.clone();
    let kubeconfig = directory(&mut table, "kubeconfig", notes);
    let context = table.text("context", notes);
    if let Some((_, item)) = &context
        && kubeconfig.is_none()
    {
        notes.mistake(
            item,
            "is of no use without a kubeconfig",
            "add kubeconfig = \"…\", or leave it out to be the pod's own service account",
        );
    }
    let helm = directory(&mut table, "helm", notes);
    let scratch = directory(&mut table, "scratch", notes);
    let driver = table.word("driver", &DRIVERS, notes).unwrap_or_default();
    notes.defaults(
        &path,
        &[
            ("helm", &format!("{DEFAULT_HELM:?}")),
            ("scratch", &format!("{DEFAULT_SCRATCH:?}")),
            ("driver", &format!("{:?}", driver.as_str())),
        ],
    );
    table.end(notes);
    Kubernetes {
        kubeconfig,
        context: context.map(|(text, _)| text),
        helm: helm.unwrap_or_else(|| PathBuf::from(DEFAULT_HELM)),
        scratch: scratch.unwrap_or_else(|| PathBuf::from(DEFAULT_SCRATCH)),
        driver,
    }
}

/// Reads `pods`: `[http://|https://][WORKLOAD][:PORT]`, the port by name or number.
pub(super) fn pods(table: &mut Table, notes: &mut Notes) -> Option<Aim> {
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
        notes.mistake(
            &item,
            format!("{text:?} names no pods"),
            "write the Deployment, as \"web\", with its port where there are several, as \"web:http\" or \"web:8080\"",
        );
        return None;
    }
    let some = |text: &str| (!text.is_empty()).then(|| text.into());
    Some(Aim {
        workload: some(workload),
        port: some(port),
        tls,
    })
}
