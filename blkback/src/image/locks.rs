//! Locks of image files against other users.
//!
//! They are open-file-description locks on the bytes that QEMU uses for the same purpose, so that each of
//! the two programs respects the other. Byte 100 + n is locked shared by whoever uses permission n, byte
//! 200 + n by whoever does not share permission n with others. Conflicts are found by asking whether an
//! exclusive lock would be possible: after the own locks are taken, so that of two programs that start at
//! once at least one sees the other.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::{Access, Format, ImageError};

// Permissions as QEMU numbers them; the lock byte is the base plus this number.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
/// All of them are below this.
const PERMISSIONS: i64 = 4;
const USED_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

/// What a user does with a file, and what others may not do meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permissions {
    used: &'static [i64],
    unshared: &'static [i64],
}

impl Permissions {
    /// Those of a disk: an image format makes its file longer as it needs, a raw image stays as it is.
    pub(super) fn of(access: Access, format: Format) -> Self {
        match (access, format) {
            (Access::ReadOnly, _) => Self { used: &[CONSISTENT_READ], unshared: &[WRITE, RESIZE] },
            (Access::Exclusive, Format::Raw) => {
                Self { used: &[CONSISTENT_READ, WRITE], unshared: &[WRITE, RESIZE] }
            }
            (Access::Exclusive, _) => {
                Self { used: &[CONSISTENT_READ, WRITE, RESIZE], unshared: &[WRITE, RESIZE] }
            }
            (Access::Shared, _) => Self { used: &[CONSISTENT_READ, WRITE], unshared: &[RESIZE] },
        }
    }
}

/// A file with its locks. They end with this value, and not only with the file: a process that is being started
/// has a copy of every descriptor until it runs its program.
#[derive(Debug)]
pub(super) struct LockedFile(File);

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        for byte in [USED_BASE, UNSHARED_BASE].into_iter().flat_map(|base| base..base + PERMISSIONS) {
            let _ = lock_byte(&self.0, libc::F_OFD_SETLK, libc::F_UNLCK, byte);
        }
    }
}

/// Takes the locks, or says who cannot be lived with.
pub(super) fn lock(file: File, path: &Path, permissions: Permissions) -> Result<LockedFile, ImageError> {
    let file = LockedFile(file);
    let no_locks = |reason| ImageError::NoLocks { path: path.to_owned(), reason };
    let used = permissions.used.iter().map(|p| USED_BASE + p);
    for byte in used.chain(permissions.unshared.iter().map(|p| UNSHARED_BASE + p)) {
        match lock_byte(&file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            Ok(_) => {}
            // Somebody holds the byte exclusively, which QEMU never does: it is locked all the same.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(ImageError::Locked(path.to_owned()));
            }
            Err(e) => return Err(no_locks(e)),
        }
    }
    if conflicts(&file, permissions).map_err(no_locks)? {
        return Err(ImageError::Locked(path.to_owned()));
    }
    Ok(file)
}

/// Whether somebody does not share what we use, or uses what we do not share.
pub(super) fn conflicts(file: &File, permissions: Permissions) -> io::Result<bool> {
    let used = permissions.used.iter().map(|p| UNSHARED_BASE + p);
    for byte in used.chain(permissions.unshared.iter().map(|p| USED_BASE + p)) {
        let lock = lock_byte(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?;
        if i32::from(lock.l_type) != libc::F_UNLCK {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One fcntl call about one byte.
pub(super) fn lock_byte(
    file: &File,
    command: libc::c_int,
    kind: libc::c_int,
    byte: i64,
) -> io::Result<libc::flock> {
    let short = |value: libc::c_int| libc::c_short::try_from(value).map_err(io::Error::other);
    let mut lock = libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: both commands take a pointer to a flock, which outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock)
}
