//! A revision as Helm 3 and 4 store it: the payload of a Secret or ConfigMap.
//!
//! Layers, from the outside: base64, gzip (very old records have none), JSON. Nothing in it is trusted: every layer has
//! a bound, fields that Helm omits or writes as `null` count as empty, and an invalid record gives an error that names
//! the layer. Source of the format: helm/helm, `pkg/storage/driver` and `pkg/release`, v3.21 and v4.2.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, PAD};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::manifest::ManifestObject;
use crate::core::revision_ledger::{ContentDigest, RevisionStatus, StoredRevision};
use crate::core::units::{ReleaseName, Revision};

/// The largest payload that is decoded, in bytes; Kubernetes allows a Secret 1 MiB.
pub const MAX_PAYLOAD: usize = 2 * 1024 * 1024;

/// Maximum size of an inflated record in bytes. Gzip makes manifests about ten times smaller; a factor of a thousand is
/// an attack.
pub const MAX_INFLATED: u64 = 32 * 1024 * 1024;

/// Files of a chart's folder `crds` that are read; charts of operators have some dozens.
const MAX_CRDS: usize = 500;

/// Go ignores leftover bits at the end.
const LIKE_GO: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    PAD.with_decode_allow_trailing_bits(true),
);

const PREFIX: &str = "sh.helm.release.v1.";
const GZIP: [u8; 3] = [0x1f, 0x8b, 0x08];

/// Why a record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The object has no payload.
    #[error("the record is empty")]
    Empty,
    /// The payload is larger than [`MAX_PAYLOAD`].
    #[error("the record has {0} bytes, more than {MAX_PAYLOAD}")]
    TooLarge(usize),
    /// The outer layer.
    #[error("the record is not base64: {0}")]
    NotBase64(String),
    /// The layer below.
    #[error("the record cannot be inflated: {0}")]
    NotGzip(String),
    /// It inflates to more than [`MAX_INFLATED`].
    #[error("the record inflates to more than {MAX_INFLATED} bytes")]
    Bomb,
    /// The innermost layer.
    #[error("the record is no release of Helm: {0}")]
    NotRelease(String),
    /// The object does not have a name that Helm gives.
    #[error("{0:?} is no name of a stored revision")]
    Name(String),
    /// The object's name does not match the record.
    #[error("the record says that it is {found}, and its name that it is {expected}")]
    Lies {
        /// By the object's name.
        expected: String,
        /// By the record.
        found: String,
    },
}

/// Release and revision from the name of the Secret or ConfigMap, as `sh.helm.release.v1.web.v3`. Release names may
/// contain dots, so it is read from its end.
///
/// # Errors
///
/// When Helm would not have given this name.
pub fn name_of(object: &str) -> Result<(ReleaseName, Revision), RecordError> {
    let parts = object
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.rsplit_once(".v"));
    let Some((name, digits)) = parts else {
        return Err(RecordError::Name(object.to_owned()));
    };
    // Helm writes no sign and no leading zero.
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    match digits.parse() {
        Ok(revision) if is_plain && !name.is_empty() => {
            Ok((ReleaseName::new(name), Revision(revision)))
        }
        Ok(_) | Err(_) => Err(RecordError::Name(object.to_owned())),
    }
}

/// A stored revision.
#[derive(Debug, Clone)]
pub struct HelmRecord {
    /// The release.
    pub name: ReleaseName,
    /// The namespace that the record names; empty if none.
    pub namespace: String,
    /// Its number.
    pub revision: Revision,
    /// Helm's status; an unrecognized one is [`RevisionStatus::Unknown`].
    pub status: RevisionStatus,
    /// Helm's description, or the user's.
    pub description: String,
    /// The chart as `name-version`; empty if the record has none.
    pub chart: String,
    /// The version of what the chart installs.
    pub app_version: String,
    /// The chart's own annotations.
    pub chart_annotations: BTreeMap<String, String>,
    /// The files of the chart's folder `crds` by name, with a digest of each.
    pub crds: BTreeMap<String, ContentDigest>,
    /// The user's values as they are written, numbers of any size included.
    pub config: Option<Box<RawValue>>,
    /// The rendered objects, hooks left out: YAML documents.
    pub manifest: String,
    /// The hooks.
    pub hooks: Vec<HelmHook>,
    /// Whether Helm 4 applied it server-side.
    pub server_side: bool,
    /// Stored size in bytes.
    pub size: usize,
}

/// A hook of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelmHook {
    /// Its object's name.
    pub name: String,
    /// Its object's kind.
    pub kind: String,
    /// Its object.
    pub manifest: String,
    /// When it runs, as `pre-upgrade`.
    pub events: Vec<String>,
    /// Result of its last run: `Succeeded`, `Failed`, `Running`, `Unknown`; empty if it never ran.
    pub phase: String,
}

