//! Messages of the xenstore protocol (docs/misc/xenstore.txt, xen/include/public/io/xs_wire.h): a header of
//! 16 bytes and at most 4096 bytes of payload, in both directions. Payloads are parsed here, once, into
//! [`Request`]; behind it no argument is looked at as bytes again.

use thiserror::Error;

use super::path::{NodePath, WatchPath};
use super::perms::Perm;
use crate::xen::DomId;

/// Bytes of `struct xsd_sockmsg`.
pub const HEADER_SIZE: usize = 16;
/// Most bytes of payload in a message, `XENSTORE_PAYLOAD_MAX`.
pub const PAYLOAD_MAX: usize = 4096;
/// Message type of a watch event.
pub const XS_WATCH_EVENT: u32 = 15;
/// Message type of an error reply.
pub const XS_ERROR: u32 = 16;

/// Why a request fails; the wire carries the name.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum XsError {
    /// A malformed request, path or argument.
    #[error("EINVAL: malformed request or path")]
    Invalid,
    /// The caller may not do that.
    #[error("EACCES: no permission")]
    Access,
    /// The same watch exists already.
    #[error("EEXIST: exists already")]
    Exists,
    /// No such node, watch, transaction or domain.
    #[error("ENOENT: no such node, watch, transaction or domain")]
    NotFound,
    /// The domain's memory quota is used up.
    #[error("ENOMEM: the domain's memory quota is used up")]
    NoMemory,
    /// The domain's quota of nodes or transactions, or a node's size, is used up.
    #[error("ENOSPC: a quota of the domain is used up")]
    NoSpace,
    /// No such operation.
    #[error("ENOSYS: no such operation")]
    NoSys,
    /// Not allowed inside a transaction.
    #[error("EBUSY: not allowed inside a transaction")]
    Busy,
    /// Someone changed what the transaction read or wrote: do it again.
    #[error("EAGAIN: the transaction conflicts with a change")]
    Again,
    /// The reply would pass 4096 bytes, or too many watches.
    #[error("E2BIG: reply too large or too many watches")]
    TooBig,
    /// Only a privileged domain may do that.
    #[error("EPERM: for privileged domains only")]
    NotPermitted,
}

impl XsError {
    /// The name on the wire, without its NUL.
    pub fn name(self) -> &'static str {
        match self {
            XsError::Invalid => "EINVAL",
            XsError::Access => "EACCES",
            XsError::Exists => "EEXIST",
            XsError::NotFound => "ENOENT",
            XsError::NoMemory => "ENOMEM",
            XsError::NoSpace => "ENOSPC",
            XsError::NoSys => "ENOSYS",
            XsError::Busy => "EBUSY",
            XsError::Again => "EAGAIN",
            XsError::TooBig => "E2BIG",
            XsError::NotPermitted => "EPERM",
        }
    }
}

/// `struct xsd_sockmsg`: four little-endian words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Message type.
    pub kind: u32,
    /// Chosen by the client, repeated in the reply.
    pub req_id: u32,
    /// Transaction, 0: none.
    pub tx_id: u32,
    /// Bytes of payload.
    pub len: u32,
}

impl Header {
    /// Reads the 16 bytes.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let [kind, req_id, tx_id, len] =
            [0, 1, 2, 3].map(|i| words.get(i).map_or(0, |w| u32::from_le_bytes(*w)));
        Self { kind, req_id, tx_id, len }
    }

    /// The 16 bytes.
    pub fn emit(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let words = [self.kind, self.req_id, self.tx_id, self.len];
        for (slot, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *slot = word.to_le_bytes();
        }
        bytes
    }
}

/// A whole message; a payload past [`PAYLOAD_MAX`] becomes an E2BIG error (XSA-72).
pub fn message(kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let len = match u32::try_from(payload.len()) {
        Ok(len) if payload.len() <= PAYLOAD_MAX => len,
        _ => return message(XS_ERROR, req_id, tx_id, b"E2BIG\0"),
    };
    let mut bytes = Vec::with_capacity(HEADER_SIZE + payload.len());
    bytes.extend_from_slice(&Header { kind, req_id, tx_id, len }.emit());
    bytes.extend_from_slice(payload);
    bytes
}

