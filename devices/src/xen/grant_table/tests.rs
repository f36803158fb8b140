#![allow(clippy::unwrap_used)]
use vm_memory::GuestAddress;

use super::*;
use crate::testing::FakeGuest;

const READING: u16 = 1 | 8;
const WRITING: u16 = 1 | 8 | 16;

fn error(guest: &FakeGuest, gref: GrantRef, access: Access) -> GrantError {
    guest.domain.grants.pin(gref, access).unwrap_err()
}

#[test]
fn a_granted_page_is_the_guest_page() {
    let mut guest = FakeGuest::new(16);
    let (frame, gref) = guest.granted_page();
    let grants = &guest.domain.grants;
    let page = grants.pin(gref, Access::Write).unwrap();
    grants.slice(&page, 100, 5).unwrap().copy_from(b"hello");
    assert_eq!(guest.read(frame, 100, 5), b"hello");
    grants.unpin(page);
}

#[test]
fn references_past_the_table_are_refused() {
    let guest = FakeGuest::new(16);
    for gref in [512, 513, MAX_FRAMES * ENTRIES_PER_FRAME, u32::MAX] {
        assert_eq!(error(&guest, GrantRef(gref), Access::Read), GrantError::BadRef(gref));
    }
}

#[test]
fn the_table_grows_up_to_its_last_frame() {
    let mut guest = FakeGuest::new(16);
    let frame = guest.alloc_page();
    let last = GrantRef(MAX_FRAMES * ENTRIES_PER_FRAME - 1);
    assert!(!guest.domain.grants.grow_to(MAX_FRAMES));
    assert_eq!(guest.domain.grants.nr_frames(), 1);
    guest.set_grant(last, 1, 0, frame);
    assert_eq!(guest.domain.grants.nr_frames(), MAX_FRAMES);
    let page = guest.domain.grants.pin(last, Access::Write).unwrap();
    guest.domain.grants.unpin(page);
}

#[test]
fn only_plain_access_for_domain_0_is_permitted() {
    let guest = FakeGuest::new(16);
    // Flags and domid: invalid, transfer, transitive, sub-page, another domain, the guest itself.
    for (flags, domid) in [(0, 0), (2, 0), (3, 0), (1 | 256, 0), (1, 1), (1, 0x7ff0)] {
        guest.set_grant(GrantRef(20), flags, domid, 3);
        assert_eq!(error(&guest, GrantRef(20), Access::Read), GrantError::NotPermitted(20));
        assert_eq!(guest.grant_flags(GrantRef(20)), flags, "a refused entry is not marked");
    }
}

#[test]
fn a_read_only_grant_is_not_written() {
    let mut guest = FakeGuest::new(16);
    let frame = guest.alloc_page();
    let gref = guest.grant(frame, true);
    assert_eq!(error(&guest, gref, Access::Write), GrantError::ReadOnly(gref.0));
    let page = guest.domain.grants.pin(gref, Access::Read).unwrap();
    guest.domain.grants.unpin(page);
}

#[test]
fn a_frame_that_is_not_ram_is_refused() {
    let guest = FakeGuest::new(16);
    for frame in [16, 17, 0xf_ffff, 0xffff_ffff] {
        guest.set_grant(GrantRef(20), 1, 0, frame);
        assert_eq!(error(&guest, GrantRef(20), Access::Read), GrantError::NotRam(20), "{frame:#x}");
    }
    guest.set_grant(GrantRef(20), 1, 0, 15);
    let page = guest.domain.grants.pin(GrantRef(20), Access::Read).unwrap();
    guest.domain.grants.unpin(page);
}

#[test]
fn slices_end_with_the_page() {
    let mut guest = FakeGuest::new(16);
    let (_, gref) = guest.granted_page();
    let grants = &guest.domain.grants;
    let page = grants.pin(gref, Access::Read).unwrap();
    assert!(grants.slice(&page, 0, 4096).is_some());
    assert!(grants.slice(&page, 4096, 0).is_some());
    assert!(grants.slice(&page, 1, 4096).is_none());
    assert!(grants.slice(&page, 4097, 0).is_none());
    assert!(grants.slice(&page, usize::MAX, 2).is_none());
    grants.unpin(page);
}

#[test]
fn flags_show_the_use_until_the_last_user_is_gone() {
    let mut guest = FakeGuest::new(16);
    let (_, gref) = guest.granted_page();
    let grants = &guest.domain.grants;
    let reader = grants.pin(gref, Access::Read).unwrap();
    assert_eq!(guest.grant_flags(gref), READING);
    let writers = [grants.pin(gref, Access::Write).unwrap(), grants.pin(gref, Access::Write).unwrap()];
    assert_eq!(guest.grant_flags(gref), WRITING);
    let [one, two] = writers;
    grants.unpin(one);
    assert_eq!(guest.grant_flags(gref), WRITING);
    grants.unpin(two);
    assert_eq!(guest.grant_flags(gref), READING);
    grants.unpin(reader);
    assert_eq!(guest.grant_flags(gref), 1);
}

