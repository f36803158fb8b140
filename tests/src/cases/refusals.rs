//! What cannot work is refused with one sentence and an exit status of its own, and leaves nothing behind.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Bench;
use crate::guest::Spec;
use crate::packages::run;
use crate::{Result, check, fail};

/// One refused start: its exit status, and what the sentence must name.
struct Refusal {
    name: &'static str,
    status: i32,
    words: &'static [&'static str],
    spec: Spec,
}

/// The table: everything that is wrong with the description or the host, but KVM.
pub fn refusals(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let files = Files::make(bench)?;
    let plain = || bench.guest();
    let refusal = |name, status, words, spec| Refusal { name, status, words, spec };
    let table = [
        refusal("no such kernel", 10, &["--kernel", "/no/such"], plain().kernel("/no/such")),
        refusal("a kernel that is a directory", 10, &["--kernel"], plain().kernel(&bench.folder)),
        refusal("not a kernel", 11, &["text"], plain().kernel(files.path("text"))),
        refusal("a truncated bzImage", 12, &["short"], plain().kernel(files.path("short"))),
        refusal("a corrupt payload", 13, &["corrupt"], plain().kernel(files.path("corrupt"))),
        refusal("no PVH note", 14, &["plain-elf", "PVH"], plain().kernel(files.path("plain-elf"))),
        refusal("no such initrd", 15, &["--initrd"], plain().initrd(Some("/no/such".into()))),
        refusal(
            "an initrd larger than memory",
            16,
            &["large", "--memory"],
            plain().initrd(Some(files.path("large"))),
        ),
        refusal(
            "an initrd that leaves no room",
            16,
            &["tight", "--memory"],
            plain().initrd(Some(files.path("tight"))),
        ),
        refusal("too little memory", 17, &["--memory"], plain().memory("1M")),
        refusal("no number of memory", 2, &["--memory"], plain().memory("lots")),
        refusal("no vCPU", 18, &["--vcpus"], plain().vcpus(0)),
        refusal("more vCPUs than there can be", 18, &["--vcpus"], plain().vcpus(5000)),
        refusal("no such disk", 20, &["--disk", "/no/such"], plain().disk("/no/such")),
        refusal("a disk that is a directory", 21, &["--disk"], plain().disk(bench.folder.display())),
        refusal("an empty disk", 22, &["empty"], plain().disk(files.text("empty"))),
        refusal("a disk of half a sector", 23, &["odd", "512"], plain().disk(files.text("odd"))),
        refusal("a disk that cannot be written", 24, &["fixed"], plain().disk(files.text("fixed/disk"))),
        refusal(
            "two disks with one name",
            26,
            &["xvda"],
            plain().disk(files.text("disk")).disk(format!("{},vdev=xvda", files.text("other"))),
        ),
        refusal(
            "an unknown key of a disk",
            28,
            &["colour"],
            plain().disk(format!("{},colour=blue", files.text("disk"))),
        ),
        refusal("an unknown key of an interface", 28, &["colour"], plain().net("xenbr0,colour=blue")),
        refusal("no such bridge", 30, &["--net", "nobr0"], plain().net("nobr0")),
        refusal("not a bridge", 31, &["lo", "bridge"], plain().net("lo")),
        refusal("an address that is none", 32, &["mac"], plain().net("xenbr0,mac=00:16:3e:zz:00:01")),
        refusal("a multicast address", 32, &["multicast"], plain().net("xenbr0,mac=01:16:3e:00:00:01")),
        refusal("an unknown option", 2, &["--colour"], plain().argument("--colour", "blue")),
    ];
    let mut report = Report::default();
    for refusal in table {
        report.add(bench, &refusal, Some(0))?;
    }

    let disk = files.text("disk");
    let mut guest = plain().name("first").disk(&disk).net("xenbr0").start()?;
    for refusal in [
        refusal("a name that is taken", 50, &["first"], plain().name("first")),
        refusal("a disk in use", 25, &["disk", "first"], plain().disk(&disk)),
    ] {
        report.add(bench, &refusal, None)?;
    }
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()?;

    // /dev/kvm, from here on in this test's own view of the files.
    run(Command::new("mount").args(["--bind", "/dev/null", "/dev/kvm"]))?;
    report.add(bench, &refusal("a /dev/kvm that is not KVM", 42, &["/dev/kvm"], plain()), Some(0))?;
    run(Command::new("umount").arg("/dev/kvm"))?;
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/dev"]))?;
    for (node, major, minor) in [(c"/dev/null", 1, 3), (c"/dev/urandom", 1, 9), (c"/dev/tty", 5, 0)] {
        make_node(node, 0o666, major, minor)?;
    }
    report.add(bench, &refusal("no /dev/kvm", 40, &["/dev/kvm"], plain()), Some(0))?;
    make_node(c"/dev/kvm", 0o600, 10, 232)?;
    std::os::unix::fs::chown(bench.run_folder(), Some(NOBODY), Some(NOBODY))?;
    report.add_as(bench, &refusal("a forbidden /dev/kvm", 41, &["/dev/kvm"], plain()), Some(0), NOBODY)?;
    report.finish()
}

