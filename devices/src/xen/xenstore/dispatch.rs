//! From a message to its reply and its events.

use super::control;
use super::ops;
use super::path::domain_path;
use super::perms::Caller;
use super::quota::Limits;
use super::server::{ConnId, XenStore};
use super::transaction::{Changes, Fired, Quota, View};
use super::wire::{Header, Request, XS_ERROR, XsError, message};
use crate::xen::DomId;

/// Features of the ring that GET_FEATURE tells, as in the ring page.
pub(super) const FEATURES: u32 = super::ring::FEATURE_RECONNECTION | super::ring::FEATURE_ERROR;

struct Done {
    reply: Vec<u8>,
    fired: Vec<Fired>,
    watch_added: bool,
}

impl Done {
    fn reply(reply: impl Into<Vec<u8>>) -> Self {
        Self { reply: reply.into(), fired: Vec::new(), watch_added: false }
    }

    fn ok() -> Self {
        Self::reply(*b"OK\0")
    }
}

impl XenStore {
    /// Answers one message. The reply is queued first, then the events that it causes.
    pub fn process_message(&mut self, id: ConnId, header: Header, payload: &[u8]) {
        let Some(caller) = self.connections.get(&id).map(|c| c.caller) else { return };
        let result = Request::parse(header.kind, caller.domid, payload)
            .and_then(|request| self.perform(id, caller, header.tx_id, request));
        if self.log {
            let result = result.as_ref().map(|_| ()).map_err(|e| e.name());
            tracing::info!("xenstore: domain {} {header:?}: {result:?}", caller.domid);
        }
        let Header { kind, req_id, tx_id, .. } = header;
        let (reply, done) = match result {
            Ok(done) => (message(kind, req_id, tx_id, &done.reply), Some(done)),
            Err(e) => (message(XS_ERROR, req_id, tx_id, format!("{}\0", e.name()).as_bytes()), None),
        };
        // The request may have been the RELEASE of the caller itself.
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.output.push_reply(reply);
            self.mark_ready(id);
        }
        if let Some(done) = done {
            self.fire(&done.fired);
            if done.watch_added {
                self.first_event(id);
            }
        }
    }

    fn perform(&mut self, id: ConnId, caller: Caller, tx: u32, request: Request) -> Result<Done, XsError> {
        match request {
            Request::Read(path) => self.node_op(id, tx, |v, c, _| ops::read(v, c, &path)),
            Request::Directory(path) => self.node_op(id, tx, |v, c, _| ops::directory(v, c, &path)),
            Request::DirectoryPart(path, offset) => {
                self.node_op(id, tx, |v, c, _| ops::directory_part(v, c, &path, offset))
            }
            Request::GetPerms(path) => self.node_op(id, tx, |v, c, _| ops::get_perms(v, c, &path)),
            Request::Write(path, value) => {
                self.change_op(id, tx, |v, c, l| ops::write(v, c, l, &path, value))
            }
            Request::Mkdir(path) => self.change_op(id, tx, |v, c, l| ops::mkdir(v, c, l, &path)),
            Request::Rm(path) => self.change_op(id, tx, |v, c, _| ops::rm(v, c, &path)),
            Request::SetPerms(path, list) => {
                let known: Vec<DomId> = list.iter().map(|p| p.domid).filter(|d| self.is_known(*d)).collect();
                self.change_op(id, tx, |v, c, l| {
                    ops::set_perms(v, c, l, &path, &list, |d| known.contains(&d))
                })
            }
            Request::Watch(path, token) => {
                self.add_watch(id, path, token)?;
                Ok(Done { watch_added: true, ..Done::ok() })
            }
            Request::Unwatch(path, token) => self.remove_watch(id, &path, token).map(|()| Done::ok()),
            Request::ResetWatches => {
                let connection = self.connections.get_mut(&id).ok_or(XsError::NotFound)?;
                connection.watches.clear();
                connection.transactions.clear();
                Ok(Done::ok())
            }
            Request::TransactionStart => self.start(id, caller, tx),
            Request::TransactionEnd(commit) => self.end(id, caller, tx, commit),
            Request::GetDomainPath(domid) => Ok(Done::reply(format!("{}\0", domain_path(domid)))),
            Request::IsDomainIntroduced(domid) => {
                Ok(Done::reply(if self.is_introduced(domid) { *b"T\0" } else { *b"F\0" }))
            }
            Request::GetFeature(None) => Ok(Done::reply(format!("{FEATURES}\0"))),
            _ if !caller.privileged() => Err(XsError::Access),
            request => self.administer(request),
        }
    }

    /// What only domain 0 may do.
    fn administer(&mut self, request: Request) -> Result<Done, XsError> {
        match request {
            Request::Control(args) => control::run(self, &args).map(Done::reply),
            // A ring comes with its domain, which the VMM introduces: there is no other to map here.
            Request::Introduce(domid) if self.is_introduced(domid) => Ok(Done::ok()),
            Request::Introduce(_) => Err(XsError::Invalid),
            Request::Release(domid) => {
                self.introduced(domid)?;
                self.release_domain(domid);
                Ok(Done::ok())
            }
            Request::Resume(domid) => self.introduced(domid).map(|()| Done::ok()),
            Request::SetTarget(domid, target) => {
                self.introduced(domid)?;
                self.introduced(target)?;
                self.set_targets(|d, old| if d == domid { Some(target) } else { old });
                Ok(Done::ok())
            }
            Request::GetFeature(Some(domid)) => {
                self.introduced(domid)?;
                Ok(Done::reply(format!("{FEATURES}\0")))
            }
            Request::GetQuota(None, None) => Ok(Done::reply(format!("{}\0", Limits::NAMES.join(" ")))),
            Request::GetQuota(domid, name) => {
                let mut limits = match domid {
                    None => self.limits,
                    Some(domid) => {
                        self.introduced(domid)?;
                        self.limits_of(Caller { domid, target: None })
                    }
                };
                let value = name.and_then(|n| limits.by_name(n)).ok_or(XsError::Invalid)?;
                Ok(Done::reply(format!("{value}\0")))
            }
            Request::SetQuota(domid, name, value) => {
                self.set_quota(domid, name, value)?;
                Ok(Done::ok())
            }
            _ => Err(XsError::NoSys),
        }
    }

    pub(super) fn set_quota(
        &mut self,
        domid: Option<DomId>,
        name: &str,
        value: usize,
    ) -> Result<(), XsError> {
        let defaults = self.limits;
        let limits = match domid {
            None => &mut self.limits,
            Some(domid) => {
                let domain = self.domains.get_mut(&domid).ok_or(XsError::NotFound)?;
                domain.limits.get_or_insert(defaults)
            }
        };
        *limits.by_name(name).ok_or(XsError::Invalid)? = value;
        Ok(())
    }

    fn introduced(&self, domid: DomId) -> Result<(), XsError> {
        if self.is_introduced(domid) { Ok(()) } else { Err(XsError::NotFound) }
    }

    fn is_known(&self, domid: DomId) -> bool {
        self.is_introduced(domid) || self.connections.values().any(|c| c.caller.domid == domid)
    }

    fn change_op(
        &mut self,
        id: ConnId,
        tx: u32,
        op: impl FnOnce(&mut View, Caller, &Limits) -> Result<(), XsError>,
    ) -> Result<Done, XsError> {
        self.node_op(id, tx, |view, caller, limits| op(view, caller, limits).map(|()| b"OK\0".to_vec()))
    }

    /// Runs `op` in transaction `tx`, or (0) in one of its own.
    fn node_op(
        &mut self,
        id: ConnId,
        tx: u32,
        op: impl FnOnce(&mut View, Caller, &Limits) -> Result<Vec<u8>, XsError>,
    ) -> Result<Done, XsError> {
        let caller = self.connections.get(&id).ok_or(XsError::NotFound)?.caller;
        let limits = self.limits_of(caller);
        if tx == 0 {
            let mut changes = Changes::unlimited();
            let reply = op(&mut View { tree: &mut self.tree, changes: &mut changes }, caller, &limits)?;
            let quota = self.commit_quota(caller, &limits);
            let fired = changes.commit(&mut self.tree, quota)?;
            return Ok(Done { reply, fired, watch_added: false });
        }
        let budget = limits.memory.saturating_sub(self.memory(caller.domid));
        let connection = self.connections.get_mut(&id).ok_or(XsError::NotFound)?;
        let changes = connection.transactions.get_mut(&tx).ok_or(XsError::NotFound)?;
        changes.set_budget(budget);
        op(&mut View { tree: &mut self.tree, changes }, caller, &limits).map(Done::reply)
    }

    fn commit_quota(&self, caller: Caller, limits: &Limits) -> Option<Quota> {
        let domid = caller.domid;
        let bytes = limits.memory.saturating_sub(self.transient_memory(domid));
        (!caller.privileged()).then_some(Quota { domid, nodes: limits.nodes, bytes })
    }

    fn start(&mut self, id: ConnId, caller: Caller, tx: u32) -> Result<Done, XsError> {
        if tx != 0 {
            return Err(XsError::Busy);
        }
        let limits = self.limits_of(caller);
        if self.transactions(caller.domid) >= limits.transactions {
            return Err(XsError::NoSpace);
        }
        let changes = Changes::new(limits.transaction_nodes);
        if self.memory(caller.domid).saturating_add(changes.bytes()) > limits.memory {
            return Err(XsError::NoMemory);
        }
        let connection = self.connections.get_mut(&id).ok_or(XsError::NotFound)?;
        let mut tx = connection.last_transaction;
        loop {
            tx = tx.wrapping_add(1).max(1);
            if !connection.transactions.contains_key(&tx) {
                break;
            }
        }
        connection.last_transaction = tx;
        connection.transactions.insert(tx, changes);
        Ok(Done::reply(format!("{tx}\0")))
    }

    fn end(&mut self, id: ConnId, caller: Caller, tx: u32, commit: bool) -> Result<Done, XsError> {
        let connection = self.connections.get_mut(&id).ok_or(XsError::NotFound)?;
        let changes = connection.transactions.remove(&tx).ok_or(XsError::NotFound)?;
        if !commit {
            return Ok(Done::ok());
        }
        let quota = self.commit_quota(caller, &self.limits_of(caller));
        let fired = changes.commit(&mut self.tree, quota)?;
        Ok(Done { fired, ..Done::ok() })
    }
}
