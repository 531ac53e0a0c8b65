//! A configuration of any bytes is read, or refused with a report.

#![no_main]

use std::sync::OnceLock;

use leadsman::config::{self, Sources};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("probes.toml");
    std::fs::write(&file, data).expect("written");
    let sources = Sources {
        files: vec![file],
        environment: Vec::new(),
        flags: Vec::new(),
        discovered: Vec::new(),
    };
    if let Err(diagnostics) = config::load(&sources) {
        assert!(!diagnostics.to_string().is_empty());
    }
});
