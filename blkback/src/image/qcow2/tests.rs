//! qcow2 against qemu-img, a model, the kill signal, and images that lie.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::image::testing::*;
use crate::image::{Access, CacheMode, DiskImage, Format, ImageError, ImageOptions};

const MIB: u64 = 1 << 20;

/// A folder with an image that qemu-img made.
fn made(options: &str, size: u64) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    qemu_img(&format!("create -q -f qcow2 {options} {} {size}", path.display()));
    (dir, path)
}

fn check(path: &Path) {
    qemu_img(&format!("check -q {}", path.display()));
}

/// 0: clean; 3: leaked clusters.
fn assert_sound(path: &Path, why: &str) {
    let output = qemu_img_status(&format!("check -f qcow2 {}", path.display()));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{why}: {text}");
}

fn pattern(len: u64, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i >> 9) as u8 ^ (i as u8) ^ seed).collect()
}

fn error(path: &Path) -> ImageError {
    try_open(path, Format::Qcow2, Access::Exclusive).unwrap_err()
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn number(path: &Path, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    u64::from_be_bytes(bytes)
}

#[test]
fn random_operations_agree_with_a_model_in_every_variant() {
    let variants = [
        "",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-o compat=0.10",
        "-o compat=0.10,cluster_size=4k",
        "-o refcount_bits=1,cluster_size=1k",
        "-o refcount_bits=8",
        "-o refcount_bits=64,cluster_size=512",
        "-o lazy_refcounts=on",
        "-o preallocation=metadata",
        "-o preallocation=full",
    ];
    for (seed, options) in variants.into_iter().enumerate() {
        let size = 6 * MIB + 512 * 3;
        let (_dir, path) = made(options, size);
        compare_with_model(&path, Format::Qcow2, vec![0; size as usize], 400, seed as u64 + 1);
        check(&path);
    }
}

#[test]
fn random_operations_agree_with_a_model_over_backing_files() {
    for (seed, (format, create, options)) in [
        ("raw", "", ""),
        ("qcow2", "-f qcow2 -o cluster_size=4k", "-o cluster_size=8k"),
        ("qcow2", "-f qcow2", "-o compat=0.10"),
        ("vpc", "-f vpc", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        // Shorter than the disk in front of it.
        let mut model = pattern(3 * MIB + 7 * 512, 3);
        let raw = dir.path().join("base.raw");
        std::fs::write(&raw, &model).unwrap();
        let mut base = raw.clone();
        if !create.is_empty() {
            base = dir.path().join("base.image");
            let output = create.replace("-f", "-O");
            qemu_img(&format!("convert -f raw {output} {} {}", raw.display(), base.display()));
        }
        let path = dir.path().join("disk.qcow2");
        let name = base.file_name().unwrap().to_str().unwrap();
        let size = 5 * MIB;
        qemu_img(&format!("create -q -f qcow2 {options} -F {format} -b {name} {} {size}", path.display()));
        model.resize(size as usize, 0);
        compare_with_model(&path, Format::Qcow2, model, 500, 77 + seed as u64);
        check(&path);
    }
}

#[test]
fn compressed_clusters_are_read_and_rewritten() {
    for kind in ["zlib", "zstd"] {
        let dir = tempfile::tempdir().unwrap();
        let model = pattern(4 * MIB, 9);
        let (raw, path) = (dir.path().join("raw"), dir.path().join("disk.qcow2"));
        std::fs::write(&raw, &model).unwrap();
        qemu_img(&format!(
            "convert -c -f raw -O qcow2 -o compression_type={kind} {} {}",
            raw.display(),
            path.display()
        ));
        assert!(std::fs::metadata(&path).unwrap().len() < MIB, "{kind}: it is not compressed");
        compare_with_model(&path, Format::Qcow2, model, 400, 5);
        check(&path);
    }
}

#[test]
fn a_snapshot_keeps_what_it_had() {
    let (dir, path) = made("", 8 * MIB);
    let old = pattern(3 * MIB, 1);
    write(&open(&path, Format::Qcow2), MIB, &old).unwrap();
    qemu_img(&format!("snapshot -c before {}", path.display()));
    let mut model = vec![0; 8 * MIB as usize];
    model[MIB as usize..4 * MIB as usize].copy_from_slice(&old);
    compare_with_model(&path, Format::Qcow2, model.clone(), 300, 21);
    check(&path);
    let raw = dir.path().join("snapshot.raw");
    qemu_img(&format!("convert -l before -f qcow2 -O raw {} {}", path.display(), raw.display()));
    assert!(std::fs::read(raw).unwrap() == model, "the snapshot has changed");
}

#[test]
fn what_qemu_wrote_is_read() {
    let (_dir, path) = made("", 64 * MIB);
    qemu_io("qcow2", &path, "write -P 0x5a 1M 70k");
    qemu_io("qcow2", &path, "write -z 2M 64k");
    let image = open(&path, Format::Qcow2);
    assert!(read(&image, MIB, 70 << 10).unwrap().iter().all(|byte| *byte == 0x5a));
    assert!(read(&image, MIB + (70 << 10), 2 << 20).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn direct_io_gives_the_same_bytes() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("disk.qcow2");
    qemu_img(&format!("create -q -f qcow2 -o cluster_size=512 {} 4M", path.display()));
    let open = |access| {
        let (path, format, cache) = (path.clone(), Format::Qcow2, CacheMode::None);
        DiskImage::open_with(&ImageOptions { path, format, access, cache }).unwrap()
    };
    let bytes = pattern(300 << 10, 4);
    write(&open(Access::Exclusive), 512 * 3, &bytes).unwrap();
    check(&path);
    assert!(read(&open(Access::ReadOnly), 512 * 3, bytes.len()).unwrap() == bytes);
}

#[test]
fn the_refcount_table_grows_with_the_file() {
    // A table of one cluster of 512 bytes counts 4096 clusters, 2 MiB.
    let (_dir, path) = made("-o cluster_size=512,refcount_bits=64", 24 * MIB);
    let before = number(&path, 48);
    let bytes = pattern(20 * MIB, 8);
    write(&open(&path, Format::Qcow2), MIB, &bytes).unwrap();
    assert_ne!(number(&path, 48), before, "the table did not have to move");
    check(&path);
    assert!(read(&open(&path, Format::Qcow2), MIB, bytes.len()).unwrap() == bytes);
}

#[test]
fn discarded_clusters_give_their_blocks_back_and_are_used_again() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, path) = made("", 64 * MIB);
    let image = open(&path, Format::Qcow2);
    let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
    write(&image, 0, &pattern(16 * MIB, 1)).unwrap();
    image.flush().unwrap();
    assert!(blocks() >= 16 * MIB);
    image.discard(0, 16 * MIB).unwrap();
    image.flush().unwrap();
    assert!(blocks() < MIB, "{} bytes are still there", blocks());
    assert!(read(&image, 0, 16 << 20).unwrap().iter().all(|byte| *byte == 0));
    let len = std::fs::metadata(&path).unwrap().len();
    write(&image, 32 * MIB, &pattern(15 * MIB, 2)).unwrap();
    image.flush().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), len, "the file grew");
    drop(image);
    check(&path);
}

