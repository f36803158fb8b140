//! `xvmm cd-insert`: another medium in a CD-ROM drive.

use std::path::Path;

use super::args::CdInsertArgs;
use super::run::parse_seconds;
use crate::api::{ApiClient, CdInsert, DeviceChange};
use crate::exit::{ExitStatus, Failure};

pub(super) fn cd_insert(run_dir: &Path, args: &CdInsertArgs) -> Result<ExitStatus, Failure> {
    let timeout = args.timeout.as_deref().map(|text| parse_seconds("--timeout", text)).transpose()?;
    let (_, entry) = super::lookup(run_dir, &args.domain)?;
    let change = DeviceChange::CdInsert(CdInsert {
        vdev: args.vdev.clone(),
        file: args.file.clone(),
        directory: super::current_dir(),
        force: args.force,
        timeout,
    });
    ApiClient::new(&entry.api_socket()).change_devices(&change)?;
    Ok(ExitStatus::Success)
}
