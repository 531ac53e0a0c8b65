//! The files of an embedded release.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::core::revision_ledger::{ContentDigest, RevisionStatus, StoredRevision};
use crate::core::units::Revision;
use crate::helm::manifest;
use crate::platform::files;
use crate::release::change::RevisionWorkloads;
use crate::release::{ReleasePod, ReleaseState, WorkloadState};

/// A larger file is not valid.
const MAX_FILE: u64 = 1024 * 1024;

/// Revisions that are kept; the oldest one that is not deployed goes first, as in Helm by default.
const MAX_RECORDS: usize = 50;

/// A stored revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddedRecord {
    /// Its number.
    pub revision: Revision,
    /// Helm's status.
    pub status: RevisionStatus,
    /// Helm's description.
    pub description: String,
    /// Its contents; the app that runs the pods gives them a meaning.
    pub contents: serde_json::Value,
    /// The revision that was rolled back, if Leadsman made this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(alias = "turned_back")]
    pub rolled_back: Option<Revision>,
    /// The reason, if Leadsman made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl EmbeddedRecord {
    /// SHA-256 of the contents, whose keys are sorted.
    pub fn digest(&self) -> ContentDigest {
        let hash = Sha256::digest(self.contents.to_string());
        let mut hex = String::with_capacity(64);
        for byte in &hash {
            // Writing to a text cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        ContentDigest(hex.into())
    }

    /// As from a manifest whose templates are the record's contents.
    fn workloads(template: &ContentDigest, states: &[WorkloadState]) -> RevisionWorkloads {
        let objects = states.iter().map(|state| {
            let object = json!({
                "apiVersion": "apps/v1",
                "kind": state.kind,
                "metadata": {"name": state.name},
                "spec": {"template": {"metadata": {"labels": {"contents": template.0}}}},
            });
            manifest::objects(&object.to_string())
        });
        let objects: Vec<_> = objects.filter_map(Result::ok).flatten().collect();
        RevisionWorkloads::of_objects(&objects, &[])
    }

    fn stored(&self, digest: ContentDigest) -> StoredRevision {
        StoredRevision {
            revision: self.revision,
            status: self.status,
            description: self.description.clone(),
            digest: Some(digest),
            weak: None,
            hooks_succeeded: true,
            test_failed: false,
        }
    }
}

/// The state of the app's pods, as written by the app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EmbeddedPods {
    /// Address of the Service, as `127.0.0.1:8080`.
    pub service: Option<std::net::SocketAddr>,
    /// The revision whose rollout is complete.
    #[serde(alias = "settled")]
    pub complete: Option<Revision>,
    /// All pods.
    pub pods: Vec<ReleasePod>,
    /// Progress of the workloads; empty if unknown.
    #[serde(default)]
    pub workloads: Vec<WorkloadState>,
}

/// The files of one release.
#[derive(Debug, Clone)]
pub struct EmbeddedHistory {
    directory: PathBuf,
}

