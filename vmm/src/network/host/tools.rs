//! The programs of the host that are used: found, and run to their end.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked whether it has ended.
const POLL: Duration = Duration::from_millis(5);
/// Bytes of its output that are read.
const OUTPUT: u64 = 16 << 20;

/// Finds programs.
#[derive(Clone, Debug)]
pub struct Tools {
    /// As PATH; sbin is looked at after it.
    path: OsString,
    dnsmasq: Option<PathBuf>,
    nft: Option<PathBuf>,
}

impl Tools {
    /// The programs in the folders of PATH; `XVMM_DNSMASQ` and `XVMM_NFT` name these two.
    pub fn from_env() -> Tools {
        let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Tools {
            path: std::env::var_os("PATH").unwrap_or_default(),
            dnsmasq: named("XVMM_DNSMASQ"),
            nft: named("XVMM_NFT"),
        }
    }

    /// Where the program is.
    pub(super) fn find(&self, name: &str) -> Option<PathBuf> {
        let runs = |program: &PathBuf| {
            program.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let given = match name {
            "dnsmasq" => self.dnsmasq.clone(),
            "nft" => self.nft.clone(),
            _ => None,
        };
        if let Some(program) = given {
            return Some(program).filter(runs);
        }
        let folders = std::env::split_paths(&self.path).chain(["/usr/sbin".into(), "/sbin".into()]);
        folders.map(|folder| folder.join(name)).find(runs)
    }

    /// Runs the program to its end with `input`, and returns what it wrote. An error has its last line.
    pub(super) fn run(&self, name: &str, args: &[&str], input: &str) -> io::Result<String> {
        let program = self.find(name).ok_or_else(|| io::Error::other(format!("there is no {name}")))?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read has no use for it; its exit status tells.
            let _ = stdin.write_all(input.as_bytes());
        }
        let deadline = Instant::now() + TIMEOUT;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(io::Error::other(format!("{name} does not end")));
            }
            std::thread::sleep(POLL);
        };
        let text = |thread: Option<std::thread::JoinHandle<String>>| {
            thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        if status.success() {
            return Ok(stdout);
        }
        let line = stderr.lines().chain(stdout.lines()).find(|line| !line.trim().is_empty());
        Err(io::Error::other(format!("{name}: {}", line.unwrap_or("it failed").trim())))
    }
}

fn collect(pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until then is all there is.
        let _ = pipe.take(OUTPUT).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
