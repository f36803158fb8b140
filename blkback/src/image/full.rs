//! Images where there is no room left, in a process of their own: on a file system of a few MiB, which the kernel
//! mounts for any user in a namespace of his own. Where it does not, the process has a limit on the size of files
//! instead (RLIMIT_FSIZE), which is told by EFBIG.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::indexing_slicing)]

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use devices::xen::xenbus::BackendDevice;

use super::testing::*;
use super::*;
use crate::protocol::Protocol;
use crate::testing::{FLUSH, Front, READ, Segment, WRITE, config, wait_until, whole};
use crate::{BlockDevice, DiskConfig};

/// Set for the process: the folder that has little room, and what to do there.
const PLACE: &str = "XVMM_TEST_FULL";
const KIB: usize = 1024;
const MIB: u64 = 1 << 20;
const FORMATS: [Format; 3] = [Format::Raw, Format::Qcow2, Format::Vhd];
/// Room for everything.
const ROOM: usize = 8192 * KIB;
/// What lies about and can be deleted.
const FILLER: usize = 3072 * KIB;
/// Bytes of a disk, more than there is room for.
const DISK: u64 = 64 << 20;
/// What is written in one go.
const PIECE: usize = 64 * KIB;

/// Does `case` of [`child`] in a folder with little room.
fn in_little_room(case: &str) {
    let dir = tempfile::tempdir().unwrap();
    let target = CString::new(dir.path().as_os_str().as_bytes()).unwrap();
    // SAFETY: these have no preconditions.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let maps = [
        (c"/proc/self/setgroups", "deny".to_owned()),
        (c"/proc/self/uid_map", format!("0 {uid} 1")),
        (c"/proc/self/gid_map", format!("0 {gid} 1")),
    ];
    let options = CString::new(format!("size={ROOM}")).unwrap();
    let prepare = move || {
        if !mount(&target, &options, uid == 0, &maps) {
            limit((ROOM - FILLER) as u64)?;
        }
        Ok(())
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--ignored", "--nocapture", "image::full::child"]);
    command.env(PLACE, format!("{}\n{case}", dir.path().display()));
    // SAFETY: system calls only, on what was made before.
    unsafe { command.pre_exec(prepare) };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Gives the process a file system of its own; false: it may not have one.
fn mount(target: &CStr, options: &CStr, is_root: bool, maps: &[(&CStr, String)]) -> bool {
    // SAFETY: the strings are valid, and the calls take them only to read.
    unsafe {
        if !is_root || libc::unshare(libc::CLONE_NEWNS) != 0 {
            if libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) != 0 {
                return false;
            }
            for (path, map) in maps {
                let fd = libc::open(path.as_ptr(), libc::O_WRONLY);
                libc::write(fd, map.as_ptr().cast(), map.len());
                libc::close(fd);
            }
        }
        let none = std::ptr::null();
        libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) == 0
            && libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast())
                == 0
    }
}

