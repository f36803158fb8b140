//! The process that looks after the dnsmasq of a private network: starts it again when it dies.
//!
//! It holds a lock on `NAME.supervisor`, which has its process id; that is the proof that it runs. SIGTERM
//! ends both, SIGHUP makes dnsmasq read the reservations again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::error::HostNetError;
use super::{Host, dnsmasq, files};

/// Suffix of the lock.
pub(super) const LOCK: &str = "supervisor";
/// How often it is looked for what another process does.
const POLL: Duration = Duration::from_millis(10);
/// How long dnsmasq may take until it answers, and until it ends.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a start after a death: twice as long each time, up to a minute.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Starts the supervisor in the background, and returns when dnsmasq answers.
pub(super) fn start(host: &Host, name: &str) -> io::Result<()> {
    stop(host, name)?;
    let pid_file = host.state_file(name, dnsmasq::PID);
    files::remove(&pid_file)?;
    let log = host.state_file(name, dnsmasq::LOG);
    let mut child = spawn(host, &["supervise", name], &log)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The file is made, and then written.
        if read_pid(&pid_file).is_some() {
            return Ok(());
        }
        if child.try_wait()?.is_some() || Instant::now() >= deadline {
            // Not in the way of the error itself.
            let _ = stop(host, name);
            let said = files::read(&log)?.unwrap_or_default();
            let line = said.lines().rev().find(|line| !line.trim().is_empty());
            return Err(io::Error::other(line.unwrap_or("dnsmasq does not answer").trim().to_owned()));
        }
        std::thread::sleep(POLL);
    }
}

/// Ends the supervisor and dnsmasq, if they run.
pub(super) fn stop(host: &Host, name: &str) -> io::Result<()> {
    let lock = host.state_file(name, LOCK);
    if let Some(pid) = holder(&lock)? {
        end(pid, || holder(&lock).is_ok_and(|holder| holder.is_none()))?;
    }
    // One whose supervisor was killed.
    let config = host.state_file(name, dnsmasq::CONFIG);
    if let Some(pid) = read_pid(&host.state_file(name, dnsmasq::PID)).filter(|pid| is_ours(*pid, &config)) {
        end(pid, || !is_ours(pid, &config))?;
    }
    Ok(())
}

/// Has dnsmasq read the reservations again.
pub(super) fn reload(host: &Host, name: &str) -> io::Result<()> {
    match holder(&host.state_file(name, LOCK))? {
        Some(pid) => kill(pid, libc::SIGHUP),
        None => Ok(()),
    }
}

/// Whether the supervisor runs.
pub(super) fn runs(host: &Host, name: &str) -> bool {
    holder(&host.state_file(name, LOCK)).is_ok_and(|holder| holder.is_some())
}

/// Runs `xvmm network COMMAND...` in a session of its own, out of reach of the caller's terminal.
pub(super) fn spawn(host: &Host, command: &[&str], log: &Path) -> io::Result<Child> {
    let mut child = Command::new(&host.program);
    child.arg("--run-dir").arg(&host.run_dir).arg("network").arg("--networks-dir").arg(&host.definitions);
    child.args(command).current_dir("/");
    child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log)?);
    // SAFETY: both functions only make system calls, and touch no memory of the parent.
    unsafe {
        child.pre_exec(
            || if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { unblock_signals() },
        );
    }
    child.spawn()
}

