//! What a console is attached to: xvmm's own terminal, a pseudo-terminal, a file, a client of the socket.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tracing::{info, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::log::{ConsoleLog, LogReader};
use super::pty::Pty;
use super::stream::Stream;

/// Bytes that one attachment writes in a turn, so that a flood of output does not hold up the main thread.
const TURN: usize = 64 << 10;
/// Bytes of a console file before it is put aside as PATH.1. A guest that prints without end fills twice this
/// much of the host's disk, no more (compare XSA-180).
pub const FILE_BYTES: u64 = 64 << 20;

/// One attachment.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) kind: Kind,
    pub(super) sink: Option<Sink>,
    pub(super) source: Option<Source>,
    reader: LogReader,
    /// For tokens of the epoll; even, and never used again.
    id: u64,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// xvmm's stdin and stdout. Interactive: stdin is a terminal in raw mode.
    Standard {
        interactive: bool,
    },
    Pty(Pty),
    File(LogFile),
    Client,
}

/// Where output goes.
#[derive(Debug)]
pub(super) struct Sink {
    stream: Stream,
    /// Regular files cannot be watched: they are always ready.
    pollable: bool,
    /// Waits for an event before it writes again.
    blocked: bool,
}

/// Where input comes from.
#[derive(Debug)]
pub(super) struct Source {
    stream: Stream,
    pollable: bool,
    /// Has something to read, as far as we know. While it has, it is not watched: input that finds no room
    /// would wake us without end.
    pub(super) ready: bool,
    watched: bool,
}

/// What came of reading a source.
pub(super) enum Input {
    Bytes(usize),
    Nothing,
    End,
}

/// Token of the sink; the source's is one more.
fn event(id: u64, set: EventSet) -> EpollEvent {
    EpollEvent::new(set, id)
}

impl Attachment {
    /// Attaches `sink` and `source`; the reader starts with the oldest output that the log has.
    pub(super) fn new(
        id: u64,
        kind: Kind,
        sink: Option<Stream>,
        source: Option<Stream>,
        log: &ConsoleLog,
        epoll: &Epoll,
    ) -> io::Result<Self> {
        let sink = match sink {
            Some(stream) => {
                let pollable = watch(epoll, &stream, event(id, EventSet::empty()))?;
                Some(Sink { stream, pollable, blocked: false })
            }
            None => None,
        };
        let source = match source {
            Some(stream) => {
                let pollable = watch(epoll, &stream, event(id + 1, EventSet::IN))?;
                Some(Source { stream, pollable, ready: !pollable, watched: pollable })
            }
            None => None,
        };
        Ok(Self { kind, sink, source, reader: log.reader(), id })
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Whether input that finds no room is dropped, instead of waiting where it is. A person at a terminal has
    /// to reach us (the escape key) even when the guest reads nothing any more.
    pub(super) fn is_interactive(&self) -> bool {
        matches!(self.kind, Kind::Standard { interactive: true })
    }

    /// Nothing is left of it.
    pub(super) fn is_dead(&self) -> bool {
        self.sink.is_none() && self.source.is_none()
    }

    /// Whether the sink has seen all output.
    pub(super) fn is_flushed(&self, log: &ConsoleLog) -> bool {
        let unread = matches!(&self.kind, Kind::Pty(pty) if pty.has_unread());
        self.sink.is_none() || (!log.has_more(&self.reader) && !unread)
    }

    /// Takes an event of the sink.
    pub(super) fn on_sink_event(&mut self, set: EventSet, epoll: &Epoll) {
        if set.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.on_hang_up(epoll);
        } else if let Some(sink) = &mut self.sink {
            sink.blocked = false;
            if modify(epoll, &sink.stream, event(self.id, EventSet::empty())).is_err() {
                self.drop_sink(epoll);
            }
        }
    }

    /// Takes an event of the source.
    pub(super) fn on_source_event(&mut self, epoll: &Epoll) {
        if let Some(source) = &mut self.source {
            source.ready = true;
            source.unwatch(epoll);
        }
    }

    /// The other side is gone.
    fn on_hang_up(&mut self, epoll: &Epoll) {
        match &mut self.kind {
            Kind::Pty(pty) => match pty.recover() {
                Ok(_) => return,
                Err(e) => {
                    warn!("the console's pseudo-terminal {} is lost: {e}", pty.path().display());
                    self.drop_source(epoll);
                }
            },
            Kind::File(file) => file.complain(&ErrorKind::BrokenPipe.into()),
            Kind::Standard { .. } | Kind::Client => {}
        }
        self.drop_sink(epoll);
    }

    /// Writing failed. Returns whether it may go on when the sink is ready again.
    fn survives(&mut self, error: &io::Error) -> bool {
        match &mut self.kind {
            _ if error.kind() == ErrorKind::WouldBlock => true,
            Kind::Pty(pty) => {
                error.raw_os_error() == Some(libc::EIO) && pty.recover().is_ok_and(|hung_up| hung_up)
            }
            Kind::File(file) => {
                file.complain(error);
                // A full disk may have room again later: what the log still has is written then.
                self.sink.as_ref().is_some_and(|sink| !sink.pollable)
            }
            Kind::Standard { .. } | Kind::Client => false,
        }
    }

    pub(super) fn drop_sink(&mut self, epoll: &Epoll) {
        if let Some(sink) = self.sink.take()
            && sink.pollable
        {
            unwatch(epoll, &sink.stream);
        }
    }

    pub(super) fn drop_source(&mut self, epoll: &Epoll) {
        if let Some(mut source) = self.source.take() {
            source.unwatch(epoll);
        }
    }

