//! Builds the initramfs images: the guest's and that of L1, the nested host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Archive;
use crate::packages::{Cache, Kernel, run};
use crate::{Result, fail};

/// The kernels that the tests boot as guests: label and Debian metapackage.
pub const GUEST_KERNELS: [(&str, &str); 2] =
    [("6.12", "linux-image-6.12-cloud-amd64"), ("6.1", "linux-image-cloud-amd64")];

const GUEST_MODULES: [&str; 2] = ["xen-blkfront", "xen-netfront"];
/// Modules that the guest's init does not load: a test does.
const GUEST_EXTRA_MODULES: [&str; 3] = ["xen-evtchn", "xen-gntdev", "xen-gntalloc"];
const L1_MODULES: [&str; 4] = ["kvm-amd", "tun", "bridge", "loop"];

/// Package, file in it, file in the folder of tools.
const TOOLS: [(&str, &str, &str); 9] = [
    ("xenstore-utils", "usr/bin/xenstore-ls", "bin/xenstore-ls"),
    ("xenstore-utils", "usr/bin/xenstore-read", "bin/xenstore-read"),
    ("xen-utils-4.17", "usr/lib/xen-4.17/bin/test-xenstore", "bin/test-xenstore"),
    ("libxenstore4", "usr/lib/x86_64-linux-gnu/libxenstore.so.4", "lib/libxenstore.so.4"),
    ("libxentoolcore1", "usr/lib/x86_64-linux-gnu/libxentoolcore.so.1", "lib/libxentoolcore.so.1"),
    ("grub-xen-host", "usr/lib/grub-xen/grub-i386-xen_pvh.bin", "grub-pvh"),
    ("seabios", "usr/share/seabios/bios-256k.bin", "bios.bin"),
    ("seabios", "usr/share/seabios/vgabios-stdvga.bin", "vgabios.bin"),
    ("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso", "grub.iso"),
];

/// The list of modules that an image's init loads.
pub const ORDER: &str = "/lib/modules/order";

/// The dynamic loader of x86-64.
pub const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// A boot sector, which GNU as and ld of the package binutils make.
const BOOT_SECTOR: &str = include_str!("../assets/pc-tables.S");

const GUEST_INIT: &str = include_str!("../assets/guest-init");
const L1_INIT: &str = include_str!("../assets/l1-init");

/// Builds the guest images, `guest/LABEL/{vmlinuz,initrd}` in the cache.
pub fn guests(cache: &Cache) -> Result<()> {
    for (label, package) in GUEST_KERNELS {
        let kernel = cache.kernel(package)?;
        let folder = cache.path("guest").join(label);
        let recipe = format!("{} {GUEST_MODULES:?} {GUEST_EXTRA_MODULES:?}\n{GUEST_INIT}", kernel.release);
        build_once(&folder, &recipe, || {
            eprintln!("building the guest's initrd, Linux {}", kernel.release);
            fs::copy(&kernel.image, folder.join("vmlinuz"))?;
            let mut archive = base(cache, GUEST_INIT)?;
            modules(&mut archive, ORDER, &kernel, &GUEST_MODULES, &GUEST_EXTRA_MODULES)?;
            // The kernel runs these two when the toolstack asks for a shutdown or a reboot.
            archive.file(
                "/sbin/poweroff",
                0o755,
                b"#!/bin/busybox sh\n/bin/busybox sync\n/bin/busybox poweroff -f\n",
            );
            archive.file(
                "/sbin/reboot",
                0o755,
                b"#!/bin/busybox sh\n/bin/busybox sync\n/bin/busybox reboot -f\n",
            );
            fs::write(folder.join("initrd"), archive.finish())?;
            Ok(())
        })?;
    }
    Ok(())
}

/// One of the kernels above.
pub fn kernel(cache: &Cache, label: &str) -> Result<Kernel> {
    match GUEST_KERNELS.iter().find(|(other, _)| *other == label) {
        Some((_, package)) => cache.kernel(package),
        None => fail!("there is no kernel {label}"),
    }
}

/// Builds the base of L1 for one of the kernels above, `l1/LABEL/{vmlinuz,base}` in the cache.
pub fn l1(cache: &Cache, label: &str) -> Result<PathBuf> {
    let kernel = kernel(cache, label)?;
    let folder = cache.path("l1").join(label);
    let recipe = format!("{} {L1_MODULES:?}\n{L1_INIT}", kernel.release);
    build_once(&folder, &recipe, || {
        eprintln!("building the nested host's initramfs, Linux {}", kernel.release);
        fs::copy(&kernel.image, folder.join("vmlinuz"))?;
        let mut archive = base(cache, L1_INIT)?;
        modules(&mut archive, ORDER, &kernel, &L1_MODULES, &[])?;
        fs::write(folder.join("base"), archive.finish())?;
        Ok(())
    })?;
    Ok(folder)
}