#[test]
fn threads_that_share_clusters_keep_their_sectors() {
    let (_dir, path) = made("", 32 * MIB);
    let image = open(&path, Format::Qcow2);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let image = &image;
            scope.spawn(move || {
                for sector in (thread..8192).step_by(4) {
                    write(image, sector * 512, &[thread as u8 + 1; 512]).unwrap();
                    if sector % 512 == thread {
                        image.flush().unwrap();
                    }
                    if sector % 1024 == thread {
                        image.discard(16 * MIB, 16 * MIB).unwrap();
                    }
                }
            });
        }
    });
    for (sector, bytes) in read(&image, 0, 4 << 20).unwrap().chunks(512).enumerate() {
        assert!(bytes.iter().all(|byte| *byte == sector as u8 % 4 + 1), "sector {sector}");
    }
    drop(image);
    check(&path);
}

#[test]
fn killed_at_any_moment_it_is_sound_and_has_what_was_flushed() {
    let variants = [
        "",
        "-o cluster_size=4k",
        "-o compat=0.10",
        "-o cluster_size=512,refcount_bits=64",
        "-o refcount_bits=1",
    ];
    let mut random = Random::new(42);
    let mut leaks = 0;
    for options in variants {
        let size = 24 * MIB;
        let (_dir, path) = made(options, size);
        let mut before = vec![0; size as usize];
        for round in 0..9 {
            let seed = random.below(1 << 30);
            let after = Duration::from_micros(random.below(60_000));
            write_and_kill(&path, Format::Qcow2, size / 512, seed, after);
            let output = qemu_img_status(&format!("check -f qcow2 {}", path.display()));
            leaks += u32::from(output.status.code() == Some(3));
            assert_sound(&path, &format!("{options}, round {round}, seed {seed}"));
            let image = open(&path, Format::Qcow2);
            before = verify_flushed(&path, &image, seed, &before);
            drop(image);
            check(&path);
        }
    }
    assert!(leaks > 0, "no kill left anything: the test kills too late to see anything");
}

