//! The disk of a PC with a 32-bit Debian: GRUB in its first sectors, a tar archive with kernel and initramfs as its
//! partition.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Archive;
use crate::images::{self, ORDER, build_once};
use crate::packages::{Cache, run};
use crate::{Result, fail};

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
/// What GRUB does: there is no menu and no file of configuration.
const GRUB: &str = "\
linux (hd0,msdos1)/vmlinuz console=ttyS0,115200 quiet panic=-1 mitigations=off
initrd (hd0,msdos1)/initrd
boot
";
const GRUB_MODULES: [&str; 6] = ["biosdisk", "part_msdos", "tar", "linux", "boot", "minicmd"];
const SECTOR: usize = 512;
/// Sector of the partition.
const PARTITION: u32 = 2048;

/// Makes `disk.img`, and returns its folder.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.path("pc");
    let kernel = cache.foreign_kernel(KERNEL)?;
    let recipe = format!("{} {MODULES:?} {TOOLS:?} {GRUB_MODULES:?}\n{INIT}{GRUB}", kernel.release);
    build_once(&folder, &recipe, || {
        eprintln!("building the disk of a PC, Linux {}", kernel.release);
        let files = folder.join("files");
        fs::create_dir_all(&files)?;
        fs::copy(&kernel.image, files.join("vmlinuz"))?;
        let busybox = cache.foreign("busybox-static")?.join("bin/busybox");
        let mut archive = images::base_of(&busybox, INIT)?;
        let modules: Vec<&str> = MODULES.into_iter().filter(|name| kernel.has(name)).collect();
        images::modules(&mut archive, ORDER, &kernel, &modules, &[])?;
        programs(cache, &mut archive)?;
        fs::write(files.join("initrd"), archive.finish())?;
        let tar = folder.join("partition.tar");
        run(Command::new("tar")
            .args(["--format=ustar", "-cf"])
            .arg(&tar)
            .arg("-C")
            .arg(&files)
            .args(["vmlinuz", "initrd"]))?;
        fs::write(folder.join("disk.img"), disk(&grub(cache, &folder)?, &fs::read(&tar)?)?)?;
        fs::remove_file(tar)?;
        Ok(fs::remove_dir_all(files)?)
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

/// GRUB's first sector, and what that one loads from the sectors behind it.
fn grub(cache: &Cache, folder: &Path) -> Result<Vec<u8>> {
    let modules = cache.package("grub-pc-bin")?.join("usr/lib/grub/i386-pc");
    let config = folder.join("grub.cfg");
    fs::write(&config, GRUB)?;
    let core = folder.join("core.img");
    let mut command = Command::new(cache.package("grub-common")?.join("usr/bin/grub-mkimage"));
    let libraries = cache.libraries("libdevmapper1.02.1")?;
    let libraries: Vec<String> = libraries.iter().map(|place| place.display().to_string()).collect();
    command.env("LD_LIBRARY_PATH", libraries.join(":"));
    command.args(["-O", "i386-pc", "-p", "(hd0,msdos1)/", "-d"]).arg(&modules).arg("-c").arg(&config);
    run(command.arg("-o").arg(&core).args(GRUB_MODULES))?;
    let mut sectors = fs::read(modules.join("boot.img"))?;
    sectors.resize(SECTOR, 0);
    sectors.extend(fs::read(&core)?);
    Ok(sectors)
}

/// A disk with one partition.
fn disk(grub: &[u8], partition: &[u8]) -> Result<Vec<u8>> {
    let sectors = u32::try_from(partition.len().div_ceil(SECTOR))?;
    let mut disk = grub.to_vec();
    if disk.len() > PARTITION as usize * SECTOR {
        return fail!("GRUB has {} bytes, more than there is room for before the partition", disk.len());
    }
    // Active, of Linux; cylinders, heads and sectors are left to LBA.
    let mut entry = vec![0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff];
    entry.extend(PARTITION.to_le_bytes());
    entry.extend(sectors.to_le_bytes());
    entry.resize(64, 0);
    entry.extend([0x55, 0xaa]);
    disk.splice(446..SECTOR, entry);
    disk.resize(PARTITION as usize * SECTOR, 0);
    disk.extend(partition);
    disk.resize(disk.len().next_multiple_of(1 << 20), 0);
    Ok(disk)
}
