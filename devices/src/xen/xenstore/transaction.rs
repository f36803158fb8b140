//! Transactions. A transaction remembers each node that it touched: the version it saw, and what it made of it.
//! It conflicts, at its end, if one of these nodes has another version by then, and with nothing else. A
//! request outside of transactions is one of its own, ended at once: so every request is all or nothing.

use std::collections::HashMap;
use std::sync::Arc;

use super::path::{NodePath, split};
use super::perms::Perms;
use super::tree::{Node, Tree, Usage};
use super::wire::XsError;
use crate::xen::DomId;

/// What a remembered node costs besides its size and path.
const ENTRY_SIZE: usize = 128;

/// How a changed node makes watches fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fire {
    /// Not at all: only its list of children changed.
    No,
    /// Only watches on exactly this node: it vanished with a parent.
    Exact,
    /// Watches on this node and on its parents.
    Full,
}

#[derive(Debug)]
struct Entry {
    /// Generation of the node when it was first touched; `None`: there was none.
    seen: Option<u64>,
    /// The node as the transaction sees it.
    node: Option<Arc<Node>>,
    modified: bool,
    fire: Fire,
}

/// An event for the watches.
#[derive(Debug)]
pub(super) struct Fired {
    pub(super) path: NodePath,
    pub(super) exact: bool,
    /// Who may read one of these learns of the event: the node and its parent, before and after (XSA-115).
    pub(super) perms: Vec<Perms>,
}

/// What a transaction saw and changed.
#[derive(Debug)]
pub(super) struct Changes {
    entries: HashMap<NodePath, Entry>,
    /// Paths to fire, in order.
    order: Vec<NodePath>,
    /// Change of what each domain owns.
    delta: HashMap<DomId, (isize, isize)>,
    bytes: usize,
    max_nodes: usize,
    max_bytes: usize,
    failed: Option<XsError>,
}

impl Changes {
    /// Of a single request.
    pub(super) fn unlimited() -> Self {
        Self::new(usize::MAX)
    }

    /// Of a transaction that may touch `max_nodes` nodes.
    pub(super) fn new(max_nodes: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: Vec::new(),
            delta: HashMap::new(),
            bytes: 0,
            max_nodes,
            max_bytes: usize::MAX,
            failed: None,
        }
    }

    /// Memory that it holds.
    pub(super) fn bytes(&self) -> usize {
        ENTRY_SIZE + self.bytes
    }

    /// Allows `budget` more bytes in the requests to come.
    pub(super) fn set_budget(&mut self, budget: usize) {
        self.max_bytes = self.bytes.saturating_add(budget);
    }

    /// Applies everything, unless a touched node changed meanwhile or `quota` says no.
    pub(super) fn commit(self, tree: &mut Tree, quota: Option<Quota>) -> Result<Vec<Fired>, XsError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.entries.iter().any(|(path, e)| tree.get(path).map(|n| n.generation) != e.seen) {
            return Err(XsError::Again);
        }
        if let Some(quota) = quota {
            // Transactions that fit one by one need not fit together (XSA-421).
            let (nodes, bytes) = self.delta.get(&quota.domid).copied().unwrap_or_default();
            let Usage { nodes: old_nodes, bytes: old_bytes } = tree.usage(quota.domid);
            if nodes > 0 && old_nodes.saturating_add_signed(nodes) > quota.nodes {
                return Err(XsError::NoSpace);
            }
            if bytes > 0 && old_bytes.saturating_add_signed(bytes) > quota.bytes {
                return Err(XsError::NoMemory);
            }
        }
        let mut fired: Vec<Fired> = Vec::with_capacity(self.order.len());
        for path in self.order {
            let exact = self.entries.get(&path).is_some_and(|e| e.fire == Fire::Exact);
            let mut event = Fired { path, exact, perms: Vec::new() };
            event.add_perms(tree);
            fired.push(event);
        }
        for (path, entry) in self.entries {
            if entry.modified {
                tree.put(&path, entry.node);
            }
        }
        for event in &mut fired {
            event.add_perms(tree);
        }
        Ok(fired)
    }
}

