//! The developer's side: where to run, which tests, and what came out of them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::cases::{self, Case, HostKind};
use crate::nested::{self, Host, Running};
use crate::packages::Cache;
use crate::storage::{self, Storage};
use crate::{Result, fail, formats, images, kvm, network, pc_images, pvhvm_images};

/// Time in which L1 must be ready for its first test.
const START_LIMIT: Duration = Duration::from_secs(600);

/// Time in which a nested host that hangs says what it is at.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

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
    pc_images::build(&cache)?;
    pvhvm_images::build(&cache)?;
    storage::build(&cache, "6.12")?;
    network::KIT.build(&cache, "6.12")?;
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
        // One kind of host at a time.
        let kind = first.test.host;
        let (batch, rest): (Vec<Case>, Vec<Case>) =
            waiting.into_iter().partition(|case| case.test.host == kind);
        let place = if kind == HostKind::Usual { place } else { Place::Nested };
        run_batch(&mut results, place, options.jobs, &xvmm, batch)?;
        waiting = rest;
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
pub fn choose_place(xvmm: &Path) -> Result<Place> {
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
}

impl Results {
    fn report(&mut self, id: &str, passed: bool, seconds: f32, log: &str) {
        let verdict = if passed { "ok" } else { "FAIL" };
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        let line = format!("TEST {id} {verdict} {seconds:.1}s");
        if self.quiet {
            self.kept.push_str(&format!("{line}\n{log}"));
        } else {
            print!("{line}\n{log}");
        }
    }
}

/// Runs the cases, up to `jobs` at a time, each on a station of its own.
fn run_batch(
    results: &mut Results,
    place: Place,
    jobs: usize,
    xvmm: &Path,
    mut waiting: Vec<Case>,
) -> Result<()> {
    // Longest first, so that the last one does not run alone; those that measure come at the end.
    waiting.sort_by_key(|case| (!case.test.alone, case.test.limit));
    let material = Material::new(place, &waiting)?;
    let (sender, messages) = mpsc::channel();
    let mut stations: BTreeMap<usize, Station> = BTreeMap::new();
    let mut made = 0;
    while !waiting.is_empty() || !stations.is_empty() {
        if stations.len() < jobs.min(stations.values().filter(|s| s.busy()).count() + waiting.len()) {
            stations.insert(made, Station::start(place, &material, xvmm, made, &sender)?);
            made += 1;
        }
        give_work(place, &mut stations, &mut waiting)?;
        let Some(deadline) = stations.values().map(|station| station.deadline).min() else { continue };
        match messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((number, line)) => {
                let Some(station) = stations.get_mut(&number) else { continue };
                match line {
                    Some(line) => station.take(line, results),
                    None => end_station(stations.remove(&number), "ended early", results)?,
                }
            }
            Err(_) => {
                let now = Instant::now();
                let late: Vec<usize> =
                    stations.iter().filter(|(_, s)| s.deadline <= now).map(|(number, _)| *number).collect();
                for number in late {
                    if stations.get_mut(&number).is_some_and(Station::question) {
                        continue;
                    }
                    end_station(stations.remove(&number), "hung, and was ended", results)?;
                }
            }
        }
    }
    Ok(())
}

/// A test for each station that waits for one; a station that nothing is left for ends.
fn give_work(place: Place, stations: &mut BTreeMap<usize, Station>, waiting: &mut Vec<Case>) -> Result<()> {
    let numbers: Vec<usize> = stations.keys().copied().collect();
    for number in numbers {
        let busy: Vec<&Case> = stations.values().filter_map(|station| station.case.as_ref()).collect();
        // Nested, each has a host for itself anyway.
        let alone = place == Place::Direct
            && (busy.iter().any(|case| case.test.alone)
                || !busy.is_empty() && waiting.last().is_some_and(|case| case.test.alone));
        let Some(station) = stations.get_mut(&number) else { continue };
        if !station.ready || station.busy() {
            continue;
        }
        if waiting.is_empty() {
            stations.remove(&number);
        } else if !alone && let Some(case) = waiting.pop() {
            station.give(case)?;
        }
    }
    Ok(())
}

