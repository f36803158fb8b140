//! The developer's side: where to run, which tests, and what came out of them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::cases::{self, Case, HostKind};
use crate::nested::{Host, Running};
use crate::packages::Cache;
use crate::{Result, fail, formats, images, kvm};

/// Time in which L1 must begin with its first test.
const START_LIMIT: Duration = Duration::from_secs(180);

/// Where the tests run.
#[derive(Clone, Copy, PartialEq)]
pub enum Place {
    /// On this host's KVM.
    Direct,
    /// In L1.
    Nested,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Direct => "running on this host's KVM",
            Place::Nested => "running nested under QEMU",
        })
    }
}

/// The command line of `run` and `list`.
pub struct Options {
    full: bool,
    part: Option<(usize, usize)>,
    place: Option<Place>,
    jobs: usize,
    patterns: Vec<String>,
}

impl Options {
    /// Parses the words after the subcommand.
    pub fn parse(words: &[String]) -> Result<Options> {
        let mut options = Options { full: false, part: None, place: None, jobs: 2, patterns: Vec::new() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--full" => options.full = true,
                "--nested" => options.place = Some(Place::Nested),
                "--direct" => options.place = Some(Place::Direct),
                "--part" => options.part = Some(part(words.next().map_or("", String::as_str))?),
                "--jobs" => match words.next().and_then(|number| number.parse().ok()) {
                    Some(jobs) if jobs > 0 => options.jobs = jobs,
                    _ => return fail!("--jobs takes a number from 1, for instance --jobs 2"),
                },
                other if other.starts_with('-') => return fail!("unknown option {other}\n{}", crate::USAGE),
                pattern => options.patterns.push(pattern.to_owned()),
            }
        }
        Ok(options)
    }

    fn select(&self) -> Result<Vec<Case>> {
        let mut cases = cases::all(self.full);
        if !self.patterns.is_empty() {
            for pattern in &self.patterns {
                if !cases.iter().any(|case| case.matches(pattern)) {
                    return fail!("there is no test {pattern}; `xvmm-tests list --full` shows all names");
                }
            }
            cases.retain(|case| self.patterns.iter().any(|pattern| case.matches(pattern)));
        }
        if let Some((number, of)) = self.part {
            let mut index = 0;
            cases.retain(|_| {
                index += 1;
                index % of == number % of
            });
        }
        Ok(cases)
    }
}

fn part(text: &str) -> Result<(usize, usize)> {
    if let Some((number, of)) = text.split_once('/')
        && let (Ok(number), Ok(of)) = (number.parse(), of.parse())
        && (1..=of).contains(&number)
    {
        return Ok((number, of));
    }
    fail!("--part takes N/M with 1 <= N <= M, for instance --part 1/2")
}

/// Fetches and builds everything the tests need.
pub fn prepare() -> Result<ExitCode> {
    let cache = Cache::open()?;
    images::guests(&cache)?;
    images::tools(&cache)?;
    formats::build(&cache)?;
    for (label, _) in images::GUEST_KERNELS {
        images::l1(&cache, label)?;
    }
    eprintln!("ready in {}", cache.path("").display());
    Ok(ExitCode::SUCCESS)
}

