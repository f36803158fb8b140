//! `try`: a guest with a shell, for whoever looks at xvmm for the first time.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::cpio::Archive;
use crate::driver::{self, Place};
use crate::nested::Host;
use crate::packages::{Cache, run};
use crate::{Result, fail, images, runner};

/// The guest's disk, in MiB.
const DISK_MIB: u32 = 32;
const COMMAND_LINE: &str = "console=hvc0 quiet";
const NOTE: &str = "This file is on the disk image that xvmm gives to the guest as xvda.\n";

/// Starts a guest with a disk and an interface on `xenbr0`, its console on this terminal.
pub fn demo(words: &[String]) -> Result<ExitCode> {
    let wanted = match words {
        [] => None,
        [word] if word == "--nested" => Some(Place::Nested),
        [word] if word == "--direct" => Some(Place::Direct),
        _ => return fail!("usage: tests/try [--nested | --direct]"),
    };
    let xvmm = driver::program_under_test()?;
    let place = match wanted {
        Some(place) => place,
        None => driver::choose_place(&xvmm)?,
    };
    eprintln!("{place}");
    let cache = Cache::open()?;
    images::guests(&cache)?;
    let disk = disk(&cache)?;
    let initrd = initrd(&cache)?;
    match place {
        Place::Direct => direct(&cache, &xvmm, &disk, &initrd),
        Place::Nested => nested(&cache, xvmm, disk, initrd),
    }
}

fn direct(cache: &Cache, xvmm: &PathBuf, disk: &PathBuf, initrd: &PathBuf) -> Result<ExitCode> {
    runner::isolate()?;
    run(Command::new("ip").args(["link", "add", "xenbr0", "type", "bridge"]))?;
    run(Command::new("ip").args(["addr", "add", "10.0.0.1/24", "dev", "xenbr0"]))?;
    run(Command::new("ip").args(["link", "set", "xenbr0", "up"]))?;
    let material = cache.path("guest/6.12");
    let mut command = Command::new(xvmm);
    command
        .arg("--kernel")
        .arg(material.join("vmlinuz"))
        .arg("--initrd")
        .arg(initrd)
        .args(["--cmdline", COMMAND_LINE, "--console", "tty", "--net", "xenbr0", "--disk"])
        .arg(disk);
    Err(command.exec().into())
}

fn nested(cache: &Cache, xvmm: PathBuf, disk: PathBuf, initrd: PathBuf) -> Result<ExitCode> {
    eprintln!("an emulated machine starts, and the guest in it: this takes about half a minute");
    let script = format!(
        "dmesg -n 1\nbrctl addbr xenbr0\nip addr add 10.0.0.1/24 dev xenbr0\nip link set xenbr0 up\n\
         setsid cttyhack /usr/bin/xvmm --kernel /tests/guest/6.12/vmlinuz --initrd /tests/initrd \
         --cmdline '{COMMAND_LINE}' --console tty --net xenbr0 --disk /tests/disk.img\n\
         poweroff -f\nsleep 10\n"
    );
    let mut host = Host::new(cache, script)?;
    host.programs.push(("/usr/bin/xvmm".to_owned(), xvmm));
    host.files.push(("/tests/disk.img".to_owned(), disk));
    host.files.push(("/tests/initrd".to_owned(), initrd));
    host.interactive = true;
    let status = host.start(cache)?.child.wait()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The guest's initrd with this host's `lsblk`, which busybox has not.
fn initrd(cache: &Cache) -> Result<PathBuf> {
    let mut overlay = Archive::default();
    images::program(&mut overlay, "/bin/lsblk", Path::new("/usr/bin/lsblk"))?;
    let path = cache.path("try.initrd");
    fs::write(&path, [fs::read(cache.path("guest/6.12/initrd"))?, overlay.finish()].concat())?;
    Ok(path)
}

/// A small ext4 image with a file in it, made without mounting anything.
fn disk(cache: &Cache) -> Result<PathBuf> {
    let (content, image) = (cache.path("disk"), cache.path("disk.img"));
    fs::create_dir_all(&content)?;
    fs::write(content.join("README"), NOTE)?;
    let _ = fs::remove_file(&image);
    run(Command::new("mkfs.ext4")
        .args(["-q", "-L", "xvmm", "-d"])
        .arg(&content)
        .arg(&image)
        .arg(format!("{DISK_MIB}M")))?;
    Ok(image)
}
