//! Access to the API server: one client, one writer, the Lease, and access reviews.

pub mod access_review;
pub(crate) mod client;
pub mod leader_election;
