//! What the tests share: a server that misbehaves on request, certificates, and a way to ask one question.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::format_push_string,
    reason = "a test that cannot go on says where"
)]

pub mod ask;
pub mod flood;
pub mod namespace;
pub mod nginx;
pub mod pki;
pub mod script;
pub mod server;
