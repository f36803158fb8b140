//! What a kind of tests takes along into the nested host: an archive with Debian's programs, the libraries that they
//! need, modules of the host's kernel, and files.

use std::fs;
use std::path::PathBuf;

use crate::cpio::Archive;
use crate::packages::Cache;
use crate::{Result, images};

/// What is in the archive.
#[derive(Debug)]
pub struct Kit {
    /// `network`, `storage`: the folder of the cache, and the name of the shell functions in `/tests`.
    pub name: &'static str,
    /// Modules that are loaded when the host starts.
    pub modules: &'static [&'static str],
    /// Modules that a test loads, which has parameters for them.
    pub extra_modules: &'static [&'static str],
    /// Package, file in it, path in the host. busybox has some of them in /bin; these are called by their paths.
    pub programs: &'static [(&'static str, &'static str, &'static str)],
    /// Packages with libraries of these programs that neither Debian's base system nor QEMU brings along.
    pub libraries: &'static [&'static str],
    /// Empty folders.
    pub folders: &'static [&'static str],
    /// Path, mode, content.
    pub files: &'static [(&'static str, u32, &'static str)],
    /// Shell functions of the tests.
    pub functions: &'static str,
}

impl Kit {
    /// Makes the archive for the nested host with the kernel `label`, unless it is in the cache.
    pub fn build(&self, cache: &Cache, label: &str) -> Result<PathBuf> {
        let folder = cache.path(self.name);
        let path = folder.join("archive");
        let kernel = images::kernel(cache, label)?;
        images::build_once(&folder, &format!("{} {self:?}", kernel.release), || {
            eprintln!("building the nested host's {} programs", self.name);
            let mut archive = Archive::default();
            let list = format!("/lib/modules/{}", self.name);
            images::modules(&mut archive, &list, &kernel, self.modules, self.extra_modules)?;
            let mut libraries = Vec::new();
            for package in self.libraries {
                libraries.extend(cache.libraries(package)?);
            }
            for (package, from, to) in self.programs {
                let from = cache.package(package)?.join(from);
                images::linked_program(&mut archive, to, &from, &libraries)?;
            }
            for folder in self.folders {
                archive.directory(folder);
            }
            let functions = format!("/tests/{}", self.name);
            for (path, mode, text) in self.files.iter().chain([&(functions.as_str(), 0o644, self.functions)])
            {
                archive.file(path, *mode, text.as_bytes());
            }
            fs::write(&path, archive.finish())?;
            Ok(())
        })?;
        Ok(path)
    }
}