/// The life of the supervisor.
pub fn supervise(host: &Host, name: &str) -> Result<(), HostNetError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error| HostNetError::Host { name: name.to_owned(), what, error }
    };
    let path = host.state_file(name, LOCK);
    let mut lock = files::lock(&path, false).map_err(failed("begin: another supervisor runs"))?;
    let record = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    record.map_err(failed("write its process id"))?;
    let signals = Signals::new().map_err(failed("wait for signals"))?;
    let config = host.state_file(name, dnsmasq::CONFIG);
    let missing = || HostNetError::ToolMissing {
        name: name.to_owned(),
        tool: "dnsmasq".into(),
        package: "dnsmasq-base",
    };
    let program = host.tools.find("dnsmasq").ok_or_else(missing)?;
    let mut pause = FIRST_PAUSE;
    let mut answered = false;
    loop {
        let began = Instant::now();
        let mut child = command(&program, &config).spawn().map_err(failed("start dnsmasq"))?;
        let status = loop {
            match signals.wait(None) {
                Some(libc::SIGCHLD) => {
                    if let Some(status) = child.try_wait().map_err(failed("wait for dnsmasq"))? {
                        break status;
                    }
                }
                Some(libc::SIGHUP) => signal(&child, libc::SIGHUP),
                Some(_) => {
                    signal(&child, libc::SIGTERM);
                    let _ = child.wait();
                    return Ok(());
                }
                None => {}
            }
        };
        // A first one that does not even start is told to who is waiting for it.
        answered |= read_pid(&host.state_file(name, dnsmasq::PID)).is_some();
        if !answered {
            return Err(failed("start dnsmasq")(io::Error::other(format!("it ended with {status}"))));
        }
        tracing::warn!("network {name}: dnsmasq ended with {status}, and is started again");
        if began.elapsed() > LAST_PAUSE {
            pause = FIRST_PAUSE;
        }
        if matches!(signals.wait(Some(pause)), Some(libc::SIGTERM | libc::SIGINT)) {
            return Ok(());
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

fn command(program: &Path, config: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--keep-in-foreground").arg(format!("--conf-file={}", config.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: the functions only make system calls, and touch no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            // Until it gives up root it goes with us, whatever ends us.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            unblock_signals()
        });
    }
    command
}

/// No signal waits any more.
fn unblock_signals() -> io::Result<()> {
    // SAFETY: sigset_t is an array of integers; the calls write to or read the set, which outlives them.
    let result = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// SIGCHLD, SIGHUP, SIGTERM and SIGINT, waited for instead of handled.
struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        // SAFETY: sigset_t is an array of integers; the calls write to or read the set, which outlives them.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            for signal in [libc::SIGCHLD, libc::SIGHUP, libc::SIGTERM, libc::SIGINT] {
                libc::sigaddset(&raw mut set, signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Signals { set })
        }
    }

    /// The next one; None when the time is over.
    fn wait(&self, timeout: Option<Duration>) -> Option<libc::c_int> {
        let time = timeout.map(|timeout| libc::timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the kernel reads the set and the time, which outlive the call.
        let signal = unsafe { libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), time) };
        (signal > 0).then_some(signal)
    }
}

fn signal(child: &Child, signal: libc::c_int) {
    if let Ok(pid) = libc::pid_t::try_from(child.id()) {
        // It is not waited for yet, so that the id is still its own.
        let _ = kill(pid, signal);
    }
}

fn kill(pid: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill takes numbers.
    let result = unsafe { libc::kill(pid, signal) };
    let error = io::Error::last_os_error();
    if result == 0 || error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

/// Asks the process to end, and makes it when it does not.
fn end(pid: libc::pid_t, is_gone: impl Fn() -> bool) -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        kill(pid, signal)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if is_gone() {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }
    Err(io::Error::other(format!("process {pid} does not end")))
}

/// Who holds the lock.
fn holder(lock: &Path) -> io::Result<Option<libc::pid_t>> {
    if !lock.exists() {
        return Ok(None);
    }
    match files::lock(lock, false) {
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let pid = read_pid(lock).ok_or_else(|| io::Error::other("a supervisor that is just starting"))?;
            Ok(Some(pid))
        }
        Err(error) => Err(error),
    }
}

fn read_pid(path: &Path) -> Option<libc::pid_t> {
    fs::read_to_string(path).ok()?.strip_suffix('\n')?.parse().ok().filter(|pid| *pid > 1)
}

/// Whether the process is a dnsmasq with that configuration, and no zombie.
fn is_ours(pid: libc::pid_t, config: &Path) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let wanted = format!("--conf-file={}", config.display());
    arguments.split(|byte| *byte == 0).any(|argument| argument == wanted.as_bytes())
}
