//! Opening, locking, and the raw format.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fs::File;

use super::file::open_error;
use super::locks::lock_byte;
use super::testing::{compare_with_model, open, qemu_img, read, try_open, write};
use super::*;
use crate::testing::Loop;

fn file(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

#[test]
fn a_file_of_whole_sectors_is_a_disk() {
    let file = file(5 * 512);
    let image = DiskImage::open(file.path(), false).unwrap();
    assert_eq!((image.size(), image.logical_block(), image.readonly()), (5 * 512, 512, false));
    assert!(!image.is_block_device());
}

#[test]
fn a_missing_file_is_told_with_its_path() {
    let error = DiskImage::open(Path::new("/nowhere/disk.img"), false).unwrap_err();
    assert!(matches!(error, ImageError::Missing(_)));
    assert!(error.to_string().contains("/nowhere/disk.img"), "{error}");
}

#[test]
fn a_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = DiskImage::open(dir.path(), true).unwrap_err();
    assert!(matches!(error, ImageError::Directory(_)), "{error}");
}

#[test]
fn a_character_device_is_refused() {
    let error = DiskImage::open(Path::new("/dev/zero"), true).unwrap_err();
    assert!(matches!(error, ImageError::NotADisk(_)), "{error}");
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_other_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a valid C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let error = DiskImage::open(&path, true).unwrap_err();
    assert!(matches!(error, ImageError::NotADisk(_)), "{error}");
}

#[test]
fn an_empty_file_is_refused() {
    let error = DiskImage::open(file(0).path(), false).unwrap_err();
    assert!(matches!(error, ImageError::Empty(_)), "{error}");
}

#[test]
fn a_piece_of_a_sector_is_refused() {
    let error = DiskImage::open(file(1000).path(), false).unwrap_err();
    assert!(matches!(error, ImageError::SizeNotAligned { size: 1000, .. }), "{error}");
}

#[test]
fn system_errors_become_their_own_kinds() {
    let file = file(512);
    let error = |readonly, errno| open_error(file.path(), readonly, io::Error::from_raw_os_error(errno));
    assert!(matches!(error(false, libc::EROFS), ImageError::NotWritable { .. }));
    // The file can be read, so it is the writing that is not permitted.
    assert!(matches!(error(false, libc::EACCES), ImageError::NotWritable { .. }));
    assert!(matches!(error(true, libc::EACCES), ImageError::NotPermitted(_)));
    assert!(matches!(error(false, libc::EBUSY), ImageError::InUseByHost(_)));
    assert!(matches!(error(false, libc::EIO), ImageError::Io { .. }));
}

#[test]
fn one_writer_excludes_everybody_else() {
    let file = file(512);
    let writer = DiskImage::open(file.path(), false).unwrap();
    assert!(matches!(DiskImage::open(file.path(), false), Err(ImageError::Locked(_))));
    assert!(matches!(DiskImage::open(file.path(), true), Err(ImageError::Locked(_))));
    drop(writer);
    assert!(DiskImage::open(file.path(), false).is_ok());
}

#[test]
fn readers_share_and_exclude_a_writer() {
    let file = file(512);
    let _readers = [DiskImage::open(file.path(), true).unwrap(), DiskImage::open(file.path(), true).unwrap()];
    assert!(matches!(DiskImage::open(file.path(), false), Err(ImageError::Locked(_))));
}

/// Somebody else's lock on one byte.
fn foreign_lock(file: &tempfile::NamedTempFile, byte: i64) -> File {
    let other = File::open(file.path()).unwrap();
    lock_byte(&other, libc::F_OFD_SETLK, libc::F_RDLCK, byte).unwrap();
    other
}

#[test]
fn the_locks_end_with_the_image_though_a_process_that_is_being_started_has_a_copy_of_the_file() {
    let file = file(8 * 512);
    let image = DiskImage::open(file.path(), false).unwrap();
    // SAFETY: the child only sleeps, until it is killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: nothing but a system call.
        unsafe { libc::pause() };
    }
    drop(image);
    let again = DiskImage::open(file.path(), false);
    // SAFETY: the child is this test's own.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    again.unwrap();
}

