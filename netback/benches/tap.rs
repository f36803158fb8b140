//! netback without a guest beside a bare loop of read(2) or write(2): the same kind of tap, the same frames, in turns.
//!
//! The frontend is a thread of this program that plays a guest with one busy processor: it looks at its rings all the
//! time, and answers at once. Prints a table; see docs/benchmarks.md.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::io;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use devices::testing::FakeGuest;
use devices::xen::xenbus::BackendDevice;
use devices::xen::{GrantRef, Port};
use netback::protocol::{
    Gso, GsoKind, RX_ENTRY, RXF_EXTRA_INFO, RXF_MORE_DATA, RxRequest, RxResponse, TX_ENTRY, TXF_CSUM_BLANK,
    TXF_DATA_VALIDATED, TXF_EXTRA_INFO, TXF_MORE_DATA, TxRequest,
};
use netback::testing::{HostSide, enter_network_namespace, tcp_frame, wait};
use netback::{NetDevice, Offload, Tap, VNET_HDR, VifConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const PAGE: usize = 4096;
/// Of one measurement.
const TIME: Duration = Duration::from_millis(700);
/// Payload of a large segment: 45 times what fits a frame of the usual MTU.
const LARGE: usize = 45 * 1448;
/// Of Ethernet, IP and TCP.
const HEADERS: usize = 54;
/// Bytes of RAM of the played guest.
const RAM: usize = 8 << 20;
/// Packets of a burst, where system calls are counted.
const BURST: usize = 32;

/// What is sent.
#[derive(Clone)]
struct Load {
    name: &'static str,
    frame: Vec<u8>,
    gso: Option<Gso>,
    /// Frames that wait in the tap when a reader begins.
    waiting: usize,
    /// How a guest has them in its pages.
    layout: Layout,
    /// The tap is a port of a bridge, and they go on through another port.
    bridged: bool,
}

/// Where the bytes of packets are in the guest's RAM.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    /// As Linux has what a program sends by TCP: the headers by themselves, the payload of one packet behind that of the
    /// other in blocks of eight adjacent pages (SKB_FRAG_PAGE_ORDER), which are in no order.
    Blocks,
    /// Each page by itself, from its beginning, in no order; the headers before the payload.
    Pages,
}

/// Bytes of a packet in one page of the guest: frame number, offset, length.
type Part = (u64, usize, usize);

/// Pages of a block.
const BLOCK: usize = 8;

impl Layout {
    /// Lays out packets in pages of the guest, each followed by the next; the last is as the first one.
    fn place(self, guest: &mut FakeGuest, load: &Load, count: usize) -> Vec<Vec<Part>> {
        let pages: Vec<u64> = (0..80 * BLOCK).map(|_| guest.alloc_page()).collect();
        let first = pages[0].next_multiple_of(BLOCK as u64);
        let each = match self {
            Layout::Blocks => BLOCK as u64,
            Layout::Pages => 1,
        };
        let mut order: Vec<u64> = (0..79 * BLOCK as u64 / each).collect();
        shuffle(&mut order);
        let mut pages =
            order.into_iter().flat_map(|block| (0..each).map(move |page| first + block * each + page));
        let (headers, payload) = match self {
            Layout::Blocks => load.frame.split_at(HEADERS),
            Layout::Pages => load.frame.split_at(0),
        };
        let heads: Vec<u64> = pages.by_ref().take(count.next_multiple_of(BLOCK)).collect();
        let (mut page, mut offset) = (pages.next().unwrap(), 0);
        let packet = |head: &u64| {
            let mut parts = Vec::new();
            if !headers.is_empty() {
                guest.write(*head, 0, headers);
                parts.push((*head, 0, headers.len()));
            }
            let mut rest = payload;
            while !rest.is_empty() {
                if offset == PAGE {
                    (page, offset) = (pages.next().unwrap(), 0);
                }
                let (part, others) = rest.split_at(rest.len().min(PAGE - offset));
                guest.write(page, offset, part);
                parts.push((page, offset, part.len()));
                (rest, offset) = (others, offset + part.len());
            }
            if self == Layout::Pages {
                offset = PAGE;
            }
            parts
        };
        heads.iter().take(count).map(packet).collect()
    }
}

impl Load {
    /// Behind its header, as a tap takes and gives it.
    fn with_header(&self) -> Vec<u8> {
        let mut header = [0; VNET_HDR];
        if let Some(gso) = self.gso {
            let [a, b] = gso.size.to_le_bytes();
            // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4; headers of 54 bytes, the checksum of TCP.
            header = [1, 1, 54, 0, a, b, 34, 0, 16, 0];
        }
        [&header[..], &self.frame].concat()
    }
}

