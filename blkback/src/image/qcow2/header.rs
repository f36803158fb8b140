//! The header of a qcow2 image and its extensions (QEMU, docs/interop/qcow2.txt).

use std::path::PathBuf;

use crate::image::file::ImageFile;
use crate::image::{Format, ImageError};
use crate::protocol::SECTOR_SIZE;

/// "QFI\xfb".
const MAGIC: u32 = 0x5146_49fb;
/// Bytes of the header of version 2; the extensions follow.
const V2_LENGTH: u32 = 72;
/// Bytes of the header of version 3, at least.
const V3_LENGTH: u32 = 104;
/// The header is never larger than the largest cluster, and what is read of it never more than this.
const READ: usize = 64 << 10;
/// QEMU's bounds: no valid image of any size that exists has larger ones.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
const MAX_BACKING_NAME: u32 = 1023;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// Incompatible feature: refcounts may be wrong, somebody was stopped while he wrote.
pub(super) const DIRTY: u64 = 1 << 0;
/// Incompatible feature: damaged, not to be written.
pub(super) const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Offset of the refcount table's offset (u64) and of its number of clusters (u32).
pub(super) const REFCOUNT_TABLE_AT: u64 = 48;
/// Offset of the incompatible features (u64).
pub(super) const INCOMPATIBLE_AT: u64 = 72;
/// Offset of the autoclear features (u64).
pub(super) const AUTOCLEAR_AT: u64 = 88;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// A raw deflate stream.
    Deflate,
    /// A zstd frame.
    Zstd,
}

/// The file behind an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    /// As it is written in the image.
    pub(super) name: String,
    /// Its format, if stated.
    pub(super) format: Option<String>,
}

/// A checked header: everything lies inside the file, nothing overlaps the header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Bytes of the disk.
    pub(super) size: u64,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u64,
    /// A refcount has 1 << this bits.
    pub(super) refcount_order: u32,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    pub(super) incompatible: u64,
    pub(super) compression: Compression,
    pub(super) backing: Option<Backing>,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

impl Header {
    /// Reads and checks it. `len` are the bytes of the file.
    pub(super) fn read(file: &ImageFile, len: u64) -> Result<Self, ImageError> {
        let mut bytes = vec![0; READ];
        let io = |reason| ImageError::Io { path: file.path().to_owned(), reason };
        file.read(&mut bytes, 0).map_err(io)?;
        Self::parse(&bytes, len).map_err(|problem| problem.at(file.path().to_owned()))
    }

