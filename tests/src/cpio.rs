//! Writes initramfs archives: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Device nodes are only entries of the archive, so no privileges are needed to make one. The kernel
//! accepts several archives in a row, which is how a test overlay goes on top of a cached base.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;
const REGULAR_FILE: u32 = 0o100_000;

/// An archive in memory. Parent directories are added as they are needed.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    copies: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// Adds a directory and its parents; `path` is absolute.
    pub fn directory(&mut self, path: &str) {
        let mut parent = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            parent = if parent.is_empty() { part.to_owned() } else { format!("{parent}/{part}") };
            if self.directories.insert(parent.clone()) {
                self.entry(&parent, DIRECTORY, (0, 0), &[]);
            }
        }
    }

    /// Adds a file with the permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.parents(path);
        self.entry(path.trim_start_matches('/'), REGULAR_FILE | mode, (0, 0), data);
    }

    /// Adds a copy of a file of this machine, with its permissions.
    pub fn copy(&mut self, path: &str, from: &Path) -> io::Result<()> {
        let mode = std::fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(path, mode, &std::fs::read(from)?);
        Ok(())
    }

    /// The same, unless this was done for the path before: a library of several programs.
    pub fn copy_once(&mut self, path: &str, from: &Path) -> io::Result<()> {
        match self.copies.insert(path.to_owned()) {
            true => self.copy(path, from),
            false => Ok(()),
        }
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path.trim_start_matches('/'), SYMLINK, (0, 0), target.as_bytes());
    }

    /// Adds a character device node.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path.trim_start_matches('/'), CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// The finished archive, padded to sectors so that another one can follow.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.pad(512);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.inode += 1;
        let header = [
            self.inode,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time: the same input makes the same archive
            length(data.len()),
            0,
            0,
            device.0,
            device.1,
            length(name.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            write!(self.bytes, "{field:08x}").expect("a Vec takes every write");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(data);
        self.pad(4);
    }

    fn pad(&mut self, unit: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(unit), 0);
    }
}

fn length(value: usize) -> u32 {
    u32::try_from(value).expect("a file of an initramfs is smaller than 4 GiB")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn parents_are_written_once_and_before_their_children() {
        let mut archive = Archive::default();
        archive.file("/a/b/one", 0o644, b"1");
        archive.file("/a/b/two", 0o755, b"22");
        let text = String::from_utf8_lossy(&archive.finish()).into_owned();
        let order: Vec<usize> = ["a\0", "a/b\0", "a/b/one\0", "a/b/two\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(&format!("00000000{name}")).unwrap())
            .collect();
        assert!(order.is_sorted());
        assert_eq!(text.matches("00000000a/b\0").count(), 1);
    }

    #[test]
    fn busybox_reads_the_archive() {
        let Ok(mut child) = Command::new("busybox")
            .args(["cpio", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        else {
            return; // no busybox on this machine: the kernel is the judge in the end-to-end tests
        };
        let mut archive = Archive::default();
        archive.symlink("/bin/sh", "busybox");
        archive.file("/etc/odd", 0o600, b"12345");
        archive.character_device("/dev/console", 5, 1);
        child.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stdout), "bin\nbin/sh\netc\netc/odd\ndev\ndev/console\n");
    }
}
