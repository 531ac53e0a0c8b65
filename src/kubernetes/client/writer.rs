//! Changes something at the API server: only with the permit, and no longer than it is held.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::runtime::events::{Event, Recorder, Reporter};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::platform::permit::{Permit, PermitError};

/// Why a change was not made, or may not have been made.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// The permit is not held, or was lost before the answer.
    NotHeld,
    /// No answer within this time.
    TimedOut(Duration),
    /// The error of the API server, or of the connection.
    Refused(kube::Error),
}

/// The only way to change something at the API server. Reviews and dry runs change nothing, and the Lease itself takes
/// another way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ApiWriter<'a> {
    permit: &'a Permit,
    limit: Duration,
}

impl<'a> ApiWriter<'a> {
    /// A request may take `limit`, and never longer than the permit is held.
    pub(crate) const fn new(permit: &'a Permit, limit: Duration) -> Self {
        Self { permit, limit }
    }

    /// Creates an object; `manager` is its field manager.
    pub(crate) async fn create<K>(
        self,
        api: &Api<K>,
        manager: Option<&str>,
        object: &K,
    ) -> Result<K, WriteError>
    where
        K: Serialize + DeserializeOwned + Clone + Debug,
    {
        let params = written_by(manager);
        self.write(api.create(&params, object)).await
    }

    /// Replaces an object by the version that it names.
    pub(crate) async fn replace<K>(
        self,
        api: &Api<K>,
        name: &str,
        manager: Option<&str>,
        object: &K,
    ) -> Result<K, WriteError>
    where
        K: Serialize + DeserializeOwned + Clone + Debug,
    {
        let params = written_by(manager);
        self.write(api.replace(name, &params, object)).await
    }

    /// Deletes an object, if it is the one with this uid.
    pub(crate) async fn delete<K>(
        self,
        api: &Api<K>,
        name: &str,
        uid: &str,
    ) -> Result<(), WriteError>
    where
        K: DeserializeOwned + Clone + Debug,
    {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        self.write(api.delete(name, &params)).await.map(drop)
    }

    async fn write<T>(
        self,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, WriteError> {
        match self.permit.bound(self.limit, request).await {
            Ok(answer) => answer.map_err(WriteError::Refused),
            Err(PermitError::NotHeld) => Err(WriteError::NotHeld),
            Err(PermitError::TimedOut) => Err(WriteError::TimedOut(self.limit)),
        }
    }
}

fn written_by(manager: Option<&str>) -> PostParams {
    PostParams {
        field_manager: manager.map(str::to_owned),
        ..PostParams::default()
    }
}

/// Writes Events.
pub(crate) struct EventRecorder(Recorder);

impl EventRecorder {
    pub(crate) fn new(client: Client, reporter: Reporter) -> Self {
        Self(Recorder::new(client, reporter))
    }

    pub(crate) async fn publish(
        &self,
        writer: ApiWriter<'_>,
        event: &Event,
        regarding: &ObjectReference,
    ) -> Result<(), WriteError> {
        writer.write(self.0.publish(event, regarding)).await
    }
}
