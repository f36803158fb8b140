//! The disk of a PC whose Debian goes on with PV drivers: GRUB, the kernel and its initramfs, and a root file system.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages::{Cache, run};
use crate::{Result, check, fail, grub, images};

/// Drivers of the PV devices, and those that would find the emulated ones.
const MODULES: [&str; 5] = ["xen-blkfront", "xen-netfront", "ata_piix", "sd_mod", "sr_mod"];

const INIT: &str = include_str!("../assets/pvhvm-init");
const GUEST_INIT: &str = include_str!("../assets/guest-init");

/// Room for more words of the kernel's command line, see [`add_words`].
const ROOM: &str =
    "xvmm.room=                                                                                ";

/// MiB of the disk.
const SIZE: u64 = 64;

/// Builds the disks, `pvhvm/LABEL.img` in the cache, for all kernels that guests have.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.path("pvhvm");
    fs::create_dir_all(&folder)?;
    for (label, package) in images::GUEST_KERNELS {
        let kernel = cache.kernel(package)?;
        let work = folder.join(label);
        let image = folder.join(format!("{label}.img"));
        let recipe = format!("{} {MODULES:?} {ROOM:?} {SIZE}\n{INIT}\n{GUEST_INIT}", kernel.release);
        images::build_once(&work, &recipe, || {
            eprintln!("building the disk of a PC with PV drivers, Linux {}", kernel.release);
            let tree = work.join("tree");
            let _ = fs::remove_dir_all(&tree);
            fs::create_dir_all(tree.join("boot/grub"))?;
            root(cache, &tree)?;
            fs::copy(&kernel.image, tree.join("boot/vmlinuz"))?;
            let mut archive = images::base(cache, INIT)?;
            images::modules(&mut archive, images::ORDER, &kernel, &MODULES, &[])?;
            fs::write(tree.join("boot/initrd"), archive.finish())?;
            let words = "console=hvc0 quiet panic=-1 mitigations=off xvmm.agent";
            let config = format!("linux /boot/vmlinuz {words} {ROOM}\ninitrd /boot/initrd\nboot\n");
            fs::write(tree.join("boot/grub/grub.cfg"), config)?;
            grub::disk(cache, &tree, SIZE, &image)?;
            fs::remove_dir_all(&tree)?;
            Ok(())
        })?;
    }
    Ok(folder)
}

/// The root file system: busybox, and the agent of the tests as init.
fn root(cache: &Cache, tree: &Path) -> Result<()> {
    for folder in ["bin", "sbin", "dev", "proc", "sys", "tmp", "run", "etc", "mnt", "root", "lib/modules"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    let busybox = cache.package("busybox-static")?.join("bin/busybox");
    fs::copy(&busybox, tree.join("bin/busybox"))?;
    for applet in run(Command::new(&busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", tree.join("bin").join(applet))?;
    }
    let script = |path: &str, text: &str| -> Result<()> {
        fs::write(tree.join(path), text)?;
        Ok(fs::set_permissions(tree.join(path), fs::Permissions::from_mode(0o755))?)
    };
    script("sbin/init", GUEST_INIT)?;
    // The kernel runs these two when the toolstack asks for a shutdown or a reboot.
    for word in ["poweroff", "reboot"] {
        script(&format!("sbin/{word}"), &format!("#!/bin/sh\n/bin/sync\n/bin/busybox {word} -f\n"))?;
    }
    // Its drivers are loaded before.
    fs::write(tree.join("lib/modules/order"), "")?;
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(tree.join("etc/issue"), "the root file system of a PC\n")?;
    Ok(())
}

/// Adds words to the kernel's command line on a copy of such a disk. They stand in the middle of a file of its file
/// system, whose length stays.
pub fn add_words(disk: &Path, words: &str) -> Result<()> {
    check!(words.len() < ROOM.len(), "no room for `{words}`");
    let mut bytes = fs::read(disk)?;
    let Some(at) = bytes.windows(ROOM.len()).position(|window| window == ROOM.as_bytes()) else {
        return fail!("{} has no room for words of the command line", disk.display());
    };
    let text = format!("{words:<width$}", width = ROOM.len());
    if let Some(room) = bytes.get_mut(at..at + ROOM.len()) {
        room.copy_from_slice(text.as_bytes());
    }
    Ok(fs::write(disk, bytes)?)
}
