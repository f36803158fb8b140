//! Opening a qcow2 image: its tables, its counts where they may be wrong, and the files behind it.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Condvar, Mutex, RwLock};

use super::header::{AUTOCLEAR_AT, Backing, CORRUPT, DIRTY, Header, INCOMPATIBLE_AT};
use super::refcounts::{Refcounts, numbers};
use super::tables::Tables;
use super::{L2_CACHE, OFFSET, Qcow2, State, check, damaged};
use crate::image::file::{Identity, ImageFile};
use crate::image::{Access, Format, ImageError, ImageOptions, Node};

impl Qcow2 {
    /// Opens the image in a file and the files behind it.
    pub(in crate::image) fn open(
        file: ImageFile,
        options: &ImageOptions,
        seen: &mut Vec<Identity>,
    ) -> Result<Self, ImageError> {
        let path = options.path.clone();
        let io = |reason| ImageError::Io { path: path.clone(), reason };
        let corrupt = |what| ImageError::Corrupt { path: path.clone(), format: Format::Qcow2, what };
        let len = file.len().map_err(io)?;
        let mut header = Header::read(&file, len)?;
        let writable = !file.readonly();
        if writable && header.incompatible & CORRUPT != 0 {
            return Err(ImageError::MarkedCorrupt(path));
        }
        let backing = match &header.backing {
            Some(backing) => Some(Box::new(open_backing(backing, options, seen)?)),
            None => None,
        };
        let (l1, metadata) = read_l1(&file, &header, len).map_err(io)?.map_err(corrupt)?;
        let refcounts = Refcounts::load(&file, &header, len, metadata).map_err(io)?.map_err(corrupt)?;
        let mut state = State {
            l1,
            l1_changed: BTreeSet::new(),
            l2: Tables::new(header.cluster(), L2_CACHE),
            refcounts,
            allocating: Vec::new(),
            unused: Vec::new(),
            marked: false,
            leaked: false,
            damage: None,
        };
        if writable && (header.version == 2 || header.incompatible & DIRTY != 0) {
            let found = check::recount(&file, &header, &state.l1, &mut state.refcounts);
            let found = found.map_err(io)?.map_err(corrupt)?;
            if found > 0 {
                tracing::info!("disk image {}: {found} refcounts were wrong, and are mended", path.display());
            }
            end_recount(&file, &mut header, &mut state.refcounts).map_err(io)?;
        }
        Ok(Self {
            file,
            header,
            backing,
            users: RwLock::new(()),
            state: Mutex::new(state),
            allocated: Condvar::new(),
            syncing: Mutex::new(()),
            unpacked: Mutex::new(VecDeque::new()),
        })
    }
}

/// Writes the new counts, and then that they are right.
fn end_recount(file: &ImageFile, header: &mut Header, refcounts: &mut Refcounts) -> io::Result<()> {
    if header.version >= 3 {
        // Bitmaps that somebody kept beside the data were counted as unused.
        file.write(&0u64.to_be_bytes(), AUTOCLEAR_AT)?;
    }
    refcounts.write(file)?;
    file.flush()?;
    if header.version >= 3 {
        header.incompatible &= !DIRTY;
        file.write(&header.incompatible.to_be_bytes(), INCOMPATIBLE_AT)?;
    }
    Ok(())
}

/// Reads the L1 table. Returns it with the clusters that hold metadata other than refcount blocks, or a
/// sentence about what cannot be right.
#[expect(clippy::type_complexity, reason = "a result within a result, in one place")]
fn read_l1(
    file: &ImageFile,
    header: &Header,
    len: u64,
) -> io::Result<Result<(Vec<u64>, HashSet<u64>), String>> {
    let cluster = header.cluster();
    let mut bytes = vec![0; usize::try_from(header.l1_entries * 8).map_err(|_| damaged())?];
    file.read(&mut bytes, header.l1_offset)?;
    let l1: Vec<u64> = numbers(&bytes).collect();
    let mut metadata = HashSet::from([0]);
    let tables = [
        (header.l1_offset, header.l1_entries * 8),
        (header.refcount_table_offset, header.refcount_table_clusters * cluster),
        (header.snapshots_offset, u64::from(header.snapshots) * 40),
    ];
    for (offset, bytes) in tables {
        metadata.extend(offset / cluster..(offset + bytes).div_ceil(cluster));
    }
    for table in l1.iter().map(|entry| entry & OFFSET).filter(|table| *table != 0) {
        if !table.is_multiple_of(cluster) || table >= len {
            return Ok(Err(format!("an L2 table at byte {table:#x}, outside of the file")));
        }
        if !metadata.insert(table / cluster) {
            return Ok(Err(format!("the L2 table at byte {table:#x} overlaps other metadata")));
        }
    }
    Ok(Ok((l1, metadata)))
}

/// Opens the file behind an image.
fn open_backing(
    backing: &Backing,
    options: &ImageOptions,
    seen: &mut Vec<Identity>,
) -> Result<Node, ImageError> {
    let path = options.path.clone();
    let unsupported = |what: String, way_out: &str| ImageError::Unsupported {
        path: path.clone(),
        what,
        way_out: way_out.into(),
    };
    let name = backing.name.strip_prefix("file:").unwrap_or(&backing.name);
    let Some(format) = &backing.format else {
        return Err(ImageError::BackingFormatMissing { path, backing: backing.name.clone() });
    };
    let format = match format.as_str() {
        "raw" => Format::Raw,
        "qcow2" => Format::Qcow2,
        "vpc" => Format::Vhd,
        other => {
            return Err(unsupported(
                format!("has a backing file of format {other:?}"),
                "convert that to raw, qcow2 or vpc, and name it with `qemu-img rebase -u -b FILE -F FORMAT`",
            ));
        }
    };
    // "json:..." and "nbd://...": QEMU takes what is before a colon for a protocol.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        return Err(unsupported(
            format!("has a backing file that is not a path ({name:?})"),
            "name a file with `qemu-img rebase -u -b FILE -F FORMAT`",
        ));
    }
    let folder = options.path.parent().unwrap_or(Path::new(""));
    let behind = ImageOptions {
        path: PathBuf::from_iter(folder.join(name).components().filter(|c| *c != Component::CurDir)),
        format,
        access: Access::ReadOnly,
        cache: options.cache,
    };
    Node::open(&behind, seen).map_err(|reason| match reason {
        // These say all there is to say by themselves.
        ImageError::BackingLoop(_) | ImageError::ChainTooLong { .. } | ImageError::Backing { .. } => reason,
        reason => ImageError::Backing { path, reason: Box::new(reason) },
    })
}
