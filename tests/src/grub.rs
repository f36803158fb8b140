//! Disks that a BIOS boots: GRUB in front of the first partition, and in it a file system with GRUB's configuration.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages::{Cache, run};
use crate::{Result, check, images};

/// What is in GRUB's image, so that it needs no files of its own but `/boot/grub/grub.cfg`.
const MODULES: [&str; 12] = [
    "biosdisk",
    "part_msdos",
    "ext2",
    "normal",
    "configfile",
    "linux",
    "linux16",
    "boot",
    "echo",
    "test",
    "serial",
    "halt",
];
const SECTOR: u64 = 512;
/// Where the first partition begins, in sectors. GRUB's image lies before it, from the second sector on.
const PARTITION: u64 = 2048;
/// Code in the first sector, before the disk's signature and the table of partitions.
const BOOT_CODE: usize = 440;
const TABLE: u64 = 446;
const LINUX: u8 = 0x83;

/// Makes the images of GRUB: the first sector and the rest.
fn grub(cache: &Cache) -> Result<[PathBuf; 2]> {
    let folder = cache.path("grub-pc");
    let (boot, core) = (folder.join("boot.img"), folder.join("core.img"));
    images::build_once(&folder, &format!("{MODULES:?}"), || {
        let platform = cache.package("grub-pc-bin")?.join("usr/lib/grub/i386-pc");
        let program = cache.package("grub-common")?.join("usr/bin/grub-mkimage");
        let libraries = cache.libraries("libdevmapper1.02.1")?.map(|path| path.display().to_string());
        fs::copy(platform.join("boot.img"), &boot)?;
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        command.args(["-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-d"]).arg(&platform);
        run(command.arg("-o").arg(&core).args(MODULES))?;
        Ok(())
    })?;
    Ok([boot, core])
}

/// Makes a disk image of `mib` MiB, whose first partition is an ext4 file system with the files of `tree`.
pub fn disk(cache: &Cache, tree: &Path, mib: u64, to: &Path) -> Result<()> {
    let [boot, core] = grub(cache)?;
    let (boot, core) = (fs::read(boot)?, fs::read(core)?);
    check!((core.len() as u64) < (PARTITION - 1) * SECTOR, "GRUB's image has {} bytes", core.len());
    let sectors = (mib << 20) / SECTOR - PARTITION;
    let mut file = File::create(to)?;
    file.set_len(mib << 20)?;
    file.write_all(boot.get(..BOOT_CODE).unwrap_or(&boot))?;
    file.seek(SeekFrom::Start(TABLE))?;
    // Active; the places by cylinder, head and sector are not used.
    let mut entry = vec![0x80, 0xfe, 0xff, 0xff, LINUX, 0xfe, 0xff, 0xff];
    entry.extend(u32::try_from(PARTITION)?.to_le_bytes());
    entry.extend(u32::try_from(sectors)?.to_le_bytes());
    file.write_all(&entry)?;
    file.seek(SeekFrom::Start(SECTOR - 2))?;
    file.write_all(&[0x55, 0xaa])?;
    file.write_all(&core)?;
    drop(file);
    let mut command = Command::new("mke2fs");
    // Features that GRUB 2.06 cannot read are left out, whatever this machine's defaults are.
    command.args(["-q", "-F", "-t", "ext4", "-O", "^metadata_csum_seed,^orphan_file", "-d"]).arg(tree);
    command.args(["-E", &format!("offset={}", PARTITION * SECTOR)]).arg(to);
    run(command.arg(format!("{}k", sectors / 2)).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin"))?;
    Ok(())
}
