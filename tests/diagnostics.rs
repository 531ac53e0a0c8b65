//! Each mistake in a configuration is refused with a message that names its cause, at its line (rows H13, H15, A26,
//! A31, G06, G16, G17, T03 of the scenario table).

use leadsman::config::{self, DiscoveredRelease, Sources};
use leadsman::core::units::{Namespace, ReleaseName};

#[test]
fn what_is_wrong_with_a_probe() {
    check("an unknown key", "timeuot = '5s'", "unknown key");
    check("no scheme", "url = 'example.com'", "names no scheme");
    check(
        "a scheme nobody speaks",
        "url = 'invalid://x/'",
        "has the scheme \"invalid\"",
    );
    check(
        "url and path",
        "url = 'http://x/'\npath = '/'",
        "stands beside path",
    );
    check("a duration without a unit", "timeout = 5", "without a unit");
    check("no time at all", "timeout = '0s'", "too short");
    check("an absurd interval", "interval = '400days'", "too long");
    check("no duration", "timeout = 'soon'", "no duration");
    check(
        "two bearer sources",
        "bearer_token = 'x'\nbearer_token_file = '/t'",
        "is a secret",
    );
    check(
        "two kinds of credentials",
        "username = 'u'\npassword_file = '/p'\nbearer_token_file = '/t'",
        "two kinds",
    );
    check(
        "a user without a password",
        "username = 'u'",
        "has no password",
    );
    check(
        "body and body_file",
        "body = 'x'\nbody_file = '/x'",
        "stands beside body_file",
    );
    check("an unknown method", "method = 'BREW'", "no method");
    check(
        "a header without a name",
        "headers = { '' = 'x' }",
        "no name of a header",
    );
    check(
        "a secret header",
        "headers = { authorization = 'Basic eDp5' }",
        "is a secret",
    );
    check("too many redirects", "redirects = 99", "0 to 20");
    check(
        "an unknown compression",
        "compression = 'zip'",
        "is not known",
    );
    check(
        "HTTP/3",
        "expect = { http_version = '3' }",
        "no version of HTTP",
    );
    check(
        "half a client certificate",
        "tls = { cert_file = '/c' }",
        "half of a client certificate",
    );
    check("tcp keys on http", "send = 'x'", "is for tcp targets");
    check(
        "http keys on tcp",
        "url = 'tcp://x:1'\nmethod = 'GET'",
        "is for http targets",
    );
    check(
        "a tcp target without a port",
        "url = 'tcp://x'",
        "names no port",
    );
}

#[test]
fn what_is_wrong_with_an_expectation() {
    for key in ["body_matches", "body_not_matches"] {
        check(
            "a pattern",
            &format!("expect = {{ {key} = ':[' }}"),
            "no regular expression",
        );
    }
    for key in ["header_matches", "header_not_matches"] {
        check(
            "a header's pattern",
            &format!("expect = {{ {key} = {{ Server = ':[' }} }}"),
            "no regular expression",
        );
    }
    for status in ["'30a'", "'299-200'", "'200-299-400'", "99", "true"] {
        check(
            "a status",
            &format!("expect = {{ status = {status} }}"),
            "is no status",
        );
    }
    check(
        "a pointer",
        "expect = { json = { status = 'ok' } }",
        "no JSON pointer",
    );
    check("a path", "expect = { json = { '$[' = 1 } }", "no JSONPath");
    check(
        "a number that is none",
        "expect = { json = { '/n' = { gt = 'potato' } } }",
        "is no number",
    );
    check(
        "a rule that says nothing",
        "expect = { json = { '/n' = {} } }",
        "says nothing",
    );
    let many = format!("expect = {{ body_matches = [{}] }}", "'x',".repeat(101));
    check("too many rules", &many, "has 101 entries");
}

