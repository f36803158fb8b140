//! `xvmm console`: the terminal, or a pipe, on the console of a domain.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::console::terminal::TerminalGuard;
use crate::domain::{DomainEntry, Registry};
use crate::exit::{ExitStatus, Failure};

/// Ctrl-], as in `xl console` and telnet.
const ESCAPE: u8 = 0x1d;
/// How often a rebooting domain is looked for, and how many times.
const RETRY: Duration = Duration::from_millis(100);
const RETRIES: u32 = 50;

pub(super) fn console(run_dir: &Path, domain: &str) -> Result<ExitStatus, Failure> {
    let (registry, mut entry) = super::lookup(run_dir, domain)?;
    let failed =
        |error: io::Error| Failure::new(ExitStatus::HostError, format!("console of {domain}: {error}"));
    let mut socket = UnixStream::connect(entry.console_socket()).map_err(failed)?;
    let stdin = io::stdin();
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    let input = own(stdin.as_fd()).map_err(failed)?;
    let output = own(io::stdout().as_fd()).map_err(failed)?;
    // Restores the terminal at every end but SIGKILL.
    let guard = TerminalGuard::enter(stdin.as_fd()).map_err(failed)?;
    if guard.is_none() && stdin.is_terminal() {
        return Err(Failure::new(
            ExitStatus::Usage,
            "the console needs the terminal; start it in the foreground",
        ));
    }
    let mut relay = Relay { input: Some(input), output, interactive: guard.is_some() };
    loop {
        if relay.run(&socket).map_err(failed)? == End::Left {
            return Ok(ExitStatus::Success);
        }
        // A guest that reboots has a new console under its next id.
        match relay.find_again(&registry, &entry).map_err(failed)? {
            Some(again) => (entry, socket) = again,
            None => return Ok(ExitStatus::Success),
        }
    }
}

/// Why a relay stopped.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The user has had enough, or nobody reads any more.
    Left,
    /// The domain closed the console.
    Closed,
}

/// The user's side of a console.
struct Relay {
    /// `None` after its end.
    input: Option<File>,
    output: File,
    /// Input is a terminal: the escape key means something.
    interactive: bool,
}

impl Relay {
    /// Copies both ways until one side ends. The end of piped input ends nothing but the input.
    fn run(&mut self, socket: &UnixStream) -> io::Result<End> {
        // A guest that reads nothing must not keep us from showing what it writes.
        socket.set_nonblocking(true)?;
        let mut typed: Vec<u8> = Vec::new();
        let mut leaving = false;
        if self.input.is_none() {
            let _ = socket.shutdown(Shutdown::Write);
        }
        loop {
            let input = self.input.as_ref().filter(|_| typed.is_empty());
            let to_socket = if typed.is_empty() { 0 } else { libc::POLLOUT };
            let (readable, ready) = wait(input, Some((socket, libc::POLLIN | to_socket)), None)?;
            if ready & libc::POLLOUT != 0 {
                match (&*socket).write(&typed) {
                    Ok(len) => drop(typed.drain(..len)),
                    Err(error) if is_transient(&error) => {}
                    Err(_) => return Ok(End::Closed),
                }
            }
            if ready & !libc::POLLOUT != 0 {
                let mut chunk = [0; 4096];
                match (&*socket).read(&mut chunk) {
                    Ok(0) => return Ok(End::Closed),
                    Ok(len) => match self.output.write_all(chunk.get(..len).unwrap_or_default()) {
                        Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(End::Left),
                        result => result?,
                    },
                    Err(error) if is_transient(&error) => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(End::Closed),
                    Err(error) => return Err(error),
                }
            }
            if readable {
                (typed, leaving) = self.read_input()?;
                if self.input.is_none() {
                    let _ = socket.shutdown(Shutdown::Write);
                }
            }
            if leaving {
                // What was typed before the escape key goes as far as there is room.
                let _ = (&*socket).write(&typed);
                return Ok(End::Left);
            }
        }
    }

    /// Takes what was typed: the bytes for the guest, and whether the user leaves.
    fn read_input(&mut self) -> io::Result<(Vec<u8>, bool)> {
        let Some(input) = &mut self.input else { return Ok((Vec::new(), false)) };
        let mut chunk = [0; 4096];
        let typed = match input.read(&mut chunk) {
            Ok(len) => chunk.get(..len).unwrap_or_default(),
            Err(error) if is_transient(&error) => return Ok((Vec::new(), false)),
            // The terminal has gone.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => &[],
            Err(error) => return Err(error),
        };
        if typed.is_empty() {
            self.input = None;
            return Ok((Vec::new(), self.interactive));
        }
        let escape = typed.iter().position(|byte| self.interactive && *byte == ESCAPE);
        Ok((typed.get(..escape.unwrap_or(typed.len())).unwrap_or_default().to_vec(), escape.is_some()))
    }

