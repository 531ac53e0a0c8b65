//! How the API server is asked and changed: one client, one writer, the Lease, and access reviews.

pub mod access_review;
pub(crate) mod client;
pub mod leader_election;
