//! Hypercalls by a guest of a few pages, on a platform that only records.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use devices::memory::PAGE_SIZE;
use devices::testing::FakeGuest;
use devices::xen::{DomId, Gfn, Port};

use super::*;
use crate::boot::{MemmapEntry, MemmapKind};

const PAGES: usize = 16;
/// Where the tests' arguments stand: the last bytes of one page, so that structures cross into the next.
const ARG: u64 = 3 * PAGE_SIZE as u64 - 4;
/// A hole in the page tables.
const UNMAPPED: u64 = 0x8000_0000;
const SELF: u16 = 0x7ff0;
const OTHER: u16 = 9;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Did {
    Overlay(OverlayPage, Gfn),
    RemoveOverlay(Gfn),
    Discard(Gfn),
    LongMode(bool),
    Callback(Callback),
    RunstateFlag(bool),
    Vcpu(u32, VcpuSetting),
    Stop(StopReason),
    Output(Vec<u8>),
}

#[derive(Default)]
struct Recorder {
    did: Mutex<Vec<Did>>,
    now: AtomicU64,
}

impl Recorder {
    fn note(&self, did: Did) {
        self.did.lock().unwrap().push(did);
    }
}

impl Platform for Recorder {
    fn overlay(&self, page: OverlayPage, gfn: Gfn) -> Result<(), Errno> {
        self.note(Did::Overlay(page, gfn));
        Ok(())
    }
    fn remove_overlay(&self, gfn: Gfn) -> Result<bool, Errno> {
        self.note(Did::RemoveOverlay(gfn));
        Ok(false)
    }
    fn discard(&self, gfn: Gfn) -> bool {
        self.note(Did::Discard(gfn));
        gfn.0 < PAGES as u64
    }
    fn set_long_mode(&self, on: bool) {
        self.note(Did::LongMode(on));
    }
    fn set_callback(&self, callback: Callback) -> Result<(), Errno> {
        self.note(Did::Callback(callback));
        Ok(())
    }
    fn set_runstate_update_flag(&self, on: bool) -> Result<(), Errno> {
        self.note(Did::RunstateFlag(on));
        Ok(())
    }
    fn set_vcpu(&self, id: u32, setting: VcpuSetting) -> Result<(), Errno> {
        self.note(Did::Vcpu(id, setting));
        Ok(())
    }
    fn now_ns(&self) -> u64 {
        self.now.load(SeqCst)
    }
    fn stop(&self, reason: StopReason) {
        self.note(Did::Stop(reason));
    }
    fn early_output(&self, text: &[u8]) {
        self.note(Did::Output(text.to_vec()));
    }
}

struct Identity;

impl Translate for Identity {
    fn translate(&self, gva: u64) -> Option<u64> {
        (gva < UNMAPPED).then_some(gva)
    }
}

struct Bench {
    guest: FakeGuest,
    platform: Arc<Recorder>,
    hypercalls: Hypercalls,
    long_mode: bool,
}

impl Bench {
    fn new() -> Self {
        let guest = FakeGuest::new(PAGES);
        let platform = Arc::new(Recorder::default());
        let size = (PAGES * PAGE_SIZE) as u64;
        let facts = DomainFacts {
            domid: DomId(1),
            vcpus: 4,
            ram_pages: PAGES as u64,
            memmap: vec![
                MemmapEntry { addr: 0, size, kind: MemmapKind::Ram },
                MemmapEntry { addr: size, size: 4096, kind: MemmapKind::Reserved },
            ],
            uuid: *b"0123456789abcdef",
            cmdline: "quiet".into(),
        };
        let params = HvmParams::new((0xfeff9, 1), (0xfeff8, 2));
        let (grants, events) = (Arc::clone(&guest.domain.grants), Arc::clone(&guest.domain.events));
        let hypercalls = Hypercalls::new(facts, grants, events, params, Arc::clone(&platform) as _);
        Self { guest, platform, hypercalls, long_mode: true }
    }

    fn call(&self, nr: u64, args: &[u64]) -> i64 {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let call = Call { nr, args: all, long_mode: self.long_mode, cpl: 0, vcpu: 1 };
        self.hypercalls.dispatch(&call, &Identity).cast_signed()
    }

