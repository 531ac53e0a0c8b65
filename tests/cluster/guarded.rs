//! A daemon that guards the app of a cluster, and what it says of it.

#![allow(unreachable_pub, reason = "shared by the tests of one binary")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::asked;
use crate::program::Leadsman;
use crate::rig::{Cluster, Helm};

/// A whole watch with its rollout, twice over, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(480);

pub struct Guarded<'a> {
    pub leadsman: Leadsman,
    cluster: &'a Cluster,
}

/// What is written into the configuration, beside what each test needs.
#[derive(Clone)]
pub struct Settings {
    /// The helm that Leadsman uses.
    pub helm: PathBuf,
    pub mode: &'static str,
    /// More lines of `[release.rollback]`.
    pub rollback: &'static str,
    /// More lines of `[release.analysis]`.
    pub analysis: &'static str,
    /// The length of the watch, in seconds.
    pub watch: u32,
}

impl Settings {
    pub fn by(helm: Helm) -> Self {
        Self {
            helm: helm.path(),
            mode: "enforce",
            rollback: "",
            analysis: "",
            watch: 60,
        }
    }
}

impl<'a> Guarded<'a> {
    /// Starts Leadsman in enforce mode with the rights of `leadsman rbac`, and waits until it knows what the app is like.
    pub fn start(cluster: &'a Cluster) -> Self {
        Self::with(cluster, &Settings::by(cluster.helm))
    }

    pub fn with(cluster: &'a Cluster, settings: &Settings) -> Self {
        let by_admin = configuration(cluster, settings, &cluster.kubeconfig());
        let kubeconfig = cluster.least(&by_admin);
        Self::allowed(cluster, &configuration(cluster, settings, &kubeconfig))
    }

    /// With a configuration of its own.
    pub fn allowed(cluster: &'a Cluster, configuration: &str) -> Self {
        Self::allowed_in(cluster, configuration, &[])
    }

    /// The same with variables of the environment.
    pub fn allowed_in(
        cluster: &'a Cluster,
        configuration: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let leadsman = Leadsman::run_in(configuration, &[], environment);
        let guarded = Self { leadsman, cluster };
        guarded.knows_the_app();
        guarded
    }

    /// Starts it and waits for nothing.
    pub fn started(cluster: &'a Cluster, configuration: &str) -> Self {
        let leadsman = Leadsman::run(configuration, &[]);
        Self { leadsman, cluster }
    }

    /// Waits until it knows what the app is like.
    #[track_caller]
    pub fn knows_the_app(&self) {
        // Of a baseline with fewer results, and before looks at pods, the rule assumes the worst.
        self.until("steady, with a baseline", |release| {
            let known = release["probe_history"].as_array();
            let is_known = known.is_some_and(|known| {
                !known.is_empty()
                    && known.iter().all(|probe| {
                        probe["baseline_total"].as_u64() >= Some(20)
                            && (probe["pods_answer"] == true || probe["probe"] == asked::PROBE)
                    })
            });
            release["phase"] == "idle" && is_known
        });
    }

    /// What the API says of the release.
    pub fn release(&self) -> Value {
        let path = format!("/api/v1/releases/{}/mykadoo", self.cluster.namespace);
        serde_json::from_str(&self.leadsman.get(&path).body).unwrap_or(Value::Null)
    }

    /// Waits until what the API says of the release is so.
    #[track_caller]
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let release = self.release();
            if holds(&release) {
                return release;
            }
            assert!(
                Instant::now() < deadline,
                "never came true: {what}; the release:\n{release:#}\nthe log:\n{}",
                self.leadsman.log()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until an alert fires.
    #[track_caller]
    pub fn until_fires(&self, alert: &str) {
        self.until(alert, |_| {
            let alerts = self.leadsman.get("/api/v1/alerts").body;
            let alerts: Value = serde_json::from_str(&alerts).unwrap_or(Value::Null);
            let alerts = alerts["alerts"].as_array().cloned().unwrap_or_default();
            alerts
                .iter()
                .any(|it| it["labels"]["alertname"] == alert && it["state"] == "firing")
        });
    }

    /// Waits for the end of a revision's watch; the rollout as the API tells it.
    #[track_caller]
    pub fn outcome(&self, revision: u64) -> Value {
        let mut found = Value::Null;
        self.until(&format!("the end of revision {revision}"), |_| {
            let path = format!(
                "/api/v1/releases/{}/mykadoo/rollouts",
                self.cluster.namespace
            );
            let rollouts: Value =
                serde_json::from_str(&self.leadsman.get(&path).body).unwrap_or(Value::Null);
            let finished = rollouts["rollouts"].as_array().cloned().unwrap_or_default();
            found = finished
                .into_iter()
                .find(|finished| {
                    finished["revision"] == revision && finished["outcome"].is_string()
                })
                .unwrap_or(Value::Null);
            !found.is_null()
        });
        found
    }
}

/// The runbook's four endpoints; `/` is the web's, the others are the API's.
pub fn configuration(cluster: &Cluster, settings: &Settings, kubeconfig: &Path) -> String {
    let (api, web) = (
        cluster.service("mykadoo-api"),
        cluster.service("mykadoo-web"),
    );
    // Where a test says nothing else, the analysis is as long as it says also while a rollout runs.
    let longest = if settings.analysis.contains("max_duration") {
        String::new()
    } else {
        format!("max_duration = \"{}s\"\n", settings.watch)
    };
    let probe = |name: &str, path: &str| {
        format!(
            "[[release.probe]]\nname = \"{name}\"\npath = \"{path}\"\npods = \"mykadoo-api\"\nexpect = {{ status = 200, json = {{ \"/status\" = \"ok\" }} }}\n"
        )
    };
    format!(
        "[state]\ndirectory = \"state\"\n\
         [kubernetes]\nkubeconfig = {:?}\nhelm = {:?}\nscratch = \"scratch\"\n\
         [[release]]\nname = \"mykadoo\"\nnamespace = {:?}\nbase_url = {api:?}\nmode = {:?}\ninterval = \"1s\"\ntimeout = \"3s\"\n\
         [release.analysis]\nduration = \"{}s\"\n{longest}{}\n[release.rollback]\n{}\n\
         {}{}{}\
         [[release.probe]]\nname = \"web\"\nurl = \"{web}/\"\npods = \"mykadoo-web\"\n",
        kubeconfig.display().to_string(),
        settings.helm.display().to_string(),
        cluster.namespace,
        settings.mode,
        settings.watch,
        settings.analysis,
        settings.rollback,
        probe("api", "/api/health"),
        probe("db", "/api/health/db"),
        probe("redis", "/api/health/redis"),
    )
}

/// The same with its state in this folder, for one Leadsman that goes on where another ended.
pub fn configuration_with(
    cluster: &Cluster,
    settings: &Settings,
    kubeconfig: &Path,
    state: &Path,
) -> String {
    let directory = format!("directory = {:?}\n", state.display().to_string());
    configuration(cluster, settings, kubeconfig).replace("directory = \"state\"\n", &directory)
}
