//! Route netlink (rtnetlink(7)): links, addresses, routes, rules and neighbours.
//!
//! A message is kept as the kernel sent it, header and attributes, known or not. So what was read before a
//! change can be sent back afterwards without a loss, and can be written into a journal meanwhile.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer,
    NlasIterator,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use serde::{Deserialize, Serialize};

use super::hex;

/// `struct nlmsghdr`: length u32 @0, type u16 @4, flags u16 @6, sequence u32 @8, port u32 @12.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// How often a dump is begun anew because something changed in between.
const DUMP_RETRIES: usize = 20;

/// Bytes of the fixed header behind `struct nlmsghdr`, for the kinds that are used here.
fn header_len(kind: u16) -> usize {
    match kind {
        // struct ifinfomsg: family u8 @0, layer u16 @2, index i32 @4, flags u32 @8, change u32 @12.
        libc::RTM_NEWLINK..=libc::RTM_SETLINK => 16,
        // struct ifaddrmsg: family u8 @0, prefix u8 @1, flags u8 @2, scope u8 @3, index u32 @4.
        libc::RTM_NEWADDR..=libc::RTM_GETADDR => 8,
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type: u8 each; flags u32 @8.
        // struct fib_rule_hdr has the same size.
        // struct ndmsg: family u8 @0, index i32 @4, state u16 @8, flags u8 @10, type u8 @11.
        _ => 12,
    }
}

/// One attribute: type with its flags, and payload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Attribute(pub(super) u16, #[serde(with = "hex")] pub(super) Vec<u8>);

/// A message of route netlink without `struct nlmsghdr`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    /// `RTM_NEWLINK` and so on.
    pub(super) kind: u16,
    /// `struct ifinfomsg` and so on.
    #[serde(with = "hex")]
    pub(super) header: Vec<u8>,
    /// In the kernel's order.
    pub(super) attributes: Vec<Attribute>,
}

impl Message {
    /// A message with a header of zeroes.
    pub(super) fn new(kind: u16) -> Message {
        Message { kind, header: vec![0; header_len(kind)], attributes: Vec::new() }
    }

    fn parse(kind: u16, payload: &[u8]) -> Option<Message> {
        let (header, rest) = payload.split_at_checked(header_len(kind))?;
        let attributes = attributes(rest)?;
        Some(Message { kind, header: header.to_vec(), attributes })
    }

    fn emit(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(&self.header);
        for Attribute(kind, value) in &self.attributes {
            push_attribute(&mut bytes, *kind, value);
        }
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_ne_bytes();
        let header = length.into_iter().chain(self.kind.to_ne_bytes()).chain(flags.to_ne_bytes());
        for (to, from) in bytes.iter_mut().zip(header.chain(sequence.to_ne_bytes())) {
            *to = from;
        }
        bytes
    }

    /// Payload of the attribute of the type `kind`.
    pub(super) fn get(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|a| a.0 & !FLAGS == kind).map(|a| a.1.as_slice())
    }

    /// The attribute as a number.
    pub(super) fn u32(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_ne_bytes)
    }

    /// The attribute as a C string.
    pub(super) fn text(&self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(bytes.get(..end)?).into_owned())
    }

    /// Sets the attribute, in place of one of its type or behind the others.
    pub(super) fn set(&mut self, kind: u16, value: impl Into<Vec<u8>>) {
        match self.attributes.iter_mut().find(|a| a.0 & !FLAGS == kind) {
            Some(attribute) => attribute.1 = value.into(),
            None => self.attributes.push(Attribute(kind, value.into())),
        }
    }

    /// Sets the attribute to a C string.
    pub(super) fn set_text(&mut self, kind: u16, value: &str) {
        self.set(kind, c_string(value));
    }

    /// Takes the attribute away.
    pub(super) fn remove(&mut self, kind: u16) {
        self.attributes.retain(|a| a.0 & !FLAGS != kind);
    }

    /// A byte of the header; 0 behind its end.
    pub(super) fn header_u8(&self, at: usize) -> u8 {
        self.header.get(at).copied().unwrap_or(0)
    }

    /// Four bytes of the header; 0 behind its end.
    pub(super) fn header_u32(&self, at: usize) -> u32 {
        let bytes = self.header.get(at..at.saturating_add(4)).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }

    /// Sets bytes of the header.
    pub(super) fn set_header(&mut self, at: usize, value: &[u8]) {
        for (to, from) in self.header.iter_mut().skip(at).zip(value) {
            *to = *from;
        }
    }
}

