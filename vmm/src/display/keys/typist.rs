//! From what a viewer types to keys that go down and up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use devices::display::{Input, InputSink};

use super::keymap::{Keymap, Press, SPACE, Way};
use super::names::{self, Special};

const LEFT_SHIFT: u16 = 0x2a;
const RIGHT_SHIFT: u16 = 0x36;
const RIGHT_ALT: u16 = 0xe038;

/// Lights of the keyboard.
const NUM_LOCK: u8 = 1 << 1;
const CAPS_LOCK: u8 = 1 << 2;

/// `ISO_Level3_Shift` and `Mode_switch`: AltGr.
const LEVEL3: [u32; 2] = [0xfe03, 0xff7e];
/// Key symbols held at once; what is above no hand can do.
const SYMBOLS_MAX: usize = 256;

/// One viewer's hands on the keyboard.
#[derive(Debug)]
pub struct Typist {
    keymap: Arc<Keymap>,
    held: BTreeSet<u16>,
    /// Which key a symbol that is held went down as.
    symbols: BTreeMap<u32, u16>,
}

impl Typist {
    /// Hands that know the guest's layout.
    pub fn new(keymap: Arc<Keymap>) -> Typist {
        Typist { keymap, held: BTreeSet::new(), symbols: BTreeMap::new() }
    }

    /// The key with this scan code goes down or up. One that is down already stays so: it is the guest's keyboard that
    /// repeats it.
    pub fn key(&mut self, sink: &dyn InputSink, code: u16, down: bool) {
        let changed = if down { self.held.insert(code) } else { self.held.remove(&code) };
        if changed {
            sink.input(Input::Key { code, down });
        }
    }

    /// The key with this symbol (RFC 6143, section 7.5.4) goes down or up on the viewer's keyboard. Shift and AltGr of
    /// the guest are made what the symbol needs on its keyboard while the key goes down.
    pub fn symbol(&mut self, sink: &dyn InputSink, keysym: u32, down: bool) {
        if !down {
            return self.symbol_up(sink, keysym);
        }
        if self.symbols.contains_key(&keysym) || self.symbols.len() >= SYMBOLS_MAX {
            return;
        }
        let leds = sink.leds();
        if LEVEL3.contains(&keysym) {
            // Where it means nothing it would be Alt, which alone opens menus.
            if self.keymap.has_level3() {
                self.press(sink, keysym, RIGHT_ALT);
            }
            return;
        }
        let keysym_or_character = match names::special(keysym, leds & NUM_LOCK != 0) {
            Some(Special::Key(code)) => return self.press(sink, keysym, code),
            Some(Special::Character(character)) => u32::from(character),
            None => keysym,
        };
        match self.keymap.find(keysym_or_character) {
            Some(Way::Keys(presses)) => {
                let fits = |press: &&Press| self.needed(**press, leds) == self.modifiers();
                if let Some(press) = presses.iter().find(fits).or(presses.first()) {
                    self.press_at_level(sink, keysym, *press, leds);
                }
            }
            Some(Way::Dead(press)) => {
                self.press_at_level(sink, keysym, press, leds);
                self.symbol_up(sink, keysym);
                let space = Press { code: SPACE, shift: false, level3: false, letter: false };
                self.press_at_level(sink, keysym, space, leds);
            }
            None => {}
        }
    }

    /// All keys that are held go up.
    pub fn release_all(&mut self, sink: &dyn InputSink) {
        self.symbols.clear();
        for code in std::mem::take(&mut self.held) {
            sink.input(Input::Key { code, down: false });
        }
    }

    fn press(&mut self, sink: &dyn InputSink, keysym: u32, code: u16) {
        self.symbols.insert(keysym, code);
        self.key(sink, code, true);
    }

    fn symbol_up(&mut self, sink: &dyn InputSink, keysym: u32) {
        let code = self.symbols.remove(&keysym).or_else(|| {
            // Shift went up first: `A` went down, and `a` comes up.
            let Some(Way::Keys(presses)) = self.keymap.find(keysym) else { return None };
            let other =
                self.symbols.iter().find(|(_, code)| presses.iter().any(|press| press.code == **code));
            let other = other.map(|(symbol, _)| *symbol)?;
            self.symbols.remove(&other)
        });
        if let Some(code) = code.filter(|code| !self.symbols.values().any(|other| other == code)) {
            self.key(sink, code, false);
        }
    }

    /// Shift and AltGr, as they are held.
    fn modifiers(&self) -> (bool, bool) {
        let held = |code| self.held.contains(&code);
        (held(LEFT_SHIFT) || held(RIGHT_SHIFT), self.keymap.has_level3() && held(RIGHT_ALT))
    }

    /// Shift and AltGr, as they have to be.
    fn needed(&self, press: Press, leds: u8) -> (bool, bool) {
        (press.shift != (press.letter && !press.level3 && leds & CAPS_LOCK != 0), press.level3)
    }

