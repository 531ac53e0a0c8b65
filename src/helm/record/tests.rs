//! Records as Helm writes them, and as nobody should.

use std::io::Write as _;

use base64::engine::general_purpose::STANDARD;
use flate2::write::GzEncoder;
use flate2::{Compress, Compression, Crc, FlushCompress};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const OBJECT: &str = "sh.helm.release.v1.web.v2";

/// As `kubectl get secret -o json` shows it: with the API's own base64 on top.
const FROM_KUBECTL: &str = "SDRzSUFBQUFBQUFDQTNXUXkwN0RNQkJGZjhVeTJ5UjEzRkxBVzlhc2VDd2dDQTJPMDFyMVM3WlRWRlg4TytOVVRXSEJ6cjV6NTg2Wk9WSUhWbEZCdjlRbnJhaDJnNmZpU0FjZFUvN29WVEQrb0hvc2M4YlhOV3RyeHAvWVVyQ1ZZTmZOK3ViMmpyVjh1WHJGVGdQL054UzNZT3ZtcGhoN1pWU2VMTk1ueWFoRDF0Nmg4QncyRVhwRnBMZWhtTkNRTXVReFlXMk8vcTZvM0VMTUJkT3FERDFrS084L2UreFZUS2ZNdG1FTlF3VkNlSmxGM3JTVHBDL1NucGRrNCtXT0NqY2FVOUdza0FLeXd1bHY3eGdKWml6dkk5cVMzQ29MWitPZ3pjbFUwTHdiOUtid1JBVFdFckN3Uk4yQzA0TktTRTNydXU3Y0ZYbjBZNVJLRUFSZXpLTVcwallIc0taekZ6aEI5bTNuZHRyMWd0eFA4UThRT25mZVhYU09rTEw4Rk5XNVdkdGhZK2QrSDROWDA1VlNBRmxPRmFMSGMvNEFHcEIwbmdJQ0FBQT0=";

fn packed(json: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(json.as_bytes()).unwrap();
    STANDARD.encode(encoder.finish().unwrap()).into_bytes()
}

fn of(value: &Value) -> Result<HelmRecord, RecordError> {
    decode(OBJECT, &packed(&value.to_string()))
}

fn release() -> Value {
    json!({"name": "web", "version": 2, "namespace": "prod", "manifest": "---\nkind: A\n",
        "info": {"status": "deployed", "description": "Upgrade complete", "deleted": ""},
        "chart": {"metadata": {"name": "web", "version": "1.0.0", "appVersion": "2.1"}}})
}