/// Prints the names of the chosen tests.
pub fn list(options: &Options) -> Result<ExitCode> {
    for case in options.select()? {
        println!("{}", case.id());
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the chosen tests and prints what came out of them.
pub fn run(options: &Options) -> Result<ExitCode> {
    let xvmm = program_under_test()?;
    let place = match options.place {
        Some(place) => place,
        None => choose_place(&xvmm)?,
    };
    eprintln!("{place}");
    let mut results = Results::default();
    let mut waiting = options.select()?;
    while let Some(first) = waiting.first() {
        // One kind of host at a time; what a host that hung has not begun goes to the next start.
        let kind = first.test.host;
        let (batch, rest): (Vec<Case>, Vec<Case>) =
            waiting.into_iter().partition(|case| case.test.host == kind);
        let place = if kind == HostKind::Usual { place } else { Place::Nested };
        waiting = run_batch(&mut results, place, options.jobs, &xvmm, batch)?;
        waiting.extend(rest);
    }
    // Once more what the emulated processor spoilt, see Results::report.
    while !results.again.is_empty() {
        let ids = std::mem::take(&mut results.again);
        let cases: Vec<Case> =
            options.select()?.into_iter().filter(|case| ids.contains(&case.id())).collect();
        results.repeated.extend(ids);
        let mut waiting = cases;
        while !waiting.is_empty() {
            waiting = run_batch(&mut results, Place::Nested, options.jobs, &xvmm, waiting)?;
        }
    }
    if !results.repeated.is_empty() {
        println!("repeated after a fault of the emulated processor: {}", results.repeated.join(" "));
    }
    println!("{} passed, {} failed", results.passed, results.failed);
    Ok(if results.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The xvmm to test: `$XVMM`, or the one built beside this program.
pub fn program_under_test() -> Result<PathBuf> {
    let path = match std::env::var_os("XVMM") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()?.with_file_name("xvmm"),
    };
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) => fail!(
            "the program under test, {}: {error}; build it (cargo build --release -p xvmm) or name it in $XVMM",
            path.display()
        ),
    }
}

/// This host's KVM is used if it can run a guest, which only trying shows.
pub fn choose_place(xvmm: &PathBuf) -> Result<Place> {
    if let Err(error) = kvm::Kvm::open() {
        eprintln!("not on this host's KVM: {error}");
        return Ok(Place::Nested);
    }
    if !kvm::processor_virtualises() {
        eprintln!("not on this host's KVM: its processor has neither the svm nor the vmx flag");
        return Ok(Place::Nested);
    }
    let mut results = Results { quiet: true, ..Results::default() };
    let trial = cases::all(false).into_iter().filter(|case| case.test.name == "boot").collect();
    run_batch(&mut results, Place::Direct, 1, xvmm, trial)?;
    if results.failed == 0 {
        return Ok(Place::Direct);
    }
    eprintln!("not on this host's KVM: a guest does not boot on it\n{}", results.kept);
    Ok(Place::Nested)
}

/// What came out so far.
#[derive(Default)]
struct Results {
    passed: usize,
    failed: usize,
    quiet: bool,
    kept: String,
    /// The tests run in the nested host.
    nested: bool,
    /// To be run once more, and run once more already.
    again: Vec<String>,
    repeated: Vec<String>,
}

/// What QEMU's emulation of a processor with SVM does to its guests now and then: an interrupt that is injected
/// on entry faults and becomes a triple fault, or its frame lands in the host's memory and the host's own kernel
/// panics ("corrupted stack end"). Guests of any VMM suffer from it.
fn spoilt_by_the_emulator(log: &str) -> bool {
    log.contains("triple fault") || log.contains("the tests' host ended early")
}

impl Results {
    /// A test in the nested host that ends by a fault of the emulated processor is run once more; no other
    /// failure, and none on real hardware.
    fn report(&mut self, id: &str, passed: bool, seconds: f32, log: &str) {
        let spoilt = !passed && self.nested && spoilt_by_the_emulator(log);
        let again = spoilt && !self.repeated.iter().any(|done| done == id);
        if passed {
            self.passed += 1;
        } else if again {
            self.again.push(id.to_owned());
        } else {
            self.failed += 1;
        }
        let verdict = if passed {
            "ok"
        } else if again {
            "SPOILT"
        } else {
            "FAIL"
        };
        let line = format!("TEST {id} {verdict} {seconds:.1}s");
        if self.quiet {
            self.kept.push_str(&format!("{line}\n{log}"));
        } else {
            println!("{line}");
            if !passed {
                print!("{log}");
            }
        }
    }
}

/// Runs the cases on one host; those that a host did not get to are returned.
fn run_batch(
    results: &mut Results,
    place: Place,
    jobs: usize,
    xvmm: &PathBuf,
    batch: Vec<Case>,
) -> Result<Vec<Case>> {
    let ids: Vec<String> = batch.iter().map(Case::id).collect();
    let limit = batch.iter().map(|case| case.test.limit).max().unwrap_or_default() + Duration::from_secs(60);
    results.nested = place == Place::Nested;
    let mut side = start(place, jobs, xvmm, &batch)?;
    let lines = read_lines(side.output()?);

    let mut state = BTreeMap::from_iter(ids.iter().map(|id| (id.clone(), Progress::Waiting)));
    let mut deadline = Instant::now() + START_LIMIT;
    let mut tail: Vec<String> = Vec::new();
    let mut current: Option<(String, bool, f32, String)> = None;
    let ending = loop {
        let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => break "hung, and was ended",
            Err(RecvTimeoutError::Disconnected) => break "ended early",
        };
        let Some((_, message)) = line.split_once("@@ ") else {
            // Kernel messages of L1 and the like; they explain an early end.
            tail.push(line);
            if tail.len() > 40 {
                tail.remove(0);
            }
            continue;
        };
        deadline = Instant::now() + limit;
        let (word, rest) = message.split_once(' ').unwrap_or((message, ""));
        let (id, value) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "START" => {
                eprintln!("started {id}");
                state.insert(id.to_owned(), Progress::Started(Instant::now()));
            }
            "PASS" | "FAIL" => {
                current = Some((id.to_owned(), word == "PASS", value.parse().unwrap_or(0.0), String::new()));
            }
            "LOG" => {
                if let Some((_, _, _, log)) = &mut current {
                    log.push_str(&format!("    {rest}\n"));
                }
            }
            "DONE" => {
                if let Some((id, passed, seconds, log)) = current.take() {
                    results.report(&id, passed, seconds, &log);
                    state.remove(&id);
                }
            }
            "END" => break "ended",
            _ => tail.push(line),
        }
    };
    drop(side);
    let begun = state.values().any(|progress| matches!(progress, Progress::Started(_)));
    if !begun && state.len() == ids.len() {
        let tail = tail.join("\n");
        return fail!("the tests' host {ending} before the first test began; it said last:\n{tail}");
    }
    let mut rest = Vec::new();
    for case in batch {
        match state.get(&case.id()) {
            None => {}
            Some(Progress::Started(at)) => {
                let said: String = tail.iter().map(|line| format!("    {line}\n")).collect();
                let log = format!("    the tests' host {ending} during this test; it said last:\n{said}");
                results.report(&case.id(), false, at.elapsed().as_secs_f32(), &log);
            }
            Some(Progress::Waiting) if begun => rest.push(case),
            Some(Progress::Waiting) => {
                results.report(&case.id(), false, 0.0, "    the tests' host never began it\n");
            }
        }
    }
    Ok(rest)
}

