//! PCs: guests with firmware.

pub mod linux;
pub mod screen;
pub mod tables;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{Bench, tool_file};
use crate::{Result, check, fail, guest};

/// Firmware, and what it starts, take so long at most.
const LIMIT: Duration = Duration::from_secs(300);

/// What xvmm says then.
const REBOOT: &str = "the guest reboots";

/// A running xvmm, which does not outlive this value.
struct Pc(Child);

impl Drop for Pc {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the log has all of `lines`, since the last reboot.
fn wait_for(log: &Path, lines: &[&str]) -> Result<()> {
    let end = Instant::now() + LIMIT;
    loop {
        let text = fs::read_to_string(log)?;
        let text = text.rsplit(REBOOT).next().unwrap_or_default();
        match lines.iter().find(|line| !text.contains(**line)) {
            None => return Ok(()),
            Some(line) if Instant::now() > end => {
                return fail!("the log has no line with `{line}`");
            }
            Some(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The firmware finds its drives and boots a CD-ROM, whose menu is on the screen; what is typed there is taken: GRUB reboots
/// the PC, and powers it off by the ACPI tables that it has read.
pub fn grub(bench: &Bench) -> Result<()> {
    let disk = bench.disk("a.img", 32 << 20)?;
    let log = bench.folder.join("pc.log");
    let mut command = guest::xvmm(&bench.folder);
    command.args(["--hvm", "--name", "pc", "--memory", "64M", "--boot", "dc", "--console", "null", "-vv"]);
    command.arg("--bios").arg(tool_file("bios.bin")).arg("--vgabios").arg(tool_file("vgabios.bin"));
    command.arg("--disk").arg(&disk).arg("--cdrom").arg(tool_file("grub.iso"));
    let mut pc = Pc(command.stdin(Stdio::null()).stderr(File::create(&log)?).spawn()?);
    for (round, word) in ["reboot", "halt"].into_iter().enumerate() {
        let drives = ["ata0-0: xvmm disk", "DVD/CD [ata1-0: xvmm CD-ROM", "Booting from 0000:7c00"];
        wait_for(&log, &drives)?;
        check!(bench.domains()?.len() == 1, "the domains are {:?}", bench.domains()?);
        let before = bench.domains()?;
        menu(bench)?;
        let mut keys = vec!["c".to_owned()];
        keys.extend(word.chars().map(String::from));
        keys.push("ret".to_owned());
        for key in &keys {
            bench.xvmm(&["sendkey", "pc", key])?;
            // The firmware keeps sixteen keys until GRUB asks for them.
            std::thread::sleep(Duration::from_millis(300));
        }
        let end = Instant::now() + LIMIT;
        if round == 0 {
            while bench.domains()? == before {
                check!(Instant::now() < end, "GRUB did not reboot the PC");
                std::thread::sleep(Duration::from_millis(100));
            }
            continue;
        }
        let status = loop {
            if let Some(status) = pc.0.try_wait()? {
                break status;
            }
            check!(Instant::now() < end, "GRUB did not power the PC off");
            std::thread::sleep(Duration::from_millis(100));
        };
        check!(status.success(), "xvmm ended with {status}");
    }
    bench.nothing_is_left()
}

/// Waits until the screen does not change any more but by its countdown: then it has the menu, and so most of a page of
/// text.
fn menu(bench: &Bench) -> Result<()> {
    let picture = bench.folder.join("screen.png");
    let end = Instant::now() + LIMIT;
    loop {
        let path = picture.display().to_string();
        bench.xvmm(&["screenshot", "pc", &path])?;
        // A picture of the firmware's few lines is half as large as that of the menu with its frame.
        if fs::metadata(&picture)?.len() > MENU_BYTES {
            return Ok(());
        }
        check!(Instant::now() < end, "there is no menu on the screen");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Bytes of a picture that shows the menu.
const MENU_BYTES: u64 = 20_000;
