//! `--vnc`: where viewers of the screen connect.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, Problem};
use crate::display::keys::Keymap;

/// The port of display 0.
pub const FIRST_PORT: u16 = 5900;
/// The layout of the keyboard when nothing is said.
pub const DEFAULT_KEYMAP: &str = "en-us";
/// Bytes of the longest path of a socket (`unix(7)`).
const PATH_MAX: usize = 107;

/// A screen that can be watched over the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VncConfig {
    /// Where viewers connect.
    pub listen: VncListen,
    /// A file with the password in its first line. `None`: there is none.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The name of the layout that the guest takes its keyboard to have.
    #[serde(default = "default_keymap")]
    pub keymap: String,
}

fn default_keymap() -> String {
    DEFAULT_KEYMAP.into()
}

impl VncConfig {
    /// Checks what the parsers of single values cannot see.
    pub fn check(&self) -> Result<(), ConfigError> {
        if Keymap::named(&self.keymap).is_none() {
            let names = Keymap::names().collect::<Vec<_>>().join(", ");
            let problem = Problem::Syntax(format!("there is no such keyboard layout; choose one of {names}"));
            return Err(ConfigError::new("--keymap", &self.keymap, problem));
        }
        match &self.listen {
            VncListen::Tcp { address, .. }
                if !address.to_canonical().is_loopback() && self.password_file.is_none() =>
            {
                let why = "everybody who reaches this address could use the guest; give a password with \
                           --vnc-password-file, or listen on 127.0.0.1 alone";
                Err(ConfigError::new("--vnc", &self.listen, Problem::Syntax(why.into())))
            }
            _ => Ok(()),
        }
    }
}

/// Where viewers connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum VncListen {
    /// A TCP port.
    Tcp {
        /// One of the host's addresses, or 0.0.0.0 or :: for all.
        address: IpAddr,
        /// The port less 5900.
        display: u16,
        /// If it is taken, the next one that is free.
        unused: bool,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl VncListen {
    /// What VNC viewers take as an address.
    pub fn for_viewers(&self) -> String {
        match self {
            VncListen::Tcp { address, display, .. } => {
                // All addresses: the one that is surely reached from here.
                let address = match address {
                    IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                    address => *address,
                };
                let port = FIRST_PORT.saturating_add(*display);
                if address.is_ipv6() { format!("[{address}]::{port}") } else { format!("{address}::{port}") }
            }
            VncListen::Unix(path) => path.display().to_string(),
        }
    }
}

impl fmt::Display for VncListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VncListen::Tcp { address, display, unused } => {
                let comma = if *unused { ",unused" } else { "" };
                match address {
                    IpAddr::V4(address) => write!(f, "{address}:{display}{comma}"),
                    IpAddr::V6(address) => write!(f, "[{address}]:{display}{comma}"),
                }
            }
            VncListen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for VncListen {
    type Err = ConfigError;

    /// Parses `HOST:DISPLAY` with an address, `localhost` or nothing as HOST, and `,unused` behind it, or `unix:PATH`.
    fn from_str(text: &str) -> Result<VncListen, ConfigError> {
        let fail = |why: &str| Err(ConfigError::new("--vnc", text, Problem::Syntax(why.into())));
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                1..=PATH_MAX if !path.contains('\0') => Ok(VncListen::Unix(path.into())),
                0 => fail("the path of the socket is missing; write unix:PATH"),
                _ => fail("the path of a socket has at most 107 bytes; choose a shorter one"),
            };
        }
        let (place, unused) = match text.strip_suffix(",unused") {
            Some(place) => (place, true),
            None => (text, false),
        };
        let syntax = "not an address for viewers; write HOST:DISPLAY (as 127.0.0.1:0, display 0 is port 5900) or unix:PATH";
        let Some((host, display)) = place.rsplit_once(':') else { return fail(syntax) };
        let address = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) => host.parse::<Ipv6Addr>().ok().map(IpAddr::from),
            None if host.is_empty() || host == "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
            None => host.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        };
        let digits = !display.is_empty() && display.bytes().all(|b| b.is_ascii_digit());
        match (address, digits) {
            (Some(address), true) => match display.parse::<u16>() {
                Ok(display) if display <= u16::MAX - FIRST_PORT => {
                    Ok(VncListen::Tcp { address, display, unused })
                }
                _ => fail("there is no such display; the last one is 59635, port 65535"),
            },
            _ => fail(syntax),
        }
    }
}

impl TryFrom<String> for VncListen {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<VncListen, ConfigError> {
        text.parse()
    }
}

impl From<VncListen> for String {
    fn from(listen: VncListen) -> String {
        listen.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tcp(address: &str, display: u16, unused: bool) -> VncListen {
        VncListen::Tcp { address: address.parse().unwrap(), display, unused }
    }

    #[test]
    fn addresses_and_their_texts() {
        for (text, expected, shown, viewer) in [
            ("127.0.0.1:0", tcp("127.0.0.1", 0, false), "127.0.0.1:0", "127.0.0.1::5900"),
            (":0", tcp("127.0.0.1", 0, false), "127.0.0.1:0", "127.0.0.1::5900"),
            ("localhost:7,unused", tcp("127.0.0.1", 7, true), "127.0.0.1:7,unused", "127.0.0.1::5907"),
            ("0.0.0.0:59635", tcp("0.0.0.0", 59635, false), "0.0.0.0:59635", "127.0.0.1::65535"),
            ("[::1]:1", tcp("::1", 1, false), "[::1]:1", "[::1]::5901"),
            (
                "unix:/run/vnc,unused",
                VncListen::Unix("/run/vnc,unused".into()),
                "unix:/run/vnc,unused",
                "/run/vnc,unused",
            ),
        ] {
            let listen: VncListen = text.parse().unwrap();
            assert_eq!(
                (&listen, listen.to_string(), listen.for_viewers()),
                (&expected, shown.into(), viewer.into())
            );
            assert_eq!(shown.parse(), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_address() {
        for text in [
            "",
            "0",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:+1",
            "127.0.0.1:59636",
            "127.0.0.1:99999",
            "example.org:0",
            "::1:0",
            "[127.0.0.1]:0",
            "unix:",
            "127.0.0.1:0,free",
            &format!("unix:{}", "x".repeat(108)),
        ] {
            assert!(text.parse::<VncListen>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_for_all_needs_a_password() {
        let config = |listen: &str, file: Option<&str>| VncConfig {
            listen: listen.parse().unwrap(),
            password_file: file.map(Into::into),
            keymap: "de".into(),
        };
        for listen in ["127.0.0.1:0", "127.8.8.8:0", "[::1]:0", "[::ffff:127.0.0.1]:0", "unix:/x"] {
            assert_eq!(config(listen, None).check(), Ok(()), "{listen}");
        }
        for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
            assert!(config(listen, None).check().unwrap_err().to_string().contains("--vnc-password-file"));
            assert_eq!(config(listen, Some("/p")).check(), Ok(()), "{listen}");
        }
        let error = VncConfig { keymap: "xx".into(), ..config(":0", None) }.check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "--keymap xx: there is no such keyboard layout; choose one of en-us, us, en-gb, uk, gb, de, fr"
        );
    }
}
