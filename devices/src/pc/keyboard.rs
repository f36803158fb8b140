//! A PS/2 keyboard.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard (101- and 102-Key)": commands, replies,
//! typematic rates, the buffer of 16 bytes.

use std::collections::{BTreeSet, VecDeque};

use super::SECOND;
use super::scancodes::{Modifiers, Set, codes, to_set_3};

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const PASSED: u8 = 0xaa;
const ECHO: u8 = 0xee;
const ID: [u8; 2] = [0xab, 0x83];

const CMD_LEDS: u8 = 0xed;
const CMD_ECHO: u8 = 0xee;
const CMD_SET: u8 = 0xf0;
const CMD_ID: u8 = 0xf2;
const CMD_TYPEMATIC: u8 = 0xf3;
const CMD_ENABLE: u8 = 0xf4;
const CMD_DISABLE: u8 = 0xf5;
const CMD_DEFAULTS: u8 = 0xf6;
/// All keys: typematic, make and break, make, all of it. Then the first three for single keys.
const CMD_ALL_TYPEMATIC: u8 = 0xf7;
const CMD_ALL_BREAK: u8 = 0xf8;
const CMD_ALL_MAKE: u8 = 0xf9;
const CMD_ALL_BOTH: u8 = 0xfa;
const CMD_KEY_TYPEMATIC: u8 = 0xfb;
const CMD_KEY_BREAK: u8 = 0xfc;
const CMD_KEY_MAKE: u8 = 0xfd;
const CMD_RESEND: u8 = 0xfe;
const CMD_RESET: u8 = 0xff;

/// Scan codes that wait for the controller.
const BUFFER: usize = 16;
/// 10.9 characters a second after half a second.
const TYPEMATIC: u8 = 0x2b;

/// What a key does in set 3.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    repeats: bool,
    breaks: bool,
}

const REPEATS: Kind = Kind { repeats: true, breaks: false };
const BREAKS: Kind = Kind { repeats: false, breaks: true };
const MAKES: Kind = Kind { repeats: false, breaks: false };
const BOTH: Kind = Kind { repeats: true, breaks: true };

/// Set 3: keys that send breaks (shift, control, left Alt, Caps Lock), and keys that only make.
const BREAKING: [u8; 5] = [0x11, 0x12, 0x14, 0x19, 0x59];
const MAKING: [u8; 33] = [
    0x07, 0x08, 0x0f, 0x17, 0x1f, 0x27, 0x2f, 0x37, 0x39, 0x3f, 0x47, 0x4f, 0x56, 0x57, 0x58, 0x5e, 0x5f,
    0x62, 0x65, 0x67, 0x69, 0x6c, 0x6d, 0x6e, 0x6f, 0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77,
];

fn default_kinds() -> [Kind; 256] {
    let mut kinds = [REPEATS; 256];
    for (codes, kind) in [(&BREAKING[..], BREAKS), (&MAKING, MAKES)] {
        for code in codes {
            if let Some(slot) = kinds.get_mut(usize::from(*code)) {
                *slot = kind;
            }
        }
    }
    kinds
}

pub(crate) struct Keyboard {
    /// At most three bytes, ahead of the buffer.
    replies: VecDeque<u8>,
    buffer: VecDeque<u8>,
    last: u8,
    /// A command that waits for its value.
    command: Option<u8>,
    is_scanning: bool,
    set: Set,
    kinds: Box<[Kind; 256]>,
    leds: u8,
    typematic: u8,
    held: BTreeSet<u16>,
    /// The key that repeats, and when.
    repeat: Option<(u16, u64)>,
}

impl Keyboard {
    pub(crate) fn new() -> Self {
        Self {
            replies: VecDeque::new(),
            buffer: VecDeque::new(),
            last: 0,
            command: None,
            is_scanning: true,
            set: Set::default(),
            kinds: Box::new(default_kinds()),
            leds: 0,
            typematic: TYPEMATIC,
            held: BTreeSet::new(),
            repeat: None,
        }
    }