    /// Reads input. `End`: there will be none any more, and the source is gone.
    pub(super) fn read(&mut self, buf: &mut [u8], epoll: &Epoll) -> Input {
        let Some(source) = &mut self.source else { return Input::Nothing };
        match source.stream.read(buf) {
            Ok(0) => {}
            Ok(n) => return Input::Bytes(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                source.ready = false;
                if source.watch_again(self.id, epoll).is_ok() {
                    return Input::Nothing;
                }
            }
            Err(e) => {
                // EIO is a terminal whose other side hung up.
                if let Kind::Pty(pty) = &mut self.kind
                    && e.raw_os_error() == Some(libc::EIO)
                    && pty.recover().is_ok_and(|hung_up| hung_up)
                {
                    source.ready = false;
                    if source.watch_again(self.id, epoll).is_ok() {
                        return Input::Nothing;
                    }
                }
            }
        }
        self.drop_source(epoll);
        // A client that sends no more may still watch; one that is gone altogether shows as a hang-up.
        Input::End
    }

    /// Watches a ready source again though it may have more: its turn is over.
    pub(super) fn yield_source(&mut self, epoll: &Epoll) {
        if let Some(source) = &mut self.source
            && source.pollable
        {
            source.ready = false;
            if source.watch_again(self.id, epoll).is_err() {
                self.drop_source(epoll);
            }
        }
    }

    /// Watches the sink for room. What cannot be watched is tried again in the next turn. False: it failed.
    fn wait_for_room(&mut self, epoll: &Epoll) -> bool {
        match &mut self.sink {
            Some(sink) if sink.pollable => {
                sink.blocked = true;
                modify(epoll, &sink.stream, event(self.id, EventSet::OUT)).is_ok()
            }
            _ => true,
        }
    }

    /// Writes what the log has for this attachment, as far as it goes without waiting. True: some of it went.
    pub(super) fn flush(&mut self, log: &ConsoleLog, epoll: &Epoll) -> bool {
        let Some(sink) = &mut self.sink else { return false };
        if sink.blocked || !log.has_more(&self.reader) {
            return false;
        }
        match &mut self.kind {
            Kind::File(file) => file.keep_bounded(sink),
            // A failure shows when the output is written.
            Kind::Pty(pty) => drop(pty.recover()),
            Kind::Standard { .. } | Kind::Client => {}
        }
        let mut progress = false;
        let budget = if sink.pollable { TURN } else { usize::MAX };
        let result = log.feed(&mut self.reader, budget, |piece| {
            let taken = sink.stream.write(piece)?;
            progress |= taken > 0;
            Ok(taken)
        });
        let done = result.is_ok() && !log.has_more(&self.reader);
        match result {
            Ok(()) => {
                if let Kind::File(file) = &mut self.kind {
                    file.complained = false;
                }
            }
            Err(e) if self.survives(&e) => {}
            Err(_) => {
                self.drop_sink(epoll);
                return progress;
            }
        }
        if !done && !self.wait_for_room(epoll) {
            self.drop_sink(epoll);
        }
        progress
    }
}

impl Source {
    fn unwatch(&mut self, epoll: &Epoll) {
        if std::mem::take(&mut self.watched) {
            unwatch(epoll, &self.stream);
        }
    }

    fn watch_again(&mut self, id: u64, epoll: &Epoll) -> io::Result<()> {
        if self.pollable && !self.watched {
            watch(epoll, &self.stream, event(id + 1, EventSet::IN))?;
            self.watched = true;
        }
        Ok(())
    }
}

/// Starts watching; false if it is a regular file or the like, which epoll refuses because it is always ready.
fn watch(epoll: &Epoll, stream: &Stream, event: EpollEvent) -> io::Result<bool> {
    match epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(e) => Err(e),
    }
}

fn modify(epoll: &Epoll, stream: &Stream, event: EpollEvent) -> io::Result<()> {
    epoll.ctl(ControlOperation::Modify, stream.as_raw_fd(), event)
}

/// Stops watching. Closing would not do: the open file may have other descriptors.
fn unwatch(epoll: &Epoll, stream: &Stream) {
    // It was watched, so this cannot fail.
    let _ = epoll.ctl(ControlOperation::Delete, stream.as_raw_fd(), EpollEvent::default());
}

/// A file that output is appended to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    limit: u64,
    complained: bool,
}

impl LogFile {
    /// Opens `path`, made with mode 0600 if there is none. It may also be a FIFO or a device.
    pub(super) fn open(path: &Path, limit: u64) -> io::Result<(Self, Stream)> {
        let stream = Stream::own(open_file(path)?)?;
        Ok((Self { path: path.to_owned(), limit, complained: false }, stream))
    }

    /// Puts a file aside that has reached its limit. Where that is not allowed (a sandbox, a read-only folder)
    /// it is begun anew in place.
    fn keep_bounded(&mut self, sink: &mut Sink) {
        let Ok(file) = sink.stream.as_fd().try_clone_to_owned().map(File::from) else { return };
        if !file.metadata().is_ok_and(|m| m.is_file() && m.len() >= self.limit) {
            return;
        }
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        let fresh =
            std::fs::rename(&self.path, &old).and_then(|()| open_file(&self.path)).and_then(Stream::own);
        match fresh {
            Ok(stream) => {
                info!("the console file {} is full: it is {} now", self.path.display(), old.display());
                sink.stream = stream;
            }
            Err(e) => {
                let path = self.path.display();
                warn!("the console file {path} is full and cannot be put aside ({e}): it begins anew");
                if let Err(e) = file.set_len(0) {
                    self.complain(&e);
                }
            }
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            let path = self.path.display();
            warn!("the console file {path} cannot be written: {error}; the last output waits in memory");
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}
