//! The status page in a real Chromium: what it shows of each state, and that everybody can use it.
//!
//! Without Debian's packages `chromium` and `chromium-driver` these tests say so and do nothing, unless
//! `LEADSMAN_TEST_ALL` is set. A test that fails leaves a screenshot under `target/page-screenshots/`; with
//! `LEADSMAN_PAGE_SCREENSHOTS` set there is one of every state, light and dark, wide and narrow.

mod browser;
mod everybody;

use std::time::Duration;

use browser::{PAGE, Page, with_page};
use serde_json::{Value, json};

const STATES: [(&str, &str); 7] = [
    ("empty", include_str!("page/empty.json")),
    ("idle", include_str!("page/idle.json")),
    ("analyzing", include_str!("page/analyzing.json")),
    ("rolling_back", include_str!("page/rolling_back.json")),
    ("rolled_back", include_str!("page/rolled_back.json")),
    ("own_trouble", include_str!("page/own_trouble.json")),
    ("hostile", include_str!("page/hostile.json")),
];

fn state(name: &str) -> Value {
    let found = STATES.iter().find(|(other, _)| *other == name);
    serde_json::from_str(found.expect("a known state").1).unwrap()
}

/// So many copies of the release of a state, `mykadoo-0` and so on.
fn many(name: &str, count: usize) -> Value {
    let mut all = state(name);
    let one = all["releases"][0].clone();
    let copies = (0..count).map(|number| {
        let mut copy = one.clone();
        copy["release"] = json!(format!("mykadoo-{number}"));
        copy
    });
    all["releases"] = copies.collect();
    all
}

#[track_caller]
fn assert_says(page: &Page, expected: &[&str]) {
    let words = page.words();
    for text in expected {
        assert!(words.contains(text), "{text:?} is not shown in:\n{words}");
    }
}

fn headline(page: &Page) -> String {
    page.text("$('headline').textContent")
}

#[test]
fn an_idle_release_is_said_to_be_good() {
    with_page(|page| {
        page.put(state("idle").to_string());
        page.open(1200, "light");
        assert_eq!(headline(page), "demo/mykadoo is good");
        assert_eq!(
            page.text("document.title"),
            "✔ demo/mykadoo is good · Leadsman"
        );
        page.until(
            "the release is open",
            "document.querySelectorAll('.probe').length === 4",
        );
        assert_says(
            page,
            &[
                "Leadsman 0.1.0",
                "Revision 2 serves and is good.",
                "Idle · for 3 h 3 min · revision 2 · 4 probes good · enforce",
                "http://mykadoo.demo.svc:8080/api/health/redis",
                "60 results, all successful; slowest success",
                "p99\n12 ms",
                "Verdict on revision 2",
                "Revision 2 is kept.",
            ],
        );
        assert_eq!(
            page.js("document.querySelector('#attention').children.length"),
            0
        );
    });
}

#[test]
fn a_revision_that_bakes_is_shown_with_the_time_to_go_and_how_it_ended() {
    with_page(|page| {
        let bake = |state: &str, until: f64| {
            let mut status = self::state("idle");
            status["releases"][0]["bake"] = json!({
                "revision": 2, "state": state, "since": 1_732_383_000.0, "until": until,
                "text": "0 of the last 96 results failed, 2.6 % are tolerated",
                "e_value": 0.9, "threshold": 100_000.0
            });
            status.to_string()
        };
        page.put(bake("baking", 1_732_386_600.0));
        page.open(1200, "light");
        page.until(
            "the release is open",
            "document.querySelectorAll('.probe').length === 4",
        );
        assert_says(
            page,
            &[
                "Bake of revision 2",
                "30 min to go until it is known to be good",
                "Idle · for 3 h 3 min · bakes for another 30 min · revision 2",
            ],
        );
        assert_eq!(headline(page), "demo/mykadoo is good");
        page.put(bake("failed", 1_732_383_120.0));
        page.open(1200, "light");
        page.until(
            "the release is open",
            "document.querySelectorAll('.probe').length === 4",
        );
        assert_says(page, &["Bake of revision 2", "Failed", "it took 2 min"]);
        assert_eq!(
            headline(page),
            "demo/mykadoo is not known to be good: its bake failed"
        );
    });
}

