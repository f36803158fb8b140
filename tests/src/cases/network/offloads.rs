//! Offloads: the guest has them, and what leaves for a network without them is right.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use super::{Namespace, addresses, bridge, iperf, no_csum_errors};
use crate::cases::Bench;
use crate::{Error, Result, check, fail};

const WANTED: [&str; 8] = [
    "rx-checksumming: on",
    "tx-checksumming: on",
    "tx-checksum-ipv4: on",
    "tx-checksum-ipv6: on",
    "scatter-gather: on",
    "tcp-segmentation-offload: on",
    "tx-tcp-segmentation: on",
    "tx-tcp6-segmentation: on",
];

/// The offloads of the guest, and the frames behind a cable that has none.
pub fn offloads(bench: &Bench) -> Result<()> {
    bridge("xenbr0", 1500, &[])?;
    let outside = Namespace::new("outside")?;
    outside.plug_into("xenbr0", "cable", 1500)?;
    outside.ip("address add 10.0.0.3/24 dev eth0")?;
    outside.ip("address add fd00::3/64 dev eth0 nodad")?;
    // The kernel cuts frames up and fills checksums in before they go into this cable.
    let mut ethtool = std::process::Command::new("/sbin/ethtool");
    crate::packages::run(
        ethtool.args(["-K", "cable", "tx", "off", "sg", "off", "tso", "off", "gso", "off"]),
    )?;
    let _server = outside.daemon("/usr/bin/iperf3 -s")?;
    let mut guest = bench.guest().with_network_tools()?.net("xenbr0").start()?;
    let features = guest.sh("ethtool -k eth0")?;
    for wanted in WANTED {
        check!(features.contains(wanted), "`ethtool -k eth0` in the guest lacks `{wanted}`: {features}");
    }
    addresses(&mut guest, "eth0", "10.0.0.2/24", "fd00::2/64")?;
    for (server, words, protocol) in
        [("10.0.0.3", "", 6), ("fd00::3", "", 6), ("10.0.0.3", "-u -b 10M", 17), ("fd00::3", "-u -b 10M", 17)]
    {
        let capture = Capture::start(&outside)?;
        iperf(&mut guest, server, &format!("{words} -t 2"))?;
        let seen = capture.finish()?;
        let frames: Vec<&Seen> = seen.iter().filter(|frame| frame.protocol == protocol).collect();
        let bytes: usize = frames.iter().map(|frame| frame.payload).sum();
        check!(bytes > 100_000, "{server} {words}: only {bytes} bytes were captured");
        let longest = frames.iter().map(|frame| frame.len).max().unwrap_or(0);
        check!(longest <= 1514, "{server} {words}: a frame of {longest} bytes left for a network of 1514");
        let wrong = frames.iter().filter(|frame| !frame.right).count();
        check!(wrong == 0, "{server} {words}: {wrong} of {} frames have a wrong checksum", frames.len());
        println!(
            "{server} {words}: {} frames, {bytes} bytes, the longest {longest}, all right",
            frames.len()
        );
    }
    // The other way: what the outside sends blank must arrive as right.
    iperf(&mut guest, "10.0.0.3", "-R -t 2")?;
    iperf(&mut guest, "fd00::3", "-u -b 10M -R -t 2")?;
    no_csum_errors(&mut guest)?;
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// A frame of TCP or UDP from the guest.
struct Seen {
    len: usize,
    payload: usize,
    protocol: u8,
    right: bool,
}

/// What comes out of the cable meanwhile.
struct Capture {
    stop: Arc<AtomicBool>,
    seen: mpsc::Receiver<Result<Vec<Seen>>>,
}

impl Capture {
    fn start(namespace: &Namespace) -> Result<Capture> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, seen) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let file = File::open(format!("/run/netns/{}", namespace.0))?;
        let ended = Arc::clone(&stop);
        std::thread::spawn(move || {
            let socket = listen(&file);
            let _ = ready.send(());
            let _ = sender.send(socket.and_then(|socket| capture(&socket, &ended)));
        });
        let _ = is_ready.recv();
        Ok(Capture { stop, seen })
    }

    fn finish(self) -> Result<Vec<Seen>> {
        self.stop.store(true, Ordering::Relaxed);
        self.seen.recv().map_err(|_| Error::from("the capture ended"))?
    }
}

