//! A plain or a TLS connection, behind one type.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::response_meter::{HeadReader, RawByteCounter, ResponseMeter};

/// A TCP connection whose bytes are counted.
#[derive(Debug)]
pub(super) struct CountedTcp {
    tcp: TcpStream,
    below: RawByteCounter,
    meter: Arc<ResponseMeter>,
}

impl CountedTcp {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            below: RawByteCounter::default(),
            meter: Arc::default(),
        }
    }

    pub(super) const fn meter(&self) -> &Arc<ResponseMeter> {
        &self.meter
    }
}

/// What HTTP is spoken over.
pub(super) struct HttpStream {
    io: StreamIo,
    watch: HeadReader,
}

enum StreamIo {
    Plain(CountedTcp),
    Tls(Box<TlsStream<CountedTcp>>),
}

impl HttpStream {
    pub(super) const fn plain(wire: CountedTcp) -> Self {
        Self {
            io: StreamIo::Plain(wire),
            watch: HeadReader::Nothing,
        }
    }

    pub(super) fn tls(tls: TlsStream<CountedTcp>) -> Self {
        Self {
            io: StreamIo::Tls(Box::new(tls)),
            watch: HeadReader::Nothing,
        }
    }

    /// The connection below, where there is no TLS on it yet.
    pub(super) fn into_plain(self) -> Option<CountedTcp> {
        match self.io {
            StreamIo::Plain(wire) => Some(wire),
            StreamIo::Tls(_) => None,
        }
    }

    /// From now on what is read is looked at in this way.
    pub(super) fn watch(&mut self, watch: HeadReader) {
        self.watch = watch;
    }

    pub(super) fn meter(&self) -> &Arc<ResponseMeter> {
        match &self.io {
            StreamIo::Plain(wire) => wire.meter(),
            StreamIo::Tls(stream) => stream.get_ref().0.meter(),
        }
    }
}

impl AsyncRead for HttpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = match &mut this.io {
            StreamIo::Plain(wire) => Pin::new(wire).poll_read(cx, buf),
            StreamIo::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        };
        let came = buf.filled().get(before..).unwrap_or_default();
        if came.is_empty() {
            return read;
        }
        let wire = match &mut this.io {
            StreamIo::Plain(wire) => wire,
            StreamIo::Tls(stream) => stream.get_mut().0,
        };
        wire.below.progress(&wire.meter);
        if let Err(error) = this.watch.look(came, &wire.meter) {
            buf.set_filled(before);
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            StreamIo::Plain(wire) => Pin::new(wire).poll_write(cx, buf),
            StreamIo::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            StreamIo::Plain(wire) => Pin::new(wire).poll_flush(cx),
            StreamIo::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            StreamIo::Plain(wire) => Pin::new(wire).poll_shutdown(cx),
            StreamIo::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            StreamIo::Plain(wire) => Pin::new(wire).poll_write_vectored(cx, bufs),
            StreamIo::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            StreamIo::Plain(wire) => wire.is_write_vectored(),
            StreamIo::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

impl AsyncRead for CountedTcp {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.tcp).poll_read(cx, buf);
        if let Err(error) = this.below.came(buf.filled().len() - before, &this.meter) {
            buf.set_filled(before);
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl AsyncWrite for CountedTcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}
