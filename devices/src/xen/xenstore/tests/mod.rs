//! The server as its clients see it: every test here runs through a ring and through a socket alike.
//!
//! A request is written as text, `write /a/b value`: its words become the NUL-separated strings of the payload.
//! A reply is shown with NULs as spaces, an error as its name.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
#![allow(clippy::octal_escapes)] // NUL, then a digit: as it is on the wire.

mod malformed;
mod nodes;
mod permissions;
mod quotas;
mod ring;
mod socket;
mod transactions;
mod watches;

use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::ring::XenStoreRing;
use super::server::XenStore;
use super::socket::SocketServer;
use super::wire::{HEADER_SIZE, Header, XS_ERROR, XS_WATCH_EVENT, message};
use crate::memory::SharedPages;
use crate::xen::DomId;

/// Runs each test body, with a [`Bench`] as its argument, through both transports.
macro_rules! on_both_transports {
    ($($(#[doc = $doc:literal])* fn $name:ident($bench:ident) $body:block)*) => {$(
        $(#[doc = $doc])*
        mod $name {
            use super::*;
            fn body($bench: &mut Bench) $body
            #[test]
            fn through_a_ring() { Bench::check(Kind::Ring, body) }
            #[test]
            fn through_a_socket() { Bench::check(Kind::Socket, body) }
        }
    )*};
}
use on_both_transports;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Ring,
    Socket,
}

/// The guest's end of a ring page, without a driver's checks. The page is the second of two.
#[derive(Clone)]
struct RingPage(Arc<SharedPages>);

struct RingClient {
    page: RingPage,
    ring: XenStoreRing,
}

impl std::ops::Deref for RingClient {
    type Target = RingPage;
    fn deref(&self) -> &RingPage {
        &self.page
    }
}

impl RingClient {
    fn new(store: &mut XenStore, domid: u16) -> Self {
        let pages = Arc::new(SharedPages::new("ring", 2).unwrap());
        let ring = XenStoreRing::new(store, DomId(domid), Arc::clone(&pages), 1).unwrap();
        let page = RingPage(pages);
        // Indexes that wrap soon.
        for offset in [2048, 2052, 2056, 2060] {
            page.word(offset).store(u32::MAX - 700, SeqCst);
        }
        Self { page, ring }
    }
}

impl RingPage {
    fn word(&self, offset: usize) -> &AtomicU32 {
        self.0.u32_at(4096 + offset).unwrap()
    }

    /// Writes what there is room for.
    fn put(&self, bytes: &[u8]) -> usize {
        let (cons, prod) = (self.word(2048).load(SeqCst), self.word(2052).load(SeqCst));
        let count = bytes.len().min(1024 - prod.wrapping_sub(cons) as usize);
        for (i, byte) in bytes[..count].iter().enumerate() {
            let at = prod.wrapping_add(i as u32) % 1024;
            self.0.write(4096 + at as usize, &[*byte]).unwrap();
        }
        self.word(2052).store(prod.wrapping_add(count as u32), SeqCst);
        count
    }

    fn take(&self) -> Vec<u8> {
        let (cons, prod) = (self.word(2056).load(SeqCst), self.word(2060).load(SeqCst));
        let read = |i: u32| {
            let mut byte = [0];
            self.0.read(4096 + 1024 + (cons.wrapping_add(i) % 1024) as usize, &mut byte).unwrap();
            byte[0]
        };
        let bytes = (0..prod.wrapping_sub(cons)).map(read).collect();
        self.word(2056).store(prod, SeqCst);
        bytes
    }
}

struct SocketClient {
    server: SocketServer,
    stream: UnixStream,
}

impl SocketClient {
    fn new(store: &mut XenStore, domid: u16) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("xvmm-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, SeqCst));
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let mut server = SocketServer::new(listener, DomId(domid)).unwrap();
        let stream = UnixStream::connect_addr(&address).unwrap();
        stream.set_nonblocking(true).unwrap();
        server.process(store).unwrap();
        Self { server, stream }
    }
}

enum Link {
    Ring(RingClient),
    Socket(SocketClient),
}

impl Link {
    /// Lets the server's end work, then moves bytes; true: some moved.
    fn turn(&mut self, store: &mut XenStore, out: &mut Vec<u8>, input: &mut Vec<u8>) -> bool {
        match self {
            Link::Ring(client) => {
                let put = client.put(out);
                out.drain(..put);
                let status = client.ring.process(store);
                let taken = client.take();
                input.extend_from_slice(&taken);
                put + taken.len() > 0 || status.notify
            }
            Link::Socket(client) => {
                let put = match client.stream.write(out) {
                    Ok(count) => count,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
                    Err(_) => return false,
                };
                out.drain(..put);
                client.server.process(store).unwrap();
                client.server.flush(store).unwrap();
                let mut buffer = [0; 8192];
                let taken = client.stream.read(&mut buffer).unwrap_or(0);
                input.extend_from_slice(&buffer[..taken]);
                put + taken > 0
            }
        }
    }
}

struct Client {
    link: Link,
    out: Vec<u8>,
    input: Vec<u8>,
    events: Vec<String>,
    replies: Vec<(Header, Vec<u8>)>,
}

/// A store and its clients.
struct Bench {
    store: XenStore,
    kind: Kind,
    clients: Vec<Client>,
    req_id: u32,
}

impl Bench {
    /// Runs `body`, then checks that the tree is sound.
    fn check(kind: Kind, body: impl Fn(&mut Bench)) {
        let mut bench = Bench { store: XenStore::new(), kind, clients: Vec::new(), req_id: 0 };
        body(&mut bench);
        assert_eq!(bench.store.check(), Ok(()));
    }

    /// A client that is domain `domid`.
    fn client(&mut self, domid: u16) -> usize {
        let link = match self.kind {
            Kind::Ring => Link::Ring(RingClient::new(&mut self.store, domid)),
            Kind::Socket => Link::Socket(SocketClient::new(&mut self.store, domid)),
        };
        self.clients.push(Client { link, out: vec![], input: vec![], events: vec![], replies: vec![] });
        self.clients.len() - 1
    }

    /// Moves bytes until nothing moves any more.
    fn pump(&mut self) {
        loop {
            let mut moved = false;
            for client in &mut self.clients {
                moved |= client.link.turn(&mut self.store, &mut client.out, &mut client.input);
                while let Some(header) = client.input.first_chunk::<HEADER_SIZE>().map(Header::parse) {
                    let end = HEADER_SIZE + header.len as usize;
                    if client.input.len() < end {
                        break;
                    }
                    let message: Vec<u8> = client.input.drain(..end).collect();
                    let payload = message[HEADER_SIZE..].to_vec();
                    if header.kind == XS_WATCH_EVENT {
                        assert_eq!((header.req_id, header.tx_id), (0, 0));
                        client.events.push(show(&payload));
                    } else {
                        client.replies.push((header, payload));
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Sends a message and takes its reply, as bytes.
    fn call(&mut self, client: usize, kind: u32, tx: u32, payload: &[u8]) -> Result<Vec<u8>, String> {
        self.req_id += 1;
        let bytes = message(kind, self.req_id, tx, payload);
        self.clients[client].out.extend_from_slice(&bytes);
        self.pump();
        let replies = &mut self.clients[client].replies;
        assert_eq!(replies.len(), 1, "one request, one reply");
        let (header, payload) = replies.pop().unwrap();
        assert_eq!((header.req_id, header.tx_id), (self.req_id, tx));
        if header.kind == XS_ERROR {
            return Err(show(&payload));
        }
        assert_eq!(header.kind, kind);
        Ok(payload)
    }

    /// As `tx` in a transaction.
    fn run_in(&mut self, client: usize, tx: u32, request: &str) -> String {
        let mut words = request.split(' ');
        let name = words.next().unwrap();
        const NAMES: [&str; 27] = [
            "control",
            "dir",
            "read",
            "getperms",
            "watch",
            "unwatch",
            "start",
            "end",
            "introduce",
            "release",
            "path",
            "write",
            "mkdir",
            "rm",
            "setperms",
            "event",
            "error",
            "introduced",
            "resume",
            "target",
            "-",
            "reset",
            "part",
            "getfeature",
            "setfeature",
            "getquota",
            "setquota",
        ];
        let kind = NAMES.iter().position(|n| *n == name).unwrap() as u32;
        let mut payload = words.collect::<Vec<_>>().join("\0").into_bytes();
        if name != "write" {
            payload.push(0);
        }
        self.call(client, kind, tx, &payload).map_or_else(|error| error, |reply| show(&reply))
    }

    /// Sends a request given as text; the reply as text.
    fn run(&mut self, client: usize, request: &str) -> String {
        self.run_in(client, 0, request)
    }

    /// Runs a table of client, request and expected reply.
    fn table(&mut self, table: &[(usize, &str, &str)]) {
        for (client, request, expected) in table {
            assert_eq!(&self.run(*client, request), expected, "{request}");
        }
    }

    /// The events that came since the last call: "path token" each.
    fn events(&mut self, client: usize) -> Vec<String> {
        self.pump();
        std::mem::take(&mut self.clients[client].events)
    }

    /// Begins a transaction.
    fn start(&mut self, client: usize) -> u32 {
        self.run(client, "start").parse().unwrap()
    }

    /// `/local/domain/D`, owned by domain 0 as libxl makes it, with `data` in it that the domain owns.
    fn home(&mut self, domid: u16) {
        let home = format!("/local/domain/{domid}");
        let perm = |text: String| super::Perm::parse(text.as_bytes()).unwrap();
        self.store.write(&home, "").unwrap();
        self.store.set_perms(&home, &[perm("n0".into()), perm(format!("r{domid}"))]).unwrap();
        self.store.mkdir(&format!("{home}/data")).unwrap();
        self.store.set_perms(&format!("{home}/data"), &[perm(format!("n{domid}"))]).unwrap();
        self.store.introduce_domain(DomId(domid));
    }
}

/// NULs as spaces, the last one left out.
fn show(payload: &[u8]) -> String {
    let payload = payload.strip_suffix(&[0]).unwrap_or(payload);
    String::from_utf8_lossy(payload).replace('\0', " ")
}
