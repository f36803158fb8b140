//! The unix socket of the store, for the tools of the host (xenstore-ls, libxenstore with XENSTORED_PATH).
//!
//! The server keeps its descriptors in an epoll set of its own, so an event loop watches one descriptor,
//! [`SocketServer::fd`], for reading. Whoever can open the socket acts as the domain that it serves (0: may do
//! everything), so the file's permissions are the access control.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::server::{ConnId, XenStore};
use crate::xen::DomId;

/// Clients at a time. Each holds a descriptor and buffers.
const MAX_CLIENTS: usize = 64;
/// Bytes read from a client in one turn; a turn of each client comes before the second of any.
const READ_SIZE: usize = 4096;
const LISTENER: u64 = 0;

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    connection: ConnId,
    /// Read from the socket, not yet accepted by the store.
    input: Vec<u8>,
    interest: EventSet,
}

/// A listening socket and its clients.
#[derive(Debug)]
pub struct SocketServer {
    epoll: Epoll,
    listener: UnixListener,
    domid: DomId,
    clients: BTreeMap<u64, Client>,
    last_key: u64,
    listening: bool,
}

impl SocketServer {
    /// Serves `listener`; its clients act as `domid`.
    pub fn new(listener: UnixListener, domid: DomId) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (epoll, clients) = (Epoll::new()?, BTreeMap::new());
        let mut server = Self { epoll, listener, domid, clients, last_key: LISTENER, listening: false };
        server.listen(true)?;
        Ok(server)
    }

    /// The descriptor to watch for reading; then call [`SocketServer::process`].
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Number of clients.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    fn listen(&mut self, on: bool) -> io::Result<()> {
        if self.listening != on {
            let operation = if on { ControlOperation::Add } else { ControlOperation::Delete };
            let event = EpollEvent::new(EventSet::IN, LISTENER);
            self.epoll.ctl(operation, self.listener.as_raw_fd(), event)?;
            self.listening = on;
        }
        Ok(())
    }

    /// Accepts clients, reads their requests and writes their replies, as far as that goes without waiting.
    pub fn process(&mut self, store: &mut XenStore) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 32];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        for event in events.iter().take(count) {
            if event.data() == LISTENER {
                self.accept(store)?;
            } else {
                let gone = event.event_set().intersects(EventSet::ERROR | EventSet::HANG_UP);
                let readable = event.event_set().contains(EventSet::IN) || gone;
                self.serve(event.data(), readable, store);
            }
        }
        self.flush(store)
    }

    /// Writes what guests and the VMM's own code left for the clients here: to be called when
    /// [`XenStore::take_ready`] names connections.
    pub fn flush(&mut self, store: &mut XenStore) -> io::Result<()> {
        self.listen(true)?;
        let keys: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, c)| !store.output(c.connection).is_empty())
            .map(|(k, _)| *k)
            .collect();
        for key in keys {
            self.serve(key, false, store);
        }
        Ok(())
    }

    fn accept(&mut self, store: &mut XenStore) -> io::Result<()> {
        match self.listener.accept() {
            Ok((stream, _)) if self.clients.len() < MAX_CLIENTS => self.add_client(stream, store),
            // Closed at once, which the client sees, instead of waiting for others to leave.
            Ok(_) => Ok(()),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(())
            }
            Err(error) => {
                // Out of descriptors: the socket stays readable, so stop looking until something else happened.
                tracing::warn!("xenstore: a client cannot be accepted: {error}");
                self.listen(false)
            }
        }
    }

    pub(super) fn add_client(&mut self, stream: UnixStream, store: &mut XenStore) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        self.last_key += 1;
        let interest = EventSet::IN;
        self.epoll.ctl(
            ControlOperation::Add,
            stream.as_raw_fd(),
            EpollEvent::new(interest, self.last_key),
        )?;
        let connection = store.add_connection(self.domid);
        self.clients.insert(self.last_key, Client { stream, connection, input: Vec::new(), interest });
        Ok(())
    }

    fn serve(&mut self, key: u64, readable: bool, store: &mut XenStore) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        let open = client.turn(readable, store).and_then(|()| {
            let wanted = client.wanted(store);
            if wanted != client.interest {
                let event = EpollEvent::new(wanted, key);
                self.epoll.ctl(ControlOperation::Modify, client.stream.as_raw_fd(), event)?;
                client.interest = wanted;
            }
            Ok(())
        });
        if let Err(error) = open {
            if error.kind() != ErrorKind::UnexpectedEof {
                tracing::debug!("xenstore: a client is disconnected: {error}");
            }
            if let Some(client) = self.clients.remove(&key) {
                store.remove_connection(client.connection);
                let _ = self.epoll.ctl(
                    ControlOperation::Delete,
                    client.stream.as_raw_fd(),
                    EpollEvent::default(),
                );
            }
        }
    }
}

impl Client {
    /// Reads once, serves and writes until nothing moves. `Err`: the client is gone, or must go.
    fn turn(&mut self, readable: bool, store: &mut XenStore) -> io::Result<()> {
        if readable && self.input.is_empty() {
            let mut buffer = [0; READ_SIZE];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e),
            }
        }
        loop {
            let taken = store.receive(self.connection, &self.input).map_err(io::Error::other)?;
            self.input.drain(..taken);
            let written = self.write(store)?;
            // One that reads too slowly for its watches has lost events: it must start over (and a store must
            // not keep them for it).
            if store.overflowed(self.connection) {
                return Err(io::Error::other("it does not read its watch events"));
            }
            if taken + written == 0 {
                return Ok(());
            }
        }
    }

    fn write(&mut self, store: &mut XenStore) -> io::Result<usize> {
        let mut written = 0;
        loop {
            let waiting = store.output(self.connection);
            if waiting.is_empty() {
                return Ok(written);
            }
            match self.stream.write(waiting) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    store.sent(self.connection, count);
                    written += count;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(written),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// What to wait for: requests only when the last ones were accepted, room only when something waits.
    fn wanted(&self, store: &XenStore) -> EventSet {
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, self.input.is_empty());
        wanted.set(EventSet::OUT, !store.output(self.connection).is_empty());
        wanted
    }
}