/// A station went away. What it was at has failed; that one never began is an error.
fn end_station(station: Option<Station>, ending: &str, results: &mut Results) -> Result<()> {
    let Some(station) = station else { return Ok(()) };
    let said: String = station.tail.iter().map(|line| format!("    {line}\n")).collect();
    match &station.case {
        Some(case) => {
            let log = format!("    the tests' host {ending} during this test; it said last:\n{said}");
            results.report(&case.id(), false, station.since.elapsed().as_secs_f32(), &log);
            Ok(())
        }
        None if station.ready => Ok(()),
        None => fail!("the tests' host {ending} before its first test began; it said last:\n{said}"),
    }
}

/// What the stations of a batch need besides the program under test.
struct Material {
    cache: Cache,
    tools: PathBuf,
    formats: Option<PathBuf>,
    storage: Option<Storage>,
    network: Option<PathBuf>,
    /// The disk of a PC.
    pc: Option<PathBuf>,
    /// The disks of PCs with PV drivers.
    pvhvm: Option<PathBuf>,
    /// Label of the nested host's kernel.
    kernel: &'static str,
}

impl Material {
    fn new(place: Place, cases: &[Case]) -> Result<Material> {
        let cache = Cache::open()?;
        images::guests(&cache)?;
        let tools = images::tools(&cache)?;
        let formats = cases.iter().any(|case| case.test.name == "formats");
        let formats = if formats { Some(formats::build(&cache)?) } else { None };
        let needs = |kind| cases.iter().any(|case| case.test.host == kind);
        let kernel = if needs(HostKind::WithoutXen) { "6.1" } else { "6.12" };
        let storage = if needs(HostKind::Storage) { Some(storage::build(&cache, kernel)?) } else { None };
        let network = if needs(HostKind::Network) { Some(network::KIT.build(&cache, kernel)?) } else { None };
        let pc = cases.iter().any(|case| ["pc-linux", "pc-reboots"].contains(&case.test.name));
        let pc = if pc { Some(pc_images::build(&cache)?) } else { None };
        let pvhvm = cases.iter().any(|case| case.test.name.starts_with("pc-pvhvm"));
        let pvhvm = if pvhvm { Some(pvhvm_images::build(&cache)?) } else { None };
        if place == Place::Nested {
            images::l1(&cache, kernel)?;
        }
        Ok(Material { cache, tools, formats, storage, network, pc, pvhvm, kernel })
    }
}

/// The process that runs tests, one at a time: the runner, here or in a nested host of its own.
enum Side {
    Direct(Child),
    Nested(Running),
}