impl Fired {
    /// An event of a special node.
    pub(super) fn special(tree: &Tree, name: &'static str) -> Self {
        let mut event = Self { path: NodePath::special(name), exact: true, perms: Vec::new() };
        event.add_perms(tree);
        event
    }

    fn add_perms(&mut self, tree: &Tree) {
        let parent = split(&self.path).map(|(parent, _)| parent);
        for path in [Some(self.path.as_str()), parent].into_iter().flatten() {
            if let Some(node) = tree.get(path)
                && !self.perms.contains(&node.perms)
            {
                self.perms.push(node.perms.clone());
            }
        }
    }
}

/// What an unprivileged domain may own after a commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    pub(super) domid: DomId,
    pub(super) nodes: usize,
    pub(super) bytes: usize,
}

/// The tree as a transaction sees it.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) tree: &'a mut Tree,
    pub(super) changes: &'a mut Changes,
}

impl View<'_> {
    /// The node at `path`, without taking note of it.
    pub(super) fn peek(&self, path: &str) -> Option<&Arc<Node>> {
        match self.changes.entries.get(path) {
            Some(entry) => entry.node.as_ref(),
            None => self.tree.get(path),
        }
    }

    /// The node at `path`, which the outcome depends on from now on.
    pub(super) fn get(&mut self, path: &NodePath) -> Result<Option<Arc<Node>>, XsError> {
        if let Some(entry) = self.changes.entries.get(path) {
            return Ok(entry.node.clone());
        }
        let node = self.tree.get(path).cloned();
        self.charge(ENTRY_SIZE + path.len() + node.as_ref().map_or(0, |n| n.size()), 0)?;
        if self.changes.entries.len() >= self.changes.max_nodes {
            return self.fail(XsError::NoSpace);
        }
        let seen = node.as_ref().map(|n| n.generation);
        let entry = Entry { seen, node: node.clone(), modified: false, fire: Fire::No };
        self.changes.entries.insert(path.clone(), entry);
        Ok(node)
    }

    /// Replaces, makes or removes the node at `path`.
    pub(super) fn set(&mut self, path: &NodePath, node: Option<Node>, fire: Fire) -> Result<(), XsError> {
        let old = self.get(path)?;
        self.charge(node.as_ref().map_or(0, Node::size), old.as_ref().map_or(0, |n| n.size()))?;
        for (node, sign) in [(old.as_deref(), -1), (node.as_ref(), 1)] {
            let Some(node) = node else { continue };
            let (nodes, bytes) = self.changes.delta.entry(node.perms.owner()).or_default();
            *nodes += sign;
            *bytes = bytes.saturating_add((path.len() + node.size()).cast_signed().saturating_mul(sign));
        }
        let node = node.map(|node| Arc::new(Node { generation: self.tree.next_generation(), ..node }));
        if let Some(entry) = self.changes.entries.get_mut(path) {
            (entry.node, entry.modified) = (node, true);
            if entry.fire == Fire::No && fire != Fire::No {
                self.changes.order.push(path.clone());
            }
            entry.fire = entry.fire.max(fire);
        }
        Ok(())
    }

    /// Nodes that `domid` owns.
    pub(super) fn nodes_of(&self, domid: DomId) -> usize {
        let (nodes, _) = self.changes.delta.get(&domid).copied().unwrap_or_default();
        self.tree.usage(domid).nodes.saturating_add_signed(nodes)
    }

    fn charge(&mut self, more: usize, less: usize) -> Result<(), XsError> {
        let bytes = (self.changes.bytes + more).saturating_sub(less);
        if bytes > self.changes.max_bytes && more > less {
            return self.fail(XsError::NoMemory);
        }
        self.changes.bytes = bytes;
        Ok(())
    }

    /// A request that ran out of memory or nodes half-way must not be committed in part.
    fn fail<T>(&mut self, error: XsError) -> Result<T, XsError> {
        self.changes.failed = Some(error);
        Err(error)
    }
}
