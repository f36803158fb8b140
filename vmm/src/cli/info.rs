//! `xvmm info`: what the domain says of itself.

use std::path::Path;

use crate::api::ApiClient;
use crate::exit::{ExitStatus, Failure};

pub(super) fn info(run_dir: &Path, domain: &str) -> Result<ExitStatus, Failure> {
    let (_, entry) = super::lookup(run_dir, domain)?;
    let info = ApiClient::new(&entry.api_socket()).info()?;
    super::print(&format!("{info:#}\n"));
    Ok(ExitStatus::Success)
}
