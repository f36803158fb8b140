//! Load on disk and network. [`disk`] and [`net`] run in the guest and print `@@VALUE metric value`; `@@BEGIN load`
//! and `@@COUNT load requests` are around what the host counts exits of. [`serve`] is the host's end of the TCP
//! connections.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crate::{Result, fail};

const PORT: u16 = 5001;
/// How long each kind of load lasts, but sequential disk access, which has a size.
const DURATION: Duration = Duration::from_secs(4);
const SEQUENTIAL: usize = 64 << 20;
const REQUEST: usize = 1 << 20;
const BLOCK: usize = 4096;
const REPEAT: usize = 3;
/// Random reads at a time.
const DEPTHS: [u32; 2] = [1, 16];

/// First byte of a connection: what the guest will do.
const SENDS: u8 = b's';
const RECEIVES: u8 = b'r';

/// `bench-disk DEVICE`: sequential direct I/O, one request at a time, and random reads.
pub fn disk(words: &[String]) -> Result<ExitCode> {
    let [device] = words else {
        return fail!("{}", crate::USAGE);
    };
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(device)?;
    let mut memory = vec![0x5a_u8; REQUEST + BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let Some(buffer) = memory.get_mut(start..start + REQUEST) else {
        return fail!("no aligned memory");
    };
    for (name, write) in [("disk_write", true), ("disk_read", false)] {
        println!("@@BEGIN {name}");
        let rate = sequential(&device, buffer, write)?;
        println!("@@COUNT {name} {}", REPEAT * SEQUENTIAL / REQUEST);
        println!("@@VALUE {name}_mib_s {rate:.1}");
    }
    for depth in DEPTHS {
        println!("@@BEGIN disk_random_{depth}");
        let (count, seconds) = random(&device, depth)?;
        println!("@@COUNT disk_random_{depth} {count}");
        println!("@@VALUE disk_random_{depth}_iops {:.0}", f64::from(count) / seconds);
    }
    Ok(ExitCode::SUCCESS)
}

/// MiB/s of requests one after the other: the median of several passes.
fn sequential(device: &File, buffer: &mut [u8], write: bool) -> Result<f64> {
    let mut rates = Vec::new();
    for _ in 0..REPEAT {
        let begun = Instant::now();
        for offset in (0..SEQUENTIAL as u64).step_by(REQUEST) {
            if write {
                device.write_all_at(buffer, offset)?;
            } else {
                device.read_exact_at(buffer, offset)?;
            }
        }
        if write {
            device.sync_data()?;
        }
        rates.push((SEQUENTIAL >> 20) as f64 / begun.elapsed().as_secs_f64());
    }
    Ok(super::report::median(&mut rates))
}

/// Random reads by `depth` threads, each one block at a time: their number, and the seconds they took.
fn random(device: &File, depth: u32) -> Result<(u32, f64)> {
    let begun = Instant::now();
    let counts = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..depth).map(|thread| scope.spawn(move || read(device, thread, begun))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| fail!("a reader panicked")))
            .collect::<Result<Vec<u32>>>()
    })?;
    Ok((counts.into_iter().sum(), begun.elapsed().as_secs_f64()))
}

fn read(device: &File, thread: u32, begun: Instant) -> Result<u32> {
    let mut memory = vec![0_u8; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let block = memory.get_mut(start..start + BLOCK).unwrap_or_default();
    let (mut count, mut state) = (0, 88_172_645_463_325_252 + u64::from(thread) * 0x9e37_79b9);
    while begun.elapsed() < DURATION {
        // Xorshift: the same places for every VMM.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        device.read_exact_at(block, state % (SEQUENTIAL / BLOCK) as u64 * BLOCK as u64)?;
        count += 1;
    }
    Ok(count)
}

/// `bench-net HOST`: one TCP connection each way; the receiver's figures.
pub fn net(words: &[String]) -> Result<ExitCode> {
    let [host] = words else {
        return fail!("{}", crate::USAGE);
    };
    let buffer = vec![0x5a_u8; 64 << 10];
    let mut connection = TcpStream::connect((host.as_str(), PORT))?;
    connection.write_all(&[SENDS])?;
    let begun = Instant::now();
    while begun.elapsed() < DURATION {
        connection.write_all(&buffer)?;
    }
    connection.shutdown(Shutdown::Write)?;
    let mut rate = String::new();
    connection.read_to_string(&mut rate)?;
    println!("@@VALUE net_out_mbit_s {rate}");

    let mut connection = TcpStream::connect((host.as_str(), PORT))?;
    connection.write_all(&[RECEIVES])?;
    println!("@@VALUE net_in_mbit_s {}", drain(&mut connection)?);
    Ok(ExitCode::SUCCESS)
}

/// Answers [`net`] for as long as the process lives.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || serve_one(connection));
        }
    });
    Ok(())
}

fn serve_one(mut connection: TcpStream) -> Result<()> {
    let mut what = [0];
    connection.read_exact(&mut what)?;
    if what == [SENDS] {
        let rate = drain(&mut connection)?;
        connection.write_all(rate.as_bytes())?;
    } else {
        let buffer = vec![0x5a_u8; 64 << 10];
        let begun = Instant::now();
        while begun.elapsed() < DURATION {
            connection.write_all(&buffer)?;
        }
    }
    Ok(())
}

/// Reads to the end; Mbit/s.
fn drain(connection: &mut TcpStream) -> Result<String> {
    let mut buffer = vec![0_u8; 64 << 10];
    let (begun, mut bytes) = (Instant::now(), 0);
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(format!("{:.1}", bytes as f64 * 8e-6 / begun.elapsed().as_secs_f64())),
            length => bytes += length,
        }
    }
}