/// One measurement.
#[derive(Clone, Copy, Default)]
struct Run {
    /// Packets per second.
    rate: f64,
    /// System calls per packet.
    calls: f64,
    /// Of netback's threads, microseconds per packet.
    cpu: f64,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let rounds = words.first().map_or(5, |rounds| rounds.parse().unwrap());
    enter_network_namespace();
    let large = Load {
        name: "TCP segments of 64 KiB",
        frame: tcp_frame(false, LARGE),
        gso: Some(Gso { size: 1448, kind: GsoKind::TcpV4 }),
        waiting: 256,
        layout: Layout::Blocks,
        bridged: false,
    };
    let bridged = Load { name: "the same through a bridge", bridged: true, ..large.clone() };
    let single =
        Load { name: "TCP segments of 64 KiB in single pages", layout: Layout::Pages, ..large.clone() };
    let mut small = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    small.resize(64, 7);
    let small = Load {
        name: "packets of 64 bytes",
        frame: small,
        gso: None,
        waiting: 4000,
        layout: Layout::Pages,
        bridged: false,
    };
    println!(
        "| load | bare loop | the same in pages | netback | of the loop | of it in pages | without io_uring |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for load in [&large, &bridged, &single, &small] {
        for to_host in [true, false] {
            // A frontend posts single pages.
            if load.layout == Layout::Blocks && !to_host {
                continue;
            }
            if words
                .get(1)
                .is_some_and(|only| !format!("{}, {}", load.name, direction(to_host)).contains(only.as_str()))
            {
                continue;
            }
            let mut runs: [Vec<Run>; 4] = Default::default();
            for _ in 0..rounds {
                runs[0].push(bare(load, to_host, false));
                runs[1].push(bare(load, to_host, true));
                runs[2].push(rings(load, to_host, true));
                runs[3].push(rings(load, to_host, false));
            }
            report(load, to_host, &runs);
        }
    }
    for to_host in [true, false] {
        let [ring, calls] = [true, false].map(|io_uring| burst(&small, to_host, io_uring));
        let direction = direction(to_host);
        println!(
            "| bursts of {BURST} packets, {direction}, system calls per packet | | {ring:.3} | | {calls:.3} | |"
        );
    }
}

fn direction(to_host: bool) -> &'static str {
    if to_host { "guest to host" } else { "host to guest" }
}

fn report(load: &Load, to_host: bool, runs: &[Vec<Run>; 4]) {
    let median = |which: usize, of: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs[which].iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (unit, factor) = match load.gso {
        Some(_) => ("MiB/s", load.frame.len() as f64 / f64::from(1 << 20)),
        None => ("packets/s", 1.0),
    };
    let [bare, pages, ring, calls] = [0, 1, 2, 3].map(|which| median(which, |run| run.rate) * factor);
    println!(
        "| {}, {}, {unit} | {bare:.0} | {pages:.0} | {ring:.0} | {:.2} | {:.2} | {calls:.0} |",
        load.name,
        direction(to_host),
        ring / bare,
        ring / pages
    );
    let [bare, pages, ring, calls] = [0, 1, 2, 3].map(|which| median(which, |run| run.cpu));
    println!(
        "| CPU time per packet, µs | {bare:.2} | {pages:.2} | {ring:.2} | {:.2} | {:.2} | {calls:.2} |",
        ring / bare,
        ring / pages
    );
    let [ring, calls] = [2, 3].map(|which| median(which, |run| run.calls));
    println!("| system calls per packet | 1 | 1 | {ring:.3} | | | {calls:.3} |");
}

/// A tap that is ready, and its other side. Frames of the guest end in the host's stack, which has no use for them, at
/// once or at the far end of a pair of interfaces behind a bridge.
fn tap(name: &str, load: &Load) -> (Tap, HostSide) {
    let tap = Tap::create(name, 1).unwrap();
    tap.set_offload(Offload { csum: true, tso4: true, tso6: true }).unwrap();
    tap.set_carrier(true).unwrap();
    let host = HostSide::up(name, 1500);
    host.set_queue_len(4096);
    let make = |words: &str| {
        let ip = std::process::Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(ip.success(), "ip {words}");
    };
    if load.bridged {
        // What is there is of the round before.
        let _ = std::process::Command::new("ip")
            .args(["link", "delete", "bridge"])
            .stderr(Stdio::null())
            .status();
        let _ =
            std::process::Command::new("ip").args(["link", "delete", "near"]).stderr(Stdio::null()).status();
        make("link add bridge up type bridge forward_delay 0 mcast_snooping 0");
        make("link add near type veth peer name far");
        make("link set far up");
        make("link set near up master bridge");
        make(&format!("link set {name} master bridge"));
    }
    (tap, host)
}

