//! Real storage in the nested host: loop devices, device mapper, volume groups, SCSI disks, iSCSI targets. Each
//! ends with its value.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cases::Bench;
use crate::packages::run;
use crate::{Result, check, fail};

/// Waits until `done` says yes.
pub fn wait_until(what: &str, seconds: u64, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !done()? {
        if Instant::now() > deadline {
            return fail!("after {seconds} s still not: {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A loop device.
pub struct Loop(PathBuf);

impl Loop {
    /// Makes one of `file`, with further options of losetup.
    pub fn new(file: &Path, options: &[&str]) -> Result<Loop> {
        let mut losetup = Command::new("/sbin/losetup");
        losetup.args(["--find", "--show", "--partscan"]).args(options).arg(file);
        Ok(Loop(PathBuf::from(run(&mut losetup)?.trim())))
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A partition of it.
    pub fn partition(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.0.display()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run(Command::new("/sbin/losetup").arg("--detach").arg(&self.0));
    }
}

/// Writes a partition table (MBR) with one partition that begins at 1 MiB.
pub fn partition_table(disk: &Path, bytes: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let mut sector = [0; 512];
    let start: u32 = 2048;
    let length = u32::try_from(bytes / 512)? - start;
    let entry: Vec<u8> = [0, 0, 0, 0, 0x83, 0, 0, 0]
        .into_iter()
        .chain(start.to_le_bytes())
        .chain(length.to_le_bytes())
        .chain([0; 48])
        .chain([0x55, 0xaa])
        .collect();
    if let Some(end) = sector.get_mut(446..) {
        end.copy_from_slice(&entry);
    }
    fs::File::options().write(true).open(disk)?.write_all_at(&sector, 0)?;
    Ok(())
}

/// A mounted ext4 file system on a loop device.
pub struct FileSystem {
    folder: PathBuf,
    _device: Loop,
}

impl FileSystem {
    /// Makes one of `bytes` below the test's folder.
    pub fn new(bench: &Bench, name: &str, bytes: u64) -> Result<FileSystem> {
        let device = Loop::new(&bench.disk(&format!("{name}.ext4"), bytes)?, &[])?;
        let folder = bench.folder.join(name);
        fs::create_dir_all(&folder)?;
        // Without a journal and reserved blocks: the size is what can be used.
        run(Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "nodiscard"])
            .arg(device.path()))?;
        run(Command::new("mount").args(["-t", "ext4"]).arg(device.path()).arg(&folder))?;
        Ok(FileSystem { folder, _device: device })
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes a file in it, full of zeros and without blocks.
    pub fn sparse(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.path(name);
        fs::File::create(&path)?.set_len(bytes)?;
        Ok(path)
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.folder));
    }
}

/// A device of the device mapper, with a table that may be replaced while the device is in use.
pub struct Mapped(&'static str);

impl Mapped {
    /// Makes one with a table (dmsetup(8)).
    pub fn new(name: &'static str, table: &str) -> Result<Mapped> {
        dmsetup(&["create", name, "--table", table])?;
        Ok(Mapped(name))
    }

    /// The block device.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(self.0)
    }

    /// Replaces the table.
    pub fn replace(&self, table: &str) -> Result<()> {
        dmsetup(&["suspend", "--noflush", "--nolockfs", self.0])?;
        let loaded = dmsetup(&["load", self.0, "--table", table]);
        dmsetup(&["resume", self.0])?;
        loaded
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = dmsetup(&["remove", "--force", self.0]);
    }
}

fn dmsetup(words: &[&str]) -> Result<()> {
    run(Command::new("/sbin/dmsetup").env("DM_DISABLE_UDEV", "1").args(words))?;
    Ok(())
}

/// A volume group on a loop device.
pub struct VolumeGroup {
    name: &'static str,
    device: Loop,
}

impl VolumeGroup {
    /// Makes one, with extents of 1 MiB.
    pub fn new(name: &'static str, device: Loop) -> Result<VolumeGroup> {
        lvm(&["pvcreate", "--quiet", &device.path().display().to_string()])?;
        let group = VolumeGroup { name, device };
        let device = group.device.path().display().to_string();
        lvm(&["vgcreate", "--quiet", "--physicalextentsize", "1m", name, &device])?;
        Ok(group)
    }

    /// Makes a volume.
    pub fn volume(&self, name: &str, mib: u64) -> Result<PathBuf> {
        let size = format!("{mib}m");
        lvm(&["lvcreate", "--quiet", "--wipesignatures", "n", "--size", &size, "--name", name, self.name])?;
        Ok(self.path(name))
    }

    /// Makes a snapshot that takes up to `mib` MiB of changes.
    pub fn snapshot(&self, origin: &str, name: &str, mib: u64) -> Result<PathBuf> {
        let (size, origin) = (format!("{mib}m"), format!("{}/{origin}", self.name));
        lvm(&["lvcreate", "--quiet", "--snapshot", "--size", &size, "--name", name, &origin])?;
        Ok(self.path(name))
    }

    /// Makes a volume larger.
    pub fn extend(&self, name: &str, mib: u64) -> Result<()> {
        lvm(&["lvextend", "--quiet", "--size", &format!("{mib}m"), &format!("{}/{name}", self.name)])
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new("/dev").join(self.name).join(name)
    }
}

impl Drop for VolumeGroup {
    fn drop(&mut self) {
        let _ = lvm(&["vgremove", "--quiet", "--force", "--force", "--yes", self.name]);
    }
}

fn lvm(words: &[&str]) -> Result<()> {
    run(Command::new("/sbin/lvm")
        .env("DM_DISABLE_UDEV", "1")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .args(words))?;
    Ok(())
}

/// A SCSI disk in memory (the kernel's scsi_debug). There is one at a time.
pub struct ScsiDisk {
    name: String,
}

impl ScsiDisk {
    /// Makes one with parameters of the module.
    pub fn new(parameters: &[&str]) -> Result<ScsiDisk> {
        let before = scsi_disks()?;
        run(Command::new("insmod").arg("/lib/modules/scsi_debug.ko").args(parameters))?;
        // From here on the module is unloaded again in any case.
        let mut disk = ScsiDisk { name: String::new() };
        wait_until("scsi_debug made a disk", 300, || {
            if let Some(name) = scsi_disks()?.into_iter().find(|name| !before.contains(name)) {
                disk.name = name;
            }
            Ok(disk.path().exists() && !disk.name.is_empty())
        })?;
        Ok(disk)
    }

    /// The block device.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Takes it out of the host, as when it is unplugged.
    pub fn unplug(&self) -> Result<()> {
        Ok(fs::write(format!("/sys/block/{}/device/delete", self.name), "1")?)
    }
}

impl Drop for ScsiDisk {
    fn drop(&mut self) {
        let _ = run(Command::new("rmmod").arg("scsi_debug"));
    }
}

fn scsi_disks() -> Result<Vec<String>> {
    let names = fs::read_dir("/sys/block")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with("sd")).collect())
}

