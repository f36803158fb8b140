//! What can be wrong in the description of a guest, before the host is looked at.

use netback::MacError;

use super::spec::SpecError;
use super::vdev::VdevError;

/// A setting that cannot be used: which one, and why. One sentence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {value}: {problem}")]
pub struct ConfigError {
    /// The flag, as on the command line: `--disk`.
    pub flag: &'static str,
    /// Its value, as given.
    pub value: String,
    /// The reason and the way out.
    pub problem: Problem,
}

impl ConfigError {
    pub(crate) fn new(flag: &'static str, value: impl ToString, problem: impl Into<Problem>) -> Self {
        ConfigError { flag, value: value.to_string(), problem: problem.into() }
    }
}

/// Why a setting cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The text breaks the grammar; the sentence says how.
    #[error("{0}")]
    Syntax(String),
    /// A key that the flag does not know.
    #[error("there is no key `{key}`; the keys are {known}")]
    UnknownKey {
        /// The key, as given.
        key: String,
        /// The keys that there are.
        known: &'static str,
    },
    /// The name of a virtual disk is none.
    #[error("`{0}` is {VdevError}")]
    Vdev(String),
    /// Two disks have the same name.
    #[error("two disks are called {0}; give one of them another vdev")]
    SameVdev(String),
    /// A disk and a part of it are given as two disks.
    #[error("{part} is a part of {disk}, which is a disk too; give one of them another vdev")]
    VdevPart {
        /// The whole disk.
        disk: String,
        /// The partition.
        part: String,
    },
    /// Two disks are the same image, and one of them is writable.
    #[error("the image is given twice; a writable image can be one disk only, unless both say w!")]
    SameImage,
    /// A format that there is not, or that is not served; the sentence says what to do.
    #[error("{0}")]
    Format(String),
    /// The address of an interface is none.
    #[error("{0}")]
    Mac(MacError),
    /// Two interfaces have the same address.
    #[error("two interfaces have the address {0}; give one of them another mac")]
    SameMac(String),
    /// Two interfaces have the same number.
    #[error("two interfaces have the number {0}; give one of them another devid")]
    SameDevid(u32),
    /// Less memory than a guest can start with.
    #[error("too little memory; a guest needs at least {} MiB", super::MIN_MEMORY >> 20)]
    MemoryTooSmall,
    /// The name of the domain breaks the rules.
    #[error("{0}")]
    Name(&'static str),
    /// No vCPU, or more than an event channel ABI can name.
    #[error("a guest has 1 to {} vCPUs", super::MAX_VCPUS)]
    Vcpus,
}

impl From<SpecError> for Problem {
    fn from(error: SpecError) -> Self {
        Problem::Syntax(error.to_string())
    }
}