/// Puts frames into the tap.
fn fill(host: &HostSide, load: &Load, count: usize) {
    let frames = vec![load.with_header(); 64];
    let mut sent = 0;
    while sent < count {
        sent += host.send_many(&frames[..64.min(count - sent)]).unwrap();
    }
}

/// Packets behind their headers: each in one piece that begins with a page, or where a guest has them.
struct Memory {
    _guest: FakeGuest,
    packets: Vec<Vec<libc::iovec>>,
}

// SAFETY: the vectors name the RAM, which goes with them.
unsafe impl Send for Memory {}

impl Memory {
    fn new(load: &Load, count: usize, as_guest: bool) -> Self {
        let mut guest = FakeGuest::with_huge_pages(RAM / PAGE);
        let placed = load.layout.place(&mut guest, load, count);
        let header = load.with_header()[..VNET_HDR].to_vec();
        let ram = guest.ram.get_host_address(GuestAddress(0)).unwrap();
        let bytes =
            |start: usize, len| libc::iovec { iov_base: ram.wrapping_add(start).cast(), iov_len: len };
        let each = load.frame.len().div_ceil(PAGE) + 1;
        let free = (guest.alloc_page() as usize + BLOCK) * PAGE;
        let packet = |(number, parts): (usize, &Vec<Part>)| {
            let data = free + (number * each + 1) * PAGE;
            let start = data - VNET_HDR;
            guest.ram.write_slice(&header, GuestAddress(start as u64)).unwrap();
            if !as_guest {
                guest.ram.write_slice(&load.frame, GuestAddress(data as u64)).unwrap();
                return vec![bytes(start, VNET_HDR + load.frame.len())];
            }
            let mut list = vec![bytes(start, VNET_HDR)];
            for (frame, offset, len) in parts {
                let next = bytes(*frame as usize * PAGE + offset, *len);
                match list.last_mut() {
                    Some(last) if last.iov_base.wrapping_add(last.iov_len) == next.iov_base => {
                        last.iov_len += len;
                    }
                    _ => list.push(next),
                }
            }
            list
        };
        let packets = placed.iter().enumerate().map(packet).collect();
        Self { _guest: guest, packets }
    }

    /// One packet, by one system call; its bytes.
    fn pass(&self, fd: libc::c_int, number: usize, to_host: bool) -> isize {
        let packet = &self.packets[number % self.packets.len()];
        match (&packet[..], to_host) {
            // SAFETY: the vector names memory of ours.
            ([one], true) => unsafe { libc::write(fd, one.iov_base, one.iov_len) },
            // SAFETY: as above.
            ([one], false) => unsafe { libc::read(fd, one.iov_base, one.iov_len) },
            // SAFETY: as above.
            (list, true) => unsafe { libc::writev(fd, list.as_ptr(), list.len() as i32) },
            // SAFETY: as above.
            (list, false) => unsafe { libc::readv(fd, list.as_ptr(), list.len() as i32) },
        }
    }
}

/// The loop has a thread of its own, as netback has, and as many packets as the ring.
fn bare(load: &Load, to_host: bool, in_pages: bool) -> Run {
    let (tap, host) = tap("bare", load);
    host.notice_carrier();
    let frame = load.with_header();
    let memory = Memory::new(load, 256 / slots(load), in_pages);
    let (order, orders) = mpsc::channel::<()>();
    let (result, results) = mpsc::channel();
    let waiting = load.waiting;
    on_processor(0);
    let thread = std::thread::spawn(move || {
        let fd = tap.fd(0).unwrap();
        while orders.recv().is_ok() {
            let (begun, cpu_begun) = (Instant::now(), thread_cpu());
            for number in 0..waiting {
                let done = memory.pass(fd, number, to_host);
                assert_eq!(done, frame.len() as isize, "{}", io::Error::last_os_error());
            }
            result.send((begun.elapsed(), thread_cpu() - cpu_begun)).unwrap();
        }
    });
    on_processor(1);
    let (mut count, mut time, mut cpu) = (0u64, Duration::ZERO, 0.0);
    while time < TIME {
        if !to_host {
            fill(&host, load, load.waiting);
        }
        order.send(()).unwrap();
        // The other processor is as busy as with a guest on it: the two may share a core.
        let (took, used) = loop {
            match results.try_recv() {
                Ok(result) => break result,
                Err(_) => std::hint::spin_loop(),
            }
        };
        (count, time, cpu) = (count + load.waiting as u64, time + took, cpu + used);
    }
    drop(order);
    thread.join().unwrap();
    Run { rate: count as f64 / time.as_secs_f64(), calls: 1.0, cpu: cpu / count as f64 * 1e6 }
}

