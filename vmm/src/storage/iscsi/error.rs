//! Why a LUN cannot be used: one sentence each.

use std::io;
use std::path::PathBuf;

/// Why the LUN of a target cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("iSCSI target {iqn} at {portal}: {problem}")]
pub struct IscsiError {
    /// The target, as given.
    pub iqn: String,
    /// The portal, as given.
    pub portal: String,
    /// The reason.
    pub problem: IscsiProblem,
}

/// The reason in [`IscsiError`].
#[derive(Debug, thiserror::Error)]
pub enum IscsiProblem {
    /// The target's name breaks the grammar.
    #[error(
        "this is not an iSCSI name; it begins with iqn., eui. or naa. and has at most 223 letters, digits and . : - _"
    )]
    InvalidName,
    /// The portal breaks the grammar.
    #[error(
        "this is not a portal; give portal=ADDRESS, ADDRESS:PORT, [IPV6]:PORT or the name of a host instead of an address"
    )]
    InvalidPortal,
    /// The resolver does not know the portal's name.
    #[error("the name of the portal has no address ({0}); correct it, or give an address")]
    UnknownHost(String),
    /// There is no `iscsiadm`.
    #[error("there is no program iscsiadm; install the package open-iscsi, or set XVMM_ISCSIADM to its path")]
    NoIscsiadm,
    /// `iscsiadm` cannot be run.
    #[error("{path} cannot be run ({source}); correct XVMM_ISCSIADM or the installation of open-iscsi", path = .path.display())]
    NotRunnable {
        /// The program.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// `iscsiadm` found nobody to talk to.
    #[error("iscsid does not run, or not in this network namespace; start it with `systemctl start iscsid`")]
    NoIscsid,
    /// Only root may use `iscsiadm`.
    #[error("only root may log in to a target; start xvmm as root, or log in before with `iscsiadm`")]
    NotPermitted,
    /// The kernel has no transport for TCP.
    #[error(
        "the kernel cannot speak iSCSI over TCP; load its module with `modprobe iscsi_tcp`, or install a kernel with it"
    )]
    NoModule,
    /// Nobody answers at the portal.
    #[error(
        "the portal does not answer ({0}); check address and port, and that the server of the target runs and is not behind a firewall"
    )]
    Unreachable(String),
    /// The portal knows no such target, or does not show it to us.
    #[error(
        "the portal refuses the login: it has no such target, or does not let this host in; `iscsiadm -m discovery -t st -p PORTAL` lists its targets, /etc/iscsi/initiatorname.iscsi has the name of this host"
    )]
    UnknownTarget,
    /// CHAP failed.
    #[error(
        "the target refuses the login: user or password (CHAP) are wrong or missing; correct the file of chap=, or node.session.auth.* in the node record of open-iscsi"
    )]
    LoginRefused,
    /// The file of `chap=` cannot be used.
    #[error("chap={path}: {reason}", path = .path.display())]
    Chap {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the way out.
        reason: String,
    },
    /// A password is given, but also a node record that is not ours to change.
    #[error(
        "open-iscsi has a node record of this target already, which xvmm does not change: leave out chap= and keep the password there (node.session.auth.password), or delete the record with `iscsiadm -m node -T IQN -p PORTAL -o delete`"
    )]
    RecordExists,
    /// The node record cannot be written.
    #[error("the node record {path} cannot be written ({source}); check that its file system is writable and not full", path = .path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The node record is not where we know to look.
    #[error(
        "open-iscsi keeps its node records neither in /etc/iscsi/nodes nor in /var/lib/iscsi/nodes; make a node record with the password by `iscsiadm`, and leave out chap="
    )]
    NoRecordFile,
    /// `iscsiadm` failed for a reason without a sentence of its own.
    #[error("iscsiadm cannot {what} (status {status}: {message}); `journalctl -u iscsid` may tell more")]
    Failed {
        /// What it was to do.
        what: &'static str,
        /// Its exit status, see iscsiadm(8).
        status: i32,
        /// The last line that it wrote.
        message: String,
    },
    /// `iscsiadm` does not come back.
    #[error("iscsiadm did not {what} in {seconds} s and was stopped; `journalctl -u iscsid` may tell why")]
    TimedOut {
        /// What it was to do.
        what: &'static str,
        /// How long it had.
        seconds: u64,
    },
    /// The session is there, the connection is not.
    #[error(
        "its session has lost the connection (state {0}); bring the target back, or log out with `iscsiadm`"
    )]
    NotConnected(String),
    /// There is no disk behind the target.
    #[error("the target has no disk; give it one, or admit this host to it")]
    NoLun,
    /// There is more than one disk.
    #[error("the target has several disks, LUN {}; choose one with lun=", list(.0))]
    SeveralLuns(Vec<u64>),
    /// The LUN is not there, or is not a disk.
    #[error("the target has no disk as LUN {wanted}; {}", existing(.luns))]
    NoSuchLun {
        /// What `lun=` says.
        wanted: u64,
        /// Its disks.
        luns: Vec<u64>,
    },
    /// The kernel has the LUN, and no driver for it.
    #[error(
        "LUN {0} does not become a block device; load the kernel's driver for disks with `modprobe sd_mod`"
    )]
    NoDriver(u64),
    /// The kernel has the disk, `/dev` has not.
    #[error("the kernel's disk {name} does not appear as {path}; mount devtmpfs at /dev", path = .path.display())]
    NoDevice {
        /// Its name in sysfs.
        name: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// The device is there and gives no data.
    #[error("its disk {path} cannot be read ({reason}); check the LUN on the target", path = .path.display())]
    NotReadable {
        /// The device.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// `multipath=y`, and no device mapper device came.
    #[error(
        "no multipath device appears on the disk {0}; see that multipathd runs and that /etc/multipath.conf does not leave the disk out, or leave out multipath=y"
    )]
    NoMultipath(String),
    /// A path of a multipath device, without `multipath=y`.
    #[error("its disk {disk} is a path of the multipath device {name}; add multipath=y")]
    IsMultipath {
        /// The disk.
        disk: String,
        /// The name of the device on it.
        name: String,
    },
    /// The files with which the processes of xvmm agree cannot be used.
    #[error("{path}: {source}; check that the folder of running domains is writable and not full", path = .path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl IscsiProblem {
    /// Whether it is worth to wait a little: a new session's disks appear one after the other.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::NotConnected(_)
                | Self::NoLun
                | Self::NoSuchLun { .. }
                | Self::NoDriver(_)
                | Self::NoDevice { .. }
                | Self::NotReadable { .. }
                | Self::NoMultipath(_)
        )
    }
}

fn list(luns: &[u64]) -> String {
    luns.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

fn existing(luns: &[u64]) -> String {
    match luns {
        [] => "it has none at all".to_owned(),
        [lun] => format!("its only disk is LUN {lun}"),
        luns => format!("its disks are LUN {}", list(luns)),
    }
}
