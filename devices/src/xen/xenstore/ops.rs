//! What the requests do to nodes, with their permissions and quotas.

use std::sync::Arc;

use super::path::{NodePath, split};
use super::perms::{Caller, Need, Perm, Perms};
use super::quota::Limits;
use super::transaction::{Fire, View};
use super::tree::Node;
use super::wire::{PAYLOAD_MAX, XsError};
use crate::xen::DomId;

/// The node at `path`, if the caller may do `need`. That a node does not exist is told only to those who could
/// do the same to the nearest node above it.
pub(super) fn lookup(
    view: &mut View,
    caller: Caller,
    path: &NodePath,
    need: Need,
) -> Result<Arc<Node>, XsError> {
    if let Some(node) = view.get(path)? {
        return if node.perms.allow(caller, need) { Ok(node) } else { Err(XsError::Access) };
    }
    let mut at = path.as_str();
    while let Some((parent, _)) = split(at) {
        if let Some(node) = view.peek(parent) {
            return Err(if node.perms.allow(caller, need) { XsError::NotFound } else { XsError::Access });
        }
        at = parent;
    }
    Err(XsError::NotFound)
}

/// READ.
pub(super) fn read(view: &mut View, caller: Caller, path: &NodePath) -> Result<Vec<u8>, XsError> {
    lookup(view, caller, path, Need::Read).map(|node| node.value.to_vec())
}

/// DIRECTORY.
pub(super) fn directory(view: &mut View, caller: Caller, path: &NodePath) -> Result<Vec<u8>, XsError> {
    lookup(view, caller, path, Need::Read).map(|node| node.children.clone())
}

/// DIRECTORY_PART: the node's generation, and as many whole names as fit from `offset` on. An empty name ends
/// the list.
pub(super) fn directory_part(
    view: &mut View,
    caller: Caller,
    path: &NodePath,
    offset: usize,
) -> Result<Vec<u8>, XsError> {
    let node = lookup(view, caller, path, Need::Read)?;
    let mut reply = format!("{}\0", node.generation).into_bytes();
    let rest = node.children.get(offset..).unwrap_or_default();
    let room = PAYLOAD_MAX - reply.len() - 1;
    let mut taken = 0;
    for name in rest.split_inclusive(|b| *b == 0) {
        if taken + name.len() > room {
            break;
        }
        taken += name.len();
    }
    reply.extend_from_slice(rest.get(..taken).unwrap_or_default());
    if taken == rest.len() {
        reply.push(0);
    }
    Ok(reply)
}

/// GET_PERMS.
pub(super) fn get_perms(view: &mut View, caller: Caller, path: &NodePath) -> Result<Vec<u8>, XsError> {
    let node = lookup(view, caller, path, Need::Read)?;
    Ok(node.perms.iter().flat_map(|p| format!("{p}\0").into_bytes()).collect())
}

/// WRITE.
pub(super) fn write(
    view: &mut View,
    caller: Caller,
    limits: &Limits,
    path: &NodePath,
    value: &[u8],
) -> Result<(), XsError> {
    match lookup(view, caller, path, Need::Write) {
        Ok(old) => {
            let node = Node { value: value.into(), ..(*old).clone() };
            fits(&node, limits)?;
            view.set(path, Some(node), Fire::Full)
        }
        Err(XsError::NotFound) => create(view, caller, limits, path, value),
        Err(error) => Err(error),
    }
}

/// MKDIR.
pub(super) fn mkdir(
    view: &mut View,
    caller: Caller,
    limits: &Limits,
    path: &NodePath,
) -> Result<(), XsError> {
    match lookup(view, caller, path, Need::Write) {
        Ok(_) => Ok(()),
        Err(XsError::NotFound) => create(view, caller, limits, path, b""),
        Err(error) => Err(error),
    }
}

fn fits(node: &Node, limits: &Limits) -> Result<(), XsError> {
    if node.size() <= limits.node_size { Ok(()) } else { Err(XsError::NoSpace) }
}

