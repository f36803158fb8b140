//! The bodies of requests that add and take away devices.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest timeout, in seconds: a year.
pub(super) const TIMEOUT_MAX: f64 = 365.0 * 86400.0;

/// A change of the devices of a guest that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceChange {
    /// `vm.block-attach`
    BlockAttach(BlockAttach),
    /// `vm.block-detach`
    BlockDetach(BlockDetach),
    /// `vm.cd-insert`
    CdInsert(CdInsert),
    /// `vm.cd-eject`
    CdEject(BlockDetach),
    /// `vm.network-attach`
    NetworkAttach(NetworkAttach),
    /// `vm.network-detach`
    NetworkDetach(NetworkDetach),
}

impl DeviceChange {
    /// The last part of the path of such a request.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            DeviceChange::BlockAttach(_) => "vm.block-attach",
            DeviceChange::BlockDetach(_) => "vm.block-detach",
            DeviceChange::CdInsert(_) => "vm.cd-insert",
            DeviceChange::CdEject(_) => "vm.cd-eject",
            DeviceChange::NetworkAttach(_) => "vm.network-attach",
            DeviceChange::NetworkDetach(_) => "vm.network-detach",
        }
    }
}

/// A disk to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockAttach {
    /// As behind `--disk`.
    pub spec: String,
    /// The folder that a relative path begins in, besides the domain's images folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

/// A disk to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDetach {
    /// The guest's name for it, or its number in xenstore.
    pub vdev: String,
    /// It goes whether the guest agrees or not.
    #[serde(default)]
    pub force: bool,
    /// Seconds that the guest has to let go of it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "seconds")]
    pub timeout: Option<Duration>,
}

/// A medium to come into a CD-ROM drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CdInsert {
    /// The drive: the guest's name for it, or its number in xenstore.
    pub vdev: String,
    /// The image.
    pub file: PathBuf,
    /// As in [`BlockAttach`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// As in [`BlockDetach`], for the medium before.
    #[serde(default)]
    pub force: bool,
    /// As in [`BlockDetach`], for the medium before.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "seconds")]
    pub timeout: Option<Duration>,
}

/// An interface to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkAttach {
    /// As behind `--net`.
    pub spec: String,
}

/// An interface to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkDetach {
    /// Its number, its MAC address, or its name on the host.
    pub vif: String,
    /// It goes whether the guest agrees or not.
    #[serde(default)]
    pub force: bool,
    /// Seconds that the guest has to let go of it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "seconds")]
    pub timeout: Option<Duration>,
}

/// A duration as a number of seconds, if there is one.
mod seconds {
    use super::{Deserialize, Deserializer, Duration, Serializer, TIMEOUT_MAX, de};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.serialize_f64(time.as_secs_f64()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        match Option::<f64>::deserialize(deserializer)? {
            None => Ok(None),
            Some(seconds) if (0.0..=TIMEOUT_MAX).contains(&seconds) => {
                Ok(Some(Duration::from_secs_f64(seconds)))
            }
            Some(_) => Err(de::Error::custom("the timeout is not a number of seconds from 0 to a year")),
        }
    }
}
