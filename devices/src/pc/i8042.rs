//! The keyboard controller with keyboard and mouse.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller"; IBM PC/AT
//! Technical Reference for the input port.

use std::sync::{Arc, PoisonError};

use super::keyboard::Keyboard;
use super::mouse::Mouse;
use super::scancodes::{BREAK, translate};
use super::{Alarm, Line, Machine, Ports, earlier};
use crate::bus::{IrqLine, Region, Registers, Shared, Timer};
use crate::display::{Input, InputSink};

/// Data port, and command and status port.
pub const I8042_PORTS: [Ports; 2] =
    [Ports { base: 0x60, len: 1, region: DATA }, Ports { base: 0x64, len: 1, region: COMMAND }];
/// ISA interrupts of keyboard and mouse.
pub const KEYBOARD_IRQ: u8 = 1;
/// As above.
pub const MOUSE_IRQ: u8 = 12;

const DATA: Region = 0;
const COMMAND: Region = 1;

/// Status: output buffer full, system flag, last write was a command, not locked, the output is the mouse's.
const OUTPUT_FULL: u8 = 0x01;
const SYSTEM: u8 = 0x04;
const WAS_COMMAND: u8 = 0x08;
const UNLOCKED: u8 = 0x10;
const OUTPUT_AUX: u8 = 0x20;

/// Command byte: interrupts of keyboard and mouse, clocks held, translation. The system flag is as in the status.
const IRQ_KEYBOARD: u8 = 0x01;
const IRQ_AUX: u8 = 0x02;
const NO_KEYBOARD: u8 = 0x10;
const NO_AUX: u8 = 0x20;
const TRANSLATE: u8 = 0x40;

/// Output port: not reset, address line 20, the two interrupts, clock and data of the keyboard.
const PORT_RUN: u8 = 0x01;
const PORT_A20: u8 = 0x02;
const PORT_IRQ_KEYBOARD: u8 = 0x10;
const PORT_IRQ_AUX: u8 = 0x20;
const PORT_LINES: u8 = 0xc0;
/// Input port: not locked, a colour display, no jumper of the factory, all memory on board.
const INPUT_PORT: u8 = 0xb0;

const CMD_NO_AUX: u8 = 0xa7;
const CMD_AUX: u8 = 0xa8;
const CMD_TEST_AUX: u8 = 0xa9;
const CMD_SELF_TEST: u8 = 0xaa;
const CMD_TEST_KEYBOARD: u8 = 0xab;
const CMD_NO_KEYBOARD: u8 = 0xad;
const CMD_KEYBOARD: u8 = 0xae;
const CMD_PASSWORD_TEST: u8 = 0xa4;
const CMD_PASSWORD_LOAD: u8 = 0xa5;
const CMD_READ_INPUT: u8 = 0xc0;
const CMD_READ_OUTPUT: u8 = 0xd0;
const CMD_WRITE_OUTPUT: u8 = 0xd1;
const CMD_ECHO_KEYBOARD: u8 = 0xd2;
const CMD_ECHO_AUX: u8 = 0xd3;
const CMD_WRITE_AUX: u8 = 0xd4;
const CMD_A20_OFF: u8 = 0xdd;
const CMD_A20_ON: u8 = 0xdf;
const CMD_READ_TEST: u8 = 0xe0;

const SELF_TEST_PASSED: u8 = 0x55;
const NO_PASSWORD: u8 = 0xf1;

/// A device sends its next byte so long after the last one was taken: drivers that read a byte twice, and handlers that
/// are chained, see the same one. On the wire it takes five times as long.
const BETWEEN_BYTES: u64 = 200_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Keyboard,
    Aux,
}

/// The controller.
pub struct I8042 {
    lines: [Line; 2],
    alarm: Alarm,
    machine: Arc<dyn Machine>,
    keyboard: Keyboard,
    mouse: Mouse,
    /// The controller's memory; its first byte is the command byte.
    ram: [u8; 32],
    /// A command that waits for its byte at the data port.
    command: Option<u8>,
    was_command: bool,
    a20: bool,
    output: Option<(u8, Source)>,
    /// The data port keeps what was read last.
    last: u8,
    /// Translation: the byte before said that a key went up.
    is_break: bool,
    /// Devices may send from then on.
    ready: u64,
}

