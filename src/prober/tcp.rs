//! One TCP probe: connection, TLS if configured, dialogue.

use std::sync::Arc;
use std::time::Duration;

use regex::bytes::Captures;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::ProberContext;
use super::connect::connect;
use super::error::ProbeError;
use super::stream::HttpStream;
use super::timing::{ProbeStage, ProbeTiming, cut};
use super::tls::{Alpn, CertificateCache, handshake};
use crate::config::Target;
use crate::config::settings::{TcpProbeConfig, TcpStep};
use crate::core::probe_result::Reason;
use crate::platform::clock;

/// Maximum length of a line, and of what is read while waiting for one.
const LINE_LIMIT: usize = 64 * 1024;

/// All that is read in one dialogue.
const READ_LIMIT: usize = 1024 * 1024;

/// Lines of one dialogue: a greeting and a list of features have some dozen.
const MAX_LINES: usize = 4096;

/// What is read at a time.
const CHUNK: usize = 4 * 1024;

/// How much of an unexpected line is shown.
const SHOWN: usize = 100;

/// A TCP probe of one target, prepared.
pub(super) struct TcpProber {
    shared: Arc<ProberContext>,
    target: Target,
    config: TcpProbeConfig,
    seen: CertificateCache,
}

impl TcpProber {
    pub(super) fn new(shared: Arc<ProberContext>, target: Target, config: TcpProbeConfig) -> Self {
        Self {
            shared,
            target,
            config,
            seen: CertificateCache::default(),
        }
    }

