//! Programs of the host: found, run to their end within a time limit, and heard.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// How often it is looked whether a program has ended.
const POLL: Duration = Duration::from_millis(2);
/// Bytes of output that are read.
const OUTPUT: usize = 16 << 20;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// `None`: it was stopped when the time was over.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    pub(crate) fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// What it said, in a line: the first line on stderr, or how it ended.
    pub(crate) fn complaint(&self) -> String {
        let line =
            self.stderr.lines().chain(self.stdout.lines()).map(str::trim).find(|line| !line.is_empty());
        match (line, self.status) {
            (Some(line), _) => line.to_owned(),
            (None, Some(status)) => status.to_string(),
            (None, None) => "it does not end".to_owned(),
        }
    }
}

/// The program `name` in the folders of PATH, or where administrators' programs are.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path: OsString = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|program| is_program(program))
}

/// Whether the file can be run.
pub(crate) fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs `command` with `input`, at most for `limit`.
pub(crate) fn run(command: &mut Command, input: &str, limit: Duration) -> io::Result<Output> {
    // Files and not pipes: what the program starts may keep those open, and we would wait for its end.
    let (stdin, stdout, stderr) = (scratch_file()?, scratch_file()?, scratch_file()?);
    stdin.write_all_at(input.as_bytes(), 0)?;
    (&stdin).flush()?;
    command.stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let status = run_within(command, limit)?;
    Ok(Output { status, stdout: text(&stdout), stderr: text(&stderr) })
}

/// Runs `command` to its end, or stops it when the time is over.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let mut child = command.spawn()?;
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// An empty file in memory.
pub(crate) fn scratch_file() -> io::Result<File> {
    // SAFETY: the name is a valid string; the call makes a new descriptor.
    let fd = unsafe { libc::memfd_create(c"scratch".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

fn text(file: &File) -> String {
    let len = file.metadata().map_or(0, |meta| usize::try_from(meta.len()).unwrap_or(OUTPUT));
    let mut bytes = vec![0; len.min(OUTPUT)];
    let len = file.read_at(&mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(bytes.get(..len).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shell(script: &str, input: &str, limit: Duration) -> Output {
        run(Command::new("sh").args(["-c", script]), input, limit).unwrap()
    }

    #[test]
    fn a_program_is_heard() {
        let output = shell("cat; echo; echo bad >&2; exit 3", "hello", Duration::from_secs(60));
        assert_eq!((output.stdout.as_str(), output.complaint().as_str()), ("hello\n", "bad"));
        assert!(!output.success());
        assert!(shell("true", "", Duration::from_secs(60)).success());
    }

    #[test]
    fn a_program_that_does_not_end_is_stopped() {
        let output = shell("exec sleep 1000", "", Duration::ZERO);
        assert!(output.status.is_none());
        assert_eq!(output.complaint(), "it does not end");
    }

    #[test]
    fn what_a_program_leaves_running_is_not_waited_for() {
        let output = shell("sleep 5 & echo $!", "", Duration::from_secs(60));
        assert!(output.success());
        let child = Path::new("/proc").join(output.stdout.trim());
        assert!(child.exists(), "it was waited for");
    }

    #[test]
    fn programs_are_found() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