    /// Looks for the domain of this process under its next id. `None`: it has ended, or the user has.
    fn find_again(
        &mut self,
        registry: &Registry,
        before: &DomainEntry,
    ) -> io::Result<Option<(DomainEntry, UnixStream)>> {
        for _ in 0..RETRIES {
            if !before.is_alive() {
                return Ok(None);
            }
            let domains = registry.list().map_err(io::Error::other)?;
            let again = domains.into_iter().find(|new| new.pid == before.pid && new.domid != before.domid);
            if let Some(again) = again
                && let Ok(socket) = UnixStream::connect(again.console_socket())
            {
                return Ok(Some((again, socket)));
            }
            // What is typed while nobody listens is lost, but for the escape key.
            let terminal = self.input.as_ref().filter(|_| self.interactive);
            if terminal.is_none() {
                std::thread::sleep(RETRY);
            } else if wait(terminal, None, Some(RETRY))?.0 && self.read_input()?.1 {
                return Ok(None);
            }
        }
        Ok(None)
    }
}

/// Waits: whether input can be read, and what can be done with the socket.
fn wait(
    input: Option<&File>,
    socket: Option<(&UnixStream, libc::c_short)>,
    limit: Option<Duration>,
) -> io::Result<(bool, libc::c_short)> {
    // poll passes over negative numbers.
    let entry = |fd: Option<i32>, events| libc::pollfd { fd: fd.unwrap_or(-1), events, revents: 0 };
    let mut fds = [
        entry(input.map(AsRawFd::as_raw_fd), libc::POLLIN),
        entry(socket.map(|(socket, _)| socket.as_raw_fd()), socket.map_or(0, |(_, events)| events)),
    ];
    let millis = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: two valid pollfds.
    if unsafe { libc::poll(fds.as_mut_ptr(), 2, millis) } < 0 {
        let error = io::Error::last_os_error();
        return if is_transient(&error) { Ok((false, 0)) } else { Err(error) };
    }
    let [input, socket] = fds;
    Ok((input.revents != 0, socket.revents))
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::OwnedFd;
    use std::thread::JoinHandle;

    use super::*;

    /// A relay in a thread of its own, and the three things it is connected to.
    struct Fixture {
        typing: Option<io::PipeWriter>,
        shown: io::PipeReader,
        domain: UnixStream,
        relay: JoinHandle<End>,
    }

    fn start(interactive: bool) -> Fixture {
        let (input, typing) = io::pipe().unwrap();
        let (shown, output) = io::pipe().unwrap();
        let (domain, socket) = UnixStream::pair().unwrap();
        domain.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut relay = Relay {
            input: Some(File::from(OwnedFd::from(input))),
            output: File::from(OwnedFd::from(output)),
            interactive,
        };
        let relay = std::thread::spawn(move || relay.run(&socket).unwrap());
        Fixture { typing: Some(typing), shown, domain, relay }
    }

    impl Fixture {
        fn type_in(&mut self, text: &[u8]) {
            self.typing.as_mut().unwrap().write_all(text).unwrap();
        }

        fn arrives(&mut self, text: &[u8]) {
            let mut got = vec![0; text.len()];
            self.domain.read_exact(&mut got).unwrap();
            assert_eq!(got, text);
        }
    }

    #[test]
    fn bytes_go_both_ways() {
        let mut console = start(false);
        console.type_in(b"ls\r\x1d\x03");
        console.arrives(b"ls\r\x1d\x03");
        console.domain.write_all(b"bin\r\n").unwrap();
        let mut shown = [0; 5];
        console.shown.read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"bin\r\n");
        drop(console.domain);
        assert_eq!(console.relay.join().unwrap(), End::Closed);
    }

    #[test]
    fn the_escape_key_leaves() {
        let mut console = start(true);
        console.type_in(b"abc\x1ddef");
        console.arrives(b"abc");
        assert_eq!(console.relay.join().unwrap(), End::Left);
    }

    #[test]
    fn output_goes_on_after_the_end_of_piped_input() {
        let mut console = start(false);
        console.type_in(b"uname\r");
        console.typing = None;
        let mut all = Vec::new();
        console.domain.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"uname\r");
        console.domain.write_all(b"Linux").unwrap();
        drop(console.domain);
        let mut shown = String::new();
        console.shown.read_to_string(&mut shown).unwrap();
        assert_eq!(shown, "Linux");
        assert_eq!(console.relay.join().unwrap(), End::Closed);
    }

    #[test]
    fn output_is_shown_while_the_guest_reads_nothing() {
        let mut console = start(false);
        let typing = console.typing.take().unwrap();
        // More than the socket and the pipe hold: this thread hangs until the relay has gone.
        let typist = std::thread::spawn(move || {
            let mut typing = typing;
            typing.write_all(&vec![b'x'; 4 << 20]).unwrap_err();
        });
        let mut shown = [0; 2];
        console.domain.write_all(b"hi").unwrap();
        console.shown.read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"hi");
        drop(console.domain);
        assert_eq!(console.relay.join().unwrap(), End::Closed);
        typist.join().unwrap();
    }

    #[test]
    fn the_end_of_the_reader_is_the_end() {
        let Fixture { typing, shown, mut domain, relay } = start(false);
        drop(shown);
        domain.write_all(b"hello").unwrap();
        assert_eq!(relay.join().unwrap(), End::Left);
        drop(typing);
    }
}
