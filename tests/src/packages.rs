//! Debian packages as test material: downloaded with apt into a cache folder and unpacked there.
//! Nothing is installed.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, fail};

/// The folder with downloaded and built material, locked while this value lives.
pub struct Cache {
    root: PathBuf,
    _lock: File,
}

/// A Debian kernel, unpacked.
pub struct Kernel {
    /// What `uname -r` says in it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    modules: PathBuf,
}

impl Cache {
    /// Opens the cache: `$XVMM_CACHE`, or `.cache` in the repository.
    pub fn open() -> Result<Cache> {
        let root = match std::env::var_os("XVMM_CACHE") {
            Some(root) => PathBuf::from(root),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache"),
        };
        fs::create_dir_all(root.join("debs"))
            .map_err(|error| format!("cannot make the cache folder {}: {error}", root.display()))?;
        let root = root.canonicalize()?;
        let lock = File::create(root.join("lock"))?;
        // SAFETY: flock only takes a descriptor, which is open here.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) } != 0 {
            return fail!("cannot lock {}: {}", root.display(), std::io::Error::last_os_error());
        }
        Ok(Cache { root, _lock: lock })
    }

    /// The path of `name` in the cache.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder with the contents of a package, which is fetched if it is not there yet.
    pub fn package(&self, name: &str) -> Result<PathBuf> {
        let unpacked = self.root.join("unpacked").join(name);
        if unpacked.is_dir() {
            return Ok(unpacked);
        }
        let archive = match self.archive(name)? {
            Some(archive) => archive,
            None => {
                eprintln!("fetching the Debian package {name}");
                self.download(name)?;
                match self.archive(name)? {
                    Some(archive) => archive,
                    None => return fail!("apt-get download {name} left no package file"),
                }
            }
        };
        let partial = self.root.join("unpacked").join(format!("{name}.partial"));
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&partial))?;
        fs::rename(&partial, &unpacked)?;
        Ok(unpacked)
    }

    /// As [`Cache::package`], for 32-bit processors.
    pub fn foreign(&self, name: &str) -> Result<PathBuf> {
        let unpacked = self.root.join("i386/unpacked").join(name);
        if unpacked.is_dir() {
            return Ok(unpacked);
        }
        let debs = self.root.join("i386/debs");
        fs::create_dir_all(&debs)?;
        eprintln!("fetching the Debian package {name} for i386");
        let download = || self.foreign_apt(&["download", name]);
        if download().is_err() {
            // Other sources of this machine may have nothing for this architecture.
            let _ = self.foreign_apt(&["update"]);
            download()?;
        }
        let Some(archive) = first_archive(&debs, name)? else {
            return fail!("apt-get download {name} left no package file");
        };
        let partial = unpacked.with_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&partial))?;
        fs::rename(&partial, &unpacked)?;
        Ok(unpacked)
    }

    /// apt-get with this machine's sources, as if it had another architecture.
    fn foreign_apt(&self, words: &[&str]) -> Result<()> {
        let root = self.root.join("i386");
        for folder in ["lists/partial", "archives/partial", "debs"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::write(root.join("status"), "")?;
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]);
        command.args(["-o", "APT::Architecture=i386", "-o", "APT::Architectures=i386"]);
        for (option, place) in [
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache::archives", "archives"),
            ("Dir::Cache", ""),
        ] {
            command.arg("-o").arg(format!("{option}={}", root.join(place).display()));
        }
        run(command.args(words).current_dir(root.join("debs")))?;
        Ok(())
    }

    /// As [`Cache::kernel`], for 32-bit processors.
    pub fn foreign_kernel(&self, name: &str) -> Result<Kernel> {
        self.foreign(name)?;
        let Some(archive) = first_archive(&self.root.join("i386/debs"), name)? else {
            return fail!("the package {name} is gone from the cache; remove its folder i386");
        };
        let depends = run(Command::new("dpkg-deb").arg("-f").arg(archive).arg("Depends"))?;
        let Some(package) = depends.split([' ', ',']).find(|word| word.starts_with("linux-image-")) else {
            return fail!("the package {name} names no kernel: {depends}");
        };
        Kernel::find(package, &self.foreign(package)?)
    }

    /// Where the libraries of a package are.
    pub fn libraries(&self, name: &str) -> Result<[PathBuf; 2]> {
        let root = self.package(name)?;
        Ok(["lib", "usr/lib"].map(|place| root.join(place).join("x86_64-linux-gnu")))
    }

    /// The kernel that the metapackage `name` stands for today, or stood for when it was first fetched.
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        let remembered = self.root.join(format!("{name}.kernel"));
        let package = match fs::read_to_string(&remembered) {
            Ok(package) => package,
            Err(_) => {
                let package = self.dependency(name, "linux-image-")?;
                fs::write(&remembered, &package)?;
                package
            }
        };
        Kernel::find(&package, &self.package(&package)?)
    }

    fn archive(&self, name: &str) -> Result<Option<PathBuf>> {
        first_archive(&self.root.join("debs"), name)
    }

    fn download(&self, name: &str) -> Result<()> {
        let download =
            || run(Command::new("apt-get").args(["download", name]).current_dir(self.path("debs")));
        if download().is_err() {
            refresh_lists();
            download()?;
        }
        Ok(())
    }

    fn dependency(&self, name: &str, prefix: &str) -> Result<String> {
        let ask = || -> Result<Option<String>> {
            let text = run(Command::new("apt-cache").args(["depends", name]))?;
            Ok(text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Depends: "))
                .find(|package| package.starts_with(prefix))
                .map(str::to_owned))
        };
        if let Ok(Some(package)) = ask() {
            return Ok(package);
        }
        refresh_lists();
        match ask()? {
            Some(package) => Ok(package),
            None => {
                fail!("the Debian package {name} is not known here; these tests want Debian 12's sources")
            }
        }
    }
}