impl HelmHook {
    /// Whether it runs at this event.
    pub fn runs_at(&self, event: &str) -> bool {
        self.events.iter().any(|own| own == event)
    }

    /// Whether it runs only at `helm test`.
    fn is_test(&self) -> bool {
        !self.events.is_empty() && self.events.iter().all(|event| event == "test")
    }

    /// Its object without its own name.
    fn nameless(&self) -> String {
        if self.name.is_empty() {
            return self.manifest.clone();
        }
        self.manifest.replace(&self.name, "")
    }
}

/// Decodes a payload without the API's own base64.
///
/// # Errors
///
/// When it is not a valid record, or not the one that the object's name promises.
pub fn decode(object: &str, payload: &[u8]) -> Result<HelmRecord, RecordError> {
    let (name, revision) = name_of(object)?;
    let text = inflate(payload)?;
    let written: WireRecord<'_> = serde_json::from_slice(&text)
        .map_err(|error| RecordError::NotRelease(error.to_string()))?;
    let record = HelmRecord {
        size: payload.len(),
        ..HelmRecord::from(written)
    };
    if record.name != name || record.revision != revision {
        return Err(RecordError::Lies {
            expected: format!("{name} v{revision}"),
            found: format!("{} v{}", record.name, record.revision),
        });
    }
    Ok(record)
}

/// The JSON of a payload.
///
/// # Errors
/// When a layer around it cannot be read, or it is too large.
pub(crate) fn inflate(payload: &[u8]) -> Result<Vec<u8>, RecordError> {
    if payload.is_empty() {
        return Err(RecordError::Empty);
    }
    if payload.len() > MAX_PAYLOAD {
        return Err(RecordError::TooLarge(payload.len()));
    }
    let bytes = without_base64(payload)?;
    // Helm itself looks at these three bytes, and takes everything else as plain JSON.
    if !bytes.starts_with(&GZIP) {
        return Ok(bytes);
    }
    let mut inflated = Vec::new();
    MultiGzDecoder::new(bytes.as_slice())
        .take(MAX_INFLATED + 1)
        .read_to_end(&mut inflated)
        .map_err(|error| RecordError::NotGzip(error.to_string()))?;
    if inflated.len() as u64 > MAX_INFLATED {
        return Err(RecordError::Bomb);
    }
    Ok(inflated)
}

/// Decodes base64 like Go, which skips line ends.
fn without_base64(payload: &[u8]) -> Result<Vec<u8>, RecordError> {
    let is_text = |byte: &u8| !matches!(byte, b'\r' | b'\n');
    let text: Vec<u8> = payload.iter().copied().filter(is_text).collect();
    LIKE_GO
        .decode(text)
        .map_err(|error| RecordError::NotBase64(error.to_string()))
}

/// How many bytes Helm needs for an unpacked payload, valid or not. Counts without keeping them, and stops one byte
/// beyond `most`. What Helm cannot unpack counts as far as it gets.
pub(crate) fn unpacked_size(payload: &[u8], most: u64) -> u64 {
    if payload.len() > MAX_PAYLOAD {
        return most.saturating_add(1);
    }
    let Ok(bytes) = without_base64(payload) else {
        return 0;
    };
    if !bytes.starts_with(&GZIP) {
        return bytes.len() as u64;
    }
    let mut unpacked = MultiGzDecoder::new(bytes.as_slice()).take(most.saturating_add(1));
    let mut buffer = [0; 16 * 1024];
    let mut size = 0;
    while let Ok(count @ 1..) = unpacked.read(&mut buffer) {
        size += count as u64;
    }
    size
}

impl HelmRecord {
    /// Identity of its contents: SHA-256 over manifest and hooks. Two revisions with the same digest are the same
    /// software. Parts that charts render differently each time without effect are ignored: line ends, the order of
    /// hooks, hooks that only `helm test` runs (charts give their test pods random names), and the names of hooks,
    /// which often contain the revision or a random part.
    pub fn digest(&self) -> ContentDigest {
        let mut hash = Sha256::new();
        // The length in front keeps two neighbours from being taken for another pair.
        let mut feed = |text: &str| {
            let text = text.replace("\r\n", "\n");
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        };
        feed(&self.manifest);
        let hooks = self.hooks.iter().filter(|hook| !hook.is_test());
        let mut hooks: Vec<_> = hooks
            .map(|hook| (&hook.kind, &hook.events, hook.nameless()))
            .collect();
        hooks.sort();
        for (kind, events, manifest) in hooks {
            feed(kind);
            feed(&events.join(","));
            feed(&manifest);
        }
        hex(hash.finalize().as_slice())
    }

