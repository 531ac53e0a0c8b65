//! The rendered objects of a revision, as far as Leadsman needs them.
//!
//! A manifest is YAML 1.1 as Helm reads it: `0644` is the number 420, `on` is true, and of duplicate keys the last
//! counts (`sigs.k8s.io/yaml`, which is not strict there). It comes from a chart, so it is bounded. An error names the
//! document and its source, never its text, which may contain secrets.

use serde_json::Value;

/// Documents of one manifest; a record of 1 MiB has room for some thousands.
const MAX_DOCUMENTS: usize = 10_000;

/// The deepest nesting. Schemas inside custom resource definitions go to some forty.
const MAX_DEPTH: usize = 100;

/// Values of one document, aliases counted as often as they are used.
const MAX_NODES: usize = 500_000;

/// Why a manifest cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("document {document} of the manifest ({source_file}) {why}")]
pub struct ManifestError {
    /// Its number, from 1; documents without content are not counted.
    pub document: usize,
    /// The file of the chart that it was rendered from, as Helm notes it.
    pub source_file: String,
    /// What is wrong.
    pub why: String,
}

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub struct ManifestObject {
    /// As `apps/v1`.
    pub api_version: String,
    /// As `Deployment`.
    pub kind: String,
    /// As written; without it, the object is in the release's own namespace, if its kind is namespaced.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The whole object.
    pub body: Value,
}

/// The objects of a manifest, in its order; lists are split.
///
/// # Errors
///
/// When a document is not YAML, or not an object.
pub fn objects(manifest: &str) -> Result<Vec<ManifestObject>, ManifestError> {
    let mut objects = Vec::new();
    let mut number = 0;
    for text in documents(manifest) {
        let has_content = text.lines().any(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#')
        });
        if !has_content {
            continue;
        }
        number += 1;
        let broken = |why: String| ManifestError {
            document: number,
            source_file: source_of(&text),
            why,
        };
        if number > MAX_DOCUMENTS {
            return Err(broken(format!("is more than {MAX_DOCUMENTS}")));
        }
        let value = parse(&text).map_err(broken)?;
        take(value, &mut objects).map_err(|why| broken(why.to_owned()))?;
    }
    Ok(objects)
}

/// Splits at lines that are `---`, with or without trailing blanks.
fn documents(manifest: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in manifest.lines() {
        if line
            .strip_prefix("---")
            .is_some_and(|rest| rest.trim().is_empty())
        {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    documents
}

/// Helm writes `# Source: chart/templates/file.yaml` above each document.
fn source_of(document: &str) -> String {
    let noted = document
        .lines()
        .find_map(|line| line.strip_prefix("# Source: "));
    let noted = noted.unwrap_or("its source is not noted").trim();
    noted.chars().take(200).collect()
}

fn parse(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_documents: 1,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            flow_nesting_limit: MAX_DEPTH,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES,
            max_replay_stack_depth: MAX_DEPTH,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error: serde_saphyr::Error| {
        error.location().map_or_else(
            || "is not YAML that can be read".to_owned(),
            |place| {
                format!(
                    "is not YAML that can be read, see its line {}, column {}",
                    place.line(),
                    place.column()
                )
            },
        )
    })
}

fn take(value: Value, objects: &mut Vec<ManifestObject>) -> Result<(), &'static str> {
    if value.is_null() {
        return Ok(());
    }
    let text = |pointer: &str| -> Option<String> {
        let found = value.pointer(pointer)?.as_str()?;
        (!found.is_empty()).then(|| found.to_owned())
    };
    let kind = text("/kind").ok_or("has no kind")?;
    let api_version = text("/apiVersion").ok_or("has no apiVersion")?;
    // Kubernetes takes a list apart wherever one is applied; a list of lists does not exist.
    if kind.ends_with("List")
        && let Some(Value::Array(items)) = value.get("items")
    {
        for item in items {
            if item.get("items").is_some() {
                return Err("has a list inside a list");
            }
            take(item.clone(), objects)?;
        }
        return Ok(());
    }
    // The Kubernetes client takes for a list what has `items`, whatever its kind is called.
    if value.get("items").is_some() {
        return Err("has items, and is no list");
    }
    objects.push(ManifestObject {
        name: text("/metadata/name").ok_or("has no name")?,
        namespace: text("/metadata/namespace"),
        api_version,
        kind,
        body: value,
    });
    Ok(())
}

