//! `xvmm cd-insert` and `xvmm cd-eject`: the media of CD-ROM drives.

use std::path::Path;

use super::args::{CdEjectArgs, CdInsertArgs};
use super::block_list;
use super::run::parse_seconds;
use crate::api::{ApiClient, BlockDetach, CdInsert, DeviceChange};
use crate::config::{DomainConfig, Vdev};
use crate::exit::{ExitStatus, Failure};

pub(super) fn cd_insert(run_dir: &Path, args: &CdInsertArgs) -> Result<ExitStatus, Failure> {
    let timeout = args.timeout.as_deref().map(|text| parse_seconds("--timeout", text)).transpose()?;
    let (file, vdev) = match args.medium.as_slice() {
        [vdev, file] => (file, Some(vdev.to_string_lossy().into_owned())),
        [file, ..] => (file, None),
        [] => return Err(Failure::new(ExitStatus::Usage, "no image is named; see `xvmm cd-insert --help`")),
    };
    let (_, entry) = super::lookup(run_dir, &args.domain)?;
    let change = DeviceChange::CdInsert(CdInsert {
        vdev: drive(run_dir, &args.domain, vdev)?,
        file: file.clone(),
        directory: super::current_dir(),
        force: args.force,
        timeout,
    });
    ApiClient::new(&entry.api_socket()).change_devices(&change)?;
    Ok(ExitStatus::Success)
}

pub(super) fn cd_eject(run_dir: &Path, args: &CdEjectArgs) -> Result<ExitStatus, Failure> {
    let timeout = args.timeout.as_deref().map(|text| parse_seconds("--timeout", text)).transpose()?;
    let (_, entry) = super::lookup(run_dir, &args.domain)?;
    let vdev = drive(run_dir, &args.domain, args.vdev.clone())?;
    let change = DeviceChange::CdEject(BlockDetach { vdev, force: args.force, timeout });
    ApiClient::new(&entry.api_socket()).change_devices(&change)?;
    Ok(ExitStatus::Success)
}

/// The drive that is meant: the one that is named, or the only one.
fn drive(run_dir: &Path, domain: &str, named: Option<String>) -> Result<String, Failure> {
    match named {
        Some(vdev) => Ok(vdev),
        None => only_drive(domain, &block_list::ask(run_dir, domain)?.0).map(|vdev| vdev.to_string()),
    }
}

fn only_drive(domain: &str, config: &DomainConfig) -> Result<Vdev, Failure> {
    let drives: Vec<Vdev> = config.disks.iter().filter(|disk| disk.cdrom).map(|disk| disk.vdev).collect();
    match drives.as_slice() {
        [drive] => Ok(*drive),
        [] => {
            let sentence =
                format!("{domain}: the guest has no CD-ROM drive; start it with one, even an empty one");
            Err(Failure::new(ExitStatus::NoSuchDevice, sentence))
        }
        drives => {
            let names = drives.iter().map(Vdev::to_string).collect::<Vec<_>>().join(", ");
            let sentence = format!("{domain}: the guest has several CD-ROM drives; name one of {names}");
            Err(Failure::new(ExitStatus::Usage, sentence))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::DiskSpec;

    #[test]
    fn a_drive_is_named_only_where_there_are_several() {
        let of = |specs: &[&str]| {
            let specs = specs.iter().map(|spec| DiskSpec::parse(spec).unwrap()).collect();
            let config = DomainConfig { disks: DiskSpec::assign(specs).unwrap(), ..DomainConfig::default() };
            only_drive("pc", &config).map(|vdev| vdev.to_string())
        };
        assert_eq!(of(&["/a", ",,hdc,cdrom"]), Ok("hdc".into()));
        let none = of(&["/a"]).unwrap_err();
        assert_eq!(none.status, ExitStatus::NoSuchDevice);
        let several = of(&[",,hdc,cdrom", "/b.iso,,hdd,cdrom"]).unwrap_err();
        assert_eq!(several.status, ExitStatus::Usage);
        assert_eq!(several.message, "pc: the guest has several CD-ROM drives; name one of hdc, hdd");
    }
}
