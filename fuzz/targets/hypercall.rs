//! Hypercalls of a hostile guest over a machine without KVM.
//!
//! Input: a byte of settings, then operations: bytes written to guest memory, or a call, see the match below.

#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use devices::testing::FakeGuest;
use devices::xen::{DomId, Gfn};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use xvmm::boot::{MemmapEntry, MemmapKind};
use xvmm::hypercall::{
    Call, Callback, CallbackPin, DomainFacts, Errno, HvmParams, Hypercalls, OverlayPage, Platform,
    StopReason, Translate, VcpuSetting,
};
use xvmm_fuzz::Input;

const PAGES: u64 = 16;
const RAM: u64 = PAGES << 12;
/// Identity-mapped, but not RAM.
const MAPPED: u64 = 2 * RAM;
/// A page of RAM that the guest did not map.
const UNMAPPED_PAGE: u64 = 7;
const VCPUS: u32 = 4;
/// Numbers that are served, and a few that are not.
const NUMBERS: [u64; 16] = [12, 15, 17, 18, 20, 21, 24, 29, 32, 34, 12, 32, 24, 0, 55, u64::MAX];

struct Identity;

impl Translate for Identity {
    fn translate(&self, gva: u64) -> Option<u64> {
        (gva < MAPPED && gva >> 12 != UNMAPPED_PAGE).then_some(gva)
    }
}

/// A machine that keeps to what the trait promises, and checks what it is promised.
#[derive(Default)]
struct Machine {
    overlays: Mutex<BTreeMap<u64, OverlayPage>>,
}

impl Platform for Machine {
    fn overlay(&self, page: OverlayPage, gfn: Gfn) -> Result<(), Errno> {
        assert!(gfn.gpa().is_some_and(|gpa| gpa < 1 << 52), "{gfn:?}");
        assert!(!matches!(page, OverlayPage::GrantFrame(64..)), "{page:?}");
        let mut overlays = self.overlays.lock().expect("no panic before");
        if overlays.contains_key(&gfn.0) {
            return Err(Errno(libc::EINVAL));
        }
        overlays.retain(|_, shown| *shown != page);
        overlays.insert(gfn.0, page);
        Ok(())
    }
    fn remove_overlay(&self, gfn: Gfn) -> Result<bool, Errno> {
        Ok(self.overlays.lock().expect("no panic before").remove(&gfn.0).is_some())
    }
    fn discard(&self, gfn: Gfn) -> bool {
        gfn.0 < PAGES
    }
    fn set_long_mode(&self, _on: bool) {}
    fn set_callback(&self, callback: Callback) -> Result<(), Errno> {
        match callback {
            Callback::None => {}
            Callback::Vector(vector) => assert!(vector >= 16, "{vector}"),
            Callback::Pin(CallbackPin::Gsi(gsi)) => assert!(gsi > 0 && gsi < 24, "{gsi}"),
            Callback::Pin(CallbackPin::Pci { device, pin }) => assert!(device < 32 && pin < 4),
        }
        Ok(())
    }
    fn set_runstate_update_flag(&self, _on: bool) -> Result<(), Errno> {
        Ok(())
    }
    fn set_vcpu(&self, id: u32, setting: VcpuSetting) -> Result<(), Errno> {
        assert!(id < VCPUS, "{id}");
        match setting {
            VcpuSetting::Info(gpa) => assert!(gpa % 4096 <= 4096 - 64 && gpa < RAM, "{gpa:#x}"),
            VcpuSetting::TimeArea(Some(gpa)) => assert!(gpa % 4096 <= 4096 - 32 && gpa < RAM, "{gpa:#x}"),
            VcpuSetting::Runstate(gpa) => assert!(gpa < RAM, "{gpa:#x}"),
            VcpuSetting::UpcallVector(vector) => assert!(vector >= 16, "{vector}"),
            VcpuSetting::TimeArea(None) | VcpuSetting::Timer(_) | VcpuSetting::Block => {}
        }
        Ok(())
    }
    fn now_ns(&self) -> u64 {
        1 << 40
    }
    fn stop(&self, _reason: StopReason) {}
    fn early_output(&self, text: &[u8]) {
        assert!(text.len() <= 4096, "{}", text.len());
    }
}

fuzz_target!(|data: &[u8]| {
    let guest = FakeGuest::new(PAGES as usize);
    let facts = DomainFacts {
        domid: DomId(1),
        vcpus: VCPUS,
        ram_pages: PAGES,
        memmap: vec![
            MemmapEntry { addr: 0, size: RAM, kind: MemmapKind::Ram },
            MemmapEntry { addr: 0xfc00_0000, size: 0x1000, kind: MemmapKind::Reserved },
        ],
        uuid: [7; 16],
        cmdline: "x".repeat(2047),
    };
    let events = Arc::clone(&guest.domain.events);
    // As in a domain: these two ports are the backends' before the guest runs.
    let backends = [events.open_reserved(), events.open_reserved()].map(|port| port.expect("a port"));
    let params = HvmParams::new((4, backends[0].port().0), (5, backends[1].port().0));
    let platform = Arc::new(Machine::default());
    let grants = Arc::clone(&guest.domain.grants);
    let hypercalls = Hypercalls::new(facts, grants, Arc::clone(&events), params, platform);

    let mut input = Input::new(data);
    let mut calls = 0;
    while !input.is_empty() && calls < 256 {
        let tag = input.u8();
        match tag & 3 {
            0 => {
                let at = input.number() % RAM;
                let len = u64::from(input.u8()).min(RAM - at);
                let bytes = input.bytes(len as usize);
                guest.ram.write_slice(bytes, GuestAddress(at)).expect("inside RAM");
            }
            1 => {
                let at = input.number() % (RAM - 8) & !7;
                let value = input.number();
                guest.ram.write_slice(&value.to_le_bytes(), GuestAddress(at)).expect("inside RAM");
            }
            _ => {
                let nr = NUMBERS[usize::from(tag >> 4)];
                let flags = input.u8();
                // A poll sleeps for a millisecond: a few of them tell as much as many.
                let args = std::array::from_fn(|i| if i < 3 { input.number() } else { 0 });
                if nr == 29 && args[0] == 3 && calls > 2 {
                    continue;
                }
                let call = Call {
                    nr,
                    args,
                    long_mode: flags & 1 == 0,
                    cpl: if flags & 0xc0 == 0xc0 { 3 } else { 0 },
                    vcpu: u32::from(flags >> 1) % VCPUS,
                };
                calls += 1;
                hypercalls.dispatch(&call, &Identity);
                if tag & 3 == 3 {
                    backends.iter().for_each(|backend| backend.notify());
                }
            }
        }
    }
    assert_eq!(hypercalls.counters().get("total"), Some(&calls));
});
