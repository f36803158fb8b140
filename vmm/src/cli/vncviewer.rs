//! `xvmm vncviewer`: the screen of a guest in a window.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::api::ApiClient;
use crate::config::VncListen;
use crate::exit::{ExitStatus, Failure};

/// The viewer of TigerVNC, TightVNC and RealVNC.
const VIEWER: &str = "vncviewer";

pub(super) fn vncviewer(run_dir: &Path, domain: &str) -> Result<ExitStatus, Failure> {
    let (_, entry) = super::lookup(run_dir, domain)?;
    let info = ApiClient::new(&entry.api_socket()).info()?;
    let listen = info.get("vnc").and_then(Value::as_str).and_then(|listen| listen.parse::<VncListen>().ok());
    let Some(listen) = listen else {
        let message = format!("{domain}: viewers cannot connect to this guest; start it with --vnc");
        return Err(Failure::new(ExitStatus::NoScreen, message));
    };
    let address = listen.for_viewers();
    // Takes the place of this process, unless it cannot be started.
    let error = Command::new(VIEWER).arg(&address).exec();
    if error.kind() != ErrorKind::NotFound {
        return Err(Failure::new(ExitStatus::HostError, format!("{VIEWER} cannot be started: {error}")));
    }
    super::print(&format!("{address}\n"));
    Ok(ExitStatus::Success)
}
