//! The chart, by both Helms: linted, rendered, refused where values are wrong, and the program takes what is rendered.
//!
//! They are looked for in `PATH` as `helm3` and `helm4`; `PATH="$(tests/rig/build):$PATH" cargo test --test integration chart::` has
//! them. So are the linters yamllint, shellcheck, hadolint, yamale and kubernetes-validate, which has the schemas of each
//! version of Kubernetes with it (kubeconform would load them from elsewhere). Without them the tests say so and do
//! nothing, unless `LEADSMAN_TEST_CHART` is set.

mod pods;
mod rights;
mod shapes;
mod table;
mod trying;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const CHART: &str = "helm/leadsman";
const HELMS: [&str; 2] = ["helm3", "helm4"];

/// The oldest version that the chart allows, and the newest that is known.
const KUBERNETES: [&str; 2] = ["1.33", "1.37"];

/// Kinds that Kubernetes itself does not have.
const APIS: [&str; 4] = [
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "gateway.networking.k8s.io/v1/HTTPRoute",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    let ran = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output();
    let is_needed = std::env::var_os("LEADSMAN_TEST_CHART").is_some();
    assert!(ran.is_ok() || !is_needed, "{program} is missing");
    if ran.is_err() {
        eprintln!("left out: {program} is not installed");
    }
    ran.ok()
}

/// What it wrote; it must succeed.
#[track_caller]
fn works(program: &str, arguments: &[&str]) -> Option<String> {
    let output = run(program, arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{said}"
    );
    Some(text)
}

/// Values, with the name by which their rendering is kept.
struct Set {
    name: String,
    file: Option<PathBuf>,
}

impl Set {
    /// What names the values to Helm.
    fn arguments(&self) -> Vec<&str> {
        let file = self.file.as_ref();
        file.map_or_else(Vec::new, |file| vec!["--values", file.to_str().unwrap()])
    }
}

/// The default values, the examples that are shipped, and what is rendered for these tests alone.
fn sets() -> Vec<Set> {
    let mut all = vec![Set {
        name: "default".into(),
        file: None,
    }];
    for folder in [&format!("{CHART}/ci"), "tests/chart"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let file = entry.unwrap().path();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix("-values.yaml") {
                all.push(Set {
                    name: name.to_owned(),
                    file: Some(file),
                });
            }
        }
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    assert!(all.len() >= 7);
    all
}

/// Documents in an order that no Helm decides.
fn documents(text: &str) -> Vec<String> {
    let mut all: Vec<String> = text
        .split("\n---")
        .map(|document| document.trim_start_matches("---").trim().to_owned())
        .filter(|document| document.lines().any(|line| line.starts_with("kind:")))
        .collect();
    all.sort();
    all
}

/// What Helm makes of these arguments; only one set needs kinds that a cluster may not have.
fn template(helm: &str, arguments: &[&str]) -> Option<Output> {
    let mut all = vec!["template", "leadsman", CHART];
    all.extend(["--namespace", "leadsman", "--kube-version", "1.33.0"]);
    all.extend(arguments);
    run(helm, &all)
}

#[track_caller]
fn rendered(helm: &str, set: &Set) -> Option<Vec<String>> {
    let mut arguments = set.arguments();
    let apis = APIS.join(",");
    if set.name == "monitoring" {
        arguments.extend(["--api-versions", &apis]);
    }
    let output = template(helm, &arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{helm} {}: {said}", set.name);
    Some(documents(&String::from_utf8(output.stdout).unwrap()))
}

/// The same, as objects.
#[track_caller]
fn objects(set: &Set) -> Option<Vec<Value>> {
    let all = rendered("helm4", set)?;
    let parse = |text: &String| serde_saphyr::from_str(text).unwrap();
    Some(all.iter().map(parse).collect())
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind)
}

#[test]
fn both_helms_find_nothing_to_complain_of() {
    for helm in HELMS {
        for set in sets() {
            let mut arguments = vec!["lint", "--strict", CHART];
            arguments.extend(set.arguments());
            works(helm, &arguments);
        }
        works(helm, &["lint", "--strict", "helm/try/app"]);
    }
}

