//! `xvmm shutdown` and `xvmm reboot`: what the guest is asked to do itself.

use std::path::Path;
use std::time::Duration;

use super::args::{RebootArgs, ShutdownArgs};
use super::run::parse_seconds;
use crate::api::{ApiClient, ShutdownKind};
use crate::domain::DomainEntry;
use crate::exit::{ExitStatus, Failure};

pub(super) fn shutdown(run_dir: &Path, args: &ShutdownArgs) -> Result<ExitStatus, Failure> {
    let entry = ask(run_dir, &args.domain, ShutdownKind::Poweroff, args.timeout.as_deref())?;
    if args.wait {
        let failed =
            |error| Failure::new(ExitStatus::HostError, format!("cannot wait for {}: {error}", args.domain));
        entry.wait().map_err(failed)?;
    }
    Ok(ExitStatus::Success)
}

pub(super) fn reboot(run_dir: &Path, args: &RebootArgs) -> Result<ExitStatus, Failure> {
    ask(run_dir, &args.domain, ShutdownKind::Reboot, args.timeout.as_deref())?;
    Ok(ExitStatus::Success)
}

fn ask(
    run_dir: &Path,
    domain: &str,
    kind: ShutdownKind,
    timeout: Option<&str>,
) -> Result<DomainEntry, Failure> {
    let timeout: Option<Duration> = timeout.map(|text| parse_seconds("--timeout", text)).transpose()?;
    let (_, entry) = super::lookup(run_dir, domain)?;
    ApiClient::new(&entry.api_socket()).shutdown(kind, timeout)?;
    Ok(entry)
}