impl I8042 {
    /// A controller with its interrupt lines for keyboard and mouse.
    pub fn new(
        keyboard: Arc<dyn IrqLine>,
        mouse: Arc<dyn IrqLine>,
        timer: Arc<dyn Timer>,
        machine: Arc<dyn Machine>,
    ) -> Self {
        let mut ram = [0; 32];
        ram[0] = TRANSLATE;
        Self {
            lines: [Line::new(keyboard), Line::new(mouse)],
            alarm: Alarm::new(timer),
            machine,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
            ram,
            command: None,
            was_command: false,
            a20: true,
            output: None,
            last: 0,
            is_break: false,
            ready: 0,
        }
    }

    fn has(&self, bit: u8) -> bool {
        self.ram[0] & bit != 0
    }

    /// Fills the output buffer if it can, sets the lines and arms the timer.
    fn update(&mut self) {
        let now = self.alarm.now();
        self.keyboard.tick(now);
        self.mouse.tick(now);
        if self.output.is_none() {
            self.output = self.take_from_device(now);
        }
        let full = |source: Source| self.output.is_some_and(|(_, from)| from == source);
        let levels =
            [full(Source::Keyboard) && self.has(IRQ_KEYBOARD), full(Source::Aux) && self.has(IRQ_AUX)];
        for (line, level) in self.lines.iter_mut().zip(levels) {
            line.set(level);
        }
        // While a byte waits to be taken, nothing else happens.
        let at = if self.output.is_some() { None } else { self.next_event() };
        self.alarm.arm(at);
    }

    fn next_event(&self) -> Option<u64> {
        let keyboard = if self.keyboard.has_output() { Some(self.ready) } else { self.keyboard.next_event() };
        let mouse = if self.mouse.has_output() { Some(self.ready) } else { self.mouse.next_event() };
        earlier(keyboard.filter(|_| !self.has(NO_KEYBOARD)), mouse.filter(|_| !self.has(NO_AUX)))
    }

    fn take_from_device(&mut self, now: u64) -> Option<(u8, Source)> {
        if now < self.ready {
            return None;
        }
        if !self.has(NO_KEYBOARD) {
            while let Some(byte) = self.keyboard.pop() {
                if let Some(byte) = self.translated(byte) {
                    return Some((byte, Source::Keyboard));
                }
            }
        }
        if self.has(NO_AUX) { None } else { Some((self.mouse.pop()?, Source::Aux)) }
    }

    /// What the host sees of a byte of the keyboard's: a prefix 0xf0 becomes bit 7 of the next byte.
    fn translated(&mut self, byte: u8) -> Option<u8> {
        if !self.has(TRANSLATE) {
            self.is_break = false;
            return Some(byte);
        }
        if byte == BREAK {
            self.is_break = true;
            return None;
        }
        let up = if std::mem::take(&mut self.is_break) { 0x80 } else { 0 };
        Some(translate(byte) | up)
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.output.take() {
            self.last = byte;
            self.ready = self.alarm.now().saturating_add(BETWEEN_BYTES);
        }
        self.last
    }

    fn status(&self) -> u8 {
        let output = match self.output {
            None => 0,
            Some((_, Source::Keyboard)) => OUTPUT_FULL,
            Some((_, Source::Aux)) => OUTPUT_FULL | OUTPUT_AUX,
        };
        UNLOCKED | output | self.ram[0] & SYSTEM | if self.was_command { WAS_COMMAND } else { 0 }
    }

    /// The controller answers; what a device has sent and nobody read gives way.
    fn reply(&mut self, byte: u8, source: Source) {
        self.output = Some((byte, source));
    }

    fn set_a20(&mut self, on: bool) {
        if self.a20 != on {
            self.a20 = on;
            self.machine.set_a20(on);
        }
    }

    fn output_port(&self) -> u8 {
        let [keyboard, mouse] = &self.lines;
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        PORT_RUN
            | PORT_LINES
            | flag(self.a20, PORT_A20)
            | flag(keyboard.is_high(), PORT_IRQ_KEYBOARD)
            | flag(mouse.is_high(), PORT_IRQ_AUX)
    }