#[test]
fn a_watch_shows_its_evidence_so_far() {
    with_page(|page| {
        page.put(state("analyzing").to_string());
        page.open(1200, "light");
        assert_eq!(headline(page), "demo/mykadoo: revision 3 is being analyzed");
        page.until(
            "the release is open",
            "document.querySelector('.chart') !== null",
        );
        assert_says(
            page,
            &[
                "analyzed\n48 s of 5 min",
                "coverage\n98 %",
                "pods\ncomplete",
                "all endpoints\t9 of 192 (4.7 %)\t2 of 14400 (0.014 %)",
                "100: roll back",
                "48 s so far of 2 min",
                "at most 60 s",
                "A rollback could not be done now: helm is missing",
            ],
        );
        let label = page.text("document.querySelector('.chart').getAttribute('aria-label')");
        assert!(
            label.contains("after 48 s; the release is rolled back at 100"),
            "{label}"
        );
        let track = page.text("document.querySelector('.chart .track').getAttribute('d')");
        assert_eq!(track.matches(['M', 'L']).count(), 48);
        // A failure differs from a good one by more than its colour.
        let db = "document.querySelectorAll('.probe')[1].querySelector('.mark').getAttribute('d')";
        assert!(page.text(db).contains("l4 4m0-4l-4 4"));
    });
}

#[test]
fn a_watch_says_what_it_does_not_judge_and_why() {
    with_page(|page| {
        page.put(state("analyzing").to_string());
        page.open(1200, "light");
        page.until(
            "the release is open",
            "document.querySelector('.chart') !== null",
        );
        assert_says(
            page,
            &[
                "Not judged so far:",
                "redis does not count, because it failed before the revision appeared",
                "4 results not judged, because a rate limit answered",
                "Slower: web: 31 of 40 answers took longer than 28 ms",
                "3 pods were asked directly; what is normal meanwhile is learned from 3 kept rollouts",
            ],
        );
    });
}

#[test]
fn what_people_should_know_of_a_release_is_shown() {
    with_page(|page| {
        page.put(state("idle").to_string());
        page.open(1200, "light");
        page.until(
            "the release is open",
            "document.querySelector('.release[open] .probe') !== null",
        );
        let known = [
            "Worth knowing",
            "An autoscaler, noon, scales Deployment web",
        ];
        assert_says(page, &known);
    });
}

#[test]
fn latencies_of_before_and_since_stand_on_one_scale() {
    with_page(|page| {
        for (name, says) in [
            (
                "analyzing",
                "Revision 3 is compared with the one before: good answers by how long they took",
            ),
            (
                "rolled_back",
                "Revision 3 was compared with the one before: good answers by how long they took",
            ),
        ] {
            let status = state(name);
            let latencies = status["releases"][0]["latencies"].clone();
            page.put(status.to_string());
            page.open(1200, "light");
            page.until(
                "the release is open",
                "document.querySelector('.dist') !== null",
            );
            assert_says(page, &["Latency before and since", says, "new pods"]);
            assert_eq!(page.js("document.querySelectorAll('.dist').length"), 4);
            // What is drawn can be heard as well, and read as numbers.
            let label = page.text("document.querySelector('.dist').getAttribute('aria-label')");
            let expected =
                "How long good answers of api took: before, 3600 answers, half of them within";
            assert!(label.starts_with(expected), "{label}");
            assert!(label.contains("; new pods, "), "{label}");
            page.run("document.querySelector('.numbers').open = true;");
            assert_says(page, &["web, before\t3600\t", "web, since"]);
            // A bar for each column with answers, of each group.
            let groups = latencies["probes"][3]["distributions"].as_array().unwrap();
            for (at, group) in groups.iter().enumerate() {
                let counts = group["counts"].as_array().unwrap();
                let bars = counts.iter().filter(|count| **count != 0).count();
                let drawn = page.text(&format!(
                    "document.querySelectorAll('.dist')[3].querySelectorAll('.before, .since')[{at}].getAttribute('d')"
                ));
                assert_eq!(drawn.matches('M').count(), bars, "{name}, {at}: {drawn}");
            }
            // The median of what is slower is further to the right.
            let median = |at: usize| {
                let path = page.text(&format!(
                    "document.querySelectorAll('.dist')[3].querySelectorAll('.middle')[{at}].getAttribute('d')"
                ));
                let x = path.trim_start_matches('M').split(' ').next().unwrap_or("");
                x.parse::<f64>().unwrap()
            };
            assert!(median(1) > median(0) + 20.0, "{} {}", median(0), median(1));
        }
        page.put(state("idle").to_string());
        page.open(1200, "light");
        page.until(
            "the release is open",
            "document.querySelectorAll('.probe').length === 4",
        );
        assert!(!page.words().contains("Latency before"), "there is none");
    });
}

