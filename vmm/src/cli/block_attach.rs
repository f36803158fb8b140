//! `xvmm block-attach`: one more disk for a guest that runs.

use std::path::Path;

use super::args::BlockAttachArgs;
use crate::api::{ApiClient, BlockAttach, DeviceChange};
use crate::config::DiskSpec;
use crate::exit::{ExitStatus, Failure};

pub(super) fn block_attach(run_dir: &Path, args: &BlockAttachArgs) -> Result<ExitStatus, Failure> {
    // Xen's toolstack takes the parts of a specification as several arguments too.
    let spec = args.spec.join(",");
    // The domain parses it too; what is wrong in it alone is told without one.
    DiskSpec::parse(&spec)?;
    let (_, entry) = super::lookup(run_dir, &args.domain)?;
    let change = DeviceChange::BlockAttach(BlockAttach { spec, directory: super::current_dir() });
    let answer = ApiClient::new(&entry.api_socket()).change_devices(&change)?;
    if let Some(vdev) = answer.get("vdev").and_then(serde_json::Value::as_str) {
        super::print(&format!("{vdev}\n"));
    }
    Ok(ExitStatus::Success)
}