#[test]
fn the_bytes_that_qemu_locks_are_respected() {
    // Byte, and whether a reader and a writer may have the image all the same.
    let cases = [
        (100, true, true),   // reads
        (101, false, false), // writes
        (103, false, false), // resizes
        (200, false, false), // lets nobody read
        (201, true, false),  // lets nobody write
        (203, true, true),   // lets nobody resize
    ];
    for (byte, reader, writer) in cases {
        let file = file(512);
        let _other = foreign_lock(&file, byte);
        assert_eq!(DiskImage::open(file.path(), true).is_ok(), reader, "reader, byte {byte}");
        assert_eq!(DiskImage::open(file.path(), false).is_ok(), writer, "writer, byte {byte}");
    }
}

#[test]
fn the_bytes_that_qemu_asks_for_are_locked() {
    for (readonly, expected) in [(true, &[100, 201, 203][..]), (false, &[100, 101, 201, 203])] {
        let file = file(512);
        let _image = DiskImage::open(file.path(), readonly).unwrap();
        let other = File::open(file.path()).unwrap();
        let locked = |byte: &i64| {
            let lock = lock_byte(&other, libc::F_OFD_GETLK, libc::F_WRLCK, *byte).unwrap();
            i32::from(lock.l_type) != libc::F_UNLCK
        };
        let locked: Vec<i64> = (0..300).filter(locked).collect();
        assert_eq!(locked, expected, "readonly: {readonly}");
    }
}

#[test]
fn current_size_follows_the_file() {
    let file = file(512);
    let image = DiskImage::open(file.path(), true).unwrap();
    file.as_file().set_len(2048).unwrap();
    assert_eq!((image.size(), image.current_size().unwrap()), (512, 2048));
}

fn with(path: &Path, format: Format, access: Access) -> Result<DiskImage, ImageError> {
    let (path, cache) = (path.to_owned(), CacheMode::Writeback);
    DiskImage::open_with(&ImageOptions { path, format, access, cache })
}

#[test]
fn shared_writers_go_together_and_with_nobody_else() {
    let file = file(512);
    let open = |access| with(file.path(), Format::Raw, access);
    let shared = [open(Access::Shared).unwrap(), open(Access::Shared).unwrap()];
    for access in [Access::Exclusive, Access::ReadOnly] {
        assert!(matches!(open(access), Err(ImageError::Locked(_))), "{access:?}");
    }
    drop(shared);
    for access in [Access::Exclusive, Access::ReadOnly] {
        let _other = open(access).unwrap();
        assert!(matches!(open(Access::Shared), Err(ImageError::Locked(_))), "{access:?}");
    }
}

#[test]
fn the_bytes_of_a_shared_writer_and_of_a_growing_image_are_those_of_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    testing::qemu_img(&format!("create -q -f qcow2 {} 1M", path.display()));
    // Whole sectors, so that it is a raw image too.
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    for (format, access, expected) in [
        (Format::Raw, Access::Shared, &[100, 101, 203][..]),
        (Format::Qcow2, Access::Exclusive, &[100, 101, 103, 201, 203]),
        (Format::Qcow2, Access::ReadOnly, &[100, 201, 203]),
    ] {
        let _image = with(&path, format, access).unwrap();
        let locked: Vec<i64> = (0..300).filter(|byte| testing::is_locked(&path, *byte)).collect();
        assert_eq!(locked, expected, "{format} {access:?}");
    }
}

#[test]
fn the_content_does_not_choose_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    testing::qemu_img(&format!("create -q -f qcow2 {} 1M", path.display()));
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let raw = with(&path, Format::Raw, Access::Exclusive).unwrap();
    assert_eq!(raw.size(), 1 << 20);
    assert_eq!(testing::read(&raw, 0, 4).unwrap(), b"QFI\xfb");
    drop(raw);
    let error = with(&path, Format::Vhd, Access::Exclusive).unwrap_err();
    assert!(matches!(error, ImageError::WrongFormat { .. }), "{error}");
}