    /// Bit 0 scroll lock, 1 num lock, 2 caps lock.
    pub(crate) fn leds(&self) -> u8 {
        self.leds
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.replies.is_empty() || !self.buffer.is_empty()
    }

    /// The next byte for the controller.
    pub(crate) fn pop(&mut self) -> Option<u8> {
        let byte = self.replies.pop_front().or_else(|| self.buffer.pop_front())?;
        if byte != RESEND {
            self.last = byte;
        }
        Some(byte)
    }

    /// When a key repeats; a buffer that nobody empties takes no repetition.
    pub(crate) fn next_event(&self) -> Option<u64> {
        self.repeat.filter(|_| self.is_scanning && !self.has_output()).map(|(_, at)| at)
    }

    pub(crate) fn tick(&mut self, now: u64) {
        if self.next_event().is_some_and(|at| at <= now)
            && let Some((key, _)) = self.repeat
        {
            // Print Screen repeats without the shift around it.
            let modifiers = Modifiers { ctrl: true, ..self.modifiers() };
            self.press(codes(self.set, key, true, modifiers));
            self.repeat = Some((key, now.saturating_add(self.period())));
        }
    }

    fn delay(&self) -> u64 {
        u64::from((self.typematic >> 5 & 3) + 1) * (SECOND / 4)
    }

    /// (8 + A) * 2^B * 4.17 ms.
    fn period(&self) -> u64 {
        let (a, b) = (self.typematic & 7, self.typematic >> 3 & 3);
        (u64::from(8 + a) << b) * SECOND / 240
    }

    fn modifiers(&self) -> Modifiers {
        let any = |keys: [u16; 2]| keys.iter().any(|key| self.held.contains(key));
        Modifiers { shift: any([0x2a, 0x36]), ctrl: any([0x1d, 0xe01d]), alt: any([0x38, 0xe038]) }
    }

    fn kind(&self, key: u16) -> Kind {
        match to_set_3(key) {
            Some(code) if self.set == Set::Three => {
                self.kinds.get(usize::from(code)).copied().unwrap_or(REPEATS)
            }
            _ => BOTH,
        }
    }

    /// A key goes down or up. That it is still down is known already: it repeats by itself.
    pub(crate) fn key(&mut self, key: u16, down: bool, now: u64) {
        let [prefix, code] = key.to_be_bytes();
        if !matches!(prefix, 0 | 0xe0) || !(1..0x80).contains(&code) {
            return;
        }
        let changed = if down { self.held.insert(key) } else { self.held.remove(&key) };
        if !changed {
            return;
        }
        let kind = self.kind(key);
        if down {
            // Pause has no typematic.
            let repeats = kind.repeats && key != 0xe046;
            self.repeat = repeats.then(|| (key, now.saturating_add(self.delay())));
        } else if self.repeat.is_some_and(|(repeated, _)| repeated == key) {
            self.repeat = None;
        }
        if self.is_scanning && (down || kind.breaks) {
            self.press(codes(self.set, key, down, self.modifiers()));
        }
    }

    /// Codes go to the buffer as a whole; if there is no room, the host is told that some are lost.
    fn press(&mut self, codes: Vec<u8>) {
        let overrun = if self.set == Set::One { 0xff } else { 0 };
        if self.buffer.len() + codes.len() <= BUFFER {
            self.buffer.extend(codes);
        } else if self.buffer.back() != Some(&overrun) {
            self.buffer.push_back(overrun);
        }
    }

    fn defaults(&mut self) {
        self.buffer.clear();
        self.repeat = None;
        self.set = Set::default();
        self.typematic = TYPEMATIC;
        *self.kinds = default_kinds();
    }

    /// A byte of the host's.
    pub(crate) fn write(&mut self, byte: u8) {
        self.replies.clear();
        // What looks like a command is one, even where a value is waited for.
        let command = self.command.take();
        match command {
            Some(command) if byte < CMD_LEDS => self.value(command, byte),
            _ => self.start(byte),
        }
    }

    fn reply(&mut self, bytes: &[u8]) {
        self.replies.extend(bytes);
    }

