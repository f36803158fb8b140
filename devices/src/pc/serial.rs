//! A serial port: 16550A with its FIFOs.
//!
//! Source: National Semiconductor PC16550D data sheet, table II (registers), table III (interrupts), 8.0 (FIFOs).
//!
//! The line has no speed: what is written is gone at once, and bytes are received as soon as there is room. vm-superio's
//! UART was not enough: it has no level-triggered line, tells of FIFOs that are off, and has no loopback of received
//! data or modem interrupts.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Line, Ports, read_each, write_each};
use crate::bus::{IrqLine, Region, Registers};

/// Ports of the first serial port.
pub const COM1_PORTS: Ports = Ports { base: 0x3f8, len: 8, region: 0 };
/// ISA interrupt of the first serial port.
pub const COM1_IRQ: u8 = 4;

const IER: u64 = 1;
/// Read: interrupt identification; written: FIFO control.
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;

const FIFO: usize = 16;

/// Interrupts that may be enabled.
const IER_DATA: u8 = 1;
const IER_EMPTY: u8 = 2;
const IER_LINE: u8 = 4;
const IER_MODEM: u8 = 8;

/// Causes of an interrupt, the most urgent one first.
const IIR_LINE: u8 = 0x06;
const IIR_DATA: u8 = 0x04;
/// Fewer bytes than the trigger level, and no more come.
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_EMPTY: u8 = 0x02;
const IIR_MODEM: u8 = 0x00;
const IIR_NONE: u8 = 0x01;
const IIR_FIFOS: u8 = 0xc0;

const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RECEIVER: u8 = 2;

const LCR_DLAB: u8 = 0x80;

const MCR_OUT2: u8 = 8;
const MCR_LOOP: u8 = 0x10;

const LSR_DATA: u8 = 1;
const LSR_OVERRUN: u8 = 2;
/// Holding register and shift register are empty: always.
const LSR_EMPTY: u8 = 0x60;

const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RI: u8 = 0x40;
const MSR_DCD: u8 = 0x80;

/// What is at the other end of the line. Both are called from a vCPU thread and must not wait.
pub trait ByteStream: Send {
    /// The guest sends a byte.
    fn send(&mut self, byte: u8);
    /// Fills `buf` with what there is for the guest; returns how much that was. It is asked again when the guest has
    /// room; when something comes in, [`Uart::poll`] is to be called.
    fn receive(&mut self, buf: &mut [u8]) -> usize;
}

#[derive(Default)]
struct State {
    received: VecDeque<u8>,
    divisor: [u8; 2],
    enabled: u8,
    fifo: u8,
    line_control: u8,
    modem_control: u8,
    modem_deltas: u8,
    scratch: u8,
    overrun: bool,
    /// The holding register became empty, and nobody was told.
    emptied: bool,
}

impl State {
    fn new() -> Self {
        // 9600 baud, as firmware leaves it.
        Self { divisor: [12, 0], ..Self::default() }
    }

    fn has_fifo(&self) -> bool {
        self.fifo & FCR_ENABLE != 0
    }

    fn is_loop(&self) -> bool {
        self.modem_control & MCR_LOOP != 0
    }

    fn capacity(&self) -> usize {
        if self.has_fifo() { FIFO } else { 1 }
    }

    /// Bytes from which on the receiver interrupts.
    fn trigger(&self) -> usize {
        match self.fifo >> 6 {
            _ if !self.has_fifo() => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// The modem's lines: those of a modem that is there and ready, or in a loop our own.
    fn modem_lines(&self) -> u8 {
        if !self.is_loop() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        // DTR, RTS, OUT1 and OUT2 are DSR, CTS, RI and DCD.
        let wire = |from: u8, to: u8| if self.modem_control & from != 0 { to } else { 0 };
        wire(1, MSR_DSR) | wire(2, MSR_CTS) | wire(4, MSR_RI) | wire(MCR_OUT2, MSR_DCD)
    }

    fn set_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.modem_control = value & 0x1f;
        let after = self.modem_lines();
        // A ring counts when it ends.
        let changed = (before ^ after) & !MSR_RI | before & !after & MSR_RI;
        self.modem_deltas |= changed >> 4;
    }

    fn push(&mut self, byte: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
        } else {
            self.overrun = true;
        }
    }

    fn cause(&self) -> u8 {
        let enabled = |bit: u8| self.enabled & bit != 0;
        if enabled(IER_LINE) && self.overrun {
            IIR_LINE
        } else if enabled(IER_DATA) && self.received.len() >= self.trigger() {
            IIR_DATA
        } else if enabled(IER_DATA) && !self.received.is_empty() {
            IIR_TIMEOUT
        } else if enabled(IER_EMPTY) && self.emptied {
            IIR_EMPTY
        } else if enabled(IER_MODEM) && self.modem_deltas != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }
}

/// The port.
pub struct Uart {
    line: Line,
    stream: Box<dyn ByteStream>,
    state: State,
}

