//! Disks that are attached and detached while the guest runs: what of it is about disks. The rest is in
//! [`super::hotplug`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use blkback::{Backing, BlockDevice};
use devices::xen::xenbus::DeviceId;
use serde_json::{Value, json};

use super::Registry;
use super::change::Plan;
use super::discs;
use super::disks::{self, LimitGroups};
use super::hotplug::{Arrival, Departure, Describe, Hotplug, Open, Opened, no_such_device};
use super::life_cycle::open_images;
use super::preflight::prepare_disk;
use crate::api::{BlockAttach, BlockDetach, CdInsert};
use crate::config::{DiskConfig, DiskSource, DiskSpec, DomainConfig, Problem, Vdev};
use crate::exit::{ExitStatus, Failure};

/// How long the guest has to let go of a disk, unless the request says otherwise: as with Xen's toolstack.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The same for a disk that it loses in any case: enough for a driver that listens to fail its I/O in good
/// order. Without that, Linux waits for answers from a ring that nobody serves.
pub(super) const FORCE_PATIENCE: Duration = Duration::from_secs(5);

/// The device of the disk of this name.
pub(super) fn device_id(vdev: Vdev) -> DeviceId {
    DeviceId { class: "vbd", index: vdev.virtual_device() }
}

/// A disk without a name gets the first one that is free, as with `--disk`.
pub(super) fn attach(
    hotplug: &Hotplug,
    groups: &LimitGroups,
    config: &DomainConfig,
    request: BlockAttach,
) -> Result<Plan, Failure> {
    let mut spec = DiskSpec::parse(&request.spec)?;
    if spec.vdev.is_none() {
        let named = |vdev: Vdev| config.disks.iter().any(|disk| disk.vdev.overlaps(vdev));
        let mut names = (0..).map_while(Vdev::xvd);
        spec.vdev = names.find(|vdev| !named(*vdev) && !hotplug.is_taken(device_id(*vdev)));
    }
    let disk = spec.beside(&config.disks)?;
    let answer = json!({ "vdev": disk.vdev });
    Ok(Plan::Attach(arrival(groups, config, disk, request.directory, answer), None))
}

fn arrival(
    groups: &LimitGroups,
    config: &DomainConfig,
    disk: DiskConfig,
    here: Option<PathBuf>,
    answer: Value,
) -> Arrival {
    let (id, name) = (device_id(disk.vdev), disk.vdev.to_string());
    let (groups, config) = (groups.clone(), config.clone());
    let open: Open = Box::new(move || open(&groups, config, disk, here.as_deref()));
    Arrival { id, name, open, answer }
}

fn open(
    groups: &LimitGroups,
    config: DomainConfig,
    mut disk: DiskConfig,
    here: Option<&Path>,
) -> Result<Opened, Failure> {
    let image = open_image(config, &mut disk, here)?;
    let device = Box::new(BlockDevice::new(disks::shown(&disk, false, groups), image));
    Ok(Opened { device, describe: described(disk) })
}

/// Finds, opens and locks the image, with the checks that a start makes. Relative paths begin in `here`, else
/// in the images folder. May block.
pub(super) fn open_image(
    mut config: DomainConfig,
    disk: &mut DiskConfig,
    here: Option<&Path>,
) -> Result<Backing, Failure> {
    prepare_disk(disk, here.unwrap_or(&config.images_dir), &config.images_dir)?;
    // The disk whose place it takes goes before this one comes.
    config.disks.retain(|other| other.vdev != disk.vdev);
    config.disks.push(disk.clone());
    config.validate()?;
    config.disks = vec![disk.clone()];
    let registry = Registry::open(&config.run_dir)?;
    let image = open_images(&config, &registry)?.pop();
    image.ok_or_else(|| {
        let sentence = format!("{}: a drive without a medium cannot be attached; name an image", disk.vdev);
        Failure::new(ExitStatus::Usage, sentence)
    })
}

/// The domain has the disk, in place of the one with its name.
pub(super) fn described(disk: DiskConfig) -> Describe {
    Box::new(move |config: &mut DomainConfig| {
        match config.disks.iter_mut().find(|other| other.vdev == disk.vdev) {
            Some(before) => *before = disk,
            None => config.disks.push(disk),
        }
    })
}

