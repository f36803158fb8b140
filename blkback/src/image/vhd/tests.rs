//! VHD against qemu-img, libvhdi, a model, the kill signal, and images that lie.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::layout::{HEADER_BYTES, be32, checksum};
use super::*;
use crate::image::testing::open;
use crate::image::testing::*;
use crate::image::{Access, DiskImage};

const MIB: u64 = 1 << 20;

/// A folder with an image that qemu-img made, and the size it has: geometry makes it a little larger.
fn made(options: &str, size: u64) -> (TempDir, PathBuf, u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    qemu_img(&format!("create -q -f vpc {options} {} {size}", path.display()));
    let size = open(&path, Format::Vhd).size();
    (dir, path, size)
}

fn pattern(len: u64, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i >> 9) as u8 ^ (i as u8) ^ seed).collect()
}

fn error(path: &Path) -> ImageError {
    try_open(path, Format::Vhd, Access::Exclusive).unwrap_err()
}

/// What qemu-img reads.
fn by_qemu(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    qemu_img(&format!("convert -f vpc -O raw {} {}", path.display(), raw.display()));
    std::fs::read(raw).unwrap()
}

/// What libvhdi reads of the last of a chain of files, each the parent of the next. It is asked for no more than a
/// block at once: what it gives for several is not the same.
fn by_libvhdi(chain: &[&Path]) -> Vec<u8> {
    let script = "
import pyvhdi, sys
chain = []
for name in sys.argv[1:]:
    file = pyvhdi.file()
    file.open(name)
    if chain:
        file.set_parent(chain[-1])
    chain.append(file)
while True:
    data = chain[-1].read_buffer(65536)
    if not data:
        break
    sys.stdout.buffer.write(data)
";
    let mut args = vec!["-c", script];
    args.extend(chain.iter().map(|path| path.to_str().unwrap()));
    let output = run("/usr/bin/python3", "python3-libvhdi", &args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors} (a missing pyvhdi is in Debian's python3-libvhdi)");
    output.stdout
}

fn patched(bytes: &mut [u8], checksum_at: usize) {
    let sum = checksum(bytes, checksum_at).to_be_bytes();
    bytes[checksum_at..checksum_at + 4].copy_from_slice(&sum);
}

/// Makes a differencing disk over `parent`, which is in the same folder.
fn differencing(parent: &Path, path: &Path, size: u64, block: u32) {
    let file = std::fs::File::open(parent).unwrap();
    let mut footer = vec![0; 512];
    file.read_exact_at(&mut footer, file.metadata().unwrap().len() - 512).unwrap();
    let parent_id: [u8; 16] = footer[68..84].try_into().unwrap();
    footer[28..32].copy_from_slice(b"tap\0");
    footer[16..24].copy_from_slice(&512u64.to_be_bytes());
    footer[40..48].copy_from_slice(&size.to_be_bytes());
    footer[48..56].copy_from_slice(&size.to_be_bytes());
    footer[60..64].copy_from_slice(&4u32.to_be_bytes());
    for (i, byte) in path.to_str().unwrap().bytes().enumerate() {
        footer[68 + i % 16] = footer[68 + i % 16].wrapping_mul(31) ^ byte;
    }
    patched(&mut footer, 64);
    let name = parent.file_name().unwrap().to_str().unwrap();
    let entries = size.div_ceil(block.into()) as u32;
    let table = (u64::from(entries) * 4).next_multiple_of(512);
    let mut header = vec![0; HEADER_BYTES];
    header[..8].copy_from_slice(b"cxsparse");
    header[8..16].fill(0xff);
    header[16..24].copy_from_slice(&2048u64.to_be_bytes());
    header[24..28].copy_from_slice(&0x10000u32.to_be_bytes());
    header[28..32].copy_from_slice(&entries.to_be_bytes());
    header[32..36].copy_from_slice(&block.to_be_bytes());
    header[40..56].copy_from_slice(&parent_id);
    for (i, unit) in name.encode_utf16().enumerate() {
        header[64 + 2 * i..66 + 2 * i].copy_from_slice(&unit.to_be_bytes());
    }
    let relative: Vec<u8> = format!(".\\{name}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    header[576..580].copy_from_slice(b"W2ru");
    header[580..584].copy_from_slice(&512u32.to_be_bytes());
    header[584..588].copy_from_slice(&(relative.len() as u32).to_be_bytes());
    header[592..600].copy_from_slice(&(2048 + table).to_be_bytes());
    patched(&mut header, 36);
    let mut image = footer.clone();
    image.extend(&header);
    image.resize(2048, 0);
    image.resize(2048 + table as usize, 0xff);
    image.extend(&relative);
    image.resize(2048 + table as usize + 512, 0);
    image.extend(&footer);
    std::fs::write(path, image).unwrap();
}

#[test]
fn random_operations_agree_with_a_model() {
    for (seed, options) in
        ["-o subformat=dynamic", "-o subformat=fixed", "-o force_size=on"].into_iter().enumerate()
    {
        let (_dir, path, size) = made(options, 7 * MIB + 512);
        compare_with_model(&path, Format::Vhd, vec![0; size as usize], 500, seed as u64 + 31);
    }
}

#[test]
fn both_programs_read_what_the_other_wrote() {
    for options in ["-o subformat=dynamic", "-o subformat=fixed"] {
        let (_dir, path, size) = made(options, 20 * MIB);
        qemu_io("vpc", &path, "write -P 0x5a 1M 70k");
        let mut model = vec![0; size as usize];
        model[MIB as usize..][..70 << 10].fill(0x5a);
        let bytes = pattern(5 * MIB, 6);
        {
            let image = open(&path, Format::Vhd);
            assert!(read(&image, 0, size as usize).unwrap() == model, "{options}: we read something else");
            write(&image, 9 * MIB + 512, &bytes).unwrap();
            model[9 * MIB as usize + 512..][..bytes.len()].copy_from_slice(&bytes);
        }
        assert!(by_qemu(&path) == model, "{options}: qemu-img reads something else");
        assert!(by_libvhdi(&[&path])[..model.len()] == model, "{options}: libvhdi reads something else");
        // And once more the other way round.
        qemu_io("vpc", &path, "write -P 0x11 15M 2M");
        model[15 * MIB as usize..][..2 << 20].fill(0x11);
        assert!(read(&open(&path, Format::Vhd), 0, size as usize).unwrap() == model, "{options}");
    }
}

#[test]
fn a_size_that_the_footer_states_counts_for_programs_that_mean_it() {
    let (_dir, path, size) = made("-o force_size=on", 7 * MIB + 512 * 3);
    assert_eq!(size, 7 * MIB + 512 * 3);
    let (_dir2, other, size) = made("", 7 * MIB + 512 * 3);
    assert!(size > 7 * MIB + 512 * 3, "geometry rounds up");
    for (path, size) in [(path, 7 * MIB + 512 * 3), (other, size)] {
        let info = qemu_img(&format!("info -f vpc {}", path.display()));
        assert!(info.contains(&format!("({size} bytes)")), "{info}");
    }
}

/// The other program may go on behind the end of the disk.
fn assert_same(theirs: &[u8], ours: &[u8]) {
    let differs =
        (0..ours.len()).step_by(512).filter(|at| theirs.get(*at..at + 512) != ours.get(*at..at + 512));
    let differs: Vec<usize> = differs.map(|at| at / 512).collect();
    assert!(differs.is_empty(), "{} sectors differ: {:?}", differs.len(), &differs[..differs.len().min(20)]);
}

/// A chain of three: dynamic, and two differencing disks. Returns it with what the last one holds.
fn chain() -> (TempDir, [PathBuf; 3], Vec<u8>) {
    let (dir, base, size) = made("", 9 * MIB);
    let [second, third] = ["second.vhd", "third.vhd"].map(|name| dir.path().join(name));
    let mut model = vec![0; size as usize];
    let mut put = |path: &Path, offset: u64, bytes: &[u8]| {
        write(&open(path, Format::Vhd), offset, bytes).unwrap();
        model[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    };
    put(&base, MIB, &pattern(3 * MIB, 1));
    differencing(&base, &second, size, 2 << 20);
    put(&second, 2 * MIB + 512, &pattern(64 << 10, 2));
    put(&second, 6 * MIB, &pattern(512, 3));
    differencing(&second, &third, size, 1 << 20);
    put(&third, 3 * MIB - 1024, &pattern(2048, 4));
    (dir, [base, second, third], model)
}

#[test]
fn a_differencing_chain_is_read_by_libvhdi_as_by_us() {
    let (_dir, [base, second, third], model) = chain();
    assert!(read(&open(&third, Format::Vhd), 0, model.len()).unwrap() == model);
    assert_same(&by_libvhdi(&[&base, &second, &third]), &model);
    let info = run("vhdiinfo", "libvhdi-utils", &[second.to_str().unwrap()]);
    assert!(info.status.success(), "{info:?}");
}

#[test]
fn random_operations_agree_with_a_model_over_parents() {
    let (_dir, [base, second, third], model) = chain();
    compare_with_model(&third, Format::Vhd, model.clone(), 500, 71);
    let image = open(&third, Format::Vhd);
    let now = read(&image, 0, model.len()).unwrap();
    drop(image);
    assert_same(&by_libvhdi(&[&base, &second, &third]), &now);
}

#[test]
fn a_parent_is_known_by_its_identity() {
    let (dir, [base, second, third], _) = chain();
    // Another disk of the same name.
    std::fs::remove_file(&base).unwrap();
    qemu_img(&format!("create -q -f vpc {} 9M", base.display()));
    let text = error(&third).to_string();
    assert!(text.contains("disk.vhd is another disk"), "{text}");
    std::fs::remove_file(&base).unwrap();
    let text = error(&second).to_string();
    assert!(text.contains("needs its parent") && text.contains("disk.vhd"), "{text}");
    drop(dir);
}

#[test]
fn parents_are_locked_against_writing() {
    let (_dir, [base, _, third], _) = chain();
    let _image = open(&third, Format::Vhd);
    assert!(matches!(error(&base), ImageError::Locked(_)));
    assert!(try_open(&base, Format::Vhd, Access::ReadOnly).is_ok());
}

#[test]
fn killed_at_any_moment_it_is_sound_and_has_what_was_flushed() {
    let mut random = Random::new(43);
    for kind in ["dynamic", "fixed", "differencing"] {
        let (dir, mut path, mut size) =
            made(if kind == "fixed" { "-o subformat=fixed" } else { "" }, 24 * MIB);
        let mut before = vec![0; size as usize];
        if kind == "differencing" {
            let front = dir.path().join("front.vhd");
            size = 24 * MIB;
            differencing(&path, &front, size, 64 << 10);
            before.truncate(size as usize);
            path = front;
        }
        for _ in 0..6 {
            let seed = random.below(1 << 30);
            write_and_kill(&path, Format::Vhd, size / 512, seed, Duration::from_micros(random.below(60_000)));
            if kind != "differencing" {
                // QEMU reads it before we have mended anything.
                assert_eq!(by_qemu(&path).len() as u64, size);
            }
            let image = open(&path, Format::Vhd);
            let now = verify_flushed(&path, &image, seed, &before);
            drop(image);
            if kind != "differencing" {
                assert!(by_qemu(&path) == now, "{kind}: qemu-img reads something else");
            } else {
                assert_same(&by_libvhdi(&[&dir.path().join("disk.vhd"), &path]), &now);
            }
            let len = std::fs::metadata(&path).unwrap().len();
            let mut footer = [0; 512];
            std::fs::File::open(&path).unwrap().read_exact_at(&mut footer, len - 512).unwrap();
            assert!(Footer::parse(&footer).unwrap().is_ok(), "{kind}: it does not end with a footer");
            before = now;
        }
    }
}

#[test]
fn a_missing_footer_is_restored_from_the_copy() {
    let (_dir, path, size) = made("", 9 * MIB);
    write(&open(&path, Format::Vhd), 0, &[7; 512]).unwrap();
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, &good[..good.len() - 512]).unwrap();
    let image = open(&path, Format::Vhd);
    assert_eq!(image.size(), size);
    drop(image);
    assert!(std::fs::read(&path).unwrap() == good);
}

#[test]
fn a_guest_cannot_make_a_fixed_disk_another_kind() {
    let (_dir, path, size) = made("-o subformat=fixed", 9 * MIB);
    let (_dir2, dynamic, _) = made("", 9 * MIB);
    let header = std::fs::read(dynamic).unwrap();
    write(&open(&path, Format::Vhd), 0, &header).unwrap();
    let image = open(&path, Format::Vhd);
    assert!(read(&image, 0, header.len()).unwrap() == header);
    assert_eq!(image.size(), size);
    assert!(image.raw().is_some(), "it is served as another kind");
}

#[test]
fn a_fixed_disk_ends_before_its_footer() {
    let (_dir, path, size) = made("-o subformat=fixed", 9 * MIB);
    let image = open(&path, Format::Vhd);
    assert!(write(&image, size, &[1; 512]).is_err());
    assert!(image.discard(size, 512).is_err());
    drop(image);
    assert_eq!(open(&path, Format::Vhd).size(), size);
}

#[test]
fn discarded_blocks_give_their_room_back() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, path, _) = made("", 20 * MIB);
    let image = open(&path, Format::Vhd);
    write(&image, 0, &pattern(16 * MIB, 1)).unwrap();
    image.flush().unwrap();
    let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(blocks() >= 16 * MIB);
    image.discard(0, 16 * MIB).unwrap();
    assert!(blocks() < MIB, "{} bytes are still there", blocks());
    assert!(read(&image, 0, 16 << 20).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn threads_keep_their_sectors() {
    let (_dir, path, _) = made("", 32 * MIB);
    let image = open(&path, Format::Vhd);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let image = &image;
            scope.spawn(move || {
                for sector in (thread..16384).step_by(28) {
                    write(image, sector * 512, &[thread as u8 + 1; 512]).unwrap();
                }
                image.flush().unwrap();
            });
        }
    });
    let now = read(&image, 0, 8 << 20).unwrap();
    for (sector, bytes) in now.chunks(512).enumerate() {
        let expected = if sector % 28 < 4 { (sector % 28) as u8 + 1 } else { 0 };
        assert!(bytes.iter().all(|byte| *byte == expected), "sector {sector}");
    }
}