/// Slots of a packet in the ring at most.
fn slots(load: &Load) -> usize {
    let pages = match load.layout {
        Layout::Blocks => 1 + (load.frame.len() - HEADERS - 1).div_ceil(PAGE) + 1,
        Layout::Pages => load.frame.len().div_ceil(PAGE),
    };
    pages + usize::from(load.gso.is_some())
}

/// A ring of one page, as quick as a driver in a kernel is with it.
struct Ring {
    page: *mut u8,
    entry: usize,
    gref: GrantRef,
    req_prod: u32,
    rsp_cons: u32,
}

impl Ring {
    fn new(guest: &mut FakeGuest, entry: usize) -> Self {
        let (frame, gref) = guest.granted_page();
        let page = guest.ram.get_host_address(GuestAddress(frame * PAGE as u64)).unwrap();
        let ring = Self { page, entry, gref, req_prod: 0, rsp_cons: 0 };
        ring.index(4).store(1, SeqCst);
        ring.index(12).store(1, SeqCst);
        ring
    }

    /// req_prod @0, req_event @4, rsp_prod @8, rsp_event @12.
    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the guest's page stays mapped as long as the guest, which outlives the ring.
        unsafe { AtomicU32::from_ptr(self.page.add(offset).cast()) }
    }

    fn slot(&self, index: u32) -> *mut u8 {
        self.page.wrapping_add(64 + (index % 256) as usize * self.entry)
    }

    fn put<const N: usize>(&mut self, request: [u8; N]) {
        // SAFETY: a slot has room for an entry of its ring.
        unsafe { self.slot(self.req_prod).cast::<[u8; N]>().write_volatile(request) };
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// True: the backend wants an event.
    fn publish(&self) -> bool {
        let old = self.index(0).swap(self.req_prod, SeqCst);
        let event = self.index(4).load(SeqCst);
        self.req_prod.wrapping_sub(event) < self.req_prod.wrapping_sub(old)
    }

    /// Responses that there are, after asking for an event with the next one.
    fn responses(&self) -> u32 {
        let count = || self.index(8).load(Acquire).wrapping_sub(self.rsp_cons);
        if count() == 0 {
            self.index(12).store(self.rsp_cons.wrapping_add(1), SeqCst);
        }
        count()
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        // SAFETY: as above.
        let response = unsafe { self.slot(self.rsp_cons).cast::<[u8; N]>().read_volatile() };
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        response
    }
}

/// One queue pair as a frontend has it, and the interface.
struct Front {
    guest: FakeGuest,
    device: NetDevice,
    host: HostSide,
    tx: Ring,
    rx: Ring,
    tx_port: Port,
    rx_port: Port,
    /// The packets that are sent again and again.
    packets: Vec<Vec<(GrantRef, Part)>>,
    pages: Vec<GrantRef>,
}

impl Front {
    /// This thread goes on `processor`, the interface's on the first one.
    fn new(load: &Load, io_uring: bool, processor: usize) -> Self {
        let (tap, host) = tap("vif1.0", load);
        let config = VifConfig {
            index: 0,
            mac: "00:16:3e:00:00:01".parse().unwrap(),
            vifname: "vif1.0".into(),
            toolstack: Default::default(),
            mtu: 1500,
            rate: None,
        };
        let mut device = NetDevice::new(config, tap);
        if !io_uring {
            device = device.without_io_uring();
        }
        let mut guest = FakeGuest::with_huge_pages(RAM / PAGE);
        guest.delivery.offer_notifiers();
        let (tx, rx) = (Ring::new(&mut guest, TX_ENTRY), Ring::new(&mut guest, RX_ENTRY));
        let (tx_port, rx_port) = (guest.alloc_port(), guest.alloc_port());
        for key in [
            "request-rx-copy",
            "feature-rx-notify",
            "feature-sg",
            "feature-gso-tcpv4",
            "feature-gso-tcpv6",
            "feature-ipv6-csum-offload",
        ] {
            guest.set_key(key, 1);
        }
        guest.set_key("tx-ring-ref", tx.gref.0);
        guest.set_key("rx-ring-ref", rx.gref.0);
        guest.set_key("event-channel-tx", tx_port.0);
        guest.set_key("event-channel-rx", rx_port.0);
        on_processor(0);
        device.connect(&guest, &guest.domain).unwrap();
        on_processor(processor);
        host.notice_carrier();
        let placed = load.layout.place(&mut guest, load, 256 / slots(load));
        let mut grant = |part: Part| (guest.grant(part.0, true), part);
        let packets = placed.into_iter().map(|parts| parts.into_iter().map(&mut grant).collect()).collect();
        let mut frames: Vec<u64> = (0..600).map(|_| guest.alloc_page()).collect();
        shuffle(&mut frames);
        let pages = frames.into_iter().take(256).map(|frame| guest.grant(frame, false)).collect();
        Self { guest, device, host, tx, rx, tx_port, rx_port, packets, pages }
    }