#[test]
fn dependencies_are_shown_with_what_needs_them_and_open_when_one_fails() {
    with_page(|page| {
        let mut status = state("idle");
        page.put(status.to_string());
        page.open(1200, "light");
        assert_eq!(headline(page), "demo/mykadoo is good");
        assert_says(page, &["Dependencies", "3 good"]);
        assert_eq!(page.js("$('needed').open"), false);
        let postgres = &mut status["dependencies"][0];
        postgres["state"] = json!("failure");
        postgres["reason"] = json!("connect");
        postgres["explanation"] = json!("connection refused");
        status["alerts"] = json!([{
            "labels": { "alertname": "LeadsmanDependencyFailing", "dependency": "postgres" }, "state": "firing",
            "summary": "A dependency fails.", "text": "", "since": status["now"], "confirmed_by": []
        }]);
        page.put(status.to_string());
        page.until("it opens", "$('needed').open");
        assert_eq!(headline(page), "The dependency postgres fails");
        assert_says(
            page,
            &[
                "Failures of what needs it are not held against a revision.",
                "1 of 3 bad: postgres",
                "connect: connection refused",
                "Needed by demo/mykadoo (db)",
                "Needed by demo/mykadoo (redis, api)",
                "Nothing needs it",
                "LeadsmanDependencyFailing",
            ],
        );
        assert_eq!(page.js("$('own').hidden"), true, "it is no trouble of ours");
        // A release in trouble comes first, and the dependency is spoken of beside it.
        status["releases"][0]["probes"][1]["state"] = json!("failure");
        page.put(status.to_string());
        page.until(
            "the release is in trouble",
            "$('headline').textContent === 'demo/mykadoo is in trouble'",
        );
        assert_says(page, &["The dependency postgres fails."]);
        // What a reader has closed stays closed.
        page.run("document.querySelector('#needed > summary').click();");
        status["dependencies"][0]["state"] = json!("success");
        page.put(status.to_string());
        page.until(
            "it is good again",
            "$('needed-text').textContent === '3 good'",
        );
        status["dependencies"][0]["state"] = json!("failure");
        page.put(status.to_string());
        page.until(
            "it fails again",
            "$('needed-text').textContent !== '3 good'",
        );
        assert_eq!(page.js("$('needed').open"), false);
        // Without dependencies there is nothing of them.
        status["dependencies"] = json!([]);
        page.put(status.to_string());
        page.until("they are gone", "$('needed').hidden");
    });
}

#[test]
fn a_release_that_is_rolled_back_comes_with_the_verdict_and_the_clocks() {
    with_page(|page| {
        page.put(state("rolling_back").to_string());
        page.open(1200, "light");
        assert_eq!(headline(page), "demo/mykadoo is being rolled back");
        assert!(page.text("document.title").starts_with('↺'));
        page.until(
            "the release is open",
            "document.querySelectorAll('.probe').length === 4",
        );
        assert_says(
            page,
            &[
                "status: 503 instead of 200",
                "1 of 4 probes failing: db",
                "errors 14/60 (23.3 %) in the last 60 s vs 2/1200 (0.17 %) before",
                "db: status 12 times",
                "With 5 failures fewer the e-value would have stayed below 100.",
                "from the moment the revision appeared to the verdict",
                "60 s of 2 min",
                "Detect from trouble",
                "from the first sign of trouble",
                "56 s of 2 min",
                "12 s so far of 2 min",
                "Helm is told to roll back to revision 2.",
            ],
        );
    });
}

