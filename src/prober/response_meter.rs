//! Bounds what a target may send outside of answers: interim answers, frames about the connection, empty TLS records.
//!
//! Invariants:
//! - the bytes that are read between two parts of an answer are bounded, so that no target can keep us busy;
//! - an answer within the rules of HTTP and the limits of heads and bodies never reaches these bounds.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use super::error::ProbeError;
use crate::core::probe_result::Reason;

/// Interim answers (1xx) to one request. Servers send one or two.
const MAX_INTERIM: usize = 32;

/// Bytes of interim answers over HTTP/1, and of blank lines between them.
const INTERIM_LIMIT: usize = 64 * 1024;

/// Bytes of HTTP/2 frames that hold no body, for one request: a head has 64 KiB at most. Long bodies go along with
/// frames about the connection, so a share of the body's bytes comes on top.
const FRAMES_LIMIT: usize = 128 * 1024;

/// One byte is allowed for this many bytes of a body.
const FRAMES_SHARE: usize = 4;

/// Bytes from the network between two bytes that can be read: a TLS handshake, or one record of TLS. A chain of
/// certificates may have 64 KiB.
const BELOW_LIMIT: usize = 256 * 1024;

/// The meter of one connection, shared by the task that waits for an answer and the one that reads.
#[derive(Debug, Default)]
pub(super) struct ResponseMeter {
    /// How many requests were sent.
    requests: AtomicUsize,
    /// Since the last request was sent, each of these.
    bytes: AtomicUsize,
    interim: AtomicUsize,
    beside: AtomicUsize,
    body: AtomicUsize,
    /// Which bound was met: an [`ExceededLimit`], or 0.
    excess: AtomicU8,
    /// Whether a byte came after the request, and whether one came that could be read: records of TLS also tell of
    /// other things.
    heard: AtomicBool,
    read: AtomicBool,
}

/// What there was too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExceededLimit {
    Interim = 1,
    Frames,
    Below,
}

impl ResponseMeter {
    /// A request is sent now: what came before it does not count any longer.
    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        for counter in [&self.bytes, &self.interim, &self.beside, &self.body] {
            counter.store(0, Ordering::Relaxed);
        }
        self.heard.store(false, Ordering::Relaxed);
        self.read.store(false, Ordering::Relaxed);
    }

    /// Whether a byte came since the last request was sent.
    pub(super) fn was_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Whether a byte of HTTP came since the last request was sent.
    pub(super) fn was_read(&self) -> bool {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes that came since the last request was sent.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The failure, when a bound was met.
    pub(super) fn probe_error(&self) -> Option<ProbeError> {
        let excess = self.excess.load(Ordering::Relaxed);
        let text = if excess == ExceededLimit::Interim as u8 {
            format!(
                "the target sent more than {MAX_INTERIM} interim answers (1xx), or {INTERIM_LIMIT} bytes of them, \
                 and no answer"
            )
        } else if excess == ExceededLimit::Frames as u8 {
            format!(
                "the target sent more than {FRAMES_LIMIT} bytes of HTTP/2 frames that are no part of an answer"
            )
        } else if excess == ExceededLimit::Below as u8 {
            format!("the target sent {BELOW_LIMIT} bytes of TLS that hold no answer")
        } else {
            return None;
        };
        Some(ProbeError::bad(Reason::Protocol, text).reached())
    }

    fn exceeded(&self, what: ExceededLimit) -> io::Error {
        self.excess.store(what as u8, Ordering::Relaxed);
        io::Error::new(io::ErrorKind::InvalidData, "the target floods us")
    }
}

/// Counts what comes from the network, below TLS.
#[derive(Debug, Default)]
pub(super) struct RawByteCounter(usize);

impl RawByteCounter {
    /// Takes account of bytes that came.
    pub(super) fn came(&mut self, bytes: usize, meter: &ResponseMeter) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        meter.heard.store(true, Ordering::Relaxed);
        meter.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.0 += bytes;
        if self.0 > BELOW_LIMIT {
            return Err(meter.exceeded(ExceededLimit::Below));
        }
        Ok(())
    }

    /// Something that can be read came out of it.
    pub(super) fn progress(&mut self, meter: &ResponseMeter) {
        self.0 = 0;
        meter.read.store(true, Ordering::Relaxed);
    }
}

/// Looks at what is read above TLS.
#[derive(Debug)]
pub(super) enum HeadReader {
    /// The reader has limits of its own.
    Nothing,
    /// Interim answers of HTTP/1.
    Http1(InterimHeads),
    /// Frames of HTTP/2.
    Http2(Http2Frames),
}

