//! Single values of the command line: sizes, names, the console.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, Problem};

/// Bytes of the smallest guest that is worth starting: a kernel, its page tables and a small initramfs.
pub const MIN_MEMORY: u64 = 64 << 20;

/// Bytes of the largest guest: less than what one memory slot of KVM holds, 2^31 - 1 pages.
pub const MAX_MEMORY: u64 = 4 << 40;

/// Bytes of memory when nothing is said.
pub const DEFAULT_MEMORY: u64 = 512 << 20;

/// vCPUs of the largest guest. A port of the two-level event channel ABI is needed per vCPU and purpose
/// (about five of 4096), and KVM tells its own limit when the guest is made.
pub const MAX_VCPUS: u32 = 512;

/// Bytes of the longest name of a domain.
pub const MAX_NAME: usize = 64;

/// Parses the size of a guest: a whole number with K, M, G or T; without a letter MiB, as xl has it.
pub fn parse_memory(text: &str) -> Result<u64, ConfigError> {
    let fail = |problem: Problem| ConfigError::new("--memory", text, problem);
    let syntax = |why: &str| fail(Problem::Syntax(why.to_owned()));
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 20),
        Some((at, 'g' | 'G')) => (text.get(..at), 30),
        Some((at, 't' | 'T')) => (text.get(..at), 40),
        _ => (Some(text), 20),
    };
    let digits = digits.filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
    let digits =
        digits.ok_or_else(|| syntax("not a size; write a number of MiB, or a number with K, M, G or T"))?;
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes < MIN_MEMORY => Err(fail(Problem::MemoryTooSmall)),
        Some(bytes) if bytes % (1 << 20) != 0 => Err(syntax("not a whole number of MiB; round it")),
        Some(bytes) if bytes <= MAX_MEMORY => Ok(bytes),
        _ => {
            Err(fail(Problem::Syntax(format!("too much memory; at most {}T can be given", MAX_MEMORY >> 40))))
        }
    }
}

/// Parses a number of vCPUs.
pub fn parse_vcpus(text: &str) -> Result<u32, ConfigError> {
    let number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !number {
        let why = "not a number of vCPUs; write a whole number from 1";
        return Err(ConfigError::new("--vcpus", text, Problem::Syntax(why.into())));
    }
    let vcpus = text.parse().ok().filter(|vcpus| (1..=MAX_VCPUS).contains(vcpus));
    vcpus.ok_or_else(|| ConfigError::new("--vcpus", text, Problem::Vcpus))
}

/// Checks the name of a domain: 1 to 64 printable ASCII characters, no slash, space or quote, not a number
/// (that is an id) and not `domain-N` (that is what a domain without a name is called).
pub fn check_name(name: &str) -> Result<(), ConfigError> {
    let fail = |why| Err(ConfigError::new("--name", name, Problem::Name(why)));
    if name.is_empty() || name.len() > MAX_NAME {
        return fail("a name has 1 to 64 characters");
    }
    if !name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'\\' | b'"' | b'\'')) {
        return fail("a name is made of ASCII letters, digits and punctuation without slashes and quotes");
    }
    if name.starts_with(['-', '.']) {
        return fail("a name begins with neither `-` nor a dot");
    }
    if is_number(name) {
        return fail("a name is not a number, because numbers are domain ids; add a letter");
    }
    if name.strip_prefix(AUTOMATIC_NAME).is_some_and(is_number) {
        return fail("names of this form are given to domains without a name; choose another one");
    }
    Ok(())
}

/// What a domain without a name is called, with its first id behind it.
pub(crate) const AUTOMATIC_NAME: &str = "domain-";

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Where the guest's console goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleTarget {
    /// Standard input and output of the process.
    #[default]
    Tty,
    /// A pseudo-terminal.
    Pty,
    /// Output is appended to a file; there is no input.
    File(PathBuf),
    /// Output is dropped; there is no input.
    Null,
}

impl FromStr for ConsoleTarget {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match (text, text.strip_prefix("file=")) {
            ("tty", _) => Ok(ConsoleTarget::Tty),
            ("pty", _) => Ok(ConsoleTarget::Pty),
            ("null", _) => Ok(ConsoleTarget::Null),
            (_, Some(path)) if !path.is_empty() => Ok(ConsoleTarget::File(path.into())),
            _ => {
                let why = "not a console; use tty, pty, null or file=PATH";
                Err(ConfigError::new("--console", text, Problem::Syntax(why.into())))
            }
        }
    }
}

/// What happens when the guest reboots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReboot {
    /// It starts again, with the next domain id and the same name.
    #[default]
    Restart,
    /// The process ends, as if the guest had switched itself off.
    Destroy,
}

impl FromStr for OnReboot {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "restart" => Ok(OnReboot::Restart),
            "destroy" => Ok(OnReboot::Destroy),
            _ => {
                let why = "not an action; use restart or destroy";
                Err(ConfigError::new("--on-reboot", text, Problem::Syntax(why.into())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const M: u64 = 1 << 20;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512M", 512 * M),
            ("512m", 512 * M),
            ("512", 512 * M),
            ("64", 64 * M),
            ("1G", 1024 * M),
            ("65536K", 64 * M),
            ("4T", 4 << 40),
            ("0512M", 512 * M),
        ] {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn wrong_sizes() {
        const SYNTAX: &str = "not a size; write a number of MiB, or a number with K, M, G or T";
        for (text, why) in [
            ("", SYNTAX),
            ("M", SYNTAX),
            ("-1G", SYNTAX),
            ("+512", SYNTAX),
            ("1.5G", SYNTAX),
            ("512MB", SYNTAX),
            ("512 M", SYNTAX),
            ("0x200", SYNTAX),
            ("五", SYNTAX),
            ("63", "too little memory; a guest needs at least 64 MiB"),
            ("0", "too little memory; a guest needs at least 64 MiB"),
            ("65537K", "not a whole number of MiB; round it"),
            ("5T", "too much memory; at most 4T can be given"),
            ("99999999999999999999", "too much memory; at most 4T can be given"),
            ("18446744073709551615T", "too much memory; at most 4T can be given"),
        ] {
            assert_eq!(parse_memory(text).unwrap_err().to_string(), format!("--memory {text}: {why}"));
        }
    }

    #[test]
    fn numbers_of_vcpus() {
        assert_eq!(parse_vcpus("1"), Ok(1));
        assert_eq!(parse_vcpus("512"), Ok(512));
        for text in ["0", "513", "99999999999999999999"] {
            assert_eq!(parse_vcpus(text).unwrap_err().problem, Problem::Vcpus, "{text}");
        }
        for text in ["", "-1", "+1", "two", "1.5", " 1"] {
            assert!(matches!(parse_vcpus(text).unwrap_err().problem, Problem::Syntax(_)), "{text}");
        }
    }

    #[test]
    fn names() {
        for name in ["web", "a", "web-1.example.org", "0x1", "domain-", "domain-x", "7up", &"x".repeat(64)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "12",
            "a/b",
            "..",
            ".a",
            "-a",
            "a b",
            "a\nb",
            "ä",
            "domain-12",
            "a\"b",
            &"x".repeat(65),
            "a\0",
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn consoles() {
        for (text, target) in [
            ("tty", ConsoleTarget::Tty),
            ("pty", ConsoleTarget::Pty),
            ("null", ConsoleTarget::Null),
            ("file=/tmp/a,b=c", ConsoleTarget::File("/tmp/a,b=c".into())),
        ] {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
        for text in ["", "TTY", "file", "file=", "vga"] {
            assert!(text.parse::<ConsoleTarget>().is_err(), "{text}");
        }
    }
}