#[test]
fn a_batch_pins_neighbours_and_entries_far_away_in_any_order() {
    let mut guest = FakeGuest::new(16);
    let frame = guest.alloc_page();
    let refs = [127, 128, 10, 4000, 127, 11].map(GrantRef);
    refs.iter().for_each(|gref| guest.set_grant(*gref, 1, 0, frame));
    let grants = &guest.domain.grants;
    let mut batch = grants.batch();
    let mut pages: Vec<_> = refs.iter().map(|gref| batch.pin(*gref, Access::Read).unwrap()).collect();
    assert_eq!(batch.pin(GrantRef(12), Access::Read).unwrap_err(), GrantError::NotPermitted(12));
    assert!(refs.iter().all(|gref| guest.grant_flags(*gref) == READING));
    batch.unpin(pages.remove(0));
    assert_eq!(guest.grant_flags(GrantRef(127)), READING, "it was pinned twice");
    pages.into_iter().for_each(|page| batch.unpin(page));
    assert!(refs.iter().all(|gref| guest.grant_flags(*gref) == 1));
}

#[test]
fn a_frame_of_each_region_is_found_and_what_is_between_them_is_not() {
    let page = PAGE_SIZE as u64;
    let ranges = [(GuestAddress(0), 2 * PAGE_SIZE), (GuestAddress(8 * page), 2 * PAGE_SIZE)];
    let ram = Arc::new(GuestRam::from_ranges(&ranges).unwrap());
    let grants = GrantTable::new(Arc::clone(&ram)).unwrap();
    for gfn in 0..12 {
        let expected = ram.get_host_address(GuestAddress(gfn * page)).ok();
        assert_eq!(grants.host_page(Gfn(gfn)), expected, "{gfn}");
    }
    assert_eq!(grants.host_page(Gfn(u64::MAX)), None);
}

#[test]
fn a_lone_writer_clears_both_flags() {
    let mut guest = FakeGuest::new(16);
    let (_, gref) = guest.granted_page();
    let page = guest.domain.grants.pin(gref, Access::Write).unwrap();
    assert_eq!(guest.grant_flags(gref), WRITING);
    guest.domain.grants.unpin(page);
    assert_eq!(guest.grant_flags(gref), 1);
}

#[test]
fn unpin_leaves_the_rest_of_the_entry_to_the_guest() {
    let mut guest = FakeGuest::new(16);
    let (_, gref) = guest.granted_page();
    let page = guest.domain.grants.pin(gref, Access::Read).unwrap();
    guest.set_grant(gref, 1 | 4 | 8, 9, 5);
    guest.domain.grants.unpin(page);
    let entry = guest.domain.grants.frames().u64_at(gref.0 as usize * 8).unwrap().load(SeqCst);
    assert_eq!(entry, 1 | 4 | 9 << 16 | 5 << 32);
}

#[test]
fn a_pinned_page_stays_the_one_that_was_checked() {
    let mut guest = FakeGuest::new(16);
    let (frame, gref) = guest.granted_page();
    let grants = &guest.domain.grants;
    let page = grants.pin(gref, Access::Write).unwrap();
    guest.set_grant(gref, 1, 0, frame + 1);
    grants.slice(&page, 0, 1).unwrap().copy_from(&[7u8]);
    assert_eq!((guest.read(frame, 0, 1), guest.read(frame + 1, 0, 1)), (vec![7], vec![0]));
    grants.unpin(page);
}

#[test]
fn more_users_than_can_be_counted_are_refused() {
    let mut guest = FakeGuest::new(16);
    let (_, gref) = guest.granted_page();
    let grants = &guest.domain.grants;
    let mut pages = Vec::new();
    for (access, limit) in [(Access::Read, 0xffff), (Access::Write, 0xffff)] {
        pages.extend((0..limit).map(|_| grants.pin(gref, access).unwrap()));
        assert_eq!(error(&guest, gref, access), GrantError::Busy(gref.0));
    }
    pages.into_iter().for_each(|page| grants.unpin(page));
    assert_eq!(guest.grant_flags(gref), 1);
}

#[test]
fn users_on_several_threads_never_see_their_page_unmarked() {
    let mut guest = FakeGuest::new(16);
    let (_, gref) = guest.granted_page();
    let (guest, rounds) = (&guest, 20_000);
    std::thread::scope(|scope| {
        for access in [Access::Read, Access::Write, Access::Write] {
            scope.spawn(move || {
                for _ in 0..rounds {
                    let page = guest.domain.grants.pin(gref, access).unwrap();
                    let wanted = 1 | access.flags();
                    assert_eq!(guest.grant_flags(gref) & wanted, wanted);
                    guest.domain.grants.unpin(page);
                }
            });
        }
    });
    assert_eq!(guest.grant_flags(gref), 1);
}

#[test]
fn what_was_checked_is_what_is_used_when_the_guest_changes_the_entry() {
    let mut guest = FakeGuest::new(64);
    let gref = GrantRef(20);
    let (even, odd) = (guest.alloc_page(), guest.alloc_page());
    guest.write(odd, 0, &[1]);
    guest.set_grant(gref, 0, 0, even);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (guest, stop) = (&guest, &stop);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !stop.load(SeqCst) {
                guest.set_grant(gref, 1, 0, odd);
                guest.set_grant(gref, 1, 7, even);
                guest.set_grant(gref, 0, 0, even);
            }
        });
        for _ in 0..10_000 {
            match guest.domain.grants.pin(gref, Access::Read) {
                // Only the odd page is ever granted to domain 0.
                Ok(page) => {
                    let mut byte = [0u8];
                    guest.domain.grants.slice(&page, 0, 1).unwrap().copy_to(&mut byte);
                    assert_eq!(byte, [1]);
                    guest.domain.grants.unpin(page);
                }
                Err(e) => {
                    assert!(matches!(e, GrantError::NotPermitted(20) | GrantError::Busy(20)), "{e}")
                }
            }
        }
        stop.store(true, SeqCst);
    });
}
