//! What the tests of the formats share: qemu-img, buffers instead of guest memory, a model of a disk, and
//! processes that are killed while they write.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::*;

/// Runs a program that Debian has in `package`.
pub(super) fn run(program: &str, package: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| {
        panic!("{program} cannot be run ({error}); install it with `apt-get install {package}`")
    })
}

/// qemu-img with these words, whatever it says.
pub(super) fn qemu_img_status(words: &str) -> Output {
    run("qemu-img", "qemu-utils", &words.split_whitespace().collect::<Vec<_>>())
}

/// qemu-img with these words, which it must be content with.
pub(super) fn qemu_img(words: &str) -> String {
    let output = qemu_img_status(words);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "qemu-img {words}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// qemu-io: one command on an image.
pub(super) fn qemu_io(format: &str, path: &Path, command: &str) {
    let output = run("qemu-io", "qemu-utils", &["-f", format, "-c", command, path.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !text.contains("failed"), "qemu-io {command}: {output:?}");
}

/// Opens for writing through the page cache.
pub(super) fn open(path: &Path, format: Format) -> DiskImage {
    // A process that another test starts has our files, and so their locks, until it runs its program.
    for _ in 0..1000 {
        match try_open(path, format, Access::Exclusive) {
            Err(ImageError::Locked(_)) => std::thread::sleep(Duration::from_millis(2)),
            result => return result.unwrap(),
        }
    }
    panic!("{} stays locked", path.display());
}

pub(super) fn try_open(path: &Path, format: Format, access: Access) -> Result<DiskImage, ImageError> {
    let cache = CacheMode::Writeback;
    DiskImage::open_with(&ImageOptions { path: path.to_owned(), format, access, cache })
}

pub(super) fn write(image: &DiskImage, offset: u64, bytes: &[u8]) -> io::Result<()> {
    // In two pieces, the first of them odd.
    let (first, second) = bytes.split_at(bytes.len().min(77));
    let piece = |bytes: &[u8]| IoVec::new(bytes.as_ptr().cast_mut(), bytes.len());
    // SAFETY: the memory is borrowed, and only read.
    let done = unsafe { image.write_at(&[piece(first), piece(second)], offset)? };
    assert_eq!(done, bytes.len());
    Ok(())
}

pub(super) fn read(image: &DiskImage, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    let (first, second) = bytes.split_at_mut(len.min(99));
    let pieces = [IoVec::new(first.as_mut_ptr(), first.len()), IoVec::new(second.as_mut_ptr(), second.len())];
    // SAFETY: the memory is borrowed.
    let done = unsafe { image.read_at(&pieces, offset)? };
    assert_eq!(done, len);
    Ok(bytes)
}

/// A xorshift generator: the same numbers for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// Random reads, writes, discards, flushes and reopenings against a model that begins with `model`.
pub(super) fn compare_with_model(path: &Path, format: Format, mut model: Vec<u8>, steps: u32, seed: u64) {
    let sectors = model.len() as u64 / 512;
    let mut image = Some(open(path, format));
    // After a discard a sector may read as anything.
    let mut known = vec![true; sectors as usize];
    let mut random = Random::new(seed);
    for step in 0..steps {
        let disk = image.as_ref().unwrap();
        assert_eq!(disk.size(), model.len() as u64);
        let sector = random.below(sectors);
        let longest = if random.below(8) == 0 { 2048 } else { 64 };
        let count = (random.below(longest) + 1).min(sectors - sector);
        let (from, to) = (sector as usize, (sector + count) as usize);
        match random.below(100) {
            0..45 => {
                let bytes: Vec<u8> =
                    (0..count * 512).map(|i| (u64::from(step) ^ (sector * 512 + i) >> 3) as u8).collect();
                write(disk, sector * 512, &bytes).unwrap();
                model[from * 512..to * 512].copy_from_slice(&bytes);
                known[from..to].fill(true);
            }
            45..85 => {
                let bytes = read(disk, sector * 512, (count * 512) as usize).unwrap();
                for (i, got) in bytes.chunks(512).enumerate() {
                    let at = from + i;
                    let same = got == &model[at * 512..at * 512 + 512];
                    assert!(!known[at] || same, "seed {seed}, step {step}, sector {at}");
                }
            }
            85..93 => {
                disk.discard(sector * 512, count * 512).unwrap();
                known[from..to].fill(false);
            }
            93..97 => disk.flush().unwrap(),
            _ => {
                drop(image.take());
                image = Some(open(path, format));
            }
        }
    }
    let all = read(image.as_ref().unwrap(), 0, model.len()).unwrap();
    for (at, got) in all.chunks(512).enumerate() {
        assert!(
            !known[at] || got == &model[at * 512..at * 512 + 512],
            "seed {seed}, at the end, sector {at}"
        );
    }
    drop(image.take());
    // What somebody else reads is the same; QEMU knows no differencing VHD.
    let bytes = std::fs::read(path).unwrap();
    if format == Format::Vhd && bytes.get(60..64) == Some(&4u32.to_be_bytes()[..]) {
        return;
    }
    let name = if format == Format::Vhd { "vpc" } else { "qcow2" };
    let raw = tempfile::NamedTempFile::new().unwrap();
    let raw = raw.path();
    let others = qemu_img_status(&format!("convert -f {name} -O raw {} {}", path.display(), raw.display()));
    assert!(others.status.success(), "{others:?}");
    assert!(std::fs::read(raw).unwrap() == all, "seed {seed}: qemu-img reads something else");
}

/// Numbers in `good` are changed at random, `mend` makes checksums right again, and a guest uses what is left: it
/// may get errors, and nothing may panic or go on for ever. How many of the images could be opened.
pub(super) fn survive_patches(good: &[u8], format: Format, seed: u64, mend: impl Fn(&mut [u8])) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patched");
    let mut random = Random::new(seed);
    let mut opened = 0;
    for _ in 0..400 {
        let mut bytes = good.to_vec();
        for _ in 0..=random.below(4) {
            // What is near the start is more often looked at.
            let reach = 1 << (6 + random.below(10));
            let at = random.below(reach.min(good.len() as u64 - 8)) as usize & !3;
            let near = random.below(good.len() as u64 / 512 + 2) * 512;
            let value = match random.below(8) {
                0 => u64::MAX - random.below(4096),
                1 => 1 << random.below(64),
                2 => random.below(300),
                3 => near | 1 << 62,
                4 => near,
                5 => near | 1,
                _ => near | 1 << 63,
            };
            let width = 1 << random.below(4);
            bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
        mend(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let Ok(image) = try_open(&path, format, Access::Exclusive) else { continue };
        opened += 1;
        let sectors = image.size() / 512;
        for step in 0..12 {
            let sector = if step % 2 == 0 { random.below(sectors) } else { random.below(sectors.min(300)) };
            let count = (random.below(200) + 1).min(sectors - sector);
            let _ = match random.below(5) {
                0 => read(&image, sector * 512, count as usize * 512).map(drop),
                1 | 2 => write(&image, sector * 512, &vec![7; count as usize * 512]),
                3 => image.discard(sector * 512, count * 512),
                _ => image.flush(),
            };
        }
    }
    opened
}

/// Set for the process that is killed: path, format, sectors, seed.
const WRITER: &str = "XVMM_TEST_WRITER";
/// Threads that write at once, each its own sectors.
const THREADS: u64 = 2;
/// Sectors of a stripe that belongs to one thread.
const STRIPE: u64 = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Write,
    Discard,
    Flush,
}

/// The operations of a thread, which another process can find out again.
struct Steps {
    random: Random,
    thread: u64,
    sectors: u64,
    number: u32,
}

impl Iterator for Steps {
    type Item = (u32, Step, u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        self.number += 1;
        let step = match self.random.below(100) {
            0..82 => Step::Write,
            82..90 => Step::Discard,
            _ => Step::Flush,
        };
        let stripes = self.sectors / STRIPE / THREADS;
        let sector =
            (self.random.below(stripes) * THREADS + self.thread) * STRIPE + self.random.below(STRIPE);
        let count = self.random.below(STRIPE - sector % STRIPE) + 1;
        Some((self.number, step, sector, count))
    }
}

fn steps(seed: u64, thread: u64, sectors: u64) -> Steps {
    Steps { random: Random::new(seed * THREADS + thread + 1), thread, sectors, number: 0 }
}

fn stamp(sector: u64, number: u32) -> [u8; 512] {
    let mut bytes = [0; 512];
    for part in bytes.chunks_mut(16) {
        part[..8].copy_from_slice(&sector.to_le_bytes());
        part[8..12].copy_from_slice(&number.to_le_bytes());
        part[12..].copy_from_slice(b"xvmm");
    }
    bytes
}

/// Not a test: what the killed process does. It ends by being killed.
#[test]
#[ignore = "run by the tests that kill it"]
fn writer() {
    let arguments = std::env::var(WRITER).expect("the arguments of the writer");
    let words: Vec<&str> = arguments.split('\n').collect();
    let format = if words[1] == "qcow2" { Format::Qcow2 } else { Format::Vhd };
    let (sectors, seed): (u64, u64) = (words[2].parse().unwrap(), words[3].parse().unwrap());
    let image = &open(Path::new(words[0]), format);
    let words = &words;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let journal = std::fs::File::create(format!("{}.journal{thread}", words[0])).unwrap();
                for (number, step, sector, count) in steps(seed, thread, sectors) {
                    match step {
                        Step::Write => {
                            let bytes: Vec<u8> =
                                (sector..sector + count).flat_map(|sector| stamp(sector, number)).collect();
                            write(image, sector * 512, &bytes).unwrap();
                        }
                        Step::Discard => image.discard(sector * 512, count * 512).unwrap(),
                        Step::Flush => {
                            image.flush().unwrap();
                            use std::os::unix::fs::FileExt;
                            journal.write_all_at(&number.to_le_bytes(), 0).unwrap();
                        }
                    }
                }
            });
        }
    });
}

