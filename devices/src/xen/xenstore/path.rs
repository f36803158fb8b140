//! Paths of nodes. A [`NodePath`] is always absolute, canonical and within the limits of
//! docs/misc/xenstore.txt; nothing behind [`NodePath::parse`] looks at its characters again.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::wire::XsError;
use crate::xen::DomId;

/// Most bytes of an absolute path, `XENSTORE_ABS_PATH_MAX`.
pub const ABS_PATH_MAX: usize = 3072;
/// Most bytes below `/local/domain/D/`, `XENSTORE_REL_PATH_MAX`.
pub const REL_PATH_MAX: usize = 2048;
/// Fires when a domain was introduced.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// Fires when a domain is gone.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";

const DOMAINS: &str = "/local/domain/";

/// `/local/domain/D`, the base of a domain's relative paths.
pub fn domain_path(domid: DomId) -> String {
    format!("{DOMAINS}{domid}")
}

/// An absolute canonical path, or the name of one of the two special nodes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodePath(Arc<str>);

impl NodePath {
    /// A path as `caller` writes it: absolute, or relative to its own directory.
    pub fn parse(bytes: &[u8], caller: DomId) -> Result<Self, XsError> {
        if bytes.is_empty() || !bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-/_@".contains(b)) {
            return Err(XsError::Invalid);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| XsError::Invalid)?;
        // A special name is not a relative path, whatever follows the @.
        if text.starts_with('@') {
            return Err(XsError::Invalid);
        }
        let path = if text.starts_with('/') {
            text.into()
        } else if text.len() <= REL_PATH_MAX {
            format!("{}/{text}", domain_path(caller))
        } else {
            return Err(XsError::Invalid);
        };
        let long = path.len() > ABS_PATH_MAX || below_domain(&path).is_some_and(|p| p.len() > REL_PATH_MAX);
        // Below /local/domain/D/ the guests' limit holds for everyone; elsewhere for guests (quota
        // path-max of Xen), so that no guest makes a node whose path another domain could not name.
        let long =
            long || (caller != DomId::DOM0 && below_domain(&path).is_none() && path.len() > REL_PATH_MAX);
        if long || path.contains("//") || (path.len() > 1 && path.ends_with('/')) {
            return Err(XsError::Invalid);
        }
        Ok(Self(path.into()))
    }

    /// As [`NodePath::parse`], or one of the special nodes, which have permissions.
    pub fn parse_or_special(bytes: &[u8], caller: DomId) -> Result<Self, XsError> {
        [INTRODUCE_DOMAIN, RELEASE_DOMAIN]
            .into_iter()
            .find(|s| s.as_bytes() == bytes)
            .map_or_else(|| Self::parse(bytes, caller), |s| Ok(Self(s.into())))
    }

    /// The path of a special event.
    pub(super) fn special(name: &'static str) -> Self {
        Self(name.into())
    }

    /// The root, "/".
    pub fn root() -> Self {
        Self("/".into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path one level down. `name` comes from a node's list of children.
    pub(super) fn child(&self, name: &str) -> Self {
        let base = if self.is_root() { "" } else { self.as_str() };
        Self(format!("{base}/{name}").into())
    }

    /// The path of the parent and the last name; `None` for the root and the special nodes.
    pub fn split(&self) -> Option<(NodePath, &str)> {
        let (parent, name) = split(&self.0)?;
        Some((Self(parent.into()), name))
    }

    /// Whether this is "/".
    pub fn is_root(&self) -> bool {
        &*self.0 == "/"
    }
}

/// Parent and last name of a canonical path; `None` for the root and the special nodes.
pub(super) fn split(path: &str) -> Option<(&str, &str)> {
    let (parent, name) = path.rsplit_once('/')?;
    if name.is_empty() {
        return None;
    }
    Some((if parent.is_empty() { "/" } else { parent }, name))
}

/// Whether `path` is `base` or lies under it.
pub(super) fn is_child(path: &str, base: &str) -> bool {
    if base == "/" {
        return path.starts_with('/');
    }
    path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What follows `/local/domain/D/`.
fn below_domain(path: &str) -> Option<&str> {
    let (domid, rest) = path.strip_prefix(DOMAINS)?.split_once('/')?;
    (domid.len() <= 5 && domid.bytes().all(|b| b.is_ascii_digit())).then_some(rest)
}

impl Deref for NodePath {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for NodePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a watch is set on: a path, or `@` and any name. Remembers whether it was relative: then its events are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchPath {
    full: NodePath,
    relative: bool,
}

impl WatchPath {
    /// The path of a WATCH or UNWATCH request.
    pub fn parse(bytes: &[u8], caller: DomId) -> Result<Self, XsError> {
        if bytes.first() != Some(&b'@') {
            let full = NodePath::parse(bytes, caller)?;
            return Ok(Self { full, relative: bytes.first() != Some(&b'/') });
        }
        // Any syntax is allowed here; only two names ever fire.
        if bytes.len() > REL_PATH_MAX || !bytes.is_ascii() {
            return Err(XsError::Invalid);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| XsError::Invalid)?;
        Ok(Self { full: NodePath(text.into()), relative: false })
    }

    /// The absolute path.
    pub fn full(&self) -> &NodePath {
        &self.full
    }

    /// `path`, which is this one or below it, as the client wrote its watch.
    pub fn shown<'a>(&self, path: &'a str, owner: DomId) -> &'a str {
        if !self.relative {
            return path;
        }
        path.get(domain_path(owner).len() + 1..).unwrap_or(path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str, caller: u16) -> Option<String> {
        NodePath::parse(text.as_bytes(), DomId(caller)).ok().map(|p| p.to_string())
    }

    #[test]
    fn paths_become_absolute() {
        let table = [
            ("/", Some("/")),
            ("/a", Some("/a")),
            ("/a/b-_@9", Some("/a/b-_@9")),
            ("device/vbd", Some("/local/domain/7/device/vbd")),
            ("", None),
            ("//", None),
            ("/a/", None),
            ("a/", None),
            ("/a//b", None),
            ("/a b", None),
            ("/ä", None),
            ("/a.b", None),
            ("/a\nb", None),
            ("@releaseDomain", None),
            ("@x", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text, 7).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn length_limits_are_exact() {
        let name = |n| "x".repeat(n);
        assert!(parse(&name(REL_PATH_MAX), 1).is_some());
        assert!(parse(&name(REL_PATH_MAX + 1), 1).is_none());
        let absolute = |n| format!("/local/domain/1/{}", name(n));
        assert!(parse(&absolute(REL_PATH_MAX), 0).is_some());
        assert!(parse(&absolute(REL_PATH_MAX + 1), 0).is_none());
        assert!(parse(&format!("/{}", name(ABS_PATH_MAX - 1)), 0).is_some());
        assert!(parse(&format!("/{}", name(ABS_PATH_MAX)), 0).is_none());
        assert!(parse(&format!("/{}", name(REL_PATH_MAX - 1)), 1).is_some());
        assert!(parse(&format!("/{}", name(REL_PATH_MAX)), 1).is_none());
    }

    #[test]
    fn parents_end_at_the_root() {
        let path = NodePath::parse(b"/a/b", DomId(0)).unwrap();
        let (parent, name) = path.split().unwrap();
        assert_eq!((parent.as_str(), name), ("/a", "b"));
        let (parent, name) = parent.split().map(|(p, n)| (p, n.to_owned())).unwrap();
        assert_eq!((parent.as_str(), name.as_str()), ("/", "a"));
        assert!(parent.split().is_none());
        assert_eq!(parent.child("a").child("b"), path);
    }

    #[test]
    fn child_is_a_whole_name() {
        assert!(is_child("/a/b", "/a"));
        assert!(is_child("/a", "/a"));
        assert!(is_child("/a", "/"));
        assert!(!is_child("/ab", "/a"));
        assert!(!is_child("/a", "/a/b"));
        assert!(!is_child("@releaseDomain", "/"));
        assert!(!is_child("@releaseDomain", "@release"));
    }

    #[test]
    fn relative_watch_shows_relative_paths() {
        let watch = WatchPath::parse(b"device", DomId(12)).unwrap();
        assert_eq!(watch.shown("/local/domain/12/device/vbd", DomId(12)), "device/vbd");
        let watch = WatchPath::parse(b"/local/domain/12/device", DomId(12)).unwrap();
        assert_eq!(watch.shown("/local/domain/12/device/vbd", DomId(12)), "/local/domain/12/device/vbd");
        assert_eq!(WatchPath::parse(b"@any thing", DomId(1)).unwrap().full().as_str(), "@any thing");
    }
}
