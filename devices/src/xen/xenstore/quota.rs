//! Limits of what one unprivileged domain may use (Xen's defaults, docs/man/xenstore and xenstored's options).

use super::perms::Caller;

/// Limits of an unprivileged domain. A value of 0 refuses everything, as usize::MAX allows everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes that it owns.
    pub nodes: usize,
    /// Watches.
    pub watches: usize,
    /// Open transactions.
    pub transactions: usize,
    /// Nodes that one transaction may read or write.
    pub transaction_nodes: usize,
    /// Entries of a node's permissions.
    pub permissions: usize,
    /// Bytes of a node: value, names of children, permissions and a header of 24.
    pub node_size: usize,
    /// Requests whose reply it has not taken yet; then its requests are not read.
    pub outstanding: usize,
    /// Bytes of its nodes, watches, transactions and messages; then its requests are not read.
    pub memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: 1000,
            watches: 128,
            transactions: 10,
            transaction_nodes: 1024,
            permissions: 5,
            node_size: 2048,
            outstanding: 20,
            memory: 5 << 19,
        }
    }
}

impl Limits {
    /// No limits: domain 0.
    pub const NONE: Limits = Limits {
        nodes: usize::MAX,
        watches: usize::MAX,
        transactions: usize::MAX,
        transaction_nodes: usize::MAX,
        permissions: usize::MAX,
        node_size: usize::MAX,
        outstanding: usize::MAX,
        memory: usize::MAX,
    };

    /// Names in GET_QUOTA, SET_QUOTA and CONTROL "quota".
    pub const NAMES: [&str; 8] = [
        "nodes",
        "watches",
        "transactions",
        "transaction-nodes",
        "permissions",
        "node-size",
        "outstanding",
        "memory",
    ];

    /// The limit of that name.
    pub fn by_name(&mut self, name: &str) -> Option<&mut usize> {
        Some(match name {
            "nodes" => &mut self.nodes,
            "watches" => &mut self.watches,
            "transactions" => &mut self.transactions,
            "transaction-nodes" => &mut self.transaction_nodes,
            "permissions" => &mut self.permissions,
            "node-size" => &mut self.node_size,
            "outstanding" => &mut self.outstanding,
            "memory" => &mut self.memory,
            _ => return None,
        })
    }

    /// `self`, or no limits for a privileged caller.
    pub(super) fn of(self, caller: Caller) -> Self {
        if caller.privileged() { Self::NONE } else { self }
    }
}