#[test]
fn a_record_of_helm_is_read() {
    let payload = STANDARD.decode(FROM_KUBECTL).unwrap();
    let record = decode(OBJECT, &payload).unwrap();
    assert_eq!(record.status, RevisionStatus::Deployed);
    assert_eq!(record.description, "Upgrade complete");
    assert_eq!(
        (record.chart.as_str(), record.app_version.as_str()),
        ("web-1.0.0", "2.1")
    );
    assert!(
        record
            .manifest
            .starts_with("---\n# Source: web/templates/cm.yaml\n")
    );
    assert_eq!(record.config.unwrap().get(), r#"{"replicas":3}"#);
    assert!(record.hooks.is_empty() && !record.server_side);
}

#[test]
fn very_old_records_are_not_packed() {
    let plain = STANDARD.encode(release().to_string());
    assert_eq!(
        decode(OBJECT, plain.as_bytes()).unwrap().revision,
        Revision(2)
    );
}

#[test]
fn what_helm_leaves_out_or_writes_as_null_is_empty() {
    let record = of(
        &json!({"name": "web", "version": 2, "info": null, "chart": null, "config": null,
        "manifest": null, "hooks": null, "apply_method": null, "of_a_later_helm": [1]}),
    )
    .unwrap();
    assert_eq!(
        (record.status, record.chart.as_str()),
        (RevisionStatus::Unknown, "")
    );
    assert!(record.config.is_none() && record.manifest.is_empty());
    let mut strange = release();
    strange["info"]["status"] = json!("exploded");
    assert_eq!(of(&strange).unwrap().status, RevisionStatus::Unknown);
    strange["apply_method"] = json!("ssa");
    assert!(of(&strange).unwrap().server_side);
}

#[test]
fn values_keep_their_numbers() {
    let text = r#"{"name":"web","version":2,"config":{"big":9007199254740993,"huge":1e400}}"#;
    let record = decode(OBJECT, &packed(text)).unwrap();
    assert_eq!(
        record.config.unwrap().get(),
        r#"{"big":9007199254740993,"huge":1e400}"#
    );
}

#[test]
fn hooks_tell_whether_a_rollback_or_a_test_went_well() {
    let with = |event: &str, phase: Value| {
        let mut release = release();
        release["hooks"] = json!([{"name": "h", "kind": "Job", "manifest": "kind: Job", "events": [event],
            "last_run": {"phase": phase, "started_at": ""}, "weight": 0}]);
        of(&release).unwrap().stored()
    };
    assert!(with("pre-rollback", json!("Succeeded")).hooks_succeeded);
    assert!(!with("pre-rollback", json!("")).hooks_succeeded);
    assert!(!with("post-rollback", Value::Null).hooks_succeeded);
    assert!(with("pre-upgrade", json!("Failed")).hooks_succeeded);
    assert!(with("test", json!("Failed")).test_failed);
    assert!(!with("test", json!("Succeeded")).test_failed);
}

/// Charts give their test pods random names, and hooks the number of the revision.
#[test]
fn what_charts_render_anew_each_time_without_effect_is_not_in_the_digest() {
    let digest = |hooks: Value| {
        let mut release = release();
        release["hooks"] = hooks;
        of(&release).unwrap().digest()
    };
    let hook = |name: &str, events: &[&str], image: &str| {
        let manifest = format!("kind: Job\nmetadata: {{name: {name}}}\nimage: {image}\n");
        json!({"name": name, "kind": "Job", "events": events, "manifest": manifest})
    };
    let migrate = hook("migrate-7", &["pre-upgrade"], "app:1");
    let alone = digest(json!([migrate]));
    let tested = |name: &str| digest(json!([hook(name, &["test"], "curl"), migrate]));
    assert_eq!(tested("test-x7f2k"), alone);
    assert_eq!(tested("test-q0w9e"), alone);
    assert_eq!(
        digest(json!([hook("migrate-8", &["pre-upgrade"], "app:1")])),
        alone
    );
    // What has an effect counts.
    assert_ne!(
        digest(json!([hook("migrate-8", &["pre-upgrade"], "app:2")])),
        alone
    );
    assert_ne!(
        digest(json!([hook("migrate-7", &["post-upgrade"], "app:1")])),
        alone
    );
    assert_ne!(digest(json!([])), alone);
    let both = hook("smoke", &["test", "post-upgrade"], "app:1");
    assert_ne!(digest(json!([both, migrate])), alone);
}

#[test]
fn the_digest_is_that_of_the_contents_alone() {
    let digest = |change: &dyn Fn(&mut Value)| {
        let mut release = release();
        release["hooks"] = json!([{"name": "a", "kind": "Job"}, {"name": "b", "kind": "Job"}]);
        change(&mut release);
        of(&release).unwrap().digest()
    };
    let same = digest(&|_| {});
    assert_eq!(same.0.len(), 64);
    assert_eq!(
        same,
        digest(&|r| r["info"]["description"] = json!("Rollback to 1"))
    );
    assert_eq!(
        same,
        digest(&|r| r["manifest"] = json!("---\r\nkind: A\r\n"))
    );
    assert_eq!(
        same,
        digest(
            &|r| r["hooks"] = json!([{"name": "b", "kind": "Job"}, {"name": "a", "kind": "Job"}])
        )
    );
    assert_ne!(same, digest(&|r| r["manifest"] = json!("---\nkind: B\n")));
    assert_ne!(
        same,
        digest(&|r| r["hooks"] = json!([{"name": "ab", "kind": "Job"}]))
    );
    assert_ne!(
        same,
        digest(&|r| r["hooks"][0]["manifest"] = json!("kind: Job"))
    );
}

#[test]
fn names_are_read_from_their_end() {
    let read =
        |object: &str| name_of(object).map(|(name, revision)| (name.to_string(), revision.0));
    assert_eq!(read("sh.helm.release.v1.web.v10"), Ok(("web".into(), 10)));
    assert_eq!(
        read("sh.helm.release.v1.web.v2.v3"),
        Ok(("web.v2".into(), 3))
    );
    for wrong in [
        "",
        "web",
        "sh.helm.release.v1.",
        "sh.helm.release.v1.web",
        "sh.helm.release.v1..v1",
        "sh.helm.release.v1.web.v",
        "sh.helm.release.v1.web.v0",
        "sh.helm.release.v1.web.v+1",
        "sh.helm.release.v1.web.v01",
        "sh.helm.release.v1.web.v99999999999",
        "sh.helm.release.v2.web.v1",
    ] {
        assert_eq!(read(wrong), Err(RecordError::Name(wrong.to_owned())));
    }
}

#[test]
fn a_record_that_is_none_says_at_which_layer() {
    let gzip = |bytes: &[u8]| STANDARD.encode([&GZIP[..], bytes].concat()).into_bytes();
    let says = |payload: &[u8]| decode(OBJECT, payload).unwrap_err().to_string();
    assert_eq!(says(b""), "the record is empty");
    assert_eq!(
        says(&vec![b'A'; 3_000_000]),
        "the record has 3000000 bytes, more than 2097152"
    );
    assert!(says(b"not base64!").starts_with("the record is not base64: "));
    assert!(says(&gzip(b"broken")).starts_with("the record cannot be inflated: "));
    assert!(says(&packed("no json")).starts_with("the record is no release of Helm: "));
    assert!(says(&packed("[1, 2]")).starts_with("the record is no release of Helm: "));
    assert!(says(&packed(r#"{"name": "web"}"#)).contains("version"));
    assert!(says(&packed(r#"{"name": "web", "version": -2}"#)).contains("-2"));
    let deep = format!(
        r#"{{"name": "web", "version": 2, "info": {}"#,
        "[".repeat(100_000)
    );
    assert!(says(&packed(&deep)).starts_with("the record is no release of Helm: "));
    let mut half = packed(&release().to_string());
    half.truncate(half.len() / 8 * 4);
    assert!(says(&half).starts_with("the record cannot be inflated: "));
}

/// Bytes of one block of a bomb.
const BLOCK: usize = 16 * 1024 * 1024;

/// So many blocks of blanks as one member of gzip, which is all that is inflated. A packed block that ends at a whole byte
/// and refers to nothing before it can be repeated, so that a large bomb is made as fast as a small one.
fn bomb(blocks: usize) -> Vec<u8> {
    let blanks = vec![b' '; BLOCK];
    let mut packed = Vec::with_capacity(BLOCK / 100);
    let mut deflate = Compress::new(Compression::best(), false);
    deflate
        .compress_vec(&blanks, &mut packed, FlushCompress::Full)
        .unwrap();
    assert_eq!(deflate.total_in(), BLOCK as u64);
    let mut of_block = Crc::new();
    of_block.update(&blanks);
    let mut sum = Crc::new();
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    for _ in 0..blocks {
        bytes.extend_from_slice(&packed);
        sum.combine(&of_block);
    }
    // An empty last block, and what gzip checks: sum and length.
    bytes.extend_from_slice(&[3, 0]);
    bytes.extend_from_slice(&sum.sum().to_le_bytes());
    bytes.extend_from_slice(&sum.amount().to_le_bytes());
    bytes
}

#[test]
fn a_bomb_is_not_inflated() {
    // It is a bomb indeed: all of a small one is inflated, and its sum is right.
    let small = bomb(3);
    let inflated = std::io::copy(
        &mut MultiGzDecoder::new(small.as_slice()),
        &mut std::io::sink(),
    );
    assert_eq!(inflated.unwrap(), 3 * BLOCK as u64);
    // 1.5 GiB is as much as fits into a payload at all: deflate packs 1032 bytes into one.
    let large = STANDARD.encode(bomb(96));
    assert!(large.len() <= MAX_PAYLOAD, "{}", large.len());
    let refused = decode(OBJECT, large.as_bytes()).unwrap_err();
    assert_eq!(refused, RecordError::Bomb);
    // So one of 2 GiB is not even decoded.
    let larger = STANDARD.encode(bomb(128));
    let refused = decode(OBJECT, larger.as_bytes()).unwrap_err();
    assert_eq!(refused, RecordError::TooLarge(larger.len()));
}

#[test]
fn what_is_rendered_anew_each_time_is_known_by_chart_images_and_values() {
    let of = |change: &dyn Fn(&mut Value)| {
        let mut value = release();
        value["config"] = json!({"a": 1});
        value["manifest"] = json!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {spec: {containers: [{image: 'web:1'}]}}}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {password: RANDOM}\n"
        );
        change(&mut value);
        let record = of(&value).unwrap();
        let objects = crate::helm::manifest::objects(&record.manifest).unwrap();
        (record.digest(), record.weak(&objects))
    };
    let replaced = |from: &'static str, to: &'static str| {
        of(&move |value| {
            let manifest = value["manifest"].as_str().unwrap().replace(from, to);
            value["manifest"] = manifest.into();
        })
    };
    let (digest, weak) = of(&|_| {});
    let (other, same) = replaced("RANDOM", "other");
    assert_ne!(digest, other);
    assert!(weak.is_some() && weak == same);
    assert_ne!(weak, replaced("web:1", "web:2").1);
    assert_ne!(weak, of(&|value| value["config"] = json!({"a": 2})).1);
    assert_ne!(
        weak,
        of(&|value| value["chart"]["metadata"]["version"] = json!("1.0.1")).1
    );
    assert_eq!(
        of(&|value| value["manifest"] = json!("")).1,
        None,
        "nothing runs"
    );
}

#[test]
fn the_files_of_the_folder_crds_are_told_apart_by_what_is_in_them() {
    let with = |files: Value| {
        let mut value = release();
        value["chart"]["files"] = files;
        of(&value).unwrap().crds
    };
    let file = |name: &str, data: &str| json!({"name": name, "data": STANDARD.encode(data)});
    let first = with(json!([
        file("crds/a.yaml", "one"),
        file("README.md", "two")
    ]));
    assert_eq!(first.keys().collect::<Vec<_>>(), ["crds/a.yaml"]);
    let same = with(json!([file("crds/a.yaml", "one")]));
    assert_eq!(first, same);
    assert_ne!(first, with(json!([file("crds/a.yaml", "other")])));
    assert_ne!(first, with(json!([file("crds/b.yaml", "one")])));
    assert!(with(Value::Null).is_empty() && with(json!([{}])).is_empty());
}

#[test]
fn a_name_that_lies_is_found_out() {
    let payload = packed(&release().to_string());
    for object in ["sh.helm.release.v1.web.v3", "sh.helm.release.v1.other.v2"] {
        let error = decode(object, &payload).unwrap_err();
        assert!(matches!(error, RecordError::Lies { .. }), "{error}");
        assert!(error.to_string().contains("web v2"), "{error}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), packs in any::<bool>()) {
        let payload = if packs { STANDARD.encode(&bytes).into_bytes() } else { bytes };
        // Whether it can be read does not matter; that it ends does.
        let _ = decode(OBJECT, &payload);
    }

    #[test]
    fn a_record_with_one_byte_changed_is_read_or_refused(at in 0_usize..10_000, to in any::<u8>()) {
        let mut payload = packed(&release().to_string());
        let at = at % payload.len();
        payload[at] = to;
        if let Ok(record) = decode(OBJECT, &payload) {
            prop_assert_eq!(record.revision, Revision(2));
        }
    }
}

/// Helm reads all of it, so nothing of it may stay unseen.
#[test]
fn a_record_is_read_and_counted_as_go_does_it() {
    let json = release().to_string();
    let in_two_parts = |first: &str, second: &str| {
        let part = |text: &str| STANDARD.decode(packed(text)).unwrap();
        STANDARD.encode([part(first), part(second)].concat())
    };
    let (first, second) = json.split_at(json.len() / 2);
    let parts = in_two_parts(first, second);
    assert_eq!(
        decode(OBJECT, parts.as_bytes()).unwrap().revision,
        Revision(2)
    );
    let lines = parts
        .as_bytes()
        .chunks(60)
        .collect::<Vec<_>>()
        .join(&b"\r\n"[..]);
    assert_eq!(decode(OBJECT, &lines).unwrap().revision, Revision(2));
    let size = json.len() as u64;
    for payload in [parts.as_bytes(), &lines, &packed(&json)] {
        assert_eq!(unpacked_size(payload, MAX_INFLATED), size);
    }
    let hidden = in_two_parts(&json, &"x".repeat(100_000));
    assert_eq!(
        unpacked_size(hidden.as_bytes(), MAX_INFLATED),
        size + 100_000
    );
    // What comes before the mistake is in memory by then.
    let cut = in_two_parts(&json, &"x".repeat(100_000));
    let cut = &cut[..cut.len() - 8];
    assert!(unpacked_size(cut.as_bytes(), MAX_INFLATED) > size);
    for (payload, size) in [(&b""[..], 0), (b"no base64!", 0), (b"AAAA", 3)] {
        assert_eq!(unpacked_size(payload, MAX_INFLATED), size);
    }
    assert_eq!(unpacked_size(&vec![b'A'; MAX_PAYLOAD + 1], 500), 501);
}

#[test]
fn a_bomb_is_counted_no_further_than_asked_for() {
    let large = STANDARD.encode(bomb(30));
    assert_eq!(
        unpacked_size(large.as_bytes(), MAX_INFLATED),
        MAX_INFLATED + 1
    );
    assert_eq!(unpacked_size(large.as_bytes(), 1000), 1001);
}
