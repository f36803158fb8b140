//! `xvmm block-detach`: a disk less for a guest that runs.

use std::path::Path;

use super::args::BlockDetachArgs;
use super::run::parse_seconds;
use crate::api::{ApiClient, BlockDetach, DeviceChange};
use crate::exit::{ExitStatus, Failure};

pub(super) fn block_detach(run_dir: &Path, args: &BlockDetachArgs) -> Result<ExitStatus, Failure> {
    let timeout = args.timeout.as_deref().map(|text| parse_seconds("--timeout", text)).transpose()?;
    let (_, entry) = super::lookup(run_dir, &args.domain)?;
    let request = BlockDetach { vdev: args.vdev.clone(), force: args.force, timeout };
    ApiClient::new(&entry.api_socket()).change_devices(&DeviceChange::BlockDetach(request))?;
    Ok(ExitStatus::Success)
}
