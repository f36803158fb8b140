//! A frontend's half of the Xen devices: guest RAM, grants and event channels without a guest, for tests and
//! fuzz targets.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, missing_docs, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::memory::{GuestRam, PAGE_SIZE, SharedPages};
use crate::xen::event_channel::{EventChannels, EventDelivery, SendTarget};
use crate::xen::grant_table::GrantTable;
use crate::xen::types::{DomId, GrantRef, Port};
use crate::xen::xenbus::{DomainHandle, FrontendKeys, Store};

/// Lines that `f` writes to the log, on this thread.
pub fn log_lines(f: impl FnOnce()) -> u32 {
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), f);
    lines.0.load(SeqCst)
}

/// Lines that the process writes to the log while `f` runs, on whichever thread: once in a process.
pub fn log_lines_of_all_threads(f: impl FnOnce()) -> u32 {
    let lines = Lines::default();
    tracing::subscriber::set_global_default(lines.clone()).unwrap();
    f();
    lines.0.load(SeqCst)
}

#[derive(Clone, Default)]
struct Lines(Arc<AtomicU32>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, SeqCst);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
/// Records what a real accelerator would deliver.
#[derive(Debug, Default)]
pub struct RecordedDelivery {
    pub raised: Mutex<Vec<(Port, u32)>>,
    pub raise_count: AtomicU64,
    /// Told of each raise.
    pub woken: Condvar,
    pub assigned: Mutex<Vec<(Port, SendTarget)>>,
    /// Port, vCPU and eventfd, if they are offered.
    pub notifiers: Mutex<Vec<(Port, u32, EventFd)>>,
    offers_notifiers: AtomicBool,
}

impl RecordedDelivery {
    /// From now on backends can have eventfds to notify the guest by: whoever plays the guest reads them.
    pub fn offer_notifiers(&self) {
        self.offers_notifiers.store(true, SeqCst);
    }
}

impl EventDelivery for RecordedDelivery {
    fn raise(&self, port: Port, vcpu: u32) {
        let mut raised = self.raised.lock().unwrap();
        raised.push((port, vcpu));
        self.raise_count.fetch_add(1, SeqCst);
        drop(raised);
        self.woken.notify_all();
    }
    fn assign_send(&self, port: Port, target: SendTarget) -> io::Result<()> {
        let mut assigned = self.assigned.lock().unwrap();
        assigned.retain(|(p, _)| *p != port);
        assigned.push((port, target));
        Ok(())
    }
    fn deassign_send(&self, port: Port) {
        self.assigned.lock().unwrap().retain(|(p, _)| *p != port);
    }
    fn bind_notifier(&self, port: Port, vcpu: u32, event: &EventFd) -> io::Result<bool> {
        let offered = self.offers_notifiers.load(SeqCst);
        if offered {
            self.unbind_notifier(port, event);
            self.notifiers.lock().unwrap().push((port, vcpu, event.try_clone()?));
        }
        Ok(offered)
    }
    fn unbind_notifier(&self, port: Port, _event: &EventFd) {
        self.notifiers.lock().unwrap().retain(|(bound, ..)| *bound != port);
    }
    fn set_timer_port(&self, _vcpu: u32, _port: Option<Port>) -> io::Result<()> {
        Ok(())
    }
}

const HUGE_PAGE: usize = 2 << 20;

/// A guest of a few pages that a test plays the frontend of.
#[derive(Debug)]
pub struct FakeGuest {
    pub ram: Arc<GuestRam>,
    pub domain: DomainHandle,
    pub delivery: Arc<RecordedDelivery>,
    pub keys: std::collections::BTreeMap<String, String>,
    next_page: u64,
    next_gref: u32,
}

