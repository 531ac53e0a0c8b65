//! Signals from a container's runtime or a person.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT, and SIGHUP on its own; listening starts when this is made.
pub struct Signals {
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
    hang_up: Option<Signal>,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalRequest {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

impl Signals {
    /// Must be called inside the runtime. A signal that cannot be listened to keeps its default effect.
    pub fn listen() -> Self {
        let on = |kind| {
            signal(kind)
                .inspect_err(|error| tracing::warn!(%error, "Cannot listen to a signal"))
                .ok()
        };
        Self {
            terminate: on(SignalKind::terminate()),
            interrupt: on(SignalKind::interrupt()),
            hang_up: on(SignalKind::hangup()),
        }
    }

    /// The next signal.
    pub async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            () = arrived(self.terminate.as_mut()) => SignalRequest::Stop,
            () = arrived(self.interrupt.as_mut()) => SignalRequest::Stop,
            () = arrived(self.hang_up.as_mut()) => SignalRequest::Reload,
        }
    }
}

async fn arrived(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Waits for SIGTERM or Ctrl-C.
pub(super) async fn wait_for_stop() {
    let mut signals = Signals::listen();
    while signals.next().await != SignalRequest::Stop {}
}