    fn command(&mut self, command: u8) {
        self.was_command = true;
        self.command = None;
        match command {
            0x20..=0x3f => {
                let byte = self.ram.get(usize::from(command & 0x1f)).copied().unwrap_or(0);
                self.reply(byte, Source::Keyboard);
            }
            0x60..=0x7f
            | CMD_PASSWORD_LOAD
            | CMD_WRITE_OUTPUT
            | CMD_ECHO_KEYBOARD
            | CMD_ECHO_AUX
            | CMD_WRITE_AUX => self.command = Some(command),
            CMD_PASSWORD_TEST => self.reply(NO_PASSWORD, Source::Keyboard),
            CMD_NO_AUX => self.ram[0] |= NO_AUX,
            CMD_AUX => self.ram[0] &= !NO_AUX,
            CMD_NO_KEYBOARD => self.ram[0] |= NO_KEYBOARD,
            CMD_KEYBOARD => self.ram[0] &= !NO_KEYBOARD,
            CMD_TEST_AUX | CMD_TEST_KEYBOARD => self.reply(0, Source::Keyboard),
            CMD_SELF_TEST => {
                self.ram[0] |= SYSTEM;
                self.reply(SELF_TEST_PASSED, Source::Keyboard);
            }
            CMD_READ_INPUT => self.reply(INPUT_PORT, Source::Keyboard),
            CMD_READ_OUTPUT => {
                let port = self.output_port();
                self.reply(port, Source::Keyboard);
            }
            CMD_A20_OFF => self.set_a20(false),
            CMD_A20_ON => self.set_a20(true),
            // Clock of the keyboard, and its data line.
            CMD_READ_TEST => {
                let clock = if self.has(NO_KEYBOARD) { 0 } else { 1 };
                self.reply(2 | clock, Source::Keyboard);
            }
            // Bits of the output port that are zero are pulsed; the lowest resets.
            0xf0..=0xff if command & PORT_RUN == 0 => self.machine.reset(),
            _ => tracing::debug!(command, "keyboard controller: unknown command"),
        }
    }

    fn data(&mut self, byte: u8) {
        self.was_command = false;
        match self.command.take() {
            Some(command @ 0x60..=0x7f) => {
                if let Some(slot) = self.ram.get_mut(usize::from(command & 0x1f)) {
                    *slot = byte;
                }
            }
            // A password ends with a zero; it is taken, and asked for by nobody.
            Some(CMD_PASSWORD_LOAD) => self.command = (byte != 0).then_some(CMD_PASSWORD_LOAD),
            Some(CMD_WRITE_OUTPUT) => {
                self.set_a20(byte & PORT_A20 != 0);
                if byte & PORT_RUN == 0 {
                    self.machine.reset();
                }
            }
            Some(CMD_ECHO_KEYBOARD) => self.reply(byte, Source::Keyboard),
            Some(CMD_ECHO_AUX) => self.reply(byte, Source::Aux),
            Some(CMD_WRITE_AUX) => {
                self.ram[0] &= !NO_AUX;
                self.mouse.write(byte);
            }
            // Whoever speaks to the keyboard wants to hear it.
            _ => {
                self.ram[0] &= !NO_KEYBOARD;
                self.is_break = false;
                self.keyboard.write(byte);
            }
        }
    }

    /// Somebody uses keyboard or mouse.
    pub fn input(&mut self, event: Input) {
        match event {
            Input::Key { code, down } => self.keyboard.key(code, down, self.alarm.now()),
            Input::Relative { dx, dy, dz, buttons } => self.mouse.moved(dx, dy, dz, buttons),
            Input::Absolute { .. } => return,
        }
        self.update();
    }

    /// The keyboard's lights: bit 0 scroll lock, 1 num lock, 2 caps lock.
    pub fn leds(&self) -> u8 {
        self.keyboard.leds()
    }
}

impl Registers for I8042 {
    fn read(&mut self, region: Region, _: u64, data: &mut [u8]) {
        self.update();
        if let Some(byte) = data.first_mut() {
            *byte = if region == DATA { self.read_data() } else { self.status() };
        }
        self.update();
    }

    fn write(&mut self, region: Region, _: u64, data: &[u8]) {
        if let Some(byte) = data.first() {
            if region == DATA { self.data(*byte) } else { self.command(*byte) }
        }
        self.update();
    }

    fn expired(&mut self) {
        self.alarm.expired();
        self.update();
    }

    fn reset(&mut self) {
        (self.keyboard, self.mouse) = (Keyboard::new(), Mouse::new());
        self.ram = [0; 32];
        self.ram[0] = TRANSLATE;
        (self.command, self.was_command, self.a20) = (None, false, true);
        (self.output, self.last, self.is_break, self.ready) = (None, 0, false, 0);
        self.update();
    }
}

/// Keyboard and mouse as somebody in front of them sees them.
pub struct Ps2Input(pub Shared<I8042>);

impl InputSink for Ps2Input {
    fn input(&self, event: Input) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).input(event);
    }
    fn is_absolute(&self) -> bool {
        false
    }
    fn leds(&self) -> u8 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).leds()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
