//! Unpacking a body within its limit.

use std::io::Read;

use super::error::ProbeError;
use crate::config::settings::Compression;
use crate::core::probe_result::Reason;

/// Whether `Content-Encoding` names this coding.
pub(super) fn is_coded(header: Option<&http::HeaderValue>, compression: Compression) -> bool {
    let name = header
        .and_then(|value| value.to_str().ok())
        .unwrap_or("")
        .trim()
        .to_ascii_lowercase();
    match compression {
        Compression::Gzip => name == "gzip" || name == "x-gzip",
        Compression::Deflate => name == "deflate",
        Compression::Brotli => name == "br",
    }
}

/// The value of `Accept-Encoding` that asks for it.
pub(super) const fn accept(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip => "gzip",
        Compression::Deflate => "deflate",
        Compression::Brotli => "br",
    }
}

/// Unpacks; more than `limit` bytes, or what is not packed so, is a fault.
pub(super) fn unpack(
    packed: &[u8],
    compression: Compression,
    limit: usize,
) -> Result<Vec<u8>, ProbeError> {
    let most = limit as u64 + 1;
    let mut plain = Vec::new();
    let read = match compression {
        Compression::Gzip => flate2::read::MultiGzDecoder::new(packed)
            .take(most)
            .read_to_end(&mut plain),
        Compression::Deflate => flate2::read::ZlibDecoder::new(packed)
            .take(most)
            .read_to_end(&mut plain),
        Compression::Brotli => brotli_decompressor::Decompressor::new(packed, 4096)
            .take(most)
            .read_to_end(&mut plain),
    };
    if plain.len() > limit {
        return Err(too_large(limit, "unpacked"));
    }
    match read {
        Ok(_) => Ok(plain),
        Err(error) => Err(ProbeError::bad(
            Reason::Protocol,
            format!("the body is not valid {}: {error}", accept(compression)),
        )),
    }
}

pub(super) fn too_large(limit: usize, how: &str) -> ProbeError {
    ProbeError::bad(
        Reason::TooLarge,
        format!("the body is larger {how} than the limit of {limit} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    use crate::core::probe_result::Outcome;

    const ALL: [Compression; 3] = [Compression::Gzip, Compression::Deflate, Compression::Brotli];

    fn packed(plain: &[u8], how: Compression) -> Vec<u8> {
        let level = flate2::Compression::fast();
        match how {
            Compression::Gzip => {
                let mut packer = flate2::write::GzEncoder::new(Vec::new(), level);
                packer.write_all(plain).unwrap();
                packer.finish().unwrap()
            }
            Compression::Deflate => {
                let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), level);
                packer.write_all(plain).unwrap();
                packer.finish().unwrap()
            }
            // There is no packer at hand. From the lowest bit: WBITS 16 (0), not last (0), four nibbles (00),
            // length - 1, stored (1); then the bytes, and an empty last block.
            Compression::Brotli => {
                let length = u32::try_from(plain.len()).unwrap() - 1;
                let head = (length << 4) | (1 << 20);
                [&head.to_le_bytes()[..3], plain, &[0b11]].concat()
            }
        }
    }

    const PLAIN: &[u8] = b"hello hello hello hello hello\n";

    #[test]
    fn a_limit_is_a_limit() {
        for how in ALL {
            let packed = packed(PLAIN, how);
            assert_eq!(unpack(&packed, how, PLAIN.len()).unwrap(), PLAIN, "{how:?}");
            let probe_error = unpack(&packed, how, PLAIN.len() - 1).unwrap_err();
            assert_eq!(
                probe_error.outcome,
                Outcome::Failure(Reason::TooLarge),
                "{how:?}"
            );
        }
    }

    #[test]
    fn what_breaks_off_is_not_taken_for_the_whole() {
        for how in ALL {
            let packed = packed(PLAIN, how);
            for length in 1..packed.len() {
                let part = packed.get(..length).unwrap();
                let probe_error = unpack(part, how, 1000).expect_err(&format!("{how:?} {length}"));
                assert_eq!(
                    probe_error.outcome,
                    Outcome::Failure(Reason::Protocol),
                    "{how:?}"
                );
            }
        }
    }
}