/// The disk of the domain that is called `name`, or has this number in xenstore.
fn find<'a>(config: &'a DomainConfig, name: &str) -> Result<&'a DiskConfig, Failure> {
    let vdev = name.parse().ok().or_else(|| name.parse().ok().and_then(Vdev::from_number));
    let vdev: Vdev =
        vdev.ok_or_else(|| Failure::new(ExitStatus::InvalidVdev, Problem::Vdev(name.to_owned())))?;
    config.disks.iter().find(|disk| disk.vdev == vdev).ok_or_else(|| no_such_device(name))
}

pub(super) fn detach(config: &DomainConfig, request: &BlockDetach) -> Result<Plan, Failure> {
    let disk = find(config, &request.vdev)?;
    let vdev = disk.vdev;
    let describe = Box::new(move |config: &mut DomainConfig| config.disks.retain(|disk| disk.vdev != vdev));
    if !disk.has_medium() {
        return Ok(Plan::Describe(describe));
    }
    Ok(Plan::Detach(departure(vdev, request.force, request.timeout, describe)))
}

fn departure(vdev: Vdev, force: bool, timeout: Option<Duration>, describe: Describe) -> Departure {
    let patience = timeout.unwrap_or(if force { FORCE_PATIENCE } else { PATIENCE });
    Departure { id: device_id(vdev), name: vdev.to_string(), patience, force, describe }
}

/// A new medium comes as a new disk, in place of the one before: blkfront cannot change the medium of a disk,
/// and keeps what it has cached of it. An IDE drive takes it.
pub(super) fn insert(
    hotplug: &Hotplug,
    groups: &LimitGroups,
    config: &DomainConfig,
    request: CdInsert,
) -> Result<Plan, Failure> {
    let drive = cdrom(config, &request.vdev)?;
    if let Some(tray) = discs::Drive::find(hotplug, drive) {
        return Ok(Plan::Change(tray.insert(groups, config, drive, request)));
    }
    let medium = DiskConfig { source: DiskSource::Path(request.file), ..drive.clone() };
    let before = drive.has_medium().then(|| ejection(drive.vdev, request.force, request.timeout));
    Ok(Plan::Attach(arrival(groups, config, medium, request.directory, Value::Null), before))
}

pub(super) fn eject(
    hotplug: &Hotplug,
    config: &DomainConfig,
    request: &BlockDetach,
) -> Result<Plan, Failure> {
    let drive = cdrom(config, &request.vdev)?;
    if let Some(tray) = discs::Drive::find(hotplug, drive) {
        return Ok(Plan::Change(tray.eject(request)));
    }
    if !drive.has_medium() {
        return Ok(Plan::Describe(Box::new(|_| {})));
    }
    Ok(Plan::Detach(ejection(drive.vdev, request.force, request.timeout)))
}

/// The medium goes, and the drive stays in the description.
fn ejection(vdev: Vdev, force: bool, timeout: Option<Duration>) -> Departure {
    departure(vdev, force, timeout, emptied(vdev))
}

/// The drive stays without a medium.
pub(super) fn emptied(vdev: Vdev) -> Describe {
    Box::new(move |config: &mut DomainConfig| {
        if let Some(drive) = config.disks.iter_mut().find(|disk| disk.vdev == vdev) {
            drive.source = DiskSource::Empty {};
        }
    })
}

