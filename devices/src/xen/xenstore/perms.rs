//! Permissions of a node: a list whose first entry names the owner, who may do everything, and whose access
//! is what a domain without an entry of its own gets.

use std::fmt;
use std::sync::Arc;

use super::wire::{XsError, domid};
use crate::xen::DomId;

/// Access that an entry grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `n`
    None,
    /// `r`
    Read,
    /// `w`
    Write,
    /// `b`
    Both,
}

/// What a caller wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Value, children and permissions.
    Read,
    /// Change the value, add children, remove.
    Write,
    /// Change permissions.
    Own,
}

/// One entry of a node's permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// Whom it is for; in the first entry: the owner.
    pub domid: DomId,
    /// The access; in the first entry: of all domains not listed.
    pub access: Access,
}

impl Perm {
    /// `nD`, `rD`, `wD` or `bD`.
    pub fn parse(bytes: &[u8]) -> Result<Self, XsError> {
        let (letter, number) = bytes.split_first().ok_or(XsError::Invalid)?;
        let access = match letter {
            b'n' => Access::None,
            b'r' => Access::Read,
            b'w' => Access::Write,
            b'b' => Access::Both,
            _ => return Err(XsError::Invalid),
        };
        Ok(Self { domid: domid(number)?, access })
    }
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        };
        write!(f, "{letter}{}", self.domid)
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its domain.
    pub domid: DomId,
    /// The domain whose rights it has besides its own (SET_TARGET).
    pub target: Option<DomId>,
}

impl Caller {
    /// The host's side.
    pub const DOM0: Caller = Caller { domid: DomId::DOM0, target: None };

    /// Domain 0 may do everything and has no quota.
    pub fn privileged(self) -> bool {
        self.domid == DomId::DOM0
    }

    fn is(self, domid: DomId) -> bool {
        self.domid == domid || self.target == Some(domid)
    }
}

/// The permissions of a node; never empty. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Perms {
    owner: Perm,
    others: Option<Arc<[Perm]>>,
}

impl Perms {
    /// The owner's entry and the others.
    pub fn new(owner: Perm, others: &[Perm]) -> Self {
        Self { owner, others: (!others.is_empty()).then(|| others.into()) }
    }

    /// `None` for an empty list.
    pub fn from_list(list: &[Perm]) -> Option<Self> {
        list.split_first().map(|(owner, others)| Self::new(*owner, others))
    }

    /// Domain 0 owns, nobody else has access.
    pub fn dom0_only() -> Self {
        Self::new(Perm { domid: DomId::DOM0, access: Access::None }, &[])
    }

    /// Who owns the node: its quotas pay for it.
    pub fn owner(&self) -> DomId {
        self.owner.domid
    }

    /// These permissions with another owner.
    pub fn owned_by(&self, domid: DomId) -> Self {
        Self { owner: Perm { domid, ..self.owner }, others: self.others.clone() }
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = &Perm> {
        std::iter::once(&self.owner).chain(self.others.iter().flat_map(|o| o.iter()))
    }

    /// Number of entries, at least one.
    pub fn count(&self) -> usize {
        1 + self.others.as_ref().map_or(0, |o| o.len())
    }

    /// These permissions without the entries for `gone`, an owner excepted; `None` if there are none.
    pub fn without(&self, gone: DomId) -> Option<Self> {
        let others = self.others.as_ref()?;
        if others.iter().all(|p| p.domid != gone) {
            return None;
        }
        let kept: Vec<Perm> = others.iter().copied().filter(|p| p.domid != gone).collect();
        Some(Self::new(self.owner, &kept))
    }

    /// Whether `caller` may do that.
    pub fn allow(&self, caller: Caller, need: Need) -> bool {
        if caller.privileged() || caller.is(self.owner.domid) {
            return true;
        }
        let listed = self.others.iter().flat_map(|o| o.iter()).find(|p| caller.is(p.domid));
        let access = listed.unwrap_or(&self.owner).access;
        match need {
            Need::Read => matches!(access, Access::Read | Access::Both),
            Need::Write => matches!(access, Access::Write | Access::Both),
            Need::Own => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn perms(list: &str) -> Perms {
        let list: Vec<Perm> = list.split(' ').map(|p| Perm::parse(p.as_bytes()).unwrap()).collect();
        Perms::from_list(&list).unwrap()
    }

    #[test]
    fn access_follows_owner_entry_and_default() {
        // Node, domain, may read, may write, may set permissions.
        let table = [
            ("n1", 1, true, true, true),
            ("n1", 0, true, true, true),
            ("n1", 2, false, false, false),
            ("r1", 2, true, false, false),
            ("w1", 2, false, true, false),
            ("b1", 2, true, true, false),
            ("n0 r2", 2, true, false, false),
            ("n0 w2", 2, false, true, false),
            ("n0 b2", 2, true, true, false),
            ("b0 n2", 2, false, false, false),
            ("b0 n2", 3, true, true, false),
            ("n0 r2 b2", 2, true, false, false),
            ("n2 r2", 2, true, true, true),
        ];
        for (list, domid, read, write, own) in table {
            let (perms, caller) = (perms(list), Caller { domid: DomId(domid), target: None });
            let got = [Need::Read, Need::Write, Need::Own].map(|need| perms.allow(caller, need));
            assert_eq!(got, [read, write, own], "{list} for {domid}");
        }
    }

    #[test]
    fn target_lends_its_rights() {
        let caller = Caller { domid: DomId(5), target: Some(DomId(2)) };
        assert!(perms("n2").allow(caller, Need::Own));
        assert!(perms("n0 r2").allow(caller, Need::Read));
        assert!(!perms("n0 r3").allow(caller, Need::Read));
    }

    #[test]
    fn entries_read_back_as_written() {
        for entry in ["n0", "r1", "w32751", "b65535"] {
            assert_eq!(Perm::parse(entry.as_bytes()).unwrap().to_string(), entry);
        }
        for entry in ["", "n", "x1", "n-1", "n65536", "n1 ", "n+1"] {
            assert_eq!(Perm::parse(entry.as_bytes()), Err(XsError::Invalid), "{entry}");
        }
    }

    #[test]
    fn gone_domain_loses_its_entries_but_not_its_ownership() {
        assert_eq!(perms("n0 r2 b3 w2").without(DomId(2)), Some(perms("n0 b3")));
        assert_eq!(perms("n0 b3").without(DomId(2)), None);
        assert_eq!(perms("n2 b3").without(DomId(2)), None);
    }
}