#[test]
fn a_release_that_has_recovered_is_still_spoken_of() {
    with_page(|page| {
        page.put(state("rolled_back").to_string());
        page.open(1200, "light");
        assert_eq!(
            headline(page),
            "demo/mykadoo was rolled back and has recovered"
        );
        page.until(
            "the release is open",
            "document.querySelectorAll('.release .log').length === 4",
        );
        assert_says(
            page,
            &[
                "Rolled back",
                "1 min 35 s; the probes are good again",
                "Revision 3",
                "Recovered",
                "Older events (",
            ],
        );
        assert!(!page.words().contains("so far"), "no clock runs any more");
    });
}

#[test]
fn alerts_and_error_budgets_stand_with_their_release() {
    with_page(|page| {
        let mut status = state("rolled_back");
        status["alerts"] = json!([{
            "labels": { "alertname": "LeadsmanAlertDeliveryFailing" }, "state": "firing",
            "summary": "Alerts do not reach an Alertmanager.", "text": "", "since": status["now"], "confirmed_by": []
        }]);
        page.put(status.to_string());
        page.open(1200, "light");
        assert_says(
            page,
            &[
                "LeadsmanReleaseRolledBack",
                "confirmed by 2 Alertmanagers",
                "LeadsmanReleaseRegressed",
                "Resolved",
                "api, availability 99.9 % in 30d",
                "49.9 %",
                "Burning: page-quick",
                "15 d",
                "all probes, latency 99 % in 30d",
                "Overspent",
                "LeadsmanAlertDeliveryFailing",
                "not confirmed by any Alertmanager",
            ],
        );
    });
}

#[test]
fn a_revision_found_bad_that_still_runs_is_trouble() {
    with_page(|page| {
        for outcome in [
            "refused",
            "rollback_failed",
            "still_failing",
            "worsened",
            "would_roll_back",
        ] {
            let mut status = state("rolled_back");
            status["releases"][0]["history"][1]["outcome"] = json!(outcome);
            page.put(status.to_string());
            page.open(1200, "light");
            assert_eq!(headline(page), "demo/mykadoo is in trouble", "{outcome}");
        }
    });
}

/// Where each release has a Lease of its own, another replica may act for it.
#[test]
fn a_release_whose_replica_does_not_answer_is_not_called_good() {
    with_page(|page| {
        let mut status = state("idle");
        let release = &mut status["releases"][0];
        release["phase"] = json!("unknown");
        release["says"] = json!("The replica two acts for it, and cannot be asked at the moment");
        page.put(status.to_string());
        page.open(1200, "light");
        assert_eq!(headline(page), "demo/mykadoo: its state is not known");
        assert_says(
            page,
            &[
                "Unknown",
                "The replica two acts for it, and cannot be asked at the moment",
            ],
        );
    });
}

#[test]
fn trouble_of_our_own_is_said_before_anything_is_called_good() {
    with_page(|page| {
        let mut blind = state("own_trouble");
        page.put(blind.to_string());
        page.open(1200, "light");
        assert_eq!(headline(page), "Leadsman itself is in trouble");
        assert_says(
            page,
            &[
                "The control probe fails",
                "Waiting: Leadsman cannot see, so it judges nothing.",
                "The targets of several hosts all fail at once",
                "4 of 4 probes unknown: api, db, redis, …",
            ],
        );
        blind["troubles"] = json!(["a_new_kind"]);
        page.put(blind.to_string());
        page.until(
            "an unknown trouble is named",
            "$('troubles').innerText === 'A new kind'",
        );
        let mut starting = state("idle");
        starting["ready"] = json!(false);
        page.put(starting.to_string());
        page.until(
            "starting is said",
            "$('headline').textContent === 'Leadsman is starting or stopping'",
        );
        // But trouble of a release comes first.
        let mut both = state("rolling_back");
        both["troubles"] = json!(["control"]);
        page.put(both.to_string());
        page.until(
            "the release comes first",
            "$('headline').textContent === 'demo/mykadoo is being rolled back' && !$('own').hidden",
        );
    });
}

