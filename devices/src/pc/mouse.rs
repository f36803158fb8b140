//! A PS/2 mouse with a wheel.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Mouse"; Microsoft, "Windows and the 5-Button Wheel Mouse"
//! for the knocks by which a driver finds wheel and buttons.

use std::collections::VecDeque;

use super::{SECOND, low};

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
/// The second error in a row.
const ERROR: u8 = 0xfc;
const PASSED: u8 = 0xaa;

const CMD_SCALE_1: u8 = 0xe6;
const CMD_SCALE_2: u8 = 0xe7;
const CMD_RESOLUTION: u8 = 0xe8;
const CMD_STATUS: u8 = 0xe9;
const CMD_STREAM: u8 = 0xea;
const CMD_READ: u8 = 0xeb;
const CMD_UNWRAP: u8 = 0xec;
const CMD_WRAP: u8 = 0xee;
const CMD_REMOTE: u8 = 0xf0;
const CMD_ID: u8 = 0xf2;
const CMD_RATE: u8 = 0xf3;
const CMD_ENABLE: u8 = 0xf4;
const CMD_DISABLE: u8 = 0xf5;
const CMD_DEFAULTS: u8 = 0xf6;
const CMD_RESEND: u8 = 0xfe;
const CMD_RESET: u8 = 0xff;

/// Rates in a row that make it a wheel mouse, and one with five buttons.
const KNOCK_WHEEL: [u8; 3] = [200, 100, 80];
const KNOCK_BUTTONS: [u8; 3] = [200, 200, 80];
const ID_WHEEL: u8 = 3;
const ID_BUTTONS: u8 = 4;

/// Motions with different buttons that wait.
const WAITING: usize = 16;
/// Counts that wait in each direction: a move that is larger is cut off, as by a mouse that is lifted.
const FARTHEST: i32 = 4096;
/// The same for the wheel, of which a packet takes eight.
const FARTHEST_WHEEL: i32 = 64;

#[derive(Clone, Copy, Default)]
struct Motion {
    /// To the right, down, and the wheel towards the user.
    dx: i32,
    dy: i32,
    dz: i32,
    buttons: u8,
}

impl Motion {
    fn is_still(&self) -> bool {
        (self.dx, self.dy, self.dz) == (0, 0, 0)
    }

    fn add(&mut self, other: &Self) {
        let sum = |a: i32, b: i32, most: i32| (a + b).clamp(-most, most);
        self.dx = sum(self.dx, other.dx, FARTHEST);
        self.dy = sum(self.dy, other.dy, FARTHEST);
        self.dz = sum(self.dz, other.dz, FARTHEST_WHEEL);
        self.buttons = other.buttons;
    }
}

pub(crate) struct Mouse {
    /// A reply or a packet.
    output: VecDeque<u8>,
    last: Vec<u8>,
    command: Option<u8>,
    failed: bool,
    id: u8,
    knock: [u8; 3],
    rate: u8,
    resolution: u8,
    is_remote: bool,
    is_wrapping: bool,
    is_reporting: bool,
    is_double: bool,
    waiting: VecDeque<Motion>,
    /// Buttons as last told.
    buttons: u8,
    /// The rate allows the next packet from then on.
    next_packet: u64,
}

