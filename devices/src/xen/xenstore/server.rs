//! The server: the tree, its clients and the domains that it knows. Single-threaded and never blocking; the
//! transports ([`super::ring`], [`super::socket`]) and the VMM's own code call in from the main thread.

use std::collections::BTreeMap;

use thiserror::Error;

use super::connection::{Connection, Watch};
use super::ops;
use super::path::{INTRODUCE_DOMAIN, NodePath, RELEASE_DOMAIN, WatchPath};
use super::perms::{Caller, Perm, Perms};
use super::quota::Limits;
use super::transaction::{Changes, Fire, Fired, View};
use super::tree::{Node, Tree};
use super::wire::XsError;
use crate::xen::DomId;

/// A client of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u64);

/// Why a connection takes no more bytes.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveError {
    /// A message longer than 4096 bytes; the protocol has it that the connection dies of it.
    #[error("a xenstore client sent a message of more than 4096 bytes: its connection is closed")]
    TooLong,
    /// The connection was removed, by RELEASE of its domain.
    #[error("the xenstore connection does not exist any more: its domain was released")]
    Gone,
}

#[derive(Debug, Default)]
pub(super) struct Domain {
    pub(super) introduced: bool,
    pub(super) target: Option<DomId>,
    /// Set by SET_QUOTA, instead of the defaults.
    pub(super) limits: Option<Limits>,
}

/// A complete xenstore server.
#[derive(Debug)]
pub struct XenStore {
    pub(super) tree: Tree,
    pub(super) connections: BTreeMap<ConnId, Connection>,
    pub(super) domains: BTreeMap<DomId, Domain>,
    /// Of domains without limits of their own.
    pub(super) limits: Limits,
    /// CONTROL "log": requests go to the log.
    pub(super) log: bool,
    last_connection: u64,
    ready: Vec<ConnId>,
}

impl Default for XenStore {
    fn default() -> Self {
        Self::new()
    }
}

impl XenStore {
    /// A store with `/tool/xenstored`, as every client may expect it.
    pub fn new() -> Self {
        Self {
            tree: Tree::new(),
            connections: BTreeMap::new(),
            domains: BTreeMap::new(),
            limits: Limits::default(),
            log: false,
            last_connection: 0,
            ready: Vec::new(),
        }
    }

    /// Tells the store that `domid` exists, and those who watch `@introduceDomain`.
    pub fn introduce_domain(&mut self, domid: DomId) {
        let domain = self.domains.entry(domid).or_default();
        if !std::mem::replace(&mut domain.introduced, true) {
            self.fire(&[Fired::special(&self.tree, INTRODUCE_DOMAIN)]);
        }
    }

    /// Forgets `domid`: its connections with their watches and transactions, the nodes that it owns (XSA-419),
    /// and its permissions on others (XSA-322), so that no later domain of that id finds any of it. Then
    /// `@releaseDomain` fires.
    pub fn release_domain(&mut self, domid: DomId) {
        self.connections.retain(|_, c| c.caller.domid != domid);
        self.domains.remove(&domid);
        self.set_targets(|_, target| target.filter(|t| *t != domid));
        let fired = self.remove_traces(domid).unwrap_or_else(|error| {
            tracing::error!("xenstore: the nodes of domain {domid} cannot be removed: {error}");
            Vec::new()
        });
        self.fire(&fired);
        self.fire(&[Fired::special(&self.tree, RELEASE_DOMAIN)]);
    }

    fn remove_traces(&mut self, domid: DomId) -> Result<Vec<Fired>, XsError> {
        let owned = self.tree.paths_where(|n| n.perms.owner() == domid);
        let granted = self.tree.paths_where(|n| n.perms.without(domid).is_some());
        let mut changes = Changes::unlimited();
        let mut view = View { tree: &mut self.tree, changes: &mut changes };
        for path in owned {
            let Some(node) = view.get(&path)? else { continue };
            if path.split().is_some() {
                ops::rm(&mut view, Caller::DOM0, &path)?;
            } else {
                // The root and the special nodes stay.
                let node = Node { perms: Perms::dom0_only(), ..(*node).clone() };
                view.set(&path, Some(node), Fire::No)?;
            }
        }
        for path in granted {
            let Some(node) = view.get(&path)? else { continue };
            if let Some(perms) = node.perms.without(domid) {
                view.set(&path, Some(Node { perms, ..(*node).clone() }), Fire::No)?;
            }
        }
        changes.commit(&mut self.tree, None)
    }

