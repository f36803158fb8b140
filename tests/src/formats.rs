//! One Debian kernel with its payload packed again in every format that Linux knows
//! (Documentation/arch/x86/boot.rst, payload_offset; scripts/Makefile.lib).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages::{Cache, run};
use crate::{Result, fail};

/// Name of the format, packages of its program, and the command that packs `$1` into `$2`.
pub const FORMATS: [(&str, &str, &str); 7] = [
    ("gzip", "gzip", "gzip -1 -c $1 > $2"),
    ("bzip2", "bzip2", "bzip2 -1 -c $1 > $2"),
    ("lzma", "xz-utils", "xz --format=lzma -0 -c $1 > $2"),
    ("xz", "xz-utils", "xz --check=crc32 --x86 --lzma2=preset=0 -c $1 > $2"),
    ("lzo", "lzop liblzo2-2", "lzop -1 -c $1 > $2"),
    ("lz4", "lz4", "lz4 -l -1 -c $1 > $2"),
    ("zstd", "zstd", "zstd -q -1 -c $1 > $2"),
];

/// Offsets in a bzImage: sectors of the setup code, the size of what follows them, payload's offset there, its length.
const SETUP_SECTORS: usize = 0x1f1;
const SYSTEM_SIZE: usize = 0x1f4;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Writes `FORMAT` for each format, and `elf`, the kernel as it is unpacked, into a folder of the cache.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let kernel = cache.kernel("linux-image-6.12-cloud-amd64")?;
    let folder = cache.path("formats");
    let done = folder.join("done");
    if fs::read_to_string(&done).is_ok_and(|release| release == kernel.release) {
        return Ok(folder);
    }
    eprintln!("packing the kernel {} in {} formats", kernel.release, FORMATS.len());
    fs::create_dir_all(&folder)?;
    let [path, libraries] = search_paths(cache)?;
    let shell = |command: &str, from: &Path, to: &Path| {
        let mut sh = Command::new("sh");
        sh.args(["-c", command, "sh"])
            .arg(from)
            .arg(to)
            .env("PATH", &path)
            .env("LD_LIBRARY_PATH", &libraries);
        run(&mut sh)
    };

    let image = fs::read(&kernel.image)?;
    let setup = match image.get(SETUP_SECTORS) {
        Some(sectors) => (usize::from((*sectors).max(4)) + 1) * 512,
        None => return fail!("the kernel {} is empty", kernel.release),
    };
    let start = setup + field(&image, PAYLOAD_OFFSET)?;
    let length = field(&image, PAYLOAD_LENGTH)?;
    // The last four bytes are the unpacked size.
    let Some(payload) = image.get(start..start + length - 4) else {
        return fail!("the kernel {} ends before its payload does", kernel.release);
    };
    let (packed, elf) = (folder.join("packed"), folder.join("elf"));
    fs::write(&packed, payload)?;
    shell("zstd -q -d -c $1 > $2", &packed, &elf)?;
    let size = u32::try_from(fs::metadata(&elf)?.len())?.to_le_bytes();
    for (name, _, command) in FORMATS {
        shell(command, &elf, &packed)?;
        let mut payload = fs::read(&packed)?;
        // gzip ends with the size by itself.
        if name != "gzip" {
            payload.extend(size);
        }
        let mut packed = image.get(..start).unwrap_or_default().to_vec();
        let length = u32::try_from(payload.len())?.to_le_bytes();
        packed.splice(PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4, length);
        packed.extend(payload);
        packed.resize(packed.len().next_multiple_of(16), 0);
        // The size of all after the setup code, in units of 16 bytes.
        let size = u32::try_from((packed.len() - setup) / 16)?.to_le_bytes();
        packed.splice(SYSTEM_SIZE..SYSTEM_SIZE + 4, size);
        fs::write(folder.join(name), packed)?;
    }
    fs::remove_file(folder.join("packed"))?;
    fs::write(done, &kernel.release)?;
    Ok(folder)
}

fn field(image: &[u8], offset: usize) -> Result<usize> {
    match image.get(offset..offset + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) {
        Some(bytes) => Ok(usize::try_from(u32::from_le_bytes(bytes))?),
        None => fail!("the kernel has no boot header"),
    }
}

/// Search paths with the packers and with their libraries: what this machine has not is taken from Debian's packages.
fn search_paths(cache: &Cache) -> Result<[String; 2]> {
    let mut path = std::env::var("PATH").unwrap_or_default();
    let mut libraries = Vec::new();
    for (_, packages, command) in FORMATS {
        let program = command.split(' ').next().unwrap_or_default();
        if run(Command::new("sh").args(["-c", &format!("command -v {program}")])).is_err() {
            for package in packages.split(' ') {
                let folder = cache.package(package)?;
                path.push_str(&format!(":{0}/usr/bin:{0}/bin", folder.display()));
                libraries.extend(cache.libraries(package)?.map(|folder| folder.display().to_string()));
            }
        }
    }
    Ok([path, libraries.join(":")])
}
