//! A real API server with real controllers, a real Helm 3 and Helm 4, and a daemon that guards a release there.
//!
//! `tests/rig/up cargo test --test cluster -- --test-threads=4`; outside the rig every test is left out. Each has a
//! namespace of its own, and waits most of the time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

#[path = "cluster/guarded.rs"]
mod guarded;
mod program;
#[path = "cluster/rig.rs"]
mod rig;

use guarded::Guarded;
use rig::{Cluster, Helm};

const DEAD: &str = r#"api.sim={"answers":{"/api/health":"status:503","/api/health/db":"status:503","/api/health/redis":"status:503"}}"#;

#[test]
fn a_dead_revision_is_turned_back_by_helm_4() {
    dead(Helm::Four);
}

#[test]
fn a_dead_revision_is_turned_back_by_helm_3() {
    dead(Helm::Three);
}

fn dead(helm: Helm) {
    let Some(cluster) = Cluster::new("dead", helm) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[DEAD]);
    let ended = guarded.ending(2);
    assert_eq!(ended["ending"], "recovered", "{ended:#}");
    assert_eq!(ended["target"], 1, "{ended:#}");
    assert_eq!(ended["made"], 3, "{ended:#}");
    for reads in [Helm::Three, Helm::Four] {
        assert_eq!(
            cluster.statuses(reads),
            "1 superseded, 2 superseded, 3 deployed"
        );
    }
    println!("{ended:#}");
}
