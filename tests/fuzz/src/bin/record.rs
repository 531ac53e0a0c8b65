//! A Helm record of any bytes is read, or refused: as it is stored, as the JSON that is packed in it, and its manifest.

#![no_main]

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use leadsman::helm::{manifest, record};
use libfuzzer_sys::fuzz_target;

const NAME: &str = "sh.helm.release.v1.mykadoo.v7";

fn read(payload: &[u8]) {
    if let Ok(record) = record::decode(NAME, payload) {
        let _ = (record.digest(), record.stored());
        let _ = manifest::objects(&record.manifest);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else {
        return;
    };
    match how % 3 {
        0 => read(data),
        1 => {
            let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
            packed.write_all(data).expect("packed");
            read(STANDARD.encode(packed.finish().expect("packed")).as_bytes());
        }
        _ => {
            if let Ok(objects) = manifest::objects(&String::from_utf8_lossy(data)) {
                for object in objects {
                    let _ = (object.images(), object.port("http"), object.stops_first());
                }
            }
        }
    }
});