#[test]
fn a_raw_discard_punches_a_hole() {
    use std::os::unix::fs::MetadataExt;
    let file = file(1 << 20);
    let image = with(file.path(), Format::Raw, Access::Exclusive).unwrap();
    testing::write(&image, 0, &[7; 1 << 20]).unwrap();
    image.flush().unwrap();
    image.discard(4096, 512 << 10).unwrap();
    assert!(file.as_file().metadata().unwrap().blocks() * 512 <= (1 << 20) - (512 << 10) + 8192);
    assert_eq!(testing::read(&image, 4096, 8192).unwrap(), [0; 8192]);
    assert_eq!(testing::read(&image, 0, 4096).unwrap(), [7; 4096]);
}

#[test]
fn what_is_misaligned_for_direct_io_is_written_whole() {
    // In the target folder: a file system of memory has no direct I/O.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![0x11; 1 << 20]).unwrap();
    let options = ImageOptions {
        path: path.clone(),
        format: Format::Raw,
        access: Access::Exclusive,
        cache: CacheMode::None,
    };
    let file = ImageFile::open(&options, &mut Vec::new()).unwrap();
    let mut model = vec![0x11; 1 << 20];
    for (at, len) in [(0, 1), (511, 2), (4095, 4098), (100, 600_000), (4096, 4096), (700_001, 299_999)] {
        let bytes = vec![at as u8 ^ 0x5a; len];
        file.write(&bytes, at as u64).unwrap();
        model[at..at + len].copy_from_slice(&bytes);
        let mut got = vec![0; len + 2];
        let from = at.saturating_sub(1);
        file.read(&mut got, from as u64).unwrap();
        assert!(got == model[from..from + len + 2], "{at}, {len}");
    }
    assert!(std::fs::read(&path).unwrap() == model);
    let mut beyond = [1; 100];
    file.read(&mut beyond, (1 << 20) - 50).unwrap();
    assert_eq!(beyond[50..], [0; 50]);
}

#[test]
#[ignore = "needs root and a free loop device"]
fn formats_work_on_devices_that_held_something_else() {
    const DISK: usize = 16 << 20;
    let table = [
        (Format::Qcow2, "qcow2", 512),
        (Format::Qcow2, "qcow2 -o compat=0.10", 512),
        (Format::Qcow2, "qcow2 -o cluster_size=4k", 4096),
        (Format::Vhd, "vpc -o force_size=on", 512),
        (Format::Vhd, "vpc -o force_size=on", 4096),
    ];
    for (seed, (format, options, sector)) in (1..).zip(table) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![0xa5; DISK * 2]).unwrap();
        let device = Loop::new(file.path(), sector);
        qemu_img(&format!("create -q -f {options} {} {DISK}", device.0.display()));
        compare_with_model(&device.0, format, vec![0; DISK], 300, seed);
        if format == Format::Qcow2 {
            qemu_img(&format!("check -q {}", device.0.display()));
        }
        assert!(try_open(&device.0, format, Access::Exclusive).unwrap().is_block_device());
    }
}

#[test]
#[ignore = "needs root and a free loop device"]
fn an_image_on_a_device_ends_where_the_device_ends() {
    const MIB: u64 = 1 << 20;
    for (format, name) in [(Format::Qcow2, "qcow2"), (Format::Vhd, "vpc")] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 * MIB).unwrap();
        let device = Loop::new(file.path(), 512);
        qemu_img(&format!("create -q -f {name} {} 64M", device.0.display()));
        let image = open(&device.0, format);
        let piece = |n: u64| write(&image, n * 65536, &[n as u8; 65536]).and_then(|()| image.flush());
        let full = (0..1024).find_map(|n| piece(n).err().map(|error| (n, error)));
        let (safe, error) = full.expect("the device has no end");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        assert!(safe > 2);
        drop(image);
        let image = open(&device.0, format);
        for n in 0..safe {
            assert_eq!(read(&image, n * 65536, 65536).unwrap(), [n as u8; 65536]);
        }
    }
}