enum Progress {
    Waiting,
    Started(Instant),
}

/// The process whose output carries the results.
enum Side {
    Direct(std::process::Child),
    Nested(Running),
}

impl Side {
    fn output(&mut self) -> Result<impl Read + Send + 'static> {
        let child = match self {
            Side::Direct(child) => child,
            Side::Nested(running) => &mut running.child,
        };
        match child.stdout.take() {
            Some(output) => Ok(output),
            None => fail!("the tests' host has no output"),
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Side::Direct(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start(place: Place, jobs: usize, xvmm: &PathBuf, batch: &[Case]) -> Result<Side> {
    let cache = Cache::open()?;
    images::guests(&cache)?;
    let ids = batch.iter().map(Case::id);
    let formats = batch.iter().any(|case| case.test.name == "formats");
    let formats = if formats { Some(formats::build(&cache)?) } else { None };
    match place {
        Place::Direct => {
            let tools = images::tools(&cache)?;
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("inside").arg(jobs.to_string()).args(ids);
            command.env("XVMM", xvmm).env("XVMM_MATERIAL", cache.path("")).env("XVMM_TOOLS", tools);
            Ok(Side::Direct(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
        }
        Place::Nested => {
            let ids: Vec<String> = ids.collect();
            let script = format!(
                "dmesg -n 1\ndmesg -c > /dev/null\nexport XVMM=/usr/bin/xvmm XVMM_MATERIAL=/tests XVMM_TOOLS=/tests/tools\n\
                 /tests/xvmm-tests inside {jobs} {}\n",
                ids.join(" ")
            );
            let mut host = Host::new(&cache, script)?;
            host.programs.push(("/usr/bin/xvmm".to_owned(), xvmm.clone()));
            host.take(&images::tools(&cache)?, "/tests/tools")?;
            if let Some(formats) = formats {
                host.take(&formats, "/tests/formats")?;
            }
            if batch.iter().any(|case| case.test.host == HostKind::WithoutXen) {
                host.kernel = "6.1".to_owned();
            }
            Ok(Side::Nested(host.start(&cache)?))
        }
    }
}

fn read_lines(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        // Consoles carry any bytes: lines are not necessarily UTF-8.
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(words: &[&str]) -> Result<Options> {
        Options::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn only_what_the_emulator_spoilt_runs_again_and_only_once() {
        let spoilt = "    xvmm: the guest crashed: triple fault vcpu=1\n";
        let mut nested = Results { quiet: true, nested: true, ..Results::default() };
        nested.report("a", false, 1.0, spoilt);
        nested.report("b", false, 1.0, "    the sums differ\n");
        assert_eq!((nested.again.clone(), nested.failed), (vec!["a".to_owned()], 1));
        nested.repeated = std::mem::take(&mut nested.again);
        nested.report("a", false, 1.0, spoilt);
        assert_eq!((nested.again.len(), nested.failed), (0, 2));
        let mut direct = Results { quiet: true, ..Results::default() };
        direct.report("a", false, 1.0, spoilt);
        assert_eq!((direct.again.len(), direct.failed), (0, 1));
    }

    #[test]
    fn the_parts_hold_every_test_once() {
        let ids = |words: &[&str]| -> Vec<String> {
            options(words).unwrap().select().unwrap().iter().map(Case::id).collect()
        };
        let mut parts: Vec<String> =
            (1..=3).flat_map(|part| ids(&["--full", "--part", &format!("{part}/3")])).collect();
        let mut all = ids(&["--full"]);
        parts.sort();
        all.sort();
        assert_eq!(parts, all);
    }

    #[test]
    fn senseless_parts_and_unknown_tests_are_refused() {
        for words in [["--part", "0/2"], ["--part", "3/2"], ["--part", "x"], ["--jobs", "0"]] {
            assert!(options(&words).is_err(), "{words:?}");
        }
        assert!(options(&["no-such-test"]).unwrap().select().is_err());
    }
}
