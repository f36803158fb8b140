//! The KVM host's side: runs tests, each in a process and a network namespace of its own.
//!
//! It says `@@ READY` and reads the names of tests, one per line. The results go to stdout, one message per
//! line: `@@ PASS id seconds` or `@@ FAIL id seconds`, `@@ LOG text` (what the test and its guests printed,
//! after a failure), `@@ DONE id`.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::cases::{self, Bench, Case, HostKind};
use crate::packages::run;
use crate::{Result, fail};

/// How much of a log a failure shows.
const SHOWN_LINES: usize = 40;

struct Job {
    case: Case,
    child: Child,
    folder: PathBuf,
    started: Instant,
}

/// `inside`: runs the tests whose ids it reads, a line each, until there are no more.
pub fn inside(words: &[String]) -> Result<ExitCode> {
    if !words.is_empty() {
        return fail!("{}", crate::USAGE);
    }
    // Whatever a test leaves behind becomes our child and is ended with its process group.
    // SAFETY: prctl with this operation takes an integer only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    let root = std::env::temp_dir().join(format!("xvmm-tests-{}", std::process::id()));
    fs::create_dir_all(&root)?;
    println!("@@ READY");
    for line in std::io::stdin().lines() {
        let mut job = start(cases::find(line?.trim())?, &root)?;
        let reason = loop {
            match job.child.try_wait()? {
                Some(status) if status.success() => break None,
                Some(status) => break Some(format!("the test ended with {status}")),
                None if job.started.elapsed() > job.case.test.limit => {
                    break Some(format!("the test hung for {} s", job.case.test.limit.as_secs()));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        finish(job, reason.as_deref());
    }
    let _ = fs::remove_dir_all(&root);
    Ok(ExitCode::SUCCESS)
}

fn start(case: Case, root: &Path) -> Result<Job> {
    let folder = root.join(case.id());
    fs::create_dir_all(&folder)?;
    let log = File::create(folder.join("test.log"))?;
    let child = Command::new(std::env::current_exe()?)
        .args(["one", &case.id()])
        .arg(&folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    Ok(Job { case, child, folder, started: Instant::now() })
}

fn finish(mut job: Job, reason: Option<&str>) {
    let seconds = job.started.elapsed().as_secs_f32();
    if let Ok(group) = i32::try_from(job.child.id()) {
        // SAFETY: kill takes integers only; the group is that of our own child.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        let _ = job.child.wait();
        // SAFETY: waits for the group's processes that became our children; no status is stored.
        while unsafe { libc::waitpid(-group, std::ptr::null_mut(), 0) } > 0 {}
    }
    let id = job.case.id();
    match reason {
        None => {
            println!("@@ PASS {id} {seconds:.1}");
            // What it measured.
            show_log(&job.folder.join("test.log"));
        }
        Some(reason) => {
            println!("@@ FAIL {id} {seconds:.1}");
            println!("@@ LOG {reason}");
            show_logs(&job.folder);
        }
    }
    println!("@@ DONE {id}");
    let _ = fs::remove_dir_all(&job.folder);
}

/// Prints the end of a log.
fn show_log(path: &Path) {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES)) {
        println!("@@ LOG {}", line.replace(|letter: char| letter.is_control() && letter != '\t', ""));
    }
}

/// Prints the ends of the test's own log and of those of its guests.
fn show_logs(folder: &Path) {
    let mut logs: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort_by_key(|path| (!path.ends_with("test.log"), path.clone()));
    for path in logs {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        println!("@@ LOG -- {name}");
        show_log(&path);
    }
    if let Ok(messages) = run(Command::new("dmesg").arg("-r")) {
        // Warnings and errors of the host's kernel, above all of its KVM. Every guest tries an MSR that
        // the emulated processor has not.
        let grave = messages.lines().filter(|line| {
            line.strip_prefix('<')
                .and_then(|line| line.split_once('>'))
                .is_some_and(|(level, _)| level.parse::<u32>().is_ok_and(|level| level & 7 <= 4))
                && !line.contains("Unhandled WRMSR")
        });
        let grave: Vec<&str> = grave.collect();
        for line in grave.iter().skip(grave.len().saturating_sub(6)) {
            println!("@@ LOG host kernel: {line}");
        }
    }
}

/// `one ID FOLDER`: runs one test in this process.
pub fn one(words: &[String]) -> Result<ExitCode> {
    let [id, folder] = words else {
        return fail!("{}", crate::USAGE);
    };
    let case = cases::find(id)?;
    // The runner ends a hung test by its process group; nothing outlives a runner that was ended.
    // SAFETY: prctl with this operation takes an integer only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    match case.test.host {
        // The kernel's iSCSI initiator speaks with the daemon of the first network namespace only.
        HostKind::Storage => isolate_mounts()?,
        _ => isolate()?,
    }
    let bench = Bench::new(&case, PathBuf::from(folder))?;
    match (case.test.run)(&bench) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            println!("{error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Moves this process into a network namespace of its own, with a sysfs that shows it.
pub fn isolate() -> Result<()> {
    unshare(libc::CLONE_NEWNET)?;
    isolate_mounts()?;
    run(Command::new("mount").args(["-t", "sysfs", "sysfs", "/sys"]))?;
    run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    Ok(())
}

/// Gives this process mounts of its own.
fn isolate_mounts() -> Result<()> {
    unshare(libc::CLONE_NEWNS)?;
    run(Command::new("mount").args(["--make-rprivate", "/"]))
        .or_else(|_| run(Command::new("mount").args(["-o", "rprivate", "/"])))?;
    Ok(())
}

fn unshare(flags: libc::c_int) -> Result<()> {
    // SAFETY: unshare takes flags only, and this process has one thread.
    if unsafe { libc::unshare(flags) } != 0 {
        let error = std::io::Error::last_os_error();
        return fail!("cannot make namespaces: {error}; the tests on this host's KVM need root");
    }
    Ok(())
}
