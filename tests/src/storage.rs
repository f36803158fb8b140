//! What the storage tests take along: device mapper, LVM, iSCSI and QEMU's image tool for the nested host, and
//! fio for the guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kit::Kit;
use crate::packages::{Apt, Cache, run};
use crate::{Result, fail, images};

/// For the nested host.
const KIT: Kit = Kit {
    name: "storage",
    modules: &["dm-mod", "dm-flakey", "dm-snapshot", "sd_mod", "iscsi_tcp"],
    extra_modules: &["scsi_debug"],
    programs: &[
        ("lvm2", "sbin/lvm", "/sbin/lvm"),
        ("dmsetup", "sbin/dmsetup", "/sbin/dmsetup"),
        ("mount", "sbin/losetup", "/sbin/losetup"),
        ("e2fsprogs", "sbin/mke2fs", "/sbin/mke2fs"),
        ("qemu-utils", "usr/bin/qemu-img", "/usr/bin/qemu-img"),
        ("tgt", "usr/sbin/tgtd", "/usr/sbin/tgtd"),
        ("tgt", "usr/sbin/tgtadm", "/usr/sbin/tgtadm"),
        ("open-iscsi", "sbin/iscsid", "/sbin/iscsid"),
        ("open-iscsi", "sbin/iscsiadm", "/sbin/iscsiadm"),
    ],
    libraries: &[
        "libbsd0",
        "libdevmapper1.02.1",
        "libdevmapper-event1.02.1",
        "libedit2",
        "libibverbs1",
        "libisns0",
        "libkmod2",
        "libmd0",
        "libmount1",
        "libnl-3-200",
        "libnl-route-3-200",
        "libopeniscsiusr",
        "librdmacm1",
    ],
    folders: &["/etc/iscsi/nodes", "/etc/iscsi/send_targets"],
    files: &[
        ("/etc/lvm/lvm.conf", 0o644, LVM_CONF),
        ("/etc/iscsi/iscsid.conf", 0o600, ISCSID_CONF),
        ("/etc/iscsi/initiatorname.iscsi", 0o600, INITIATOR),
    ],
    functions: include_str!("../assets/l1-storage"),
};

/// There is no udev in the nested host: device nodes are made by the programs themselves.
const LVM_CONF: &str = "\
devices { scan=[\"/dev\"] use_devicesfile=0 obtain_device_list_from_udev=0 md_component_detection=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
global { use_lvmpolld=0 event_activation=0 }
backup { backup=0 archive=0 }
";

const ISCSID_CONF: &str = "\
node.startup = manual
node.session.timeo.replacement_timeout = 120
node.conn[0].timeo.login_timeout = 15
node.conn[0].timeo.logout_timeout = 15
node.conn[0].timeo.noop_out_interval = 5
node.conn[0].timeo.noop_out_timeout = 15
node.session.initial_login_retry_max = 8
node.session.scan = auto
";
const INITIATOR: &str = "InitiatorName=iqn.2026-01.org.example:xvmm-tests\n";

/// fio comes from its source, because Debian's program needs 50 MB of libraries for storage that is not here.
const SOURCES: &str = "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n";

/// What was made.
pub struct Storage {
    /// An archive with programs and modules for the nested host.
    pub archive: PathBuf,
    /// A static fio.
    pub fio: PathBuf,
}

/// Makes everything that is not in the cache yet, for the nested host with the kernel `label`.
pub fn build(cache: &Cache, label: &str) -> Result<Storage> {
    let storage = Storage { archive: KIT.build(cache, label)?, fio: cache.path("fio").join("fio") };
    fio(cache, &storage.fio)?;
    Ok(storage)
}

/// Builds fio from Debian's source with the engines that need no library.
fn fio(cache: &Cache, to: &Path) -> Result<()> {
    let folder = cache.path("fio");
    images::build_once(&folder, SOURCES, || {
        eprintln!("building fio");
        let apt = Apt::new(cache, "apt-sources", SOURCES)?;
        apt.run(&["update"])?;
        apt.run_in(&folder, &["source", "--download-only", "fio"])?;
        let Some(source) = fs::read_dir(&folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.to_string_lossy().ends_with(".orig.tar.gz"))
        else {
            return fail!("apt-get source fio left no archive");
        };
        let tree = folder.join("source");
        let _ = fs::remove_dir_all(&tree);
        fs::create_dir_all(&tree)?;
        run(Command::new("tar").arg("xf").arg(source).arg("-C").arg(&tree).arg("--strip-components=1"))?;
        let mut configure = Command::new("sh");
        configure.args(["./configure", "--build-static", "--disable-native", "--disable-numa"]);
        for library in ["http", "rados", "rbd", "gfapi", "libnfs", "rdma", "pmem", "xnvme", "libzbc", "lex"] {
            configure.arg(format!("--disable-{library}"));
        }
        run(configure.current_dir(&tree))?;
        run(Command::new("make").args(["-j2", "fio"]).current_dir(&tree))?;
        run(Command::new("strip").arg("-o").arg(to).arg(tree.join("fio")))?;
        fs::remove_dir_all(tree)?;
        Ok(())
    })
}