#[test]
fn without_releases_the_page_says_what_to_do() {
    with_page(|page| {
        page.put(state("empty").to_string());
        page.open(1200, "light");
        assert_eq!(headline(page), "No release is configured");
        assert_says(page, &["probes.toml", "leadsman check"]);
    });
}

#[test]
fn hostile_values_are_only_ever_text() {
    with_page(|page| {
        page.put(state("hostile").to_string());
        page.open(1200, "light");
        page.run("for (const part of document.querySelectorAll('details')) part.open = true;");
        page.wait_for_polls(2);
        assert_says(
            page,
            &[
                "<img src=x onerror=\"window.pwned=1\">",
                "</script><script>window.pwned=1</script>",
            ],
        );
        assert_eq!(page.js("window.pwned === undefined"), true);
        assert_eq!(page.js("document.images.length"), 0);
        assert_eq!(page.js("document.scripts.length"), 1);
        assert_eq!(
            page.js("[...document.links].every(a => a.origin === location.origin)"),
            true
        );
        let words = page.words();
        for nonsense in ["NaN", "undefined", "[object", "Infinity", "function"] {
            assert!(
                !words.contains(nonsense),
                "{nonsense} is shown in:\n{words}"
            );
        }
        assert_eq!(
            page.text("$('stale-text').textContent"),
            "",
            "the page survives all of it"
        );
    });
}

#[test]
fn a_change_of_state_keeps_the_focus_and_what_is_open() {
    with_page(|page| {
        page.put(state("analyzing").to_string());
        page.open(1200, "light");
        page.run("window.kept = document.querySelector('.release > summary'); kept.focus();");
        page.put(state("rolling_back").to_string());
        page.until(
            "the next phase",
            "$('headline').textContent.includes('being rolled back')",
        );
        assert_eq!(page.js("document.activeElement === kept"), true);
        // The inner part that a reader opens stays open, also when another release comes before this one.
        let mut status = state("rolled_back");
        page.put(status.to_string());
        page.until(
            "older events",
            "document.querySelector('.body .older:not([hidden])') !== null",
        );
        page.run("window.older = document.querySelector('.body .older'); older.open = true; older.firstChild.focus();");
        let mut other = status["releases"][0].clone();
        other["release"] = json!("another");
        status["releases"].as_array_mut().unwrap().insert(0, other);
        page.put(status.to_string());
        page.until(
            "two releases",
            "document.querySelectorAll('.release').length === 2",
        );
        assert_eq!(
            page.js("older.open && document.activeElement === older.firstChild"),
            true
        );
        // Nor does a new order take it away.
        status["releases"].as_array_mut().unwrap().reverse();
        page.put(status.to_string());
        page.until(
            "the other order",
            "document.querySelector('.release h3').textContent === 'demo/mykadoo'",
        );
        assert_eq!(
            page.js("older.open && document.activeElement === older.firstChild"),
            true
        );
        // What a reader has closed stays closed.
        page.run(
            "const top = document.querySelector('.release > summary'); top.focus(); top.click();",
        );
        page.wait_for_polls(3);
        assert_eq!(page.js("document.querySelector('.release').open"), false);
        // When the focused release is gone, the focus is at the start of what is left.
        page.put(state("empty").to_string());
        page.until(
            "no release",
            "document.querySelectorAll('.release').length === 0",
        );
        assert_eq!(page.text("document.activeElement.id"), "main");
    });
}

