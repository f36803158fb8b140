//! blkback without a guest beside fio's io_uring engine: the same file, block size and depth, in turns.
//!
//! The frontend is a thread of this program that plays a guest with one busy processor: it looks at its rings all the
//! time, takes all responses and puts as many requests into the ring again. With large requests, which come seldom, it
//! leaves the processor to whom wants it, as the storage may have much to copy. Prints a table; see docs/benchmarks.md.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use blkback::protocol::Protocol;
use blkback::testing::{Front, READ, Segment, WRITE, config, segment_list, whole};
use blkback::{BlockDevice, DiskImage};
use devices::memory::PAGE_SIZE;
use devices::testing::FakeGuest;
use devices::xen::GrantRef;
use devices::xen::grant_table::Access;
use vm_memory::{Bytes, GuestAddress};

const ROUNDS: usize = 5;
const DURATION: Duration = Duration::from_secs(3);
const FILE: u64 = 1 << 30;

/// What is done to the file.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    /// Of fio.
    rw: &'static str,
    block: usize,
    depth: usize,
}

const LOADS: [Load; 4] = [
    Load { name: "4 KiB random read, depth 32", rw: "randread", block: 4 << 10, depth: 32 },
    Load { name: "4 KiB random write, depth 32", rw: "randwrite", block: 4 << 10, depth: 32 },
    Load { name: "1 MiB sequential read, depth 8", rw: "read", block: 1 << 20, depth: 8 },
    Load { name: "1 MiB sequential write, depth 8", rw: "write", block: 1 << 20, depth: 8 },
];

/// One run.
#[derive(Clone, Copy, Default)]
struct Run {
    /// Requests per second.
    rate: f64,
    /// Microseconds of CPU per request: fio's, or those of the disk's threads.
    cpu: f64,
    /// System calls of the disk's threads per request.
    calls: f64,
    bounces: u64,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let folder = words.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let file = tempfile::Builder::new().prefix("xvmm-ring-").tempfile_in(folder).unwrap();
    fill(file.path());

