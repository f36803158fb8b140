//! The network: guests reach the host and each other, and no byte changes on the way.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Bench, checksum};
use crate::guest::Guest;
use crate::{Error, Result, check};

/// Of one transfer. Generous, since processor and network are emulated.
const TRANSFER_LIMIT: Duration = Duration::from_secs(900);

/// Ping and TCP transfers both ways, on two interfaces of two bridges.
pub fn net(bench: &Bench) -> Result<()> {
    let mib: u64 = if bench.full { 64 } else { 12 };
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    bench.bridge("xenbr1", "10.0.1.1/24")?;
    let mut guest = bench.guest().net("xenbr0").net("bridge=xenbr1,mac=00:16:3e:11:22:33").start()?;
    check!(guest.sh("cat /sys/class/net/eth1/address")? == "00:16:3e:11:22:33", "eth1 has another address");
    guest.sh(&format!("head -c {} /dev/urandom > /tmp/data", mib << 20))?;
    for number in 0..2 {
        address(&mut guest, &format!("eth{number}"), &format!("10.0.{number}.2/24"))?;
        guest.sh(&format!("ping -c 3 -W 10 10.0.{number}.1"))?;
        transfer(bench, &mut guest, &format!("10.0.{number}.1"), mib << 20)?;
    }
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// Three guests on one bridge reach each other.
pub fn three_guests(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let mut guests = Vec::new();
    for number in 1..=3 {
        guests.push(bench.guest().name(&format!("guest-{number}")).net("xenbr0").spawn()?);
    }
    for (number, guest) in guests.iter_mut().enumerate() {
        guest.wait_ready()?;
        address(guest, "eth0", &format!("10.0.0.1{number}/24"))?;
    }
    for (number, guest) in guests.iter_mut().enumerate() {
        for other in (0..3).filter(|other| *other != number) {
            guest
                .sh(&format!("ping -c 3 -W 10 10.0.0.1{other}"))
                .map_err(|error| format!("guest {number} does not reach guest {other}: {error}"))?;
        }
    }
    check!(bench.domains()?.len() == 3, "the run folder holds {:?}", bench.domains()?);
    for guest in &mut guests {
        guest.send("poweroff -f")?;
        guest.ends_with(0)?;
    }
    bench.nothing_is_left()
}

/// Brings an interface of the guest up.
pub fn address(guest: &mut Guest, interface: &str, address: &str) -> Result<()> {
    guest.sh(&format!("ip link set {interface} up && ip addr add {address} dev {interface}"))?;
    Ok(())
}

/// Sends the guest's /tmp/data to the host and back again; three checksums must agree.
pub fn transfer(bench: &Bench, guest: &mut Guest, host: &str, length: u64) -> Result<()> {
    let received = bench.folder.join("received");
    let sum = guest.sh("sha256sum < /tmp/data")?;
    let sum = sum.split_whitespace().next().unwrap_or_default().to_owned();

    let listener = TcpListener::bind((host, 0))?;
    let port = listener.local_addr()?.port();
    let sink = received.clone();
    let receiver = std::thread::spawn(move || -> std::io::Result<()> {
        let mut data = Vec::new();
        accept(&listener)?.read_to_end(&mut data)?;
        fs::write(sink, data)
    });
    // `nc` itself would send a kilobyte at a time.
    guest.sh_within(&format!("nc -w 30 {host} {port} -e cat /tmp/data"), TRANSFER_LIMIT)?;
    receiver.join().map_err(|_| Error::from("the receiver panicked"))??;
    check!(checksum(&received, length)? == sum, "the host received something else from the guest");

    let (listener, data) = (TcpListener::bind((host, 0))?, fs::read(&received)?);
    let port = listener.local_addr()?.port();
    let sender = std::thread::spawn(move || -> std::io::Result<()> { accept(&listener)?.write_all(&data) });
    let receive = format!("nc -w 30 {host} {port} < /dev/null | sha256sum");
    let back = guest.sh_within(&receive, TRANSFER_LIMIT)?;
    sender.join().map_err(|_| Error::from("the sender panicked"))??;
    check!(back.starts_with(&sum), "the guest received something else from the host");
    remove(&received)
}

/// The next connection; neither it nor its coming takes longer than a transfer may.
fn accept(listener: &TcpListener) -> std::io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + TRANSFER_LIMIT;
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() != ErrorKind::WouldBlock || Instant::now() > deadline => {
                return Err(error);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TRANSFER_LIMIT))?;
    stream.set_write_timeout(Some(TRANSFER_LIMIT))?;
    Ok(stream)
}

fn remove(path: &Path) -> Result<()> {
    Ok(fs::remove_file(path)?)
}
