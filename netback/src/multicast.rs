//! Multicast control: the frontend lists the groups that it wants (netif.h, `request-multicast-control`).
//!
//! The list may be changed at any time, by requests in the transmit ring of any queue. It is applied only while the
//! frontend asks for that in xenstore. All that are not multicasts pass, broadcasts as well.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// Addresses in the list, as of Linux netback (XEN_NETBK_MCAST_MAX).
pub const MAX_GROUPS: usize = 64;

/// An Ethernet address.
type Address = [u8; 6];

/// What a request in the transmit ring asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// Put this address into the list (XEN_NETIF_EXTRA_TYPE_MCAST_ADD).
    Join(Address),
    /// Take it out (XEN_NETIF_EXTRA_TYPE_MCAST_DEL).
    Leave(Address),
}

/// The list of an interface, shared by its queues.
#[derive(Debug, Default)]
pub struct Multicast {
    on: AtomicBool,
    groups: Mutex<Vec<Address>>,
}

impl Multicast {
    /// Whether the list is applied.
    pub fn set_filter(&self, on: bool) {
        self.on.store(on, SeqCst);
    }

    /// Changes the list; false if it is full. An address that joined twice has to leave twice.
    pub fn change(&self, membership: Membership) -> bool {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        match membership {
            Membership::Join(_) if groups.len() >= MAX_GROUPS => return false,
            Membership::Join(address) => groups.push(address),
            Membership::Leave(address) => {
                if let Some(at) = groups.iter().position(|group| *group == address) {
                    groups.swap_remove(at);
                }
            }
        }
        true
    }

    /// Whether a frame to this address is for the guest.
    pub fn passes(&self, destination: Address) -> bool {
        let [first, ..] = destination;
        if !self.on.load(SeqCst) || first & 1 == 0 || destination == [0xff; 6] {
            return true;
        }
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).contains(&destination)
    }

    /// Whether frames have to be looked at.
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Address = [1, 0, 0x5e, 0, 0, 1];
    const OTHER: Address = [0x33, 0x33, 0, 0, 0, 1];

    #[test]
    fn multicasts_pass_only_if_listed_while_the_filter_is_on() {
        let list = Multicast::default();
        assert!(list.passes(GROUP));
        list.set_filter(true);
        assert!(!list.passes(GROUP));
        assert!(list.change(Membership::Join(GROUP)));
        assert!(list.passes(GROUP) && !list.passes(OTHER));
        list.set_filter(false);
        assert!(list.passes(OTHER));
        list.set_filter(true);
        assert!(list.change(Membership::Leave(GROUP)));
        assert!(!list.passes(GROUP));
    }

    #[test]
    fn broadcasts_and_unicasts_always_pass() {
        let list = Multicast::default();
        list.set_filter(true);
        for address in [[0xff; 6], [0, 0x16, 0x3e, 0, 0, 1], [2, 0, 0, 0, 0, 1]] {
            assert!(list.passes(address));
        }
        assert!(!list.passes([0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]));
    }

    #[test]
    fn an_address_that_joined_twice_leaves_twice() {
        let list = Multicast::default();
        list.set_filter(true);
        for change in [Membership::Join(GROUP), Membership::Join(GROUP), Membership::Leave(GROUP)] {
            assert!(list.change(change));
        }
        assert!(list.passes(GROUP));
        list.change(Membership::Leave(GROUP));
        assert!(!list.passes(GROUP));
        assert!(list.change(Membership::Leave(GROUP)), "leaving what was never joined is no error");
    }

    #[test]
    fn the_list_holds_sixty_four_addresses() {
        let list = Multicast::default();
        let address = |n: u8| [1, 0, 0x5e, 0, 0, n];
        assert!((0..64).all(|n| list.change(Membership::Join(address(n)))));
        assert!(!list.change(Membership::Join(address(64))));
        list.change(Membership::Leave(address(7)));
        assert!(list.change(Membership::Join(address(64))));
        list.set_filter(true);
        assert!(list.passes(address(64)) && !list.passes(address(7)));
    }
}
