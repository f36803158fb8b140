//! iSCSI LUNs in the way of Xen's block-iscsi script: log in with open-iscsi's `iscsiadm`, find the disk in
//! sysfs, use it, log out with the domain.
//!
//! udev is not needed: the kernel names the disk of a session in sysfs, and devtmpfs has its device. A
//! session that xvmm did not open is used and left alone; one that it opened is closed by the last domain
//! that uses it, or by the next start when that was killed ([`clean_up`]).

mod admin;
mod chap;
mod error;
mod lease;
mod portal;
mod record;
mod sysfs;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use error::{IscsiError, IscsiProblem};

use crate::config::IscsiTarget;
use crate::config::portal::{Portal, is_target_name};
use admin::Iscsiadm;
use chap::Chap;
use lease::Lease;
use sysfs::{Block, Lun, Sysfs};

/// Names the program to use as `iscsiadm`.
pub const ISCSIADM_VARIABLE: &str = "XVMM_ISCSIADM";
/// How long a disk may take to appear once the session is there, and to be readable.
const SETTLE: Duration = Duration::from_secs(10);
/// How long the portal may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How often it is looked whether a disk has appeared.
const POLL: Duration = Duration::from_millis(20);

/// The disk of a target. The session is closed with it, if xvmm opened it and nobody else uses it: whatever
/// has the device open must be dropped before.
#[derive(Debug)]
pub struct IscsiDisk {
    path: PathBuf,
    lun: u64,
    _lease: Lease,
}

impl IscsiDisk {
    /// The block device: `/dev/sdX`, or `/dev/dm-N` for a multipath device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the logical unit, given or found.
    pub fn lun(&self) -> u64 {
        self.lun
    }
}

impl IscsiTarget {
    /// Logs in, or uses a session that is there, and waits for the disk. Takes seconds, or a minute when the
    /// target does not answer. `run_dir` is the folder of running domains.
    pub fn attach(&self, run_dir: &Path) -> Result<IscsiDisk, IscsiError> {
        attach_on(&Arc::new(Host::this_one()), self, run_dir)
    }
}

/// Logs out of the sessions that killed processes of xvmm have left. Nothing else is touched.
pub fn clean_up(run_dir: &Path) {
    lease::clean_up(&Arc::new(Host::this_one()), run_dir);
}

/// Where things are on a host.
#[derive(Clone, Debug)]
struct Host {
    sysfs: Sysfs,
    /// Where open-iscsi keeps its node records, first to last place.
    nodes: Vec<PathBuf>,
    /// The program to use as `iscsiadm`, if it is given.
    iscsiadm: Option<PathBuf>,
    /// The id of this run of the host.
    boot: String,
    settle: Duration,
    connect: Duration,
}

impl Host {
    fn this_one() -> Host {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Host {
            sysfs: Sysfs { sys: "/sys".into(), dev: "/dev".into() },
            nodes: vec!["/etc/iscsi/nodes".into(), "/var/lib/iscsi/nodes".into()],
            iscsiadm: std::env::var_os(ISCSIADM_VARIABLE).map(PathBuf::from),
            boot: boot.trim().to_owned(),
            settle: SETTLE,
            connect: CONNECT,
        }
    }

    fn iscsiadm(&self) -> Result<Iscsiadm, IscsiProblem> {
        Iscsiadm::find(self.iscsiadm.as_deref(), std::env::var_os("PATH").as_deref())
    }
}

fn attach_on(host: &Arc<Host>, target: &IscsiTarget, run_dir: &Path) -> Result<IscsiDisk, IscsiError> {
    attach(host, target, run_dir).map_err(|problem| IscsiError {
        iqn: target.iqn.clone(),
        portal: target.portal.clone(),
        problem,
    })
}