    fn press_at_level(&mut self, sink: &dyn InputSink, keysym: u32, press: Press, leds: u8) {
        let (shift, level3) = self.modifiers();
        let (want_shift, want_level3) = self.needed(press, leds);
        let mut changes: Vec<(u16, bool)> = Vec::new();
        match (shift, want_shift) {
            (false, true) => changes.push((LEFT_SHIFT, true)),
            (true, false) => {
                let held = [LEFT_SHIFT, RIGHT_SHIFT].into_iter().filter(|code| self.held.contains(code));
                changes.extend(held.map(|code| (code, false)));
            }
            _ => {}
        }
        if level3 != want_level3 {
            changes.push((RIGHT_ALT, want_level3));
        }
        for (code, down) in &changes {
            sink.input(Input::Key { code: *code, down: *down });
        }
        self.press(sink, keysym, press.code);
        for (code, down) in changes.iter().rev() {
            sink.input(Input::Key { code: *code, down: !down });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::super::testing::Recorder;
    use super::*;

    const SHIFT_L: u32 = 0xffe1;
    const LEVEL3_SHIFT: u32 = 0xfe03;

    /// What a sequence of symbols, down or up, does to the keys: `+` and `-` before scan codes.
    fn typed(layout: &str, leds: u8, symbols: &[(u32, bool)]) -> String {
        let sink = Recorder::new();
        sink.set_leds(leds);
        let mut typist = Typist::new(Arc::new(Keymap::named(layout).unwrap()));
        for (symbol, down) in symbols {
            typist.symbol(&*sink, *symbol, *down);
        }
        sink.keys()
    }

    fn both(symbol: char) -> [(u32, bool); 2] {
        [(symbol.into(), true), (symbol.into(), false)]
    }

    #[test]
    fn plain_and_shifted_keys() {
        assert_eq!(typed("us", 0, &both('a')), "+1e -1e");
        let shifted = [(SHIFT_L, true), ('A'.into(), true), ('A'.into(), false), (SHIFT_L, false)];
        assert_eq!(typed("us", 0, &shifted), "+2a +1e -1e -2a");
        // Shift comes up before the key.
        let early = [(SHIFT_L, true), ('A'.into(), true), (SHIFT_L, false), ('a'.into(), false)];
        assert_eq!(typed("us", 0, &early), "+2a +1e -2a -1e");
    }

    #[test]
    fn the_at_sign_of_every_keyboard_arrives_on_every_guest() {
        let german = [(LEVEL3_SHIFT, true), ('@'.into(), true), ('@'.into(), false), (LEVEL3_SHIFT, false)];
        assert_eq!(typed("us", 0, &german), "+2a +03 -2a -03");
        assert_eq!(typed("de", 0, &german), "+e038 +10 -10 -e038");
        assert_eq!(typed("uk", 0, &german), "+e038 +2a -e038 +28 +e038 -2a -28 -e038");
        let american = [(SHIFT_L, true), ('@'.into(), true), ('@'.into(), false), (SHIFT_L, false)];
        assert_eq!(typed("us", 0, &american), "+2a +03 -03 -2a");
        assert_eq!(typed("de", 0, &american), "+2a -2a +e038 +10 -e038 +2a -10 -2a");
    }

    #[test]
    fn digits_of_a_french_keyboard_are_shifted() {
        assert_eq!(typed("fr", 0, &both('1')), "+2a +02 -2a -02");
        let shifted = [(SHIFT_L, true), ('1'.into(), true), ('1'.into(), false)];
        assert_eq!(typed("us", 0, &shifted), "+2a -2a +02 +2a -02");
    }

    #[test]
    fn caps_lock_of_the_guest_is_considered() {
        assert_eq!(typed("us", CAPS_LOCK, &both('A')), "+1e -1e");
        assert_eq!(typed("us", CAPS_LOCK, &both('a')), "+2a +1e -2a -1e");
        assert_eq!(typed("us", CAPS_LOCK, &both('1')), "+02 -02");
        assert_eq!(typed("us", 0, &both('A')), "+2a +1e -2a -1e");
    }

    #[test]
    fn control_alt_delete() {
        let keys = [0xffe3, 0xffe9, 0xffff];
        let down = keys.iter().map(|key| (*key, true));
        let up = keys.iter().rev().map(|key| (*key, false));
        let symbols: Vec<_> = down.chain(up).collect();
        assert_eq!(typed("us", 0, &symbols), "+1d +38 +e053 -e053 -38 -1d");
    }

    #[test]
    fn a_dead_key_and_a_space_make_what_only_a_dead_key_gives() {
        assert_eq!(typed("de", 0, &both('^')), "+29 -29 +39 -39");
    }

    #[test]
    fn the_pad_gives_digits_with_and_without_num_lock() {
        let seven = [(0xffb7, true), (0xffb7, false)];
        assert_eq!(typed("us", NUM_LOCK, &seven), "+47 -47");
        assert_eq!(typed("us", 0, &seven), "+08 -08");
        assert_eq!(typed("fr", 0, &seven), "+2a +08 -2a -08");
    }

    #[test]
    fn repeats_and_unknown_symbols_do_nothing() {
        assert_eq!(typed("us", 0, &[('a'.into(), true), ('a'.into(), true), ('b'.into(), false)]), "+1e");
        assert_eq!(
            typed("us", 0, &[(0x0100_4e2d, true), (0, true), (u32::MAX, true), (u32::MAX, false)]),
            ""
        );
    }

    #[test]
    fn keys_are_released_when_the_viewer_goes() {
        let sink = Recorder::new();
        let mut typist = Typist::new(Arc::new(Keymap::named("us").unwrap()));
        typist.symbol(&*sink, 'a'.into(), true);
        typist.key(&*sink, 0xe01d, true);
        typist.release_all(&*sink);
        typist.release_all(&*sink);
        assert_eq!(sink.keys(), "+1e +e01d -1e -e01d");
    }
}