impl FakeGuest {
    /// A guest of `pages` pages of RAM from address 0.
    pub fn new(pages: usize) -> Self {
        let ram: GuestRam = GuestRam::from_ranges(&[(GuestAddress(0), pages * PAGE_SIZE)]).unwrap();
        let ram = Arc::new(ram);
        let delivery = Arc::new(RecordedDelivery::default());
        let shared_info = Arc::new(SharedPages::new("shared_info", 1).unwrap());
        let events =
            EventChannels::new(DomId(1), 4, shared_info, Arc::clone(&delivery) as Arc<dyn EventDelivery>);
        let domain = DomainHandle {
            grants: Arc::new(GrantTable::new(Arc::clone(&ram)).unwrap()),
            events: Arc::new(events),
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        };
        Self { ram, domain, delivery, keys: Default::default(), next_page: 1, next_gref: 8 }
    }

    /// A guest whose RAM is in huge pages where the host has them, as xvmm's is: what benchmarks play with.
    pub fn with_huge_pages(pages: usize) -> Self {
        // No page of it shall be outside of a huge one.
        let guest = Self::new(pages.next_multiple_of(HUGE_PAGE / PAGE_SIZE));
        let ram = guest.ram.iter().next().unwrap();
        // SAFETY: advice for a mapping.
        unsafe { libc::madvise(ram.as_ptr().cast(), ram.size(), libc::MADV_HUGEPAGE) };
        guest
    }

    /// Takes an unused page of RAM: its frame number.
    pub fn alloc_page(&mut self) -> u64 {
        self.next_page += 1;
        self.next_page - 1
    }

    /// Grants `frame` to domain 0.
    pub fn grant(&mut self, frame: u64, readonly: bool) -> GrantRef {
        let gref = GrantRef(self.next_gref);
        self.next_gref += 1;
        self.set_grant(gref, if readonly { 1 | 4 } else { 1 }, 0, frame);
        gref
    }

    /// Writes a raw grant entry.
    pub fn set_grant(&self, gref: GrantRef, flags: u16, domid: u16, frame: u64) {
        let _ = self.domain.grants.grow_to(gref.0 / 512);
        let entry = u64::from(flags) | u64::from(domid) << 16 | frame << 32;
        self.domain.grants.frames().u64_at(gref.0 as usize * 8).unwrap().store(entry, SeqCst);
    }

    /// Flags of a grant entry.
    pub fn grant_flags(&self, gref: GrantRef) -> u16 {
        self.domain.grants.frames().u16_at(gref.0 as usize * 8).unwrap().load(SeqCst)
    }

    /// A new page granted writably: frame and reference.
    pub fn granted_page(&mut self) -> (u64, GrantRef) {
        let frame = self.alloc_page();
        (frame, self.grant(frame, false))
    }

    pub fn write(&self, frame: u64, offset: usize, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(frame * PAGE_SIZE as u64 + offset as u64)).unwrap();
    }

    pub fn read(&self, frame: u64, offset: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read_slice(&mut data, GuestAddress(frame * PAGE_SIZE as u64 + offset as u64)).unwrap();
        data
    }

    pub fn read_u32(&self, frame: u64, offset: usize) -> u32 {
        u32::from_le_bytes(self.read(frame, offset, 4).try_into().unwrap())
    }

    /// A port that waits for domain 0.
    pub fn alloc_port(&self) -> Port {
        self.domain.events.alloc_unbound(DomId::SELF, DomId::DOM0).unwrap()
    }

    /// What EVTCHNOP_send does.
    pub fn send(&self, port: Port) {
        self.domain.events.send(port).unwrap();
    }

    pub fn raises(&self) -> u64 {
        self.delivery.raise_count.load(SeqCst)
    }

    /// Sleeps until the backend has notified more than `before` times.
    pub fn wait_raised(&self, before: u64) {
        let raised = self.delivery.raised.lock().unwrap();
        let waits = |_: &mut _| self.raises() <= before;
        let limit = Duration::from_secs(30);
        let (_raised, waited) = self.delivery.woken.wait_timeout_while(raised, limit, waits).unwrap();
        assert!(!waited.timed_out(), "the backend did not notify");
    }

    pub fn set_key(&mut self, key: &str, value: impl ToString) {
        self.keys.insert(key.to_owned(), value.to_string());
    }
}