    /// Calls with a structure of these words of the given sizes as the last argument.
    fn call_with(&self, nr: u64, op: u64, arg: &[u8]) -> i64 {
        self.put(ARG, arg);
        self.call(nr, &[op, ARG])
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap();
        for (i, byte) in bytes.iter().enumerate() {
            self.guest.write(((at + i) / PAGE_SIZE) as u64, (at + i) % PAGE_SIZE, &[*byte]);
        }
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let at = usize::try_from(at).unwrap();
        (at..at + len).map(|i| self.guest.read((i / PAGE_SIZE) as u64, i % PAGE_SIZE, 1)[0]).collect()
    }

    fn get_u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.get(at, 4).try_into().unwrap())
    }

    fn did(&self) -> Vec<Did> {
        self.platform.did.lock().unwrap().drain(..).collect()
    }
}

fn errno(e: i32) -> i64 {
    -i64::from(e)
}

/// Little-endian bytes of fields: `bytes![u16 1, u64 2]`.
macro_rules! bytes {
    ($($t:ident $v:expr),* $(,)?) => {{
        let mut all = Vec::new();
        $(all.extend_from_slice(&$t::to_le_bytes($v));)*
        all
    }};
}

#[test]
fn unknown_calls_answer_enosys_and_are_counted() {
    let b = Bench::new();
    for nr in [0, 1, 13, 40, 63, 1 << 32, u64::MAX] {
        assert_eq!(b.call(nr, &[]), errno(libc::ENOSYS), "{nr}");
    }
    for (nr, op) in [(12, 63), (17, 99), (18, 1), (20, 2), (21, 4), (24, 99), (29, 7), (32, 11), (34, 99)] {
        assert_eq!(b.call(nr, &[op, 0, 0]), errno(libc::ENOSYS), "{nr} {op}");
    }
    let counters = b.hypercalls.counters();
    assert_eq!((counters["unknown"], counters["total"]), (16, 16));
    // It exists, and there is nothing to be done.
    assert_eq!(b.call(34, &[9]), errno(libc::ENOSYS));
    assert_eq!(b.hypercalls.counters()["unknown"], 16);
}

#[test]
fn user_mode_may_not_call() {
    let b = Bench::new();
    let call = Call { nr: 29, args: [2, ARG, 0, 0, 0, 0], long_mode: true, cpl: 3, vcpu: 0 };
    assert_eq!(b.hypercalls.dispatch(&call, &Identity).cast_signed(), errno(libc::EPERM));
    assert_eq!(b.did(), []);
}

#[test]
fn arguments_outside_mapped_memory_are_efault() {
    let b = Bench::new();
    let past_ram = (PAGES * PAGE_SIZE) as u64 - 2;
    for at in [UNMAPPED, UNMAPPED - 2, past_ram, u64::MAX, u64::MAX - 3] {
        for (nr, op) in [(12, 7), (12, 9), (17, 6), (29, 2), (32, 0), (32, 6), (34, 0), (34, 23)] {
            assert_eq!(b.call(nr, &[op, at]), errno(libc::EFAULT), "{nr} {op} at {at:#x}");
        }
    }
    assert_eq!(b.did(), []);
}

#[test]
fn shared_info_and_grant_frames_are_placed() {
    let b = Bench::new();
    assert_eq!(b.call_with(12, 7, &bytes![u16 SELF, u16 0, u32 0, u64 0, u64 5]), 0);
    assert_eq!(b.call_with(12, 7, &bytes![u16 SELF, u16 0, u32 1, u64 3, u64 0x12345]), 0);
    assert_eq!(
        b.did(),
        [
            Did::LongMode(true),
            Did::Overlay(OverlayPage::SharedInfo, Gfn(5)),
            Did::Overlay(OverlayPage::GrantFrame(3), Gfn(0x12345)),
        ]
    );
    assert_eq!(b.guest.domain.grants.nr_frames(), 4);
}

#[test]
fn the_32_bit_layout_of_add_to_physmap_is_read_from_32_bit_callers() {
    let mut b = Bench::new();
    b.long_mode = false;
    assert_eq!(b.call_with(12, 7, &bytes![u16 SELF, u16 0, u32 0, u32 0, u32 7]), 0);
    assert_eq!(b.did(), [Did::LongMode(false), Did::Overlay(OverlayPage::SharedInfo, Gfn(7))]);
}

