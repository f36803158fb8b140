//! The console of a domain: output of the guest goes to a log and from there to whatever is attached; what is
//! typed there goes to the guest.
//!
//! Everything happens on the main thread and nothing waits: a slow reader falls behind in the log, a hung one
//! costs its position there. A guest that is silent costs no wake-up.

mod attachment;
mod early;
mod log;
mod pty;
mod stream;
pub mod terminal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::memory::SharedPages;
use devices::xen::console::ConsoleRing;
use devices::xen::event_channel::BackendChannel;
use event_manager::{EventOps, Events, MutEventSubscriber};
use thiserror::Error;

use crate::config::ConsoleTarget;
use tracing::{error, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

pub use attachment::FILE_BYTES;
use attachment::{Attachment, Input, Kind, LogFile};
pub use early::{EARLY_BYTES, EarlyOutput};
pub use log::{ConsoleLog, LOG_BYTES, LogReader};
use pty::Pty;
use stream::Stream;
use terminal::TerminalGuard;

/// Clients of the socket at a time.
pub const MAX_CLIENTS: usize = 32;
/// Input that waits for the guest; more stays where it comes from.
const INPUT_BYTES: usize = 4 << 10;
/// Input from a terminal that waits for the guest (a large paste); more is dropped.
const TYPED_BYTES: usize = 64 << 10;
/// Ctrl-] on a terminal in raw mode.
const ESCAPE: u8 = 0x1d;
/// How long output may take to reach a slow reader when the domain ends.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// How long a reader may take nothing at all before it counts as hung then.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

// Tokens of the epoll; attachments have theirs from FIRST_ID on, two each.
const CHANNEL: u64 = 0;
const EARLY: u64 = 1;
const LISTENER: u64 = 2;
const FIRST_ID: u64 = 4;

/// Why a console, or an attachment of it, cannot be made.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// The page is not one of those given.
    #[error("the console ring is to be on page {0}, which does not exist")]
    NoPage(usize),
    /// An epoll or an eventfd.
    #[error("the console needs a file descriptor: {0}; raise the limit of open files (ulimit -n)")]
    Descriptor(#[source] io::Error),
    /// stdin or stdout.
    #[error("--console tty: {0} cannot be used: {1}; give --console null, pty or file=PATH")]
    Standard(&'static str, #[source] io::Error),
    /// No pseudo-terminal.
    #[error("--console pty: there is no pseudo-terminal to be had: {0}; is devpts mounted on /dev/pts?")]
    Pty(#[source] io::Error),
    /// The file cannot be opened.
    #[error("--console file={path}: {1}; give a file that may be written, in a folder that exists", path = .0.display())]
    File(PathBuf, #[source] io::Error),
    /// The socket cannot be made.
    #[error("the console socket {path} cannot be made: {1}; remove what is there or choose another folder", path = .0.display())]
    Socket(PathBuf, #[source] io::Error),
}

/// Takes input for a serial port; returns how much it had room for.
type SerialInput = Box<dyn FnMut(&[u8]) -> usize>;

/// The console of a domain.
///
/// Add it to the event manager; it has an epoll of its own, so that attaching and finishing need no event
/// manager. SIGPIPE must be ignored, as it is in every Rust program.
pub struct Console {
    ring: ConsoleRing,
    channel: BackendChannel,
    early: Arc<EarlyOutput>,
    epoll: Epoll,
    on_escape: Box<dyn FnMut()>,
    /// Takes input in place of the ring, until the guest writes to the ring; says how much it took.
    serial: Option<SerialInput>,

    log: ConsoleLog,
    /// Early output ended in a carriage return.
    after_return: bool,
    input: VecDeque<u8>,
    attachments: BTreeMap<u64, Attachment>,
    next_id: u64,
    listener: Option<Listener>,
    terminal: Option<TerminalGuard>,
    pty_path: Option<PathBuf>,
}

#[derive(Debug)]
struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Out of descriptors: not watched until something else happens, or it would wake us without end.
    paused: bool,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("ring", &self.ring)
            .field("attachments", &self.attachments)
            .field("pty", &self.pty_path)
            .finish_non_exhaustive()
    }
}

impl Console {
    /// The console whose ring is page `page_index` of `pages`; `channel` is its event channel. Nothing is
    /// attached yet.
    pub fn new(
        pages: Arc<SharedPages>,
        page_index: usize,
        channel: BackendChannel,
    ) -> Result<Self, ConsoleError> {
        let ring = ConsoleRing::new(pages, page_index).ok_or(ConsoleError::NoPage(page_index))?;
        let early = EarlyOutput::new(ring.clone()).map_err(ConsoleError::Descriptor)?;
        let epoll = Epoll::new().map_err(ConsoleError::Descriptor)?;
        for (fd, token) in [(channel.event().as_raw_fd(), CHANNEL), (early.kick().as_raw_fd(), EARLY)] {
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
                .map_err(ConsoleError::Descriptor)?;
        }
        Ok(Self {
            ring,
            channel,
            early: Arc::new(early),
            epoll,
            on_escape: Box::new(|| ()),
            serial: None,
            log: ConsoleLog::default(),
            after_return: false,
            input: VecDeque::new(),
            attachments: BTreeMap::new(),
            next_id: FIRST_ID,
            listener: None,
            terminal: None,
            pty_path: None,
        })
    }

    /// What happens when a person presses Ctrl-] on xvmm's own terminal, where Ctrl-C goes to the guest. It is
    /// called while the console works: it must not call the console.
    pub fn set_on_escape(&mut self, on_escape: impl FnMut() + 'static) {
        self.on_escape = Box::new(on_escape);
    }

    /// Input goes to a serial port from now on, and to the ring once the guest writes there: firmware and boot loaders know
    /// the port alone, and whoever has a driver for the ring reads it. `serial` takes as much as it has room for and says how
    /// much that was; when it has room again, [`EarlyOutput::wake`] is to be called.
    pub fn set_serial(&mut self, serial: impl FnMut(&[u8]) -> usize + 'static) {
        self.serial = Some(Box::new(serial));
    }

    /// Attaches what `--console` says. On a terminal, raw mode begins, and ends with the console.
    pub fn attach(&mut self, target: &ConsoleTarget) -> Result<(), ConsoleError> {
        match target {
            ConsoleTarget::Null => Ok(()),
            ConsoleTarget::Tty => self.attach_standard(io::stdin().as_fd(), io::stdout().as_fd()),
            ConsoleTarget::Pty => {
                let pty = Pty::open().map_err(ConsoleError::Pty)?;
                let sink = pty.stream().map_err(ConsoleError::Pty)?;
                let source = pty.stream().map_err(ConsoleError::Pty)?;
                self.pty_path = Some(pty.path().to_owned());
                self.add(Kind::Pty(pty), Some(sink), Some(source)).map_err(ConsoleError::Pty)
            }
            ConsoleTarget::File(path) => {
                let wrap = |e| ConsoleError::File(path.clone(), e);
                let (file, stream) = LogFile::open(path, FILE_BYTES).map_err(wrap)?;
                self.add(Kind::File(file), Some(stream), None).map_err(wrap)
            }
        }
    }

    fn attach_standard(&mut self, stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>) -> Result<(), ConsoleError> {
        let sink = Stream::shared(stdout, true).map_err(|e| ConsoleError::Standard("stdout", e))?;
        let source = Stream::shared(stdin, false).map_err(|e| ConsoleError::Standard("stdin", e))?;
        // In the background of a shell, reading the terminal would stop us: then it stays the shell's.
        let source = (!terminal::in_background(stdin)).then_some(source);
        self.terminal = TerminalGuard::enter(stdin).map_err(|e| ConsoleError::Standard("stdin", e))?;
        let kind = Kind::Standard { interactive: self.terminal.is_some() };
        self.add(kind, Some(sink), source).map_err(|e| ConsoleError::Standard("stdin or stdout", e))
    }

    /// Listens on a unix socket at `path`: each client sees the log and then what comes, and types.
    pub fn listen(&mut self, path: &Path) -> Result<(), ConsoleError> {
        let wrap = |e| ConsoleError::Socket(path.to_owned(), e);
        let socket = UnixListener::bind(path).map_err(wrap)?;
        let listener = Listener { socket, path: path.to_owned(), paused: false };
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(wrap)?;
        listener.socket.set_nonblocking(true).map_err(wrap)?;
        listener.watch(&self.epoll).map_err(wrap)?;
        self.close_listener();
        self.listener = Some(listener);
        Ok(())
    }

    /// Where vCPU threads leave what the guest prints without the ring.
    pub fn early_output(&self) -> Arc<EarlyOutput> {
        Arc::clone(&self.early)
    }

    /// Path of the pseudo-terminal, which is also xenstore's `console/tty`; `None` without `--console pty`.
    pub fn pty_path(&self) -> Option<&Path> {
        self.pty_path.as_deref()
    }

    /// All output that is kept.
    pub fn log(&self) -> &ConsoleLog {
        &self.log
    }

    /// Clients of the socket now.
    pub fn clients(&self) -> usize {
        self.attachments.values().filter(|a| matches!(a.kind, Kind::Client)).count()
    }

    /// The domain has ended: takes the last output and waits for the attachments to write it, a few seconds at
    /// most where a reader is slow. Input ends, the socket is gone, and the terminal is restored.
    pub fn finish(&mut self) {
        self.finish_within(FLUSH_PATIENCE, FLUSH_LIMIT);
    }

    fn finish_within(&mut self, patience: Duration, limit: Duration) {
        self.close_listener();
        for attachment in self.attachments.values_mut() {
            attachment.drop_source(&self.epoll);
        }
        self.collect_output();
        if self.ring.drain_output(|piece| self.log.append(piece)) {
            self.channel.notify();
        }
        let end = Instant::now() + limit;
        let mut lose_patience = Instant::now() + patience;
        loop {
            let mut progress = false;
            for attachment in self.attachments.values_mut() {
                progress |= attachment.flush(&self.log, &self.epoll);
            }
            let now = Instant::now();
            if progress {
                lose_patience = now + patience;
            }
            let slow: Vec<_> = self.attachments.values().filter(|a| !a.is_flushed(&self.log)).collect();
            if slow.is_empty() || now >= end.min(lose_patience) {
                break;
            }
            // What a pseudo-terminal's reader has not read yet gives no event, but would be gone with us.
            let pause = if slow.iter().any(|a| matches!(a.kind, Kind::Pty(_))) { 5 } else { 100 };
            self.wait(pause);
        }
        for (_, mut attachment) in std::mem::take(&mut self.attachments) {
            attachment.drop_sink(&self.epoll);
        }
        self.terminal = None;
    }

    /// Waits for events, `timeout` milliseconds or for ever if it is -1, and does what they ask for. Returns
    /// their number.
    fn turn(&mut self, timeout: i32) -> usize {
        let events = self.wait(timeout);
        if let Some(listener) = &mut self.listener
            && listener.paused
            && listener.watch(&self.epoll).is_ok()
        {
            listener.paused = false;
        }
        self.collect_output();
        self.pass_input();
        for attachment in self.attachments.values_mut() {
            attachment.flush(&self.log, &self.epoll);
        }
        self.attachments.retain(|_, attachment| !attachment.is_dead());
        events
    }

    fn wait(&mut self, timeout: i32) -> usize {
        let mut events = [EpollEvent::default(); 32];
        // An error is a signal: there is nothing to do then.
        let count = self.epoll.wait(timeout, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            match event.data() {
                CHANNEL => drop(self.channel.event().read()),
                EARLY => drop(self.early.kick().read()),
                LISTENER => self.accept(),
                token => self.on_attachment_event(token, event.event_set()),
            }
        }
        count
    }

    fn on_attachment_event(&mut self, token: u64, set: EventSet) {
        let Some(attachment) = self.attachments.get_mut(&(token & !1)) else { return };
        if token & 1 == 1 {
            attachment.on_source_event(&self.epoll);
            return;
        }
        if matches!(attachment.kind, Kind::Client) && set.contains(EventSet::HANG_UP) {
            // Gone in both directions: its last input counts as far as there is room now, and its place is
            // free for the next one, whether or not the guest ever reads.
            attachment.on_source_event(&self.epoll);
            self.pass_input();
            if let Some(mut gone) = self.attachments.remove(&(token & !1)) {
                gone.drop_source(&self.epoll);
                gone.drop_sink(&self.epoll);
            }
            return;
        }
        attachment.on_sink_event(set, &self.epoll);
    }

    /// Takes one new client; more of them make another event.
    fn accept(&mut self) {
        let clients = self.clients();
        let Some(listener) = &mut self.listener else { return };
        let client = match listener.socket.accept() {
            Ok((client, _)) => client,
            Err(e) => {
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                ) {
                    warn!("a client of the console has to wait: {e}");
                    listener.unwatch(&self.epoll);
                    listener.paused = true;
                }
                return;
            }
        };
        let result = if clients >= MAX_CLIENTS { refuse(&client) } else { self.add_client(client) };
        if let Err(e) = result {
            warn!("a client could not be attached to the console: {e}");
        }
    }

    fn add_client(&mut self, client: UnixStream) -> io::Result<()> {
        let sink = Stream::own(client)?;
        let source = sink.try_clone()?;
        self.add(Kind::Client, Some(sink), Some(source))
    }

    fn add(&mut self, kind: Kind, sink: Option<Stream>, source: Option<Stream>) -> io::Result<()> {
        let id = self.next_id;
        self.next_id += 2;
        let attachment = Attachment::new(id, kind, sink, source, &self.log, &self.epoll)?;
        let at_once = attachment.source.as_ref().is_some_and(|source| source.ready);
        self.attachments.insert(attachment.id(), attachment);
        if at_once {
            // A file as input gives no event of its own.
            self.come_again();
        }
        Ok(())
    }

    /// Makes the next turn happen.
    fn come_again(&self) {
        // Fails only when the counter is full, and then the event is there.
        let _ = self.early.kick().write(1);
    }

    /// Moves output to the log in the order in which the guest made it, early output and the ring's merged.
    fn collect_output(&mut self) {
        // This mark is taken first: what the guest prints on the ring after early output that we fetch now must
        // not pass early output that we fetch next time.
        let upto = self.ring.output_mark();
        let (lost, pieces) = self.early.take();
        if lost > 0 {
            let note = format!("\r\n[xvmm: {lost} bytes of early output lost]\r\n");
            self.log.append(note.as_bytes());
        }
        let mut notify = false;
        for piece in pieces {
            notify |= self.ring.drain_output_until(piece.mark, |bytes| self.log.append(bytes));
            self.append_text(&piece.bytes);
        }
        notify |= self.ring.drain_output_until(upto, |bytes| self.log.append(bytes));
        if notify {
            self.serial = None;
            self.channel.notify();
        }
    }

    /// Early output is text with bare line feeds; what is attached expects what a terminal driver sends.
    fn append_text(&mut self, text: &[u8]) {
        let mut out = Vec::with_capacity(text.len() + text.len() / 16);
        for byte in text {
            if *byte == b'\n' && !self.after_return {
                out.push(b'\r');
            }
            out.push(*byte);
            self.after_return = *byte == b'\r';
        }
        self.log.append(&out);
    }

    /// Moves input from the attachments to the guest, as far as there is room.
    fn pass_input(&mut self) {
        // The rounds are bounded because a guest that reads as fast as an endless source (/dev/zero) gives
        // would keep us here.
        for _ in 0..8 {
            let read = self.read_sources();
            let mut pushed = 0;
            loop {
                let next = self.input.as_slices().0;
                let n = match &mut self.serial {
                    Some(_) if next.is_empty() => 0,
                    Some(serial) => serial(next),
                    None => self.ring.push_input(next),
                };
                if n == 0 {
                    break;
                }
                self.input.drain(..n);
                pushed += n;
                if pushed > INPUT_BYTES {
                    break;
                }
            }
            if pushed > 0 && self.serial.is_none() {
                self.channel.notify();
            }
            if read == 0 || pushed == 0 {
                break;
            }
        }
        // With input queued, the guest's next event brings us back. Without, nothing would.
        let has_ready = |a: &Attachment| a.source.as_ref().is_some_and(|source| source.ready);
        if self.input.is_empty() && self.attachments.values().any(has_ready) {
            self.come_again();
        }
    }

    /// Reads what the sources have, as far as the queue has room. Returns how much it was.
    fn read_sources(&mut self) -> usize {
        let mut total = 0;
        let mut buf = [0; 4096];
        for attachment in self.attachments.values_mut() {
            let interactive = attachment.is_interactive();
            let limit = if interactive { TYPED_BYTES } else { INPUT_BYTES };
            let mut turn = 0;
            while attachment.source.as_ref().is_some_and(|source| source.ready) {
                let room = limit.saturating_sub(self.input.len());
                let most = if interactive { buf.len() } else { room.min(buf.len()) };
                let Some(space) = buf.get_mut(..most) else { break };
                if space.is_empty() {
                    break;
                }
                let Input::Bytes(n) = attachment.read(space, &self.epoll) else { break };
                let bytes = buf.get(..n).unwrap_or(&[]);
                if interactive {
                    let escapes = bytes.iter().filter(|b| **b == ESCAPE).count();
                    self.input.extend(bytes.iter().filter(|b| **b != ESCAPE).take(room));
                    for _ in 0..escapes {
                        (self.on_escape)();
                    }
                } else {
                    self.input.extend(bytes);
                }
                turn += n;
                if turn >= TYPED_BYTES {
                    attachment.yield_source(&self.epoll);
                    break;
                }
            }
            total += turn;
        }
        total
    }

    fn close_listener(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.unwatch(&self.epoll);
            // Its folder may be gone already, or out of our reach.
            let _ = std::fs::remove_file(&listener.path);
        }
    }
}

impl Listener {
    fn watch(&self, epoll: &Epoll) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, LISTENER);
        epoll.ctl(ControlOperation::Add, self.socket.as_raw_fd(), event)
    }

    fn unwatch(&self, epoll: &Epoll) {
        // Fails if it was paused, and then it is not watched.
        let _ = epoll.ctl(ControlOperation::Delete, self.socket.as_raw_fd(), EpollEvent::default());
    }
}

/// Tells a client that there are too many.
fn refuse(client: &UnixStream) -> io::Result<()> {
    let stream = Stream::own(client.try_clone()?)?;
    let line = format!("xvmm: {MAX_CLIENTS} clients are attached to this console; detach one first\r\n");
    stream.write(line.as_bytes()).map(drop)
}

impl MutEventSubscriber for Console {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.turn(0);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = ops.add(Events::new(&self.epoll, EventSet::IN)) {
            error!("the console cannot be watched, it will stay silent: {e}");
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.close_listener();
    }
}