/// A socket for all frames of a namespace; the calling thread stays in it.
fn listen(namespace: &File) -> Result<OwnedFd> {
    // SAFETY: changes the namespace of this thread only; the descriptor is open.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return fail!("setns: {}", io::Error::last_os_error());
    }
    let protocol = i32::from(u16::try_from(libc::ETH_P_ALL)?.to_be());
    // SAFETY: plain numbers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return fail!("a socket for frames: {}", io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let wait = libc::timeval { tv_sec: 0, tv_usec: 100_000 };
    let size: i32 = 16 << 20;
    for (option, value, len) in [
        (libc::SO_RCVTIMEO, (&raw const wait).cast::<libc::c_void>(), size_of_val(&wait)),
        (libc::SO_RCVBUFFORCE, (&raw const size).cast(), size_of_val(&size)),
    ] {
        // SAFETY: the value lives here and has this length.
        let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, u32::try_from(len)?) };
        if set != 0 {
            return fail!("setsockopt: {}", io::Error::last_os_error());
        }
    }
    Ok(socket)
}

fn capture(socket: &OwnedFd, ended: &AtomicBool) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    let mut bytes = vec![0_u8; 70_000];
    loop {
        // SAFETY: all zeroes is a sockaddr_ll.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut len = u32::try_from(size_of_val(&from))?;
        // SAFETY: the buffers are valid for their lengths.
        let got = unsafe {
            let address = (&raw mut from).cast();
            libc::recvfrom(
                socket.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                0,
                address,
                &raw mut len,
            )
        };
        if got < 0 {
            if ended.load(Ordering::Relaxed) {
                return Ok(seen);
            }
            continue;
        }
        if from.sll_pkttype != libc::PACKET_OUTGOING {
            seen.extend(bytes.get(..usize::try_from(got)?).and_then(judge));
        }
    }
}

/// Whether the checksums of an Ethernet frame with IPv4 or IPv6 and TCP or UDP are right.
fn judge(frame: &[u8]) -> Option<Seen> {
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let (start, addresses, protocol, end) = match word(12)? {
        0x0800 => {
            let header = usize::from(frame.get(14)? & 15) * 4;
            (14 + header, frame.get(26..34)?, *frame.get(23)?, 14 + usize::from(word(16)?))
        }
        0x86dd => (54, frame.get(22..54)?, *frame.get(20)?, 54 + usize::from(word(18)?)),
        _ => return None,
    };
    let header = match protocol {
        6 => usize::from(frame.get(start + 12)? >> 4) * 4,
        17 => 8,
        _ => return None,
    };
    let segment = frame.get(start..end)?;
    let mut sum: u64 = u64::from(protocol) + segment.len() as u64;
    for part in [addresses, segment] {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([*pair.first()?, pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // A UDP checksum of 0 says that there is none.
    let right = sum == 0xffff || protocol == 17 && word(start + 6)? == 0;
    let ip_right = word(12)? != 0x0800 || internet_sum(frame.get(14..start)?) == 0xffff;
    Some(Seen {
        len: frame.len(),
        payload: segment.len().checked_sub(header)?,
        protocol,
        right: right && ip_right,
    })
}

fn internet_sum(bytes: &[u8]) -> u64 {
    let mut sum: u64 =
        bytes.chunks(2).map(|pair| pair.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn wrong_checksums_are_seen() {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 32, 0, 1, 0x40, 0, 64, 17, 0xb6, 0xc8, 192, 0, 2, 1, 192, 0, 2, 2]);
        frame.extend([0, 7, 0, 7, 0, 12, 0xde, 0x26, 0xde, 0xad, 0xbe, 0xef]);
        let seen = judge(&frame).unwrap();
        assert!(seen.right && seen.payload == 4 && seen.protocol == 17);
        for at in [24, 40, 45] {
            frame[at] ^= 1;
            assert!(!judge(&frame).unwrap().right, "byte {at}");
            frame[at] ^= 1;
        }
    }
}