    /// Identity of contents that are rendered differently each time: SHA-256 over the chart, all images, and the
    /// values. `objects` are its objects. `None` if nothing runs.
    pub fn weak(&self, objects: &[ManifestObject]) -> Option<ContentDigest> {
        let mut images: Vec<&str> = objects.iter().flat_map(ManifestObject::images).collect();
        images.sort_unstable();
        images.dedup();
        if images.is_empty() {
            return None;
        }
        // Go writes the keys of values sorted, so that the same values are the same text.
        let values = self.config.as_deref().map_or("", RawValue::get);
        let mut hash = Sha256::new();
        for text in [self.chart.as_str(), values].into_iter().chain(images) {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        }
        Some(hex(hash.finalize().as_slice()))
    }

    /// What the choice of a rollback's target needs; without the weaker id, for which the objects must be read.
    pub fn stored(&self) -> StoredRevision {
        let is_of_rollback =
            |hook: &&HelmHook| hook.runs_at("pre-rollback") || hook.runs_at("post-rollback");
        StoredRevision {
            revision: self.revision,
            status: self.status,
            description: self.description.clone(),
            digest: Some(self.digest()),
            weak: None,
            hooks_succeeded: self
                .hooks
                .iter()
                .filter(is_of_rollback)
                .all(|hook| hook.phase == "Succeeded"),
            test_failed: self
                .hooks
                .iter()
                .any(|hook| hook.runs_at("test") && hook.phase == "Failed"),
        }
    }
}

fn hex(hash: &[u8]) -> ContentDigest {
    let mut hex = String::with_capacity(64);
    for byte in hash {
        // Writing to a text cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    ContentDigest(hex.into())
}

/// The JSON, as far as it is read. Go writes `null` for an empty list or object.
#[derive(Deserialize)]
struct WireRecord<'a> {
    name: String,
    version: u32,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    info: Option<WireInfo>,
    #[serde(default, borrow)]
    chart: Option<WireChart<'a>>,
    #[serde(default)]
    config: Option<Box<RawValue>>,
    #[serde(default)]
    manifest: Option<String>,
    #[serde(default)]
    hooks: Option<Vec<WireHook>>,
    #[serde(default)]
    apply_method: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireInfo {
    status: Option<String>,
    description: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireChart<'a> {
    metadata: Option<WireMetadata>,
    #[serde(borrow)]
    files: Option<Vec<WireFile<'a>>>,
}

/// Chart files beside the templates; their contents are not copied.
#[derive(Deserialize, Default)]
#[serde(default)]
struct WireFile<'a> {
    name: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct WireMetadata {
    name: Option<String>,
    version: Option<String>,
    app_version: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireHook {
    name: Option<String>,
    kind: Option<String>,
    manifest: Option<String>,
    events: Option<Vec<String>>,
    last_run: Option<WireLastRun>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireLastRun {
    phase: Option<String>,
}

impl From<WireRecord<'_>> for HelmRecord {
    fn from(written: WireRecord<'_>) -> Self {
        let info = written.info.unwrap_or_default();
        let WireChart { metadata, files } = written.chart.unwrap_or_default();
        let chart = metadata.unwrap_or_default();
        let status = serde_json::from_value(info.status.unwrap_or_default().into());
        Self {
            name: ReleaseName::new(written.name),
            namespace: written.namespace.unwrap_or_default(),
            revision: Revision(written.version),
            status: status.unwrap_or(RevisionStatus::Unknown),
            description: info.description.unwrap_or_default(),
            chart: match (chart.name, chart.version) {
                (Some(name), Some(version)) => format!("{name}-{version}"),
                (Some(name), None) => name,
                (None, _) => String::new(),
            },
            app_version: chart.app_version.unwrap_or_default(),
            chart_annotations: chart.annotations.unwrap_or_default(),
            crds: files
                .into_iter()
                .flatten()
                .filter_map(|file| {
                    let name = file.name.filter(|name| name.starts_with("crds/"))?;
                    let data = file.data.map_or("", RawValue::get);
                    Some((name, hex(Sha256::digest(data).as_slice())))
                })
                .take(MAX_CRDS)
                .collect(),
            // The text `null` is no values.
            config: written.config.filter(|config| config.get() != "null"),
            manifest: written.manifest.unwrap_or_default(),
            hooks: written
                .hooks
                .unwrap_or_default()
                .into_iter()
                .map(HelmHook::from)
                .collect(),
            server_side: written.apply_method.as_deref() == Some("ssa"),
            size: 0,
        }
    }
}

impl From<WireHook> for HelmHook {
    fn from(written: WireHook) -> Self {
        Self {
            name: written.name.unwrap_or_default(),
            kind: written.kind.unwrap_or_default(),
            manifest: written.manifest.unwrap_or_default(),
            events: written.events.unwrap_or_default(),
            phase: written
                .last_run
                .and_then(|run| run.phase)
                .unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
