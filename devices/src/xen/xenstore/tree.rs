//! The nodes. A flat map from path to node, each node with the names of its children: nothing here recurses,
//! so no depth of paths matters (XSA-418), and a transaction holds on to the nodes that it touched, never to
//! the whole tree.

use std::collections::HashMap;
use std::sync::Arc;

use super::path::{INTRODUCE_DOMAIN, NodePath, RELEASE_DOMAIN, split};
use super::perms::Perms;
use crate::xen::DomId;

/// What a node counts besides its contents, `struct xs_tdb_record_hdr` of Xen's own server: guests find the
/// same limits here.
const NODE_HEADER: usize = 24;
const PERM_SIZE: usize = 8;

/// A node. Shared between the tree and transactions, never changed in place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// The value.
    pub(super) value: Box<[u8]>,
    /// Who may do what.
    pub(super) perms: Perms,
    /// Names of the children, each ended by a NUL, in order of creation.
    pub(super) children: Vec<u8>,
    /// Grows with each change of any node; tells versions of a node apart.
    pub(super) generation: u64,
}

impl Node {
    /// A node without children.
    pub(super) fn new(value: &[u8], perms: Perms) -> Self {
        Self { value: value.into(), perms, children: Vec::new(), generation: 0 }
    }

    /// The bytes that the limit on a node's size counts.
    pub(super) fn size(&self) -> usize {
        NODE_HEADER + PERM_SIZE * self.perms.count() + self.value.len() + self.children.len()
    }

    /// Names of the children.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let list = self.children.split(|b| *b == 0).filter(|n| !n.is_empty());
        list.filter_map(|n| std::str::from_utf8(n).ok())
    }

    /// This node with one more child.
    pub(super) fn with_child(&self, name: &str) -> Self {
        let mut node = self.clone();
        node.children.reserve_exact(name.len() + 1);
        node.children.extend_from_slice(name.as_bytes());
        node.children.push(0);
        node
    }

    /// This node with one child less.
    pub(super) fn without_child(&self, name: &str) -> Self {
        let mut children = Vec::with_capacity(self.children.len());
        for other in self.names().filter(|n| *n != name) {
            children.extend_from_slice(other.as_bytes());
            children.push(0);
        }
        Self { children, ..self.clone() }
    }
}

/// What the nodes of a domain use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Nodes that it owns.
    pub(super) nodes: usize,
    /// Bytes of these nodes and their paths.
    pub(super) bytes: usize,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: HashMap<NodePath, Arc<Node>>,
    usage: HashMap<DomId, Usage>,
    generation: u64,
}

impl Tree {
    /// The root, `/tool/xenstored` and the special nodes, all domain 0's.
    pub(super) fn new() -> Self {
        let mut tree = Self { nodes: HashMap::new(), usage: HashMap::new(), generation: 0 };
        let empty = || Node::new(b"", Perms::dom0_only());
        let root = NodePath::root();
        let tool = root.child("tool");
        tree.put(&tool.child("xenstored"), Some(Arc::new(empty())));
        tree.put(&tool, Some(Arc::new(empty().with_child("xenstored"))));
        tree.put(&root, Some(Arc::new(empty().with_child("tool"))));
        for name in [INTRODUCE_DOMAIN, RELEASE_DOMAIN] {
            tree.put(&NodePath::special(name), Some(Arc::new(empty())));
        }
        tree
    }

    /// The node at `path`.
    pub(super) fn get(&self, path: &str) -> Option<&Arc<Node>> {
        self.nodes.get(path)
    }

    /// Replaces, makes or removes one node, and keeps the accounts. Parents are the caller's affair.
    pub(super) fn put(&mut self, path: &NodePath, node: Option<Arc<Node>>) {
        if let Some(new) = &node {
            let usage = self.usage.entry(new.perms.owner()).or_default();
            usage.nodes += 1;
            usage.bytes += path.len() + new.size();
        }
        let old = match node {
            Some(node) => self.nodes.insert(path.clone(), node),
            None => self.nodes.remove(path.as_str()),
        };
        if let Some(old) = old
            && let Some(usage) = self.usage.get_mut(&old.perms.owner())
        {
            usage.nodes -= 1;
            usage.bytes -= path.len() + old.size();
            if usage.nodes == 0 {
                self.usage.remove(&old.perms.owner());
            }
        }
    }

    /// A generation that no node has yet.
    pub(super) fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// What `domid` uses.
    pub(super) fn usage(&self, domid: DomId) -> Usage {
        self.usage.get(&domid).copied().unwrap_or_default()
    }

    /// Number of nodes.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Paths of the nodes for which `keep` holds.
    pub(super) fn paths_where(&self, keep: impl Fn(&Node) -> bool) -> Vec<NodePath> {
        self.nodes.iter().filter(|(_, n)| keep(n)).map(|(p, _)| p.clone()).collect()
    }

    /// Checks every link between parent and child, and the accounts. The error names the first that is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut usage: HashMap<DomId, Usage> = HashMap::new();
        for (path, node) in &self.nodes {
            let sum = usage.entry(node.perms.owner()).or_default();
            sum.nodes += 1;
            sum.bytes += path.len() + node.size();
            let mut seen = std::collections::HashSet::new();
            for name in node.names() {
                if !seen.insert(name) {
                    return Err(format!("{path} lists {name} twice"));
                }
                if !self.nodes.contains_key(path.child(name).as_str()) {
                    return Err(format!("{path} lists {name}, which does not exist"));
                }
            }
            if let Some((parent, name)) = split(path)
                && !self.get(parent).is_some_and(|p| p.names().any(|n| n == name))
            {
                return Err(format!("{path} is not listed by its parent"));
            }
        }
        if usage == self.usage { Ok(()) } else { Err("the accounts of the domains are wrong".into()) }
    }
}
