//! The nodes of the rig, whose pods are small HTTP servers in this process.
//!
//! `simulator --kubeconfig FILE --cert FILE --key FILE`, inside the rig's network. What a pod does is said by its
//! annotations `sim.leadsman.io/…` (see `behaviour.rs`), so it changes with the revision, as a bad image would.
//! `127.0.0.1:9900` overrides answers while pods run (see `control.rs`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test tool that cannot go on says where"
)]

mod behaviour;
mod control;
mod node;
mod pods;
mod program;
mod services;
mod web;

use std::sync::Arc;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|one| one == name);
        let value = at.and_then(|at| arguments.get(at + 1));
        value.unwrap_or_else(|| panic!("{name} is missing")).clone()
    };
    let file = Kubeconfig::read_from(value("--kubeconfig")).expect("the kubeconfig");
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let mut config = config.expect("the kubeconfig");
    config.read_timeout = None;
    config.default_retry = false;
    let client = Client::try_from(config).expect("a client");
    let world = Arc::new(pods::World::new(client.clone()));
    node::create(&client).await;
    println!("READY");
    tokio::join!(
        node::beat(client.clone()),
        pods::run(Arc::clone(&world)),
        services::run(client),
        control::serve(Arc::clone(&world)),
        control::kubelet(world, value("--cert"), value("--key")),
    );
}
