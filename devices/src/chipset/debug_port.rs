//! Ports that firmware and kernels print on: lines in the host's log.

use crate::bus::{Region, Registers};

/// Reads of a debug port that is there give its number's low byte.
const PRESENT: u8 = 0xe9;
/// A line that is longer is told in pieces.
const LINE: usize = 240;

/// SeaBIOS's port: base, length, region.
pub const DEBUG_PORTS: (u64, u64, Region) = (0x402, 1, 0);
/// The port of Bochs and Xen.
pub const XEN_DEBUG_PORT: (u64, u64, Region) = (0xe9, 1, 1);

/// Takes whole lines.
pub type LineSink = Box<dyn FnMut(&str) + Send>;

/// The debug ports, which give whole lines to `sink`.
pub struct DebugPort {
    line: Vec<u8>,
    sink: LineSink,
}

impl DebugPort {
    /// What is printed goes to `sink`, at most 240 bytes of it at a time, without control characters.
    pub fn new(sink: LineSink) -> Self {
        Self { line: Vec::new(), sink }
    }

    fn flush(&mut self) {
        let text = String::from_utf8_lossy(&self.line);
        (self.sink)(&text);
        self.line.clear();
    }
}

impl Registers for DebugPort {
    fn read(&mut self, _: Region, _: u64, data: &mut [u8]) {
        if let Some(byte) = data.first_mut() {
            *byte = PRESENT;
        }
    }

    fn write(&mut self, _: Region, _: u64, data: &[u8]) {
        let Some(byte) = data.first() else { return };
        match byte {
            b'\n' => self.flush(),
            0..0x20 | 0x7f => {}
            _ => self.line.push(*byte),
        }
        if self.line.len() >= LINE {
            self.flush();
        }
    }

    fn reset(&mut self) {
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn lines_are_told_whole_and_bounded() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&lines);
        let mut port = DebugPort::new(Box::new(move |line| to.lock().unwrap().push(line.to_owned())));
        for byte in b"SeaBIOS\r\n\x1b[m\n" {
            port.write(0, 0, &[*byte]);
        }
        for _ in 0..300 {
            port.write(0, 0, b"x");
        }
        assert_eq!(*lines.lock().unwrap(), ["SeaBIOS".to_owned(), "[m".into(), "x".repeat(240)]);
        let mut byte = [0];
        port.read(0, 0, &mut byte);
        assert_eq!(byte, [0xe9]);
    }
}