    /// Whether `domid` was introduced and not released since.
    pub fn is_introduced(&self, domid: DomId) -> bool {
        domid == DomId::DOM0 || self.domains.get(&domid).is_some_and(|d| d.introduced)
    }

    pub(super) fn set_targets(&mut self, new: impl Fn(DomId, Option<DomId>) -> Option<DomId>) {
        for (domid, domain) in &mut self.domains {
            domain.target = new(*domid, domain.target);
        }
        for connection in self.connections.values_mut() {
            let caller = &mut connection.caller;
            caller.target = self.domains.get(&caller.domid).and_then(|d| d.target);
        }
    }

    /// A new client that acts as `domid`; domain 0 may do everything.
    pub fn add_connection(&mut self, domid: DomId) -> ConnId {
        self.last_connection += 1;
        let id = ConnId(self.last_connection);
        let mut connection = Connection::new(domid);
        connection.caller.target = self.domains.get(&domid).and_then(|d| d.target);
        self.connections.insert(id, connection);
        id
    }

    /// Removes a client with its watches and transactions.
    pub fn remove_connection(&mut self, id: ConnId) {
        self.connections.remove(&id);
    }

    /// Drops a client's watches, transactions and half-done messages, both ways.
    pub fn reset_connection(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.reset();
        }
    }

    /// Whether the client is still there: RELEASE of its domain removes it.
    pub fn has_connection(&self, id: ConnId) -> bool {
        self.connections.contains_key(&id)
    }

    /// Feeds bytes from a client, in pieces of any size. Returns how many were taken: fewer than given when the
    /// client must first take its replies. The rest is to be offered again later.
    /// Total: whatever the bytes are, they end in a reply, an error reply or an error here.
    pub fn receive(&mut self, id: ConnId, bytes: &[u8]) -> Result<usize, ReceiveError> {
        let mut done = 0;
        while done < bytes.len() {
            if !self.accepts_input(id) {
                break;
            }
            let connection = self.connections.get_mut(&id).ok_or(ReceiveError::Gone)?;
            let rest = bytes.get(done..).unwrap_or_default();
            let (taken, message) = connection.input.take(rest)?;
            done += taken;
            if let Some((header, payload)) = message {
                self.process_message(id, header, &payload);
            }
        }
        if self.connections.contains_key(&id) { Ok(done) } else { Err(ReceiveError::Gone) }
    }

    /// Whether the client's next message would be read now.
    pub fn accepts_input(&self, id: ConnId) -> bool {
        let Some(connection) = self.connections.get(&id) else { return true };
        if connection.caller.privileged() {
            return !connection.backlogged();
        }
        let limits = self.limits_of(connection.caller);
        // Over its memory the guest may still ask as long as it reads the answers: requests that need more are
        // refused one by one, and those that free some must get through.
        let unread = connection.output.bytes() > 0;
        connection.output.replies() < limits.outstanding
            && !(unread && self.memory(connection.caller.domid) >= limits.memory)
    }

    /// The limits that hold for a caller.
    pub(super) fn limits_of(&self, caller: Caller) -> Limits {
        let own = self.domains.get(&caller.domid).and_then(|d| d.limits);
        own.unwrap_or(self.limits).of(caller)
    }

    fn connections_of(&self, domid: DomId) -> impl Iterator<Item = &Connection> {
        self.connections.values().filter(move |c| c.caller.domid == domid)
    }

    /// Watches that a domain has.
    pub(super) fn watches(&self, domid: DomId) -> usize {
        self.connections_of(domid).map(|c| c.watches.len()).sum()
    }

    /// Transactions that a domain has open.
    pub(super) fn transactions(&self, domid: DomId) -> usize {
        self.connections_of(domid).map(|c| c.transactions.len()).sum()
    }

    /// Memory of a domain besides its nodes.
    pub(super) fn transient_memory(&self, domid: DomId) -> usize {
        self.connections_of(domid).map(Connection::bytes).sum()
    }

    /// Memory of a domain, as its quota counts it.
    pub(super) fn memory(&self, domid: DomId) -> usize {
        self.tree.usage(domid).bytes + self.transient_memory(domid)
    }

    /// What waits to be sent to a client; empty: nothing. May be a part of it: ask again after
    /// [`XenStore::sent`].
    pub fn output(&self, id: ConnId) -> &[u8] {
        self.connections.get(&id).map(|c| c.output.next()).unwrap_or_default()
    }

    /// The first `count` bytes of [`XenStore::output`] are sent.
    pub fn sent(&mut self, id: ConnId, count: usize) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.output.advance(count);
        }
    }

    /// Takes everything that waits to be sent to a client.
    pub fn take_output(&mut self, id: ConnId) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let part = self.output(id);
            let count = part.len();
            if count == 0 {
                return all;
            }
            all.extend_from_slice(part);
            self.sent(id, count);
        }
    }

    /// Whether a client left so many events unread that some of them were merged: it cannot trust what it
    /// reads any more.
    pub fn overflowed(&self, id: ConnId) -> bool {
        self.connections.get(&id).is_some_and(|c| c.output.overflowed())
    }

    /// The clients that got output or events since the last call. The event loop flushes these.
    pub fn take_ready(&mut self) -> Vec<ConnId> {
        let ready = std::mem::take(&mut self.ready);
        for id in &ready {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.ready = false;
            }
        }
        ready
    }

    pub(super) fn mark_ready(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !std::mem::replace(&mut connection.ready, true)
        {
            self.ready.push(id);
        }
    }

    /// Queues events for everyone who watches and may know.
    pub(super) fn fire(&mut self, fired: &[Fired]) {
        if fired.is_empty() {
            return;
        }
        let hit: Vec<ConnId> =
            self.connections.iter_mut().filter_map(|(id, c)| c.fire(fired).then_some(*id)).collect();
        for id in hit {
            self.mark_ready(id);
        }
    }

    /// Checks the whole tree: CONTROL "check", tests and fuzzing. The error says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        self.tree.check()
    }
}