/// Makes a node and the parents that it lacks. Permissions come from the nearest parent; what a guest makes,
/// it owns. All checks come first: a refused request leaves nothing behind in a transaction (XSA-414).
fn create(
    view: &mut View,
    caller: Caller,
    limits: &Limits,
    path: &NodePath,
    value: &[u8],
) -> Result<(), XsError> {
    let mut missing = Vec::new();
    let mut at = path.clone();
    let (base, first) = loop {
        let (parent, name) = at.split().ok_or(XsError::Invalid)?;
        let name = name.to_owned();
        missing.push(at);
        if view.peek(&parent).is_some() {
            break (parent, name);
        }
        at = parent;
    };
    let base_node = view.get(&base)?.ok_or(XsError::NotFound)?.with_child(&first);
    let perms =
        if caller.privileged() { base_node.perms.clone() } else { base_node.perms.owned_by(caller.domid) };
    if view.nodes_of(caller.domid).saturating_add(missing.len()) > limits.nodes {
        return Err(XsError::NoSpace);
    }
    fits(&base_node, limits)?;
    let mut made = Vec::with_capacity(missing.len());
    let mut node = Node::new(value, perms.clone());
    for path in missing {
        fits(&node, limits)?;
        let above = path.split().map(|(_, name)| Node::new(b"", perms.clone()).with_child(name));
        made.push((path, std::mem::replace(&mut node, above.ok_or(XsError::Invalid)?)));
    }
    view.set(&base, Some(base_node), Fire::No)?;
    for (index, (path, node)) in made.into_iter().enumerate().rev() {
        view.set(&path, Some(node), if index == 0 { Fire::Full } else { Fire::No })?;
    }
    Ok(())
}

/// RM.
pub(super) fn rm(view: &mut View, caller: Caller, path: &NodePath) -> Result<(), XsError> {
    let (parent, name) = path.split().ok_or(XsError::Invalid)?;
    match lookup(view, caller, path, Need::Write) {
        Ok(_) => {}
        Err(XsError::NotFound) if view.peek(&parent).is_some() => return Ok(()),
        Err(error) => return Err(error),
    }
    let parent_node = view.get(&parent)?.ok_or(XsError::NotFound)?;
    let mut subtree = vec![path.clone()];
    let mut next = 0;
    while let Some(path) = subtree.get(next).cloned() {
        if let Some(node) = view.get(&path)? {
            subtree.extend(node.names().map(|name| path.child(name)));
        }
        next += 1;
    }
    view.set(&parent, Some(parent_node.without_child(name)), Fire::No)?;
    for (index, path) in subtree.iter().enumerate() {
        view.set(path, None, if index == 0 { Fire::Full } else { Fire::Exact })?;
    }
    Ok(())
}

/// SET_PERMS. `known` tells whether a domain exists: an entry that a guest makes for a domain still to come
/// would hand the node to a stranger (XSA-322), so it is left out.
pub(super) fn set_perms(
    view: &mut View,
    caller: Caller,
    limits: &Limits,
    path: &NodePath,
    list: &[Perm],
    known: impl Fn(DomId) -> bool,
) -> Result<(), XsError> {
    let old = lookup(view, caller, path, Need::Own)?;
    if list.len() > limits.permissions {
        return Err(XsError::NoSpace);
    }
    let (owner, others) = list.split_first().ok_or(XsError::Invalid)?;
    let mut others = others.to_vec();
    if !caller.privileged() {
        // XSA-352: a node given away would no longer count for its maker.
        if owner.domid != old.perms.owner() {
            return Err(XsError::NotPermitted);
        }
        others.retain(|p| known(p.domid));
    }
    let node = Node { perms: Perms::new(*owner, &others), ..(*old).clone() };
    fits(&node, limits)?;
    view.set(path, Some(node), Fire::Full)
}