    fn counter(&self, name: &str) -> u64 {
        self.device.counters().into_iter().find(|(n, _)| *n == name).unwrap().1
    }

    /// Puts packet `number` into the ring: its slots.
    fn put(&mut self, load: &Load, number: usize) -> u32 {
        let before = self.tx.req_prod;
        let packet = &self.packets[number % self.packets.len()];
        let last = packet.len() - 1;
        for (index, (gref, (_, offset, len))) in packet.iter().enumerate() {
            let mut flags = if index < last { TXF_MORE_DATA } else { 0 };
            let mut size = *len;
            if index == 0 {
                size = load.frame.len();
                if load.gso.is_some() {
                    flags |= TXF_CSUM_BLANK | TXF_DATA_VALIDATED | TXF_EXTRA_INFO;
                }
            }
            let (id, offset) = (self.tx.req_prod as u16, *offset as u16);
            let request = TxRequest { gref: *gref, offset, flags, id, size: size as u16 };
            self.tx.put(request.emit());
            if let (0, Some(gso)) = (index, load.gso) {
                self.tx.put(gso.emit());
            }
        }
        self.tx.req_prod.wrapping_sub(before)
    }

    fn push_tx(&self) {
        if self.tx.publish() {
            self.guest.send(self.tx_port);
        }
    }

    /// Takes responses; how many.
    fn take_tx(&mut self) -> usize {
        let count = self.tx.responses();
        for _ in 0..count {
            let response: [u8; 4] = self.tx.take();
            assert!(response[2..] == [0, 0] || response[2..] == [1, 0], "{response:?}");
        }
        count as usize
    }

    /// Posts pages until the ring is full.
    fn post(&mut self) {
        while self.rx.req_prod.wrapping_sub(self.rx.rsp_cons) < 256 {
            let id = self.rx.req_prod % 256;
            let gref = self.pages[id as usize];
            self.rx.put(RxRequest { id: id as u16, gref }.emit());
        }
        if self.rx.publish() {
            self.guest.send(self.rx_port);
        }
    }

    /// Takes what was received; frames.
    fn take_rx(&mut self, load: &Load) -> usize {
        let mut frames = 0;
        let end = self.rx.rsp_cons.wrapping_add(self.rx.responses());
        while self.rx.rsp_cons != end {
            let mut len = 0;
            loop {
                let response = RxResponse::parse(&self.rx.take());
                len += response.status as usize;
                if response.flags & RXF_EXTRA_INFO != 0 {
                    while self.rx.take::<RX_ENTRY>()[1] & 1 != 0 {}
                }
                if response.flags & RXF_MORE_DATA == 0 {
                    break;
                }
            }
            assert_eq!(len, load.frame.len());
            frames += 1;
        }
        frames
    }

    /// What was copied, and what was not.
    fn check_copies(&self, load: &Load) {
        let [sent, received] = ["tx_packets", "rx_packets"].map(|name| self.counter(name));
        let headers = if load.gso.is_some() { HEADERS as u64 } else { 0 };
        assert_eq!(self.counter("tx_copied_bytes"), sent * headers);
        if load.gso.is_some() {
            assert_eq!((self.counter("rx_straight"), self.counter("rx_copied")), (received, 0));
            // The first two are not expected to be large: their beginnings are copied.
            assert!(self.counter("rx_copied_bytes") <= 2 * 2048);
        } else {
            assert_eq!((self.counter("rx_straight"), self.counter("rx_copied")), (0, received));
        }
        let lost = ["tx_errors", "tx_drops", "rx_errors", "rx_drops"].map(|name| self.counter(name));
        assert_eq!(lost, [0; 4]);
    }
}

