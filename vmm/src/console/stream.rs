//! Descriptors that are read and written without ever waiting, our own and those of our parent.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

/// One direction of an attachment.
#[derive(Debug)]
pub(super) struct Stream {
    fd: OwnedFd,
    mode: Mode,
}

/// How a descriptor is used so that it never blocks us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// O_NONBLOCK is set: the open file is ours alone.
    NonBlocking,
    /// A socket of our parent: it takes "do not wait" per call.
    Socket,
    /// An open file that we share with our parent and could not open anew. O_NONBLOCK belongs to the open file,
    /// so setting it would make the shell's own reads fail, even after our end. It is asked before each
    /// transfer, which is small enough to fit where poll says that there is room.
    Careful { most: usize },
    /// A regular file: never blocks in that sense.
    Direct,
}

/// Bytes that a terminal surely takes when it says that it is writable.
const TERMINAL_PIECE: usize = 64;

impl Stream {
    /// Uses a descriptor whose open file is ours alone.
    pub(super) fn own(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        let fd = fd.into();
        // SAFETY: no pointers; the descriptor is open.
        let result = unsafe {
            let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
            libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { fd, mode: Mode::NonBlocking }) }
    }

    /// Uses a descriptor that came from our parent: stdin, or stdout if `writing`.
    pub(super) fn shared(fd: BorrowedFd<'_>, writing: bool) -> io::Result<Self> {
        let fd = fd.try_clone_to_owned()?;
        let file = File::from(fd);
        let kind = file.metadata()?.file_type();
        let terminal = file.is_terminal();
        let fd = OwnedFd::from(file);
        if kind.is_fifo() || terminal {
            // The same pipe or terminal through an open file of our own.
            let own = OpenOptions::new()
                .read(!writing)
                .write(writing)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            return Ok(match own {
                Ok(own) => Self { fd: own.into(), mode: Mode::NonBlocking },
                Err(_) => {
                    let most = if terminal { TERMINAL_PIECE } else { libc::PIPE_BUF };
                    Self { fd, mode: Mode::Careful { most } }
                }
            });
        }
        let mode = if kind.is_socket() {
            Mode::Socket
        } else if kind.is_char_device() {
            Mode::Careful { most: libc::PIPE_BUF }
        } else {
            Mode::Direct
        };
        Ok(Self { fd, mode })
    }

    /// Reads what is there; Ok(0) at the end, WouldBlock when there is nothing yet.
    pub(super) fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        retry(|| match self.mode {
            Mode::NonBlocking | Mode::Direct => self.file().read(buf),
            Mode::Socket => {
                // SAFETY: the buffer is as long as said.
                let result = unsafe {
                    let flags = libc::MSG_DONTWAIT;
                    libc::recv(self.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), flags)
                };
                usize::try_from(result).map_err(|_| io::Error::last_os_error())
            }
            Mode::Careful { .. } => {
                self.ready(libc::POLLIN)?;
                self.file().read(buf)
            }
        })
    }

    /// Writes as much as goes without waiting; WouldBlock when that is nothing.
    pub(super) fn write(&self, buf: &[u8]) -> io::Result<usize> {
        retry(|| match self.mode {
            Mode::NonBlocking | Mode::Direct => self.file().write(buf),
            Mode::Socket => {
                // SAFETY: the buffer is as long as said.
                let result = unsafe {
                    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                    libc::send(self.as_raw_fd(), buf.as_ptr().cast(), buf.len(), flags)
                };
                usize::try_from(result).map_err(|_| io::Error::last_os_error())
            }
            Mode::Careful { most } => {
                self.ready(libc::POLLOUT)?;
                self.file().write(buf.get(..most).unwrap_or(buf))
            }
        })
    }

    /// A second descriptor of the same open file, to be watched on its own.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, mode: self.mode })
    }

    fn ready(&self, events: i16) -> io::Result<()> {
        let mut poll = libc::pollfd { fd: self.as_raw_fd(), events, revents: 0 };
        // SAFETY: one live structure.
        match unsafe { libc::poll(&mut poll, 1, 0) } {
            1 => Ok(()),
            0 => Err(ErrorKind::WouldBlock.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn file(&self) -> ManuallyDrop<File> {
        // SAFETY: the descriptor stays open for as long as self is borrowed, and is not closed twice.
        ManuallyDrop::new(unsafe { File::from_raw_fd(self.fd.as_raw_fd()) })
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn retry(mut f: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match f() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn status_flags(fd: BorrowedFd<'_>) -> i32 {
        // SAFETY: no pointers.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }
    }

    #[test]
    fn a_shared_pipe_never_blocks_and_keeps_its_flags() {
        let (reader, writer) = io::pipe().unwrap();
        let stream = Stream::shared(writer.as_fd(), true).unwrap();
        let mut written = 0;
        let error = loop {
            match stream.write(&[b'x'; 5000]) {
                Ok(n) => written += n,
                Err(e) => break e,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(written >= 4096);
        let source = Stream::shared(reader.as_fd(), false).unwrap();
        let mut buf = vec![0; written];
        let mut read = 0;
        while read < written {
            read += source.read(&mut buf[read..]).unwrap();
        }
        assert_eq!(source.read(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
        for fd in [reader.as_fd(), writer.as_fd()] {
            assert_eq!(status_flags(fd) & libc::O_NONBLOCK, 0);
        }
    }

    #[test]
    fn a_pipe_that_cannot_be_opened_anew_is_filled_with_care() {
        let (reader, writer) = io::pipe().unwrap();
        let stream =
            Stream { fd: writer.try_clone().unwrap().into(), mode: Mode::Careful { most: libc::PIPE_BUF } };
        while stream.write(&[b'x'; 70_000]).is_ok() {}
        let mut some = [0; 4096];
        (&reader).read_exact(&mut some).unwrap();
        assert_eq!(stream.write(&[b'x'; 70_000]).unwrap(), 4096);
        assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_shared_socket_never_blocks_and_keeps_its_flags() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let stream = Stream::shared(ours.as_fd(), true).unwrap();
        assert_eq!(stream.mode, Mode::Socket);
        while stream.write(&[b'x'; 5000]).is_ok() {}
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(status_flags(ours.as_fd()) & libc::O_NONBLOCK, 0);
    }

    #[test]
    fn a_regular_file_is_continued_where_the_parent_left_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"shell ").unwrap();
        let stream = Stream::shared(file.as_fd(), true).unwrap();
        assert_eq!(stream.write(b"guest").unwrap(), 5);
        assert_eq!(std::io::Seek::stream_position(&mut file).unwrap(), 11);
    }
}