#[test]
fn a_screen_reader_hears_of_phases_and_not_of_seconds() {
    with_page(|page| {
        page.put(state("analyzing").to_string());
        page.open(1200, "light");
        page.run(
            "window.heard = []; for (const live of document.querySelectorAll('[aria-live],[role=status]')) \
             new MutationObserver(() => heard.push(live.textContent)).observe(live, {childList: true, subtree: true, characterData: true});",
        );
        let mut later = state("analyzing");
        later["now"] = json!(later["now"].as_f64().unwrap() + 1.0);
        later["releases"][0]["analysis"]["elapsed_s"] = json!(49.0);
        later["releases"][0]["says"] = json!("Revision 3 is being analyzed: 49 s of 5 min.");
        page.put(later.to_string());
        page.until(
            "a second later",
            "document.body.innerText.includes('49 s of 5 min')",
        );
        page.wait_for_polls(2);
        assert_eq!(page.js("heard"), json!([]));
        page.put(state("rolling_back").to_string());
        page.until("something is said", "heard.length > 0");
        page.wait_for_polls(2);
        assert_eq!(
            page.js("heard"),
            json!([
                "demo/mykadoo: Rolling back. Rolling back from revision 3 to revision 2: 1 of 3 pods is ready."
            ])
        );
    });
}

#[test]
fn old_data_is_called_stale_and_asked_for_less_often() {
    with_page(|page| {
        page.put(state("idle").to_string());
        page.open(1200, "light");
        assert_eq!(page.text("$('stale-text').textContent"), "");
        page.break_down();
        page.until("stale", "$('stale-text').textContent !== ''");
        let from = page.asked().len() - 1;
        let said = page.text("$('stale-text').textContent");
        assert!(
            said.starts_with("Stale since ") && said.contains("Leadsman answers with status 503"),
            "{said}"
        );
        assert!(
            page.text("document.title").starts_with("? Stale since "),
            "the tab says so too"
        );
        assert_eq!(
            page.js("$('stale-text').getAttribute('role') + $('stale').getClientRects().length"),
            "status1"
        );
        // It stays in sight, and its age grows outside of the live region.
        page.run("document.body.style.minHeight = '3000px'; scrollTo(0, 1500);");
        page.until(
            "it stays in sight",
            "$('stale').getBoundingClientRect().top === 0",
        );
        page.run("window.seenAge = $('stale-age').textContent;");
        page.until("its age grows", "$('stale-age').textContent !== seenAge");
        assert_eq!(page.text("$('stale-text').textContent"), said);
        page.wait_for_polls(1);
        let asked = page.asked();
        let pause = asked[from + 1].duration_since(asked[from]);
        assert!(
            pause > Duration::from_secs(4),
            "asked again after {pause:?}"
        );
        // An answer that is none is no better; a good one ends it.
        page.put("<html>");
        page.until(
            "not understood",
            "$('stale-text').textContent.includes('the answer is not understood')",
        );
        page.put(state("idle").to_string());
        page.until("fresh", "$('stale-text').textContent === ''");
        assert_eq!(
            page.text("document.title"),
            "✔ demo/mykadoo is good · Leadsman"
        );
        assert_eq!(page.text("$('stale-age').textContent"), "");
    });
}

#[test]
fn a_page_without_any_data_says_so() {
    with_page(|page| {
        page.break_down();
        page.open_before_data(400, "dark");
        page.until(
            "no data",
            "$('stale-text').textContent.startsWith('No data yet: ')",
        );
        assert_eq!(headline(page), "Nothing is known");
        page.put(state("idle").to_string());
        page.until(
            "data",
            "$('headline').textContent === 'demo/mykadoo is good'",
        );
    });
}

#[test]
fn the_page_is_one_file_with_nothing_from_elsewhere() {
    for sign in [
        "http:",
        "https:",
        "src=",
        "@import",
        "url(",
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
    ] {
        let allowed = if sign == "http:" {
            PAGE.matches("http://www.w3.org/2000/svg").count()
        } else {
            0
        };
        assert_eq!(PAGE.matches(sign).count(), allowed, "{sign}");
    }
}
