//! What the clocks of a rollback say.

use serde_json::Value;

use crate::guarded::Guarded;
use crate::rig::{Cluster, Helm};
use crate::turned_back::steps;
use crate::users::Users;

/// J25: the detection of a crash loop counts from the moment the revision appeared, and from the first sign of trouble.
#[test]
fn the_clock_of_a_crash_loop_counts_from_the_appearance_and_from_the_first_restart() {
    let Some(cluster) = Cluster::new("clock", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let users = Users::of(&cluster.service("mykadoo-api"));
    cluster.upgrade(&[r#"api.sim={"crash-after":"1s"}"#]);
    let ended = guarded.ending(2);
    let (failed, asked) = users.counts();
    println!(
        "clock: {failed} of {asked} requests of users failed; {}",
        steps(&ended)
    );
    assert_eq!(
        ended["ending"],
        "recovered",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );

    let step = |name: &str| -> Value {
        let mut all = ended["steps"].as_array().unwrap().iter();
        all.find(|step| step["step"] == name).unwrap().clone()
    };
    let took = |name: &str| step(name)["took_s"].as_f64().unwrap();
    let verdict = guarded.release()["verdict"]["at"].as_f64().unwrap();
    let appeared = ended["seen_at"].as_f64().unwrap();
    assert!(
        (took("detect") - (verdict - appeared)).abs() < 0.5,
        "{ended:#}"
    );
    // Restarts are seen before anything fails through the Service, and the pods were there before they restarted.
    assert!(took("detect_from_trouble") > 0.0, "{ended:#}");
    assert!(took("detect_from_trouble") < took("detect"), "{ended:#}");
    let parts = ["initiate", "complete", "verify"].map(took);
    let total = took("detect") + parts.iter().sum::<f64>();
    assert!((took("total") - total).abs() < 0.5, "{ended:#}");
    let counts = |name: &str| step(name)["counts"].as_str().unwrap().to_owned();
    assert!(counts("detect").contains("the moment the revision appeared"));
    assert!(counts("detect_from_trouble").contains("the first sign of trouble"));

    let metrics = guarded.leadsman.get("/metrics").body;
    for name in ["detect", "detect_from_trouble"] {
        let series = format!("release=\"mykadoo\",step=\"{name}\"}}");
        assert!(metrics.contains(&series), "{series} is not in:\n{metrics}");
    }
    let help = metrics
        .lines()
        .find(|line| line.starts_with("# HELP leadsman_rollout_step_seconds "));
    let help = help.unwrap();
    for part in [
        "from the moment the revision appeared",
        "from the first sign of trouble",
    ] {
        assert!(help.contains(part), "{help}");
    }
}