    /// Connects and goes through the dialogue.
    pub(super) async fn sound(
        &self,
        timeout: Duration,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<(), ProbeError> {
        let choice = self.config.connect.ip;
        let (host, port) = (self.target.host(), self.target.port());
        let left = timeout.saturating_sub(timing.elapsed());
        let resolver = &self.shared.resolver;
        let addresses = resolver.addresses(&host, port, choice, left, ProbeStage::Resolve, timing);
        let tcp = connect(&addresses.await?, ProbeStage::Connect, timing).await?;
        let mut stream = HttpStream::plain(tcp);
        if self.config.tls {
            stream = self.start_tls(stream, timing).await?;
        }
        timing.enter(ProbeStage::Dialogue);
        self.talk(stream, timing).await?;
        timing.enter(ProbeStage::Transfer);
        self.judge(timing)
    }

    async fn start_tls(
        &self,
        stream: HttpStream,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<HttpStream, ProbeError> {
        let twice = || ProbeError::bad(Reason::Dialogue, "TLS cannot start twice");
        let tcp = stream.into_plain().ok_or_else(twice)?;
        let tls = &self.config.connect.tls;
        let config = self.shared.clients.client(tls, Alpn::None)?;
        let name = tls
            .server_name
            .clone()
            .unwrap_or_else(|| self.target.host());
        let stream = handshake(config, &name, tcp, timing).await?;
        timing.answer.tls = self.seen.look(&stream);
        Ok(HttpStream::tls(stream))
    }

    async fn talk(
        &self,
        mut stream: HttpStream,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<(), ProbeError> {
        let mut lines = LineReader::default();
        let mut groups: Vec<(String, Vec<u8>)> = Vec::new();
        for step in &self.config.dialogue {
            match step {
                TcpStep::Send(text) => {
                    let bytes = filled_in(text, &groups);
                    let sent = async {
                        stream.write_all(&bytes).await?;
                        stream.flush().await
                    };
                    sent.await.map_err(|error| {
                        ProbeError::broken(&error, Reason::Request, "cannot send")
                    })?;
                    timing.note(|step| *step = format!("sent {} bytes", bytes.len()));
                }
                TcpStep::Expect(pattern) => {
                    groups = loop {
                        let line = lines.next(&mut stream, timing).await?;
                        if let Some(found) = pattern.captures(&line) {
                            timing.note(|step| *step = format!("{pattern} matches a line"));
                            break named(pattern, &found);
                        }
                        let pattern = cut(pattern.as_str(), SHOWN);
                        let text = format!(
                            "no line matches {pattern}; the last one is {}",
                            shown(&line)
                        );
                        timing.note(|step| step.clone_from(&text));
                        timing.instead = Some(text);
                    };
                    timing.instead = None;
                }
                TcpStep::StartTls => {
                    if !lines.rest.is_empty() {
                        return Err(ProbeError::bad(
                            Reason::Dialogue,
                            "the target sent data before TLS could start",
                        ));
                    }
                    stream = self.start_tls(stream, timing).await?;
                    timing.enter(ProbeStage::Dialogue);
                }
            }
        }
        Ok(())
    }

    fn judge(&self, timing: &ProbeTiming<'_>) -> Result<(), ProbeError> {
        if let Some(least) = self.config.certificate_valid_for {
            let bad = |text: String| ProbeError::bad(Reason::Certificate, text);
            let Some(tls) = &timing.answer.tls else {
                return Err(bad("there is no certificate: no TLS was spoken".into()));
            };
            let left = tls.earliest_expiry as f64 - clock::unix_seconds();
            if left < least.as_secs_f64() {
                let (left, least) = (left / 86_400.0, least.as_secs_f64() / 86_400.0);
                return Err(bad(format!(
                    "a certificate is valid for {left:.1} more days, expected at least {least:.1}"
                )));
            }
        }
        match self.config.max_latency {
            Some(most) if timing.elapsed() > most => {
                let text = format!("took {:?}, at most {most:?} is good", timing.elapsed());
                Err(ProbeError::bad(Reason::TooSlow, text))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// The answer in lines, within limits.
#[derive(Default)]
struct LineReader {
    rest: Vec<u8>,
    /// So much of it is known to hold no end of a line.
    searched: usize,
    read: usize,
    count: usize,
}

impl LineReader {
    /// The next line without its end; at the end of the stream what is left of it.
    async fn next(
        &mut self,
        stream: &mut HttpStream,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<Vec<u8>, ProbeError> {
        loop {
            let unsearched = self.rest.get(self.searched..).unwrap_or(&[]);
            if let Some(end) = unsearched.iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                self.searched = 0;
                self.count += 1;
                if self.count > MAX_LINES {
                    let text = format!("the answer has more than {MAX_LINES} lines");
                    return Err(ProbeError::bad(Reason::Dialogue, text));
                }
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(line);
            }
            self.searched = self.rest.len();
            let too_long = |text| Err(ProbeError::bad(Reason::Dialogue, text));
            if self.rest.len() > LINE_LIMIT {
                return too_long(format!("no line ends within {LINE_LIMIT} bytes"));
            }
            if self.read > READ_LIMIT {
                return too_long(format!("the answer has more than {READ_LIMIT} bytes"));
            }
            self.rest.reserve(CHUNK);
            let read = stream.read_buf(&mut self.rest).await.map_err(|error| {
                ProbeError::broken(&error, Reason::Dialogue, "cannot read the answer")
            })?;
            self.read += read;
            timing.answer.body_bytes = self.read as u64;
            timing.answer.unpacked_bytes = self.read as u64;
            if read == 0 {
                if self.rest.is_empty() {
                    let instead = timing.instead.take();
                    let text = "the target closed the connection without the expected line";
                    return Err(ProbeError::bad(
                        Reason::Dialogue,
                        instead.unwrap_or_else(|| text.into()),
                    ));
                }
                self.searched = 0;
                return Ok(std::mem::take(&mut self.rest));
            }
        }
    }
}

fn shown(line: &[u8]) -> String {
    format!("\"{}\"", cut(&String::from_utf8_lossy(line), SHOWN))
}

fn named(pattern: &regex::bytes::Regex, found: &Captures<'_>) -> Vec<(String, Vec<u8>)> {
    let names = pattern.capture_names().enumerate();
    let group = |(index, name): (usize, Option<&str>)| {
        let text = found
            .get(index)
            .map_or_else(Vec::new, |group| group.as_bytes().to_vec());
        let mut all = vec![(index.to_string(), text.clone())];
        all.extend(name.map(|name| (name.to_owned(), text)));
        all
    };
    names.flat_map(group).collect()
}

/// A text with `${1}` and `${name}` replaced by what the last pattern found; unknown names stay as they are.
fn filled_in(text: &str, groups: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = rest.split_at(start);
        out.extend_from_slice(before.as_bytes());
        let known = after.find('}').and_then(|end| {
            let name = after.get(2..end)?;
            let (_, value) = groups.iter().find(|(known, _)| known == name)?;
            Some((end, value))
        });
        let taken = if let Some((end, value)) = known {
            out.extend_from_slice(value);
            end + 1
        } else {
            out.extend_from_slice(b"${");
            2
        };
        rest = after.get(taken..).unwrap_or("");
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_filled_in_where_they_are_known() {
        let pattern = regex::bytes::Regex::new(r"(\w+) (?P<word>\w+)( x)?").unwrap();
        let groups = named(&pattern, &pattern.captures(b"one two").unwrap());
        for (text, expected) in [
            ("${0}", "one two"),
            ("${1}-${2}-${word}", "one-two-two"),
            ("a${3}b", "ab"),
            ("${4} ${other} $1 $ {1}", "${4} ${other} $1 $ {1}"),
            ("${${1}}", "${one}"),
            ("${1", "${1"),
            ("ü${1}ü", "üoneü"),
            ("", ""),
        ] {
            let filled = String::from_utf8(filled_in(text, &groups)).unwrap();
            assert_eq!(filled, expected, "{text}");
        }
        // What the target says is text and not a pattern.
        let hostile = [("1".to_owned(), b"${1}${2}".to_vec())];
        assert_eq!(filled_in("${1}", &hostile), b"${1}${2}");
    }

    #[test]
    fn a_line_is_shown_in_short_and_without_control_characters() {
        assert_eq!(shown(b"a\x1b[31m\"\xff"), "\"a\\u{1b}[31m\"\u{fffd}\"");
        assert!(shown(&[b'x'; 1000]).len() <= SHOWN + 2);
    }
}
