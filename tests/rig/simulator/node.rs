//! The nodes. There are two, so that one of them can be drained.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

const NODES: [&str; 2] = ["sim-1", "sim-2"];

/// Creates the nodes, or takes over those that are there.
pub(crate) async fn create(client: &Client) {
    let nodes: Api<Node> = Api::all(client.clone());
    for name in NODES {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}
        }))
        .expect("a node");
        for _ in 0..50 {
            match nodes.create(&PostParams::default(), &node).await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if status.code == 409 => break,
                Err(error) => {
                    eprintln!("the node {name} is not created yet: {error}");
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        }
        // An admission plugin marks new nodes as not ready; nobody would take that off here.
        let patch = Patch::Merge(json!({"spec": {"taints": null}}));
        nodes
            .patch(name, &PatchParams::default(), &patch)
            .await
            .expect("no taints");
        report(client, name).await.expect("the node's status");
    }
}

async fn report(client: &Client, name: &str) -> kube::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let now = jiff::Timestamp::now().to_string();
    let resources = json!({"cpu": "1000", "memory": "1Ti", "pods": "5000"});
    let patch = Patch::Merge(json!({"status": {
        "capacity": resources, "allocatable": resources,
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Simulated", "message": "",
            "lastHeartbeatTime": now, "lastTransitionTime": now}],
    }}));
    nodes
        .patch_status(name, &PatchParams::default(), &patch)
        .await
        .map(drop)
}

pub(crate) async fn beat(client: Client) {
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
        for name in NODES {
            let _ = report(&client, name).await;
        }
    }
}
