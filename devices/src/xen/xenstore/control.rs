//! CONTROL, `xenstore-control`: what the host's administrator may ask of the store.

use std::fmt::Write;

use super::quota::Limits;
use super::server::XenStore;
use super::wire::{XsError, domid};

const COMMANDS: &str = "check help log memreport print quota";

/// Runs a command of domain 0; the reply ends with a NUL.
pub(super) fn run(store: &mut XenStore, args: &[&str]) -> Result<Vec<u8>, XsError> {
    let text = match args {
        ["check"] => store.check().err().unwrap_or_else(|| "OK".to_owned()),
        ["help"] => format!("commands: {COMMANDS}"),
        ["log", "on"] => set_log(store, true),
        ["log", "off"] => set_log(store, false),
        ["memreport"] => report(store),
        ["print", text] => {
            tracing::info!("xenstore: {}", text.escape_debug());
            "OK".to_owned()
        }
        ["quota"] => limits(store.limits),
        ["quota", "set", name, value] | ["quota", name, value] => {
            let value = value.parse().map_err(|_| XsError::Invalid)?;
            store.set_quota(None, name, value)?;
            "OK".to_owned()
        }
        ["quota", dom] => usage(store, dom)?,
        _ => return Err(XsError::Invalid),
    };
    Ok(format!("{text}\0").into_bytes())
}

fn set_log(store: &mut XenStore, on: bool) -> String {
    store.log = on;
    "OK".to_owned()
}

fn limits(mut limits: Limits) -> String {
    let mut text = String::new();
    for name in Limits::NAMES {
        if let Some(value) = limits.by_name(name) {
            let _ = writeln!(text, "{name}: {value}");
        }
    }
    text
}

fn usage(store: &XenStore, dom: &str) -> Result<String, XsError> {
    let domid = domid(dom.as_bytes())?;
    if !store.is_introduced(domid) {
        return Err(XsError::NotFound);
    }
    let nodes = store.tree.usage(domid).nodes;
    let (watches, transactions) = (store.watches(domid), store.transactions(domid));
    let memory = store.memory(domid);
    Ok(format!(
        "domain {domid}:\nnodes: {nodes}\nwatches: {watches}\ntransactions: {transactions}\nmemory: {memory}\n"
    ))
}

fn report(store: &XenStore) -> String {
    let mut text = format!("nodes: {}\nconnections: {}\n", store.tree.len(), store.connections.len());
    for domid in std::iter::once(crate::xen::DomId::DOM0).chain(store.domains.keys().copied()) {
        let _ = writeln!(text, "domain {domid}: {} bytes", store.memory(domid));
    }
    text
}
