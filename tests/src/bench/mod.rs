//! Benchmarks: xvmm beside QEMU's Xen emulation and QEMU's microvm, with the same guest on the same KVM.
//!
//! Each round runs all of them on one KVM host, which is a nested one of its own unless told otherwise, so that
//! a drift of the machine's speed meets all alike. A round whose host dies counts for nothing and is repeated.
//! [`material`] makes what they need, [`measure`] runs one VMM and reads its figures, [`load`] is the load in the
//! guest, [`report`] writes the tables.

mod load;
mod material;
mod measure;
mod peers;
mod report;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

pub use load::{disk, net};
pub use measure::inside;

use crate::driver::{self, Place};
use crate::nested::{Host, Running};
use crate::packages::Cache;
use crate::{Result, fail, runner};
use peers::Peer;
use report::Figures;

/// Size of the disk, and of what is written to it.
const DISK_MIB: u64 = 96;
/// RAM of the nested host in MiB: the images of this benchmark are large.
const HOST_MIB: u32 = 4096;
/// How often a round is begun: a nested host with two processors dies now and then (see [`Host::processors`]).
const TRIES: u32 = 4;
/// What the kernel of a host says when a processor of it waits for ever for another one, which lost an interrupt.
const LOCKUP: &str = "BUG: soft lockup";
/// A host that says nothing for so long stands still: no figure takes longer ([`measure`]).
const SILENCE: Duration = Duration::from_secs(240);
/// Kinds of rounds: boots only, and load on disk and network.
const BOOT: &str = "boot";
const LOAD: &str = "load";

const USAGE: &str = "\
usage: tests/bench [--rounds N] [--loads N] [--direct] [--write] [PEER...]
  --rounds N   boots of each peer (5)
  --loads N    runs of each peer with load on disk and network (3)
  --direct     on this host's KVM (as root) instead of a nested host
  --write      put the result into docs/benchmarks.md, too";

struct Options {
    rounds: u32,
    loads: u32,
    direct: bool,
    write: bool,
    peers: Vec<Peer>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Options> {
        let mut options = Options { rounds: 5, loads: 3, direct: false, write: false, peers: Vec::new() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|word| word.parse().ok());
            match word.as_str() {
                "--rounds" | "--loads" => {
                    let Some(number) = number() else {
                        return fail!("{word} takes a number\n{USAGE}");
                    };
                    *(if word == "--rounds" { &mut options.rounds } else { &mut options.loads }) = number;
                }
                "--direct" => options.direct = true,
                "--write" => options.write = true,
                name => match Peer::find(name) {
                    Some(peer) => options.peers.push(peer),
                    None => return fail!("there is no peer or option {name}; {}\n{USAGE}", Peer::list()),
                },
            }
        }
        if options.peers.is_empty() {
            options.peers = Peer::ALL.to_vec();
        }
        Ok(options)
    }

    /// The words of `bench-inside` for one round.
    fn inside(&self, disk: &Path, round: &Round) -> Vec<String> {
        let mut words = vec![disk.display().to_string(), round.kind.to_owned(), round.name.clone()];
        words.extend(self.peers.iter().map(|peer| peer.name().to_owned()));
        words
    }

    fn rounds(&self) -> impl Iterator<Item = Round> {
        let of = |kind, count| (1..=count).map(move |i| Round { kind, name: format!("{i}/{count}") });
        of(BOOT, self.rounds).chain(of(LOAD, self.loads))
    }
}

/// One run of every peer, all on the same host.
struct Round {
    kind: &'static str,
    name: String,
}

