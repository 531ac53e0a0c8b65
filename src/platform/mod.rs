//! What adapters need of the machine: the clock, files, an HTTP client, and the permit to change something.

pub mod clock;
pub mod files;
pub(crate) mod http_client;
pub mod permit;
