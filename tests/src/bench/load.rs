//! Load on disk and network. [`disk`] and [`net`] run in the guest and print `@@VALUE metric value`;
//! [`serve`] is the host's end of the TCP connections.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::{Result, fail};

const PORT: u16 = 5001;
/// How long each kind of load lasts, but sequential disk access, which has a size.
const DURATION: Duration = Duration::from_secs(4);
const SEQUENTIAL: usize = 64 << 20;
const REQUEST: usize = 1 << 20;
const BLOCK: usize = 4096;
const REPEAT: usize = 3;

/// First byte of a connection: what the guest will do.
const SENDS: u8 = b's';
const RECEIVES: u8 = b'r';

/// `bench-disk DEVICE`: sequential and random direct I/O, one request at a time.
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
    let mut sequential = |write: bool| -> Result<f64> {
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
    };
    println!("@@VALUE disk_write_mib_s {:.1}", sequential(true)?);
    println!("@@VALUE disk_read_mib_s {:.1}", sequential(false)?);

    let blocks = (SEQUENTIAL / BLOCK) as u64;
    let block = buffer.get_mut(..BLOCK).unwrap_or_default();
    let (begun, mut count, mut state) = (Instant::now(), 0_u32, 88_172_645_463_325_252_u64);
    while begun.elapsed() < DURATION {
        // Xorshift: the same places for every VMM.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        device.read_exact_at(block, state % blocks * BLOCK as u64)?;
        count += 1;
    }
    println!("@@VALUE disk_random_iops {:.0}", f64::from(count) / begun.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
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
