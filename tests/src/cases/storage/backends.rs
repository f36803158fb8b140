//! Every kind of storage under load: what the guest wrote is what it reads and what the host finds, and what it
//! discards is free on the host.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::host::{
    Export, FileSystem, Iscsi, Loop, PORTAL, VolumeGroup, allocated_kib, must_be_clean, partition_table,
    qemu_img, wait_until,
};
use super::{DISK, Findings, fio_verify, guest_checksum, host_checksum, power_off};
use crate::cases::Bench;
use crate::guest::Guest;
use crate::{Result, check};

/// A disk under test.
struct Backend {
    name: &'static str,
    /// What `--disk` gets; the guest's names follow the order.
    spec: String,
    /// How the host gets at the bytes when the guest is gone.
    bytes: Bytes,
    /// The file that becomes smaller when the guest discards.
    freed: Option<PathBuf>,
}

/// Writes `bytes` random bytes to the beginning of a file or device.
fn fill(path: &Path, bytes: u64) -> Result<()> {
    let random = fs::File::open("/dev/urandom")?;
    std::io::copy(&mut random.take(bytes), &mut fs::File::options().write(true).open(path)?)?;
    Ok(())
}

/// Where the host finds the bytes of a disk.
enum Bytes {
    /// In this file or device, as they are.
    Plain(PathBuf),
    /// In an image that qemu-img reads; its name for the format.
    Image(PathBuf, &'static str),
}

impl Bytes {
    fn checksum(&self, bench: &Bench) -> Result<String> {
        match self {
            Bytes::Plain(path) => host_checksum(path),
            Bytes::Image(path, format) => {
                let plain = bench.folder.join("plain");
                let (from, to) = (path.display().to_string(), plain.display().to_string());
                qemu_img(&["convert", "-f", format, "-O", "raw", &from, &to])?;
                let sum = host_checksum(&plain)?;
                fs::remove_file(plain)?;
                Ok(sum)
            }
        }
    }
}

/// A guest with all of them.
fn start(bench: &Bench, backends: &[Backend]) -> Result<Guest> {
    let mut spec = bench.guest().with_fio()?;
    for backend in backends {
        spec = spec.disk(&backend.spec);
    }
    spec.start()
}

/// Loads all backends, one after the other.
fn load(bench: &Bench, guest: &mut Guest, backends: &[Backend], findings: &mut Findings) {
    for (backend, disk) in backends.iter().zip(disks()) {
        findings.note(backend.name, fio_verify(bench, guest, &disk, 512));
    }
    for (backend, disk) in backends.iter().zip(disks()) {
        if let Some(file) = &backend.freed {
            findings.note(&format!("{}: discard", backend.name), discard(guest, &disk, file));
        }
    }
}

/// xvda, xvdb, ...
fn disks() -> impl Iterator<Item = String> {
    ('a'..='p').map(|letter| format!("xvd{letter}"))
}

/// The guest discards three quarters of a disk, at least half of which were written: at least one quarter becomes
/// free on the host, and the rest is still there.
fn discard(guest: &mut Guest, disk: &str, file: &Path) -> Result<()> {
    let kept = "dd if=/dev/DISK bs=1M skip=12 iflag=direct 2>/dev/null | sha256sum".replace("DISK", disk);
    let before = guest.sh(&kept)?;
    let full = allocated_kib(file)?;
    guest.sh(&format!("blkdiscard -o 0 -l {} /dev/{disk}", DISK / 4 * 3))?;
    check!(guest.sh(&kept)? == before, "the part that was not discarded has changed");
    guest.sh(&format!("sync /dev/{disk}; sync"))?;
    let wanted = DISK / 1024 / 4;
    let freed = || Ok(full.saturating_sub(allocated_kib(file)?) >= wanted);
    wait_until(&format!("of {full} KiB in {} {wanted} KiB were freed", file.display()), 10, freed)
}

/// The guest's and the host's views of all disks are the same. Ends the guest.
fn compare(bench: &Bench, guest: &mut Guest, backends: &[Backend], findings: &mut Findings) -> Result<()> {
    let mut sums = Vec::new();
    for (_, disk) in backends.iter().zip(disks()) {
        sums.push(guest_checksum(guest, &disk)?);
    }
    power_off(bench, guest)?;
    for (backend, sum) in backends.iter().zip(sums) {
        let same = || {
            let found = backend.bytes.checksum(bench)?;
            check!(found == sum, "the guest read {sum}, the host reads {found}");
            Ok(())
        };
        findings.note(&format!("{}: checksum", backend.name), same());
    }
    Ok(())
}

/// Image files: raw, qcow2 (alone, and above a compressed image), VHD (fixed and dynamic).
pub fn files(bench: &Bench) -> Result<()> {
    let folder = FileSystem::new(bench, "images", 256 << 20)?;
    let size = DISK.to_string();
    let image = |name: &str, words: &[&str]| -> Result<PathBuf> {
        let path = folder.path(name);
        qemu_img(&[&["create", "-q"], words, &[&path.display().to_string(), &size]].concat())?;
        Ok(path)
    };

    let raw = folder.sparse("raw.img", DISK)?;
    let plain = image("plain.qcow2", &["-f", "qcow2"])?;
    let original = bench.disk("original.img", DISK)?;
    fill(&original, DISK / 2)?;
    let base = folder.path("base.qcow2");
    let (from, to) = (original.display().to_string(), base.display().to_string());
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", &from, &to])?;
    let above = image("above.qcow2", &["-f", "qcow2", "-F", "qcow2", "-b", &to])?;
    let vpc = |subformat: &str| format!("subformat={subformat},force_size=on");
    let fixed = image("fixed.vhd", &["-f", "vpc", "-o", &vpc("fixed")])?;
    let dynamic = image("dynamic.vhd", &["-f", "vpc", "-o", &vpc("dynamic")])?;
    let base_sum = host_checksum(&base)?;

    let spec = |format: &str, path: &Path| format!("format={format},target={}", path.display());
    let backends = [
        Backend {
            name: "raw file",
            spec: raw.display().to_string(),
            bytes: Bytes::Plain(raw.clone()),
            freed: Some(raw.clone()),
        },
        Backend {
            name: "qcow2",
            spec: spec("qcow2,vdev=xvdb", &plain),
            bytes: Bytes::Image(plain.clone(), "qcow2"),
            freed: Some(plain.clone()),
        },
        Backend {
            name: "qcow2 above another",
            spec: spec("qcow2,vdev=xvdc", &above),
            bytes: Bytes::Image(above.clone(), "qcow2"),
            freed: None,
        },
        Backend {
            name: "fixed VHD",
            spec: spec("vhd,vdev=xvdd", &fixed),
            bytes: Bytes::Image(fixed, "vpc"),
            freed: None,
        },
        Backend {
            name: "dynamic VHD",
            spec: spec("vhd,vdev=xvde", &dynamic),
            bytes: Bytes::Image(dynamic, "vpc"),
            freed: None,
        },
    ];
    let mut findings = Findings::default();
    let mut guest = start(bench, &backends)?;
    let through = guest_checksum(&mut guest, "xvdc")? == host_checksum(&original)?;
    findings.note("what the backing file has", truth(through, "the guest reads something else"));
    load(bench, &mut guest, &backends, &mut findings);
    compare(bench, &mut guest, &backends, &mut findings)?;
    for image in [&plain, &above] {
        findings.note(&format!("qemu-img check of {}", image.display()), must_be_clean(image));
    }
    findings.note("the backing file", truth(host_checksum(&base)? == base_sum, "it was written to"));
    findings.finish()
}

/// Block devices: a whole one, a logical volume, a snapshot, a partition, an iSCSI disk.
pub fn volumes(bench: &Bench) -> Result<()> {
    let whole_file = bench.disk("whole.img", DISK)?;
    let whole = Loop::new(&whole_file, &[])?;

    let group_file = bench.disk("group.img", 80 << 20)?;
    let group = VolumeGroup::new("tests", Loop::new(&group_file, &[])?)?;
    let volume = group.volume("volume", DISK >> 20)?;
    let origin = group.volume("origin", DISK >> 20)?;
    fill(&origin, DISK)?;
    let origin_sum = host_checksum(&origin)?;
    let snapshot = group.snapshot("origin", "changed", (DISK >> 20) + 4)?;

    let parted_file = bench.disk("parted.img", DISK + (1 << 20))?;
    partition_table(&parted_file, DISK + (1 << 20))?;
    let parted = Loop::new(&parted_file, &[])?;
    let partition = parted.partition(1);
    wait_until("the kernel found the partition", 300, || Ok(partition.exists()))?;

    const IQN: &str = "iqn.2026-01.org.example:load";
    let lun_file = bench.disk("lun.img", DISK)?;
    let iscsi = Iscsi::start(bench, &[Export { iqn: IQN, file: lun_file.clone(), lun: 1, chap: None }])?;

    let backends = [
        Backend {
            name: "block device",
            spec: format!("phy:{},xvda,w", whole.path().display()),
            bytes: Bytes::Plain(whole.path().to_owned()),
            freed: Some(whole_file),
        },
        Backend {
            name: "logical volume",
            spec: format!("phy:{},xvdb,w", volume.display()),
            bytes: Bytes::Plain(volume.clone()),
            freed: Some(group_file),
        },
        Backend {
            name: "snapshot",
            spec: format!("phy:{},xvdc,w", snapshot.display()),
            bytes: Bytes::Plain(snapshot),
            freed: None,
        },
        Backend {
            name: "partition",
            spec: format!("phy:{},xvdd,w", partition.display()),
            bytes: Bytes::Plain(partition),
            freed: Some(parted_file),
        },
        Backend {
            name: "iSCSI disk",
            spec: format!("script=block-iscsi,vdev=xvde,target=iqn={IQN},portal={PORTAL}"),
            bytes: Bytes::Plain(lun_file.clone()),
            freed: Some(lun_file),
        },
    ];
    let mut findings = Findings::default();
    let mut guest = start(bench, &backends)?;
    load(bench, &mut guest, &backends, &mut findings);
    findings.note("logical volume: resize", grow(&mut guest, &group));
    check!(Iscsi::sessions()? == [IQN], "the sessions are {:?}", Iscsi::sessions()?);
    findings.note("origin of the snapshot", truth(host_checksum(&origin)? == origin_sum, "it has changed"));
    compare(bench, &mut guest, &backends, &mut findings)?;
    let left = Iscsi::sessions()?;
    findings.note("log-out", truth(left.is_empty(), &format!("these sessions are left: {left:?}")));
    drop(iscsi);
    findings.finish()
}

/// A volume that the host makes larger is larger in the guest without a reboot.
fn grow(guest: &mut Guest, group: &VolumeGroup) -> Result<()> {
    check!(guest.sh("cat /sys/block/xvdb/size")? == "32768", "the volume has another size to begin with");
    group.extend("volume", 24)?;
    guest.sh("dd if=/dev/xvdb of=/dev/null bs=512 count=1 iflag=direct")?;
    let grown =
        "for i in $(seq 50); do [ $(cat /sys/block/xvdb/size) = 49152 ] && break; usleep 100000; done";
    guest.sh(&format!("{grown}; [ $(cat /sys/block/xvdb/size) = 49152 ]"))?;
    guest.sh("echo end | dd of=/dev/xvdb bs=512 seek=49151 conv=sync,fsync")?;
    Ok(())
}

fn truth(holds: bool, otherwise: &str) -> Result<()> {
    check!(holds, "{otherwise}");
    Ok(())
}