impl EmbeddedHistory {
    /// Of this directory.
    pub fn of(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// All records, ascending; empty without a directory.
    ///
    /// # Errors
    ///
    /// When the directory or a record cannot be read.
    pub fn records(&self) -> io::Result<Vec<EmbeddedRecord>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let Some(revision) = number_of(&path) else {
                continue;
            };
            let record: EmbeddedRecord = match read(&path) {
                Ok(record) => record,
                // Pruned between the list and the read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if record.revision != revision {
                return Err(io::Error::other(format!(
                    "{} says that it is revision {}",
                    path.display(),
                    record.revision
                )));
            }
            records.push(record);
        }
        records.sort_by_key(|record| record.revision);
        Ok(records)
    }

    /// The state of the pods; empty without a file.
    ///
    /// # Errors
    ///
    /// When the file exists and cannot be read.
    pub fn cluster(&self) -> io::Result<EmbeddedPods> {
        match read(&self.directory.join("pods.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(EmbeddedPods::default()),
            read => read,
        }
    }

    /// Writes the state of the pods.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write_cluster(&self, cluster: &EmbeddedPods) -> io::Result<()> {
        self.replace("pods.json", &serde_json::to_vec(cluster)?)
    }

    /// The state of the release.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn release_state(&self) -> io::Result<ReleaseState> {
        let records = self.records()?;
        let cluster = self.cluster()?;
        let newest = records.last();
        let is_deployed = newest.is_some_and(|record| record.status == RevisionStatus::Deployed);
        let rolls = newest.map(|record| record.revision) != cluster.complete;
        let ours = |record: &&EmbeddedRecord| record.rolled_back.is_some();
        let mut revisions = Vec::with_capacity(records.len());
        let mut workloads = Vec::with_capacity(records.len());
        for record in &records {
            let digest = record.digest();
            let own = EmbeddedRecord::workloads(&digest, &cluster.workloads);
            workloads.push((record.revision, Arc::new(own)));
            revisions.push(record.stored(digest));
        }
        Ok(ReleaseState {
            revisions,
            ours: records
                .iter()
                .filter(ours)
                .map(|record| record.revision)
                .collect(),
            complete: cluster.complete,
            workload_states: cluster.workloads,
            // Where nobody runs pods there is nothing to wait for.
            applied: is_deployed && (!rolls || cluster.pods.is_empty()),
            restored: false,
            stored_by: None,
            pods: cluster.pods,
            held: false,
            expected_downtime: false,
            indirect: false,
            remarks: Vec::new(),
            unreadable: Vec::new(),
            // A file is written anew with each status, so that its date says nothing.
            stored_at: None,
            workloads,
        })
    }

    /// Installs or upgrades: adds a revision with these contents, like `helm upgrade --install` without waiting.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn upgrade(&self, contents: serde_json::Value) -> io::Result<Revision> {
        let last = self.records()?.last().map_or(0, |record| record.revision.0);
        let (status, description) = match last {
            0 => (RevisionStatus::PendingInstall, "Install complete"),
            _ => (RevisionStatus::PendingUpgrade, "Upgrade complete"),
        };
        let record = EmbeddedRecord {
            revision: Revision(last + 1),
            status,
            description: description.into(),
            contents,
            rolled_back: None,
            reason: None,
        };
        self.create(&record)?;
        self.deploy(&record)?;
        Ok(record.revision)
    }

    /// Creates a record; the error is `AlreadyExists` if there is one with this number.
    pub(super) fn create(&self, record: &EmbeddedRecord) -> io::Result<()> {
        files::private_directory(&self.directory)?;
        let name = file_name(record.revision);
        let new = self.directory.join(format!("{name}.create"));
        write_whole(&new, &serde_json::to_vec(record)?)?;
        // A link, unlike a rename, fails where there is one already.
        let linked = fs::hard_link(&new, self.directory.join(name));
        fs::remove_file(&new)?;
        linked
    }

    /// Makes a record the deployed one, and supersedes the others. In this order, a crash in between leaves two
    /// deployed records, and readers take the newest; the other way round it could leave none.
    pub(super) fn deploy(&self, record: &EmbeddedRecord) -> io::Result<()> {
        let deployed = EmbeddedRecord {
            status: RevisionStatus::Deployed,
            ..record.clone()
        };
        self.replace(&file_name(record.revision), &serde_json::to_vec(&deployed)?)?;
        let mut others = self.records()?;
        others.retain(|other| other.revision < record.revision);
        let surplus = (others.len() + 1).saturating_sub(MAX_RECORDS);
        for (at, other) in others.into_iter().enumerate() {
            let name = file_name(other.revision);
            if at < surplus {
                fs::remove_file(self.directory.join(name))?;
            } else if matches!(
                other.status,
                RevisionStatus::Deployed | RevisionStatus::PendingUpgrade
            ) {
                let superseded = EmbeddedRecord {
                    status: RevisionStatus::Superseded,
                    ..other
                };
                self.replace(&name, &serde_json::to_vec(&superseded)?)?;
            }
        }
        Ok(())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        files::private_directory(&self.directory)?;
        let new = self.directory.join(format!("{name}.new"));
        write_whole(&new, bytes)?;
        fs::rename(&new, self.directory.join(name))
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = files::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!(
            "{} is larger than {MAX_FILE} bytes",
            path.display()
        )));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}

fn file_name(revision: Revision) -> String {
    format!("v{revision}.json")
}

fn number_of(path: &Path) -> Option<Revision> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_prefix('v')?.strip_suffix(".json")?;
    digits.parse().ok().map(Revision)
}