impl Mouse {
    pub(crate) fn new() -> Self {
        Self {
            output: VecDeque::new(),
            last: Vec::new(),
            command: None,
            failed: false,
            id: 0,
            knock: [0; 3],
            rate: 100,
            resolution: 2,
            is_remote: false,
            is_wrapping: false,
            is_reporting: false,
            is_double: false,
            waiting: VecDeque::new(),
            buttons: 0,
            next_packet: 0,
        }
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The next byte for the controller.
    pub(crate) fn pop(&mut self) -> Option<u8> {
        self.output.pop_front()
    }

    fn is_streaming(&self) -> bool {
        self.is_reporting && !self.is_remote && !self.is_wrapping
    }

    /// When a packet will be sent.
    pub(crate) fn next_event(&self) -> Option<u64> {
        (self.is_streaming() && !self.has_output() && !self.waiting.is_empty()).then_some(self.next_packet)
    }

    pub(crate) fn tick(&mut self, now: u64) {
        if self.next_event().is_some_and(|at| at <= now) {
            let packet = self.packet(self.is_double);
            self.send(&packet);
            self.next_packet = now.saturating_add(SECOND / u64::from(self.rate.max(1)));
        }
    }

    /// It was moved, and these buttons are down: bits 0 left, 1 right, 2 middle, 3 and 4 those at the side.
    pub(crate) fn moved(&mut self, dx: i16, dy: i16, dz: i8, buttons: u8) {
        let motion = Motion { dx: dx.into(), dy: dy.into(), dz: dz.into(), buttons: buttons & 0x1f };
        let before = self.waiting.back().map_or(self.buttons, |last| last.buttons);
        let is_news = motion.buttons != before;
        if motion.is_still() && !is_news || !self.is_reporting {
            return;
        }
        let is_full = self.waiting.len() >= WAITING;
        match self.waiting.back_mut().filter(|_| is_full || !is_news) {
            Some(last) => last.add(&motion),
            None => {
                let mut first = Motion::default();
                first.add(&motion);
                self.waiting.push_back(first);
            }
        }
    }

    /// What a packet tells: three bytes, or four with a wheel.
    fn packet(&mut self, is_double: bool) -> Vec<u8> {
        let buttons = self.buttons;
        let mut rest = self.waiting.pop_front().unwrap_or(Motion { buttons, ..Motion::default() });
        // Upwards is positive in a packet.
        let (dx, dy) = (rest.dx.clamp(-255, 255), rest.dy.clamp(-255, 255));
        let dz = if self.id == 0 { rest.dz } else { rest.dz.clamp(-8, 7) };
        rest = Motion { dx: rest.dx - dx, dy: rest.dy - dy, dz: rest.dz - dz, ..rest };
        self.buttons = rest.buttons;
        let scaled = |count: i32| if is_double { double(count).clamp(-255, 255) } else { count };
        let (x, y) = (scaled(dx), scaled(-dy));
        let sign = |count: i32, bit: u8| if count < 0 { bit } else { 0 };
        let byte = |count: i32| low(count.cast_unsigned());
        let mut packet = vec![8 | rest.buttons & 7 | sign(x, 0x10) | sign(y, 0x20), byte(x), byte(y)];
        match self.id {
            ID_WHEEL => packet.push(byte(dz)),
            ID_BUTTONS => packet.push(byte(dz) & 0x0f | rest.buttons << 1 & 0x30),
            _ => {}
        }
        if !rest.is_still() {
            self.waiting.push_front(rest);
        }
        packet
    }

    fn send(&mut self, bytes: &[u8]) {
        self.last = bytes.to_vec();
        self.output.extend(bytes);
    }

    fn acknowledge(&mut self, bytes: &[u8]) {
        self.output.push_back(ACK);
        self.send(bytes);
        if bytes.is_empty() {
            self.last = vec![ACK];
        }
    }

    fn refuse(&mut self) {
        let reply = if std::mem::replace(&mut self.failed, true) { ERROR } else { RESEND };
        self.output.push_back(reply);
    }

    fn defaults(&mut self) {
        (self.rate, self.resolution) = (100, 2);
        (self.is_remote, self.is_reporting, self.is_double) = (false, false, false);
        self.waiting.clear();
    }

    fn status(&self) -> [u8; 3] {
        // Left is bit 2 here, middle bit 1, right bit 0.
        let buttons = (self.buttons & 1) << 2 | self.buttons >> 1 & 2 | self.buttons >> 1 & 1;
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let modes = flag(self.is_remote, 0x40) | flag(self.is_reporting, 0x20) | flag(self.is_double, 0x10);
        [modes | buttons, self.resolution, self.rate]
    }

    /// A byte of the host's: what was being sent is broken off.
    pub(crate) fn write(&mut self, byte: u8) {
        self.output.clear();
        if self.is_wrapping && !matches!(byte, CMD_UNWRAP | CMD_RESET) {
            return self.output.push_back(byte);
        }
        match self.command.take() {
            Some(CMD_RESOLUTION) if byte < 4 => self.resolution = byte,
            Some(CMD_RATE) if matches!(byte, 10 | 20 | 40 | 60 | 80 | 100 | 200) => self.set_rate(byte),
            Some(command) if byte < CMD_SCALE_1 => {
                self.command = Some(command);
                return self.refuse();
            }
            _ => return self.start(byte),
        }
        self.failed = false;
        self.acknowledge(&[]);
    }

    fn set_rate(&mut self, rate: u8) {
        self.rate = rate;
        self.knock = [self.knock[1], self.knock[2], rate];
        if self.knock == KNOCK_WHEEL && self.id < ID_WHEEL {
            self.id = ID_WHEEL;
        }
        if self.knock == KNOCK_BUTTONS && self.id == ID_WHEEL {
            self.id = ID_BUTTONS;
        }
    }

    fn start(&mut self, byte: u8) {
        match byte {
            CMD_SCALE_1 => self.is_double = false,
            CMD_SCALE_2 => self.is_double = true,
            CMD_RESOLUTION | CMD_RATE => self.command = Some(byte),
            CMD_STREAM => self.is_remote = false,
            CMD_REMOTE => self.is_remote = true,
            CMD_UNWRAP => self.is_wrapping = false,
            CMD_WRAP => self.is_wrapping = true,
            CMD_ENABLE => self.is_reporting = true,
            CMD_DISABLE => {
                self.is_reporting = false;
                self.waiting.clear();
            }
            CMD_DEFAULTS => self.defaults(),
            CMD_RESEND => {
                let last = std::mem::take(&mut self.last);
                return self.send(&last);
            }
            CMD_RESET => *self = Self::new(),
            CMD_STATUS | CMD_READ | CMD_ID => {}
            _ => return self.refuse(),
        }
        self.failed = false;
        match byte {
            CMD_STATUS => self.acknowledge(&self.status()),
            CMD_READ => {
                let packet = self.packet(false);
                self.acknowledge(&packet);
            }
            CMD_ID => self.acknowledge(&[self.id]),
            CMD_RESET => self.acknowledge(&[PASSED, self.id]),
            _ => self.acknowledge(&[]),
        }
    }
}

/// Scaling 2:1 ("Mouse", table of counts).
fn double(count: i32) -> i32 {
    let scaled = match count.abs() {
        0 => 0,
        1 | 2 => 1,
        3 => 3,
        4 => 6,
        5 => 9,
        more => 2 * more,
    };
    scaled * count.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mouse: &mut Mouse) -> Vec<u8> {
        std::iter::from_fn(|| mouse.pop()).collect()
    }

