//! `script=`: what plugs an interface in.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::text::as_text;

/// Where Xen keeps the scripts that are given by name.
pub const SCRIPTS_DIR: &str = "/etc/xen/scripts";

/// What plugs an interface in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum VifScript {
    /// It is a port of a bridge.
    #[default]
    Bridge,
    /// A route to the guest, whose address is translated outside.
    Nat,
    /// Routes to the guest, for which the host answers ARP.
    Route,
    /// A program with the arguments and environment of Xen's hotplug scripts; an absolute path.
    Program(PathBuf),
}

impl FromStr for VifScript {
    type Err = String;

    /// Reads the name of what is built in, of a program in [`SCRIPTS_DIR`], or an absolute path.
    fn from_str(text: &str) -> Result<VifScript, String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match text {
            "vif-bridge" => Ok(VifScript::Bridge),
            "vif-nat" => Ok(VifScript::Nat),
            "vif-route" => Ok(VifScript::Route),
            path if path.starts_with('/') && !path.contains('\0') && !path.ends_with('/') => {
                Ok(VifScript::Program(path.into()))
            }
            name if name.chars().all(is_name) && !name.is_empty() && !name.starts_with('.') => {
                Ok(VifScript::Program(Path::new(SCRIPTS_DIR).join(name)))
            }
            _ => Err(format!(
                "script `{text}` is neither vif-bridge, vif-nat, vif-route, nor a name in {SCRIPTS_DIR}, nor a path from /"
            )),
        }
    }
}

impl fmt::Display for VifScript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VifScript::Bridge => f.write_str("vif-bridge"),
            VifScript::Nat => f.write_str("vif-nat"),
            VifScript::Route => f.write_str("vif-route"),
            VifScript::Program(path) => path.display().fmt(f),
        }
    }
}

as_text!(VifScript);

/// The host's address on the cable to a guest behind `vif-nat`: the guest's with 127 added to its last number,
/// which is 1 to 127.
pub fn nat_router(guest: Ipv4Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d] = guest.octets();
    (1..=127).contains(&d).then(|| Ipv4Addr::new(a, b, c, d.saturating_add(127)))
}