/// Starts a process that writes, and kills it after `after`.
pub(super) fn write_and_kill(path: &Path, format: Format, sectors: u64, seed: u64, after: Duration) {
    let name = if format == Format::Qcow2 { "qcow2" } else { "vhd" };
    for thread in 0..THREADS {
        let _ = std::fs::remove_file(format!("{}.journal{thread}", path.display()));
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "image::testing::writer"])
        .env(WRITER, format!("{}\n{name}\n{sectors}\n{seed}", path.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // The time counts from the first flush on.
    let journal = PathBuf::from(format!("{}.journal0", path.display()));
    while std::fs::metadata(&journal).is_ok_and(|file| file.len() == 0) || !journal.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(after);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "the writer ended by itself: {status}");
}

/// Compares a disk with what a killed process flushed. Returns what it holds now.
pub(super) fn verify_flushed(path: &Path, image: &DiskImage, seed: u64, before: &[u8]) -> Vec<u8> {
    let sectors = image.size() / 512;
    let all = read(image, 0, image.size() as usize).unwrap();
    for thread in 0..THREADS {
        let journal = std::fs::read(format!("{}.journal{thread}", path.display())).unwrap_or_default();
        let flushed = journal.try_into().map_or(0, u32::from_le_bytes);
        // Per sector: what it may hold, and whether it may hold anything.
        let mut allowed: HashMap<u64, (Vec<u32>, bool)> = HashMap::new();
        // Those after the last flush that was noted may have been done, up to the next flush: after that one it
        // would have been noted.
        for (number, step, sector, count) in steps(seed, thread, sectors) {
            if number > flushed && step == Step::Flush {
                break;
            }
            for sector in sector..sector + count {
                let entry = allowed.entry(sector).or_insert_with(|| (vec![0], false));
                match step {
                    Step::Write if number <= flushed => *entry = (vec![number], false),
                    Step::Write => entry.0.push(number),
                    Step::Discard => entry.1 = true,
                    Step::Flush => {}
                }
            }
        }
        for (sector, (numbers, anything)) in allowed {
            let at = sector as usize * 512;
            let got = &all[at..at + 512];
            let fits = |number: &u32| match number {
                0 => got == &before[at..at + 512],
                number => got == stamp(sector, *number),
            };
            assert!(
                anything || numbers.iter().any(fits),
                "seed {seed}, sector {sector}: flushed {flushed}, has {:?}, may be {:?}",
                &got[..16],
                &numbers[..numbers.len().min(9)]
            );
        }
    }
    all
}

/// Whether somebody has this byte of the file locked.
pub(super) fn is_locked(path: &Path, byte: i64) -> bool {
    let file = std::fs::File::open(path).unwrap();
    let lock = locks::lock_byte(&file, libc::F_OFD_GETLK, libc::F_WRLCK, byte).unwrap();
    i32::from(lock.l_type) != libc::F_UNLCK
}