    fn value(&mut self, command: u8, value: u8) {
        match (command, value) {
            (CMD_LEDS, _) => self.leds = value & 7,
            (CMD_TYPEMATIC, _) => self.typematic = value & 0x7f,
            (CMD_SET, 0) => return self.reply(&[ACK, self.set as u8]),
            (CMD_SET, 1..=3) => {
                self.set = match value {
                    1 => Set::One,
                    2 => Set::Two,
                    _ => Set::Three,
                };
                self.buffer.clear();
            }
            (CMD_KEY_TYPEMATIC..=CMD_KEY_MAKE, _) => {
                let kind = match command {
                    CMD_KEY_TYPEMATIC => REPEATS,
                    CMD_KEY_BREAK => BREAKS,
                    _ => MAKES,
                };
                if let Some(slot) = self.kinds.get_mut(usize::from(value)) {
                    *slot = kind;
                }
                // More keys may follow, until there is a command.
                self.command = Some(command);
            }
            _ => {
                self.command = Some(command);
                return self.reply(&[RESEND]);
            }
        }
        self.reply(&[ACK]);
    }

    fn start(&mut self, byte: u8) {
        match byte {
            CMD_ECHO => return self.reply(&[ECHO]),
            CMD_RESEND => return self.reply(&[self.last]),
            CMD_ID => return self.reply(&[ACK, ID[0], ID[1]]),
            CMD_RESET => {
                self.defaults();
                self.leds = 0;
                self.is_scanning = true;
                return self.reply(&[ACK, PASSED]);
            }
            CMD_LEDS | CMD_SET | CMD_TYPEMATIC | CMD_KEY_TYPEMATIC..=CMD_KEY_MAKE => {
                self.command = Some(byte);
            }
            CMD_ENABLE => {
                self.buffer.clear();
                self.is_scanning = true;
            }
            CMD_DISABLE => {
                self.defaults();
                self.is_scanning = false;
            }
            CMD_DEFAULTS => self.defaults(),
            CMD_ALL_TYPEMATIC => self.kinds.fill(REPEATS),
            CMD_ALL_BREAK => self.kinds.fill(BREAKS),
            CMD_ALL_MAKE => self.kinds.fill(MAKES),
            CMD_ALL_BOTH => self.kinds.fill(BOTH),
            _ => return self.reply(&[RESEND]),
        }
        self.reply(&[ACK]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = SECOND / 1000;

    fn drain(keyboard: &mut Keyboard) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.pop()).collect()
    }

    fn ask(keyboard: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
        bytes
            .iter()
            .flat_map(|byte| {
                keyboard.write(*byte);
                drain(keyboard)
            })
            .collect()
    }

    fn tap(keyboard: &mut Keyboard, key: u16) -> Vec<u8> {
        keyboard.key(key, true, 0);
        keyboard.key(key, false, 0);
        drain(keyboard)
    }

    #[test]
    fn commands_have_their_replies() {
        for (bytes, replies) in [
            (&[0xff][..], &[ACK, PASSED][..]),
            (&[0xf2], &[ACK, 0xab, 0x83]),
            (&[0xee], &[0xee]),
            (&[0xf0, 0], &[ACK, ACK, 2]),
            (&[0xf0, 1, 0xf0, 0], &[ACK, ACK, ACK, ACK, 1]),
            (&[0xf0, 3, 0xf0, 0], &[ACK, ACK, ACK, ACK, 3]),
            (&[0xf0, 4, 2], &[ACK, RESEND, ACK]),
            (&[0xed, 7], &[ACK, ACK]),
            (&[0xed, 0xf4, 7], &[ACK, ACK, RESEND]),
            (&[0xf3, 0x7f], &[ACK, ACK]),
            (&[0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa], &[ACK; 7]),
            (&[0xfb, 0x1c, 0x1b, 0xfc, 0x1c, 0xfd, 0x1c, 0xf6], &[ACK; 8]),
            (&[0xf2, 0xfe, 0xef, 0xf1, 0x00], &[ACK, 0xab, 0x83, 0x83, RESEND, RESEND, RESEND]),
        ] {
            assert_eq!(ask(&mut Keyboard::new(), bytes), replies, "{bytes:x?}");
        }
        let mut keyboard = Keyboard::new();
        ask(&mut keyboard, &[0xed, 0x05]);
        assert_eq!(keyboard.leds(), 5);
        ask(&mut keyboard, &[0xff]);
        assert_eq!(keyboard.leds(), 0);
        // A new command breaks off the replies to the one before.
        keyboard.write(0xf2);
        keyboard.pop();
        keyboard.write(0xee);
        assert_eq!(drain(&mut keyboard), [ECHO]);
    }