#[test]
fn a_lying_image_is_refused_with_a_sentence() {
    let (_dir, path, _) = made("", 9 * MIB);
    {
        let image: DiskImage = open(&path, Format::Vhd);
        write(&image, 0, &[7; 512]).unwrap();
        write(&image, 4 * MIB, &[7; 512]).unwrap();
    }
    let good = std::fs::read(&path).unwrap();
    let end = good.len() - 512;
    let first = be32(&good, 1536);
    // What it is, whether it is in the footers, the offset in the footer or the file, the bytes, the sentence.
    let cases: &[(&str, bool, usize, &[u8], &str)] = &[
        ("kind", true, 60, &5u32.to_be_bytes(), "disk type 5"),
        ("version", true, 12, &0x20000u32.to_be_bytes(), "version 0x20000"),
        ("header beyond", true, 16, &(1u64 << 40).to_be_bytes(), "header is at byte 0x10000000000"),
        ("header wraps", true, 16, &(u64::MAX - 511).to_be_bytes(), "outside of the file"),
        ("header missing", true, 16, &1024u64.to_be_bytes(), "no header where its footer says"),
        ("no size", true, 48, &0u64.to_be_bytes(), "is empty"),
        ("odd size", true, 48, &513u64.to_be_bytes(), "not a multiple of 512"),
        ("huge size", true, 48, &(1u64 << 60).to_be_bytes(), "too few for"),
        ("table beyond", false, 528, &(1u64 << 40).to_be_bytes(), "its table is at byte"),
        ("many entries", false, 540, &u32::MAX.to_be_bytes(), "are the most"),
        ("few entries", false, 540, &1u32.to_be_bytes(), "too few"),
        ("block of 3", false, 544, &3u32.to_be_bytes(), "blocks of 3 bytes"),
        ("huge block", false, 544, &(1u32 << 31).to_be_bytes(), "blocks of 2147483648 bytes"),
        ("block over the header", false, 1536, &1u32.to_be_bytes(), "overlaps"),
        ("two blocks in one", false, 1540, &(first + 1).to_be_bytes(), "overlaps"),
        ("block beyond", false, 1540, &0xffff_fff0u32.to_be_bytes(), "beyond the end"),
    ];
    for (name, in_footer, offset, bytes, sentence) in cases {
        let mut image = good.clone();
        if *in_footer {
            for at in [0, end] {
                image[at + 28..at + 32].copy_from_slice(b"tap\0");
                image[at + offset..at + offset + bytes.len()].copy_from_slice(bytes);
                patched(&mut image[at..at + 512], 64);
            }
        } else {
            image[*offset..offset + bytes.len()].copy_from_slice(bytes);
            patched(&mut image[512..1536], 36);
        }
        std::fs::write(&path, image).unwrap();
        let text = error(&path).to_string();
        assert!(text.contains(sentence), "{name}: {text}");
    }
    let mut image = good.clone();
    for at in [0, end] {
        image[at + 100] ^= 1;
    }
    std::fs::write(&path, image).unwrap();
    assert!(error(&path).to_string().contains("checksum of its footer"));
    std::fs::write(&path, &good[1024..end]).unwrap();
    assert!(matches!(error(&path), ImageError::WrongFormat { .. }));
}