/// `bench`: prepares everything, measures and reports.
pub fn bench(words: &[String]) -> Result<ExitCode> {
    let options = Options::parse(words)?;
    let xvmm = driver::program_under_test()?;
    let cache = Cache::open()?;
    let made = material::build(&cache)?;
    let place = if options.direct { Place::Direct } else { Place::Nested };
    eprintln!("{place}");
    let mut figures = Figures::default();
    for round in options.rounds() {
        let mut tries = 0;
        let measured = loop {
            tries += 1;
            let mut side = match place {
                Place::Direct => Side::Direct(direct(&options, &cache, &xvmm, &round)?),
                Place::Nested => Side::Nested(nested(&options, &cache, &xvmm, &made, &round)?),
            };
            match side.measure()? {
                Ok(measured) => break measured,
                Err(()) if tries < TRIES => {
                    eprintln!("The host of {} {} ended early; once more.", round.kind, round.name);
                    figures.repeated += 1;
                }
                Err(()) => {
                    return fail!("the host of {} {} ended early {TRIES} times", round.kind, round.name);
                }
            }
        };
        figures.append(measured);
    }
    for (name, text) in figures.report(place, &made) {
        println!("{text}");
        if options.write {
            report::write(name, &text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `bench-write NAME`: puts the tables on standard input into docs/benchmarks.md.
pub fn write(words: &[String]) -> Result<ExitCode> {
    let [name] = words else {
        return fail!("{}", crate::USAGE);
    };
    report::write(name, &std::io::read_to_string(std::io::stdin())?)?;
    Ok(ExitCode::SUCCESS)
}

enum Side {
    Direct(Child),
    Nested(Running),
}

impl Side {
    /// The figures of the host's round; the inner error is a host that ended, or stands still, before its round did.
    fn measure(&mut self) -> Result<std::result::Result<Figures, ()>> {
        let output = match self {
            Side::Direct(child) => child.stdout.take(),
            Side::Nested(running) => running.child.stdout.take(),
        };
        let Some(output) = output else {
            return fail!("the benchmarks' host has no output");
        };
        let mut figures = Figures::default();
        let (sender, lines) = mpsc::channel();
        // It ends with the host's output, at the latest when this value is dropped.
        std::thread::spawn(move || {
            let lines = BufReader::new(output).split(b'\n').map_while(|line| line.ok());
            lines.into_iter().try_for_each(|line| sender.send(line))
        });
        while let Ok(line) = lines.recv_timeout(SILENCE) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            match text.split_once("@@ ").map(|(_, message)| message.split(' ').collect::<Vec<_>>()) {
                Some(words) => match words.as_slice() {
                    ["FIGURE", peer, metric, value] => {
                        eprintln!("  {metric} {value}");
                        figures.add(peer, metric, value);
                    }
                    ["HOST", words @ ..] => figures.host = words.join(" "),
                    ["END", ..] => return Ok(Ok(figures)),
                    words => {
                        eprintln!("{}", words.join(" "));
                        // FAILED kind round [load] peer: reason
                        let peer = words.iter().find_map(|word| word.strip_suffix(':'));
                        if let (Some(&"FAILED"), Some(peer)) = (words.first(), peer) {
                            figures.failed(peer);
                        }
                    }
                },
                None => {
                    eprintln!("{text}");
                    if text.contains(LOCKUP) {
                        break;
                    }
                }
            }
        }
        Ok(Err(()))
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

fn direct(options: &Options, cache: &Cache, xvmm: &Path, round: &Round) -> Result<Child> {
    runner::isolate()?;
    let disk = cache.path("bench.img");
    std::fs::File::create(&disk)?.set_len(DISK_MIB << 20)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bench-inside").args(options.inside(&disk, round));
    command.env("XVMM", xvmm).env("XVMM_MATERIAL", cache.path(""));
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
}

fn nested(
    options: &Options,
    cache: &Cache,
    xvmm: &Path,
    made: &material::Material,
    round: &Round,
) -> Result<Running> {
    let script = format!(
        "dmesg -n 1\ninsmod /tests/brd.ko rd_nr=1 rd_size={}\n\
         XVMM=/usr/bin/xvmm XVMM_MATERIAL=/tests /tests/xvmm-tests bench-inside {}\n",
        DISK_MIB << 10,
        options.inside(Path::new("/dev/ram0"), round).join(" ")
    );
    let mut host = Host::new(cache, script)?;
    host.memory = HOST_MIB;
    // QEMU as a guest's VMM does not boot reliably on one.
    host.processors = 2;
    host.emulator = Some(made.folder.join("qemu"));
    host.programs.push(("/usr/bin/xvmm".to_owned(), xvmm.to_owned()));
    host.files.push(("/tests/brd.ko".to_owned(), made.ram_disk_module.clone()));
    host.take(&made.folder, "/tests/bench")?;
    host.start(cache)
}
