//! A guest under test: its description, the running xvmm, and commands inside through its console.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cpio::Archive;
use crate::{Result, fail, images};

/// Time to user space: generous, since vCPUs that wait for each other take long below one emulated processor.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
const BOOT_LIMIT_PER_VCPU: Duration = Duration::from_secs(60);
/// Time of one command.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);

/// What xvmm is to run. Each method adds an option; nothing is checked here, since the checks of xvmm
/// are under test.
#[derive(Clone)]
pub struct Spec {
    folder: PathBuf,
    name: Option<String>,
    kernel: PathBuf,
    /// Firmware of machine and screen, in place of the kernel.
    initrd: Option<PathBuf>,
    memory: String,
    vcpus: usize,
    command_line: String,
    arguments: Vec<String>,
    pc: bool,
}

impl Spec {
    /// A guest with one of the prepared kernels, named by its label; `folder` holds its logs and the
    /// folder of running domains.
    pub fn new(folder: &Path, kernel: &str, vcpus: usize) -> Spec {
        let material = material("guest").join(kernel);
        Spec {
            folder: folder.to_owned(),
            name: None,
            kernel: material.join("vmlinuz"),
            initrd: Some(material.join("initrd")),
            memory: "256M".to_owned(),
            vcpus,
            command_line: "console=hvc0 quiet panic=-1 mitigations=off xvmm.agent".to_owned(),
            arguments: Vec::new(),
            pc: false,
        }
    }

    /// A PC that starts its firmware.
    pub fn pc(folder: &Path, vcpus: usize) -> Spec {
        Spec { pc: true, ..Spec::new(folder, "", vcpus) }
    }

    /// Adds `--disk`.
    pub fn disk(self, disk: impl std::fmt::Display) -> Spec {
        self.argument("--disk", disk)
    }

    /// Adds `--net`.
    pub fn net(self, net: impl std::fmt::Display) -> Spec {
        self.argument("--net", net)
    }

    /// Adds any other option with its value.
    pub fn argument(mut self, option: &str, value: impl std::fmt::Display) -> Spec {
        self.arguments.extend([option.to_owned(), value.to_string()]);
        self
    }

    /// Sets `--name`.
    pub fn name(mut self, name: &str) -> Spec {
        self.name = Some(name.to_owned());
        self
    }

    /// Sets `--vcpus`.
    pub fn vcpus(mut self, vcpus: usize) -> Spec {
        self.vcpus = vcpus;
        self
    }

    /// Sets `--memory`, for instance `256M`.
    pub fn memory(mut self, memory: &str) -> Spec {
        memory.clone_into(&mut self.memory);
        self
    }

    /// Sets `--kernel`.
    pub fn kernel(mut self, kernel: impl Into<PathBuf>) -> Spec {
        self.kernel = kernel.into();
        self
    }

    /// Sets `--initrd`, or leaves it out.
    pub fn initrd(mut self, initrd: Option<PathBuf>) -> Spec {
        self.initrd = initrd;
        self
    }

    /// Puts tools (see [`tools`]) into the guest: path there and name here. Their Xen libraries are in
    /// the guest's /lib/xen.
    pub fn with_programs(self, programs: &[(&str, &str)]) -> Result<Spec> {
        let mut archive = Archive::default();
        for (path, name) in programs {
            let program = tools().join("bin").join(name);
            images::program(&mut archive, path, &program)?;
        }
        for entry in fs::read_dir(tools().join("lib"))? {
            let library = entry?.path();
            let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
            archive.copy(&format!("/lib/xen/{name}"), &library)?;
        }
        self.with_archive(archive)
    }

    /// Puts this program into the guest.
    pub fn with_test_program(self, path: &str) -> Result<Spec> {
        let mut archive = Archive::default();
        images::program(&mut archive, path, &std::env::current_exe()?)?;
        self.with_archive(archive)
    }

    /// Puts fio into the guest.
    pub fn with_fio(self) -> Result<Spec> {
        let mut archive = Archive::default();
        archive.copy("/bin/fio", &material("fio"))?;
        self.with_archive(archive)
    }

    /// Puts iperf3, ethtool and this program (`/bin/xvmm-tests`) into the guest.
    pub fn with_network_tools(self) -> Result<Spec> {
        let mut archive = Archive::default();
        for path in ["/usr/bin/iperf3", "/sbin/ethtool"] {
            let name = path.rsplit('/').next().unwrap_or(path);
            images::program(&mut archive, &format!("/bin/{name}"), Path::new(path))?;
        }
        images::program(&mut archive, "/bin/xvmm-tests", &std::env::current_exe()?)?;
        self.with_archive(archive)
    }

