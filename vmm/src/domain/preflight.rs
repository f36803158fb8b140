//! What can be asked of the host before anything on it is changed.
//!
//! The names in a description become absolute paths, and what is missing or of the wrong kind is told while
//! no id is taken and no interface made. The parts that open a file later check again what they got.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use blkback::ImageError;

use super::disks::{self, StorageError};
use super::{DomainError, ImageId, Registry};
use crate::config::{
    Access, ConsoleTarget, DEFAULT_BIOS, DEFAULT_VGABIOS, DiskConfig, DiskFormat, DiskSource, DomainConfig,
};
use crate::network::{self, NetworkError};

/// What stands in the way on the host. One sentence.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The kernel cannot be used.
    #[error("--kernel {}: {problem}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The reason.
        problem: FileProblem,
    },
    /// The firmware of a PC cannot be used.
    #[error("{flag} {}: {problem}", path.display())]
    Bios {
        /// Which one.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        problem: FileProblem,
    },
    /// The firmware that is used unless another one is named is not there.
    #[error("an HVM guest needs SeaBIOS, and {} is not there; install the package seabios, or name images with --bios and --vgabios", .0.display())]
    NoSeaBios(PathBuf),
    /// The initial RAM disk cannot be used.
    #[error("--initrd {}: {problem}", path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// The reason.
        problem: FileProblem,
    },
    /// The initial RAM disk is at least as large as the guest's memory.
    #[error("--initrd {}: its {} MiB do not fit into {} MiB of memory; give more with --memory", path.display(), size >> 20, memory >> 20)]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// The guest's bytes of memory.
        memory: u64,
    },
    /// A disk image cannot be opened.
    #[error("--disk: {0}")]
    Disk(StorageError),
    /// A bare name is neither in the images folder nor here.
    #[error("--disk {}: no such image in {} or in the current directory; make it with `truncate -s 10G FILE`, or give its path", name.display(), images.display())]
    NoSuchImage {
        /// The name.
        name: PathBuf,
        /// The images folder.
        images: PathBuf,
    },
    /// A running domain has the name or an image, or the folder of running domains cannot be used.
    #[error(transparent)]
    Domain(DomainError),
    /// Two disks lead to one image, and one of them is writable.
    #[error("--disk {}: {} is the same image; a writable image can be one disk only, unless both say w!", path.display(), other.display())]
    SameImage {
        /// The image.
        path: PathBuf,
        /// The disk before it.
        other: PathBuf,
    },
    /// A bridge cannot be used.
    #[error(transparent)]
    Net(#[from] NetworkError),
    /// The host cannot answer.
    #[error("{what}: {source}")]
    Host {
        /// What was asked.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a file that is only read cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// It is not there.
    #[error("no such file; check the path")]
    Missing,
    /// It is a directory, a socket or the like.
    #[error("not a regular file; name the file itself")]
    NotAFile,
    /// It has no bytes.
    #[error("the file is empty; name another one")]
    Empty,
    /// It cannot be opened.
    #[error("cannot be read: {0}")]
    NotReadable(io::Error),
}

/// Makes the paths in `config` absolute, gives every interface an address, and checks that kernel, initrd,
/// images and bridges are there and of the right kind. Nothing on the host is changed.
pub fn prepare(config: &mut DomainConfig) -> Result<(), PreflightError> {
    let here = std::env::current_dir()
        .map_err(|source| PreflightError::Host { what: "the current directory is not there", source })?;

    if let Some(hvm) = &mut config.hvm {
        for (flag, path) in [("--bios", &mut hvm.bios), ("--vgabios", &mut hvm.vgabios)] {
            readable_file(path).map_err(|problem| firmware_problem(flag, path, problem))?;
            *path = here.join(&path);
        }
    } else {
        readable_file(&config.kernel)
            .map_err(|problem| PreflightError::Kernel { path: config.kernel.clone(), problem })?;
        config.kernel = here.join(&config.kernel);
    }
    if let Some(initrd) = &config.initrd {
        let size = readable_file(initrd)
            .map_err(|problem| PreflightError::Initrd { path: initrd.clone(), problem })?;
        if size >= config.memory {
            return Err(PreflightError::InitrdTooLarge { path: initrd.clone(), size, memory: config.memory });
        }
    }
    let paths = [config.initrd.as_mut(), Some(&mut config.run_dir)];
    for path in paths.into_iter().flatten() {
        *path = here.join(&path);
    }
    if let ConsoleTarget::File(path) = &mut config.console {
        *path = here.join(&path);
    }
    let mut images: Vec<(ImageId, &Path, Access)> = Vec::new();
    for disk in &mut config.disks {
        prepare_disk(disk, &here, &config.images_dir)?;
        let (disk, Some(path)) = (&*disk, disk.path()) else { continue };
        let id = check_image(disk, path, &config.run_dir)?;
        let access = disk.access();
        let same = images.iter().find(|(other, _, earlier)| *other == id && !earlier.goes_with(access));
        if let Some((_, earlier, _)) = same {
            return Err(PreflightError::SameImage { path: path.to_owned(), other: (*earlier).to_owned() });
        }
        images.push((id, path, access));
    }
    for net in &config.nets {
        network::check(net)?;
    }
    if let Some(name) = &config.name
        && let Some(registry) = Registry::open_existing(&config.run_dir).map_err(PreflightError::Domain)?
    {
        // Asked again under the lock when the domain is made; here it costs no unpacking of a kernel.
        registry.check_name_free(name).map_err(PreflightError::Domain)?;
    }
    config.assign_nets();
    Ok(())
}

/// Makes the paths of a disk absolute. What else can be looked at without opening anything is looked at.
pub(super) fn prepare_disk(disk: &mut DiskConfig, here: &Path, images: &Path) -> Result<(), PreflightError> {
    match &mut disk.source {
        DiskSource::Path(path) => *path = here.join(find_image(path, here, images)?),
        DiskSource::Iscsi(target) => {
            if let Some(chap) = &mut target.chap {
                *chap = here.join(&chap);
            }
        }
        DiskSource::Empty {} => {}
    }
    Ok(())
}

/// A name without a slash is an image in `images`, or else a file in the current directory.
fn find_image(path: &Path, here: &Path, images: &Path) -> Result<PathBuf, PreflightError> {
    let is_bare =
        path.components().count() == 1 && path.file_name().is_some_and(|name| name == path.as_os_str());
    if !is_bare {
        return Ok(path.to_owned());
    }
    [images, here]
        .into_iter()
        .map(|folder| folder.join(path))
        .find(|path| fs::symlink_metadata(path).is_ok())
        .ok_or_else(|| PreflightError::NoSuchImage { name: path.to_owned(), images: images.to_owned() })
}

/// Opens and locks the image as the disk will, and lets it go again. `path` is that of the disk.
fn check_image(disk: &DiskConfig, path: &Path, run_dir: &Path) -> Result<ImageId, PreflightError> {
    match disks::open_storage(disk, run_dir) {
        Ok(_) => {
            if let (DiskFormat::Raw, Some(format)) = (disk.format, disks::looks_like(path)) {
                tracing::info!(
                    "disk image {}: it looks like {format}, and the guest gets its bytes as they are: a format counts \
                     only where it is stated",
                    path.display()
                );
            }
            let failed = |reason| ImageError::Io { path: path.to_owned(), reason };
            ImageId::of(path).map_err(|reason| PreflightError::Disk(failed(reason).into()))
        }
        Err(error @ StorageError::Image(ImageError::Locked(_))) => {
            let registry = Registry::open_existing(run_dir).ok().flatten();
            let holder = registry.and_then(|r| r.find_holder(disk).ok().flatten());
            Err(match holder {
                Some(holder) => PreflightError::Domain(DomainError::disk_in_use(path, &holder)),
                None => PreflightError::Disk(error),
            })
        }
        Err(error) => Err(PreflightError::Disk(error)),
    }
}

fn firmware_problem(flag: &'static str, path: &Path, problem: FileProblem) -> PreflightError {
    match problem {
        FileProblem::Missing if [DEFAULT_BIOS, DEFAULT_VGABIOS].map(Path::new).contains(&path) => {
            PreflightError::NoSeaBios(path.to_owned())
        }
        problem => PreflightError::Bios { flag, path: path.to_owned(), problem },
    }
}

/// Checks that a file can be read; its bytes.
fn readable_file(path: &Path) -> Result<u64, FileProblem> {
    let meta = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FileProblem::Missing,
        _ => FileProblem::NotReadable(error),
    })?;
    if !meta.is_file() {
        return Err(FileProblem::NotAFile);
    }
    if meta.len() == 0 {
        return Err(FileProblem::Empty);
    }
    File::open(path).map_err(FileProblem::NotReadable)?;
    Ok(meta.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use blkback::DiskImage;

    use super::*;
    use crate::config::DiskSpec;

    /// A description whose files are all there, in a folder of its own.
    fn sample() -> (tempfile::TempDir, DomainConfig) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("images")).unwrap();
        fs::write(at("vmlinuz"), "kernel").unwrap();
        fs::write(at("initrd"), "initrd").unwrap();
        fs::write(at("a.img"), [0; 512]).unwrap();
        fs::write(at("images/b.img"), [0; 1024]).unwrap();
        let config = DomainConfig {
            kernel: at("vmlinuz"),
            initrd: Some(at("initrd")),
            disks: disks(&[at("a.img"), "b.img".into()]),
            images_dir: at("images"),
            ..DomainConfig::default()
        };
        (dir, config)
    }

    fn disks(paths: &[PathBuf]) -> Vec<DiskConfig> {
        let spec = |path: &PathBuf| DiskSpec::new(DiskSource::Path(path.clone()));
        DiskSpec::assign(paths.iter().map(spec).collect()).unwrap()
    }

    fn problem_with(disk: &Path) -> String {
        let (_dir, mut config) = sample();
        config.disks = disks(&[disk.to_owned()]);
        prepare(&mut config).unwrap_err().to_string()
    }

    #[test]
    fn a_bare_name_is_found_in_the_images_folder() {
        let (dir, mut config) = sample();
        prepare(&mut config).unwrap();
        assert_eq!(config.disks[0].path(), Some(&*dir.path().join("a.img")));
        assert_eq!(config.disks[1].path(), Some(&*dir.path().join("images/b.img")));
    }

    #[test]
    fn the_images_folder_comes_before_the_current_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (here, images) = (dir.path().join("here"), dir.path().join("images"));
        fs::create_dir(&here).unwrap();
        fs::create_dir(&images).unwrap();
        let find = |name: &str| find_image(Path::new(name), &here, &images);
        assert!(matches!(find("img"), Err(PreflightError::NoSuchImage { .. })));
        fs::write(here.join("img"), "").unwrap();
        assert_eq!(find("img").unwrap(), here.join("img"));
        fs::write(images.join("img"), "").unwrap();
        assert_eq!(find("img").unwrap(), images.join("img"));
        assert_eq!(find("./img").unwrap(), Path::new("./img"));
        assert_eq!(find("..").unwrap(), Path::new(".."));
    }

    #[test]
    fn relative_paths_become_absolute() {
        let (_dir, mut config) = sample();
        config.run_dir = "run".into();
        config.console = ConsoleTarget::File("log".into());
        prepare(&mut config).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(config.run_dir, here.join("run"));
        assert_eq!(config.console, ConsoleTarget::File(here.join("log")));
    }

    #[test]
    fn a_missing_kernel_is_told() {
        let (_dir, mut config) = sample();
        config.kernel = "/nonexistent/vmlinuz".into();
        let error = prepare(&mut config).unwrap_err().to_string();
        assert_eq!(error, "--kernel /nonexistent/vmlinuz: no such file; check the path");
    }

    #[test]
    fn a_kernel_that_is_a_directory_is_told() {
        let (dir, mut config) = sample();
        config.kernel = dir.path().join("images");
        let error = prepare(&mut config).unwrap_err();
        assert!(matches!(error, PreflightError::Kernel { problem: FileProblem::NotAFile, .. }), "{error}");
    }

    #[test]
    fn an_initrd_as_large_as_the_memory_is_told() {
        let (dir, mut config) = sample();
        let initrd = dir.path().join("initrd");
        File::options().write(true).open(&initrd).unwrap().set_len(config.memory).unwrap();
        let error = prepare(&mut config).unwrap_err().to_string();
        let expected = "its 512 MiB do not fit into 512 MiB of memory; give more with --memory";
        assert_eq!(error, format!("--initrd {}: {expected}", initrd.display()));
    }

    #[test]
    fn unfit_images_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("empty"), "").unwrap();
        fs::write(at("odd"), [0; 513]).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let table = [
            ("none", "there is no such file; make it with"),
            ("empty/none", "there is no such file; make it with"),
            ("", " is a directory; "),
            ("socket", " is neither a file nor a block device; "),
            ("empty", " is empty; give it a size"),
            ("odd", " has 513 bytes, which is not a multiple of 512; "),
        ];
        for (name, words) in table {
            let sentence = problem_with(&at(name));
            let start = format!("--disk: disk image {}", at(name).display());
            assert!(sentence.starts_with(&start) && sentence.contains(words), "{sentence}");
        }
    }

    #[test]
    fn a_device_that_is_no_disk_is_told() {
        let expected = "--disk: disk image /dev/null is neither a file nor a block device; name one of these";
        assert_eq!(problem_with(Path::new("/dev/null")), expected);
    }

    #[test]
    fn one_image_under_two_names_is_told() {
        let (dir, mut config) = sample();
        let link = dir.path().join("link");
        fs::hard_link(dir.path().join("a.img"), &link).unwrap();
        config.disks = disks(&[dir.path().join("a.img"), link]);
        assert!(matches!(prepare(&mut config), Err(PreflightError::SameImage { .. })));
        config.disks.iter_mut().for_each(|disk| disk.readonly = true);
        prepare(&mut config).unwrap();
    }

    #[test]
    fn an_image_in_use_is_told_with_its_domain() {
        let (dir, mut config) = sample();
        config.run_dir = dir.path().join("run");
        prepare(&mut config).unwrap();
        let _image = DiskImage::open(config.disks[0].path().unwrap(), false).unwrap();
        let error = prepare(&mut config.clone()).unwrap_err();
        assert!(matches!(error, PreflightError::Disk(StorageError::Image(ImageError::Locked(_)))), "{error}");
        let holder = DomainConfig { name: Some("web".into()), ..config.clone() };
        let _domain = Registry::open(&config.run_dir).unwrap().create(&holder).unwrap();
        let error = prepare(&mut config).unwrap_err().to_string();
        assert!(error.contains("in use by domain 1 (web)"), "{error}");
    }

    #[test]
    fn bridges_that_are_none_are_told() {
        let (_dir, mut config) = sample();
        config.nets = vec!["xvmm-none".parse().unwrap()];
        let error = prepare(&mut config).unwrap_err();
        assert!(matches!(error, PreflightError::Net(NetworkError::NoBridge(_))), "{error}");
        config.nets = vec!["lo".parse().unwrap()];
        let error = prepare(&mut config).unwrap_err();
        assert!(matches!(error, PreflightError::Net(NetworkError::NotABridge { .. })), "{error}");
    }

    #[test]
    fn a_name_that_is_taken_is_told() {
        let (dir, mut config) = sample();
        config.name = Some("web".into());
        config.run_dir = dir.path().join("run");
        prepare(&mut config).unwrap();
        let other = DomainConfig { disks: Vec::new(), ..config.clone() };
        let _domain = Registry::open(&config.run_dir).unwrap().create(&other).unwrap();
        let error = prepare(&mut config).unwrap_err();
        assert!(matches!(error, PreflightError::Domain(DomainError::NameTaken { .. })), "{error}");
    }
}