/// A request with its arguments checked: paths are canonical, numbers in range, strings without NUL.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// XS_CONTROL 0: a command and its parameters.
    Control(Vec<&'a str>),
    /// XS_DIRECTORY 1.
    Directory(NodePath),
    /// XS_READ 2.
    Read(NodePath),
    /// XS_GET_PERMS 3.
    GetPerms(NodePath),
    /// XS_WATCH 4, with its token.
    Watch(WatchPath, &'a [u8]),
    /// XS_UNWATCH 5.
    Unwatch(WatchPath, &'a [u8]),
    /// XS_TRANSACTION_START 6.
    TransactionStart,
    /// XS_TRANSACTION_END 7; true: commit.
    TransactionEnd(bool),
    /// XS_INTRODUCE 8. Frame and port are not used: the domain of this process has its ring already.
    Introduce(DomId),
    /// XS_RELEASE 9.
    Release(DomId),
    /// XS_GET_DOMAIN_PATH 10.
    GetDomainPath(DomId),
    /// XS_WRITE 11.
    Write(NodePath, &'a [u8]),
    /// XS_MKDIR 12.
    Mkdir(NodePath),
    /// XS_RM 13.
    Rm(NodePath),
    /// XS_SET_PERMS 14; at least one entry.
    SetPerms(NodePath, Vec<Perm>),
    /// XS_IS_DOMAIN_INTRODUCED 17.
    IsDomainIntroduced(DomId),
    /// XS_RESUME 18.
    Resume(DomId),
    /// XS_SET_TARGET 19: the first gets the rights of the second.
    SetTarget(DomId, DomId),
    /// XS_RESET_WATCHES 21.
    ResetWatches,
    /// XS_DIRECTORY_PART 22: the offset into the list of names.
    DirectoryPart(NodePath, usize),
    /// XS_GET_FEATURE 23: of a domain, or what the server supports.
    GetFeature(Option<DomId>),
    /// XS_GET_QUOTA 25: the names, a default, or the value of a domain.
    GetQuota(Option<DomId>, Option<&'a str>),
    /// XS_SET_QUOTA 26: a default, or the value of a domain.
    SetQuota(Option<DomId>, &'a str, usize),
}

impl<'a> Request<'a> {
    /// Parses the payload of a message of type `kind` from domain `caller`.
    pub fn parse(kind: u32, caller: DomId, payload: &'a [u8]) -> Result<Self, XsError> {
        let node = |s: &[u8]| NodePath::parse(s, caller);
        Ok(match kind {
            0 => Request::Control(texts(payload)?),
            1 => Request::Directory(node(one(payload)?)?),
            2 => Request::Read(node(one(payload)?)?),
            3 => Request::GetPerms(NodePath::parse_or_special(one(payload)?, caller)?),
            4 | 5 => {
                let [path, token] = exactly(payload)?;
                let path = WatchPath::parse(path, caller)?;
                if kind == 4 { Request::Watch(path, token) } else { Request::Unwatch(path, token) }
            }
            6 => Request::TransactionStart,
            7 => match one(payload)? {
                b"T" => Request::TransactionEnd(true),
                b"F" => Request::TransactionEnd(false),
                _ => return Err(XsError::Invalid),
            },
            8 => {
                let args = strings(payload)?;
                let [domid, frame, port, ..] = args.as_slice() else { return Err(XsError::Invalid) };
                number::<i64>(frame)?;
                number::<u32>(port)?;
                Request::Introduce(real_domid(domid)?)
            }
            9 => Request::Release(real_domid(one(payload)?)?),
            10 => Request::GetDomainPath(domid(one(payload)?)?),
            11 => {
                let end = payload.iter().position(|b| *b == 0).ok_or(XsError::Invalid)?;
                let (path, value) = payload.split_at_checked(end).ok_or(XsError::Invalid)?;
                Request::Write(node(path)?, value.get(1..).unwrap_or_default())
            }
            12 => Request::Mkdir(node(one(payload)?)?),
            13 => Request::Rm(node(one(payload)?)?),
            14 => {
                let args = strings(payload)?;
                let (path, perms) = args.split_first().ok_or(XsError::Invalid)?;
                if perms.is_empty() {
                    return Err(XsError::Invalid);
                }
                let perms = perms.iter().map(|p| Perm::parse(p)).collect::<Result<_, _>>()?;
                Request::SetPerms(NodePath::parse_or_special(path, caller)?, perms)
            }
            17 => Request::IsDomainIntroduced(domid(one(payload)?)?),
            18 => Request::Resume(real_domid(one(payload)?)?),
            19 => {
                let [dom, target] = exactly(payload)?;
                Request::SetTarget(real_domid(dom)?, real_domid(target)?)
            }
            21 => Request::ResetWatches,
            22 => {
                let [path, offset] = exactly(payload)?;
                Request::DirectoryPart(node(path)?, number(offset)?)
            }
            23 => match strings_or_none(payload)?.as_slice() {
                [] => Request::GetFeature(None),
                [dom] => Request::GetFeature(Some(domid(dom)?)),
                _ => return Err(XsError::Invalid),
            },
            25 => match strings_or_none(payload)?.as_slice() {
                [] => Request::GetQuota(None, None),
                [name] => Request::GetQuota(None, Some(text(name)?)),
                [dom, name] => Request::GetQuota(Some(domid(dom)?), Some(text(name)?)),
                _ => return Err(XsError::Invalid),
            },
            26 => match strings(payload)?.as_slice() {
                [name, value] => Request::SetQuota(None, text(name)?, number(value)?),
                [dom, name, value] => Request::SetQuota(Some(domid(dom)?), text(name)?, number(value)?),
                _ => return Err(XsError::Invalid),
            },
            _ => return Err(XsError::NoSys),
        })
    }
}

/// The strings of a payload, each ended by a NUL; at least one.
fn strings(payload: &[u8]) -> Result<Vec<&[u8]>, XsError> {
    let body = payload.strip_suffix(&[0]).ok_or(XsError::Invalid)?;
    Ok(body.split(|b| *b == 0).collect())
}

/// As [`strings`], but an empty payload (or a lone NUL, as libxenstore sends it) is no string at all.
fn strings_or_none(payload: &[u8]) -> Result<Vec<&[u8]>, XsError> {
    if matches!(payload, [] | [0]) { Ok(Vec::new()) } else { strings(payload) }
}

fn exactly<const N: usize>(payload: &[u8]) -> Result<[&[u8]; N], XsError> {
    strings(payload)?.try_into().map_err(|_| XsError::Invalid)
}

fn one(payload: &[u8]) -> Result<&[u8], XsError> {
    exactly::<1>(payload).map(|[s]| s)
}

fn text(bytes: &[u8]) -> Result<&str, XsError> {
    std::str::from_utf8(bytes).map_err(|_| XsError::Invalid)
}

fn texts(payload: &[u8]) -> Result<Vec<&str>, XsError> {
    strings(payload)?.into_iter().map(text).collect()
}

/// A decimal number; a sign only where the type has one.
fn number<T: std::str::FromStr>(bytes: &[u8]) -> Result<T, XsError> {
    if bytes.first() == Some(&b'+') {
        return Err(XsError::Invalid);
    }
    text(bytes)?.parse().map_err(|_| XsError::Invalid)
}

/// A domain id in decimal.
pub(super) fn domid(bytes: &[u8]) -> Result<DomId, XsError> {
    number(bytes).map(DomId)
}

/// Neither domain 0 nor one of the special ids.
fn real_domid(bytes: &[u8]) -> Result<DomId, XsError> {
    domid(bytes)
        .and_then(|d| if (1..DomId::FIRST_RESERVED).contains(&d.0) { Ok(d) } else { Err(XsError::Invalid) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    #![allow(clippy::octal_escapes)] // NUL, then a digit: as it is on the wire.
    use super::*;

    const D1: DomId = DomId(1);

    #[test]
    fn header_goes_both_ways() {
        let bytes = [11, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 16, 0, 0];
        let header = Header::parse(&bytes);
        assert_eq!(header, Header { kind: 11, req_id: 2, tx_id: 3, len: 4096 });
        assert_eq!(header.emit(), bytes);
    }

    #[test]
    fn reply_past_the_limit_becomes_e2big() {
        assert_eq!(message(2, 7, 9, &[1; PAYLOAD_MAX]).len(), HEADER_SIZE + PAYLOAD_MAX);
        let error = message(2, 7, 9, &[1; PAYLOAD_MAX + 1]);
        assert_eq!(error, message(XS_ERROR, 7, 9, b"E2BIG\0"));
    }

    #[test]
    fn well_formed_payloads_parse() {
        let path = |s: &str| NodePath::parse(s.as_bytes(), D1).unwrap();
        let table: &[(u32, &[u8], Request)] = &[
            (0, b"log\0on\0", Request::Control(vec!["log", "on"])),
            (1, b"/a\0", Request::Directory(path("/a"))),
            (2, b"x/y\0", Request::Read(path("/local/domain/1/x/y"))),
            (6, b"", Request::TransactionStart),
            (6, b"\0", Request::TransactionStart),
            (7, b"T\0", Request::TransactionEnd(true)),
            (7, b"F\0", Request::TransactionEnd(false)),
            (8, b"3\0-5\012\0", Request::Introduce(DomId(3))),
            (9, b"3\0", Request::Release(DomId(3))),
            (10, b"0\0", Request::GetDomainPath(DomId(0))),
            (11, b"/a\0", Request::Write(path("/a"), b"")),
            (11, b"/a\0b\0c", Request::Write(path("/a"), b"b\0c")),
            (12, b"/a\0", Request::Mkdir(path("/a"))),
            (13, b"/a\0", Request::Rm(path("/a"))),
            (17, b"65535\0", Request::IsDomainIntroduced(DomId(65535))),
            (19, b"3\04\0", Request::SetTarget(DomId(3), DomId(4))),
            (21, b"\0", Request::ResetWatches),
            (22, b"/a\0100\0", Request::DirectoryPart(path("/a"), 100)),
            (23, b"", Request::GetFeature(None)),
            (23, b"2\0", Request::GetFeature(Some(DomId(2)))),
            (25, b"\0", Request::GetQuota(None, None)),
            (25, b"1\0nodes\0", Request::GetQuota(Some(D1), Some("nodes"))),
            (26, b"nodes\05\0", Request::SetQuota(None, "nodes", 5)),
        ];
        for (kind, payload, expected) in table {
            assert_eq!(Request::parse(*kind, D1, payload).as_ref(), Ok(expected), "{kind} {payload:?}");
        }
    }

    #[test]
    fn malformed_payloads_are_refused() {
        let table: &[(u32, &[u8])] = &[
            (0, b""),
            (0, b"check"),
            (1, b""),
            (1, b"/a"),
            (2, b"/a\0b\0"),
            (2, b"\0"),
            (3, b"/a//b\0"),
            (4, b"/a\0"),
            (4, b"/a\0t\0u\0"),
            (4, b"/a\0t"),
            (5, b"/a\0"),
            (7, b"\0"),
            (7, b"TT\0"),
            (7, b"T"),
            (8, b"0\01\01\0"),
            (8, b"3\01\0"),
            (8, b"3\0x\01\0"),
            (9, b"32752\0"),
            (9, b"+1\0"),
            (10, b"65536\0"),
            (10, b"-1\0"),
            (11, b"/a"),
            (11, b""),
            (11, b"/a/\0x"),
            (14, b"/a\0"),
            (14, b"/a\0x1\0"),
            (14, b"/a\0n\0"),
            (14, b"/a\0n1"),
            (19, b"1\0"),
            (22, b"/a\0"),
            (22, b"/a\0-1\0"),
            (25, b"1\0nodes\0x\0"),
            (26, b"nodes\0"),
        ];
        for (kind, payload) in table {
            assert_eq!(Request::parse(*kind, D1, payload), Err(XsError::Invalid), "{kind} {payload:?}");
        }
        for kind in [15, 16, 20, 24, 27, u32::MAX] {
            assert_eq!(Request::parse(kind, D1, b"x\0"), Err(XsError::NoSys));
        }
    }
}