impl HeadReader {
    /// Takes account of bytes that were read.
    pub(super) fn look(&mut self, bytes: &[u8], meter: &ResponseMeter) -> io::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Http1(interim) => interim.look(bytes, meter),
            Self::Http2(frames) => frames.look(bytes, meter),
        }
    }
}

/// Reads heads of HTTP/1 up to the first that is not of an interim answer.
#[derive(Debug, Default)]
pub(super) struct InterimHeads {
    /// The request whose answer it reads.
    request: usize,
    at: HeadPosition,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum HeadPosition {
    /// In the status line: how much of `HTTP/1.1 1` was there, and its next two digits.
    #[default]
    Start,
    Status(usize),
    Digits(usize, bool),
    /// In the head of an interim answer: whether the line is empty so far.
    Head(bool),
    /// In an answer, which is ignored.
    Answer,
}

impl InterimHeads {
    /// `HTTP/1.1 ` comes before the status, whatever the version.
    const BEFORE_STATUS: usize = 9;

    fn look(&mut self, bytes: &[u8], meter: &ResponseMeter) -> io::Result<()> {
        let request = meter.requests.load(Ordering::Relaxed);
        if request != self.request {
            self.request = request;
            self.at = HeadPosition::Start;
        }
        for (number, byte) in bytes.iter().enumerate() {
            if self.at == HeadPosition::Answer {
                return Ok(());
            }
            let before = self.at;
            self.at = before.after(*byte);
            if before == HeadPosition::Head(true) && self.at == HeadPosition::Start {
                let interim = meter.interim.fetch_add(1, Ordering::Relaxed);
                let counted = meter.beside.load(Ordering::Relaxed);
                if interim >= MAX_INTERIM || counted + number > INTERIM_LIMIT {
                    return Err(meter.exceeded(ExceededLimit::Interim));
                }
            }
        }
        if self.at != HeadPosition::Answer {
            let before = meter.beside.fetch_add(bytes.len(), Ordering::Relaxed);
            if before + bytes.len() > INTERIM_LIMIT {
                return Err(meter.exceeded(ExceededLimit::Interim));
            }
        }
        Ok(())
    }
}

impl HeadPosition {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            // Blank lines before a head are left out by those who read it. They are bounded by their bytes.
            (Self::Start, b'\r' | b'\n') | (Self::Head(true), b'\n') => Self::Start,
            (Self::Start, _) => Self::Status(1),
            (Self::Status(InterimHeads::BEFORE_STATUS), b'1') => Self::Digits(0, false),
            (Self::Status(count), _) if count < InterimHeads::BEFORE_STATUS => {
                Self::Status(count + 1)
            }
            (Self::Digits(0, _), digit) => Self::Digits(1, digit == b'0'),
            // 101 is an answer.
            (Self::Status(_) | Self::Answer, _) | (Self::Digits(_, true), b'1') => Self::Answer,
            (Self::Head(empty), b'\r') => Self::Head(empty),
            (Self::Digits(..) | Self::Head(_), end) => Self::Head(end == b'\n'),
        }
    }
}

/// Reads the heads of HTTP/2 frames.
#[derive(Debug, Default)]
pub(super) struct Http2Frames {
    head: [u8; Self::HEAD],
    /// How much of it is there.
    have: usize,
    /// What is left of the frame behind it.
    left: usize,
}

impl Http2Frames {
    const HEAD: usize = 9;
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;

