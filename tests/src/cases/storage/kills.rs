//! SIGKILL in the middle of a write load.

use std::fs;
use std::io::Read;
use std::time::Duration;

use super::host::{must_be_clean, qemu_check, qemu_img, wait_until};
use crate::cases::Bench;
use crate::guest::Spec;
use crate::records::{self, DURABLE, Run};
use crate::{Result, fail};

const NAME: &str = "killed";
/// Numbers of records between the runs: more than a run can have written without saying so.
const GAP: u64 = 1 << 20;

/// xvmm is killed at random moments while the guest writes to a qcow2 image: the image is never corrupt, it is
/// clean once xvmm has had it open again, and everything that the guest has flushed is there.
pub fn kills(bench: &Bench) -> Result<()> {
    let image = bench.folder.join("image.qcow2");
    let size = records::DISK.to_string();
    qemu_img(&["create", "-q", "-f", "qcow2", &image.display().to_string(), &size])?;
    let spec = bench
        .guest()
        .name(NAME)
        .with_test_program("/bin/xvmm-tests")?
        .disk(format!("format=qcow2,vdev=xvda,target={}", image.display()));
    let mut runs: Vec<Run> = Vec::new();
    for time in 1..=5 {
        let first = runs.last().map_or(0, |run| run.last.unwrap_or(run.first) + GAP);
        let delay = random()? % 4000;
        let last = killed(&spec, first, Duration::from_millis(delay))?;
        runs.push(Run { first, last: Some(last) });
        let verdict = qemu_check(&image)?;
        let survived = || -> Result<u64> {
            let plain = bench.folder.join("plain");
            let (from, to) = (image.display().to_string(), plain.display().to_string());
            qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &from, &to])?;
            records::verify(&plain, &runs)
        };
        let places = survived().map_err(|error| format!("kill {time}: {error}"))?;
        let leaks = if verdict == super::host::Verdict::Leaks { "leaked clusters" } else { "clean" };
        println!(
            "kill {time} after {delay} ms, record {last}: {leaks}, {places} places hold what was flushed"
        );
        opened_and_closed(bench, &spec)?;
        must_be_clean(&image).map_err(|error| format!("kill {time}: {error}"))?;
        survived().map_err(|error| format!("kill {time}, after it was opened again: {error}"))?;
    }
    Ok(())
}

/// Starts the load and kills xvmm some time after the first batch is durable; returns the last durable record.
fn killed(spec: &Spec, first: u64, delay: Duration) -> Result<u64> {
    let mut guest = spec.start()?;
    guest.send(&format!("xvmm-tests records /dev/xvda {first}"))?;
    guest.wait_console(DURABLE, Duration::from_secs(600))?;
    std::thread::sleep(delay);
    guest.signal(libc::SIGKILL)?;
    guest.wait(Duration::from_secs(300))?;
    let console = guest.console();
    // The last line may be cut off.
    let complete = console.rsplit_once('\n').map_or("", |(complete, _)| complete);
    let last = complete.lines().rev().find_map(|line| line.strip_prefix(DURABLE)?.parse().ok());
    match last {
        Some(last) => Ok(last),
        None => fail!("no record was durable: {console}"),
    }
}

/// xvmm opens the image, and is told to end.
fn opened_and_closed(bench: &Bench, spec: &Spec) -> Result<()> {
    let mut guest = spec.spawn()?;
    wait_until("the domain answers", 300, || Ok(bench.xvmm(&["info", NAME]).is_ok()))?;
    bench.xvmm(&["destroy", NAME])?;
    guest.ends_with(5)?;
    bench.nothing_is_left()
}

fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
