//! nftables: chains that belong to one interface each.
//!
//! A chain is called `vif/NAME/INDEX`, after the interface's name and index. An index is not used again while the
//! host runs, so a chain whose interface is gone is told from that of a new interface with the same name, and can be
//! removed by anybody at any time without a lock.

use std::ffi::CString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::NetworkError;
use crate::host_tool;

/// Names the program to use as `nft`.
pub const NFT_VARIABLE: &str = "XVMM_NFT";
/// Of all chains, in each family.
const TABLE: &str = "xvmm_vif";
/// How long nft may take: it waits for others who change the rules.
const LIMIT: Duration = Duration::from_secs(30);
/// How often a change is tried, if others change the same tables.
const TRIES: u32 = 5;

/// Of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// What comes from an interface.
    Netdev,
    /// Routed IPv4.
    Ip,
}

impl Family {
    fn word(self) -> &'static str {
        match self {
            Family::Netdev => "netdev",
            Family::Ip => "ip",
        }
    }
}

/// A chain on the host; removed with the value.
#[derive(Debug)]
pub(super) struct Chain {
    family: Family,
    name: String,
}

/// The program, or the sentence that it is missing. `what` needs it.
pub(super) fn program(what: &str) -> Result<PathBuf, NetworkError> {
    let named = std::env::var_os(NFT_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let found = match named {
        Some(program) => Some(program).filter(|program| host_tool::is_program(program)),
        None => host_tool::find("nft"),
    };
    found.ok_or_else(|| NetworkError::NoNft(what.to_owned()))
}

/// Name of the chain of the interface.
fn chain_name(interface: &str, index: u32) -> String {
    format!("vif/{interface}/{index}")
}

/// Index of the interface of this name.
pub(super) fn index_of(interface: &str) -> Option<u32> {
    let name = CString::new(interface).ok()?;
    // SAFETY: a valid C string.
    Some(unsafe { libc::if_nametoindex(name.as_ptr()) }).filter(|index| *index != 0)
}

/// Indexes of the interfaces that there are.
fn living() -> Vec<u32> {
    // SAFETY: the call takes nothing; the list ends with an entry of zeros, and is given back below.
    unsafe {
        let list = libc::if_nameindex();
        let mut indexes = Vec::new();
        let mut entry = list;
        while !entry.is_null() && (*entry).if_index != 0 {
            indexes.push((*entry).if_index);
            entry = entry.add(1);
        }
        if !list.is_null() {
            libc::if_freenameindex(list);
        }
        indexes
    }
}

/// The chains whose interfaces are gone.
fn stale(nft: &PathBuf) -> Result<Vec<(String, String)>, String> {
    let output = run(nft, &["-j", "list", "chains"], "")?;
    let listed: Value =
        serde_json::from_str(&output).map_err(|error| format!("nft lists nonsense: {error}"))?;
    let objects = listed.get("nftables").and_then(Value::as_array).cloned().unwrap_or_default();
    let living = living();
    let chains = objects.iter().filter_map(|object| {
        let chain = object.get("chain")?;
        let text = |key: &str| chain.get(key).and_then(Value::as_str);
        let (family, name) = (text("family")?, text("name")?);
        let index = index_in(name).filter(|_| text("table") == Some(TABLE))?;
        // A name can change, an index does not.
        (!living.contains(&index)).then(|| (family.to_owned(), name.to_owned()))
    });
    Ok(chains.collect())
}

/// The index in the name of a chain of ours, or of one beneath it.
fn index_in(name: &str) -> Option<u32> {
    let name = name.strip_prefix("vif/")?;
    name.strip_suffix("/b").unwrap_or(name).rsplit_once('/')?.1.parse().ok()
}

/// Removes the chains of interfaces that are gone, in the network namespace of this thread.
pub(super) fn sweep() -> Result<(), NetworkError> {
    let nft = program("removing what a killed process left")?;
    change(&nft, "").map_err(NetworkError::Filter)
}

/// Does `script`, and removes stale chains: all or nothing. Others may remove the same ones at the same time.
fn change(nft: &PathBuf, script: &str) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..TRIES {
        let mut text = String::new();
        let mut gone = stale(nft)?;
        // The chain that is jumped to goes after the one that jumps.
        gone.sort_by_key(|(_, name)| name.len());
        for (family, name) in gone {
            text += &format!("delete chain {family} {TABLE} {name}\n");
        }
        text += script;
        if text.is_empty() {
            return Ok(());
        }
        match run(nft, &["-f", "-"], &text) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn run(nft: &PathBuf, args: &[&str], input: &str) -> Result<String, String> {
    let output = host_tool::run(Command::new(nft).args(args), input, LIMIT)
        .map_err(|error| format!("{} cannot be run: {error}", nft.display()))?;
    if output.success() { Ok(output.stdout) } else { Err(format!("nft says: {}", output.complaint())) }
}

impl Chain {
    /// Makes the chain of `interface`, which must be there. `hook` is what is between the braces of its definition;
    /// each of the `rules` is a rule of it, those in `beneath` are rules of a chain that they can `goto` by the word
    /// `BENEATH`.
    pub(super) fn install(
        family: Family,
        interface: &str,
        hook: &str,
        rules: &[String],
        beneath: &[String],
    ) -> Result<Chain, NetworkError> {
        let nft = program(&format!("the filter of {interface}"))?;
        let index = index_of(interface).ok_or_else(|| {
            NetworkError::Filter(format!(
                "the interface {interface} is gone; is its name changed by somebody?"
            ))
        })?;
        let name = chain_name(interface, index);
        let word = family.word();
        let below = format!("{name}/b");
        let mut script = format!("add table {word} {TABLE}\n");
        if !beneath.is_empty() {
            script += &format!("add chain {word} {TABLE} {below}\n");
        }
        script += &format!("add chain {word} {TABLE} {name} {{ {hook} }}\n");
        for rule in beneath {
            script += &format!("add rule {word} {TABLE} {below} {rule}\n");
        }
        for rule in rules {
            script += &format!("add rule {word} {TABLE} {name} {}\n", rule.replace("BENEATH", &below));
        }
        change(&nft, &script).map_err(NetworkError::Filter)?;
        Ok(Chain { family, name })
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let word = self.family.word();
        let removed = program("a filter").map_err(|error| error.to_string()).and_then(|nft| {
            // The one beneath need not be there: adding it is no error if it is.
            let (name, below) = (&self.name, format!("{}/b", self.name));
            let script = format!(
                "add chain {word} {TABLE} {below}\ndelete chain {word} {TABLE} {name}\ndelete chain {word} {TABLE} {below}\n"
            );
            run(&nft, &["-f", "-"], &script)
        });
        if let Err(error) = removed {
            tracing::warn!("the filter {} stays on the host until the next one is made: {error}", self.name);
        }
    }
}
