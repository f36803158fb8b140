//! `xvmm network-attach`: one more interface for a guest that runs.

use std::path::Path;

use super::args::NetworkAttachArgs;
use crate::api::{ApiClient, DeviceChange, NetworkAttach};
use crate::config::NetConfig;
use crate::exit::{ExitStatus, Failure};

pub(super) fn net_attach(run_dir: &Path, args: &NetworkAttachArgs) -> Result<ExitStatus, Failure> {
    // Xen's toolstack takes the parts of a specification as several arguments.
    let spec = args.spec.join(",");
    // The domain parses it too; what is wrong in it alone is told without one.
    spec.parse::<NetConfig>()?;
    let (_, entry) = super::lookup(run_dir, &args.domain)?;
    let change = DeviceChange::NetworkAttach(NetworkAttach { spec });
    let answer = ApiClient::new(&entry.api_socket()).change_devices(&change)?;
    if let Some(devid) = answer.get("devid").and_then(serde_json::Value::as_u64) {
        super::print(&format!("{devid}\n"));
    }
    Ok(ExitStatus::Success)
}