    /// Adds an archive to the initrd.
    fn with_archive(mut self, archive: Archive) -> Result<Spec> {
        let Some(initrd) = &self.initrd else {
            return fail!("a guest without an initrd cannot be given programs");
        };
        let mut bytes = fs::read(initrd)?;
        bytes.extend(archive.finish());
        let path = self.folder.join("initrd");
        fs::write(&path, bytes)?;
        self.initrd = Some(path);
        Ok(self)
    }

    /// The path of the kernel.
    pub fn kernel_path(&self) -> &Path {
        &self.kernel
    }

    /// Adds words to the guest kernel's command line.
    pub fn words(mut self, words: &str) -> Spec {
        self.command_line.push(' ');
        self.command_line.push_str(words);
        self
    }

    /// The command that starts xvmm.
    pub fn command(&self) -> Command {
        let mut command = xvmm(&self.folder);
        if self.pc {
            let roms = [("--bios", "bios.bin"), ("--vgabios", "vgabios.bin")];
            command
                .arg("--hvm")
                .args(roms.iter().flat_map(|(flag, file)| [(*flag).into(), tools().join(file)]));
        } else {
            command.arg("--kernel").arg(&self.kernel).args(["--cmdline", &self.command_line]);
        }
        if !self.pc
            && let Some(initrd) = &self.initrd
        {
            command.arg("--initrd").arg(initrd);
        }
        command.args(["--memory", &self.memory, "--vcpus", &self.vcpus.to_string()]);
        if let Some(name) = &self.name {
            command.args(["--name", name]);
        }
        command.args(["--console", "tty"]).args(&self.arguments);
        command
    }

    /// Starts xvmm without waiting for the guest.
    pub fn spawn(&self) -> Result<Guest> {
        let number = (1..).find(|number| !self.log("console", *number).exists()).unwrap_or(1);
        let mut child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(self.log("xvmm", number))?)
            .spawn()?;
        let (Some(input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
            return fail!("xvmm has no pipes");
        };
        let screen = Arc::new(Screen::default());
        let writer = Arc::clone(&screen);
        let mut log = File::create(self.log("console", number))?;
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                let part = bytes.get(..length).unwrap_or_default();
                let _ = log.write_all(part);
                writer.add(part);
            }
            writer.close();
        });
        let boot_limit = BOOT_LIMIT + BOOT_LIMIT_PER_VCPU * u32::try_from(self.vcpus)?;
        let errors = self.log("xvmm", number);
        Ok(Guest { child, input: Some(input), screen, errors, number: 0, boot_limit })
    }

    /// Starts xvmm and waits until commands can be given.
    pub fn start(&self) -> Result<Guest> {
        let guest = self.spawn()?;
        guest.wait_ready()?;
        Ok(guest)
    }

    fn log(&self, kind: &str, number: u32) -> PathBuf {
        self.folder.join(format!("{kind}-{number}.log"))
    }
}

/// The program under test with its state below `folder`; a subcommand can follow.
pub fn xvmm(folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("XVMM").unwrap_or_else(|| "xvmm".into()));
    command.env("XVMM_RUN_DIR", folder.join("run"));
    command
}

/// A file or folder of the prepared material.
pub fn material(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("XVMM_MATERIAL").unwrap_or_else(|| "/tests".into())).join(name)
}

/// The folder of the prepared tools.
pub fn tools() -> PathBuf {
    PathBuf::from(std::env::var_os("XVMM_TOOLS").unwrap_or_else(|| "/tests/tools".into()))
}

/// A running xvmm with its guest; ends with this value.
pub struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    screen: Arc<Screen>,
    errors: PathBuf,
    number: u32,
    boot_limit: Duration,
}

