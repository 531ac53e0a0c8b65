//! Starts each probe at its due time: a thread of its own around a [`Timetable`].
//!
//! A thread, because the runtime's timers round up to the next millisecond and start what falls into it together, which
//! shows up as latency of the targets. It waits in the receipt of commands, so that a change wakes it.
//!
//! Invariants:
//! - *Open loop.* Whether earlier probes have come back plays no part here; who is started bounds what is under way.
//! - The thread wakes at least every [`BEAT_EVERY`] and says so in its [`Heartbeat`]; it never spins. If the process
//!   was stopped, starved or suspended for [`BEAT_EVERY`] and [`STALL`] together, the pulse shows it; shorter
//!   standstills show at least in the lateness of what was due.
//! - After [`Schedule::stop`], or a drop, nothing is started any more, and all payloads are dropped.

mod timetable;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

pub use timetable::{DueSlot, FIRST_WITHIN, ScheduledSlot, TOO_LATE, Timetable};

use crate::core::self_check::Heartbeat;
use crate::core::units::Moment;

/// The longest that the thread waits, whatever is due. Four wake-ups a second cost nothing that can be measured.
pub const BEAT_EVERY: Duration = Duration::from_millis(250);

/// A wake-up so much later than planned is a stall.
pub const STALL: Duration = Duration::from_millis(250);

/// Changes that wait to be taken up. They come one after another from one place, so more would never be used; a sender
/// that finds the queue full waits for one round of starts.
const QUEUE: usize = 4;

/// Timer slack: by default the kernel may fire a timer 50 µs late to save wake-ups, which is half of our target.
const TIMER_SLACK: Option<NonZeroU64> = NonZeroU64::new(1_000);

/// The running schedule. Dropping it stops the thread.
#[derive(Debug)]
pub struct Schedule<T> {
    /// `None` only while stopping: the thread ends when its last sender is gone.
    wanted: Option<SyncSender<Vec<ScheduledSlot<T>>>>,
    thread: Option<JoinHandle<()>>,
    heartbeat_cell: HeartbeatCell,
}

impl<T: Send + 'static> Schedule<T> {
    /// Starts the thread, with nothing to do yet.
    ///
    /// `clock` must never run backwards. `on_due` is called on the thread for each start, one after another, and must
    /// return at once: hand the work to someone else. If it panics the thread ends, which [`Schedule::is_running`] and
    /// the pulse show.
    ///
    /// # Errors
    /// When the system gives us no thread.
    pub fn start(
        clock: fn() -> Moment,
        on_due: impl FnMut(DueSlot<'_, T>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (wanted, commands) = sync_channel(QUEUE);
        let heartbeat_cell = HeartbeatCell::default();
        heartbeat_cell.beat(clock());
        let thread = std::thread::Builder::new()
            .name("schedule".to_owned())
            .spawn({
                let heartbeat_cell = heartbeat_cell.clone();
                move || keep(clock, on_due, &commands, &heartbeat_cell)
            })?;
        Ok(Self {
            wanted: Some(wanted),
            thread: Some(thread),
            heartbeat_cell,
        })
    }

    /// Makes `wanted` the whole set of what is started, as [`Timetable::set`] says. Takes effect with the next round of
    /// the thread, at once if it waits. Without effect when the thread has ended.
    pub fn set(&self, wanted: Vec<ScheduledSlot<T>>) {
        if let Some(sender) = &self.wanted {
            // An error means that the thread is gone; `is_running` tells.
            let _ = sender.send(wanted);
        }
    }

    /// The state of the thread, without a lock.
    pub fn heartbeat(&self) -> Heartbeat {
        self.heartbeat_cell.heartbeat()
    }

    /// A handle on the heartbeat alone.
    pub fn heartbeat_cell(&self) -> HeartbeatCell {
        self.heartbeat_cell.clone()
    }

    /// Whether the thread is alive. It ends by itself only when a start panicked.
    pub fn is_running(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    /// Ends the thread and waits until it is gone: no start comes afterwards.
    pub fn stop(self) {
        drop(self);
    }
}

impl<T> Drop for Schedule<T> {
    fn drop(&mut self) {
        drop(self.wanted.take());
        if let Some(thread) = self.thread.take() {
            // A panic in a start was printed when it happened; here there is nothing left to do about it.
            let _ = thread.join();
        }
    }
}

/// Where the thread leaves its [`Heartbeat`]. Cheap to clone and to read.
#[derive(Debug, Clone, Default)]
pub struct HeartbeatCell(Arc<[AtomicU64; 2]>);

impl HeartbeatCell {
    /// When the thread last woke, and when the last stall ended.
    pub fn heartbeat(&self) -> Heartbeat {
        let [beat, stall_end] = &*self.0;
        // The stall is stored first and read last: who sees the beat that ended a stall also sees the stall.
        let beat = beat.load(Ordering::Acquire);
        let stall_end = stall_end.load(Ordering::Acquire);
        let moment = |nanos| Moment::after_boot(Duration::from_nanos(nanos));
        Heartbeat {
            beat: moment(beat),
            last_stall_end: (stall_end > 0).then(|| moment(stall_end)),
        }
    }

    fn beat(&self, at: Moment) {
        self.0[0].store(at.nanos(), Ordering::Release);
    }

    fn stalled_until(&self, at: Moment) {
        self.0[1].store(at.nanos(), Ordering::Release);
    }
}

/// The thread's whole life.
fn keep<T>(
    clock: fn() -> Moment,
    mut on_due: impl FnMut(DueSlot<'_, T>),
    commands: &Receiver<Vec<ScheduledSlot<T>>>,
    heartbeat_cell: &HeartbeatCell,
) {
    // Without it we are up to 50 µs later, no more; so a refusal is not worth a word.
    let _ = rustix::thread::set_current_timer_slack(TIMER_SLACK);
    let mut table = Timetable::default();
    let mut planned = clock();
    loop {
        let now = clock();
        if now.since(planned) >= STALL {
            heartbeat_cell.stalled_until(now);
        }
        heartbeat_cell.beat(now);
        // One `now` for the round, so that it ends however many there are: each is started at most once.
        while let Some(due) = table.pop_due(now) {
            on_due(due);
        }
        // Counted from the start of the round, so that a standstill within it is a stall as well.
        let latest = now + BEAT_EVERY;
        planned = table.next_due().map_or(latest, |due| due.min(latest));
        match commands.recv_timeout(planned.since(clock())) {
            Ok(wanted) => {
                let is_begin = table.next_due().is_none();
                table.set(clock(), wanted);
                if is_begin {
                    table.begin(clock());
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
