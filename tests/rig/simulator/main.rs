//! The nodes of the rig: pods are small HTTP servers in this process.
fn main() {}
