//! How many users each entry of the grant table has.
//!
//! Counts lie in shards, each behind a lock that is taken once for a row of neighbouring entries, as a frontend names
//! them: so a packet of many pages costs one or two locks. A shard has memory once an entry of it was used.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::Access;
use crate::xen::types::GrantRef;

/// Entries of a shard.
const SHARD: u32 = 128;

type Counts = [Users; SHARD as usize];

/// The users of all entries.
#[derive(Debug)]
pub(super) struct AllUsers(Box<[OnceLock<Box<Mutex<Counts>>>]>);

/// Users of one entry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Users {
    readers: u16,
    writers: u16,
}

impl Users {
    /// One more; `None` if they cannot be counted: a frontend may name one page in many requests at once.
    pub(super) fn and_one(self, access: Access) -> Option<Self> {
        match access {
            Access::Read => Some(Self { readers: self.readers.checked_add(1)?, ..self }),
            Access::Write => Some(Self { writers: self.writers.checked_add(1)?, ..self }),
        }
    }

    /// One less.
    pub(super) fn less_one(self, access: Access) -> Self {
        match access {
            Access::Read => Self { readers: self.readers.saturating_sub(1), ..self },
            Access::Write => Self { writers: self.writers.saturating_sub(1), ..self },
        }
    }

    /// Whether one of them writes.
    pub(super) fn writes(self) -> bool {
        self.writers > 0
    }

    /// Whether there are any.
    pub(super) fn any(self) -> bool {
        self.readers > 0 || self.writers > 0
    }
}

impl AllUsers {
    /// Of `entries` entries without users.
    pub(super) fn new(entries: u32) -> Self {
        Self((0..entries.div_ceil(SHARD)).map(|_| OnceLock::new()).collect())
    }

    /// Looks at some of them. No lock is held yet.
    pub(super) fn locked(&self) -> Locked<'_> {
        Locked { all: self, shard: u32::MAX, counts: None }
    }
}

/// Some entries' users, which nobody else changes meanwhile: the flags in an entry and the count of its users change
/// together. At most one lock is held at a time.
pub(super) struct Locked<'a> {
    all: &'a AllUsers,
    shard: u32,
    counts: Option<MutexGuard<'a, Counts>>,
}

impl Locked<'_> {
    /// The users of an entry; `None` past the end of the table.
    #[inline]
    pub(super) fn of(&mut self, gref: GrantRef) -> Option<&mut Users> {
        let shard = gref.0 / SHARD;
        if shard != self.shard || self.counts.is_none() {
            self.change(shard)?;
        }
        self.counts.as_mut()?.get_mut((gref.0 % SHARD) as usize)
    }

    fn change(&mut self, shard: u32) -> Option<()> {
        self.counts = None;
        let mutex = self.all.0.get(shard as usize)?;
        let mutex = mutex.get_or_init(|| Box::new(Mutex::new([Users::default(); SHARD as usize])));
        self.counts = Some(mutex.lock().unwrap_or_else(PoisonError::into_inner));
        self.shard = shard;
        Some(())
    }
}