    #[test]
    fn keys_are_sent_in_the_current_set_while_scanning() {
        let mut keyboard = Keyboard::new();
        for (commands, codes) in [
            (&[][..], &[0xe0, 0x75, 0xe0, 0xf0, 0x75][..]),
            (&[0xf0, 1], &[0xe0, 0x48, 0xe0, 0xc8]),
            (&[0xf0, 3], &[0x63]),
            (&[0xf8], &[0x63, 0xf0, 0x63]),
            (&[0xfd, 0x63], &[0x63]),
            (&[0xf5], &[]),
            (&[0xf4], &[0xe0, 0x75, 0xe0, 0xf0, 0x75]),
        ] {
            ask(&mut keyboard, commands);
            assert_eq!(tap(&mut keyboard, 0xe048), codes, "{commands:x?}");
        }
        for key in [0, 0x80, 0xe000, 0xe080, 0x1234, 0xffff] {
            assert_eq!(tap(&mut keyboard, key), []);
        }
        keyboard.key(0x1e, false, 0);
        assert!(!keyboard.has_output(), "it was not down");
    }

    #[test]
    fn a_full_buffer_ends_with_an_overrun() {
        for (set, overrun) in [(1, 0xff), (2, 0)] {
            let mut keyboard = Keyboard::new();
            ask(&mut keyboard, &[0xf0, set]);
            for key in 1..0x60 {
                keyboard.key(key, true, 0);
            }
            let bytes = drain(&mut keyboard);
            assert_eq!((bytes.len(), bytes[16]), (17, overrun));
        }
    }

    #[test]
    fn a_held_key_repeats_at_its_rate() {
        // Delay and period in milliseconds: from 30 to 2 characters a second.
        for (typematic, delay, period) in
            [(None, 500, 91), (Some(0x00), 250, 33), (Some(0x20), 500, 33), (Some(0x7f), 1000, 500)]
        {
            let mut keyboard = Keyboard::new();
            if let Some(value) = typematic {
                ask(&mut keyboard, &[0xf3, value]);
            }
            keyboard.key(0x1e, true, 0);
            keyboard.key(0x1e, true, 0);
            assert_eq!(keyboard.next_event(), None, "nobody took the first code");
            assert_eq!(drain(&mut keyboard), [0x1c]);
            let first = keyboard.next_event().unwrap_or(0);
            assert_eq!(first / MS, delay);
            keyboard.tick(first - 1);
            assert!(!keyboard.has_output());
            keyboard.tick(first);
            assert_eq!(drain(&mut keyboard), [0x1c]);
            assert_eq!((keyboard.next_event().unwrap_or(0) - first) / MS, period);
            keyboard.key(0x1f, true, first);
            keyboard.key(0x1f, false, first);
            drain(&mut keyboard);
            assert_eq!(keyboard.next_event(), None, "the last key is up");
        }
        let mut keyboard = Keyboard::new();
        keyboard.key(0xe037, true, 0);
        assert_eq!(drain(&mut keyboard), [0xe0, 0x12, 0xe0, 0x7c]);
        keyboard.tick(SECOND);
        assert_eq!(drain(&mut keyboard), [0xe0, 0x7c]);
        keyboard.key(0xe046, true, 0);
        drain(&mut keyboard);
        assert_eq!(keyboard.next_event(), None, "Pause does not repeat");
    }
}