    fn look(&mut self, mut bytes: &[u8], meter: &ResponseMeter) -> io::Result<()> {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            if let Some(place) = self.head.get_mut(self.have) {
                *place = *byte;
                self.have += 1;
            }
            bytes = rest;
            if self.have == Self::HEAD {
                self.have = 0;
                let [a, b, c, kind, ..] = self.head;
                self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                Self::count(kind, self.left, meter)?;
            }
        }
        Ok(())
    }

    fn count(kind: u8, length: usize, meter: &ResponseMeter) -> io::Result<()> {
        if kind == Self::DATA && length > 0 {
            meter.body.fetch_add(length, Ordering::Relaxed);
            return Ok(());
        }
        // The head of the answer, and what may follow its body, are two more.
        if kind == Self::HEADERS && meter.interim.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM + 2
        {
            return Err(meter.exceeded(ExceededLimit::Interim));
        }
        let size = Self::HEAD + length;
        let beside = meter.beside.fetch_add(size, Ordering::Relaxed) + size;
        let share = meter.body.load(Ordering::Relaxed) / FRAMES_SHARE;
        if beside > FRAMES_LIMIT + share {
            return Err(meter.exceeded(ExceededLimit::Frames));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How far a text is taken, in pieces of a size.
    fn taken(watch: &mut HeadReader, meter: &ResponseMeter, text: &[u8], piece: usize) -> usize {
        let pieces = text.chunks(piece);
        pieces
            .take_while(|piece| watch.look(piece, meter).is_ok())
            .map(<[u8]>::len)
            .sum()
    }

    #[test]
    fn interim_answers_are_counted_and_answers_are_not_looked_at() {
        let early = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        let short = "HTTP/1.1 100\n\n";
        let large = format!("HTTP/1.1 100 Continue\r\nX: {}\r\n\r\n", "a".repeat(9000));
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
        let switch = "HTTP/1.1 101 Switching\r\n\r\n";
        for piece in [1, 7, 1000, 100_000] {
            for (text, whole) in [
                (
                    early.repeat(MAX_INTERIM) + answer + &early.repeat(9000),
                    true,
                ),
                (
                    short.repeat(MAX_INTERIM) + switch + &early.repeat(9000),
                    true,
                ),
                (early.repeat(MAX_INTERIM + 1), false),
                (short.repeat(MAX_INTERIM + 1), false),
                (large.repeat(9), false),
                ("\r\n".repeat(INTERIM_LIMIT), false),
                ("\r\n\r\n".to_owned() + answer, true),
                ("x".repeat(INTERIM_LIMIT * 2), true),
                (
                    "HTTP/1.1 103 ".to_owned() + &"x".repeat(INTERIM_LIMIT),
                    false,
                ),
            ] {
                let meter = ResponseMeter::default();
                let mut watch = HeadReader::Http1(InterimHeads::default());
                let start: String = text.chars().take(60).collect();
                let all = taken(&mut watch, &meter, text.as_bytes(), piece) == text.len();
                assert_eq!(all, whole, "{piece} {start:?}");
                assert_eq!(meter.probe_error().is_none(), whole, "{piece} {start:?}");
                // The next request begins anew.
                meter.request();
                let next = early.repeat(MAX_INTERIM);
                let mut after = HeadReader::Http1(InterimHeads::default());
                if whole {
                    assert_eq!(
                        taken(&mut watch, &meter, next.as_bytes(), piece),
                        next.len()
                    );
                } else {
                    assert_eq!(
                        taken(&mut after, &meter, next.as_bytes(), piece),
                        next.len()
                    );
                }
            }
        }
    }

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let bytes = length.to_be_bytes();
        let mut frame = bytes[bytes.len() - 3..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.resize(Http2Frames::HEAD + length, 1);
        frame
    }

    #[test]
    fn frames_beside_an_answer_are_bounded_by_its_size() {
        const PING: u8 = 6;
        let pings = FRAMES_LIMIT / 17;
        for piece in [1, 7, 1000, 100_000] {
            for (frames, whole) in [
                (frame(PING, 8).repeat(pings), true),
                (frame(PING, 8).repeat(pings + 1), false),
                (frame(0, 0).repeat(FRAMES_LIMIT / 9 + 1), false),
                (
                    [frame(0, 16_384), frame(PING, 8).repeat(pings + 200)].concat(),
                    true,
                ),
                (frame(0, 1).repeat(100_000), true),
                (frame(1, 5).repeat(MAX_INTERIM + 2), true),
                (frame(1, 5).repeat(MAX_INTERIM + 3), false),
                ([frame(1, 60_000), frame(9, 60_000)].concat(), true),
            ] {
                let meter = ResponseMeter::default();
                let mut watch = HeadReader::Http2(Http2Frames::default());
                let all = taken(&mut watch, &meter, &frames, piece) == frames.len();
                assert_eq!(all, whole, "{piece} {:?}", &frames[..9]);
            }
        }
    }

    #[test]
    fn what_can_be_read_is_progress() {
        let meter = ResponseMeter::default();
        let mut below = RawByteCounter::default();
        for _ in 0..100 {
            below.came(BELOW_LIMIT, &meter).unwrap();
            assert!(meter.was_heard());
            below.progress(&meter);
        }
        assert!(below.came(BELOW_LIMIT, &meter).is_ok());
        assert!(below.came(1, &meter).is_err());
        assert!(meter.was_read() && meter.probe_error().is_some());
        meter.request();
        assert!(!meter.was_heard() && !meter.was_read());
    }
}
