//! The disk of a PC with a 32-bit Debian: GRUB, the kernel and its initramfs.

use std::fs;
use std::path::PathBuf;

use crate::cpio::Archive;
use crate::images::{self, ORDER, build_once};
use crate::packages::Cache;
use crate::{Result, grub};

/// Debian's metapackage of the kernel.
const KERNEL: &str = "linux-image-686";
const MODULES: [&str; 10] =
    ["ata_piix", "sd_mod", "sr_mod", "i8042", "atkbd", "psmouse", "evdev", "button", "isofs", "rtc-cmos"];
const INIT: &str = include_str!("../assets/pc-init");
const TOOLS: [&str; 2] = ["acpidump", "iasl"];
const LIBRARIES: [(&str, &str); 2] = [
    ("/lib/ld-linux.so.2", "lib/i386-linux-gnu/ld-linux.so.2"),
    ("/lib/i386-linux-gnu/libc.so.6", "lib/i386-linux-gnu/libc.so.6"),
];
/// GRUB's configuration.
const GRUB: &str = "\
linux /boot/vmlinuz console=ttyS0,115200 quiet panic=-1 mitigations=off
initrd /boot/initrd
boot
";
/// MiB of the disk.
const SIZE: u64 = 24;

/// Makes `disk.img`, and returns its folder.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.path("pc");
    let kernel = cache.foreign_kernel(KERNEL)?;
    let recipe = format!("{} {MODULES:?} {TOOLS:?} {SIZE}\n{INIT}{GRUB}", kernel.release);
    build_once(&folder, &recipe, || {
        eprintln!("building the disk of a PC, Linux {}", kernel.release);
        let tree = folder.join("tree");
        fs::create_dir_all(tree.join("boot/grub"))?;
        fs::copy(&kernel.image, tree.join("boot/vmlinuz"))?;
        let busybox = cache.foreign("busybox-static")?.join("bin/busybox");
        let mut archive = images::base_of(&busybox, INIT)?;
        let modules: Vec<&str> = MODULES.into_iter().filter(|name| kernel.has(name)).collect();
        images::modules(&mut archive, ORDER, &kernel, &modules, &[])?;
        programs(cache, &mut archive)?;
        fs::write(tree.join("boot/initrd"), archive.finish())?;
        fs::write(tree.join("boot/grub/grub.cfg"), GRUB)?;
        grub::disk(cache, &tree, SIZE, &folder.join("disk.img"))?;
        Ok(fs::remove_dir_all(tree)?)
    })?;
    Ok(folder)
}

fn programs(cache: &Cache, archive: &mut Archive) -> Result<()> {
    let acpica = cache.foreign("acpica-tools")?;
    for name in TOOLS {
        archive.copy(&format!("/bin/{name}"), &acpica.join("usr/bin").join(name))?;
    }
    let libc = cache.foreign("libc6")?;
    for (to, from) in LIBRARIES {
        archive.copy(to, &libc.join(from))?;
    }
    Ok(())
}