    fn ask(mouse: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
        bytes
            .iter()
            .flat_map(|byte| {
                mouse.write(*byte);
                drain(mouse)
            })
            .collect()
    }

    /// The packets that a mouse sends if nobody makes it wait.
    fn packets(mouse: &mut Mouse) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while let Some(at) = mouse.next_event() {
            mouse.tick(at);
            packets.push(drain(mouse));
        }
        packets
    }

    #[test]
    fn commands_have_their_replies() {
        for (bytes, replies) in [
            (&[0xff][..], &[ACK, PASSED, 0][..]),
            (&[0xf2], &[ACK, 0]),
            (&[0xe9], &[ACK, 0, 2, 100]),
            (
                &[0xf4, 0xe7, 0xe8, 3, 0xf3, 40, 0xf0, 0xe9],
                &[ACK, ACK, ACK, ACK, ACK, ACK, ACK, ACK, 0x70, 3, 40],
            ),
            (&[0xf4, 0xe7, 0xf6, 0xe9], &[ACK, ACK, ACK, ACK, 0, 2, 100]),
            (&[0xee, 0x12, 0xe9, 0xec, 0xf2], &[ACK, 0x12, 0xe9, ACK, ACK, 0]),
            (&[0xee, 0xff, 0xf2], &[ACK, ACK, PASSED, 0, ACK, 0]),
            (&[0xf3, 33, 33, 60], &[ACK, RESEND, ERROR, ACK]),
            (&[0xe1, 0xe6, 0x00, 0x00], &[RESEND, ACK, RESEND, ERROR]),
            (&[0xf2, 0xfe, 0xeb], &[ACK, 0, 0, ACK, 8, 0, 0]),
            (&[0xf3, 200, 0xf3, 100, 0xf3, 80, 0xf2], &[ACK, ACK, ACK, ACK, ACK, ACK, ACK, 3]),
            (&[0xf3, 200, 0xf3, 200, 0xf3, 80, 0xf2], &[ACK, ACK, ACK, ACK, ACK, ACK, ACK, 0]),
        ] {
            assert_eq!(ask(&mut Mouse::new(), bytes), replies, "{bytes:x?}");
        }
        let mut mouse = Mouse::new();
        for (knock, id) in [(KNOCK_WHEEL, 3), (KNOCK_BUTTONS, 4), (KNOCK_WHEEL, 4)] {
            for rate in knock {
                ask(&mut mouse, &[0xf3, rate]);
            }
            assert_eq!(ask(&mut mouse, &[0xf2]), [ACK, id]);
        }
        assert_eq!(ask(&mut mouse, &[0xff, 0xf2]), [ACK, PASSED, 0, ACK, 0]);
    }

    #[test]
    fn packets_tell_motion_and_buttons() {
        // Motion to the right, down, wheel, buttons; the packet with each id.
        for ((dx, dy, dz, buttons), plain, wheel, five) in [
            ((1, 0, 0, 0), [0x08, 1, 0], 0, 0),
            ((-1, 1, 0, 1), [0x39, 0xff, 0xff], 0, 0),
            ((0, -255, 0, 2), [0x0a, 0, 0xff], 0, 0),
            ((0, 255, 0, 4), [0x2c, 0, 0x01], 0, 0),
            ((0, 0, 1, 0), [0x08, 0, 0], 1, 1),
            ((0, 0, -1, 0), [0x08, 0, 0], 0xff, 0x0f),
            ((0, 0, 0, 0x19), [0x09, 0, 0], 0, 0x30),
        ] {
            for (id, last) in [(0, None), (3, Some(wheel)), (4, Some(five))] {
                let mut mouse = Mouse::new();
                mouse.id = id;
                ask(&mut mouse, &[0xf4]);
                mouse.moved(dx, dy, dz, buttons);
                let packet: Vec<u8> = plain.into_iter().chain(last).collect();
                assert_eq!(packets(&mut mouse), [packet], "{dx} {dy} {dz} {buttons:#x}");
            }
        }
    }

    #[test]
    fn a_long_way_takes_several_packets() {
        let mut mouse = Mouse::new();
        mouse.moved(9, 9, 0, 1);
        ask(&mut mouse, &[0xf4]);
        assert_eq!(packets(&mut mouse).len(), 0, "it did not report then");
        mouse.moved(600, 0, 0, 0);
        mouse.moved(0, 0, 0, 0);
        assert_eq!(packets(&mut mouse), [[8, 255, 0], [8, 255, 0], [8, 90, 0]]);
        // Bounded, however far; and clicks are not lost in between.
        for _ in 0..1000 {
            mouse.moved(i16::MIN, i16::MAX, 0, 0);
        }
        mouse.moved(0, 0, 0, 1);
        mouse.moved(0, 0, 0, 0);
        let sent = packets(&mut mouse);
        assert_eq!(sent.len(), 17 + 2);
        assert_eq!(sent[17..], [[9, 0, 0], [8, 0, 0]]);
        for n in 0..250u8 {
            mouse.moved(0, 0, 0, n & 1);
        }
        let sent = packets(&mut mouse);
        assert_eq!((sent.len(), sent[WAITING - 1][0]), (WAITING, 9));
    }

    #[test]
    fn a_wheel_that_spins_has_an_end() {
        let mut mouse = Mouse::new();
        mouse.id = ID_WHEEL;
        ask(&mut mouse, &[0xf4]);
        for _ in 0..1000 {
            mouse.moved(0, 0, i8::MIN, 0);
        }
        assert_eq!(packets(&mut mouse), [[8, 0, 0, 0xf8]; 8]);
    }

    #[test]
    fn packets_come_no_faster_than_the_rate() {
        for (rate, period) in [(None, 10), (Some(10), 100), (Some(200), 5)] {
            let mut mouse = Mouse::new();
            ask(&mut mouse, &[0xf4]);
            if let Some(rate) = rate {
                ask(&mut mouse, &[0xf3, rate]);
            }
            mouse.moved(300, 0, 0, 0);
            mouse.tick(SECOND);
            assert_eq!(mouse.next_event(), None, "one packet at a time");
            drain(&mut mouse);
            assert_eq!(mouse.next_event(), Some(SECOND + period * SECOND / 1000));
        }
    }

    #[test]
    fn remote_mode_waits_to_be_asked_and_scaling_is_for_streams() {
        let mut mouse = Mouse::new();
        ask(&mut mouse, &[0xf4, 0xf0, 0xe7]);
        mouse.moved(5, 0, 0, 1);
        assert_eq!(mouse.next_event(), None);
        assert_eq!(ask(&mut mouse, &[0xeb, 0xeb]), [ACK, 9, 5, 0, ACK, 9, 0, 0]);
        assert_eq!(ask(&mut mouse, &[0xe9]), [ACK, 0x74, 2, 100]);
        ask(&mut mouse, &[0xea]);
        for (count, sent) in [(1, 1), (2, 1), (3, 3), (4, 6), (5, 9), (6, 12), (200, 255)] {
            mouse.moved(count, 0, 0, 1);
            assert_eq!(packets(&mut mouse), [[9, sent, 0]]);
        }
    }
}
