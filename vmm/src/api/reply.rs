//! Answers that come later: a device comes and goes as fast as the guest and the storage of the host let it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::http::Response;
use crate::exit::{ExitStatus, Failure};

/// Names a request that waits for its answer.
pub(super) type Ticket = u64;

/// Where answers wait until the server sends them.
#[derive(Debug)]
pub struct Outbox {
    ready: Mutex<Vec<(Ticket, Response)>>,
    last_ticket: AtomicU64,
    wake: EventFd,
}

impl Outbox {
    /// Without answers.
    pub fn new() -> io::Result<Arc<Outbox>> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Arc::new(Outbox { ready: Mutex::default(), last_ticket: AtomicU64::new(0), wake }))
    }

    /// The answer to one more request.
    pub fn reply(self: &Arc<Outbox>) -> Reply {
        let ticket = self.last_ticket.fetch_add(1, Ordering::Relaxed) + 1;
        Reply { ticket, outbox: Arc::clone(self), sent: false }
    }

    /// Takes the answers that are ready.
    pub(super) fn take(&self) -> Vec<(Ticket, Response)> {
        let _ = self.wake.read();
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Ticket, Response)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is ready, as status and body.
    #[cfg(test)]
    pub(crate) fn answers(&self) -> Vec<(u16, Value)> {
        self.take().into_iter().map(|(_, r)| (r.status, r.body.unwrap_or_default())).collect()
    }
}

impl AsRawFd for Outbox {
    /// Readable when there are answers.
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

/// The one answer to a request, to be sent at any time and from any thread. One that is dropped says that the guest has ended.
#[derive(Debug)]
#[must_use = "a client waits for the answer"]
pub struct Reply {
    ticket: Ticket,
    outbox: Arc<Outbox>,
    sent: bool,
}

impl Reply {
    pub(super) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Answers. `Null` is nothing to say.
    pub fn send(mut self, result: Result<Value, Failure>) {
        self.put(match result {
            Ok(Value::Null) => Response::no_content(),
            Ok(body) => Response::json(200, body),
            Err(failure) => refusal(&failure),
        });
    }

    /// Answers with the bytes of a PNG file.
    pub(super) fn send_png(mut self, file: Vec<u8>) {
        self.put(Response::png(file));
    }

    fn put(&mut self, response: Response) {
        self.sent = true;
        self.outbox.lock().push((self.ticket, response));
        let _ = self.outbox.wake.write(1);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.sent {
            let ended = "the guest has ended or rebooted before that was done; look with `xvmm info`";
            self.put(refusal(&Failure::new(ExitStatus::HostError, ended)));
        }
    }
}

/// An error with the exit status that the client's process shall end with.
pub(super) fn refusal(failure: &Failure) -> Response {
    let status = match failure.status {
        ExitStatus::Usage | ExitStatus::UnknownKey | ExitStatus::InvalidVdev | ExitStatus::InvalidMac => 400,
        ExitStatus::NoSuchDevice => 404,
        _ => 409,
    };
    Response::json(status, json!({ "error": failure.to_string(), "status": failure.status.code() }))
}