/// Makes a character device; no program could be started for it while /dev/null is missing.
fn make_node(path: &CStr, mode: u32, major: u32, minor: u32) -> Result<()> {
    // SAFETY: the path is a string with its zero.
    if unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | mode, libc::makedev(major, minor)) } != 0 {
        return fail!("cannot make {}: {}", path.to_string_lossy(), std::io::Error::last_os_error());
    }
    Ok(fs::set_permissions(path.to_string_lossy().as_ref(), fs::Permissions::from_mode(mode))?)
}

/// A KVM without support for Xen guests is named as such. In the nested host with an older kernel.
pub fn without_xen(bench: &Bench) -> Result<()> {
    let refusal =
        Refusal { name: "a KVM without Xen", status: 43, words: &["KVM", "Xen"], spec: bench.guest() };
    let mut report = Report::default();
    report.add(bench, &refusal, Some(0))?;
    report.finish()
}

const NOBODY: u32 = 65534;

/// What is wrong so far.
#[derive(Default)]
struct Report {
    wrong: Vec<String>,
}

impl Report {
    fn add(&mut self, bench: &Bench, refusal: &Refusal, left: Option<usize>) -> Result<()> {
        self.add_as(bench, refusal, left, 0)
    }

    /// Starts it as `user`; `left` is the number of domains that may be there afterwards.
    fn add_as(&mut self, bench: &Bench, refusal: &Refusal, left: Option<usize>, user: u32) -> Result<()> {
        let mut command = refusal.spec.command();
        if user != 0 {
            command.uid(user).gid(user);
        }
        let (status, said) = match ends(&mut command) {
            Ok(end) => end,
            Err(error) => {
                self.wrong.push(format!("{}: {error}", refusal.name));
                return Ok(());
            }
        };
        println!("{}: status {status}: {said}", refusal.name);
        let mut wrong = |what: String| self.wrong.push(format!("{}: {what}", refusal.name));
        if status != refusal.status {
            wrong(format!("exit status {status} instead of {}", refusal.status));
        }
        if said.lines().filter(|line| !line.trim().is_empty()).count() != 1 {
            wrong(format!("not one line: {said}"));
        }
        for word in refusal.words {
            if !said.contains(word) {
                wrong(format!("\"{word}\" is not in: {said}"));
            }
        }
        if left.is_some()
            && let Err(error) = bench.nothing_is_left()
        {
            wrong(error.to_string());
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        check!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        Ok(())
    }
}

/// The exit status of a command and what it writes to stderr; it must end soon.
fn ends(command: &mut Command) -> Result<(i32, String)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return fail!("xvmm did not refuse to start");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut said = String::new();
    if let Some(mut errors) = child.stderr.take() {
        errors.read_to_string(&mut said)?;
    }
    Ok((status.code().unwrap_or(128), said.trim_end().to_owned()))
}

/// Unsuitable files.
struct Files(PathBuf);

impl Files {
    fn make(bench: &Bench) -> Result<Files> {
        let files = Files(bench.folder.join("files"));
        fs::create_dir_all(files.path("fixed"))?;
        let kernel = fs::read(bench.guest().kernel_path())?;
        let middle = kernel.len() / 2;
        fs::write(files.path("text"), "no kernel\n".repeat(10_000))?;
        fs::write(files.path("short"), kernel.get(..middle).unwrap_or_default())?;
        let mut corrupt = kernel;
        for byte in corrupt.iter_mut().skip(middle).take(4096) {
            *byte ^= 0x55;
        }
        fs::write(files.path("corrupt"), corrupt)?;
        fs::copy(super::a_static_program(), files.path("plain-elf"))?;
        for (name, size) in [
            ("large", 300 << 20),
            ("tight", 240 << 20),
            ("empty", 0),
            ("odd", 1000),
            ("disk", 1 << 20),
            ("other", 1 << 20),
            ("fixed/disk", 1 << 20),
        ] {
            File::create(files.path(name))?.set_len(size)?;
        }
        // Root may write to everything but a read-only mount.
        let fixed = files.path("fixed");
        run(Command::new("mount").arg("--bind").args([&fixed, &fixed]))?;
        run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&fixed))?;
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}
