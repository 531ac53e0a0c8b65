//! Helm's formats: release records, rendered manifests and the errors that helm prints. No IO.

pub mod error;
pub mod manifest;
pub mod record;
