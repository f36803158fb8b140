//! What blkfront negotiates, and the kinds of disks.

use std::process::Command;

use super::host::{Loop, ScsiDisk};
use super::{DISK, FIO_LIMIT, Findings, fio_verify, power_off};
use crate::cases::{Bench, tool};
use crate::guest::Guest;
use crate::packages::run;
use crate::{Result, check, fail};

/// Queues, rings of many pages, large requests; 4Kn, 512e, read-only disks, a CD.
pub fn features(bench: &Bench) -> Result<()> {
    let mut findings = Findings::default();
    negotiation(bench, &mut findings)?;
    kinds(bench, &mut findings)?;
    findings.finish()
}

/// With all that blkfront can ask for. One disk with one queue: it sets 20 MiB of the guest aside for each queue, piece
/// by piece, and emulated that takes long.
fn negotiation(bench: &Bench, findings: &mut Findings) -> Result<()> {
    let raw = bench.disk("raw.img", DISK)?;
    let mut guest = bench
        .guest()
        .words("xen_blkfront.max_ring_page_order=4 xen_blkfront.max_indirect_segments=256")
        .disk(format!("{},queues=1", raw.display()))
        .with_fio()?
        .start()?;
    findings.note("ring of 16 pages", large_ring(bench, &mut guest));
    findings.note("requests of 1 MiB", large_requests(bench, &mut guest));
    power_off(bench, &mut guest)
}

fn kinds(bench: &Bench, findings: &mut Findings) -> Result<()> {
    let native = Loop::new(&bench.disk("4kn.img", DISK)?, &["--sector-size", "4096"])?;
    let emulated = ScsiDisk::new(&["dev_size_mb=16", "sector_size=512", "physblk_exp=3", "delay=0"])?;
    let cd = bench.disk("cd.iso", 4 << 20)?;
    let fixed = bench.disk("fixed.img", 4 << 20)?;
    let plain = Loop::new(&bench.disk("plain.img", 4 << 20)?, &[])?;
    let mut guest = bench
        .guest()
        .disk(format!("phy:{},xvda,w", plain.path().display()))
        .disk(format!("phy:{},xvdb,w", native.path().display()))
        .disk(format!("phy:{},xvdc,w", emulated.path().display()))
        .disk(format!("{},raw,xvdd,ro,devtype=cdrom", cd.display()))
        .disk(format!("{},raw,xvde,ro", fixed.display()))
        .with_fio()?
        .start()?;
    findings.note("queues", queues(bench, &mut guest));
    for (disk, sizes) in [("xvda", "512 512"), ("xvdb", "4096 4096"), ("xvdc", "512 4096")] {
        findings.note(&format!("sector sizes of {disk}"), sectors(&mut guest, disk, sizes));
    }
    findings.note("load on 4Kn", fio_verify(bench, &mut guest, "xvdb", 4096));
    findings.note("load on 512e", fio_verify(bench, &mut guest, "xvdc", 512));
    findings.note("half a sector of 4Kn", half_a_sector(&mut guest));
    findings.note("read-only", refuses_writes(&mut guest, "xvde"));
    findings.note("CD", compact_disc(bench, &mut guest));
    power_off(bench, &mut guest)
}

/// One queue per vCPU, up to four.
fn queues(bench: &Bench, guest: &mut Guest) -> Result<()> {
    let wanted = bench.config.vcpus.min(4);
    let found = guest.sh("ls /sys/block/xvda/mq | wc -l")?;
    check!(found == wanted.to_string(), "blkfront has {found} queues instead of {wanted}");
    if wanted > 1 {
        let number = frontend(bench, "51712/multi-queue-num-queues")?;
        check!(number == wanted.to_string(), "multi-queue-num-queues is {number}");
        for queue in 0..wanted {
            frontend(bench, &format!("51712/queue-{queue}/ring-ref"))?;
        }
    }
    Ok(())
}

/// The ring has 16 pages, and `queues=1` is one queue.
fn large_ring(bench: &Bench, guest: &mut Guest) -> Result<()> {
    let found = guest.sh("ls /sys/block/xvda/mq | wc -l")?;
    check!(found == "1", "blkfront has {found} queues instead of 1");
    let order = frontend(bench, "51712/ring-page-order")?;
    check!(order == "4", "ring-page-order is {order}");
    frontend(bench, "51712/ring-ref15")?;
    Ok(())
}