#[test]
fn impossible_overlays_are_refused() {
    let b = Bench::new();
    for (arg, error) in [
        (bytes![u16 OTHER, u16 0, u32 0, u64 0, u64 5], libc::EPERM),
        (bytes![u16 SELF, u16 0, u32 0, u64 1, u64 5], libc::EINVAL),
        (bytes![u16 SELF, u16 0, u32 2, u64 0, u64 5], libc::EINVAL),
        (bytes![u16 SELF, u16 0, u32 1, u64 64, u64 5], libc::EINVAL),
        (bytes![u16 SELF, u16 0, u32 1, u64 u64::MAX, u64 5], libc::EINVAL),
        (bytes![u16 SELF, u16 0, u32 0, u64 0, u64 1 << 40], libc::EINVAL),
        (bytes![u16 SELF, u16 0, u32 0, u64 0, u64 u64::MAX], libc::EINVAL),
    ] {
        assert_eq!(b.call_with(12, 7, &arg), errno(error), "{arg:?}");
    }
    assert_eq!(b.did(), []);
}

#[test]
fn the_memory_map_is_told_as_far_as_there_is_room() {
    let b = Bench::new();
    let buffer = 0x4000;
    assert_eq!(b.call_with(12, 9, &bytes![u32 1, u32 0, u64 buffer]), 0);
    assert_eq!(b.get_u32(ARG), 1);
    assert_eq!(
        b.get(buffer, 24),
        [bytes![u64 0, u64 (PAGES * PAGE_SIZE) as u64, u32 1], vec![0; 4]].concat()
    );
    assert_eq!(b.call_with(12, 9, &bytes![u32 u32::MAX, u32 0, u64 buffer]), 0);
    assert_eq!(b.get_u32(ARG), 2);
    assert_eq!(b.get_u32(buffer + 36), 2, "the type of the second entry");
}

#[test]
fn the_balloon_gives_back_ram_and_stops_at_what_is_none() {
    let b = Bench::new();
    b.put(0x4000, &bytes![u64 4, u64 5, u64 99, u64 6]);
    let reservation = bytes![u64 0x4000, u64 4, u32 0, u32 0, u16 SELF, u16 0, u32 0];
    assert_eq!(b.call_with(12, 1, &reservation), 2);
    assert_eq!(b.call_with(12, 6, &reservation), 2);
    let huge = bytes![u64 0x4000, u64 u64::MAX, u32 9, u32 0, u16 SELF, u16 0, u32 0];
    assert_eq!(b.call_with(12, 1, &huge), errno(libc::EINVAL));
    let foreign = bytes![u64 0x4000, u64 4, u32 0, u32 0, u16 OTHER, u16 0, u32 0];
    assert_eq!(b.call_with(12, 6, &foreign), errno(libc::EPERM));
}

#[test]
fn the_balloon_takes_the_32_bit_layout() {
    let mut b = Bench::new();
    b.long_mode = false;
    b.put(0x4000, &bytes![u32 4, u32 5, u32 99, u32 6]);
    let reservation = bytes![u32 0x4000, u32 4, u32 0, u32 0, u16 SELF, u16 0];
    assert_eq!((b.call_with(12, 1, &reservation), b.call_with(12, 6, &reservation)), (2, 2));
    let foreign = bytes![u32 0x4000, u32 4, u32 0, u32 0, u16 OTHER, u16 0];
    assert_eq!(b.call_with(12, 1, &foreign), errno(libc::EPERM));
}

#[test]
fn a_balloon_call_does_a_bounded_piece() {
    let b = Bench::new();
    // All extents are frame 0: RAM.
    let endless = bytes![u64 0x4000, u64 u64::MAX, u32 0, u32 0, u16 SELF, u16 0, u32 0];
    assert_eq!(b.call_with(12, 1, &endless), 512);
    assert_eq!(b.call_with(12, 6, &endless), 512);
}

#[test]
fn versions_and_features_are_told() {
    let b = Bench::new();
    assert_eq!(b.call(17, &[0, 0]), 0x4_0011);
    assert_eq!(b.call(17, &[7, 0]), 4096);
    assert_eq!(b.call_with(17, 6, &bytes![u32 0, u32 0]), 0);
    // No PIRQs (bit 10): the guest uses no physdev_op then.
    assert_eq!(b.get_u32(ARG + 4), 0b11_0000_1111);
    assert_eq!(b.call_with(17, 6, &bytes![u32 1, u32 7]), 0);
    assert_eq!(b.get_u32(ARG + 4), 0);
    assert_eq!(b.call(17, &[8, ARG]), 0);
    assert_eq!(b.get(ARG, 16), b"0123456789abcdef");
    for (op, len) in [(1, 16), (2, 144), (3, 1024), (4, 64), (9, 1024)] {
        b.put(ARG, &vec![0xaa; len + 1]);
        assert_eq!(b.call(17, &[op, ARG]), 0);
        let text = b.get(ARG, len + 1);
        assert!(text[..len].contains(&0), "{op} is not terminated");
        assert_eq!(text[len], 0xaa, "{op} writes past its end");
    }
}

