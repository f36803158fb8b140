//! What is left of a disk that the guest lost: its rings, on which every request is refused.
//!
//! Linux does not let go of a disk before each request has its answer, and it sends more after it has closed: what
//! its scheduler had at that time. Nobody serves that, and without an answer the guest's hotplug would wait for
//! ever, for all its devices. So one thread answers, until the guest has closed the event channels. It has the rings
//! and nothing else: the image is closed meanwhile, and may be used elsewhere.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use devices::xen::event_channel::BackendChannel;
use devices::xen::shared_ring::{BackRing, RingError};
use devices::xen::xenbus;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::protocol::{Protocol, RawEntry, Request};

/// The thread needs little of it.
const STACK_SIZE: usize = 64 * 1024;
/// How often a ring is looked at: a frontend that sends for ever costs the host little.
const PAUSE: Duration = Duration::from_millis(1);

/// A connected ring that nothing is under way on.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) ring: BackRing,
    pub(crate) channel: Arc<BackendChannel>,
    pub(crate) protocol: Protocol,
}

impl Rest {
    /// Refuses what is in the ring, at most a ring full: a frontend that goes on sending is heard again later. True:
    /// there may be more. Otherwise the frontend sends an event with its next request.
    fn refuse(&mut self) -> Result<bool, RingError> {
        let mut entry: RawEntry = [0; size_of::<RawEntry>()];
        let (mut left, mut more) = (self.ring.nr_entries(), true);
        while left > 0 && more {
            more = self.ring.final_check()?;
            if more && self.ring.next_request(&mut entry)? {
                self.ring.push_response(&Request::refusal(&entry, self.protocol).emit());
            }
            left -= 1;
        }
        if self.ring.publish() {
            self.channel.notify();
        }
        Ok(more)
    }
}

/// The rings of one disk, with the thread that refuses.
#[derive(Debug)]
pub(crate) struct Remnant {
    channels: Vec<Arc<BackendChannel>>,
    shared: Arc<Shared>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    over: AtomicBool,
}

impl Remnant {
    /// Starts to refuse. `kick` is written when the frontend has let go of all rings.
    pub(crate) fn start(vdev: &str, rests: Vec<Rest>, kick: Arc<EventFd>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let shared = Arc::<Shared>::default();
        let channels = rests.iter().map(|rest| Arc::clone(&rest.channel)).collect();
        let (theirs, woken) = (Arc::clone(&shared), wake.try_clone()?);
        let thread =
            Builder::new().name(format!("vbd-{vdev}-gone")).stack_size(STACK_SIZE).spawn(move || {
                serve(rests, &theirs.stop, &woken);
                theirs.over.store(true, SeqCst);
                let _ = kick.write(1);
            })?;
        Ok(Self { channels, shared, wake, thread: Some(thread) })
    }
}

impl xenbus::Remnant for Remnant {
    fn is_over(&self) -> bool {
        self.shared.over.load(SeqCst)
    }

    fn notify(&self) {
        self.channels.iter().for_each(|channel| channel.notify());
    }
}

impl Drop for Remnant {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut rests: Vec<Rest>, stop: &AtomicBool, wake: &EventFd) {
    loop {
        // Read first: what is sent after the look at the ring is an event again.
        rests.iter().for_each(|rest| drop(rest.channel.event().read()));
        let mut more = false;
        rests.retain_mut(|rest| {
            // A ring that the frontend breaks is not looked at any more.
            let refused = rest.refuse();
            more |= refused == Ok(true);
            refused.is_ok() && rest.channel.is_open()
        });
        if rests.is_empty() || stop.load(SeqCst) {
            return;
        }
        let events = rests.iter().map(|rest| rest.channel.event().as_raw_fd());
        if !more && wait(events.chain([wake.as_raw_fd()])).is_err() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Sleeps until one of them is readable, or a signal came.
fn wait(fds: impl Iterator<Item = RawFd>) -> io::Result<()> {
    let mut fds: Vec<_> = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array outlives the call.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    Ok(())
}

#[cfg(test)]
mod tests;
