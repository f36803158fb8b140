//! What ends a domain: the guest itself, a signal, a request, a timeout.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::store_service::SharedStore;
use crate::hypercall::StopReason;
use crate::machine::StopSignal;
use crate::machine::pc::Board;

/// How a run of a domain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By the guest.
    Guest(StopReason),
    /// By us: it did not shut down in time, or was destroyed.
    Forced,
}

/// SIGTERM, SIGINT, and SIGHUP of a closed terminal, as a descriptor. Made before any thread, so that all threads have them blocked.
#[derive(Debug)]
pub(super) struct Signals(File);

impl Signals {
    /// Takes the signals from their default action.
    pub(super) fn take() -> io::Result<Self> {
        // SAFETY: an initialised set, valid pointers; the new descriptor is owned by the File alone.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            match libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self(File::from_raw_fd(fd))),
            }
        }
    }

    /// True if a signal came since the last call.
    fn came(&mut self) -> bool {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        let mut came = false;
        while self.0.read(&mut info).is_ok_and(|n| n > 0) {
            came = true;
        }
        came
    }
}

/// Requests from outside the loop's own descriptors: the API and the terminal's escape key.
#[derive(Debug, Default)]
pub(super) struct Requests {
    shutdown: Cell<Option<&'static str>>,
    timeout: Cell<Option<Duration>>,
    destroy: Cell<bool>,
    interrupt: Cell<bool>,
}

impl Requests {
    /// Asks the guest to do `what` ("poweroff", "reboot").
    pub(super) fn shutdown(&self, what: &'static str, timeout: Option<Duration>) {
        self.shutdown.set(Some(what));
        self.timeout.set(timeout);
    }

    /// As a signal: asks the guest to power off, and the second time ends the domain.
    pub(super) fn interrupt(&self) {
        self.interrupt.set(true);
    }

    /// Ends the domain at once.
    pub(super) fn destroy(&self) {
        self.destroy.set(true);
    }
}

/// Decides when the domain is over.
pub(super) struct Control {
    stop: Arc<StopSignal>,
    signals: Rc<std::cell::RefCell<Signals>>,
    timer: TimerFd,
    requests: Rc<Requests>,
    store: SharedStore,
    timeout: Duration,
    board: Option<Arc<Board>>,
    asked: bool,
    ending: Option<Ending>,
}

impl Control {
    pub(super) fn new(
        stop: Arc<StopSignal>,
        signals: Rc<std::cell::RefCell<Signals>>,
        requests: Rc<Requests>,
        store: SharedStore,
        timeout: Duration,
        board: Option<Arc<Board>>,
    ) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { stop, signals, timer, requests, store, timeout, board, asked: false, ending: None })
    }

    /// Looks at what was requested since the last call; then how the domain ended, if it did.
    pub(super) fn check(&mut self) -> Option<Ending> {
        if self.requests.destroy.take() {
            self.end(Ending::Forced);
        }
        if self.requests.interrupt.take() {
            self.interrupt();
        }
        if let Some(what) = self.requests.shutdown.take() {
            self.ask(what, self.requests.timeout.take());
        }
        self.ending
    }

    fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }

    fn interrupt(&mut self) {
        // The second time means: now.
        if self.asked { self.end(Ending::Forced) } else { self.ask("poweroff", None) }
    }

    /// Asks the guest through xenstore, and by the power button if nobody listens there, and gives it until the timeout.
    fn ask(&mut self, what: &'static str, timeout: Option<Duration>) {
        self.asked = true;
        let timeout = timeout.unwrap_or(self.timeout);
        tracing::info!(what, ?timeout, "asking the guest to shut down");
        self.store.borrow_mut().request_shutdown(what);
        let listens = self.store.borrow().listens();
        if let (Some(board), "poweroff", false) = (&self.board, what, listens) {
            board.press_power_button();
        }
        if timeout.is_zero() {
            return self.end(Ending::Forced);
        }
        if let Err(error) = self.timer.reset(timeout, None) {
            tracing::error!(%error, "no timer for the shutdown: stopping the guest now");
            self.end(Ending::Forced);
        }
    }
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps) {
        let fds =
            [self.stop.event().as_raw_fd(), self.signals.borrow().0.as_raw_fd(), self.timer.as_raw_fd()];
        for fd in fds {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(?error, "cannot wait for the end of the domain");
                self.end(Ending::Forced);
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        let fd = events.fd();
        if fd == self.stop.event().as_raw_fd() {
            let _ = self.stop.event().read();
            if let Some(reason) = self.stop.get() {
                self.end(Ending::Guest(reason));
            }
        } else if fd == self.timer.as_raw_fd() {
            let _ = self.timer.wait();
            tracing::warn!("the guest did not shut down in time: stopping it");
            self.end(Ending::Forced);
        } else if self.signals.borrow_mut().came() {
            self.interrupt();
        }
    }
}