/// NLA_F_NESTED and NLA_F_NET_BYTEORDER.
pub(super) const FLAGS: u16 = 0xc000;
/// NLA_F_NESTED
pub(super) const NESTED: u16 = 0x8000;

/// The attributes in `bytes`; None where they do not fit together.
pub(super) fn attributes(bytes: &[u8]) -> Option<Vec<Attribute>> {
    let attribute = |nla: netlink_packet_core::NlaBuffer<&[u8]>| {
        let nested = if nla.nested_flag() { NESTED } else { 0 };
        Attribute(nla.kind() | nested, nla.value().to_vec())
    };
    NlasIterator::new(bytes).map(|nla| nla.ok().map(attribute)).collect()
}

/// Appends an attribute, aligned to 4 bytes.
pub(super) fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Attributes as the payload of another one.
pub(super) fn nested(inner: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in inner {
        push_attribute(&mut bytes, *kind, value);
    }
    bytes
}

pub(super) fn c_string(text: &str) -> Vec<u8> {
    text.bytes().chain([0]).collect()
}

/// What is used of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Its other names.
    pub(super) altnames: Vec<String>,
    /// "bridge", "veth", "bond", "vlan", ...; empty for hardware.
    pub(super) kind: String,
    /// ARPHRD_ETHER and so on.
    pub(super) layer: u16,
    /// IFF_UP and so on.
    pub(super) flags: u32,
    /// Empty where it has none.
    pub(super) mac: Vec<u8>,
    pub(super) mtu: u32,
    /// Packets.
    pub(super) txqlen: u32,
    /// Index of the bridge or bond that it is a port of.
    pub(super) master: Option<u32>,
    /// Index of the interface that it sits on, or of its peer.
    pub(super) lower: Option<u32>,
    /// The other end is in another network namespace.
    pub(super) lower_elsewhere: bool,
}

const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;