/// 1 MiB is one request of the ring, as xvmm counts them.
fn large_requests(bench: &Bench, guest: &mut Guest) -> Result<()> {
    let before = counter(bench, 51712, "requests")?;
    guest.sh_within(
        "fio --name=large --filename=/dev/xvda --direct=1 --ioengine=psync --rw=read --bs=1m --size=8m --minimal",
        FIO_LIMIT,
    )?;
    let requests = counter(bench, 51712, "requests")? - before;
    check!(requests == 8, "8 reads of 1 MiB were {requests} requests");
    Ok(())
}

/// Logical and physical sector size in the guest.
fn sectors(guest: &mut Guest, disk: &str, wanted: &str) -> Result<()> {
    let said = guest
        .sh(&format!("cd /sys/block/{disk}/queue && echo $(cat logical_block_size physical_block_size)"))?;
    check!(said == wanted, "they are {said} instead of {wanted}");
    Ok(())
}

/// Less than a sector cannot be written. (busybox's dd would do it through the page cache when it is refused.)
fn half_a_sector(guest: &mut Guest) -> Result<()> {
    let (status, said) = guest.status(
        "fio --name=half --filename=/dev/xvdb --direct=1 --ioengine=psync --rw=write --bs=512 --size=512 --minimal",
    )?;
    check!(status != 0, "512 bytes were written to a disk with sectors of 4096: {said}");
    Ok(())
}

fn refuses_writes(guest: &mut Guest, disk: &str) -> Result<()> {
    check!(
        guest.sh(&format!("cat /sys/block/{disk}/ro"))? == "1",
        "the guest does not know that it is read-only"
    );
    let (status, said) = guest.status(&format!("dd if=/dev/zero of=/dev/{disk} bs=4k count=1 conv=fsync"))?;
    check!(status != 0, "a write succeeded: {said}");
    Ok(())
}

/// The guest is told that it is a CD that can be taken out.
fn compact_disc(bench: &Bench, guest: &mut Guest) -> Result<()> {
    refuses_writes(guest, "xvdd")?;
    check!(guest.sh("cat /sys/block/xvdd/removable")? == "1", "it is not removable");
    let kind = backend(bench, "51760/device-type")?;
    check!(kind == "cdrom", "device-type is {kind}");
    // VDISK_CDROM, VDISK_REMOVABLE and VDISK_READONLY (public/io/blkif.h).
    let info: u32 = backend(bench, "51760/info")?.parse()?;
    check!(info == 1 | 2 | 4, "info is {info}");
    Ok(())
}

/// A key of a disk's frontend in xenstore.
fn frontend(bench: &Bench, key: &str) -> Result<String> {
    let domain = domain(bench)?;
    xenstore(bench, &format!("/local/domain/{domain}/device/vbd/{key}"))
}

/// A key of a disk's backend in xenstore.
fn backend(bench: &Bench, key: &str) -> Result<String> {
    let domain = domain(bench)?;
    xenstore(bench, &format!("/local/domain/0/backend/vbd/{domain}/{key}"))
}

fn domain(bench: &Bench) -> Result<u32> {
    match bench.domains()?.first() {
        Some(domain) => Ok(*domain),
        None => fail!("no domain runs"),
    }
}

fn xenstore(bench: &Bench, key: &str) -> Result<String> {
    let socket = bench.run_folder().join(domain(bench)?.to_string()).join("xenstored.sock");
    let mut command: Command = tool("xenstore-read");
    Ok(run(command.env("XENSTORED_PATH", socket).arg(key))?.trim().to_owned())
}

/// A counter of a disk of the only domain, by its number in xenstore.
fn counter(bench: &Bench, disk: u64, name: &str) -> Result<u64> {
    let text = bench.xvmm(&["info", &domain(bench)?.to_string()])?;
    let info: serde_json::Value = serde_json::from_str(&text)?;
    let devices = info.get("devices").and_then(|devices| devices.as_array()).cloned().unwrap_or_default();
    let counter = devices
        .iter()
        .find(|device| device.get("index").and_then(serde_json::Value::as_u64) == Some(disk))
        .and_then(|device| device.get("counters")?.get(name)?.as_u64());
    match counter {
        Some(counter) => Ok(counter),
        None => fail!("xvmm info has no counter {name} of {disk}: {text}"),
    }
}