impl Uart {
    /// A port that is connected to `stream`.
    pub fn new(irq: Arc<dyn IrqLine>, stream: Box<dyn ByteStream>) -> Self {
        Self { line: Line::new(irq), stream, state: State::new() }
    }

    /// The stream has something for the guest, perhaps.
    pub fn poll(&mut self) {
        self.fill();
        self.update();
    }

    fn fill(&mut self) {
        if self.state.is_loop() {
            return;
        }
        let mut buf = [0; FIFO];
        let room = self.state.capacity().saturating_sub(self.state.received.len());
        if let Some(buf) = buf.get_mut(..room).filter(|buf| !buf.is_empty()) {
            let len = self.stream.receive(buf);
            self.state.received.extend(buf.iter().take(len));
        }
    }

    fn update(&mut self) {
        // OUT2 connects the interrupt to the bus; in a loop the pin is inactive.
        let connected = self.state.modem_control & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        self.line.set(connected && self.state.cause() != IIR_NONE);
    }

    fn read_register(&mut self, register: u64) -> u8 {
        let state = &mut self.state;
        let latch = state.line_control & LCR_DLAB != 0;
        match register {
            0 if latch => state.divisor[0],
            0 => {
                let byte = state.received.pop_front().unwrap_or(0);
                if state.received.is_empty() {
                    self.fill();
                }
                byte
            }
            IER if latch => state.divisor[1],
            IER => state.enabled,
            IIR => {
                let cause = state.cause();
                if cause == IIR_EMPTY {
                    state.emptied = false;
                }
                cause | if state.has_fifo() { IIR_FIFOS } else { 0 }
            }
            LCR => state.line_control,
            MCR => state.modem_control,
            LSR => {
                let overrun = if std::mem::take(&mut state.overrun) { LSR_OVERRUN } else { 0 };
                LSR_EMPTY | overrun | if state.received.is_empty() { 0 } else { LSR_DATA }
            }
            MSR => state.modem_lines() | std::mem::take(&mut state.modem_deltas),
            7 => state.scratch,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, register: u64, value: u8) {
        let state = &mut self.state;
        let latch = state.line_control & LCR_DLAB != 0;
        match register {
            0 if latch => state.divisor[0] = value,
            0 => {
                state.emptied = true;
                if state.is_loop() {
                    state.push(value);
                } else {
                    self.stream.send(value);
                }
            }
            IER if latch => state.divisor[1] = value,
            IER => {
                // Enabling it while the register is empty, which it always is, interrupts.
                if value & !state.enabled & IER_EMPTY != 0 {
                    state.emptied = true;
                }
                state.enabled = value & 0x0f;
            }
            IIR => {
                let switched = (value ^ state.fifo) & FCR_ENABLE != 0;
                if switched || value & FCR_ENABLE != 0 && value & FCR_CLEAR_RECEIVER != 0 {
                    state.received.clear();
                }
                // The other bits are only written together with the first.
                state.fifo = if value & FCR_ENABLE != 0 { value & 0xc9 } else { 0 };
                self.fill();
            }
            LCR => state.line_control = value,
            MCR => {
                state.set_modem_control(value);
                self.fill();
            }
            7 => state.scratch = value,
            _ => {}
        }
    }
}

impl Registers for Uart {
    fn read(&mut self, _: Region, offset: u64, data: &mut [u8]) {
        read_each(offset, data, |register| self.read_register(register));
        self.update();
    }

    fn write(&mut self, _: Region, offset: u64, data: &[u8]) {
        write_each(offset, data, |register, value| self.write_register(register, value));
        self.update();
    }

