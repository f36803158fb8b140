//! The socket of one viewer, and the thread that serves it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::bucket::Bucket;
use vmm_sys_util::eventfd::EventFd;

use super::peers::Stop;
use super::protocol::Refusal;
use super::session::Session;

/// How long a connection may take to become a viewer: somebody may have to type a password.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// How long somebody with a wrong password waits to hear of it.
const PENALTY: Duration = Duration::from_secs(1);
/// Bytes that are taken from a viewer in a second. A hand on a mouse makes some thousands; more is a flood, and waits.
const INPUT_RATE: u64 = 256 << 10;
const READ_CHUNK: usize = 4096;

/// A connected socket that does not block.
pub(super) trait Socket: Read + Write + AsRawFd + Send {
    /// Prepares it.
    fn prepare(&self) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn prepare(&self) -> io::Result<()> {
        self.set_nonblocking(true)?;
        self.set_nodelay(true)?;
        // The other end may have lost its network, or its power: it is asked after a minute, and gone after two more.
        let options = [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 60),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 20),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 120_000),
        ];
        for (level, name, value) in options {
            set_option(self.as_raw_fd(), level, name, value)?;
        }
        Ok(())
    }
}

fn set_option(fd: RawFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: the pointer and the length are those of a value that lives through the call.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Socket for UnixStream {
    fn prepare(&self) -> io::Result<()> {
        self.set_nonblocking(true)
    }
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was closed or broken by the other end.
    Left,
    /// We ended it: the server does, or another viewer does not share.
    Stopped,
    /// It did not become a viewer in time.
    TimedOut,
    /// It broke the rules.
    Refused(Refusal),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Left => f.write_str("it left"),
            End::Stopped => f.write_str("its place was needed"),
            End::TimedOut => f.write_str("it did not say what it wants in time"),
            End::Refused(refusal) => refusal.fmt(f),
        }
    }
}

/// Serves a connection to its end. `admitted` is called when it has become a viewer.
pub(super) fn serve(
    mut socket: Box<dyn Socket>,
    mut session: Session,
    stop: &Stop,
    wake: &Arc<EventFd>,
    admitted: impl Fn(&Session),
) -> End {
    let start = Instant::now();
    let mut bucket = Bucket::new(INPUT_RATE, Duration::from_secs(1), Duration::from_secs(1));
    let (mut filled, mut known) = (start, false);
    loop {
        if stop.is_stopped() {
            return End::Stopped;
        }
        if session.is_running() && !known {
            known = true;
            admitted(&session);
        }
        // Until nothing is left of what was asked for, or the socket takes no more.
        loop {
            session.produce();
            if session.output().is_empty() {
                break;
            }
            match send(&mut *socket, session.output()) {
                Ok(waits) if waits => break,
                Ok(_) => {}
                Err(_) => return End::Left,
            }
        }
        let now = Instant::now();
        bucket.fill(now.saturating_duration_since(filled));
        filled = now;
        let pause = bucket.delay();
        let deadline = (!known).then(|| HANDSHAKE.saturating_sub(now.saturating_duration_since(start)));
        if deadline.is_some_and(|left| left.is_zero()) {
            return End::TimedOut;
        }
        let limit = [deadline, (!pause.is_zero()).then_some(pause)].into_iter().flatten().min();
        let input = if pause.is_zero() { libc::POLLIN } else { 0 };
        let output = if session.output().is_empty() { 0 } else { libc::POLLOUT };
        let ready = wait(socket.as_raw_fd(), input | output, wake, limit);
        // Somebody who has closed is not waited for, even while nothing is read.
        if ready & (libc::POLLERR | libc::POLLHUP) != 0 && ready & libc::POLLIN == 0 {
            return End::Left;
        }
        if ready & libc::POLLIN != 0 {
            match receive(&mut *socket, &mut session) {
                Ok(Ok(len)) => bucket.take(len),
                Ok(Err(refusal)) => {
                    if refusal == Refusal::Password && !pass(stop, wake, PENALTY) {
                        return End::Stopped;
                    }
                    let _ = send(&mut *socket, session.output());
                    return End::Refused(refusal);
                }
                Err(_) => return End::Left,
            }
        }
    }
}

/// Takes what came: how many bytes.
fn receive(socket: &mut dyn Socket, session: &mut Session) -> io::Result<Result<u64, Refusal>> {
    let mut chunk = [0; READ_CHUNK];
    match socket.read(&mut chunk) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(len) => {
            let result = session.receive(chunk.get(..len).unwrap_or_default());
            Ok(result.map(|()| len as u64))
        }
        Err(error) if is_transient(&error) => Ok(Ok(0)),
        Err(error) => Err(error),
    }
}

/// Sends what the socket takes; true: it takes no more now.
fn send(socket: &mut dyn Socket, out: &mut Vec<u8>) -> io::Result<bool> {
    let mut sent = 0;
    let result = loop {
        let rest = out.get(sent..).unwrap_or_default();
        if rest.is_empty() {
            break Ok(false);
        }
        match socket.write(rest) {
            Ok(0) => break Err(ErrorKind::WriteZero.into()),
            Ok(len) => sent += len,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_transient(&error) => break Ok(true),
            Err(error) => break Err(error),
        }
    };
    out.drain(..sent);
    result
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Waits for this long: false if the connection has to end before.
fn pass(stop: &Stop, wake: &EventFd, time: Duration) -> bool {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if stop.is_stopped() || left.is_zero() {
            return !stop.is_stopped();
        }
        wait(-1, 0, wake, Some(left));
    }
}

/// Waits for the socket, the event, which is reset, or the end of the time. What the socket is ready for.
pub(super) fn wait(socket: RawFd, events: i16, wake: &EventFd, limit: Option<Duration>) -> i16 {
    let mut polls = [
        libc::pollfd { fd: socket, events, revents: 0 },
        libc::pollfd { fd: wake.as_raw_fd(), events: libc::POLLIN, revents: 0 },
    ];
    // Rounded up, so that the time has passed.
    let millis = limit.map_or(-1, |limit| i32::try_from(limit.as_millis() + 1).unwrap_or(i32::MAX));
    // SAFETY: the array lives through the call, and has two entries.
    let count = unsafe { libc::poll(polls.as_mut_ptr(), 2, millis) };
    let [socket, event] = polls;
    if count > 0 && event.revents != 0 {
        let _ = wake.read();
    }
    if count > 0 { socket.revents } else { 0 }
}
