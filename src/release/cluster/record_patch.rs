//! Repairs a record: its status, description and labels, and nothing else in it.

use std::collections::BTreeMap;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::value::{RawValue, to_raw_value};

use super::labels;
use crate::helm::record;

/// Kubernetes' limit for the data of a Secret, in bytes.
pub(super) const MAX_DATA: usize = 1_048_576;

/// Helm's limit for a description, in characters.
pub(super) const MAX_DESCRIPTION: usize = 256;

/// The change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RecordChange {
    pub(super) status: Option<&'static str>,
    pub(super) description: Option<String>,
    pub(super) labels: Vec<(&'static str, String)>,
}

type RecordFields = BTreeMap<String, Box<RawValue>>;

/// The payload with the change. Everything else keeps its text, so that no number is rounded and no unknown field is
/// lost.
///
/// # Errors
///
/// When it is not a valid record, or would be larger than Kubernetes allows.
pub(super) fn payload(payload: &[u8], change: &RecordChange) -> Result<Vec<u8>, String> {
    let text = record::inflate(payload).map_err(|error| error.to_string())?;
    let mut fields: RecordFields =
        serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let info = fields.get("info").map_or("{}", |info| info.get());
    let mut info: RecordFields = serde_json::from_str(info).map_err(|error| error.to_string())?;
    let raw = |text: &str| to_raw_value(text).map_err(|error| error.to_string());
    if let Some(status) = change.status {
        info.insert("status".into(), raw(status)?);
    }
    if let Some(description) = &change.description {
        let description: String = description.chars().take(MAX_DESCRIPTION).collect();
        info.insert("description".into(), raw(&description)?);
    }
    let info = to_raw_value(&info).map_err(|error| error.to_string())?;
    fields.insert("info".into(), info);
    let text = serde_json::to_vec(&fields).map_err(|error| error.to_string())?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    let packed = gzip.write_all(&text).and_then(|()| gzip.finish());
    let packed = packed.map_err(|error| error.to_string())?;
    let encoded = STANDARD.encode(packed).into_bytes();
    if encoded.len() > MAX_DATA {
        return Err(format!(
            "the record would have {} bytes, more than {MAX_DATA}",
            encoded.len()
        ));
    }
    Ok(encoded)
}

/// The labels with the change and our fencing token; Helm's status label agrees with the record.
pub(super) fn labels(labels: &mut BTreeMap<String, String>, change: &RecordChange, fence: u64) {
    labels.insert(labels::FENCE.into(), fence.to_string());
    if let Some(status) = change.status {
        labels.insert("status".into(), status.into());
    }
    for (name, value) in &change.labels {
        labels.insert((*name).into(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use super::*;

    fn packed(text: &str) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        STANDARD.encode(gzip.finish().unwrap()).into_bytes()
    }

    const TEXT: &str = r#"{"name":"web","info":{"first_deployed":"2026-01-02T03:04:05.6Z","deleted":"","description":"Rollback to 1","status":"pending-rollback","of_later_times":[1]},"config":{"big":9007199254740993,"small":1e-400},"version":3,"unknown":{"b":1,"a":2}}"#;

    #[test]
    fn only_what_is_to_change_changes() {
        let change = RecordChange {
            status: Some("failed"),
            description: Some("Rollback \"web\" failed: killed".into()),
            labels: Vec::new(),
        };
        let changed = payload(&packed(TEXT), &change).unwrap();
        let text = String::from_utf8(record::inflate(&changed).unwrap()).unwrap();
        assert!(
            text.contains(r#""config":{"big":9007199254740993,"small":1e-400}"#),
            "{text}"
        );
        assert!(text.contains(r#""unknown":{"b":1,"a":2}"#), "{text}");
        let read = |text: &str| -> serde_json::Value {
            serde_json::from_str(&text.replace("1e-400", "0")).unwrap()
        };
        let mut expected = read(TEXT);
        expected["info"]["status"] = "failed".into();
        expected["info"]["description"] = "Rollback \"web\" failed: killed".into();
        assert_eq!(read(&text), expected);
    }

    #[test]
    fn helms_label_of_the_status_agrees_with_the_record() {
        let mut found = BTreeMap::from([("status".to_owned(), "pending-rollback".to_owned())]);
        let change = RecordChange {
            status: Some("failed"),
            labels: vec![("leadsman.io/made", "3".into())],
            ..RecordChange::default()
        };
        found.insert("leadsman.io/fence".into(), "6".into());
        labels(&mut found, &change, 7);
        assert_eq!(found["leadsman.io/fence"], "7", "handed on by helm");
        assert_eq!(found["status"], "failed");
        assert_eq!(found["leadsman.io/made"], "3");
    }

    #[test]
    fn what_is_no_record_is_not_written_back() {
        let change = RecordChange::default();
        assert!(payload(b"", &change).is_err());
        assert!(payload(&packed("[]"), &change).is_err());
        assert!(payload(&packed(r#"{"info":[]}"#), &change).is_err());
    }
}