/// What the VMM's own code does, as domain 0 and without a transport. Paths are absolute.
impl XenStore {
    fn as_dom0<T>(
        &mut self,
        path: &str,
        op: impl FnOnce(&mut View, &NodePath) -> Result<T, XsError>,
    ) -> Result<T, XsError> {
        let path = NodePath::parse(path.as_bytes(), DomId::DOM0)?;
        let mut changes = Changes::unlimited();
        let value = op(&mut View { tree: &mut self.tree, changes: &mut changes }, &path)?;
        let fired = changes.commit(&mut self.tree, None)?;
        self.fire(&fired);
        Ok(value)
    }

    /// The value of a node.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.tree.get(path).map(|n| n.value.to_vec())
    }

    /// The value of a node, if it is text.
    pub fn read_str(&self, path: &str) -> Option<String> {
        self.read(path).and_then(|v| String::from_utf8(v).ok())
    }

    /// Whether there is such a node.
    pub fn exists(&self, path: &str) -> bool {
        self.tree.get(path).is_some()
    }

    /// Writes a value of at most 4096 bytes, and makes the node and its parents if need be.
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) -> Result<(), XsError> {
        if value.as_ref().len() > super::wire::PAYLOAD_MAX {
            return Err(XsError::TooBig);
        }
        self.as_dom0(path, |view, path| ops::write(view, Caller::DOM0, &Limits::NONE, path, value.as_ref()))
    }

    /// Makes a node and its parents, unless they exist.
    pub fn mkdir(&mut self, path: &str) -> Result<(), XsError> {
        self.as_dom0(path, |view, path| ops::mkdir(view, Caller::DOM0, &Limits::NONE, path))
    }

    /// Removes a node and all below it.
    pub fn rm(&mut self, path: &str) -> Result<(), XsError> {
        self.as_dom0(path, |view, path| ops::rm(view, Caller::DOM0, path))
    }

    /// Sets the permissions of a node: first its owner and everybody's access, then those of single domains.
    pub fn set_perms(&mut self, path: &str, perms: &[Perm]) -> Result<(), XsError> {
        self.as_dom0(path, |view, path| {
            ops::set_perms(view, Caller::DOM0, &Limits::NONE, path, perms, |_| true)
        })
    }

    /// The permissions of a node.
    pub fn perms(&self, path: &str) -> Option<Vec<Perm>> {
        self.tree.get(path).map(|n| n.perms.iter().copied().collect())
    }

    /// Names of a node's children, in order of creation; `None`: no such node.
    pub fn directory(&self, path: &str) -> Option<Vec<String>> {
        self.tree.get(path).map(|n| n.names().map(str::to_owned).collect())
    }

    /// Sets a watch of a connection made by [`XenStore::add_connection`] for use inside the process. As every
    /// watch it fires once at the start.
    pub fn watch(&mut self, id: ConnId, path: &str, token: &str) -> Result<(), XsError> {
        let domid = self.connections.get(&id).ok_or(XsError::NotFound)?.caller.domid;
        self.add_watch(id, WatchPath::parse(path.as_bytes(), domid)?, token.as_bytes())?;
        self.first_event(id);
        Ok(())
    }

    /// Ends a watch.
    pub fn unwatch(&mut self, id: ConnId, path: &str, token: &str) -> Result<(), XsError> {
        let domid = self.connections.get(&id).ok_or(XsError::NotFound)?.caller.domid;
        self.remove_watch(id, &WatchPath::parse(path.as_bytes(), domid)?, token.as_bytes())
    }

    /// Whether `domid` watches the node at `path` or anything below it.
    pub fn is_watched(&self, domid: DomId, path: &str) -> bool {
        let within = |full: &str| full.strip_prefix(path).is_some_and(|r| r.is_empty() || r.starts_with('/'));
        self.connections_of(domid).any(|c| c.watches.iter().any(|w| within(w.path.full().as_str())))
    }

    /// Takes the events of a connection: path and token of each. An event for exactly the path that was
    /// watched may stand for any number of changes below it.
    pub fn take_watch_events(&mut self, id: ConnId) -> Vec<(String, String)> {
        let Some(connection) = self.connections.get_mut(&id) else { return Vec::new() };
        let mut events = Vec::new();
        while let Some(payload) = connection.output.take_event() {
            let mut parts = payload.split(|b| *b == 0).map(|s| String::from_utf8_lossy(s).into_owned());
            if let (Some(path), Some(token)) = (parts.next(), parts.next()) {
                events.push((path, token));
            }
        }
        events
    }

    pub(super) fn add_watch(&mut self, id: ConnId, path: WatchPath, token: &[u8]) -> Result<(), XsError> {
        let caller = self.connections.get(&id).ok_or(XsError::NotFound)?.caller;
        let limits = self.limits_of(caller);
        let (watches, memory) = (self.watches(caller.domid), self.memory(caller.domid));
        let connection = self.connections.get_mut(&id).ok_or(XsError::NotFound)?;
        if connection.watches.iter().any(|w| w.path.full() == path.full() && *w.token == *token) {
            return Err(XsError::Exists);
        }
        if watches >= limits.watches {
            return Err(XsError::TooBig);
        }
        if memory.saturating_add(Watch::cost(&path, token)) > limits.memory {
            return Err(XsError::NoMemory);
        }
        connection.watches.push(Watch { path, token: token.into() });
        Ok(())
    }

    /// Fires the newest watch once, as the protocol wants it.
    pub(super) fn first_event(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Some(path) = connection.watches.last().map(|w| w.path.full().clone()) {
            connection.push_event(connection.watches.len() - 1, &path);
            self.mark_ready(id);
        }
    }

    pub(super) fn remove_watch(&mut self, id: ConnId, path: &WatchPath, token: &[u8]) -> Result<(), XsError> {
        let watches = &mut self.connections.get_mut(&id).ok_or(XsError::NotFound)?.watches;
        let position = watches.iter().position(|w| w.path.full() == path.full() && *w.token == *token);
        watches.remove(position.ok_or(XsError::NotFound)?);
        Ok(())
    }
}
