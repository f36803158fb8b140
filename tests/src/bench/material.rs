//! What the benchmarks need: QEMU 10, the kernel in both forms, the guest's initrds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Archive;
use crate::packages::{Apt, Cache, run};
use crate::{Result, fail, formats, images};

const INIT: &str = include_str!("../../assets/bench-init");
const GUEST_KERNEL: &str = "linux-image-6.12-cloud-amd64";
const GUEST_MODULES: [&str; 5] = ["xen-blkfront", "xen-netfront", "virtio_mmio", "virtio_blk", "virtio_net"];

/// Where QEMU 10 comes from: Debian 12's own is older than what the nested host's kernel is compared with.
const SOURCES: &str = "\
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main
";
const QEMU_PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];
/// Firmware and option ROMs that the machines of `peers` load.
const ROMS: [&str; 6] = [
    "bios-256k.bin",
    "bios-microvm.bin",
    "pvh.bin",
    "linuxboot_dma.bin",
    "kvmvapic.bin",
    "multiboot_dma.bin",
];

/// What was made.
pub struct Material {
    /// `vmlinuz`, `vmlinux`, `initrd`, `initrd-load`, `qemu/`.
    pub folder: PathBuf,
    /// The guest's kernel release.
    pub release: String,
    /// What QEMU says of its version.
    pub qemu: String,
    /// The driver of the host's RAM disk.
    pub ram_disk_module: PathBuf,
}

/// Makes everything that is not in the cache yet.
pub fn build(cache: &Cache) -> Result<Material> {
    let folder = cache.path("bench");
    fs::create_dir_all(&folder)?;
    let kernel = cache.kernel(GUEST_KERNEL)?;
    fs::copy(&kernel.image, folder.join("vmlinuz"))?;
    fs::copy(formats::build(cache)?.join("elf"), folder.join("vmlinux"))?;

    let mut archive = images::base(cache, INIT)?;
    images::modules(&mut archive, images::ORDER, &kernel, &GUEST_MODULES, &[])?;
    let base = archive.finish();
    let mut overlay = Archive::default();
    images::program(&mut overlay, "/bin/xvmm-tests", &std::env::current_exe()?)?;
    let load = [base.clone(), overlay.finish()].concat();
    fs::write(folder.join("initrd"), clear_of_tables(base))?;
    fs::write(folder.join("initrd-load"), clear_of_tables(load))?;

    let ram_disk_module = cache.path("brd.ko");
    match kernel.modules(&["brd"])?.pop() {
        Some((_, module)) => fs::write(&ram_disk_module, module)?,
        None => return fail!("the kernel {} has no RAM disk", kernel.release),
    }
    let qemu = qemu(cache, &folder.join("qemu"))?;
    Ok(Material { folder, release: kernel.release, qemu, ram_disk_module })
}

/// QEMU's microvm loads the initrd of an ELF kernel up to the end of RAM, where its ACPI tables are as well:
/// they survive if the initrd's last page is mostly empty. Zeros behind an archive are harmless.
fn clear_of_tables(mut initrd: Vec<u8>) -> Vec<u8> {
    initrd.resize(initrd.len().next_multiple_of(4096) + 512, 0);
    initrd
}

/// Makes the folder with QEMU (`bin`, `lib`, `share`), and returns its version.
fn qemu(cache: &Cache, folder: &Path) -> Result<String> {
    images::build_once(folder, &format!("{SOURCES}{QEMU_PACKAGES:?}{ROMS:?}"), || {
        let root = unpack_qemu(cache)?;
        for sub in ["bin", "lib", "share"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        for rom in ROMS {
            let places = ["usr/share/qemu", "usr/share/seabios"].map(|place| root.join(place).join(rom));
            match places.iter().find(|place| place.is_file()) {
                Some(place) => fs::copy(place, folder.join("share").join(rom))?,
                None => return fail!("the packages of QEMU have no {rom}"),
            };
        }
        let program = root.join("usr/bin/qemu-system-x86_64");
        let library_path = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .map(|place| root.join(place).display().to_string())
            .join(":");
        let mut list = Command::new(images::LOADER);
        list.arg("--list").arg(&program).env("LD_LIBRARY_PATH", library_path);
        for line in run(&mut list)?.lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some("=>"), Some(file)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            fs::copy(file, folder.join("lib").join(name))
                .map_err(|error| format!("QEMU wants the library {line}: {error}"))?;
        }
        run(Command::new("strip").arg("-o").arg(folder.join("bin/qemu-system-x86_64")).arg(&program))?;
        Ok(())
    })?;
    let version = run(Command::new(folder.join("bin/qemu-system-x86_64"))
        .arg("--version")
        .env("LD_LIBRARY_PATH", folder.join("lib")))?;
    Ok(version.lines().next().unwrap_or_default().to_owned())
}

/// Downloads QEMU and the packages that this machine lacks for it, by lists of our own, and unpacks them.
/// Nothing is installed.
fn unpack_qemu(cache: &Cache) -> Result<PathBuf> {
    eprintln!("fetching QEMU 10 from bookworm-backports");
    let apt = Apt::new(cache, "apt", SOURCES)?;
    apt.run(&["update"])?;
    let mut words = vec!["install", "--download-only", "--reinstall", "--no-install-recommends"];
    words.extend(["-t", "bookworm-backports"]);
    words.extend(QEMU_PACKAGES);
    apt.run(&words)?;
    let root = cache.path("apt/root");
    fs::create_dir_all(&root)?;
    for entry in fs::read_dir(apt.archives())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&root))?;
        }
    }
    Ok(root)
}
