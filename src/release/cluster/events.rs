//! Kubernetes Events about a release, which `kubectl describe` and `kubectl get events` show.

use kube::runtime::events::{Event, EventType, Reporter};

use k8s_openapi::api::core::v1::ObjectReference;

use super::ClusterEngine;
use super::api::{ApiError, PATIENCE};
use crate::kubernetes::client::{ApiWriter, EventRecorder, WriteError};
use crate::release::ReleaseEvent;

/// Kubernetes' limit of a note, in bytes.
const MAX_NOTE: usize = 1024;

impl ClusterEngine {
    pub(super) async fn publish(&self, notice: ReleaseEvent) {
        let permit = &self.policy.permit;
        let event = Event {
            type_: if notice.is_warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: notice.reason.to_owned(),
            // An Event made like this has no labels, so whose turn it was is told where there may be others.
            note: Some(if permit.is_shared() {
                let by = format!(" (fence {})", self.fence());
                bounded(&notice.text, MAX_NOTE - by.len()) + &by
            } else {
                bounded(&notice.text, MAX_NOTE)
            }),
            action: notice.action.to_owned(),
            secondary: Some(self.record_reference(&notice)),
        };
        let regarding = self.regarding(&notice);
        let writer = ApiWriter::new(permit, PATIENCE);
        let published = self.recorder.publish(writer, &event, &regarding).await;
        let why = match published {
            Ok(()) | Err(WriteError::NotHeld) => return,
            Err(error) => ApiError::from(error),
        };
        tracing::warn!(release = %self.release, reason = notice.reason, "The Event was not written: {why}");
    }

    /// The object of an Event: the first workload, which people describe; without one, the record.
    fn regarding(&self, notice: &ReleaseEvent) -> ObjectReference {
        let parts = self.parts();
        let Some((kind, name)) = parts.first() else {
            return self.record_reference(notice);
        };
        let tables = self.cache.tables();
        let row = tables
            .workloads()
            .find(|row| row.kind == *kind && row.name == *name);
        ObjectReference {
            api_version: Some("apps/v1".into()),
            kind: Some(kind.as_str().into()),
            name: Some(name.to_string()),
            namespace: Some(self.cache.namespace().to_string()),
            uid: row.map(|row| row.uid.to_string()),
            ..ObjectReference::default()
        }
    }

    fn record_reference(&self, notice: &ReleaseEvent) -> ObjectReference {
        let kind = if self.cache.driver().plural() == "secrets" {
            "Secret"
        } else {
            "ConfigMap"
        };
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some(kind.into()),
            name: Some(format!(
                "sh.helm.release.v1.{}.v{}",
                self.release, notice.revision
            )),
            namespace: Some(self.cache.namespace().to_string()),
            ..ObjectReference::default()
        }
    }
}

/// The reporter of the Events.
pub(super) fn recorder(client: kube::Client) -> EventRecorder {
    let reporter = Reporter {
        controller: "leadsman".into(),
        // In a pod the host's name is the pod's.
        instance: std::env::var("HOSTNAME")
            .ok()
            .filter(|name| !name.is_empty()),
    };
    EventRecorder::new(client, reporter)
}

fn bounded(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}