#[test]
fn rings_are_found_by_parameters_that_the_guest_cannot_change() {
    let b = Bench::new();
    for (index, value) in [(1, 0xfeff9), (2, 1), (17, 0xfeff8), (18, 2)] {
        assert_eq!(b.call_with(34, 1, &bytes![u16 SELF, u16 0, u32 index, u64 0]), 0);
        assert_eq!(b.get(ARG + 8, 8), u64::to_le_bytes(value));
        assert_eq!(b.call_with(34, 0, &bytes![u16 SELF, u16 0, u32 index, u64 9]), errno(libc::EPERM));
    }
    assert_eq!(b.call_with(34, 1, &bytes![u16 SELF, u16 0, u32 39, u64 0]), errno(libc::EINVAL));
    assert_eq!(b.call_with(34, 0, &bytes![u16 SELF, u16 0, u32 u32::MAX, u64 0]), errno(libc::EINVAL));
    assert_eq!(b.call_with(34, 1, &bytes![u16 OTHER, u16 0, u32 1, u64 0]), errno(libc::EPERM));
}

#[test]
fn the_callback_is_a_vector_or_a_pin() {
    let b = Bench::new();
    let set = |value: u64| b.call_with(34, 0, &bytes![u16 SELF, u16 0, u32 0, u64 value]);
    let pci = |device, pin| Callback::Pin(CallbackPin::Pci { device, pin });
    let table = [
        (2 << 56 | 0xf3, Callback::Vector(0xf3)),
        (2 << 56 | 0x10, Callback::Vector(0x10)),
        (2 << 56, Callback::None),
        (0, Callback::None),
        (1, Callback::Pin(CallbackPin::Gsi(1))),
        (23, Callback::Pin(CallbackPin::Gsi(23))),
        // Domain, bus and function play no part.
        (1 << 56 | 3 << 11, pci(3, 0)),
        (1 << 56 | 7 << 32 | 2 << 16 | 31 << 11 | 5 << 8 | 3, pci(31, 3)),
        (3 << 56 | 0xf3, Callback::None),
    ];
    for (value, expected) in table {
        assert_eq!(set(value), 0, "{value:#x}");
        assert_eq!(b.did(), [Did::LongMode(true), Did::Callback(expected)], "{value:#x}");
        assert_eq!(b.call_with(34, 1, &bytes![u16 SELF, u16 0, u32 0, u64 9]), 0);
        assert_eq!(b.get(ARG + 8, 8), u64::to_le_bytes(value));
    }
    for value in [2 << 56 | 8, 24, 255] {
        assert_eq!(set(value), errno(libc::EINVAL), "{value:#x}");
    }
}

#[test]
fn nobody_need_tell_that_page_tables_die() {
    let b = Bench::new();
    assert_eq!(b.call_with(34, 9, &bytes![u16 SELF, u16 0, u32 0, u64 0]), errno(libc::ENOSYS));
    assert_eq!(b.hypercalls.counters()["unknown"], 0);
}

#[test]
fn upcall_vectors_are_per_vcpu_and_no_exceptions() {
    let b = Bench::new();
    assert_eq!(b.call_with(34, 23, &bytes![u32 3, u8 0xf3, u8 0, u16 0]), 0);
    assert_eq!(b.call_with(34, 23, &bytes![u32 3, u8 0xf, u8 0, u16 0]), errno(libc::EINVAL));
    assert_eq!(b.call_with(34, 23, &bytes![u32 4, u8 0xf3, u8 0, u16 0]), errno(libc::ENOENT));
    assert_eq!(b.did(), [Did::Vcpu(3, VcpuSetting::UpcallVector(0xf3))]);
}