#[test]
fn an_accept_encoding_must_take_the_compression_h15() {
    for (header, fits) in [
        ("gzip", true),
        ("br, gzip", true),
        ("GZIP;q=0.5", true),
        ("*", true),
        ("deflate, *;q=0.1", true),
        ("deflate", false),
        ("gzip;q=0", false),
        ("gzip;q=0.0, *", false),
        ("*;q=0.0", false),
        ("identity", false),
    ] {
        for name in ["Accept-Encoding", "accept-encoding"] {
            let probe = format!("compression = 'gzip'\nheaders = {{ {name} = '{header}' }}");
            let refused = diagnostics(&probe)
                .iter()
                .any(|text| text.contains("does not accept gzip"));
            assert_eq!(refused, !fits, "{name}: {header}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_guard() {
    for (rule, lines, expected) in [
        ("an unknown mode", "mode = 'dry-run'", "enforce"),
        (
            "an unknown key",
            "[release.analysis]\nthreshold = 100",
            "threshold",
        ),
        ("a number where a table is due", "rollback = 3", "table"),
        (
            "a watch that is too short",
            "[release.analysis]\nduration = '5s'",
            "too short",
        ),
        (
            "a watch of a day",
            "[release.analysis]\nduration = '1day'",
            "too long",
        ),
        (
            "an interval below what is asked",
            "[release.analysis]\ninterval = '10ms'",
            "too short",
        ),
        (
            "an increase without a unit",
            "[release.analysis]\nerror_rate_increase = '2'",
            "percentage points",
        ),
        (
            "an increase of nothing",
            "[release.analysis]\nerror_rate_increase = '0%'",
            "percentage points",
        ),
        (
            "no number at all",
            "[release.analysis]\nerror_rate_increase = 'NaN%'",
            "percentage points",
        ),
        (
            "a hold that is no time",
            "[release.analysis]\nhold = 'ever'",
            "no duration",
        ),
        (
            "an unknown action of the bake",
            "[release.analysis]\nbake = \"on\"",
            "bake",
        ),
        (
            "a bake that ends with the watch",
            "[release.analysis]\nbake_for = \"30s\"",
            "too short",
        ),
        (
            "a bake without end",
            "[release.analysis]\nbake_for = \"8d\"",
            "too long",
        ),
        (
            "rollbacks without end",
            "[release.rollback]\nmax_per_day = 1000",
            "0 to 100",
        ),
        ("no directory", "embedded = ' '", "names no directory"),
        ("no text", "embedded = 3", "embedded"),
    ] {
        let found = guard_mistakes(lines);
        assert!(
            found.iter().any(|text| text.contains(expected)),
            "{rule}: {expected:?} is not in {found:#?}"
        );
    }
    assert_eq!(
        guard_mistakes("mode = 'off'\nembedded = '/srv/history'"),
        [""; 0]
    );
}

#[test]
fn what_is_wrong_about_a_cluster_says_what_to_write_instead() {
    let release = "[[release]]\nname = 'a'\nnamespace = 'b'\nbase_url = 'http://x'\nprobe = [{ name = 'p', path = '/' }]\n";
    let selected = "[[release]]\nselect = '*'\nnamespace = 'b'\nbase_url = 'http://{release}'\nprobe = [{ name = 'p', path = '/' }]\n";
    for (rule, text, expected) in [
        (
            "a context alone",
            format!("[kubernetes]\ncontext = 'x'\n{release}"),
            "no use without a kubeconfig",
        ),
        (
            "another driver",
            format!("[kubernetes]\ndriver = 'sql'\n{release}"),
            "configmap",
        ),
        (
            "a helm without memory",
            format!("[kubernetes]\nhelm_memory = '64MiB'\n{release}"),
            "give helm 128 MiB or more",
        ),
        (
            "more memory than there is",
            format!("[kubernetes]\nhelm_memory = '1000000MiB'\n{release}"),
            "up to 16384 MiB",
        ),
        (
            "a map without a cluster",
            format!("[state]\nconfig_map = 'x'\n{release}"),
            "where there is no cluster",
        ),
        (
            "no name of a map",
            format!("[kubernetes]\n[state]\nconfig_map = 'X Y'\n{release}"),
            "no name that Kubernetes allows",
        ),
        (
            "a selection without a cluster",
            selected.to_owned(),
            "where there is no cluster",
        ),
        (
            "a selection with a name",
            format!(
                "[kubernetes]\n{}",
                selected.replace("select", "name = 'a'\nselect")
            ),
            "has a name beside select",
        ),
        (
            "a selection by no label",
            format!("[kubernetes]\n{}", selected.replace("'*'", "'shop'")),
            "is no label",
        ),
        (
            "a mistake in what is selected",
            format!(
                "[kubernetes]\n{}",
                selected.replace("path = '/'", "path = 'x'")
            ),
            "is no path",
        ),
        (
            "no pods",
            format!(
                "[kubernetes]\n{}",
                release.replace("path = '/'", "path = '/', pods = 'Web:'")
            ),
            "names no pods",
        ),
        (
            "a kind in small letters",
            format!("[kubernetes]\n{release}[release.rollback]\nmay_delete = ['pvc']\n"),
            "as in a manifest",
        ),
        (
            "a plural",
            format!(
                "[kubernetes]\n{release}[release.rollback]\ncluster_scoped = ['clusterroles']\n"
            ),
            "as \"ClusterRole\"",
        ),
        (
            "a kind of somebody's own without its group",
            format!(
                "[kubernetes]\n{release}[release.rollback]\ncluster_scoped = ['ClusterIssuer']\n"
            ),
            "name the group of its API as well",
        ),
        (
            "a kind with a version",
            format!(
                "[kubernetes]\n{release}[release.rollback]\ncluster_scoped = ['ClusterRole.V1']\n"
            ),
            "is not a valid kind of object",
        ),
        (
            "no namespace",
            format!("[kubernetes]\n{release}[release.rollback]\nnamespaces = ['*']\n"),
            "no name that Kubernetes allows",
        ),
        (
            "a number of a namespace",
            format!("[kubernetes]\n{release}[release.rollback]\nnamespaces = [1]\n"),
            "is not the name of a namespace",
        ),
        (
            "a whole user",
            format!("[kubernetes]\nimpersonate = 'system:serviceaccount:a:b'\n{release}"),
            "no name that Kubernetes allows",
        ),
    ] {
        let found = mistakes_in(&text);
        assert!(
            found.iter().any(|text| text.contains(expected)),
            "{rule}: {expected:?} is not in {found:#?}"
        );
    }
    let serve = "[serve]\nlisten = '127.0.0.1:0'\n";
    let kept = "[kubernetes]\n[state]\nconfig_map = 'x'\n";
    for (rule, text, expected) in [
        (
            "callers without a cluster",
            format!("{serve}kubernetes_auth = true\n{release}"),
            "needs a cluster to ask",
        ),
        (
            "half of a certificate",
            format!("{serve}tls = {{ cert_file = 'a' }}\n{release}"),
            "has no whole certificate",
        ),
        (
            "a lease without a cluster",
            format!("[lease]\n{release}"),
            "needs a cluster",
        ),
        (
            "a lease that forgets",
            format!("[kubernetes]\n[lease]\n{release}"),
            "would forget",
        ),
        (
            "a deadline after the end",
            format!("{kept}[lease]\ndeadline = '15s'\n{release}"),
            "do not fit together",
        ),
        (
            "half a second",
            format!("{kept}[lease]\nduration = '15500ms'\n{release}"),
            "do not fit together",
        ),
        (
            "no release",
            format!("[kubernetes]\nown_release = 'leadsman'\n{release}"),
            "names no release",
        ),
    ] {
        let found = mistakes_in(&text);
        assert!(
            found.iter().any(|text| text.contains(expected)),
            "{rule}: {expected:?} is not in {found:#?}"
        );
    }
    assert_eq!(mistakes_in(&format!("{kept}[lease]\n{release}")), [""; 0]);
    for right in [release, selected] {
        assert_eq!(mistakes_in(&format!("[kubernetes]\n{right}")), [""; 0]);
    }
}

#[test]
fn a_selection_is_written_out_for_each_release_that_it_takes() {
    let text = "[kubernetes]\n[[release]]\nselect = 'team=shop'\nnamespace = 'b'\nbase_url = 'http://{release}.b'\nprobe = [{ name = 'p', path = '/', pods = '{release}-api:http' }]\n\
                [[release]]\nname = 'own'\nnamespace = 'b'\nbase_url = 'http://elsewhere'\nprobe = [{ name = 'p', path = '/' }]\n";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probes.toml");
    std::fs::write(&file, text).unwrap();
    let found = |namespace: &str, name: &str, team: &str| DiscoveredRelease {
        namespace: Namespace::new(namespace),
        name: ReleaseName::new(name),
        labels: [("team".to_owned(), team.to_owned())].into(),
    };
    let sources = Sources {
        files: vec![file],
        discovered: vec![
            found("b", "web", "shop"),
            found("b", "own", "shop"),
            found("b", "x", "bank"),
            found("c", "y", "shop"),
        ],
        ..Sources::default()
    };
    let settings = config::load(&sources).unwrap().settings;
    let mut releases: Vec<_> = settings
        .releases
        .iter()
        .map(|release| (release.name.as_str(), release.probes[0].target.to_string()))
        .collect();
    releases.sort();
    // One that has a name of its own keeps its own settings.
    assert_eq!(
        releases,
        [
            ("own", "http://elsewhere/".to_owned()),
            ("web", "http://web.b/".to_owned())
        ]
    );
    let web = settings
        .releases
        .iter()
        .find(|release| release.name.as_str() == "web")
        .unwrap();
    let pods = web.probes[0].pods.as_ref().unwrap();
    assert_eq!(
        (pods.workload.as_deref(), pods.port.as_deref(), pods.tls),
        (Some("web-api"), Some("http"), None)
    );
}

/// The complaints about a release with these lines, with their way out.
fn guard_mistakes(lines: &str) -> Vec<String> {
    let text = format!(
        "[[release]]\nname = 'a'\nnamespace = 'b'\nbase_url = 'http://x'\n\
         probe = [{{ name = 'p', path = '/' }}]\n{lines}\n"
    );
    mistakes_in(&text)
}

/// The complaints about a configuration, with their way out.
fn mistakes_in(text: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probes.toml");
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        files: vec![file],
        ..Sources::default()
    };
    let Err(diagnostics) = config::load(&sources) else {
        return Vec::new();
    };
    let told = |diagnostic: &config::Diagnostic| {
        format!(
            "{} {} {}",
            diagnostic.path,
            diagnostic.message,
            diagnostic.help.as_deref().unwrap_or("")
        )
    };
    diagnostics.iter().map(told).collect()
}

/// Puts lines into a probe, and looks for a complaint.
#[track_caller]
fn check(rule: &str, lines: &str, expected: &str) {
    let found = diagnostics(lines);
    assert!(
        found.iter().any(|text| text.contains(expected)),
        "{rule}: {expected:?} is not in {found:#?}"
    );
}

/// The complaints about a probe with these lines; each stands in the probe's own lines.
#[track_caller]
fn diagnostics(lines: &str) -> Vec<String> {
    let target = if lines.contains("path =") || lines.contains("url =") {
        ""
    } else {
        "path = '/'\n"
    };
    let head =
        "[[release]]\nname = 'a'\nnamespace = 'b'\nbase_url = 'http://x'\n[[release.probe]]\n";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probes.toml");
    std::fs::write(&file, format!("{head}name = 'p'\n{target}{lines}\n")).unwrap();
    let sources = Sources {
        files: vec![file],
        ..Sources::default()
    };
    let Err(diagnostics) = config::load(&sources) else {
        return Vec::new();
    };
    for diagnostic in diagnostics.iter() {
        let (line, _) = diagnostics
            .line_and_column(diagnostic)
            .expect("a place in the file");
        assert!(line >= 5, "line {line}: {}", diagnostic.message);
        assert!(
            diagnostic.help.is_some(),
            "no way out: {}",
            diagnostic.message
        );
    }
    diagnostics
        .iter()
        .map(|diagnostic| diagnostic.message.clone())
        .collect()
}

#[test]
fn what_is_wrong_about_telling_people_says_what_to_write_instead() {
    let release = "[[release]]\nname = 'a'\nnamespace = 'b'\n[[release.probe]]\nname = 'p'\nurl = 'tcp://127.0.0.1:1'\n";
    let of_release = |keys: &str| release.replacen("namespace", &format!("{keys}\nnamespace"), 1);
    for (text, expected) in [
        (
            format!("[alertmanager]\n{release}"),
            "names no Alertmanager",
        ),
        (
            format!("[alertmanager]\nurls = ['nonsense']\n{release}"),
            "is no URL",
        ),
        (
            format!("[alertmanager]\nurls = ['ftp://a']\n{release}"),
            "is no http or https URL",
        ),
        (
            format!("[alertmanager]\nurls = ['http://u:hunter2@a']\n{release}"),
            "holds credentials",
        ),
        (
            format!("[alertmanager]\nurls = ['http://a']\nlabels = {{ a-b = 'c' }}\n{release}"),
            "is no name of a label",
        ),
        (
            format!("[alertmanager]\nurls = ['http://a']\nresend = '1ms'\n{release}"),
            "too short",
        ),
        (
            format!("[alertmanager]\nurls = ['http://a']\nbearer_token = 'hunter2'\n{release}"),
            "must not stand in a file",
        ),
        (format!("[slack]\n{release}"), "has no address"),
        (
            format!("[slack]\nurl = 'https://hooks.example.com/hunter2'\n{release}"),
            "must not stand in a file",
        ),
        (format!("[webhook]\n{release}"), "has no address"),
        (
            format!("[webhook]\nurl = 'http://a'\nsigning_key = 'hunter2'\n{release}"),
            "must not stand in a file",
        ),
        (
            of_release("objective = { availability = '90%' }"),
            "page-quick can never fire",
        ),
        (
            of_release("objective = { availability = '99' }"),
            "is no share",
        ),
        (of_release("objective = { }"), "promises nothing"),
        (
            of_release("objective = { latency = '99%' }"),
            "where no probe says which",
        ),
        (
            of_release("objective = { availability = '99%', window = '1w' }"),
            "no period of whole days",
        ),
        (
            of_release("objective = { availability = '99%', tiers = ['slow'] }"),
            "is no tier",
        ),
        (
            of_release("requests = { prometheus = 'http://a' }"),
            "is not complete",
        ),
        (
            of_release("requests = { prometheus = 'http://a', errors = 'x', total = 'y' }"),
            "is no query over $interval",
        ),
        (
            of_release("alert = [{ weight = 'reject' }]"),
            "matches nothing",
        ),
        (
            of_release("alert = [{ match = { alertname = 'a' } }]"),
            "would never hear of an alert",
        ),
        (
            of_release("alert = [{ match = {} }]"),
            "matches every alert",
        ),
        (
            of_release("alert = [{ match = { a = '(' } }]"),
            "is no regular expression",
        ),
        (
            of_release("alert = [{ match = { a = 'b' }, weight = 'heavy' }]"),
            "is not known",
        ),
    ] {
        let found = mistakes_in(&text);
        assert!(
            found.iter().any(|text| text.contains(expected)),
            "{expected:?} is not in {found:#?}"
        );
        assert!(
            !found.iter().any(|text| text.contains("hunter2")),
            "{found:#?}"
        );
    }
    for right in [
        of_release("objective = { availability = '90%', tiers = ['page-slow', 'ticket-slow'] }"),
        "[serve]\ntoken_file = '/t'\n".to_owned()
            + &of_release(
                "alert = [{ match = { alertname = 'High.*' } }, { match = { a = 'b' }, weight = 'note' }]",
            ),
        format!(
            "[slack]\nurl_file = '/a'\n[webhook]\nurl = 'https://a/b'\nsigning_key_file = '/c'\n{release}"
        ),
    ] {
        assert_eq!(mistakes_in(&right), [""; 0], "{right}");
    }
}

/// What a file with these tables before a release whose probe has these lines is told: mistakes, then hints.
fn told_of_needs(above: &str, lines: &str) -> (Vec<String>, Vec<String>) {
    let release = "[[release]]\nname = 'web'\nnamespace = 'shop'\nbase_url = 'http://x'\nembedded = '/h'\n\
                   [[release.probe]]\nname = 'api'\npath = '/'\n";
    told_of(&format!(
        "state = {{ directory = '/s' }}\n{above}{release}{lines}\n"
    ))
}

/// What a file is told: mistakes, then hints.
fn told_of(text: &str) -> (Vec<String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probes.toml");
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        files: vec![file],
        ..Sources::default()
    };
    match config::load(&sources) {
        Ok(loaded) => (Vec::new(), loaded.hints),
        Err(diagnostics) => {
            let all = diagnostics.iter().map(|diagnostic| {
                let help = diagnostic.help.as_ref().expect("a way out");
                format!("{}: {}; {help}", diagnostic.path, diagnostic.message)
            });
            (all.collect(), Vec::new())
        }
    }
}

const POSTGRES: &str = "[[dependency]]\nname = 'postgres'\nurl = 'tcp://db:5432'\n";

#[test]
fn what_is_wrong_with_what_a_probe_needs() {
    let many: Vec<String> = (0..257)
        .map(|number| format!("[[dependency]]\nname = 'd{number}'\nurl = 'tcp://db:1'\n"))
        .collect();
    let many = many.concat();
    let needs_many = |from: usize, to: usize| {
        let names: Vec<String> = (from..to).map(|number| format!("'d{number}'")).collect();
        format!("needs = [{}]", names.join(", "))
    };
    let needs_65 = needs_many(0, 65);
    for (what, above, lines, expected) in [
        (
            "an unknown name",
            POSTGRES,
            "needs = ['postgers']",
            "did you mean \"postgres\"?",
        ),
        (
            "none at all",
            "",
            "needs = ['postgres']",
            "there is no [[dependency]] \"postgres\"",
        ),
        (
            "one name twice",
            POSTGRES,
            "needs = ['postgres', 'postgres']",
            "names postgres twice",
        ),
        (
            "no name",
            POSTGRES,
            "needs = [5]",
            "names nothing that could be needed",
        ),
        (
            "no release",
            POSTGRES,
            "needs = ['release:shop']",
            "names nothing that could be needed",
        ),
        (
            "an unknown release",
            "",
            "needs = ['release:shop/other']",
            "no release shop/other is guarded here",
        ),
        (
            "itself",
            "",
            "needs = ['release:shop/web']",
            "shop/web needs itself",
        ),
        (
            "a release as a dependency",
            "[[dependency]]\nname = 'release:shop/web'\nurl = 'tcp://db:1'\n",
            "",
            "names a release, which is no dependency of its own",
        ),
        (
            "two of one name",
            &format!("{POSTGRES}{POSTGRES}"),
            "needs = 'postgres'",
            "the name stands twice",
        ),
        (
            "two of one name by their ids",
            &format!("{POSTGRES}id = 'a'\n{POSTGRES}id = 'b'\n"),
            "needs = 'postgres'",
            "the name stands twice",
        ),
        (
            "the name of the control probe",
            "[self_check.control]\nname = 'postgres'\nurl = 'tcp://c:1'\n[[dependency]]\nname = 'postgres'\nurl = 'tcp://db:1'\n",
            "needs = 'postgres'",
            "has the name of the control probe",
        ),
        (
            "pods of it",
            "[[dependency]]\nname = 'postgres'\nurl = 'tcp://db:1'\npods = 'db'\n",
            "needs = 'postgres'",
            "this one belongs to none",
        ),
        (
            "too many of them",
            &many,
            &needs_many(0, 60),
            "write at most 256",
        ),
        (
            "too many for one release",
            &many,
            &needs_65,
            "need 65 things; name at most 64",
        ),
    ] {
        let (diagnostics, _) = told_of_needs(above, lines);
        let is_told = diagnostics.iter().any(|text| text.contains(expected));
        assert!(is_told, "{what}: {expected:?} is not in {diagnostics:#?}");
    }
}

#[test]
fn releases_that_need_each_other_are_a_mistake() {
    let release = |name: &str, needs: &str| {
        format!(
            "[[release]]\nname = '{name}'\nnamespace = 'shop'\nbase_url = 'http://x'\nembedded = '/h'\n\
             [[release.probe]]\nname = 'p'\npath = '/'\nneeds = [{needs}]\n"
        )
    };
    let above = |api: &str, db: &str| format!("{}{}", release("api", api), release("db", db));
    let needs_api = "needs = ['release:shop/api']";
    let (web, db) = ("'release:shop/web'", "'release:shop/db'");
    for (above, expected) in [
        (above(web, ""), "shop/api needs shop/web needs shop/api: "),
        (
            above(db, web),
            "shop/api needs shop/db needs shop/web needs shop/api: ",
        ),
    ] {
        let (diagnostics, _) = told_of_needs(&above, needs_api);
        let is_told =
            |text: &String| text.contains(expected) && text.ends_with("remove one of these needs");
        assert!(
            diagnostics.iter().any(is_told),
            "{expected:?}: {diagnostics:#?}"
        );
    }
    let (diagnostics, _) = told_of_needs(&above(db, ""), needs_api);
    assert!(diagnostics.is_empty(), "{diagnostics:#?}");
}

#[test]
fn a_dependency_that_nothing_needs_is_a_hint() {
    let (diagnostics, hints) = told_of_needs(POSTGRES, "needs = ['postgres']");
    assert!(diagnostics.is_empty(), "{diagnostics:#?}");
    let nothing = |hint: &String| hint.contains("no probe needs it");
    assert!(!hints.iter().any(nothing), "{hints:#?}");
    let (diagnostics, hints) = told_of_needs(POSTGRES, "");
    assert!(diagnostics.is_empty(), "{diagnostics:#?}");
    assert!(hints.iter().any(nothing), "{hints:#?}");
}

/// What a release in a cluster with these keys of `analysis`, and these lines at its two probes, is told: mistakes, then
/// hints.
fn told_of_an_analysis(analysis: &str, probes: [&str; 2]) -> (Vec<String>, Vec<String>) {
    let text = format!(
        "[kubernetes]\n[state]\ndirectory = '/s'\n\
         [[release]]\nname = 'web'\nnamespace = 'shop'\nbase_url = 'http://x'\nanalysis = {{ {analysis} }}\n\
         [[release.probe]]\nname = 'api'\npath = '/'\n{}\n[[release.probe]]\nname = 'db'\npath = '/db'\n{}\n",
        probes[0], probes[1]
    );
    told_of(&text)
}

#[test]
fn settings_that_can_never_work_together_are_mistakes_and_doubtful_ones_hints() {
    for (analysis, diagnostic) in [
        (
            "duration = '10m', max_duration = '5m'",
            "release.web.analysis.max_duration: 5m is shorter than the duration of 10m; make it at least as long",
        ),
        (
            "ready_within = '20m'",
            "would be rolled back after 20m, and every analysis ends after 20m at the latest; make ready_within shorter",
        ),
        (
            "duration = '1m', max_duration = '2m', hold = '3m', ready_within = '1m'",
            "181 failures in a row, one each 1s, which takes 3m 1s, and every analysis ends after 2m at the latest; make interval",
        ),
    ] {
        let (diagnostics, _) = told_of_an_analysis(analysis, [""; 2]);
        let is_told = diagnostics.len() == 1 && diagnostics[0].contains(diagnostic);
        assert!(
            is_told,
            "{analysis}: {diagnostic:?} is not {diagnostics:#?}"
        );
    }
    for (analysis, probes, hint) in [
        (
            "duration = '1m', max_duration = '4m'",
            [""; 2],
            "would be rolled back after 5m, and every analysis ends after 4m",
        ),
        (
            "duration = '1m', hold = '90s'",
            [""; 2],
            "which takes 1m 31s: longer than the analysis of 1m",
        ),
        (
            "duration = '1m', interval = '10s'",
            [""; 2],
            "in an analysis of 1m each probe has 6 results",
        ),
        (
            "bake_for = '6m'",
            [""; 2],
            "ends 1m after the shortest analysis, and errors show in it after more than 2m 30s",
        ),
        (
            "duration = '1m'",
            ["", "interval = '30s'"],
            "should a rate limit answer, probes are asked at their own interval, and db would have less than three results",
        ),
        (
            "",
            ["pods = 'web'", ""],
            "pods are asked directly for api, and not for db",
        ),
    ] {
        let (diagnostics, hints) = told_of_an_analysis(analysis, probes);
        assert!(diagnostics.is_empty(), "{analysis}: {diagnostics:#?}");
        let is_told = hints.len() == 1 && hints[0].contains(hint);
        assert!(is_told, "{analysis} {probes:?}: {hint:?} is not {hints:#?}");
    }
    for right in [
        "",
        "duration = '30m'",
        "max_duration = '20m', ready_within = '19m'",
        "duration = '30s', bake = 'off'",
        "duration = '1m', bake_for = '4m'",
    ] {
        for probes in [[""; 2], ["pods = 'web'", "pods = ':http'"]] {
            let told = told_of_an_analysis(right, probes);
            assert_eq!(told, Default::default(), "{right}");
        }
    }
    // Where nothing is judged, nothing can be wrong with it.
    let off = "[[release]]\nname = 'web'\nnamespace = 'shop'\nbase_url = 'http://x'\nmode = 'off'\n\
               analysis = { ready_within = '1h' }\n[[release.probe]]\nname = 'api'\npath = '/'\n";
    assert!(told_of(off).0.is_empty());
}

/// The same of these keys of `rollback`.
fn told_of_a_rollback(rollback: &str) -> (Vec<String>, Vec<String>) {
    told_of(&format!(
        "[kubernetes]\n[state]\ndirectory = '/s'\n\
         [[release]]\nname = 'web'\nnamespace = 'shop'\nbase_url = 'http://x'\nrollback = {{ {rollback} }}\n\
         [[release.probe]]\nname = 'api'\npath = '/'\n"
    ))
}

#[test]
fn what_is_wrong_with_hooks_that_migrate_nothing() {
    for (migrations, diagnostic) in [
        (
            "'maybe'",
            "is not known; write \"compatible\" or \"unknown\", or { ignore",
        ),
        (
            "true",
            "is not known; write \"compatible\" or \"unknown\", or { ignore",
        ),
        (
            "{ ignore = ['*-admission-*', ''] }",
            "is not the name of a hook; write it in quotes",
        ),
        (
            "{ ignore = [5] }",
            "is not the name of a hook; write it in quotes",
        ),
        ("{ ignored = ['*'] }", "unknown key"),
    ] {
        let (diagnostics, _) = told_of_a_rollback(&format!("migrations = {migrations}"));
        let is_told = diagnostics.len() == 1 && diagnostics[0].contains(diagnostic);
        assert!(
            is_told,
            "{migrations}: {diagnostic:?} is not {diagnostics:#?}"
        );
    }
    for right in [
        "'compatible'",
        "'unknown'",
        "{ ignore = ['*-admission-*'] }",
    ] {
        let told = told_of_a_rollback(&format!("migrations = {right}"));
        assert_eq!(told, Default::default(), "{right}");
    }
}