    let [pin, copy] = page_costs();
    println!(
        "A grant pinned and given back: {pin:.0} ns a page. The copy that a persistent grant costs: {copy:.0} ns.\n"
    );
    println!("| load | fio | one queue | of fio | two queues | of fio |");
    println!("|---|---:|---:|---:|---:|---:|");
    for load in LOADS {
        let mut runs: [Vec<Run>; 3] = Default::default();
        for _ in 0..ROUNDS {
            runs[0].push(fio(file.path(), load));
            runs[1].push(rings(file.path(), load, 1));
            runs[2].push(rings(file.path(), load, 2));
        }
        let median = |which: usize, of: fn(&Run) -> f64| {
            let mut values: Vec<f64> = runs[which].iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        assert_eq!(
            runs.iter().flatten().map(|run| run.bounces).sum::<u64>(),
            0,
            "aligned requests were bounced"
        );
        let [fio, one, two] = [0, 1, 2].map(|which| median(which, |run| run.rate));
        println!(
            "| {}, requests/s | {fio:.0} | {one:.0} | {:.2} | {two:.0} | {:.2} |",
            load.name,
            one / fio,
            two / fio
        );
        let [fio, one, two] = [0, 1, 2].map(|which| median(which, |run| run.cpu));
        println!(
            "| CPU time per request, µs | {fio:.2} | {one:.2} | {:.2} | {two:.2} | {:.2} |",
            one / fio,
            two / fio
        );
        let [one, two] = [1, 2].map(|which| median(which, |run| run.calls));
        println!("| system calls per request | | {one:.3} | | {two:.3} | |");
    }
}

/// Writes all of the file, so that reads find data and writes need no allocation.
fn fill(path: &Path) {
    let written = Command::new("fio")
        .args([
            "--name=fill",
            "--rw=write",
            "--bs=1m",
            "--direct=1",
            "--end_fsync=1",
            "--output-format=terse",
        ])
        .arg(format!("--size={FILE}"))
        .arg(format!("--filename={}", path.display()))
        .output();
    let written = written.unwrap_or_else(|e| panic!("fio cannot be started: {e}"));
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
}

fn fio(path: &Path, load: Load) -> Run {
    let output = Command::new("fio")
        .args(["--name=fio", "--ioengine=io_uring", "--direct=1", "--time_based", "--norandommap"])
        .args(["--output-format=json", "--thread"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--size={FILE}"))
        .arg(format!("--runtime={}", DURATION.as_secs()))
        .arg(format!("--rw={}", load.rw))
        .arg(format!("--bs={}", load.block))
        .arg(format!("--iodepth={}", load.depth))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let job = &report["jobs"][0];
    let of = &job[if load.rw.ends_with("read") { "read" } else { "write" }];
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let seconds = number(&of["runtime"]) / 1e3;
    let cpu = (number(&job["usr_cpu"]) + number(&job["sys_cpu"])) / 100.0 * seconds;
    Run { rate: number(&of["iops"]), cpu: cpu / number(&of["total_ios"]) * 1e6, ..Run::default() }
}

/// A request's pages, and the page that lists them if they are many.
struct Slot {
    lane: usize,
    segments: Vec<Segment>,
    list: Option<GrantRef>,
}

fn rings(path: &Path, load: Load, queues: usize) -> Run {
    let mut device = BlockDevice::new(config(false), DiskImage::open(path, false).unwrap());
    let guest = FakeGuest::with_huge_pages(queues * load.depth * (load.block / PAGE_SIZE + 1) + 64);
    let mut front = Front::of(guest, Protocol::X86_64, 1, queues as u32);
    front.guest.delivery.offer_notifiers();
    front.connect(&mut device);
    let depth = load.depth * queues;
    let slots: Vec<Slot> = (0..depth).map(|number| slot(&mut front, load, number % queues)).collect();

    let mut places = places(load);
    let mut under_way = HashMap::new();
    let mut send = |front: &mut Front, under_way: &mut HashMap<u64, usize>, number: usize| {
        let slot: &Slot = &slots[number];
        let op = if load.rw.ends_with("read") { READ } else { WRITE };
        let sector = places();
        let id = on(front, slot.lane, |front| match slot.list {
            Some(list) => front.put_indirect(op, sector, slot.segments.len() as u16, list),
            None => front.put(op, sector, &slot.segments),
        });
        under_way.insert(id, number);
    };
    for number in 0..depth {
        send(&mut front, &mut under_way, number);
    }
    (0..queues).for_each(|lane| on(&mut front, lane, |front| front.publish()));

    let (begun, cpu) = (Instant::now(), threads_cpu());
    let mut count = 0_u64;
    while !under_way.is_empty() {
        for lane in 0..queues {
            let mut answered = Vec::new();
            while let Some((id, _, status)) = on(&mut front, lane, Front::take) {
                assert_eq!(status, 0);
                answered.push(under_way.remove(&id).unwrap());
            }
            count += answered.len() as u64;
            if begun.elapsed() < DURATION && !answered.is_empty() {
                answered.into_iter().for_each(|number| send(&mut front, &mut under_way, number));
                on(&mut front, lane, |front| front.publish());
            }
        }
        if load.block > PAGE_SIZE { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), threads_cpu() - cpu);
    let counters = device.disk().counters();
    let calls = counters.system_calls.load(Relaxed);
    Run {
        rate: count as f64 / seconds,
        cpu: cpu / count as f64 * 1e6,
        calls: calls as f64 / count as f64,
        bounces: counters.bounces.load(Relaxed),
    }
}

fn slot(front: &mut Front, load: Load, lane: usize) -> Slot {
    let segments: Vec<Segment> =
        (0..load.block / PAGE_SIZE).map(|_| whole(front.guest.granted_page().1)).collect();
    let list = (segments.len() > 1).then(|| {
        let (frame, gref) = front.guest.granted_page();
        front.guest.write(frame, 0, &segment_list(&segments));
        gref
    });
    Slot { lane, segments, list }
}

/// Nanoseconds for a page of 32 MiB: to use its grant as a request does, and to copy it as a frontend with persistent
/// grants does.
fn page_costs() -> [f64; 2] {
    const PAGES: usize = 8192;
    let mut guest = FakeGuest::with_huge_pages(PAGES + 64);
    let pages: Vec<_> = (0..PAGES).map(|_| guest.granted_page()).collect();
    pages.iter().for_each(|(frame, _)| guest.write(*frame, 0, &[1; PAGE_SIZE]));
    let grants = std::sync::Arc::clone(&guest.domain.grants);
    let time = |work: &mut dyn FnMut(u64, GrantRef)| {
        let begun = Instant::now();
        pages.iter().for_each(|(frame, gref)| work(*frame, *gref));
        begun.elapsed().as_nanos() as f64 / PAGES as f64
    };
    let mut data = [0; PAGE_SIZE];
    let mut best = [f64::MAX; 2];
    for _ in 0..20 {
        let pinned = time(&mut |_, gref| grants.unpin(grants.pin(gref, Access::Write).unwrap()));
        let copied = time(&mut |frame, _| {
            guest.ram.read_slice(&mut data, GuestAddress(frame * PAGE_SIZE as u64)).unwrap();
            std::hint::black_box(&data);
        });
        best = [best[0].min(pinned), best[1].min(copied)];
    }
    best
}

/// The sector of one request after the other.
fn places(load: Load) -> impl FnMut() -> u64 {
    let (blocks, sectors) = (FILE / load.block as u64, load.block as u64 / 512);
    let (mut state, mut next) = (88_172_645_463_325_252_u64, 0);
    move || {
        if !load.rw.starts_with("rand") {
            next = (next + 1) % blocks;
            return next * sectors;
        }
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % blocks * sectors
    }
}

/// Calls `work` with that ring as the frontend's first one.
fn on<T>(front: &mut Front, lane: usize, work: impl FnOnce(&mut Front) -> T) -> T {
    let swap = |front: &mut Front| {
        if let Some(other) = lane.checked_sub(1).and_then(|other| front.others.get_mut(other)) {
            std::mem::swap(&mut front.ring, &mut other.ring);
            std::mem::swap(&mut front.port, &mut other.port);
        }
    };
    swap(front);
    let result = work(front);
    swap(front);
    result
}

/// Seconds that the disk's threads were on a processor (Documentation/scheduler/sched-stats.rst).
fn threads_cpu() -> f64 {
    let mut time = 0.0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if read("comm").starts_with("vbd-") {
            time += read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0) / 1e9;
        }
    }
    time
}