    fn reset(&mut self) {
        self.state = State::new();
        self.update();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::super::manual::{ManualLine, inb, outb};
    use super::*;

    #[derive(Clone, Default)]
    struct Stream(Arc<Mutex<(Vec<u8>, VecDeque<u8>)>>);

    impl ByteStream for Stream {
        fn send(&mut self, byte: u8) {
            self.0.lock().unwrap().0.push(byte);
        }
        fn receive(&mut self, buf: &mut [u8]) -> usize {
            let waiting = &mut self.0.lock().unwrap().1;
            let len = buf.len().min(waiting.len());
            for (slot, byte) in buf.iter_mut().zip(waiting.drain(..len)) {
                *slot = byte;
            }
            len
        }
    }

    struct Bench {
        uart: Uart,
        line: Arc<ManualLine>,
        stream: Stream,
    }

    impl Bench {
        fn new() -> Self {
            let (line, stream) = (Arc::new(ManualLine::default()), Stream::default());
            let uart = Uart::new(Arc::clone(&line) as _, Box::new(stream.clone()));
            Self { uart, line, stream }
        }
        fn read(&mut self, register: u64) -> u8 {
            inb(&mut self.uart, 0, register)
        }
        fn write(&mut self, register: u64, value: u8) {
            outb(&mut self.uart, 0, register, value);
        }
        fn come(&mut self, bytes: &[u8]) {
            self.stream.0.lock().unwrap().1.extend(bytes);
            self.uart.poll();
        }
    }

    #[test]
    fn probes_find_a_16550a() {
        let mut bench = Bench::new();
        for value in [0x55, 0xaa] {
            bench.write(7, value);
            assert_eq!(bench.read(7), value);
        }
        // FIFOs: bits 6 and 7, and no bit 5 of a 16750.
        for (fcr, iir) in [(0x00, 0x01), (0x01, 0xc1), (0x21, 0xc1), (0xc7, 0xc1), (0x06, 0x01)] {
            bench.write(2, fcr);
            assert_eq!(bench.read(2), iir, "{fcr:#x}");
        }
        // Only four interrupts, and the divisor behind the latch.
        bench.write(1, 0xff);
        bench.write(3, 0x83);
        assert_eq!((bench.read(0), bench.read(1)), (12, 0));
        bench.uart.write(0, 0, &[0x34, 0x12]);
        assert_eq!((bench.read(0), bench.read(1)), (0x34, 0x12));
        bench.write(3, 0x03);
        assert_eq!((bench.read(1), bench.read(3), bench.read(5)), (0x0f, 0x03, 0x60));
        assert!(bench.stream.0.lock().unwrap().0.is_empty());
    }

    #[test]
    fn the_loop_connects_the_modems_lines() {
        let mut bench = Bench::new();
        assert_eq!(bench.read(6), 0xb0);
        // Each output and the input that it becomes; bits 0 to 3 are changes since the last read.
        for (mcr, msr) in
            [(0x10, 0x0b), (0x1a, 0x99), (0x11, 0x2b), (0x14, 0x42), (0x10, 0x04), (0x1f, 0xfb), (0x0f, 0xb4)]
        {
            bench.write(4, mcr);
            assert_eq!((bench.read(6), bench.read(6) & 0x0f), (msr, 0), "{mcr:#x}");
        }
        bench.write(4, 0xff);
        assert_eq!(bench.read(4), 0x1f);
        // Data go round as well, and do not reach the stream.
        bench.write(2, 1);
        for byte in 0..18 {
            bench.write(0, byte);
        }
        assert_eq!((bench.read(5), bench.read(5)), (0x63, 0x61));
        assert!((0..16).all(|byte| bench.read(0) == byte));
        assert_eq!(bench.read(5), 0x60);
        assert!(bench.stream.0.lock().unwrap().0.is_empty());
    }

    #[test]
    fn the_transmitter_interrupts_when_it_is_empty() {
        let mut bench = Bench::new();
        bench.write(1, 2);
        assert!(!bench.line.is_high(), "OUT2 does not connect it");
        bench.write(4, 8);
        assert!(bench.line.is_high());
        assert_eq!((bench.read(2), bench.line.is_high(), bench.read(2)), (0x02, false, 0x01));
        bench.write(0, b'x');
        assert!(bench.line.is_high());
        bench.write(1, 0);
        assert!(!bench.line.is_high());
        bench.write(1, 2);
        assert_eq!((bench.read(2), bench.line.rises()), (0x02, 3));
        assert_eq!(bench.stream.0.lock().unwrap().0, b"x");
    }

    #[test]
    fn the_receiver_interrupts_at_its_level_or_after_a_while() {
        for (fcr, level) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] {
            let mut bench = Bench::new();
            for (register, value) in [(4, 8), (2, fcr), (1, 1)] {
                bench.write(register, value);
            }
            bench.come(&vec![7; level]);
            assert_eq!((bench.read(2), bench.line.is_high()), (0xc4, true));
            bench.read(0);
            let rest = if level == 1 { 0xc1 } else { 0xcc };
            assert_eq!((bench.read(2), bench.line.is_high()), (rest, level > 1));
        }
    }

    #[test]
    fn bytes_wait_in_the_stream_until_there_is_room() {
        for (fcr, room) in [(0, 1), (1, 16)] {
            let mut bench = Bench::new();
            bench.write(2, fcr);
            let bytes: Vec<u8> = (0..40).collect();
            bench.come(&bytes);
            assert_eq!(bench.stream.0.lock().unwrap().1.len(), 40 - room);
            let mut read = Vec::new();
            while bench.read(5) & 1 != 0 {
                read.push(bench.read(0));
            }
            assert_eq!((read, bench.read(0), bench.read(5)), (bytes, 0, 0x60));
        }
    }

    #[test]
    fn causes_come_in_their_order() {
        let mut bench = Bench::new();
        bench.write(4, 0x10);
        bench.write(1, 0x0f);
        bench.write(0, 1);
        bench.write(0, 2);
        // Table III: line status, received data, transmitter, modem.
        let mut causes = Vec::new();
        for register in [5, 0, 2, 6] {
            causes.push(bench.read(2) & 0x0f);
            if register != 2 {
                bench.read(register);
            }
        }
        assert_eq!(causes, [0x06, 0x04, 0x02, 0x00]);
        assert_eq!(bench.read(2), 0x01);
        bench.write(0, 1);
        bench.uart.reset();
        assert_eq!((bench.read(1), bench.read(5), bench.line.is_high()), (0, 0x60, false));
    }
}