#[test]
fn vcpu_info_is_registered_once_in_ram() {
    let b = Bench::new();
    let register = |vcpu: u64, frame: u64, offset: u32| {
        b.put(ARG, &bytes![u64 frame, u32 offset, u32 0]);
        b.call(24, &[10, vcpu, ARG])
    };
    assert_eq!(register(2, 4, 4096 - 63), errno(libc::EINVAL));
    assert_eq!(register(2, 4, u32::MAX), errno(libc::EINVAL));
    assert_eq!(register(2, 4, 4), errno(libc::EINVAL));
    assert_eq!(register(2, 99, 0), errno(libc::EINVAL));
    assert_eq!(register(2, u64::MAX, 0), errno(libc::EINVAL));
    assert_eq!(register(4, 4, 0), errno(libc::ENOENT));
    assert_eq!(register(u64::MAX, 4, 0), errno(libc::ENOENT));
    assert_eq!(register(2, 4, 4032), 0);
    assert_eq!(register(2, 4, 0), errno(libc::EINVAL));
    assert_eq!(b.did(), [Did::Vcpu(2, VcpuSetting::Info(4 * 4096 + 4032))]);
}

#[test]
fn timers_are_set_stopped_and_refused_when_they_should_lie_ahead() {
    let b = Bench::new();
    b.platform.now.store(1000, SeqCst);
    let set = |deadline: u64, flags: u32| {
        b.put(ARG, &bytes![u64 deadline, u32 flags]);
        b.call(24, &[8, 1, ARG])
    };
    assert_eq!(set(5000, 0), 0);
    assert_eq!(set(999, 1), errno(libc::ETIME));
    // Long past: at once. 0 would switch the timer off.
    assert_eq!(set(0, 0), 0);
    assert_eq!(b.call(24, &[9, 1, 0]), 0);
    assert_eq!(b.call(24, &[7, 1, 0]), 0);
    assert_eq!(b.call(15, &[7000]), 0);
    let timer = |deadline| Did::Vcpu(1, VcpuSetting::Timer(deadline));
    assert_eq!(b.did(), [timer(5000), timer(1), timer(0), timer(7000)]);
}

#[test]
fn areas_are_translated_and_a_time_area_may_not_cross_a_page() {
    let b = Bench::new();
    let register = |op: u64, area: u64| {
        b.put(ARG, &bytes![u64 area]);
        b.call(24, &[op, 0, ARG])
    };
    assert_eq!(register(5, 0x5000), 0);
    assert_eq!(register(13, 0x5100), 0);
    assert_eq!(register(13, 0), 0);
    assert_eq!(register(13, 0x5ff0), errno(libc::EINVAL));
    assert_eq!(register(5, UNMAPPED), errno(libc::EFAULT));
    assert_eq!(register(5, 0x10_0000), errno(libc::EFAULT));
    assert_eq!(
        b.did(),
        [
            Did::Vcpu(0, VcpuSetting::Runstate(0x5000)),
            Did::Vcpu(0, VcpuSetting::TimeArea(Some(0x5100))),
            Did::Vcpu(0, VcpuSetting::TimeArea(None)),
        ]
    );
}

#[test]
fn all_shutdown_reasons_stop_the_domain() {
    let b = Bench::new();
    for reason in 0..6 {
        assert_eq!(b.call_with(29, 2, &bytes![u32 reason]), 0);
    }
    assert_eq!(b.call_with(29, 2, &bytes![u32 6]), errno(libc::EINVAL));
    use StopReason::*;
    let reasons = [PowerOff, Reboot, Suspend, Crash, Watchdog, SoftReset];
    assert_eq!(b.did(), reasons.map(Did::Stop));
}

#[test]
fn poll_returns_at_once_for_a_pending_port_and_soon_for_others() {
    let b = Bench::new();
    b.put(0x4000, &bytes![u32 5]);
    assert_eq!(b.call_with(29, 3, &bytes![u64 0x4000, u32 1, u32 0, u64 0]), 0);
    assert_eq!(b.call_with(29, 3, &bytes![u64 0x4000, u32 129, u32 0, u64 0]), errno(libc::EINVAL));
    assert_eq!(b.call_with(29, 3, &bytes![u64 UNMAPPED, u32 1, u32 0, u64 0]), errno(libc::EFAULT));
}

