//! `xvmm network-detach`: an interface less for a guest that runs.

use std::path::Path;

use super::args::NetworkDetachArgs;
use super::run::parse_seconds;
use crate::api::{ApiClient, DeviceChange, NetworkDetach};
use crate::exit::{ExitStatus, Failure};

pub(super) fn net_detach(run_dir: &Path, args: &NetworkDetachArgs) -> Result<ExitStatus, Failure> {
    let timeout = args.timeout.as_deref().map(|text| parse_seconds("--timeout", text)).transpose()?;
    let (_, entry) = super::lookup(run_dir, &args.domain)?;
    let change =
        DeviceChange::NetworkDetach(NetworkDetach { vif: args.vif.clone(), force: args.force, timeout });
    ApiClient::new(&entry.api_socket()).change_devices(&change)?;
    Ok(ExitStatus::Success)
}