/// `UPDATE_SNAPSHOTS=1` writes what is rendered now.
#[test]
fn what_is_rendered_is_what_was_agreed_and_the_same_by_both_helms() {
    for set in sets() {
        let [Some(three), Some(four)] = HELMS.map(|helm| rendered(helm, &set)) else {
            return;
        };
        let name = &set.name;
        assert_eq!(three, four, "{name}");
        let text = four.join("\n---\n") + "\n";
        let file = root().join(format!("tests/snapshots/chart/{name}.yaml"));
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, text).unwrap();
            continue;
        }
        let agreed = std::fs::read_to_string(&file).unwrap();
        assert!(
            text == agreed,
            "{name} is rendered otherwise; UPDATE_SNAPSHOTS=1 shows the difference by git"
        );
    }
}

/// How Helm refuses these values.
#[track_caller]
fn refused(helm: &str, values: &[&str]) -> Option<String> {
    let arguments: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
    let output = template(helm, &arguments)?;
    assert!(!output.status.success(), "{helm} takes {values:?}");
    Some(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn values_that_are_wrong_are_refused_by_name() {
    for (values, named) in [
        ("replicas=2", "replicas"),
        ("replicaCount=0", "replicaCount"),
        ("namespaces[0].mode=enforce", "name"),
        ("namespaces[0].name=a,namespaces[0].mode=on", "mode"),
        ("image.digest=sha256:12", "digest"),
        ("log.level=loud", "level"),
        ("httpRoute.hostnames[0].name=a", "hostnames"),
        // Two that act would be worse than none.
        ("lease.enabled=false", "lease"),
        (
            "auth.kubernetes=true,kubernetes.enabled=false",
            "auth.kubernetes",
        ),
    ] {
        for helm in HELMS {
            let Some(said) = refused(helm, &[values]) else {
                return;
            };
            assert!(said.contains(named), "{helm} {values}: {said}");
        }
    }
}

#[test]
fn what_a_cluster_does_not_have_is_no_silent_nothing() {
    for api in APIS {
        let (group, kind) = api.rsplit_once('/').unwrap();
        let lower = if kind == "HTTPRoute" {
            "httpRoute".to_owned()
        } else {
            format!("{}{}", kind[..1].to_lowercase(), &kind[1..])
        };
        let enabled = format!("{lower}.enabled=true");
        let Some(said) = refused("helm4", &[&enabled]) else {
            return;
        };
        assert!(said.contains(group) && said.contains("install"), "{said}");
    }
}

/// What Helm shows after an installation with these values. Only a real installation shows it, so here it is the text of
/// an object of a copy of the chart.
fn notes(values: &[&str]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    for part in ["templates", "files"] {
        std::fs::create_dir(folder.path().join(part)).unwrap();
    }
    for file in [
        "Chart.yaml",
        "values.yaml",
        "files/rules.yaml",
        "templates/_helpers.tpl",
    ] {
        std::fs::write(folder.path().join(file), read(&format!("{CHART}/{file}"))).unwrap();
    }
    let text = read(&format!("{CHART}/templates/NOTES.txt"));
    let text = format!(
        "{{{{- define \"notes\" }}}}{text}{{{{ end }}}}\nkind: Notes\ntext: {{{{ include \"notes\" . | toJson }}}}\n"
    );
    std::fs::write(folder.path().join("templates/notes.yaml"), text).unwrap();
    let place = folder.path().to_str().unwrap();
    let mut arguments = vec!["template", "leadsman", place, "--namespace", "leadsman"];
    arguments.extend(["--kube-version", "1.33.0"]);
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    let said = works("helm4", &arguments)?;
    let notes: Value = serde_saphyr::from_str(documents(&said)[0].as_str()).unwrap();
    Some(notes["text"].as_str().unwrap().to_owned())
}

#[test]
fn the_notes_say_what_is_missing() {
    const RELEASE: &str = "config=[[release]]\nname = \"shop\"";
    let (nothing, nowhere) = ("It guards nothing yet", "It may look into no namespace yet");
    let Some(text) = notes(&[]) else { return };
    assert!(text.contains(nothing) && text.contains(nowhere), "{text}");
    assert!(text.contains("--server http://127.0.0.1:9616"), "{text}");
    let text = notes(&[RELEASE, "namespaces[0].name=shop"]).unwrap();
    assert!(!text.contains(nothing) && !text.contains(nowhere), "{text}");
    assert!(text.contains("`mode: enforce` of its namespace in `namespaces`."));
    for value in ["rbac.clusterWide=true", "kubernetes.enabled=false"] {
        let text = notes(&[value]).unwrap();
        assert!(text.contains(nothing) && !text.contains(nowhere), "{text}");
    }
    // Links that open inside the cluster alone; of an existing ConfigMap nothing is known.
    let links = "Links in alerts and messages begin with";
    let text = notes(&["service.port=80", "tls.existingSecret=cert"]).unwrap();
    assert!(
        text.contains(&format!("{links} https://leadsman.leadsman.svc:80/,")),
        "{text}"
    );
    let said = notes(&["config=[serve]\n# external_url = \"http://a/\""]).unwrap();
    assert!(said.contains(links), "{said}");
    for value in [
        "config=[serve]\nexternal_url = \"http://a/\"",
        "config=serve = { external_url = \"http://a/\" }",
        "extraEnv[0].name=LEADSMAN__SERVE__EXTERNAL_URL",
        "existingConfigMap=mine",
    ] {
        let text = notes(&[value]).unwrap();
        assert!(!text.contains(links), "{value}: {text}");
    }
    // 127.0.0.1 is no name of the certificate.
    let text = notes(&["tls.existingSecret=cert"]).unwrap();
    let command = "--server https://leadsman:9616 --ca-file /etc/leadsman/secrets/tls/ca.crt";
    assert!(
        text.contains(command) && !text.contains("127.0.0.1"),
        "{text}"
    );
    let text = notes(&["tls.existingSecret=cert", "tls.caKey="]).unwrap();
    assert!(!text.contains("--ca-file"), "{text}");
    let text = notes(&[
        "tls.existingSecret=cert",
        "serviceMonitor.enabled=true",
        "serviceMonitor.namespace=monitoring",
    ]);
    assert!(
        text.unwrap()
            .contains("must be in the namespace monitoring as well")
    );
}

/// The rules of the chart are the rules of the file, which tests/prometheus.rs tests one by one.
#[test]
fn the_rules_are_those_that_are_tested() {
    let set = sets().into_iter().find(|set| set.name == "monitoring");
    let Some(objects) = objects(&set.unwrap()) else {
        return;
    };
    let mut groups = of_kind(&objects, "PrometheusRule").unwrap()["spec"]["groups"].clone();
    let file: Value = serde_saphyr::from_str(&read(&format!("{CHART}/files/rules.yaml"))).unwrap();
    let own = groups.as_array_mut().unwrap().pop().unwrap();
    assert_eq!(groups, file["groups"]);
    assert_eq!(own["name"], "leadsman-additional");
}

/// Every object of every set is valid, field by field, in the oldest version that is supported and in the newest; what
/// Kubernetes does not define itself is looked at by tests/chart/shapes.rs. (The rig's API server says the same of its
/// own version.)
#[test]
fn what_is_rendered_is_valid_in_old_and_new_clusters() {
    let folder = tempfile::tempdir().unwrap();
    for set in sets() {
        let Some(mut all) = rendered("helm4", &set) else {
            return;
        };
        all.retain(|document| !APIS.iter().any(|api| is_of(document, api)));
        let file = folder.path().join(format!("{}.yaml", set.name));
        std::fs::write(&file, all.join("\n---\n")).unwrap();
        for version in KUBERNETES {
            let arguments = ["--strict", "-k", version, file.to_str().unwrap()];
            let Some(said) = works("kubernetes-validate", &arguments) else {
                return;
            };
            // A kind that it does not know is a warning to it, and an older version is taken for a newer one.
            let passed = format!("against version {version}");
            let passed = said.lines().filter(|line| line.ends_with(&passed)).count();
            assert_eq!(passed, all.len(), "{version}: {said}");
            assert!(!said.contains("WARN"), "{said}");
        }
    }
}

fn is_of(document: &str, api: &str) -> bool {
    let (version, kind) = api.rsplit_once('/').unwrap();
    document.contains(&format!("apiVersion: {version}\n"))
        && document.contains(&format!("kind: {kind}\n"))
}

/// The configuration and the variables of the environment, as each set renders them, are what the program takes.
#[test]
fn the_program_takes_what_is_rendered() {
    let mut count = 0;
    for set in sets() {
        let Some(objects) = objects(&set) else { return };
        let mut maps = objects.iter();
        let Some(config) = maps.find_map(|map| map["data"]["probes.toml"].as_str()) else {
            continue;
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("probes.toml");
        std::fs::write(&file, config).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_leadsman"));
        // The Secrets are in the cluster.
        check.args(["check", "--no-files", "--config"]).arg(&file);
        let pod = &of_kind(&objects, "Deployment").unwrap()["spec"]["template"]["spec"];
        for variable in pod["containers"][0]["env"].as_array().unwrap() {
            if let Some(value) = variable["value"].as_str() {
                let ip = if value.contains('[') {
                    "fd00::7"
                } else {
                    "10.0.0.7"
                };
                check.env(
                    variable["name"].as_str().unwrap(),
                    value.replace("$(POD_IP)", ip),
                );
            }
        }
        let output = check.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", set.name);
        count += 1;
    }
    assert!(count >= 6, "{count}");
}

#[test]
fn the_chart_says_of_itself_what_is_known() {
    let schema = "tests/chart/Chart.schema.yaml";
    works("yamale", &["-s", schema, &format!("{CHART}/Chart.yaml")]);
    // The image that it names is the one that is rendered.
    let chart: Value = serde_saphyr::from_str(&read(&format!("{CHART}/Chart.yaml"))).unwrap();
    let images = chart["annotations"]["artifacthub.io/images"].as_str();
    let images: Value = serde_saphyr::from_str(images.unwrap()).unwrap();
    let default = sets().into_iter().find(|set| set.name == "default");
    let Some(objects) = objects(&default.unwrap()) else {
        return;
    };
    let pod = &of_kind(&objects, "Deployment").unwrap()["spec"]["template"]["spec"];
    assert_eq!(images[0]["image"], pod["containers"][0]["image"]);
}

#[test]
fn dockerfile_and_scripts_have_no_known_pitfalls() {
    works("hadolint", &["Dockerfile"]);
    let scripts = [
        ".ci/run",
        "tests/all",
        "helm/try/run",
        "tests/fuzz/run",
        "tests/image",
        "tests/rig/build",
        "tests/rig/container",
        "tests/rig/shell",
        "tests/rig/up",
    ];
    let mut arguments = vec!["--severity=warning"];
    arguments.extend(scripts);
    works("shellcheck", &arguments);
}

#[test]
fn the_yaml_is_tidy() {
    let config = "{extends: default, rules: {line-length: disable, document-start: disable, comments: {min-spaces-from-content: 1}, \
                  braces: {max-spaces-inside: 1}, truthy: {check-keys: false}}}";
    let mut files = vec![
        format!("{CHART}/Chart.yaml"),
        format!("{CHART}/values.yaml"),
        format!("{CHART}/files/rules.yaml"),
        "helm/try/leadsman-values.yaml".to_owned(),
        "tests/chart/shapes.yaml".to_owned(),
    ];
    let own = sets().into_iter().filter_map(|set| set.file);
    // One has spaces that are meant.
    let own = own.filter(|file| !file.ends_with("odd-values.yaml"));
    files.extend(own.map(|file| file.display().to_string()));
    let mut arguments = vec!["--strict", "-d", config];
    arguments.extend(files.iter().map(String::as_str));
    works("yamllint", &arguments);
}