impl Link {
    fn parse(message: &Message) -> Option<Link> {
        let info = message.get(libc::IFLA_LINKINFO).and_then(attributes).unwrap_or_default();
        let kind = info.into_iter().find(|a| a.0 & !FLAGS == libc::IFLA_INFO_KIND);
        let kind = kind.map(|a| a.1.into_iter().take_while(|byte| *byte != 0).collect::<Vec<_>>());
        let altnames = message.get(IFLA_PROP_LIST).and_then(attributes).unwrap_or_default();
        let altnames = altnames.into_iter().filter(|a| a.0 & !FLAGS == IFLA_ALT_IFNAME);
        Some(Link {
            index: message.header_u32(4),
            name: message.text(libc::IFLA_IFNAME)?,
            altnames: altnames
                .map(|a| String::from_utf8_lossy(&a.1).trim_end_matches('\0').to_owned())
                .collect(),
            kind: String::from_utf8_lossy(&kind.unwrap_or_default()).into_owned(),
            layer: u16::from_ne_bytes([message.header_u8(2), message.header_u8(3)]),
            flags: message.header_u32(8),
            mac: message.get(libc::IFLA_ADDRESS).unwrap_or_default().to_vec(),
            mtu: message.u32(libc::IFLA_MTU).unwrap_or(0),
            txqlen: message.u32(libc::IFLA_TXQLEN).unwrap_or(0),
            master: message.u32(libc::IFLA_MASTER),
            lower: message.u32(libc::IFLA_LINK).filter(|index| *index != 0),
            lower_elsewhere: message.get(libc::IFLA_LINK_NETNSID).is_some(),
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }
}

/// IFF_UP of <linux/if.h>.
pub(super) const IFF_UP: u32 = 1;
/// IFF_NOARP of <linux/if.h>.
pub(super) const IFF_NOARP: u32 = 0x80;

/// A socket of route netlink in the network namespace of the thread that made it.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(super) fn new() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Everything of the kind `kind` (`RTM_GETLINK` and so on) for an address family, 0 for all.
    pub(super) fn dump(&mut self, kind: u16, family: u8) -> io::Result<Vec<Message>> {
        let mut request = Message::new(kind);
        request.set_header(0, &[family]);
        for _ in 0..DUMP_RETRIES {
            if let Some(messages) = self.dump_once(&request)? {
                return Ok(messages);
            }
        }
        Err(io::Error::other("the network changes all the time"))
    }

    fn dump_once(&mut self, request: &Message) -> io::Result<Option<Vec<Message>>> {
        self.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut messages = Vec::new();
        let mut consistent = true;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for part in parts(&datagram)? {
                if part.sequence_number() != self.sequence {
                    continue;
                }
                consistent &= part.flags() & NLM_F_DUMP_INTR == 0;
                match part.message_type() {
                    NLMSG_DONE => return Ok(consistent.then_some(messages)),
                    NLMSG_ERROR => check(part.payload())?,
                    kind => messages.extend(Message::parse(kind, part.payload())),
                }
            }
        }
    }

    /// Sends a request and waits for the kernel's word.
    pub(super) fn request(&mut self, message: &Message, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for part in parts(&datagram)? {
                if part.sequence_number() == self.sequence && part.message_type() == NLMSG_ERROR {
                    return check(part.payload());
                }
            }
        }
    }

    /// Makes something new; an error if it exists.
    pub(super) fn create(&mut self, message: &Message) -> io::Result<()> {
        self.request(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn send(&mut self, message: &Message, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.emit(flags, self.sequence);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// All interfaces.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        Ok(self.dump(libc::RTM_GETLINK, 0)?.iter().filter_map(Link::parse).collect())
    }

    /// The interface of that name, or of that other name.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let named = |link: &Link| link.name == name || link.altnames.iter().any(|other| other == name);
        Ok(self.links()?.into_iter().find(named))
    }
}

/// The messages of a datagram.
fn parts(datagram: &[u8]) -> io::Result<Vec<NetlinkBuffer<&[u8]>>> {
    let mut parts = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let part = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
        let length = usize::try_from(part.length()).unwrap_or(usize::MAX).max(HEADER).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        parts.push(part);
    }
    Ok(parts)
}

/// `struct nlmsgerr`: 0 or a negative errno @0.
fn check(payload: &[u8]) -> io::Result<()> {
    let code = payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_message_survives_the_wire_and_the_journal() {
        let mut message = Message::new(libc::RTM_NEWADDR);
        message.set_header(4, &7u32.to_ne_bytes());
        message.set_text(libc::IFA_LABEL, "eth0");
        message.set(libc::IFA_LOCAL | NESTED, [192, 0, 2, 1]);
        let bytes = message.emit(0, 5);
        let part = parts(&bytes).unwrap().remove(0);
        assert_eq!((part.sequence_number(), part.message_type()), (5, libc::RTM_NEWADDR));
        let parsed = Message::parse(part.message_type(), part.payload()).unwrap();
        assert_eq!(parsed, message);
        assert_eq!(parsed.text(libc::IFA_LABEL).unwrap(), "eth0");
        assert_eq!(parsed.header_u32(4), 7);
        let text = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message);
    }

    #[test]
    fn the_loopback_interface_is_there() {
        let lo = Netlink::new().unwrap().link("lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.layer), (1, libc::ARPHRD_LOOPBACK));
    }
}
