//! That everybody can use the page: on a small screen, with the keyboard alone, with poor sight, with many releases.

use serde_json::json;

use super::browser::with_page;
use super::{STATES, assert_says, headline, many, state};

const CHECKS: &str = include_str!("checks.js");
const TAB: char = '\u{E004}';
const ENTER: char = '\u{E007}';

#[test]
fn every_state_fits_is_legible_and_well_formed() {
    with_page(|page| {
        for (name, _) in STATES {
            for (scheme, width) in [
                ("light", 1200),
                ("dark", 1200),
                ("light", 400),
                ("dark", 320),
            ] {
                page.put(state(name).to_string());
                page.open(width, scheme);
                page.run(
                    "for (const part of document.querySelectorAll('details')) part.open = true;",
                );
                page.until(
                    "all is open",
                    "[...document.querySelectorAll('.release')].every(one => one.querySelector('.body'))",
                );
                if std::env::var_os("LEADSMAN_PAGE_SCREENSHOTS").is_some() {
                    page.screenshot(&format!("{name}-{scheme}-{width}"));
                }
                page.run(CHECKS);
                let found = page.js("check()");
                assert_eq!(found["faults"], json!([]), "{name}, {scheme}, {width} px");
                assert!(
                    found["texts"].as_u64().unwrap() > 5,
                    "something was looked at"
                );
            }
        }
        // The warning, too.
        for scheme in ["light", "dark"] {
            page.put(state("rolling_back").to_string());
            page.open(400, scheme);
            page.break_down();
            page.until("stale", "$('stale-text').textContent !== ''");
            if std::env::var_os("LEADSMAN_PAGE_SCREENSHOTS").is_some() {
                page.screenshot(&format!("stale-{scheme}-400"));
            }
            page.run(CHECKS);
            assert_eq!(page.js("check().faults"), json!([]), "stale, {scheme}");
        }
    });
}

#[test]
fn the_keyboard_reaches_everything_in_the_order_of_the_page() {
    with_page(|page| {
        let mut status = many("rolled_back", 6);
        status["releases"][5]["phase"] = json!("rolling_back");
        page.put(status.to_string());
        page.open(1200, "light");
        page.until(
            "three are open",
            "document.querySelectorAll('.body').length === 3",
        );
        page.run(
            "window.wanted = [...document.querySelectorAll('a[href], summary, input, button, [tabindex=\"0\"]')]\
             .filter(one => one.checkVisibility()); window.reached = [];",
        );
        let wanted = page.js("wanted.length").as_u64().unwrap();
        // Skip link, two links, six to look at, the dependencies, two to sift, six releases, numbers and older events of
        // three.
        assert_eq!(wanted, 1 + 2 + 6 + 1 + 2 + 6 + 2 * 3);
        for number in 0..wanted {
            page.press(TAB);
            page.run("reached.push(document.activeElement);");
            let ring = page.js("[getComputedStyle(document.activeElement).outlineStyle, getComputedStyle(document.activeElement).outlineWidth]");
            assert_eq!(
                ring,
                json!(["solid", "3px"]),
                "no focus to be seen at stop {number}"
            );
        }
        assert_eq!(
            page.js("wanted.every((one, i) => reached[i] === one)"),
            true
        );
        // The skip link leads past the head of the page; a link to a release opens it; Enter closes it.
        page.run("document.querySelector('.skip').focus();");
        page.press(ENTER);
        page.until("skipped", "document.activeElement === $('main')");
        page.run("document.querySelectorAll('#attention a')[5].focus();");
        let last = "document.querySelectorAll('.release')[4]";
        assert_eq!(page.js(&format!("{last}.open")), false);
        page.press(ENTER);
        page.until(
            "it opens",
            &format!("{last}.open && document.activeElement === {last}.firstChild"),
        );
        page.press(ENTER);
        page.until("it closes", &format!("!{last}.open"));
    });
}

#[test]
fn a_link_can_name_a_release() {
    with_page(|page| {
        page.put(many("idle", 10).to_string());
        page.open(1200, "light");
        page.run("location.hash = '#release/demo/mykadoo-7';");
        page.until(
            "it is open and has the focus",
            "document.activeElement.parentNode === $('release/demo/mykadoo-7') && document.activeElement.parentNode.open",
        );
        // Anything else after the sign is not ours.
        page.run(
            "location.hash = '#%zz'; location.hash = '#main-not'; location.hash = '#release/none';",
        );
        page.wait_for_polls(2);
    });
}

#[test]
fn two_hundred_releases_are_shown_sifted_and_updated_in_place() {
    with_page(|page| {
        let mut status = many("idle", 200);
        page.put(status.to_string());
        page.open(1200, "light");
        assert_eq!(headline(page), "All 200 releases are good");
        assert_eq!(page.js("document.querySelectorAll('.release').length"), 200);
        page.run(
            "window.nodes = [...document.querySelectorAll('.release')]; nodes[150].open = true; \
             window.taken = []; const draws = render; render = status => { const from = performance.now(); draws(status); taken.push(performance.now() - from); };",
        );
        page.until("one is open", "nodes[150].querySelector('.body') !== null");
        // One gets into trouble: it is named first, opens, and nothing else moves.
        status["releases"][123]["phase"] = json!("rolling_back");
        status["releases"][123]["says"] = json!("Rolling back to revision 1.");
        page.run("$('filter').focus();");
        page.put(status.to_string());
        page.until(
            "the trouble is named",
            "$('headline').textContent === 'demo/mykadoo-123 is being rolled back'",
        );
        page.until("it is open", "nodes[123].open");
        assert_eq!(
            page.js("document.activeElement === $('filter') && nodes[150].open"),
            true
        );
        assert_eq!(
            page.js(
                "[...document.querySelectorAll('.release')].every((one, i) => one === nodes[i])"
            ),
            true
        );
        // The filter.
        for key in "oo-15".chars() {
            page.press(key);
        }
        page.until("sifted", "$('shown').textContent === '11 of 200 shown'");
        page.wait_for_polls(2);
        assert_eq!(
            page.js("nodes.filter(one => one.checkVisibility()).length"),
            11
        );
        page.run("$('filter').value = ''; $('only').click();");
        page.until(
            "only the trouble",
            "$('shown').textContent === '1 of 200 shown'",
        );
        assert_eq!(
            page.js("nodes.filter(one => one.checkVisibility())[0] === nodes[123]"),
            true
        );
        page.run("$('only').click();");
        // Everything in trouble at once: a bounded list, and no more than a few open themselves.
        let mut outage = many("rolling_back", 200);
        page.put(outage.to_string());
        page.until(
            "the outage is said",
            "$('headline').textContent === '200 of 200 releases are in trouble'",
        );
        if std::env::var_os("LEADSMAN_PAGE_SCREENSHOTS").is_some() {
            page.screenshot("outage-light-1200");
        }
        assert_says(
            page,
            &["200 of them are being rolled back.", "and 192 more"],
        );
        assert_eq!(
            page.js("document.querySelectorAll('.release[open]').length"),
            3
        );
        assert_eq!(
            page.text("$('announce').textContent"),
            "199 releases changed their phase. 200 of 200 releases are in trouble."
        );
        // And gone again.
        outage["releases"].as_array_mut().unwrap().truncate(3);
        page.put(outage.to_string());
        page.until(
            "three are left",
            "document.querySelectorAll('.release').length === 3",
        );
        assert_eq!(page.js("$('sift').hidden"), true);
        println!("milliseconds to show each state: {}", page.js("taken"));
    });
}
