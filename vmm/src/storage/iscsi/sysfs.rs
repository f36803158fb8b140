//! What the kernel tells of iSCSI sessions and their disks (Documentation/ABI and
//! drivers/scsi/scsi_transport_iscsi.c). Nothing here needs udev.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// SCSI peripheral device types (SPC-4, table 142).
const TYPE_DISK: u32 = 0;
const TYPE_CD: u32 = 5;

/// A session in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// N of `sessionN`; the kernel does not use it again before the module is loaded anew.
    pub id: u32,
    /// `LOGGED_IN`, `FAILED` or `FREE`.
    pub state: String,
}

impl Session {
    /// Whether there is a connection now.
    pub(super) fn is_logged_in(&self) -> bool {
        self.state == "LOGGED_IN"
    }
}

/// A logical unit of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lun {
    /// Its number, as the target counts.
    pub number: u64,
    /// The peripheral device type.
    pub kind: u32,
    /// Its folder in sysfs.
    path: PathBuf,
}

impl Lun {
    /// Whether it is a disk.
    pub(super) fn is_disk(&self) -> bool {
        self.kind == TYPE_DISK
    }

    /// Whether it is a disk or a medium that reads like one.
    pub(super) fn is_readable(&self) -> bool {
        self.is_disk() || self.kind == TYPE_CD
    }

    /// The block device, as soon as the driver has made it.
    pub(super) fn block(&self) -> Option<Block> {
        let (_, path) = entries(&self.path.join("block")).into_iter().next()?;
        Some(Block { path })
    }
}

/// A block device in sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    path: PathBuf,
}

impl Block {
    /// The kernel's name: `sda`, `dm-0`.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The device number.
    fn number(&self) -> Option<u64> {
        let text = read(&self.path.join("dev"))?;
        let (major, minor) = text.split_once(':')?;
        Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
    }

    /// The name and uuid that device mapper has for it.
    fn device_mapper(&self) -> Option<(String, String)> {
        Some((read(&self.path.join("dm/name"))?, read(&self.path.join("dm/uuid"))?))
    }
}

/// The trees that the kernel shows.
#[derive(Clone, Debug)]
pub(super) struct Sysfs {
    /// `/sys`
    pub sys: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
}

impl Sysfs {
    /// Whether the kernel can do iSCSI over TCP.
    pub(super) fn has_tcp(&self) -> bool {
        self.sys.join("class/iscsi_transport/tcp").exists()
    }

    /// The sessions with this target through this portal, the oldest first.
    pub(super) fn sessions(&self, iqn: &str, portal: SocketAddr) -> Vec<Session> {
        let connections = entries(&self.sys.join("class/iscsi_connection"));
        let mut found: Vec<Session> = entries(&self.sys.join("class/iscsi_session"))
            .into_iter()
            .filter_map(|(name, path)| {
                let id: u32 = name.strip_prefix("session")?.parse().ok()?;
                let prefix = format!("connection{id}:");
                let goes_there = connections
                    .iter()
                    .any(|(name, path)| name.starts_with(&prefix) && leads_to(path, portal));
                let is_it = goes_there && read(&path.join("targetname")).as_deref() == Some(iqn);
                is_it.then(|| Session { id, state: read(&path.join("state")).unwrap_or_default() })
            })
            .collect();
        found.sort_by_key(|session| session.id);
        found
    }

    /// The logical units of a session in the order of their numbers. The kernel knows them all once a login
    /// is complete; their block devices come a little later.
    pub(super) fn luns(&self, session: u32) -> Vec<Lun> {
        let device = self.sys.join(format!("class/iscsi_session/session{session}/device"));
        let mut luns = Vec::new();
        for (target, path) in entries(&device) {
            if !target.starts_with("target") {
                continue;
            }
            for (address, path) in entries(&path) {
                // Host, channel, target, LUN.
                let parts: Vec<&str> = address.split(':').collect();
                let [_, _, _, number] = parts[..] else { continue };
                let (Ok(number), Some(kind)) = (number.parse(), read(&path.join("type"))) else { continue };
                luns.push(Lun { number, kind: kind.parse().unwrap_or(u32::MAX), path });
            }
        }
        luns.sort_by_key(|lun| lun.number);
        luns
    }

    /// The multipath device on a disk, and the name it was given.
    pub(super) fn multipath(&self, disk: &Block) -> Option<(Block, String)> {
        entries(&disk.path.join("holders")).into_iter().find_map(|(holder, _)| {
            let block = Block { path: self.sys.join("class/block").join(holder) };
            let (name, uuid) = block.device_mapper()?;
            uuid.starts_with("mpath-").then_some((block, name))
        })
    }

    /// Where the device of a disk is.
    pub(super) fn device(&self, block: &Block) -> PathBuf {
        self.dev.join(block.name())
    }

    /// Whether the device is there, and is not an older one or a file of the same name.
    pub(super) fn is_there(&self, block: &Block) -> bool {
        let number = fs::metadata(self.device(block)).ok().map(|meta| meta.rdev());
        number.is_some() && number == block.number()
    }

    /// What on this host uses a disk of the session besides us: its device.
    pub(super) fn user_of(&self, session: u32) -> Option<PathBuf> {
        let disks = self.luns(session).into_iter().filter_map(|lun| lun.block());
        disks.map(|disk| self.multipath(&disk).map_or(disk, |(device, _)| device)).find_map(|block| {
            let device = self.device(&block);
            (self.is_there(&block) && is_used(&device)).then_some(device)
        })
    }
}

/// Reads the first block of a device: a disk that has just come may not be ready.
pub(super) fn check_readable(device: &Path) -> io::Result<()> {
    let mut block = [0; 4096];
    match File::open(device)?.read_at(&mut block, 0)? {
        0 => Err(io::Error::other("it has no size")),
        _ => Ok(()),
    }
}

/// Whether a device is mounted, part of another device, or locked by a virtual machine.
fn is_used(device: &Path) -> bool {
    // On a block device O_EXCL means: unless the host has claimed it.
    let flags = libc::O_EXCL | libc::O_NONBLOCK;
    match File::options().read(true).custom_flags(flags).open(device) {
        Ok(file) => is_locked(&file),
        Err(error) => error.raw_os_error() == Some(libc::EBUSY),
    }
}

/// Asks whether the whole file could be locked exclusively.
fn is_locked(file: &File) -> bool {
    // SAFETY: flock is plain data for which zeros are valid: the whole file, no owner.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let Ok(exclusive) = libc::F_WRLCK.try_into() else { return true };
    lock.l_type = exclusive;
    // SAFETY: a valid descriptor and a valid flock, which the kernel fills in.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    asked == 0 && i32::from(lock.l_type) != libc::F_UNLCK
}

/// Whether a connection was made for, or goes to, this address.
fn leads_to(connection: &Path, portal: SocketAddr) -> bool {
    [("persistent_address", "persistent_port"), ("address", "port")].iter().any(|(address, port)| {
        let value = |name| read(&connection.join(name));
        let address = value(address).and_then(|text| text.trim_matches(['[', ']']).parse().ok());
        address == Some(portal.ip()) && value(port).and_then(|text| text.parse().ok()) == Some(portal.port())
    })
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Names and paths in a folder; none if it is not there.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    found.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
}