/// Makes the folder of other programs that the tests use, with `bin` and `lib`: Xen's own clients of
/// xenstore, GRUB as a PVH guest (`grub-pvh`) and on a CD-ROM, and the firmware of a PC.
pub fn tools(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.path("tools");
    build_once(&folder, &format!("{TOOLS:?}{BOOT_SECTOR}"), || {
        for (package, from, to) in TOOLS {
            let to = folder.join(to);
            fs::create_dir_all(to.parent().unwrap_or(&folder))?;
            fs::copy(cache.package(package)?.join(from), to)?;
        }
        boot_sector(BOOT_SECTOR, &folder.join("pc-tables.bin"))?;
        Ok(())
    })?;
    Ok(folder)
}

/// Makes the 512 bytes of a boot sector.
fn boot_sector(source: &str, to: &Path) -> Result<()> {
    let [text, object] = ["S", "o"].map(|suffix| to.with_extension(suffix));
    fs::write(&text, source)?;
    run(Command::new("as").arg("--32").arg("-o").arg(&object).arg(&text))?;
    run(Command::new("ld")
        .args(["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o"])
        .arg(to)
        .arg(&object))?;
    fs::remove_file(text)?;
    fs::remove_file(object)?;
    Ok(())
}

/// Adds a program and the shared libraries that it needs.
pub fn program(archive: &mut Archive, path: &str, program: &Path) -> Result<()> {
    let stripped = std::env::temp_dir().join(format!("xvmm-tests-{}.stripped", std::process::id()));
    let data = match run(Command::new("strip").arg("-o").arg(&stripped).arg(program)) {
        Ok(_) => fs::read(&stripped)?,
        Err(_) => fs::read(program)?,
    };
    let _ = fs::remove_file(&stripped);
    archive.file(path, 0o755, &data);
    archive.copy(LOADER, Path::new(LOADER))?;
    // The loader refuses a static program: it needs nothing. (ldd asks the loader too, but the nested host
    // has no bash for it.)
    let libraries = program.with_file_name("../lib");
    let mut list = Command::new(LOADER);
    list.arg("--list").arg(program).env("LD_LIBRARY_PATH", &libraries);
    for line in run(&mut list).unwrap_or_default().lines() {
        if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/'))
            && !Path::new(library).starts_with(&libraries)
        {
            archive.copy(library, Path::new(library))?;
        }
    }
    Ok(())
}

/// Adds a program; its libraries come from `folders` or from this machine, and go where the loader looks for them.
pub fn linked_program(archive: &mut Archive, path: &str, program: &Path, folders: &[PathBuf]) -> Result<()> {
    let places: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let mut list = Command::new(LOADER);
    list.arg("--list").arg(program).env("LD_LIBRARY_PATH", places.join(":"));
    for line in run(&mut list)?.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some("=>"), Some(file)) = (words.next(), words.next(), words.next()) {
            archive.copy_once(&format!("/lib/x86_64-linux-gnu/{name}"), Path::new(file))?;
        }
    }
    archive.copy_once(LOADER, Path::new(LOADER))?;
    let stripped = std::env::temp_dir().join(format!("xvmm-tests-{}.stripped", std::process::id()));
    run(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    archive.file(path, 0o755, &fs::read(&stripped)?);
    fs::remove_file(stripped)?;
    Ok(())
}

/// What every image begins with: busybox, device nodes, and the given /init.
pub fn base(cache: &Cache, init: &str) -> Result<Archive> {
    base_of(&cache.package("busybox-static")?.join("bin/busybox"), init)
}

/// The same with this busybox.
pub fn base_of(busybox: &Path, init: &str) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["/bin", "/sbin", "/dev", "/proc", "/sys", "/tmp", "/run", "/etc", "/mnt", "/root"] {
        archive.directory(folder);
    }
    archive.character_device("/dev/console", 5, 1);
    archive.character_device("/dev/null", 1, 3);
    archive.copy("/bin/busybox", busybox)?;
    for applet in run(Command::new(busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        archive.symlink(&format!("/bin/{applet}"), "busybox");
    }
    archive.file("/init", 0o755, init.as_bytes());
    archive.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("/etc/group", 0o644, b"root:x:0:\n");
    Ok(archive)
}

/// Adds kernel modules; `names` are listed in the file `list`, in the order of loading.
pub fn modules(
    archive: &mut Archive,
    list: &str,
    kernel: &Kernel,
    names: &[&str],
    extra: &[&str],
) -> Result<()> {
    let loaded = kernel.modules(names)?;
    let order: Vec<&str> = loaded.iter().map(|(name, _)| name.as_str()).collect();
    archive.file(list, 0o644, format!("{}\n", order.join("\n")).as_bytes());
    let all: Vec<&str> = names.iter().chain(extra).copied().collect();
    for (name, data) in kernel.modules(&all)? {
        archive.file(&format!("/lib/modules/{name}.ko"), 0o644, &data);
    }
    Ok(())
}

/// Runs `build` unless the folder was built from the same recipe before.
pub fn build_once(folder: &Path, recipe: &str, build: impl FnOnce() -> Result<()>) -> Result<()> {
    let stamp = folder.join("recipe");
    if fs::read_to_string(&stamp).is_ok_and(|built| built == recipe) {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let _ = fs::remove_file(&stamp);
    build()?;
    fs::write(stamp, recipe)?;
    Ok(())
}