impl Side {
    fn child(&mut self) -> &mut Child {
        match self {
            Side::Direct(child) => child,
            Side::Nested(running) => &mut running.child,
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Side::Direct(child) = self {
            // Without orders it ends, and removes its folders.
            for _ in 0..100 {
                if !matches!(child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Station {
    // Closed before the side is dropped: a runner without orders ends.
    orders: ChildStdin,
    side: Side,
    ready: bool,
    case: Option<Case>,
    /// When the current test began.
    since: Instant,
    deadline: Instant,
    /// The last lines that were no messages: they explain an early end.
    tail: Vec<String>,
    questioned: bool,
    /// The verdict on the current test, and its log so far.
    verdict: Option<(bool, f32, String)>,
}

impl Station {
    fn start(
        place: Place,
        material: &Material,
        xvmm: &Path,
        number: usize,
        sender: &mpsc::Sender<(usize, Option<String>)>,
    ) -> Result<Station> {
        let mut side = match place {
            Place::Direct => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("inside").stdin(Stdio::piped()).stdout(Stdio::piped());
                command.env("XVMM", xvmm).env("XVMM_MATERIAL", material.cache.path(""));
                Side::Direct(command.env("XVMM_TOOLS", &material.tools).spawn()?)
            }
            Place::Nested => {
                let script = "dmesg -n 1\n\
                    for part in storage network; do [ ! -f /tests/$part ] || . /tests/$part; done\n\
                    dmesg -c > /dev/null\nstty -echo\n\
                    export XVMM=/usr/bin/xvmm XVMM_MATERIAL=/tests XVMM_TOOLS=/tests/tools\n\
                    /tests/xvmm-tests inside\n";
                let mut host = Host::new(&material.cache, script.to_owned())?;
                host.programs.push(("/usr/bin/xvmm".to_owned(), xvmm.to_owned()));
                host.take(&material.tools, "/tests/tools")?;
                if let Some(formats) = &material.formats {
                    host.take(formats, "/tests/formats")?;
                }
                if let Some(pvhvm) = &material.pvhvm {
                    host.take(pvhvm, "/tests/pvhvm")?;
                }
                if let Some(storage) = &material.storage {
                    host.archives.push(storage.archive.clone());
                    host.files.push(("/tests/fio".to_owned(), storage.fio.clone()));
                }
                if let Some(pc) = &material.pc {
                    host.files.push(("/tests/pc/disk.img".to_owned(), pc.join("disk.img")));
                }
                host.archives.extend(material.network.clone());
                material.kernel.clone_into(&mut host.kernel);
                Side::Nested(host.start(&material.cache)?)
            }
        };
        let child = side.child();
        let (Some(orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return fail!("the tests' host has no input or output");
        };
        let sender = sender.clone();
        std::thread::spawn(move || {
            read_lines(output, |line| sender.send((number, Some(line))).is_ok());
            let _ = sender.send((number, None));
        });
        Ok(Station {
            orders,
            side,
            ready: false,
            case: None,
            since: Instant::now(),
            deadline: Instant::now() + START_LIMIT,
            tail: Vec::new(),
            questioned: false,
            verdict: None,
        })
    }

    fn busy(&self) -> bool {
        self.case.is_some() || !self.ready
    }

    fn give(&mut self, case: Case) -> Result<()> {
        eprintln!("started {}", case.id());
        // One that ended meanwhile is found out by its output.
        let _ = writeln!(self.orders, "{}", case.id());
        self.since = Instant::now();
        self.deadline = self.since + case.test.limit + Duration::from_secs(60);
        self.case = Some(case);
        Ok(())
    }

    /// Asks a nested host that hangs what it is at; false if there is nothing more to learn from it.
    fn question(&mut self) -> bool {
        if self.questioned || matches!(self.side, Side::Direct(_)) || !self.ready {
            return false;
        }
        self.questioned = true;
        self.deadline = Instant::now() + ANSWER_LIMIT;
        nested::QUESTIONS.iter().all(|question| {
            // Its serial line takes one such key at a time.
            std::thread::sleep(Duration::from_secs(1));
            self.orders.write_all(question).is_ok()
        })
    }

    fn take(&mut self, line: String, results: &mut Results) {
        let Some((_, message)) = line.split_once("@@ ") else {
            self.tail.push(line);
            if self.tail.len() > 40 && !self.questioned {
                self.tail.remove(0);
            }
            return;
        };
        let (word, rest) = message.split_once(' ').unwrap_or((message, ""));
        match word {
            "READY" => self.ready = true,
            "PASS" | "FAIL" => {
                let seconds = rest.split(' ').next_back().and_then(|word| word.parse().ok());
                self.verdict = Some((word == "PASS", seconds.unwrap_or(0.0), String::new()));
            }
            "LOG" => {
                if let Some((_, _, log)) = &mut self.verdict {
                    log.push_str(&format!("    {rest}\n"));
                }
            }
            "DONE" => {
                if let (Some(case), Some((passed, seconds, log))) = (self.case.take(), self.verdict.take()) {
                    results.report(&case.id(), passed, seconds, &log);
                    // It waits for the next one as long as it takes.
                    self.deadline = Instant::now() + Duration::from_secs(24 * 3600);
                }
            }
            _ => self.tail.push(line),
        }
    }
}

/// Calls `each` for each line, until it says no.
fn read_lines(output: impl Read, each: impl Fn(String) -> bool) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    // Consoles carry any bytes: lines are not necessarily UTF-8.
    while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        if !each(String::from_utf8_lossy(&line).trim_end().to_owned()) {
            return;
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(words: &[&str]) -> Result<Options> {
        Options::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
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
