//! The parent of a differencing disk: found where the disk says, and known by its identity.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::layout::{FOOTER, FOOTER_BYTES, Footer, Header, Locator};
use crate::image::file::{Identity, ImageFile};
use crate::image::{Access, Format, ImageError, ImageOptions, Node};

/// Bytes of a name of a parent.
const MAX_NAME: u32 = 4096;

/// Opens the parent.
pub(super) fn open(
    file: &ImageFile,
    header: &Header,
    options: &ImageOptions,
    seen: &mut Vec<Identity>,
) -> Result<Node, ImageError> {
    let path = options.path.clone();
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut tried = Vec::new();
    for name in names(file, header) {
        let candidate = folder.join(name);
        match identity(&candidate) {
            Some(id) if id == header.parent_id => {
                let options = ImageOptions {
                    path: candidate,
                    format: Format::Vhd,
                    access: Access::ReadOnly,
                    cache: options.cache,
                };
                return Node::open(&options, seen).map_err(|reason| match reason {
                    ImageError::BackingLoop(_)
                    | ImageError::ChainTooLong { .. }
                    | ImageError::Backing { .. } => reason,
                    reason => ImageError::Backing { path, reason: Box::new(reason) },
                });
            }
            Some(_) => tried.push(format!("{} is another disk", candidate.display())),
            None => tried.push(candidate.display().to_string()),
        }
    }
    let tried = if tried.is_empty() { "no place is named".into() } else { tried.join(", ") };
    Err(ImageError::ParentMissing { path, tried })
}

/// The names that the disk has for its parent: relative ones first, as a folder of disks may be moved.
fn names(file: &ImageFile, header: &Header) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for code in [b"W2ru", b"MacX", b"W2ku"] {
        let locators = header.locators.iter().filter(|locator| locator.code == *code);
        names.extend(locators.filter_map(|locator| locator_name(file, locator)));
    }
    // This one is what the parent was called, wherever it was.
    names.extend(unix_path(&header.parent_name).and_then(|path| path.file_name().map(PathBuf::from)));
    let mut unique = Vec::new();
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

fn locator_name(file: &ImageFile, locator: &Locator) -> Option<PathBuf> {
    let len = usize::try_from(locator.len).ok().filter(|_| locator.len <= MAX_NAME)?;
    let mut bytes = vec![0; len];
    file.read(&mut bytes, locator.offset).ok()?;
    if &locator.code == b"MacX" {
        let url = String::from_utf8(bytes).ok()?;
        let url = url.trim_end_matches('\0');
        return unix_path(url.strip_prefix("file://").unwrap_or(url));
    }
    let (units, _) = bytes.as_chunks::<2>();
    let units: Vec<u16> =
        units.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|unit| *unit != 0).collect();
    unix_path(&String::from_utf16(&units).ok()?)
}

/// A path of ours; `None` for what names a drive of Windows.
fn unix_path(name: &str) -> Option<PathBuf> {
    let path = name.replace('\\', "/");
    let drive = path.as_bytes().get(1) == Some(&b':');
    let path: PathBuf =
        Path::new(&path).components().filter(|c| *c != std::path::Component::CurDir).collect();
    (!drive && path.file_name().is_some() && !name.contains('\0')).then_some(path)
}

/// Which disk a file is, if it is a VHD.
fn identity(path: &Path) -> Option<[u8; 16]> {
    // Opening a pipe would wait for its other end.
    let kind = std::fs::metadata(path).ok()?.file_type();
    let device = std::os::unix::fs::FileTypeExt::is_block_device(&kind);
    if !kind.is_file() && !device {
        return None;
    }
    let file = File::open(path).ok()?;
    let len = if device { 0 } else { file.metadata().ok()?.len() };
    let footer = |offset| {
        let mut bytes = [0; FOOTER_BYTES];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Footer::parse(&bytes)?.ok()
    };
    (len / 512 * 512).checked_sub(FOOTER).and_then(footer).or_else(|| footer(0)).map(|footer| footer.id)
}
