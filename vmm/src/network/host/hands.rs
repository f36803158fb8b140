//! Everything that changes the host goes through here, one small change at a time.

use std::io;
use std::path::Path;

use super::error::StepError;
use super::netlink::{IFF_NOARP, IFF_UP, Link, Message, NESTED, Netlink, c_string, nested};
use super::tools::Tools;
use super::{Host, files};

/// Is asked before each change of the host. Tests let it refuse, or end the process.
pub(super) trait Witness {
    /// An error makes the change fail.
    fn before(&mut self, what: &str) -> io::Result<()>;
}

/// Lets everything happen.
pub(super) struct Consent;

impl Witness for Consent {
    fn before(&mut self, what: &str) -> io::Result<()> {
        tracing::debug!("{what}");
        Ok(())
    }
}

pub(super) type Done = Result<(), StepError>;

/// Changes the host.
pub(super) struct Hands<'a> {
    pub(super) host: &'a Host,
    pub(super) netlink: Netlink,
    witness: &'a mut dyn Witness,
}

/// A change of a link; what is None stays.
#[derive(Clone, Debug, Default)]
pub(super) struct LinkChange<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) mac: Option<&'a [u8]>,
    pub(super) mtu: Option<u32>,
    pub(super) txqlen: Option<u32>,
    pub(super) up: Option<bool>,
    /// It answers no ARP any more.
    pub(super) no_arp: bool,
    /// Index of the bridge; 0 for none.
    pub(super) master: Option<u32>,
}