#[test]
fn an_image_that_qemu_left_dirty_is_mended() {
    let (_dir, path) = made("-o lazy_refcounts=on", 8 * MIB);
    // Killed by itself after a flush: the refcounts were not written, and the image is marked.
    let script = "write -P 7 0 3M\nflush\nsigraise 9\n";
    let input = path.with_extension("commands");
    std::fs::write(&input, script).unwrap();
    let status = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", path.to_str().unwrap()])
        .stdin(File::open(&input).unwrap())
        .output()
        .expect("qemu-io of the package qemu-utils")
        .status;
    assert!(!status.success());
    assert_eq!(number(&path, 72) & DIRTY, DIRTY, "it is not marked");
    let image = open(&path, Format::Qcow2);
    assert!(read(&image, 0, 3 << 20).unwrap().iter().all(|byte| *byte == 7));
    drop(image);
    check(&path);
    assert_eq!(number(&path, 72) & DIRTY, 0);
}

#[test]
fn the_mark_is_there_while_it_is_written_and_gone_afterwards() {
    let (_dir, path) = made("", 8 * MIB);
    let image = open(&path, Format::Qcow2);
    assert_eq!(number(&path, 72), 0);
    write(&image, 0, &[1; 512]).unwrap();
    assert_eq!(number(&path, 72), DIRTY);
    drop(image);
    assert_eq!(number(&path, 72), 0);
}

#[test]
fn qemu_does_not_open_what_we_write() {
    let (_dir, path) = made("", 8 * MIB);
    let image = open(&path, Format::Qcow2);
    let output = qemu_img_status(&format!("check -f qcow2 {}", path.display()));
    assert!(!output.status.success(), "{output:?}");
    drop(image);
    check(&path);
}

#[test]
fn the_files_behind_an_image_are_locked_too() {
    let (dir, base) = made("", 8 * MIB);
    let path = dir.path().join("front.qcow2");
    qemu_img(&format!("create -q -f qcow2 -F qcow2 -b {} {}", base.display(), path.display()));
    let _image = open(&path, Format::Qcow2);
    assert!(try_open(&base, Format::Qcow2, Access::ReadOnly).is_ok());
    assert!(matches!(error(&base), ImageError::Locked(_)));
    assert!(is_locked(&base, 201));
}

#[test]
fn shared_writing_is_refused() {
    let (_dir, path) = made("", MIB);
    let error = try_open(&path, Format::Qcow2, Access::Shared).unwrap_err();
    assert!(matches!(error, ImageError::NotShareable { .. }), "{error}");
}

#[test]
fn a_disk_that_is_full_says_so_and_stays_sound() {
    let (_dir, path) = made("", 64 * MIB);
    let image = open(&path, Format::Qcow2);
    write(&image, 0, &[5; 4096]).unwrap();
    image.flush().unwrap();
    let end = std::fs::metadata(&path).unwrap().len();
    // RLIMIT_FSIZE would hit all tests of this process; a hole in front of the largest file does not.
    {
        let Node::Qcow2(qcow2) = image.node() else { unreachable!() };
        let mut state = lock(&qcow2.state);
        state.refcounts.set_end_for_test((i64::MAX as u64 >> 16) + 1);
    }
    let error = write(&image, 32 * MIB, &[6; 4096]).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::EFBIG)), "{error}");
    assert!(read(&image, 32 * MIB, 4096).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(read(&image, 0, 4096).unwrap(), [5; 4096]);
    drop(image);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), end);
    assert_sound(&path, "full");
}

