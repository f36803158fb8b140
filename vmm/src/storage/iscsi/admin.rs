//! Running `iscsiadm`. No secret is ever among its arguments: every user of the host can read those.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::IscsiProblem;

/// Exit statuses of `iscsiadm` (iscsiadm(8), section EXIT STATUS).
pub(super) mod status {
    pub(crate) const SUCCESS: i32 = 0;
    pub(crate) const SESSION_NOT_FOUND: i32 = 2;
    pub(crate) const TRANSPORT: i32 = 4;
    pub(crate) const DATABASE: i32 = 6;
    pub(crate) const TRANSPORT_TIMEOUT: i32 = 8;
    pub(crate) const PDU_TIMEOUT: i32 = 11;
    pub(crate) const TRANSPORT_NOT_FOUND: i32 = 12;
    pub(crate) const ACCESS: i32 = 13;
    pub(crate) const SESSION_EXISTS: i32 = 15;
    pub(crate) const FATAL_LOGIN: i32 = 19;
    pub(crate) const NOT_CONNECTED: i32 = 20;
    pub(crate) const NO_OBJECTS_FOUND: i32 = 21;
    pub(crate) const SYSFS_LOOKUP: i32 = 22;
    pub(crate) const AUTHENTICATION: i32 = 24;
}

/// How long it may take to log in: iscsid tries 8 times for 15 seconds unless told otherwise.
const LOGIN: Duration = Duration::from_secs(180);
/// How long anything else may take.
const OTHER: Duration = Duration::from_secs(60);
/// How often it is looked whether it has ended.
const POLL: Duration = Duration::from_millis(10);
/// Bytes of its messages that are looked at.
const MESSAGES: usize = 4096;

/// The program, found.
#[derive(Debug)]
pub(super) struct Iscsiadm {
    program: PathBuf,
}

/// How a run of it ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Its exit status.
    pub status: i32,
    /// The line of its messages that says most.
    pub message: String,
}

