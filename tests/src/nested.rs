//! L1, the nested host: a Debian kernel below QEMU's emulation of AMD SVM, with KVM inside.
//!
//! It exists only in memory: a kernel, a cached base initramfs and an overlay with the programs under
//! test, made anew for each start.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::cpio::Archive;
use crate::packages::Cache;
use crate::{Result, fail, images};

/// How to start L1.
pub struct Host {
    /// Label of the kernel it runs (see [`images::GUEST_KERNELS`]).
    pub kernel: String,
    /// Processors. QEMU's emulation of SVM (target/i386/tcg: `helper_vmrun`) leaves the vector of an interrupt that
    /// KVM injects behind as a pending exception, and delivers it twice if another processor's thread makes this
    /// one leave its loop before the next exit: guests end by a triple fault, and the host by a panic ("corrupted
    /// stack end"). With one processor there is nobody to do that.
    pub processors: u32,
    /// RAM in MiB.
    pub memory: u32,
    /// Programs to take along: path in L1 and path here.
    pub programs: Vec<(String, PathBuf)>,
    /// Files to take along.
    pub files: Vec<(String, PathBuf)>,
    /// Finished archives to take along.
    pub archives: Vec<PathBuf>,
    /// The shell commands that it runs; it powers off after them.
    pub script: String,
    /// Connect its console to this terminal instead of a pipe.
    pub interactive: bool,
    /// The folder of a QEMU to take instead of the installed one (see [`unpacked`]).
    pub emulator: Option<PathBuf>,
}

/// The command of a QEMU in a folder of its own: `bin`, `lib` with all its libraries, `share` with its firmware.
pub fn unpacked(folder: &Path) -> Command {
    let mut command = Command::new(folder.join("bin/qemu-system-x86_64"));
    command.env("LD_LIBRARY_PATH", folder.join("lib")).arg("-L").arg(folder.join("share"));
    command
}

impl Host {
    /// A host with the usual kernel and the guest images, which runs `script`.
    pub fn new(cache: &Cache, script: String) -> Result<Host> {
        images::guests(cache)?;
        let mut files = Vec::new();
        for (label, _) in images::GUEST_KERNELS {
            for name in ["vmlinuz", "initrd"] {
                let file = format!("guest/{label}/{name}");
                files.push((format!("/tests/{file}"), cache.path(&file)));
            }
        }
        let programs = vec![("/tests/xvmm-tests".to_owned(), std::env::current_exe()?)];
        Ok(Host {
            kernel: "6.12".to_owned(),
            processors: 1,
            memory: 3072,
            programs,
            files,
            archives: Vec::new(),
            script,
            interactive: false,
            emulator: None,
        })
    }

    /// Takes the files of a folder along.
    pub fn take(&mut self, folder: &Path, to: &str) -> Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let to = format!("{to}/{}", path.file_name().unwrap_or_default().to_string_lossy());
            if path.is_dir() {
                self.take(&path, &to)?;
            } else {
                self.files.push((to, path));
            }
        }
        Ok(())
    }

    /// Writes the initramfs and starts QEMU, with L1's console on the child's stdout.
    pub fn start(&self, cache: &Cache) -> Result<Running> {
        let base = images::l1(cache, &self.kernel)?;
        let mut overlay = Archive::default();
        for (path, program) in &self.programs {
            images::program(&mut overlay, path, program)?;
        }
        for (path, file) in &self.files {
            overlay.copy(path, file)?;
        }
        overlay.file("/tests/start", 0o644, self.script.as_bytes());
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let initramfs = cache.path(&format!("l1-{}-{number}.initramfs", std::process::id()));
        let mut file = File::create(&initramfs)?;
        file.write_all(&std::fs::read(base.join("base"))?)?;
        for archive in &self.archives {
            file.write_all(&std::fs::read(archive)?)?;
        }
        file.write_all(&overlay.finish())?;
        drop(file);

        let (pulse, theirs) = UnixStream::pair()?;
        let mut command = match &self.emulator {
            Some(folder) => unpacked(folder),
            None => Command::new("qemu-system-x86_64"),
        };
        command
            .args(["-accel", "tcg,thread=multi,tb-size=1024", "-M", "q35", "-cpu", "max"])
            .args(["-smp", &self.processors.to_string()])
            .args(["-m", &self.memory.to_string()])
            .args(["-nographic", "-nodefaults", "-no-reboot", "-no-user-config"])
            .args(["-serial", "chardev:console", "-chardev"])
            .arg(format!("stdio,id=console,signal=off,mux={}", if self.interactive { "off" } else { "on" }))
            .args(["-chardev", &format!("socket,id=pulse,fd={}", theirs.as_raw_fd())])
            .args(["-serial", "chardev:pulse", "-kernel"])
            .arg(base.join("vmlinuz"))
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", "console=ttyS0 panic=-1 mitigations=off quiet sysrq_always_enabled"]);
        if !self.interactive {
            command.args(["-mon", "chardev=console"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        }
        let inherited = theirs.as_raw_fd();
        // It does not outlive this program, however that ends.
        // SAFETY: prctl and fcntl take integers only here, and are safe after fork().
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                libc::fcntl(inherited, libc::F_SETFD, 0);
                Ok(())
            });
        }
        match command.spawn() {
            Ok(child) => {
                std::thread::spawn(move || beat(pulse));
                Ok(Running { child, initramfs })
            }
            Err(error) => {
                let _ = std::fs::remove_file(&initramfs);
                fail!("cannot start qemu-system-x86_64: {error}; on Debian: apt-get install qemu-system-x86")
            }
        }
    }
}

/// Typed on L1's console, a part at a time: QEMU says where its processor is, L1's kernel what its processor and
/// the tasks that wait for devices are at.
pub const QUESTIONS: [&[u8]; 4] =
    [b"\x01cinfo registers\ninfo lapic\n\x01c", b"\x01b9", b"\x01bl", b"\x01bw"];

/// Interrupts L1 now and then, as long as it runs. QEMU clears a flag of its emulated processor without a lock when
/// a guest of L1 exits (target/i386/tcg/sysemu: `do_vmexit`), and loses the flag of an interrupt that comes at that
/// moment. If that was L1's timer, L1 stands still, since it sets the timer anew only when it fires; any other
/// interrupt makes QEMU look at all that wait.
fn beat(mut pulse: UnixStream) {
    // A character that a terminal takes out of its input. L1 has its second serial line open.
    const CONTINUE: &[u8] = &[0x11];
    while pulse.write_all(CONTINUE).is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A started L1; it ends with this value.
pub struct Running {
    /// QEMU.
    pub child: Child,
    initramfs: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.initramfs);
    }
}

/// Starts L1 only to see what KVM offers in it.
pub fn probe() -> Result<ExitCode> {
    let cache = Cache::open()?;
    let host = Host::new(&cache, "/tests/xvmm-tests probe\n".to_owned())?;
    let started = std::time::Instant::now();
    let mut running = host.start(&cache)?;
    let mut seen = false;
    if let Some(output) = running.child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line?;
            if let Some((_, text)) = line.split_once("@@ PROBE ") {
                seen = true;
                println!("{:5.1}s {}", started.elapsed().as_secs_f32(), text.trim_end());
            } else {
                eprintln!("{}", line.trim_end());
            }
        }
    }
    if !seen {
        return fail!("the nested host ended without a word about KVM");
    }
    running.child.wait()?;
    println!("{:5.1}s ended", started.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}
