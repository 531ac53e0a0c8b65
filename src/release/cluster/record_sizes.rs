//! Whether helm can read the records of a release within its memory limit.
//!
//! Helm reads every record of a release whole, also those without a role in the rollback. A record of some hundred
//! kilobytes can unpack to some hundred megabytes. So each is unpacked here first, without keeping it: once for each
//! version of its object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use super::ClusterEngine;
use super::api::ApiError;
use super::checks::PreflightFailure;
use super::records::UnpackedSize;
use crate::helm::record::MAX_INFLATED;

/// Memory that helm needs before it reads any record, in bytes. Measured with Helm 3.21 and 4.3: 90 MB.
const BEFORE: u64 = 96 * 1024 * 1024;

/// Memory per byte of unpacked records. Measured: 2.6 to 3.5.
const FOR_EACH: u64 = 4;

/// Maximum total of a release's unpacked records for this memory limit, in bytes.
const fn most(memory: u64) -> u64 {
    memory.saturating_sub(BEFORE) / FOR_EACH
}

/// Object name → version and unpacked size.
pub(super) type RecordSizes = BTreeMap<Box<str>, (Box<str>, UnpackedSize)>;

impl ClusterEngine {
    /// Why helm must not start: one record is too large, or all of them together.
    pub(super) async fn too_large_for_helm(&self) -> Result<Option<PreflightFailure>, ApiError> {
        let stored = self.records.read_by_helm(&self.release).await?;
        let sizes = || self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let names: BTreeSet<&str> = stored.iter().map(|(object, _)| &**object).collect();
        sizes().retain(|object, _| names.contains(&**object));
        for (object, version) in &stored {
            if sizes()
                .get(object)
                .is_some_and(|(known, _)| known == version)
            {
                continue;
            }
            if let Some((version, size)) = self.records.unpacked_size(object, MAX_INFLATED).await? {
                sizes().insert(object.clone(), (version, size));
            }
        }
        let text = too_large(&sizes(), self.policy.helm_memory, &self.remedy());
        Ok(text.map(|text| PreflightFailure {
            reason: "too_large",
            text,
        }))
    }

    fn remedy(&self) -> impl Fn(&str) -> String {
        let kind = match self.cache.driver() {
            super::HelmDriver::Secret => "secret",
            super::HelmDriver::ConfigMap => "configmap",
        };
        let namespace = self.cache.namespace().clone();
        move |object| format!("kubectl delete {kind} {object} --namespace {namespace}")
    }
}

/// The text for one record that is too large, or for all of them.
fn too_large(sizes: &RecordSizes, memory: u64, remedy: &dyn Fn(&str) -> String) -> Option<String> {
    let largest = sizes.iter().max_by_key(|(_, (_, record))| record.size);
    if let Some((object, (_, record))) = largest
        && record.size > MAX_INFLATED
    {
        return Some(format!(
            "the record {object} has {} bytes and unpacks to more than {MAX_INFLATED}, and helm would read it whole, as it reads every record of a release; if nobody needs it: {}",
            record.stored,
            remedy(object)
        ));
    }
    let all: u64 = sizes.values().map(|(_, record)| record.size).sum();
    let most = most(memory);
    let (object, (_, record)) = largest.filter(|_| all > most)?;
    Some(format!(
        "the {} stored records of the release unpack to {all} bytes, and helm, which reads all of them, is given memory for {most} (kubernetes.helm_memory = {memory}); raise that, or remove what nobody needs, as the largest one, which unpacks to {}: {}",
        sizes.len(),
        record.size,
        remedy(object)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn sizes(all: &[(&str, u64)]) -> RecordSizes {
        let sized = |(object, size): &(&str, u64)| {
            let record = UnpackedSize {
                stored: 648_000,
                size: *size,
            };
            ((*object).into(), ("7".into(), record))
        };
        all.iter().map(sized).collect()
    }

    fn said(all: &[(&str, u64)]) -> Option<String> {
        too_large(&sizes(all), 224 * MIB, &|object| format!("delete {object}"))
    }

    #[test]
    fn a_record_that_is_too_large_is_named_with_its_size_the_limit_and_the_way_out() {
        assert_eq!(said(&[]), None);
        assert_eq!(said(&[("a", MIB), ("b", 31 * MIB)]), None);
        let text = said(&[("a", MIB), ("b", MAX_INFLATED + 1), ("c", MIB)]).unwrap_or_default();
        for part in [
            "the record b has 648000 bytes",
            "more than 33554432",
            "delete b",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn many_records_that_are_too_large_together_are_said_as_well() {
        let text = said(&[("a", 20 * MIB), ("b", 13 * MIB)]).unwrap_or_default();
        for part in [
            "the 2 stored records",
            "34603008 bytes",
            "memory for 33554432",
            "kubernetes.helm_memory = 234881024",
            "delete a",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
}