fn attach(host: &Arc<Host>, target: &IscsiTarget, run_dir: &Path) -> Result<IscsiDisk, IscsiProblem> {
    if !is_target_name(&target.iqn) {
        return Err(IscsiProblem::InvalidName);
    }
    let portal: Portal = target.portal.parse().map_err(|_| IscsiProblem::InvalidPortal)?;
    let portals = portal.resolve()?;
    let chap = target.chap.as_deref().map(Chap::read).transpose()?;
    lease::clean_up(host, run_dir);
    let lease = Lease::take(host, run_dir, &target.iqn, &portals, chap.as_ref())?;
    let end = Instant::now() + host.settle;
    wait(end, || host.check_connected(&target.iqn, &portals, &lease))?;
    let lun = host.wait_for_lun(&lease, target.lun, end)?;
    let block = wait(end, || lun.block().ok_or(IscsiProblem::NoDriver(lun.number)))?;
    let block = host.through_multipath(block, target.multipath, end)?;
    let path = host.sysfs.device(&block);
    wait(end, || match host.sysfs.is_there(&block) {
        true => Ok(()),
        false => Err(IscsiProblem::NoDevice { name: block.name(), path: path.clone() }),
    })?;
    wait(end, || {
        let not_readable = |reason| IscsiProblem::NotReadable { path: path.clone(), reason };
        sysfs::check_readable(&path).map_err(not_readable)
    })?;
    tracing::info!("iSCSI target {}: LUN {} is {}", target.iqn, lun.number, path.display());
    Ok(IscsiDisk { path, lun: lun.number, _lease: lease })
}

impl Host {
    /// A session without a connection would keep the first read waiting, beyond any signal.
    fn check_connected(
        &self,
        iqn: &str,
        portals: &[std::net::SocketAddr],
        lease: &Lease,
    ) -> Result<(), IscsiProblem> {
        let sessions = portals.iter().flat_map(|portal| self.sysfs.sessions(iqn, *portal));
        match sessions.into_iter().find(|session| session.id == lease.session.id) {
            Some(session) if session.is_logged_in() => Ok(()),
            Some(session) => Err(IscsiProblem::NotConnected(session.state)),
            None => Err(IscsiProblem::NotConnected("closed".into())),
        }
    }

    /// The logical unit to use. A session that was there may know less than the target has now.
    fn wait_for_lun(&self, lease: &Lease, wanted: Option<u64>, end: Instant) -> Result<Lun, IscsiProblem> {
        let find = || choose(self.sysfs.luns(lease.session.id), wanted);
        if !lease.is_new && matches!(find(), Err(IscsiProblem::NoLun | IscsiProblem::NoSuchLun { .. })) {
            lease.rescan();
        }
        wait(end, find)
    }

    /// The disk itself, or the multipath device on it.
    fn through_multipath(&self, disk: Block, wanted: bool, end: Instant) -> Result<Block, IscsiProblem> {
        match (wanted, self.sysfs.multipath(&disk)) {
            (false, None) => Ok(disk),
            (false, Some((_, name))) => Err(IscsiProblem::IsMultipath { disk: disk.name(), name }),
            (true, _) => wait(end, || {
                let found = self.sysfs.multipath(&disk).map(|(device, _)| device);
                found.ok_or_else(|| IscsiProblem::NoMultipath(disk.name()))
            }),
        }
    }
}

/// The logical unit that is asked for, or the only disk.
fn choose(luns: Vec<Lun>, wanted: Option<u64>) -> Result<Lun, IscsiProblem> {
    let disks: Vec<u64> = luns.iter().filter(|lun| lun.is_disk()).map(|lun| lun.number).collect();
    match (wanted, &disks[..]) {
        (Some(wanted), _) => luns
            .into_iter()
            .find(|lun| lun.number == wanted && lun.is_readable())
            .ok_or(IscsiProblem::NoSuchLun { wanted, luns: disks }),
        (None, []) => Err(IscsiProblem::NoLun),
        (None, [only]) => luns.into_iter().find(|lun| lun.number == *only).ok_or(IscsiProblem::NoLun),
        (None, _) => Err(IscsiProblem::SeveralLuns(disks)),
    }
}

/// Asks until the answer is good, or will not change, or the time is over; the last answer.
fn wait<T>(end: Instant, mut ask: impl FnMut() -> Result<T, IscsiProblem>) -> Result<T, IscsiProblem> {
    loop {
        match ask() {
            Err(problem) if problem.may_pass() && Instant::now() < end => {}
            answer => return answer,
        }
        std::thread::sleep(POLL);
    }
}