/// apt with lists of its own, for sources that this machine does not have. Nothing is installed.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Keeps lists and archives in the folder `name` of the cache; `sources` is the text of a sources.list.
    pub fn new(cache: &Cache, name: &str, sources: &str) -> Result<Apt> {
        let apt = Apt { folder: cache.path(name) };
        for place in [apt.lists(), apt.archives()] {
            fs::create_dir_all(place.join("partial"))?;
        }
        fs::write(apt.folder.join("sources.list"), sources)?;
        Ok(apt)
    }

    /// Where downloaded packages are.
    pub fn archives(&self) -> PathBuf {
        self.folder.join("archives")
    }

    fn lists(&self) -> PathBuf {
        self.folder.join("lists")
    }

    /// Runs apt-get with these words.
    pub fn run(&self, words: &[&str]) -> Result<()> {
        self.run_in(&self.folder, words)
    }

    /// Runs apt-get in another folder: what `source` fetches stays there.
    pub fn run_in(&self, folder: &Path, words: &[&str]) -> Result<()> {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]);
        let places = [
            ("Dir::Etc::sourcelist", self.folder.join("sources.list")),
            ("Dir::State::lists", self.lists()),
            ("Dir::Cache::archives", self.archives()),
            ("Dir::Cache", self.folder.clone()),
        ];
        for (option, place) in places {
            command.arg("-o").arg(format!("{option}={}", place.display()));
        }
        command.args(["-o", "Dir::Etc::sourceparts=-"]).args(words).current_dir(folder);
        run(&mut command)?;
        Ok(())
    }
}

/// The file of the package `name` in a folder.
fn first_archive(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    let prefix = format!("{name}_");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if file.starts_with(&prefix) && file.ends_with(".deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

impl Kernel {
    /// The kernel of a package that is unpacked at `root`.
    fn find(package: &str, root: &Path) -> Result<Kernel> {
        let release = package.trim_start_matches("linux-image-").to_owned();
        let image = root.join("boot").join(format!("vmlinuz-{release}"));
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .map(|folder| root.join(folder).join(&release))
            .find(|folder| folder.is_dir());
        match modules {
            Some(modules) if image.is_file() => Ok(Kernel { release, image, modules }),
            _ => fail!("the package {package} holds no kernel {release} with its modules"),
        }
    }

    /// Whether there is such a module; if not, the kernel has it built in, or not at all.
    pub fn has(&self, name: &str) -> bool {
        let mut files = Vec::new();
        let name = name.replace('-', "_");
        list_modules(&self.modules.join("kernel"), &mut files).is_ok()
            && files.iter().any(|file| module_name(file) == name)
    }

    /// The named modules and what they need, uncompressed, in the order of loading.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        list_modules(&self.modules.join("kernel"), &mut files)?;
        let mut loaded = Vec::new();
        for name in names {
            self.module(name, &files, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn module(&self, name: &str, files: &[PathBuf], loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let name = name.replace('-', "_");
        if loaded.iter().any(|(other, _)| *other == name) {
            return Ok(());
        }
        let Some(file) = files.iter().find(|file| module_name(file) == name) else {
            return fail!("the kernel {} has no module {name}", self.release);
        };
        let data = match file.extension() {
            Some(extension) if extension == "xz" => output(Command::new("xz").arg("-dc").arg(file))?,
            _ => fs::read(file)?,
        };
        for dependency in dependencies(&data) {
            self.module(&dependency, files, loaded)?;
        }
        loaded.push((name, data));
        Ok(())
    }
}

/// What a module's `.modinfo` section says that it needs.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(start) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value = module.get(start + key.len()..).unwrap_or_default();
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(value.get(..end).unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn list_modules(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list_modules(&path, files)?;
        } else if path.to_string_lossy().contains(".ko") {
            files.push(path);
        }
    }
    Ok(())
}

fn refresh_lists() {
    eprintln!("refreshing apt's package lists");
    if let Err(error) = run(Command::new("apt-get").args(["update", "-q"])) {
        eprintln!("apt-get update failed (it needs root): {error}");
    }
}

/// Runs a command and returns what it prints; its stderr is part of the error if it fails.
pub fn run(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(std::process::Stdio::null()).output().map_err(|error| {
        format!("cannot run {name}: {error}; tests/run installs what the tests need on Debian 12")
    })?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return fail!("{name} failed ({}): {}", output.status, reason.trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(dependencies(b"junk\0license=GPL\0depends=stp,llc\0intree=Y\0"), ["stp", "llc"]);
        assert!(dependencies(b"junk\0depends=\0intree=Y\0").is_empty());
        assert!(dependencies(b"no such key").is_empty());
    }

    #[test]
    fn module_names_have_no_dashes_and_no_suffix() {
        assert_eq!(module_name(Path::new("/lib/xen-blkfront.ko.xz")), "xen_blkfront");
        assert_eq!(module_name(Path::new("tun.ko")), "tun");
    }
}
