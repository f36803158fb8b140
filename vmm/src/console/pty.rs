//! A pseudo-terminal as the console's other end.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::stream::Stream;
use super::terminal::set_raw;

/// Our side of a pseudo-terminal, and a descriptor of the other side.
///
/// The other side is kept open here. Without that the master would report a hang-up for as long as nobody has
/// the terminal open, which cannot be waited out without polling; with it, output simply waits until somebody
/// reads. It also holds the terminal in raw mode: a terminal that echoes would send the guest's own output
/// back to it as input.
#[derive(Debug)]
pub(super) struct Pty {
    master: Stream,
    peer: OwnedFd,
    path: PathBuf,
}

impl Pty {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: posix_openpt returned a descriptor that nobody else owns.
        let master = Stream::own(unsafe { OwnedFd::from_raw_fd(fd) })?;
        let mut name = [0u8; 64];
        // SAFETY: the buffer is as long as said.
        let failed = unsafe {
            libc::unlockpt(fd) != 0 || libc::ptsname_r(fd, name.as_mut_ptr().cast(), name.len()) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
        let path = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
        let peer = open_peer(&master)?;
        Ok(Self { master, peer, path })
    }

    /// The path that others open.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A descriptor of our side.
    pub(super) fn stream(&self) -> io::Result<Stream> {
        self.master.try_clone()
    }

    /// Opens the other side again if it was hung up. Nobody can close our descriptor of it, but vhangup(2), which
    /// programs that log people in call, turns it into a dead one and resets the terminal: it echoes then.
    /// Returns whether it was so.
    pub(super) fn recover(&mut self) -> io::Result<bool> {
        let ends = [self.master.as_raw_fd(), self.peer.as_raw_fd()];
        let mut ends = ends.map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
        // SAFETY: two live structures.
        let hung_up = unsafe { libc::poll(ends.as_mut_ptr(), 2, 0) } > 0;
        if hung_up {
            self.peer = open_peer(&self.master)?;
        }
        Ok(hung_up)
    }

    /// Whether output of ours has not been read on the other side.
    pub(super) fn has_unread(&self) -> bool {
        let mut unread: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int.
        let result = unsafe { libc::ioctl(self.peer.as_raw_fd(), libc::FIONREAD, &mut unread) };
        result == 0 && unread > 0
    }
}

/// Opens the other side through ours, so that neither a path nor the right to open one is needed.
fn open_peer(master: &Stream) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is a number; the result is checked.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ioctl returned a descriptor that nobody else owns.
    let peer = unsafe { OwnedFd::from_raw_fd(fd) };
    set_raw(peer.as_fd())?;
    Ok(peer)
}