    fn parse(bytes: &[u8], len: u64) -> Result<Self, Problem> {
        if len < V2_LENGTH.into() || be32(bytes, 0) != MAGIC {
            return Err(Problem::Format("it does not begin with the signature of qcow2".into()));
        }
        let version = be32(bytes, 4);
        if !matches!(version, 2 | 3) {
            return Err(unsupported(
                format!("has version {version} of qcow2"),
                "convert it with `qemu-img convert -O qcow2`",
            ));
        }
        if be32(bytes, 32) != 0 {
            return Err(unsupported("is encrypted", "convert it with `qemu-img convert -O qcow2`"));
        }
        let cluster_bits = be32(bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(corrupt(format!(
                "clusters of 2^{cluster_bits} bytes (512 bytes to 2 MiB are possible)"
            )));
        }
        let v3 = version == 3;
        let header_length = if v3 { be32(bytes, 100) } else { V2_LENGTH };
        let cluster = 1u64 << cluster_bits;
        if v3 && (header_length < V3_LENGTH || u64::from(header_length) > cluster) {
            return Err(corrupt(format!("a header of {header_length} bytes")));
        }
        let incompatible = if v3 { be64(bytes, 72) } else { 0 };
        let compression = if header_length > V3_LENGTH { bytes.get(104).copied().unwrap_or(0) } else { 0 };
        let compression = check_features(incompatible, compression)?;
        let refcount_order = if v3 { be32(bytes, 96) } else { 4 };
        if refcount_order > 6 {
            return Err(corrupt(format!("refcounts of 2^{refcount_order} bits (64 bits are the most)")));
        }
        let header = Self {
            version,
            cluster_bits,
            size: be64(bytes, 24),
            l1_offset: be64(bytes, 40),
            l1_entries: be32(bytes, 36).into(),
            refcount_table_offset: be64(bytes, 48),
            refcount_table_clusters: be32(bytes, 56).into(),
            refcount_order,
            snapshots: be32(bytes, 60),
            snapshots_offset: be64(bytes, 64),
            incompatible,
            compression,
            backing: backing(bytes, header_length, cluster)?,
        };
        header.check(len)?;
        Ok(header)
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of the L1 table that the disk needs.
    pub(super) fn l1_needed(&self) -> u64 {
        // An L2 table is one cluster of entries of 8 bytes, each for a cluster.
        self.size.div_ceil(self.cluster() << (self.cluster_bits - 3))
    }

    fn check(&self, len: u64) -> Result<(), Problem> {
        let cluster = self.cluster();
        if self.size == 0 {
            return Err(Problem::Empty);
        }
        if !self.size.is_multiple_of(SECTOR_SIZE) {
            return Err(Problem::Unaligned(self.size));
        }
        let too_large = self.size > i64::MAX.cast_unsigned() || self.l1_needed() > MAX_L1_ENTRIES;
        if too_large {
            return Err(corrupt(format!("a disk of {} bytes, more than its clusters can hold", self.size)));
        }
        if self.l1_entries > MAX_L1_ENTRIES {
            return Err(corrupt(format!(
                "an L1 table of {} entries (4194304 are the most)",
                self.l1_entries
            )));
        }
        if self.l1_entries < self.l1_needed() {
            return Err(corrupt(format!(
                "an L1 table of {} entries, where the disk needs {}",
                self.l1_entries,
                self.l1_needed()
            )));
        }
        let table = self.refcount_table_clusters.saturating_mul(cluster);
        if self.refcount_table_clusters == 0 || table > MAX_REFCOUNT_TABLE {
            return Err(corrupt(format!("a refcount table of {table} bytes (8 MiB are the most)")));
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(corrupt(format!("{} snapshots (65536 are the most)", self.snapshots)));
        }
        let tables = [
            ("L1 table", self.l1_offset, self.l1_entries * 8),
            ("refcount table", self.refcount_table_offset, table),
            // An entry has 40 bytes at least.
            ("snapshot table", self.snapshots_offset, u64::from(self.snapshots) * 40),
        ];
        let mut used: Vec<(&str, u64, u64)> = vec![("header", 0, cluster)];
        for (name, offset, bytes) in tables.into_iter().filter(|(_, _, bytes)| *bytes > 0) {
            // The last cluster of a file may end early.
            let end = offset.checked_add(bytes).filter(|end| *end <= len.next_multiple_of(cluster));
            let Some(end) = end else {
                return Err(corrupt(format!("the {name} lies beyond the end of the file")));
            };
            if !offset.is_multiple_of(cluster) {
                return Err(corrupt(format!("the {name} does not begin with a cluster")));
            }
            if let Some((other, ..)) = used.iter().find(|(_, start, stop)| *start < end && offset < *stop) {
                return Err(corrupt(format!("the {name} overlaps the {other}")));
            }
            used.push((name, offset, end.next_multiple_of(cluster)));
        }
        Ok(())
    }
}

fn check_features(incompatible: u64, compression: u8) -> Result<Compression, Problem> {
    if incompatible & EXTERNAL_DATA != 0 {
        return Err(unsupported(
            "keeps its data in another file",
            "convert it with `qemu-img convert -O qcow2`",
        ));
    }
    if incompatible & EXTENDED_L2 != 0 {
        return Err(unsupported(
            "has subclusters (extended L2 entries)",
            "convert it with `qemu-img convert -O qcow2 -o extended_l2=off`",
        ));
    }
    let unknown = incompatible & !(DIRTY | CORRUPT | COMPRESSION_TYPE);
    if unknown != 0 {
        return Err(unsupported(
            format!("has unknown incompatible features ({unknown:#x})"),
            "convert it with `qemu-img convert -O qcow2` of the version that made it",
        ));
    }
    match (incompatible & COMPRESSION_TYPE != 0, compression) {
        (false, 0) => Ok(Compression::Deflate),
        (true, 1) => Ok(Compression::Zstd),
        (true, 0) | (false, _) => Err(corrupt("the feature bit of the compression type contradicts it")),
        (true, other) => Err(unsupported(
            format!("has compression type {other}"),
            "convert it with `qemu-img convert -O qcow2 -o compression_type=zlib`",
        )),
    }
}

/// The name of the backing file and the format that an extension states for it.
fn backing(bytes: &[u8], header_length: u32, cluster: u64) -> Result<Option<Backing>, Problem> {
    let (offset, size) = (be64(bytes, 8), be32(bytes, 16));
    let readable = usize::try_from(cluster).unwrap_or(usize::MAX).min(bytes.len());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let name = if offset == 0 {
        None
    } else {
        if size > MAX_BACKING_NAME {
            return Err(corrupt(format!(
                "the name of its backing file has {size} bytes (1023 are the most)"
            )));
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let name = bytes.get(start..start.saturating_add(size as usize)).and_then(text);
        Some(name.filter(|name| !name.contains('\0') && !name.is_empty()).ok_or_else(|| {
            corrupt("the name of its backing file is not a name, or lies outside of the header")
        })?)
    };
    let mut format = None;
    let mut at = header_length as usize;
    let end = if offset == 0 { readable } else { usize::try_from(offset).unwrap_or(readable).min(readable) };
    while at + 8 <= end {
        let (kind, len) = (be32(bytes, at), be32(bytes, at + 4) as usize);
        let data = bytes.get(at + 8..end).and_then(|rest| rest.get(..len));
        let Some(data) = data.filter(|_| kind != EXTENSION_END) else {
            if kind != EXTENSION_END {
                return Err(corrupt("a header extension is longer than the header"));
            }
            break;
        };
        if kind == EXTENSION_BACKING_FORMAT {
            format = Some(text(data).ok_or_else(|| corrupt("the format of its backing file is not a name"))?);
        }
        at += 8 + len.next_multiple_of(8);
    }
    Ok(name.map(|name| Backing { name, format }))
}

/// An [`ImageError`] without the path.
#[derive(Debug)]
pub(super) enum Problem {
    Format(String),
    Unsupported { what: String, way_out: String },
    Corrupt(String),
    Empty,
    Unaligned(u64),
}

impl Problem {
    pub(super) fn at(self, path: PathBuf) -> ImageError {
        let format = Format::Qcow2;
        match self {
            Self::Format(what) => ImageError::WrongFormat { path, format, what },
            Self::Unsupported { what, way_out } => ImageError::Unsupported { path, what, way_out },
            Self::Corrupt(what) => ImageError::Corrupt { path, format, what },
            Self::Empty => ImageError::Empty(path),
            Self::Unaligned(size) => ImageError::SizeNotAligned { path, size },
        }
    }
}

fn unsupported(what: impl Into<String>, way_out: impl Into<String>) -> Problem {
    Problem::Unsupported { what: what.into(), way_out: way_out.into() }
}

fn corrupt(what: impl Into<String>) -> Problem {
    Problem::Corrupt(what.into())
}
