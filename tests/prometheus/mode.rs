//! The mode of a release on the page: what the shipped rules ask before they say that a rollback could not be done.

use crate::program::{App, Leadsman, until};

#[test]
fn the_mode_in_force_is_on_the_page_at_once_and_goes_with_the_release() {
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("history");
    let app = App::of(&history);
    let config = |mode: Option<&str>| {
        let guarded = mode.map_or_else(String::new, |mode| {
            format!("embedded = \"{}\"\nmode = \"{mode}\"\n", history.display())
        });
        format!(
            "[serve]\nlisten = \"127.0.0.1:0\"\n\
             [[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\nbase_url = \"{}\"\n{guarded}\
             [[release.probe]]\nname = \"api\"\npath = \"/api/health\"\n",
            app.url()
        )
    };
    let leadsman = Leadsman::run(&config(Some("observe")), &[]);
    let modes = || {
        let page = leadsman.get("/metrics").body;
        let lines = page
            .lines()
            .filter(|line| line.starts_with("leadsman_release_mode{"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let expected = |inside: &str| {
        ["enforce", "observe", "off"].map(|mode| {
            format!(
                "leadsman_release_mode{{mode=\"{mode}\",namespace=\"shop\",release=\"mykadoo\"}} {}",
                u8::from(mode == inside)
            )
        })
    };
    until("it is observed", || modes() == expected("observe"));
    for mode in ["enforce", "off"] {
        leadsman.rewrite(&config(Some(mode)));
        leadsman.signal("HUP");
        until("the new mode is in force", || modes() == expected(mode));
    }
    // It is probed only from now on.
    leadsman.rewrite(&config(None));
    leadsman.signal("HUP");
    until("nothing is left of it", || modes().is_empty());
}