#[test]
fn a_backing_file_without_a_format_is_refused() {
    let (dir, base) = made("", MIB);
    let path = dir.path().join("front.qcow2");
    qemu_img(&format!("create -q -f qcow2 -F qcow2 -b {} {}", base.display(), path.display()));
    // The extension becomes one that nobody knows.
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|w| w == 0xe279_2acau32.to_be_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&[1; 4]);
    std::fs::write(&path, bytes).unwrap();
    let error = error(&path);
    assert!(matches!(error, ImageError::BackingFormatMissing { .. }), "{error}");
    assert!(error.to_string().contains("qemu-img rebase -u"), "{error}");
}

#[test]
fn a_chain_that_comes_back_to_itself_is_refused() {
    let (dir, first) = made("", MIB);
    let second = dir.path().join("second.qcow2");
    qemu_img(&format!("create -q -f qcow2 -F qcow2 -b {} {}", first.display(), second.display()));
    qemu_img(&format!("rebase -u -f qcow2 -F qcow2 -b {} {}", second.display(), first.display()));
    let error = error(&first);
    assert!(matches!(error, ImageError::BackingLoop(_)), "{error}");
}

#[test]
fn a_chain_may_be_long_and_has_an_end() {
    let (dir, mut last) = made("", MIB);
    qemu_io("qcow2", &last, "write -P 9 0 64k");
    for i in 1..=64 {
        let next = dir.path().join(format!("{i}.qcow2"));
        qemu_img(&format!("create -q -u -f qcow2 -F qcow2 -b {} {} 1M", last.display(), next.display()));
        last = next;
        if i == 63 {
            assert_eq!(read(&open(&last, Format::Qcow2), 0, 512).unwrap(), [9; 512]);
        }
    }
    let error = error(&last);
    assert!(matches!(error, ImageError::ChainTooLong { limit: 64, .. }), "{error}");
}

#[test]
fn a_missing_backing_file_is_told_with_both_names() {
    let (dir, base) = made("", MIB);
    let path = dir.path().join("front.qcow2");
    qemu_img(&format!("create -q -f qcow2 -F qcow2 -b {} {}", base.display(), path.display()));
    std::fs::remove_file(&base).unwrap();
    let text = error(&path).to_string();
    assert!(text.contains("front.qcow2") && text.contains("disk.qcow2: there is no such file"), "{text}");
}

