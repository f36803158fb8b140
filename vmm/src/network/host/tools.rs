//! The programs of the host that are used.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::host_tool;

/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Finds programs, and runs them.
#[derive(Clone, Debug)]
pub struct Tools {
    dnsmasq: Option<PathBuf>,
    nft: Option<PathBuf>,
}

impl Tools {
    /// The programs in the folders of PATH; `XVMM_DNSMASQ` and `XVMM_NFT` name these two.
    pub fn from_env() -> Tools {
        let named = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
        Tools {
            dnsmasq: named(std::env::var_os("XVMM_DNSMASQ")),
            nft: named(std::env::var_os(crate::network::NFT_VARIABLE)),
        }
    }

    /// Where the program is.
    pub(super) fn find(&self, name: &str) -> Option<PathBuf> {
        let given = match name {
            "dnsmasq" => self.dnsmasq.clone(),
            "nft" => self.nft.clone(),
            _ => None,
        };
        match given {
            Some(program) => Some(program).filter(|program| host_tool::is_program(program)),
            None => host_tool::find(name),
        }
    }

    /// Runs the program to its end with `input`, and returns what it wrote. An error has what it complained of.
    pub(super) fn run(&self, name: &str, args: &[&str], input: &str) -> io::Result<String> {
        let program = self.find(name).ok_or_else(|| io::Error::other(format!("there is no {name}")))?;
        let output = host_tool::run(Command::new(program).args(args), input, LIMIT)?;
        if output.success() {
            return Ok(output.stdout);
        }
        Err(io::Error::other(format!("{name}: {}", output.complaint())))
    }
}