#[test]
fn a_chain_that_comes_back_to_itself_is_refused() {
    let (_dir, [_, second, _], _) = chain();
    // Its parent's name becomes its own.
    let mut image = std::fs::read(&second).unwrap();
    let id: [u8; 16] = image[68..84].try_into().unwrap();
    image[512 + 40..512 + 56].copy_from_slice(&id);
    image[512 + 576..512 + 600].fill(0);
    for (i, unit) in "second.vhd".encode_utf16().enumerate() {
        image[512 + 64 + 2 * i..512 + 66 + 2 * i].copy_from_slice(&unit.to_be_bytes());
    }
    patched(&mut image[512..1536], 36);
    std::fs::write(&second, image).unwrap();
    let error = error(&second);
    assert!(matches!(error, ImageError::BackingLoop(_)), "{error}");
}

#[test]
fn changed_numbers_in_an_image_do_no_harm() {
    let (_dir, path, _) = made("", 9 * MIB);
    let image = open(&path, Format::Vhd);
    write(&image, 0, &[3; 4096]).unwrap();
    drop(image);
    // The data of the one block is a hole at the end, and is not needed.
    let good = std::fs::read(&path).unwrap();
    let mend = |bytes: &mut [u8]| {
        let end = bytes.len() - 512;
        let (copy, footer) = bytes.split_at_mut(end);
        footer.copy_from_slice(&copy[..512]);
        patched(footer, 64);
        patched(&mut copy[..512], 64);
        patched(&mut copy[512..1536], 36);
    };
    let opened = survive_patches(&good, Format::Vhd, 5, mend);
    assert!(opened > 50, "only {opened} could be opened");
}