#[test]
fn a_lying_header_is_refused_with_a_sentence() {
    let (_dir, path) = made("", 8 * MIB);
    let good = std::fs::read(&path).unwrap();
    let end = (good.len() as u64).next_multiple_of(65536);
    // What it is, where, what is written there, and a part of the sentence.
    let cases: &[(&str, u64, &[u8], &str)] = &[
        ("magic", 0, b"XFI\xfb", "signature of qcow2"),
        ("version", 4, &9u32.to_be_bytes(), "version 9"),
        ("no clusters", 20, &0u32.to_be_bytes(), "clusters of 2^0"),
        ("huge clusters", 20, &63u32.to_be_bytes(), "clusters of 2^63"),
        ("no size", 24, &0u64.to_be_bytes(), "is empty"),
        ("odd size", 24, &(MIB + 1).to_be_bytes(), "not a multiple of 512"),
        ("huge size", 24, &(u64::MAX - 511).to_be_bytes(), "more than its clusters can hold"),
        ("size beyond L1", 24, &(1u64 << 40).to_be_bytes(), "where the disk needs"),
        ("encryption", 32, &2u32.to_be_bytes(), "is encrypted"),
        ("no L1 entry", 36, &0u32.to_be_bytes(), "where the disk needs 1"),
        ("huge L1", 36, &u32::MAX.to_be_bytes(), "an L1 table of 4294967295 entries"),
        ("L1 beyond the end", 40, &end.to_be_bytes(), "L1 table lies beyond the end"),
        ("L1 wraps", 40, &(u64::MAX - 65535).to_be_bytes(), "L1 table lies beyond the end"),
        ("odd L1", 40, &(65536u64 + 8).to_be_bytes(), "does not begin with a cluster"),
        ("L1 over the header", 40, &0u64.to_be_bytes(), "overlaps the header"),
        ("refcounts over L1", 48, &good[40..48], "overlaps the L1 table"),
        ("refcounts beyond the end", 48, &(1u64 << 40).to_be_bytes(), "beyond the end"),
        ("no refcounts", 56, &0u32.to_be_bytes(), "refcount table of 0 bytes"),
        ("huge refcounts", 56, &u32::MAX.to_be_bytes(), "8 MiB are the most"),
        ("snapshots", 60, &70000u32.to_be_bytes(), "70000 snapshots"),
        ("corrupt", 72, &2u64.to_be_bytes(), "marked as damaged"),
        ("external data", 72, &4u64.to_be_bytes(), "keeps its data in another file"),
        ("subclusters", 72, &16u64.to_be_bytes(), "subclusters"),
        ("unknown feature", 72, &(1u64 << 40).to_be_bytes(), "unknown incompatible features"),
        ("compression bit", 72, &8u64.to_be_bytes(), "compression type"),
        ("refcount width", 96, &7u32.to_be_bytes(), "refcounts of 2^7 bits"),
        ("header length", 100, &(1u32 << 20).to_be_bytes(), "a header of 1048576 bytes"),
        ("backing beyond", 8, &(1u64 << 33).to_be_bytes(), "name of its backing file"),
        ("long extension", 108, &[0xff; 8], "header extension"),
    ];
    for (name, offset, bytes, sentence) in cases {
        let mut image = good.clone();
        image[*offset as usize..*offset as usize + bytes.len()].copy_from_slice(bytes);
        if *name == "backing beyond" {
            image[16..20].copy_from_slice(&5u32.to_be_bytes());
        }
        if *name == "long extension" {
            image[100..104].copy_from_slice(&104u32.to_be_bytes());
            image[104..112].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0xff, 0xff, 0xff, 0xff]);
        }
        std::fs::write(&path, image).unwrap();
        let text = error(&path).to_string();
        assert!(text.contains(sentence), "{name}: {text}");
        assert!(!text.contains('\n'), "{name}: {text}");
    }
}

#[test]
fn an_image_marked_as_damaged_may_be_read() {
    let (_dir, path) = made("", MIB);
    patch(&path, 72, &2u64.to_be_bytes());
    assert!(matches!(error(&path), ImageError::MarkedCorrupt(_)));
    let image = try_open(&path, Format::Qcow2, Access::ReadOnly).unwrap();
    assert_eq!(read(&image, 0, 512).unwrap(), [0; 512]);
}

/// An image with one written cluster; its L1 table, its L2 table, and the cluster.
fn written() -> (TempDir, PathBuf, u64, u64, u64) {
    let (dir, path) = made("", 8 * MIB);
    write(&open(&path, Format::Qcow2), 0, &[3; 65536]).unwrap();
    let l1 = number(&path, 40);
    let l2 = number(&path, l1) & OFFSET;
    let data = number(&path, l2) & OFFSET;
    (dir, path, l1, l2, data)
}

#[test]
fn an_l2_table_over_other_metadata_is_refused() {
    let (_dir, path, l1, ..) = written();
    for (place, sentence) in [(l1, "overlaps"), (0x10000, "overlaps"), (1 << 40, "outside of the file")] {
        patch(&path, l1, &(place | COPIED).to_be_bytes());
        let text = error(&path).to_string();
        assert!(text.contains(sentence), "{text}");
    }
}

