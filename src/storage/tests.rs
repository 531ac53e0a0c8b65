//! What is stored comes back, and what is not ours is set aside.

use super::*;

fn names() -> (Namespace, ReleaseName) {
    (Namespace::new("shop"), ReleaseName::new("web.eu"))
}

impl HasTimes for Vec<u32> {
    fn shift(&mut self, _: ClockShift) {}
}

/// A state that holds a time.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Noted(pub(super) Time);

impl HasTimes for Noted {
    fn shift(&mut self, by: ClockShift) {
        self.0.shift(by);
    }
}

const NOW: Time = Time::from_millis(1_700_000_000_000);

fn saved(store: &StateStore) -> PathBuf {
    let (namespace, release) = names();
    store
        .save(StoredKind::State, &namespace, &release, &vec![1, 2, 3], NOW)
        .unwrap();
    store.directory.join("shop.web.eu.json")
}

fn load(store: &StateStore) -> StoredState<Vec<u32>> {
    let (namespace, release) = names();
    store.load(StoredKind::State, &namespace, &release, NOW)
}

#[test]
fn what_was_saved_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    assert_eq!(load(&store), StoredState::Nothing);
    saved(&store);
    assert_eq!(load(&store), StoredState::State(vec![1, 2, 3]));
    drop(store);
    let again = StateStore::open(folder.path()).unwrap();
    assert_eq!(load(&again), StoredState::State(vec![1, 2, 3]));
}

#[test]
fn only_one_may_write() {
    let folder = tempfile::tempdir().unwrap();
    let _store = StateStore::open(folder.path()).unwrap();
    let second = StateStore::open(folder.path()).unwrap_err();
    assert!(
        second.to_string().contains("in use by another Leadsman"),
        "{second}"
    );
}

#[test]
fn a_file_that_cannot_be_used_is_set_aside_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    let path = saved(&store);
    let whole = fs::read_to_string(&path).unwrap();
    for (content, expected) in [
        (whole[..whole.len() / 2].to_owned(), "is damaged"),
        (String::new(), "is damaged"),
        ("\0\0\0\0".to_owned(), "is damaged"),
        (whole.replace("[1,2,3]", "\"else\""), "is damaged"),
        (
            whole.replace("\"version\":1", "\"version\":2"),
            "newer Leadsman (format 2",
        ),
        (
            whole.replace("\"state\",", "\"other\","),
            "is no state file of Leadsman",
        ),
        (
            whole.replace("\"shop\"", "\"else\""),
            "belongs to else/web.eu",
        ),
    ] {
        fs::write(&path, &content).unwrap();
        match load(&store) {
            StoredState::Quarantined(why) => assert!(why.contains(expected), "{why}"),
            other => panic!("{other:?} for {content:?}"),
        }
        assert!(!path.exists());
        assert_eq!(load(&store), StoredState::Nothing);
    }
    let excluded = files_of(folder.path(), "shop.web.eu.json.aside-");
    assert!((1..=MAX_ASIDE).contains(&excluded.len()));
}

#[test]
fn a_half_written_file_of_a_killed_process_is_no_state() {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    let path = saved(&store);
    fs::write(path.with_extension("json.new"), "{\"leadsman\":").unwrap();
    assert_eq!(load(&store), StoredState::State(vec![1, 2, 3]));
}

/// A state of which a part is written, and then no more, as on a disk that has become full.
struct NoRoom;

impl Serialize for NoRoom {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::{Error as _, SerializeSeq as _};
        let mut list = to.serialize_seq(None)?;
        list.serialize_element(&"x".repeat(100_000))?;
        Err(S::Error::custom("no space left"))
    }
}

#[test]
fn a_write_that_fails_half_way_is_an_error_and_the_old_state_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    let path = saved(&store);
    let (namespace, release) = names();
    let error = store
        .save(StoredKind::State, &namespace, &release, &NoRoom, NOW)
        .unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(
        !path.with_extension("json.new").exists(),
        "it takes no room"
    );
    assert_eq!(load(&store), StoredState::State(vec![1, 2, 3]));
}

#[test]
fn a_recording_is_gone_on_with_where_its_last_whole_line_ended() {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    let (namespace, release) = names();
    let head = || {
        RecordingLine::Head(Box::new(crate::core::recording::RecordingHead {
            version: crate::core::recording::VERSION,
            namespace: namespace.clone(),
            release: release.clone(),
            revision: Revision(3),
            serving: None,
            began: NOW,
            mode: crate::core::rollout::Mode::Enforce,
            rule: crate::core::analysis::Rule::default(),
            start: crate::core::analysis::AnalysisStart::default(),
            no_direct: None,
            goes_on: None,
        }))
    };
    let entry = |text: &str| {
        RecordingLine::Entry(crate::core::rollout::LogEntry {
            at: NOW,
            revision: None,
            phase: "idle".into(),
            text: text.into(),
        })
    };
    let mut recorder = store
        .recorder(&namespace, &release, Revision(3), NOW)
        .unwrap();
    assert!(recorder.is_empty());
    recorder.write(&[head(), entry("one")]).unwrap();
    recorder.file.write_all(b"{\"line\":\"ent").unwrap();
    drop(recorder);
    let mut again = store
        .recorder(&namespace, &release, Revision(3), NOW)
        .unwrap();
    assert!(!again.is_empty());
    assert_eq!(again.read_back().unwrap().entries.len(), 1);
    again.write(&[entry("two")]).unwrap();
    let text = fs::read_to_string(again.path()).unwrap();
    assert_eq!(text.lines().count(), 3);
    assert!(
        text.lines()
            .all(|line| serde_json::from_str::<RecordingLine>(line).is_ok()),
        "{text}"
    );
}

#[test]
fn what_nobody_could_read_without_its_head_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    let (namespace, release) = names();
    let mut recorder = store
        .recorder(&namespace, &release, Revision(3), NOW)
        .unwrap();
    let evidence = RecordingLine::Evidence(Box::default());
    let error = recorder.write(&[evidence]).unwrap_err().to_string();
    assert!(error.contains("the beginning"), "{error}");
    let found = recording(folder.path(), &namespace, &release, Revision(3));
    assert_eq!(found.unwrap(), None);
}

#[test]
fn after_a_clock_was_set_back_times_go_on_from_now() {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    let (namespace, release) = names();
    let later = NOW + Duration::from_secs(2400);
    let noted = Noted(NOW + Duration::from_secs(2390));
    let kind = StoredKind::State;
    store
        .save(kind, &namespace, &release, &noted, later)
        .unwrap();
    let found = |now| store.load::<Noted>(kind, &namespace, &release, now);
    let ten_before = Time::from_millis(NOW.millis() - 10_000);
    assert_eq!(found(NOW), StoredState::State(Noted(ten_before)));
    // Time that has passed is none of that.
    let next_day = NOW + Duration::from_secs(24 * 3600);
    assert_eq!(found(next_day), StoredState::State(noted));
}

#[test]
fn only_the_newest_recordings_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    let (namespace, release) = names();
    for revision in 0..30 {
        store
            .recorder(&namespace, &release, Revision(revision), NOW)
            .unwrap();
    }
    let kept = recordings(folder.path(), Some((&namespace, &release)));
    assert_eq!(kept.len(), MAX_RECORDINGS);
    assert!(
        recordings(
            folder.path(),
            Some((&namespace, &ReleaseName::new("other")))
        )
        .is_empty()
    );
}

#[test]
fn a_directory_that_cannot_be_made_is_named_with_the_way_out() {
    let error = StateStore::open(Path::new("/proc/nowhere"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/proc/nowhere") && error.contains("state.directory"),
        "{error}"
    );
}