#[test]
fn event_channels_are_bound_sent_and_closed() {
    let b = Bench::new();
    assert_eq!(b.call_with(32, 6, &bytes![u16 SELF, u16 0, u32 0]), 0);
    let port = b.get_u32(ARG + 4);
    let channel = b.guest.domain.events.bind_backend(Port(port)).unwrap();
    assert_eq!(b.call_with(32, 4, &bytes![u32 port]), 0);
    assert_eq!(channel.event().read().unwrap(), 1);
    assert_eq!(b.call_with(32, 5, &bytes![u16 SELF, u16 0, u32 port, u32 9, u32 9, u32 9, u32 9]), 0);
    assert_eq!(b.get(ARG + 8, 16), bytes![u32 2, u32 0, u32 0, u32 port]);
    assert_eq!(b.call_with(32, 7, &bytes![u32 2, u32 0]), 0);
    assert_eq!(b.get_u32(ARG + 4), port + 1);
    assert_eq!(b.call_with(32, 1, &bytes![u32 0, u32 3, u32 0]), 0);
    assert_eq!(b.get_u32(ARG + 8), port + 2);
    assert_eq!(b.call_with(32, 8, &bytes![u32 port, u32 3]), 0);
    assert_eq!(b.call_with(32, 9, &bytes![u32 port]), 0);
    assert_eq!(b.call_with(32, 3, &bytes![u32 port]), 0);
    assert_eq!(b.call_with(32, 3, &bytes![u32 port]), errno(libc::EINVAL));
    assert_eq!(b.call_with(32, 10, &bytes![u16 OTHER]), errno(libc::EPERM));
    assert_eq!(b.call_with(32, 10, &bytes![u16 SELF]), 0);
    assert_eq!(b.hypercalls.counters()["event_channel_op.send"], 1);
}

#[test]
fn other_domains_can_neither_be_bound_nor_mapped() {
    let b = Bench::new();
    assert_eq!(b.call_with(32, 0, &bytes![u16 OTHER, u16 0, u32 1, u32 0]), errno(libc::ESRCH));
    assert_eq!(b.call_with(32, 6, &bytes![u16 SELF, u16 OTHER, u32 0]), errno(libc::ESRCH));
    const BAD_DOMAIN: [u8; 2] = i16::to_le_bytes(-2);
    // map, unmap, copy: size and place of the status.
    for (op, size, status) in [(0, 32, 18), (1, 24, 20), (5, 40, 36)] {
        b.put(0x4000, &[0; 128]);
        assert_eq!(b.call(20, &[op, 0x4000, 2]), 0);
        for element in 0..2 {
            assert_eq!(b.get(0x4000 + element * size + status, 2), BAD_DOMAIN, "operation {op}");
        }
        assert_eq!(b.call(20, &[op, 0x4000, 1025]), errno(libc::E2BIG));
    }
}

#[test]
fn grant_tables_have_version_1_and_a_size() {
    let b = Bench::new();
    b.put(ARG, &bytes![u16 SELF, u16 0, u32 9, u32 9, u32 9]);
    assert_eq!(b.call(20, &[6, ARG, 1]), 0);
    assert_eq!(b.get(ARG + 4, 10), bytes![u32 1, u32 64, u16 0]);
    b.put(ARG, &bytes![u16 OTHER]);
    assert_eq!(b.call(20, &[6, ARG, 1]), 0);
    assert_eq!(b.get(ARG + 12, 2), i16::to_le_bytes(-2));
    b.put(ARG, &bytes![u32 2]);
    assert_eq!(b.call(20, &[8, ARG, 1]), errno(libc::ENOSYS));
    b.put(ARG, &bytes![u32 1]);
    assert_eq!(b.call(20, &[8, ARG, 1]), 0);
}

#[test]
fn early_output_is_passed_on_in_bounded_pieces() {
    let b = Bench::new();
    b.put(ARG, b"hello");
    assert_eq!(b.call(18, &[0, 5, ARG]), 0);
    assert_eq!(b.call(18, &[0, u64::MAX, 0]), 0);
    let did = b.did();
    assert_eq!(did[0], Did::Output(b"hello".to_vec()));
    assert!(matches!(&did[1], Did::Output(text) if text.len() == 4096));
}

#[test]
fn assists_are_the_runstate_flag_only() {
    let b = Bench::new();
    assert_eq!(b.call(21, &[0, 5]), 0);
    assert_eq!(b.call(21, &[1, 5]), 0);
    assert_eq!(b.call(21, &[0, 0]), errno(libc::ENOSYS));
    assert_eq!(b.did(), [Did::RunstateFlag(true), Did::RunstateFlag(false)]);
}