impl ManifestObject {
    /// Whether it runs pods and replaces them when it changes.
    pub fn is_workload(&self) -> bool {
        self.api_version.starts_with("apps/")
            && matches!(
                self.kind.as_str(),
                "Deployment" | "StatefulSet" | "DaemonSet"
            )
    }

    /// Whether its old pods stop before the new ones start.
    pub fn stops_first(&self) -> bool {
        self.is_workload()
            && self
                .body
                .pointer("/spec/strategy/type")
                .and_then(Value::as_str)
                == Some("Recreate")
    }

    /// The images of its pods, sorted, each once.
    pub fn images(&self) -> Vec<&str> {
        let lists = ["initContainers", "containers"];
        let mut images: Vec<&str> = lists
            .iter()
            .filter_map(|list| {
                self.body
                    .pointer(&format!("/spec/template/spec/{list}"))?
                    .as_array()
            })
            .flatten()
            .filter_map(|container| container.get("image")?.as_str())
            .collect();
        images.sort_unstable();
        images.dedup();
        images
    }

    /// The ConfigMaps and Secrets that its pods read, each as its kind and name.
    pub fn sources(&self) -> Vec<(&'static str, &str)> {
        /// Where a name occurs: in a volume, a part of one, or a container's environment.
        const PLACES: [(&str, &str); 7] = [
            ("ConfigMap", "/configMap/name"),
            ("Secret", "/secret/secretName"),
            ("Secret", "/secret/name"),
            ("ConfigMap", "/configMapRef/name"),
            ("Secret", "/secretRef/name"),
            ("ConfigMap", "/valueFrom/configMapKeyRef/name"),
            ("Secret", "/valueFrom/secretKeyRef/name"),
        ];
        let pod = self.body.pointer("/spec/template/spec");
        let volumes = listed(pod, "/volumes");
        let parts = volumes
            .iter()
            .flat_map(|volume| listed(Some(volume), "/projected/sources"));
        let containers = ["/initContainers", "/containers"];
        let containers = containers.iter().flat_map(|place| listed(pod, place));
        let environment = containers.flat_map(|container| {
            let whole = listed(Some(container), "/envFrom");
            whole.into_iter().chain(listed(Some(container), "/env"))
        });
        let readers = volumes.iter().copied().chain(parts).chain(environment);
        let named = readers.flat_map(|reader| {
            let places = PLACES.iter();
            places.filter_map(|(kind, place)| Some((*kind, reader.pointer(place)?.as_str()?)))
        });
        named.collect()
    }

    /// The container port by its name or number.
    pub fn port(&self, wanted: &str) -> Option<u16> {
        let containers = self.body.pointer("/spec/template/spec/containers")?;
        let ports = containers
            .as_array()?
            .iter()
            .filter_map(|container| container.get("ports")?.as_array())
            .flatten();
        let number = |port: &Value| u16::try_from(port.get("containerPort")?.as_u64()?).ok();
        ports
            .filter_map(|port| Some((port.get("name").and_then(Value::as_str), number(port)?)))
            .find(|(name, number)| *name == Some(wanted) || wanted.parse() == Ok(*number))
            .map(|(_, number)| number)
    }
}

/// The items of a list in a value; empty if there is none.
fn listed<'a>(value: Option<&'a Value>, place: &str) -> Vec<&'a Value> {
    let list = value.and_then(|value| value.pointer(place)?.as_array());
    list.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