/// Files of this process, and of its children, may not grow beyond this.
fn limit(bytes: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit lives until the call returns. Without the signal the write fails.
    let result = unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The folder with little room, in the process of [`child`].
struct Room {
    dir: PathBuf,
    /// What says that there is no more.
    errno: i32,
}

impl Room {
    fn new(dir: &Path) -> Room {
        // SAFETY: the structure is written by the call, which takes a valid string.
        let blocks = unsafe {
            let mut fs: libc::statfs = std::mem::zeroed();
            let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
            assert_eq!(libc::statfs(path.as_ptr(), &raw mut fs), 0);
            fs.f_blocks * fs.f_bsize as u64
        };
        let errno = if blocks == ROOM as u64 { libc::ENOSPC } else { libc::EFBIG };
        let room = Room { dir: dir.to_owned(), errno };
        room.end();
        room
    }

    /// Takes away what [`Room::make`] made.
    fn end(&self) {
        if self.errno == libc::ENOSPC {
            std::fs::write(self.dir.join("filler"), vec![1; FILLER]).unwrap();
        } else {
            limit((ROOM - FILLER) as u64).unwrap();
        }
    }

    /// There is more room.
    fn make(&self) {
        if self.errno == libc::ENOSPC {
            std::fs::remove_file(self.dir.join("filler")).unwrap();
        } else {
            limit(libc::RLIM_INFINITY).unwrap();
        }
    }

    /// A new image, with nothing in it.
    fn image(&self, format: Format) -> PathBuf {
        let path = self.dir.join("disk.img");
        let size = DISK.to_string();
        match format {
            Format::Raw => {
                // A hole, which the limit would count.
                self.make();
                std::fs::File::create(&path).unwrap().set_len(DISK).unwrap();
                self.end();
            }
            Format::Qcow2 => drop(qemu_img(&format!("create -q -f qcow2 {} {size}", path.display()))),
            Format::Vhd => drop(qemu_img(&format!("create -q -f vpc {} {size}", path.display()))),
        }
        path
    }
}

/// Not a test: what the process of [`in_little_room`] does.
#[test]
#[ignore = "run by the tests that give it little room"]
fn child() {
    let place = std::env::var(PLACE).expect("where, and what to do");
    let (dir, case) = place.split_once('\n').unwrap();
    let room = Room::new(Path::new(dir));
    match case {
        "qcow2" => fill_image(&room, Format::Qcow2),
        "vhd" => fill_image(&room, Format::Vhd),
        "errors" => FORMATS.into_iter().for_each(|format| serve(&room, format, false)),
        "pause" => FORMATS.into_iter().for_each(|format| serve(&room, format, true)),
        other => panic!("no case {other}"),
    }
}

#[test]
fn a_qcow2_image_without_room_fails_writes_and_is_sound() {
    in_little_room("qcow2");
}

#[test]
fn a_vhd_image_without_room_fails_writes_and_is_sound() {
    in_little_room("vhd");
}

#[test]
fn a_guest_sees_errors_for_what_finds_no_room_and_goes_on() {
    in_little_room("errors");
}

#[test]
fn a_guest_that_is_to_wait_for_room_goes_on_when_there_is_some() {
    in_little_room("pause");
}

fn piece(number: usize) -> Vec<u8> {
    (0..PIECE).map(|i| (i >> 9) as u8 ^ number as u8 ^ 0x5a).collect()
}

/// Whether these pieces are in the image.
fn has(image: &DiskImage, pieces: std::ops::Range<usize>) -> bool {
    pieces.into_iter().all(|number| read(image, (number * PIECE) as u64, PIECE).unwrap() == piece(number))
}

/// Fills an image until there is no room, closes it in that state, and goes on when there is room again.
fn fill_image(room: &Room, format: Format) {
    let path = room.image(format);
    let image = open(&path, format);
    let mut safe = 0;
    let error = loop {
        assert!(safe < DISK as usize / PIECE, "the room has no end");
        let written = write(&image, (safe * PIECE) as u64, &piece(safe)).and_then(|()| image.flush());
        match written {
            Ok(()) => safe += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(room.errno), "{error}");
    assert!(safe > 8, "only {safe} pieces found room");
    for far in [DISK - 8 * MIB, DISK - 4 * MIB, DISK / 2] {
        // What fits in may go there. It is never told to be safe when it is not.
        let _ = write(&image, far, &piece(1)).and_then(|()| image.flush());
    }
    assert!(has(&image, 0..safe), "something that was written is gone");
    // What has its place can be written.
    write(&image, 3 * PIECE as u64, &piece(3)).unwrap();
    drop(image);

    let image = open(&path, format);
    assert!(has(&image, 0..safe), "something that was flushed is gone when the image is opened again");
    room.make();
    let all = safe + 16;
    for number in safe..all {
        write(&image, (number * PIECE) as u64, &piece(number)).unwrap();
    }
    image.flush().unwrap();
    drop(image);
    if format == Format::Qcow2 {
        qemu_img(&format!("check -q {}", path.display()));
    }
    let name = if format == Format::Qcow2 { "qcow2" } else { "vpc" };
    let raw = tempfile::NamedTempFile::new().unwrap();
    qemu_img(&format!("convert -f {name} -O raw {} {}", path.display(), raw.path().display()));
    let raw = std::fs::read(raw.path()).unwrap();
    let expected: Vec<u8> = (0..all).flat_map(piece).collect();
    assert!(raw[..expected.len()] == expected, "qemu-img reads something else");
}

/// A guest writes until there is no room, and goes on when there is room again.
fn serve(room: &Room, format: Format, pause: bool) {
    // A limit on files is no full disk: nobody would make room.
    let pause = pause && room.errno == libc::ENOSPC;
    let path = room.image(format);
    let config = DiskConfig { enospc_pause: pause, ..config(false) };
    let mut device = BlockDevice::new(config, open(&path, format));
    let mut front = Front::new(Protocol::X86_64);
    front.connect(&mut device);
    let pages: Vec<_> = (0..11).map(|_| front.guest.granted_page()).collect();
    for (number, (frame, _)) in pages.iter().enumerate() {
        front.guest.write(*frame, 0, &[number as u8 + 1; 4096]);
    }
    let data: Vec<Segment> = pages.iter().map(|(_, gref)| whole(*gref)).collect();
    let at = |number: u64| number * 88;
    let (last, (id, response)) = (0..DISK / 512 / 88)
        .find_map(|number| {
            let id = front.put(WRITE, at(number), &data);
            front.publish();
            let mut response = None;
            wait_until("a write has no end", || {
                response = front.take();
                response.is_some() || device.disk().is_full()
            });
            (response != Some((id, WRITE, 0))).then_some((number, (id, response)))
        })
        .expect("the room has no end");
    assert!(last > 8, "only {last} writes found room");
    let expected = if pause { None } else { Some((id, WRITE, -1)) };
    assert_eq!(response, expected, "{format:?}");
    // The disk is read meanwhile, and what is there is what was written.
    let (frame, gref) = front.guest.granted_page();
    for number in [0, last - 1] {
        assert_eq!(front.request(READ, at(number) + 80, &[whole(gref)]), 0);
        assert_eq!(front.guest.read(frame, 0, 4096), [11; 4096]);
    }
    room.make();
    if pause {
        assert_eq!(front.wait_response(), (id, WRITE, 0));
        assert!(!device.disk().is_full());
    } else {
        assert_eq!(front.request(WRITE, at(last), &data), 0);
    }
    assert_eq!(front.request(FLUSH, 0, &[]), 0);
    assert_eq!(device.disk().counters().errors.load(Relaxed), u64::from(!pause));
    device.disconnect();
    wait_until("the queue did not stop", || device.is_stopped());
    drop(device);
    let image = open(&path, format);
    assert_eq!(read(&image, at(last) * 512 + 10 * 4096, 4096).unwrap(), [11; 4096]);
    drop(image);
    std::fs::remove_file(path).unwrap();
    room.end();
}