fn rings(load: &Load, to_host: bool, io_uring: bool) -> Run {
    let mut front = Front::new(load, io_uring, 1);
    let (mut count, mut time, cpu) = (0, Duration::ZERO, threads_cpu());
    if to_host {
        let (begun, mut number, mut used) = (Instant::now(), 0, 0);
        let slots = slots(load);
        loop {
            let ending = begun.elapsed() >= TIME;
            while !ending && used + slots <= 256 {
                used += front.put(load, number) as usize;
                number += 1;
                if number.is_multiple_of(8) {
                    front.push_tx();
                }
            }
            front.push_tx();
            used -= front.take_tx();
            if ending && used == 0 {
                break;
            }
            std::hint::spin_loop();
        }
        count = number as u64;
        time = begun.elapsed();
    }
    // Of an earlier round, one.
    let mut waiting = 0;
    while !to_host && time < TIME {
        // All is in the tap before there are pages.
        fill(&front.host, load, load.waiting - waiting);
        let begun = Instant::now();
        let mut frames = 0;
        front.post();
        while frames < load.waiting {
            frames += front.take_rx(load);
            if frames < load.waiting {
                front.post();
            }
            std::hint::spin_loop();
        }
        time += begun.elapsed();
        count += frames as u64;
        // The pages that are left are used up, or the next frames would not wait.
        exhaust(&mut front, load);
        waiting = 1;
    }
    front.check_copies(load);
    let packets = front.counter(if to_host { "tx_packets" } else { "rx_packets" }) as f64;
    Run {
        rate: count as f64 / time.as_secs_f64(),
        calls: front.counter("system_calls") as f64 / packets,
        cpu: (threads_cpu() - cpu) / packets * 1e6,
    }
}

/// Sends frames until the backend has too few pages for another one.
fn exhaust(front: &mut Front, load: &Load) {
    let frame = vec![load.with_header()];
    loop {
        front.host.send_many(&frame).unwrap();
        // It asks to be told of more pages than there are.
        let starved = |front: &Front| {
            let event = front.rx.index(4).load(SeqCst);
            event.wrapping_sub(front.rx.req_prod).wrapping_sub(1) < 256
        };
        while front.rx.responses() == 0 && !starved(front) {
            std::hint::spin_loop();
        }
        if front.take_rx(load) == 0 {
            // This one waits: it is taken with the next ones.
            return;
        }
    }
}

/// System calls per packet, of bursts.
fn burst(load: &Load, to_host: bool, io_uring: bool) -> f64 {
    const BURSTS: usize = 2000;
    let mut front = Front::new(load, io_uring, 0);
    front.post();
    first_of_all();
    let frames = vec![load.with_header(); BURST];
    for _ in 0..BURSTS {
        if to_host {
            (0..BURST).for_each(|number| {
                front.put(load, number);
            });
            front.push_tx();
            let mut taken = 0;
            wait("responses", || {
                taken += front.take_tx();
                taken == BURST
            });
        } else {
            assert_eq!(front.host.send_many(&frames).unwrap(), BURST);
            let mut taken = 0;
            wait("frames", || {
                taken += front.take_rx(load);
                taken == BURST
            });
            front.post();
        }
    }
    front.check_copies(load);
    front.counter("system_calls") as f64 / (BURSTS * BURST) as f64
}

/// Has this thread, and those that it makes from now on, run on one processor, where there are as many.
fn on_processor(number: usize) {
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes the set.
    unsafe { libc::CPU_SET(number, &mut set) };
    // SAFETY: the set is as long as said.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

/// Has this thread give way to no other: a burst is there as a whole.
fn first_of_all() {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is valid.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

fn shuffle(list: &mut [u64]) {
    let mut state = 88_172_645_463_325_252_u64;
    for index in (1..list.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        list.swap(index, (state % (index as u64 + 1)) as usize);
    }
}

fn thread_cpu() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the time.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Seconds that a thread was on a processor (Documentation/scheduler/sched-stats.rst).
fn cpu(schedstat: &std::path::Path) -> f64 {
    let text = std::fs::read_to_string(schedstat).unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0) / 1e9
}

/// The same of the interface's threads.
fn threads_cpu() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter(|task| {
            std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().starts_with("vif-")
        })
        .map(|task| cpu(&task.path().join("schedstat")))
        .sum()
}
