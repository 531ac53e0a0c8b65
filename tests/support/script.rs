//! What the server says, byte by byte where it matters.

use std::time::Duration;

/// One thing that the server does after it has read a request (or, for a connection script, after the connection came).
#[derive(Debug, Clone)]
pub enum Step {
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Waits.
    Wait(Duration),
    /// Sends the same bytes until the other side has enough.
    Forever(Vec<u8>),
    /// Sends the bytes one at a time, so far apart.
    Drip(Vec<u8>, Duration),
    /// Does nothing any more, and keeps the connection open.
    Hang,
    /// Ends the connection with a TCP reset.
    Reset,
    /// Ends the connection in order.
    Close,
}

/// What the server does for one request.
#[derive(Debug, Clone)]
pub struct Script {
    /// For HTTP/1, and for connections without HTTP.
    pub steps: Vec<Step>,
    /// The same as a whole, where it is one; needed for HTTP/2.
    pub answer: Option<Answer>,
}

impl From<Answer> for Script {
    fn from(answer: Answer) -> Self {
        Self {
            steps: answer.steps(),
            answer: Some(answer),
        }
    }
}

impl From<Vec<Step>> for Script {
    fn from(steps: Vec<Step>) -> Self {
        Self {
            steps,
            answer: None,
        }
    }
}

/// The bytes as they are, and then the end of the connection.
pub fn raw(bytes: impl AsRef<[u8]>) -> Script {
    vec![Step::Bytes(bytes.as_ref().to_vec()), Step::Close].into()
}

/// No answer, ever.
pub fn hang() -> Script {
    vec![Step::Hang].into()
}

/// A TCP reset in place of an answer.
pub fn reset() -> Script {
    vec![Step::Reset].into()
}

/// The end of the connection in place of an answer.
pub fn close() -> Script {
    vec![Step::Close].into()
}

/// An answer as it should be.
pub fn answer(status: u16) -> Answer {
    Answer {
        status,
        headers: Vec::new(),
        body: Vec::new(),
        framing: Framing::Length,
        before: Duration::ZERO,
        within: Duration::ZERO,
    }
}

/// An answer that is well-formed, and the time that it takes.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Without those of the framing.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    framing: Framing,
    /// Before the head.
    pub before: Duration,
    /// Between the head and the body.
    within: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Framing {
    Length,
    Chunked,
    UntilClose,
    /// The head announces a length and no body follows, as after HEAD.
    HeadOnly,
}

impl Answer {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        body.as_ref().clone_into(&mut self.body);
        self
    }

    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    pub fn until_close(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self
    }

    pub fn head_only(mut self) -> Self {
        self.framing = Framing::HeadOnly;
        self
    }

    pub fn after(mut self, before: Duration) -> Self {
        self.before = before;
        self
    }

    pub fn body_after(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// The head as it goes over the wire.
    pub fn head(&self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} Status\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let bare = matches!(self.status, 204 | 304);
        match self.framing {
            Framing::Length | Framing::HeadOnly if !bare => {
                head += &format!("Content-Length: {}\r\n", self.body.len());
            }
            Framing::Length | Framing::HeadOnly => {}
            Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
            Framing::UntilClose => head += "Connection: close\r\n",
        }
        head += "\r\n";
        head.into_bytes()
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if !self.before.is_zero() {
            steps.push(Step::Wait(self.before));
        }
        let mut bytes = self.head();
        if !self.within.is_zero() {
            steps.push(Step::Bytes(std::mem::take(&mut bytes)));
            steps.push(Step::Wait(self.within));
        }
        match self.framing {
            Framing::Length | Framing::UntilClose => bytes.extend(&self.body),
            Framing::Chunked => bytes.extend(chunks(&self.body)),
            Framing::HeadOnly => {}
        }
        steps.push(Step::Bytes(bytes));
        if self.framing == Framing::UntilClose {
            steps.push(Step::Close);
        }
        steps
    }
}

/// The chunked coding, in chunks of at most 50 bytes.
fn chunks(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(50) {
        out.extend(format!("{:x}\r\n", chunk.len()).bytes());
        out.extend(chunk);
        out.extend(b"\r\n");
    }
    out.extend(b"0\r\n\r\n");
    out
}