/// The CD-ROM drive of this name.
fn cdrom<'a>(config: &'a DomainConfig, name: &str) -> Result<&'a DiskConfig, Failure> {
    let disk = find(config, name)?;
    if disk.cdrom {
        return Ok(disk);
    }
    let sentence = "this disk is no CD-ROM; use `xvmm block-detach` and `xvmm block-attach`";
    Err(Failure::new(ExitStatus::NoSuchDevice, format!("{name}: {sentence}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use blkback::DiskImage;

    use super::*;
    use crate::api::DeviceChange;
    use crate::domain::change::change;
    use crate::domain::testing::{Side, TestDomain};

    /// A domain whose disks are files of 4 KiB in its images folder.
    fn domain(files: &[&str]) -> TestDomain {
        let domain = TestDomain::new();
        files.iter().for_each(|file| fs::write(domain.dir.path().join(file), [0; 4096]).unwrap());
        domain
    }

    fn ask(domain: &mut TestDomain, request: DeviceChange) -> (u16, String) {
        let reply = domain.outbox.reply();
        change(&mut domain.hotplug, &LimitGroups::default(), request, reply);
        domain.answer()
    }

    fn attach(domain: &mut TestDomain, spec: &str) -> (u16, String) {
        let directory = Some(domain.dir.path().to_owned());
        ask(domain, DeviceChange::BlockAttach(BlockAttach { spec: spec.into(), directory }))
    }

    fn request(vdev: &str) -> BlockDetach {
        BlockDetach { vdev: vdev.into(), force: true, timeout: Some(Duration::ZERO) }
    }

    fn insert(domain: &mut TestDomain, vdev: &str, file: &str) -> (u16, String) {
        let request = CdInsert {
            vdev: vdev.into(),
            file: file.into(),
            directory: Some(domain.dir.path().to_owned()),
            force: true,
            timeout: Some(Duration::ZERO),
        };
        ask(domain, DeviceChange::CdInsert(request))
    }

    fn disks(domain: &TestDomain) -> Vec<String> {
        let dir = domain.dir.path().to_owned();
        let name = |disk: &DiskConfig| Some(disk.path()?.strip_prefix(&dir).unwrap().display().to_string());
        let show = |disk: DiskConfig| format!("{}={}", disk.vdev, name(&disk).unwrap_or("(empty)".into()));
        domain.described().disks.into_iter().map(show).collect()
    }

    fn is_locked(domain: &TestDomain, file: &str) -> bool {
        DiskImage::open(&domain.dir.path().join(file), false).is_err()
    }

    #[test]
    fn an_attached_disk_has_the_nodes_and_the_lock_of_one_from_the_start() {
        let mut domain = domain(&["a.img"]);
        assert_eq!(attach(&mut domain, "a.img,vdev=xvdb"), (200, r#"{"vdev":"xvdb"}"#.into()));
        let id = device_id("xvdb".parse().unwrap());
        for (side, key, value) in [
            (Side::Front, "state", "1"),
            (Side::Front, "virtual-device", "51728"),
            (Side::Front, "backend", "/local/domain/0/backend/vbd/1/51728"),
            (Side::Back, "state", "2"),
            (Side::Back, "online", "1"),
            (Side::Back, "dev", "xvdb"),
            (Side::Back, "mode", "w"),
            (Side::Back, "bootable", "0"),
        ] {
            assert_eq!(domain.node(side, id, key).as_deref(), Some(value), "{key}");
        }
        assert!(is_locked(&domain, "a.img"));
        assert_eq!(disks(&domain), ["xvdb=a.img"]);
    }

    #[test]
    fn disks_without_a_name_get_the_free_ones() {
        let mut domain = domain(&["a", "b", "c", "d"]);
        for (spec, vdev) in [("a", "xvda"), ("b,vdev=xvdc", "xvdc"), ("c", "xvdb"), ("d", "xvdd")] {
            assert_eq!(attach(&mut domain, spec), (200, format!(r#"{{"vdev":"{vdev}"}}"#)));
        }
    }

    #[test]
    fn what_cannot_be_attached_is_told_as_at_the_start() {
        let mut domain = domain(&["a", "b"]);
        fs::write(domain.dir.path().join("empty"), "").unwrap();
        fs::write(domain.dir.path().join("odd"), [0; 513]).unwrap();
        assert_eq!(attach(&mut domain, "a,vdev=xvda").0, 200);
        let table = [
            ("b,vdev=vda", ExitStatus::InvalidVdev, "`vda` is not a virtual disk"),
            ("b,vdev=xvda", ExitStatus::SameVdev, "two disks are called xvda"),
            ("b,vdev=xvda1", ExitStatus::SameVdev, "xvda"),
            ("b,colour=blue", ExitStatus::UnknownKey, "colour"),
            (",,xvdc,cdrom", ExitStatus::Usage, "without a medium"),
            ("a", ExitStatus::DiskInUse, "the image is given twice"),
            ("none", ExitStatus::DiskMissing, "no such image in"),
            ("./none", ExitStatus::DiskMissing, "there is no such file"),
            ("empty", ExitStatus::DiskEmpty, "is empty"),
            ("odd", ExitStatus::DiskUnaligned, "not a multiple of 512"),
            ("run/", ExitStatus::DiskNotAFile, "is a directory"),
        ];
        for (spec, status, words) in table {
            let directory = Some(domain.dir.path().to_owned());
            let reply = domain.outbox.reply();
            let request = BlockAttach { spec: spec.into(), directory };
            change(&mut domain.hotplug, &LimitGroups::default(), DeviceChange::BlockAttach(request), reply);
            let (_, body) = domain.answers(1).remove(0);
            assert_eq!(body["status"], status.code(), "{spec}: {body}");
            assert!(body["error"].as_str().unwrap().contains(words), "{spec}: {body}");
        }
        assert_eq!(disks(&domain), ["xvda=a"]);
    }

    #[test]
    fn a_detached_image_is_free_again() {
        let mut domain = domain(&["a", "b"]);
        attach(&mut domain, "a");
        attach(&mut domain, "b");
        assert_eq!(ask(&mut domain, DeviceChange::BlockDetach(request("xvda"))).0, 204);
        assert!(!is_locked(&domain, "a") && is_locked(&domain, "b"));
        assert_eq!(disks(&domain), ["xvdb=b"]);
        // By its number, too.
        assert_eq!(ask(&mut domain, DeviceChange::BlockDetach(request("51728"))).0, 204);
        assert!(!is_locked(&domain, "b"));
        assert_eq!(attach(&mut domain, "b,vdev=xvda").0, 200);
    }

    #[test]
    fn disks_that_are_not_there_are_not_detached() {
        let mut domain = domain(&[]);
        for vdev in ["xvdz", "51712"] {
            let (status, sentence) = ask(&mut domain, DeviceChange::BlockDetach(request(vdev)));
            assert!(status == 404 && sentence.starts_with(vdev), "{sentence}");
        }
        for vdev in ["", "vda", "99999999999", "-1"] {
            assert_eq!(ask(&mut domain, DeviceChange::BlockDetach(request(vdev))).0, 400, "{vdev}");
        }
    }

    #[test]
    fn a_medium_comes_goes_and_is_exchanged() {
        let mut domain = domain(&["a,\"b.iso", "c.iso", "d"]);
        domain.describe(&["d,,,ro", ",,xvdc,cdrom", "d,,xvdd,ro"]);
        let id = device_id("xvdc".parse().unwrap());
        assert_eq!(insert(&mut domain, "xvdc", "a,\"b.iso").0, 204);
        assert_eq!(disks(&domain), ["xvda=d", "xvdc=a,\"b.iso", "xvdd=d"]);
        assert_eq!(domain.node(Side::Back, id, "mode").unwrap(), "r");
        // A medium that is not there leaves the one before in its place.
        assert_eq!(insert(&mut domain, "xvdc", "none.iso").0, 409);
        assert_eq!(insert(&mut domain, "51744", "c.iso").0, 204);
        assert_eq!(disks(&domain), ["xvda=d", "xvdc=c.iso", "xvdd=d"]);
        for _ in 0..2 {
            assert_eq!(ask(&mut domain, DeviceChange::CdEject(request("xvdc"))).0, 204);
            assert_eq!(disks(&domain), ["xvda=d", "xvdc=(empty)", "xvdd=d"]);
            assert!(!is_locked(&domain, "c.iso") && domain.node(Side::Front, id, "state").is_none());
        }
        assert_eq!(ask(&mut domain, DeviceChange::BlockDetach(request("xvdc"))).0, 204);
        assert_eq!(disks(&domain), ["xvda=d", "xvdd=d"]);
        assert_eq!(ask(&mut domain, DeviceChange::CdEject(request("xvdc"))).0, 404);
    }

    #[test]
    fn only_a_drive_has_media() {
        let mut domain = domain(&["a", "b"]);
        attach(&mut domain, "a,,,ro");
        for (status, sentence) in
            [ask(&mut domain, DeviceChange::CdEject(request("xvda"))), insert(&mut domain, "xvda", "b")]
        {
            assert!(status == 404 && sentence.starts_with("xvda: this disk is no CD-ROM"), "{sentence}");
        }
        assert_eq!(insert(&mut domain, "xvdc", "b").0, 404);
        assert_eq!(disks(&domain), ["xvda=a"]);
    }
}
