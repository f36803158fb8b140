//! L1, the nested host: a Debian kernel below QEMU's emulation of AMD SVM, with KVM inside.
//!
//! It exists only in memory: a kernel, a cached base initramfs and an overlay with the programs under
//! test, made anew for each start.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

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

        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi,tb-size=1024", "-M", "q35", "-cpu", "max"])
            .args(["-smp", &self.processors.to_string()])
            .args(["-m", &self.memory.to_string()])
            .args(["-nographic", "-nodefaults", "-no-reboot", "-no-user-config"])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .arg("-kernel")
            .arg(base.join("vmlinuz"))
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", "console=ttyS0 panic=-1 mitigations=off quiet"]);
        if !self.interactive {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        }
        // It does not outlive this program, however that ends.
        // SAFETY: prctl with this operation takes an integer only, and is safe after fork().
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                Ok(())
            });
        }
        match command.spawn() {
            Ok(child) => Ok(Running { child, initramfs }),
            Err(error) => {
                let _ = std::fs::remove_file(&initramfs);
                fail!("cannot start qemu-system-x86_64: {error}; on Debian: apt-get install qemu-system-x86")
            }
        }
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
