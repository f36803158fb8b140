//! `xvmm sendkey`: keys on the keyboard of a guest.

use std::path::Path;

use super::args::SendkeyArgs;
use crate::api::{ApiClient, SendKey};
use crate::exit::{ExitStatus, Failure};

pub(super) fn sendkey(run_dir: &Path, args: &SendkeyArgs) -> Result<ExitStatus, Failure> {
    let keys = SendKey { keys: args.keys.clone(), hold: args.hold };
    // The domain parses them too; what is wrong with them alone is told without one.
    keys.sequence()?;
    let (_, entry) = super::lookup(run_dir, &args.domain)?;
    ApiClient::new(&entry.api_socket()).send_keys(&keys)?;
    Ok(ExitStatus::Success)
}