impl Iscsiadm {
    /// Finds the program: `given`, or in the folders of PATH, or where distributions put it.
    pub(super) fn find(given: Option<&Path>, path: Option<&OsStr>) -> Result<Iscsiadm, IscsiProblem> {
        if let Some(program) = given {
            return Ok(Iscsiadm { program: program.to_owned() });
        }
        let folders = path.map(std::env::split_paths).into_iter().flatten();
        let folders = folders.chain(["/sbin".into(), "/usr/sbin".into()]);
        let runs = |program: &PathBuf| {
            program.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let program = folders.map(|folder| folder.join("iscsiadm")).find(runs);
        Ok(Iscsiadm { program: program.ok_or(IscsiProblem::NoIscsiadm)? })
    }

    /// Whether there is a node record of the target at the portal.
    pub(super) fn has_record(&self, iqn: &str, at: SocketAddr, lock: &File) -> Result<bool, IscsiProblem> {
        const WHAT: &str = "look for the node record";
        let outcome = self.node(iqn, at, &[], WHAT, lock)?;
        match outcome.status {
            status::SUCCESS => Ok(true),
            status::NO_OBJECTS_FOUND => Ok(false),
            _ => Err(outcome.problem(WHAT)),
        }
    }

    /// Makes a node record with the settings of `iscsid.conf`. One that exists would be overwritten.
    pub(super) fn new_record(&self, iqn: &str, at: SocketAddr, lock: &File) -> Result<(), IscsiProblem> {
        const WHAT: &str = "make the node record";
        self.node(iqn, at, &["-o", "new"], WHAT, lock)?.expect(&[status::SUCCESS], WHAT)
    }

    /// Deletes the node records of the target at the portal.
    pub(super) fn delete_record(&self, iqn: &str, at: SocketAddr, lock: &File) -> Result<(), IscsiProblem> {
        const WHAT: &str = "delete the node record";
        let good = [status::SUCCESS, status::NO_OBJECTS_FOUND];
        self.node(iqn, at, &["-o", "delete"], WHAT, lock)?.expect(&good, WHAT)
    }

    /// Logs in; the status tells how it went.
    pub(super) fn login(&self, iqn: &str, at: SocketAddr, lock: &File) -> Result<Outcome, IscsiProblem> {
        self.node(iqn, at, &["--login"], "log in", lock)
    }

    /// Ends one session.
    pub(super) fn logout(&self, session: u32, lock: &File) -> Result<(), IscsiProblem> {
        const WHAT: &str = "log out";
        let id = session.to_string();
        let outcome = self.run(&["-m", "session", "-r", &id, "--logout"], OTHER, WHAT, Some(lock))?;
        // The last three: it is gone already.
        let good =
            [status::SUCCESS, status::SESSION_NOT_FOUND, status::NO_OBJECTS_FOUND, status::SYSFS_LOOKUP];
        outcome.expect(&good, WHAT)
    }

    /// Has the kernel ask the target for its logical units again.
    pub(super) fn rescan(&self, session: u32) -> Result<(), IscsiProblem> {
        const WHAT: &str = "look for new disks";
        let id = session.to_string();
        let outcome = self.run(&["-m", "session", "-r", &id, "--rescan"], OTHER, WHAT, None)?;
        outcome.expect(&[status::SUCCESS], WHAT)
    }

    fn node(
        &self,
        iqn: &str,
        at: SocketAddr,
        what_to_do: &[&str],
        what: &'static str,
        lock: &File,
    ) -> Result<Outcome, IscsiProblem> {
        let portal = at.to_string();
        let args = [&["-m", "node", "-T", iqn, "-p", &portal], what_to_do].concat();
        self.run(&args, if what_to_do == ["--login"] { LOGIN } else { OTHER }, what, Some(lock))
    }

    /// Runs the program to its end, or stops it when the time is over.
    ///
    /// Its standard input is the lock file of the session, which it does not read: if we are killed while it
    /// logs in, the lock stays until it has ended, and nobody takes the session for abandoned before that.
    fn run(
        &self,
        args: &[&str],
        limit: Duration,
        what: &'static str,
        lock: Option<&File>,
    ) -> Result<Outcome, IscsiProblem> {
        let not_runnable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => IscsiProblem::NoIscsiadm,
            _ => IscsiProblem::NotRunnable { path: self.program.clone(), source },
        };
        // Not a pipe: what it starts may keep that open, and we would wait for its end.
        let messages = messages_file().map_err(not_runnable)?;
        let mut child = Command::new(&self.program)
            .args(args)
            .stdin(
                lock.map_or(Ok(Stdio::null()), |lock| lock.try_clone().map(Stdio::from))
                    .map_err(not_runnable)?,
            )
            .stdout(Stdio::null())
            .stderr(messages.try_clone().map_err(not_runnable)?)
            // A Ctrl-C at the terminal is for xvmm, which then logs out in order.
            .process_group(0)
            .spawn()
            .map_err(not_runnable)?;
        let end = Instant::now() + limit;
        loop {
            if let Some(ended) = child.try_wait().map_err(not_runnable)? {
                let status = ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or(0));
                let message = last_line(&messages);
                tracing::debug!(?args, status, message, "iscsiadm");
                return Ok(Outcome { status, message });
            }
            if Instant::now() >= end {
                let _ = child.kill();
                let _ = child.wait();
                return Err(IscsiProblem::TimedOut { what, seconds: limit.as_secs() });
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Outcome {
    /// The problem behind a status that is a failure.
    pub(super) fn problem(self, what: &'static str) -> IscsiProblem {
        match self.status {
            status::NOT_CONNECTED => IscsiProblem::NoIscsid,
            status::ACCESS => IscsiProblem::NotPermitted,
            status::DATABASE if self.message.contains("not root") => IscsiProblem::NotPermitted,
            status::TRANSPORT_NOT_FOUND => IscsiProblem::NoModule,
            status::AUTHENTICATION => IscsiProblem::LoginRefused,
            status::FATAL_LOGIN => IscsiProblem::UnknownTarget,
            status::TRANSPORT | status::TRANSPORT_TIMEOUT | status::PDU_TIMEOUT => {
                IscsiProblem::Unreachable(format!("iscsid says: {}", self.message))
            }
            status => IscsiProblem::Failed { what, status, message: self.message },
        }
    }

    fn expect(self, good: &[i32], what: &'static str) -> Result<(), IscsiProblem> {
        if good.contains(&self.status) { Ok(()) } else { Err(self.problem(what)) }
    }
}

fn messages_file() -> io::Result<File> {
    // SAFETY: the name is a valid string; the call makes a new descriptor.
    let fd = unsafe { libc::memfd_create(c"iscsiadm".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// The last line of the messages, or of their beginning if they are long.
fn last_line(messages: &File) -> String {
    let mut bytes = vec![0; MESSAGES];
    let len = messages.read_at(&mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(bytes.get(..len).unwrap_or_default()).into_owned();
    // "iscsiadm: initiator reported error (8 - connection timed out)" and "Maybe you are not root?" say more
    // than what follows them.
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines()
        .find(|line| line.contains("reported error") || line.contains("not root"))
        .or_else(|| lines().next_back());
    line.unwrap_or("no message").trim_start_matches("iscsiadm: ").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_failed_login_has_its_sentence() {
        let table = [
            (4, "the portal does not answer (iscsid says: it failed); "),
            (8, "the portal does not answer (iscsid says: it failed); "),
            (11, "the portal does not answer (iscsid says: it failed); "),
            (12, "the kernel cannot speak iSCSI over TCP; load its module with `modprobe iscsi_tcp`, "),
            (13, "only root may log in to a target; start xvmm as root, "),
            (19, "the portal refuses the login: it has no such target, or does not let this host in; "),
            (
                20,
                "iscsid does not run, or not in this network namespace; start it with `systemctl start iscsid`",
            ),
            (24, "the target refuses the login: user or password (CHAP) are wrong or missing; "),
            (22, "iscsiadm cannot log in (status 22: it failed); "),
            (3, "iscsiadm cannot log in (status 3: it failed); "),
        ];
        for (status, sentence) in table {
            let problem = Outcome { status, message: "it failed".into() }.problem("log in").to_string();
            assert!(problem.starts_with(sentence), "{status}: {problem}");
        }
    }

    #[test]
    fn the_message_that_says_most_is_told() {
        let table = [
            ("", "no message"),
            ("\n \n", "no message"),
            ("iscsiadm: No records found\n", "No records found"),
            ("iscsiadm: one\niscsiadm: two\n\n", "two"),
            (
                "iscsiadm: initiator reported error (8 - x)\niscsiadm: Could not log in",
                "initiator reported error (8 - x)",
            ),
            ("iscsiadm: Maybe you are not root?\niscsiadm: Could not lock", "Maybe you are not root?"),
        ];
        for (text, expected) in table {
            let messages = messages_file().unwrap();
            messages.write_all_at(text.as_bytes(), 0).unwrap();
            assert_eq!(last_line(&messages), expected);
        }
    }
}