impl Guest {
    /// The process id of xvmm.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(-1)
    }

    /// Waits until the guest's agent takes commands.
    pub fn wait_ready(&self) -> Result<()> {
        self.wait_console("@@READY", self.boot_limit)
            .map_err(|error| format!("the guest did not boot: {error}"))?;
        Ok(())
    }

    /// Waits until the guest has booted `times` times since xvmm was started.
    pub fn wait_boot(&self, times: u32) -> Result<()> {
        let found = self.screen.wait(Instant::now() + self.boot_limit, |text| {
            (text.matches("@@READY").count() >= times as usize).then_some(())
        });
        found.map_err(|reason| {
            format!("the guest did not boot {times} times: {reason}; xvmm said: {}", self.errors()).into()
        })
    }

    /// Runs a shell command in the guest and returns what it printed; it must succeed.
    pub fn sh(&mut self, command: &str) -> Result<String> {
        let (status, output) = self.status(command)?;
        if status != 0 {
            return fail!("in the guest, `{command}` ended with status {status} and said: {output}");
        }
        Ok(output)
    }

    /// Runs a shell command in the guest; its exit status and what it printed on both outputs.
    pub fn status(&mut self, command: &str) -> Result<(i32, String)> {
        let number = self.send(command)?;
        self.answer(number, command)
    }

    /// Gives the agent a command without waiting for its answer; returns its number.
    pub fn send(&mut self, command: &str) -> Result<u32> {
        if command.contains('\n') {
            return fail!("a command for the guest is one line: {command}");
        }
        self.number += 1;
        self.write(&format!("{} {command}\n", self.number))?;
        Ok(self.number)
    }

    /// As [`Guest::sh`], for a command that may take longer.
    pub fn sh_within(&mut self, command: &str, limit: Duration) -> Result<String> {
        let number = self.send(command)?;
        match self.answer_within(number, command, limit)? {
            (0, output) => Ok(output),
            (status, output) => {
                fail!("in the guest, `{command}` ended with status {status} and said: {output}")
            }
        }
    }

    /// Waits for the answer to a command that was sent.
    pub fn answer(&mut self, number: u32, command: &str) -> Result<(i32, String)> {
        self.answer_within(number, command, COMMAND_LIMIT)
    }

    /// As [`Guest::answer`], with a time of its own.
    pub fn answer_within(&mut self, number: u32, command: &str, limit: Duration) -> Result<(i32, String)> {
        let end = format!("\n@@END {number} ");
        let deadline = Instant::now() + limit;
        let found = self.screen.wait(deadline, |text| {
            let (before, after) = text.rsplit_once(&end)?;
            let (status, _) = after.split_once('\n')?;
            let (_, output) = before.rsplit_once(&format!("@@BEGIN {number}\n"))?;
            let output = output.strip_suffix('\n').unwrap_or(output);
            Some((status.trim().parse().ok()?, output.to_owned()))
        });
        found.map_err(|reason| format!("in the guest, `{command}` got no answer: {reason}").into())
    }

    /// Writes to the guest's console as typed.
    pub fn write(&mut self, text: &str) -> Result<()> {
        match &mut self.input {
            Some(input) => Ok(input.write_all(text.as_bytes())?),
            None => fail!("the guest's console input is closed"),
        }
    }

    /// Waits until `text` is on the console; returns the console up to its line's end.
    pub fn wait_console(&self, text: &str, limit: Duration) -> Result<String> {
        let found = self.screen.wait(Instant::now() + limit, |screen| {
            let start = screen.find(text)?;
            let line = screen.get(start..)?.find('\n')?;
            Some(screen.get(..start + line)?.to_owned())
        });
        found.map_err(|reason| {
            let errors = self.errors();
            let screen = self.console();
            let shown: Vec<&str> = screen.lines().rev().take(5).collect();
            let shown: Vec<&str> = shown.into_iter().rev().collect();
            format!(
                "no \"{text}\" on the console ({reason}); its last lines: {}; xvmm said: {errors}",
                shown.join(" | ")
            )
            .into()
        })
    }

    /// Everything the guest printed so far, without carriage returns.
    pub fn console(&self) -> String {
        self.screen.lock().text.clone()
    }

    /// What xvmm wrote to its stderr so far.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default().trim().to_owned()
    }

    /// Waits for the end of xvmm.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                self.screen.wait_closed();
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        fail!("xvmm did not end within {} s; it said: {}", limit.as_secs(), self.errors())
    }

    /// Waits for the end of xvmm, which must be the exit status `expected`.
    pub fn ends_with(&mut self, expected: i32) -> Result<()> {
        let status = self.wait(Duration::from_secs(300))?;
        if status.code() != Some(expected) {
            let signal = status.signal().map_or(String::new(), |signal| format!(" (signal {signal})"));
            return fail!(
                "xvmm ended with {status}{signal} instead of {expected}; it said: {}",
                self.errors()
            );
        }
        Ok(())
    }

    /// Sends a signal to xvmm.
    pub fn signal(&self, signal: i32) -> Result<()> {
        // SAFETY: kill takes integers only; the process is our own child, not yet waited for.
        match unsafe { libc::kill(self.pid(), signal) } {
            0 => Ok(()),
            _ => fail!("cannot signal xvmm: {}", std::io::Error::last_os_error()),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the guest printed.
#[derive(Default)]
struct Screen {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    text: String,
    closed: bool,
}

impl Screen {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, bytes: &[u8]) {
        self.lock().text.push_str(&String::from_utf8_lossy(bytes).replace('\r', ""));
        self.changed.notify_all();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn wait_closed(&self) {
        let _ = self.wait(Instant::now() + Duration::from_secs(2), |_| None::<()>);
    }

    /// Waits until `find` finds something in the text.
    fn wait<T>(
        &self,
        deadline: Instant,
        find: impl Fn(&str) -> Option<T>,
    ) -> std::result::Result<T, &'static str> {
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&state.text) {
                return Ok(found);
            }
            if state.closed {
                return Err("the console was closed");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("the time is up");
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