#[test]
fn data_over_metadata_is_not_written() {
    let (_dir, path, l1, l2, _) = written();
    for place in [0, l1, l2] {
        // Offset 0 would mean that there is no cluster.
        let entry = if place == 0 { number(&path, 48) } else { place };
        patch(&path, l2, &(entry | COPIED).to_be_bytes());
        patch(&path, 72, &0u64.to_be_bytes());
        let before = std::fs::read(&path).unwrap();
        let image = open(&path, Format::Qcow2);
        let error = write(&image, 0, &[9; 512]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert!(write(&image, MIB, &[9; 512]).is_err(), "it is still written to");
        drop(image);
        let after = std::fs::read(&path).unwrap();
        assert!(before[65536..] == after[65536..], "metadata was written over");
        assert!(matches!(super::tests::error(&path), ImageError::MarkedCorrupt(_)));
    }
}

#[test]
fn an_entry_beyond_the_end_is_an_io_error() {
    let (_dir, path, _, l2, _) = written();
    for entry in [1u64 << 40 | COPIED, COMPRESSED | 1 << 40, 0x200 | COPIED] {
        patch(&path, l2, &entry.to_be_bytes());
        let image = open(&path, Format::Qcow2);
        assert_eq!(read(&image, 0, 512).unwrap_err().raw_os_error(), Some(libc::EIO), "{entry:#x}");
        assert_eq!(write(&image, 0, &[1; 512]).unwrap_err().raw_os_error(), Some(libc::EIO), "{entry:#x}");
        assert_eq!(read(&image, 65536, 512).unwrap(), [0; 512]);
    }
}

#[test]
fn a_cluster_that_two_parts_share_is_found_when_counts_are_made_anew() {
    let (_dir, path, _, l2, data) = written();
    patch(&path, l2 + 8, &(data | COPIED).to_be_bytes());
    patch(&path, 72, &DIRTY.to_be_bytes());
    let text = error(&path).to_string();
    assert!(text.contains("two parts of the disk"), "{text}");
}

#[test]
fn a_cluster_freed_twice_stops_the_writing() {
    let (_dir, path, _, l2, data) = written();
    patch(&path, l2 + 8, &(data | COPIED).to_be_bytes());
    let image = open(&path, Format::Qcow2);
    image.discard(0, 131_072).unwrap();
    assert_eq!(image.flush().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(write(&image, 0, &[1; 512]).is_err());
}

#[test]
fn a_bomb_fills_one_cluster_and_garbage_is_an_io_error() {
    use std::io::Write;
    let (_dir, path, _, l2, data) = written();
    let mut bomb = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![0; 64 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    patch(&path, data, &bomb[..65536.min(bomb.len())]);
    let entry = COMPRESSED | 127 << 54 | data;
    patch(&path, l2, &entry.to_be_bytes());
    let image = open(&path, Format::Qcow2);
    assert!(read(&image, 0, 65536).unwrap().iter().all(|byte| *byte == 0));
    drop(image);
    patch(&path, data, &[0xff; 65536]);
    let image = open(&path, Format::Qcow2);
    assert_eq!(read(&image, 0, 512).unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn an_image_of_the_largest_size_is_used_to_its_last_sector() {
    let size = 1u64 << 50;
    let (_dir, path) = made("-o cluster_size=64k", size);
    let image = open(&path, Format::Qcow2);
    write(&image, size - 4096, &[8; 4096]).unwrap();
    assert_eq!(read(&image, size - 4096, 4096).unwrap(), [8; 4096]);
    assert_eq!(write(&image, size, &[8; 512]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert!(image.discard(size - 512, 1024).is_err());
    drop(image);
    check(&path);
}

#[test]
fn a_read_only_image_is_not_changed() {
    let (_dir, path, ..) = written();
    let before = std::fs::read(&path).unwrap();
    let image = try_open(&path, Format::Qcow2, Access::ReadOnly).unwrap();
    assert!(write(&image, 0, &[1; 512]).is_err());
    assert!(image.discard(0, 65536).is_err());
    image.flush().unwrap();
    drop(image);
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn changed_numbers_in_an_image_do_no_harm() {
    for (seed, options) in
        ["-o cluster_size=512", "-o cluster_size=512,compat=0.10", "-o cluster_size=4k,refcount_bits=1"]
            .into_iter()
            .enumerate()
    {
        let (_dir, path) = made(options, MIB);
        let image = open(&path, Format::Qcow2);
        write(&image, 0, &[3; 40 << 10]).unwrap();
        write(&image, 700 << 10, &[4; 9 << 10]).unwrap();
        drop(image);
        let good = std::fs::read(&path).unwrap();
        for dirty in [false, true] {
            let mend = |bytes: &mut [u8]| bytes[79] |= u8::from(dirty && bytes[7] == 3);
            let opened = survive_patches(&good, Format::Qcow2, seed as u64 * 2 + u64::from(dirty), mend);
            assert!(opened > 50, "{options}: only {opened} could be opened");
        }
    }
}