impl FrontendKeys for FakeGuest {
    fn read(&self, key: &str) -> Option<String> {
        self.keys.get(key).cloned()
    }
}

/// A ring as a frontend uses it, without its checks: `req_prod` may be set to anything.
#[derive(Debug)]
pub struct FrontRing {
    pub frames: Vec<u64>,
    pub refs: Vec<GrantRef>,
    pub entry_size: usize,
    pub req_prod: u32,
    pub rsp_cons: u32,
}

impl FrontRing {
    pub fn new(guest: &mut FakeGuest, pages: usize, entry_size: usize) -> Self {
        let (frames, refs): (Vec<_>, Vec<_>) = (0..pages).map(|_| guest.granted_page()).unzip();
        guest.write(frames[0], 4, &1u32.to_le_bytes());
        guest.write(frames[0], 12, &1u32.to_le_bytes());
        Self { frames, refs, entry_size, req_prod: 0, rsp_cons: 0 }
    }

    pub fn nr_entries(&self) -> u32 {
        1 << ((self.frames.len() * PAGE_SIZE - 64) / self.entry_size).ilog2()
    }

    /// Writes a request into the next slot, without publishing it.
    pub fn put(&mut self, guest: &FakeGuest, request: &[u8]) {
        let start = 64 + (self.req_prod % self.nr_entries()) as usize * self.entry_size;
        // An entry may cross from one page into the next.
        let (first, rest) = request.split_at(request.len().min(PAGE_SIZE - start % PAGE_SIZE));
        guest.write(self.frames[start / PAGE_SIZE], start % PAGE_SIZE, first);
        if !rest.is_empty() {
            guest.write(self.frames[start / PAGE_SIZE + 1], 0, rest);
        }
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Publishes; true: the backend asked for an event.
    pub fn publish(&self, guest: &FakeGuest) -> bool {
        let old = guest.read_u32(self.frames[0], 0);
        guest.write(self.frames[0], 0, &self.req_prod.to_le_bytes());
        fence(SeqCst);
        let event = guest.read_u32(self.frames[0], 4);
        self.req_prod.wrapping_sub(event) < self.req_prod.wrapping_sub(old)
    }

    pub fn rsp_prod(&self, guest: &FakeGuest) -> u32 {
        guest.read_u32(self.frames[0], 8)
    }

    /// Takes the next response of `len` bytes, if there is one.
    pub fn take(&mut self, guest: &FakeGuest, len: usize) -> Option<Vec<u8>> {
        if self.rsp_cons == self.rsp_prod(guest) {
            return None;
        }
        let start = 64 + (self.rsp_cons % self.nr_entries()) as usize * self.entry_size;
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        // As a driver does that wants an event for the next response.
        guest.write(self.frames[0], 12, &self.rsp_cons.wrapping_add(1).to_le_bytes());
        fence(SeqCst);
        let first = len.min(PAGE_SIZE - start % PAGE_SIZE);
        let mut response = guest.read(self.frames[start / PAGE_SIZE], start % PAGE_SIZE, first);
        if first < len {
            response.extend(guest.read(self.frames[start / PAGE_SIZE + 1], 0, len - first));
        }
        Some(response)
    }
}

/// xenstore without permissions: value by path.
#[derive(Debug, Default)]
pub struct MemoryStore(pub BTreeMap<String, String>);

impl Store for MemoryStore {
    fn read(&self, path: &str) -> Option<String> {
        self.0.get(path).cloned()
    }
    fn write(&mut self, path: &str, value: &str) {
        self.0.insert(path.into(), value.into());
    }
    fn remove(&mut self, path: &str) {
        self.0.retain(|key, _| key != path && !key.starts_with(&format!("{path}/")));
    }
    fn make_directory(&mut self, _: &str, _: DomId, _: DomId) {}
}