impl<'a> Hands<'a> {
    pub(super) fn new(host: &'a Host, witness: &'a mut dyn Witness) -> io::Result<Hands<'a>> {
        Ok(Hands { host, netlink: Netlink::new()?, witness })
    }

    pub(super) fn tools(&self) -> &'a Tools {
        &self.host.tools
    }

    fn change(&mut self, what: String, act: impl FnOnce(&mut Netlink) -> io::Result<()>) -> Done {
        let result = self.witness.before(&what).and_then(|()| act(&mut self.netlink));
        result.map_err(|error| StepError { what, error })
    }

    /// Anything else that changes the host.
    pub(super) fn other<T>(
        &mut self,
        what: &str,
        act: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, StepError> {
        let result = self.witness.before(what).and_then(|()| act());
        result.map_err(|error| StepError::new(what, error))
    }

    /// Reads; needs nobody's consent.
    pub(super) fn read<T>(
        &mut self,
        what: &str,
        act: impl FnOnce(&mut Netlink) -> io::Result<T>,
    ) -> Result<T, StepError> {
        act(&mut self.netlink).map_err(|error| StepError::new(what, error))
    }

    pub(super) fn link(&mut self, name: &str) -> Result<Option<Link>, StepError> {
        self.read(&format!("look at {name}"), |netlink| netlink.link(name))
    }

    /// The link of that name, which has to be there.
    pub(super) fn expect(&mut self, name: &str) -> Result<Link, StepError> {
        let gone = || io::Error::other("it is not there any more");
        self.link(name)?.ok_or_else(|| StepError::new(format!("look at {name}"), gone()))
    }

    /// A bridge without a delay and without the spanning tree protocol.
    pub(super) fn create_bridge(&mut self, name: &str, mac: &[u8], mtu: Option<u32>) -> Done {
        const IFLA_BR_FORWARD_DELAY: u16 = 1;
        const IFLA_BR_STP_STATE: u16 = 5;
        let zero = 0u32.to_ne_bytes();
        let data = nested(&[(IFLA_BR_STP_STATE, &zero), (IFLA_BR_FORWARD_DELAY, &zero)]);
        let info =
            nested(&[(libc::IFLA_INFO_KIND, &c_string("bridge")), (libc::IFLA_INFO_DATA | NESTED, &data)]);
        let mut message = Message::new(libc::RTM_NEWLINK);
        message.set_text(libc::IFLA_IFNAME, name);
        message.set(libc::IFLA_ADDRESS, mac);
        if let Some(mtu) = mtu {
            message.set(libc::IFLA_MTU, mtu.to_ne_bytes());
        }
        message.set(libc::IFLA_LINKINFO | NESTED, info);
        self.change(format!("make the bridge {name}"), |netlink| netlink.create(&message))
    }

    /// A pair of interfaces that are joined by a cable. The addresses are set at once, so that udev leaves them.
    pub(super) fn create_veth(&mut self, one: (&str, &[u8]), other: (&str, &[u8]), mtu: u32) -> Done {
        const VETH_INFO_PEER: u16 = 1;
        let mtu = mtu.to_ne_bytes();
        let mut peer = vec![0; 16];
        peer.extend(nested(&[
            (libc::IFLA_IFNAME, &c_string(other.0)),
            (libc::IFLA_ADDRESS, other.1),
            (libc::IFLA_MTU, &mtu),
        ]));
        let data = nested(&[(VETH_INFO_PEER | NESTED, &peer)]);
        let info =
            nested(&[(libc::IFLA_INFO_KIND, &c_string("veth")), (libc::IFLA_INFO_DATA | NESTED, &data)]);
        let mut message = Message::new(libc::RTM_NEWLINK);
        message.set_text(libc::IFLA_IFNAME, one.0);
        message.set(libc::IFLA_ADDRESS, one.1);
        message.set(libc::IFLA_MTU, mtu);
        message.set(libc::IFLA_LINKINFO | NESTED, info);
        self.change(format!("make the pair {} and {}", one.0, other.0), |netlink| netlink.create(&message))
    }

    /// Deletes the interface if it is there and of that kind.
    pub(super) fn delete_link(&mut self, name: &str, kind: &str) -> Done {
        let Some(link) = self.link(name)?.filter(|link| link.kind == kind && link.name == name) else {
            return Ok(());
        };
        let mut message = Message::new(libc::RTM_DELLINK);
        message.set_header(4, &link.index.to_ne_bytes());
        self.change(format!("delete {name}"), |netlink| netlink.request(&message, 0))
    }

    pub(super) fn set_link(&mut self, index: u32, what: &str, change: &LinkChange<'_>) -> Done {
        let mut message = Message::new(libc::RTM_NEWLINK);
        message.set_header(4, &index.to_ne_bytes());
        if let Some(name) = change.name {
            message.set_text(libc::IFLA_IFNAME, name);
        }
        if let Some(mac) = change.mac {
            message.set(libc::IFLA_ADDRESS, mac);
        }
        if let Some(mtu) = change.mtu {
            message.set(libc::IFLA_MTU, mtu.to_ne_bytes());
        }
        if let Some(txqlen) = change.txqlen {
            message.set(libc::IFLA_TXQLEN, txqlen.to_ne_bytes());
        }
        if let Some(master) = change.master {
            message.set(libc::IFLA_MASTER, master.to_ne_bytes());
        }
        let arp = if change.no_arp { IFF_NOARP } else { 0 };
        let (up, mask) = change.up.map_or((0, 0), |up| (if up { IFF_UP } else { 0 }, IFF_UP));
        message.set_header(8, &(up | arp).to_ne_bytes());
        message.set_header(12, &(mask | arp).to_ne_bytes());
        self.change(what.to_owned(), |netlink| netlink.request(&message, 0))
    }

    /// Sends a message that was read before, as a request of the kind `kind`.
    pub(super) fn send(&mut self, what: &str, message: &Message, flags: u16) -> Done {
        self.change(what.to_owned(), |netlink| netlink.request(message, flags))
    }

    /// Writes a value below /proc/sys.
    pub(super) fn sysctl(&mut self, key: &str, value: &str) -> Done {
        let path = sysctl_path(key);
        self.change(format!("set {key} to {value}"), |_| std::fs::write(path, value))
    }

    pub(super) fn write_file(&mut self, path: &Path, text: &str) -> Done {
        self.change(format!("write {}", path.display()), |_| files::write(path, text))
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> Done {
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        self.change(format!("remove {}", path.display()), |_| files::remove(path))
    }

    /// Runs a program of the host.
    pub(super) fn run(&mut self, tool: &str, args: &[&str], input: &str) -> Result<String, StepError> {
        let what = format!("run {tool} {}", args.join(" "));
        let result = self.witness.before(&what).and_then(|()| self.host.tools.run(tool, args, input));
        result.map_err(|error| StepError { what: what.trim_end().to_owned(), error })
    }
}

/// The file of a key like `net/ipv4/ip_forward`: the network namespace of this thread counts.
pub(super) fn sysctl_path(key: &str) -> std::path::PathBuf {
    Path::new("/proc/sys").join(key)
}

/// A value below /proc/sys; None where there is no such key.
pub(super) fn read_sysctl(key: &str) -> Option<String> {
    std::fs::read_to_string(sysctl_path(key)).ok().map(|value| value.trim_end().to_owned())
}
