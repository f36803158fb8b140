//! `xvmm destroy`: the end of a domain, whether it agrees or not.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::time::Duration;

use crate::api::ApiClient;
use crate::domain::DomainEntry;
use crate::exit::{ExitStatus, Failure};

/// How long the process may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How long it may take to finish the I/O of its disks and end.
const END: Duration = Duration::from_secs(15);

pub(super) fn destroy(run_dir: &Path, domain: &str) -> Result<ExitStatus, Failure> {
    let (registry, entry) = super::lookup(run_dir, domain)?;
    let failed = |error| Failure::new(ExitStatus::HostError, format!("cannot stop {domain}: {error}"));
    if let Some(process) = Process::open(&entry).map_err(failed)? {
        let client = ApiClient::new(&entry.api_socket()).with_timeout(ANSWER);
        let ended = client.destroy().is_ok() && process.wait(END).map_err(failed)?;
        if !ended {
            process.kill().map_err(failed)?;
            process.wait(END).map_err(failed)?;
        }
    }
    // Removes what a killed process left.
    registry.list()?;
    Ok(ExitStatus::Success)
}

/// A process that cannot be mistaken for a later one with the same id.
struct Process(File);

impl Process {
    /// The process of a domain; `None` if it has ended.
    fn open(entry: &DomainEntry) -> io::Result<Option<Process>> {
        // SAFETY: the call takes two numbers; the new descriptor is owned by the File alone.
        let file = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, entry.pid, 0);
            let fd = i32::try_from(fd).unwrap_or(-1);
            if fd >= 0 { Ok(File::from_raw_fd(fd)) } else { Err(io::Error::last_os_error()) }
        };
        // The lock is asked after the descriptor is there: while it is held, the id is not used again.
        if !entry.is_alive() {
            return Ok(None);
        }
        file.map(|file| Some(Process(file)))
    }

    /// Waits for the end; false when the time is over.
    fn wait(&self, limit: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd.
        match unsafe { libc::poll(&mut poll, 1, millis) } {
            -1 => Err(io::Error::last_os_error()),
            count => Ok(count > 0),
        }
    }

    fn kill(&self) -> io::Result<()> {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a valid descriptor; without a siginfo the kernel makes one.
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, info, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