/// An iSCSI target on the loopback interface (tgt), and the initiator's daemon.
pub struct Iscsi {
    daemon: Child,
    target: Option<Child>,
    exports: Vec<Export>,
    log: PathBuf,
}

/// What a target offers.
#[derive(Clone)]
pub struct Export {
    /// The target's name.
    pub iqn: &'static str,
    /// What its only disk is kept in.
    pub file: PathBuf,
    /// The disk's number.
    pub lun: u32,
    /// The user and the password that it asks for.
    pub chap: Option<(&'static str, &'static str)>,
}

/// Where the targets are reached.
pub const PORTAL: &str = "127.0.0.1:3260";

impl Iscsi {
    /// Starts both daemons.
    pub fn start(bench: &Bench, exports: &[Export]) -> Result<Iscsi> {
        let log = bench.folder.join("iscsi.log");
        let output = fs::File::create(&log)?;
        let daemon = Command::new("/sbin/iscsid")
            .arg("--foreground")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let mut iscsi = Iscsi { daemon, target: None, exports: exports.to_vec(), log };
        iscsi.start_target()?;
        Ok(iscsi)
    }

    /// Starts the target, which has the same disks as before.
    pub fn start_target(&mut self) -> Result<()> {
        let log = fs::File::options().append(true).open(&self.log)?;
        let target = Command::new("/usr/sbin/tgtd")
            .args(["--foreground", "--iscsi", &format!("portal={PORTAL}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.target = Some(target);
        wait_until("tgtd takes orders", 300, || Ok(tgtadm(&["show", "--mode", "system"]).is_ok()))?;
        for (number, export) in self.exports.iter().enumerate() {
            let (tid, lun) = ((number + 1).to_string(), export.lun.to_string());
            let file = export.file.display().to_string();
            let target = ["--mode", "target", "--tid", &tid];
            tgtadm(&[&["new"], &target[..], &["--targetname", export.iqn]].concat())?;
            let unit = ["--mode", "logicalunit", "--tid", &tid, "--lun", &lun];
            tgtadm(&[&["new"], &unit[..], &["--backing-store", &file]].concat())?;
            tgtadm(&[&["update"], &unit[..], &["--params", "thin_provisioning=1"]].concat())?;
            tgtadm(&[&["bind"], &target[..], &["--initiator-address", "ALL"]].concat())?;
            if let Some((user, password)) = export.chap {
                tgtadm(&["new", "--mode", "account", "--user", user, "--password", password])?;
                tgtadm(&["bind", "--mode", "account", "--tid", &tid, "--user", user])?;
            }
        }
        Ok(())
    }

    /// Ends the target without a word to anybody.
    pub fn kill_target(&mut self) -> Result<()> {
        if let Some(mut target) = self.target.take() {
            target.kill()?;
            target.wait()?;
        }
        Ok(())
    }

    /// Logs in to a target, as somebody else than xvmm.
    pub fn log_in(&self, iqn: &str) -> Result<()> {
        // No discovery: it would make records of all targets, and those are nobody's but the host's.
        let node = ["--mode", "node", "--targetname", iqn, "--portal", PORTAL];
        iscsiadm(&[&node[..], &["--op", "new"]].concat())?;
        iscsiadm(&[&node[..], &["--login"]].concat())
    }

    /// The names of the targets with a session, sorted.
    pub fn sessions() -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir("/sys/class/iscsi_session")? {
            names.push(fs::read_to_string(entry?.path().join("targetname"))?.trim().to_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Sets the seconds after which requests to a target that went away fail.
    pub fn give_up_after(iqn: &str, seconds: u32) -> Result<()> {
        Ok(fs::write(session(iqn)?.join("recovery_tmo"), seconds.to_string())?)
    }

    /// True if the session with a target works.
    pub fn logged_in(iqn: &str) -> Result<bool> {
        Ok(fs::read_to_string(session(iqn)?.join("state"))?.trim() == "LOGGED_IN")
    }
}

/// The kernel's folder of the session with a target.
fn session(iqn: &str) -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/iscsi_session")? {
        let session = entry?.path();
        if fs::read_to_string(session.join("targetname"))?.trim() == iqn {
            return Ok(session);
        }
    }
    fail!("there is no session with {iqn}")
}

impl Drop for Iscsi {
    fn drop(&mut self) {
        if self.target.is_some() {
            let _ = iscsiadm(&["--mode", "node", "--logoutall=all"]);
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = self.kill_target();
        for folder in ["/etc/iscsi/nodes", "/etc/iscsi/send_targets"] {
            let _ = fs::remove_dir_all(folder);
            let _ = fs::create_dir_all(folder);
        }
    }
}

fn tgtadm(words: &[&str]) -> Result<()> {
    run(Command::new("/usr/sbin/tgtadm").args(["--lld", "iscsi", "--op"]).args(words))?;
    Ok(())
}

fn iscsiadm(words: &[&str]) -> Result<()> {
    run(Command::new("/sbin/iscsiadm").args(words))?;
    Ok(())
}

/// QEMU's image tool.
pub fn qemu_img(words: &[&str]) -> Result<String> {
    run(Command::new("/usr/bin/qemu-img").args(words))
}

/// What `qemu-img check` thinks of a qcow2 image.
#[derive(Clone, Copy, PartialEq)]
pub enum Verdict {
    /// All is well.
    Clean,
    /// Clusters that nothing refers to: space is lost, no data.
    Leaks,
}

/// Runs `qemu-img check`; a corrupt image is an error.
pub fn qemu_check(image: &Path) -> Result<Verdict> {
    let output = Command::new("/usr/bin/qemu-img").args(["check", "-f", "qcow2"]).arg(image).output()?;
    match output.status.code() {
        Some(0) => Ok(Verdict::Clean),
        Some(3) => Ok(Verdict::Leaks),
        _ => fail!(
            "qemu-img check of {}: {}: {}{}",
            image.display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

/// Fails unless `qemu-img check` finds nothing at all.
pub fn must_be_clean(image: &Path) -> Result<()> {
    check!(qemu_check(image)? == Verdict::Clean, "{} has leaked clusters", image.display());
    Ok(())
}

/// The KiB that a file really takes.
pub fn allocated_kib(file: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(file)?.blocks() / 2)
}
