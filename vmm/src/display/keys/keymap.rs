//! What the keys of a guest's keyboard give, by its layout: from symbols back to keys.
//!
//! The layouts are the files in `maps`. A line is the scan code of a key (set 1, hexadecimal) and what it gives alone,
//! with Shift, with AltGr, and with both: a character, a name of a dead key, or `space`.

use std::collections::BTreeMap;

/// The layouts: names, and files.
const LAYOUTS: [(&[&str], &str); 4] = [
    (&["en-us", "us"], include_str!("maps/en-us.map")),
    (&["en-gb", "uk", "gb"], include_str!("maps/en-gb.map")),
    (&["de"], include_str!("maps/de.map")),
    (&["fr"], include_str!("maps/fr.map")),
];

/// Dead keys: the name, the key symbol (X11's `keysymdef.h`), and the character that it gives before a space.
const DEAD: [(&str, u32, char); 5] = [
    ("dead_grave", 0xfe50, '`'),
    ("dead_acute", 0xfe51, '´'),
    ("dead_circumflex", 0xfe52, '^'),
    ("dead_tilde", 0xfe53, '~'),
    ("dead_diaeresis", 0xfe57, '¨'),
];

/// The space bar.
pub(super) const SPACE: u16 = 0x39;

/// A key, and what has to be held for it to give a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Press {
    /// Scan code of set 1.
    pub(super) code: u16,
    /// Shift, or not.
    pub(super) shift: bool,
    /// AltGr, or not.
    pub(super) level3: bool,
    /// Caps Lock changes the meaning of Shift.
    pub(super) letter: bool,
}

/// How a symbol comes to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By one of these.
    Keys(Vec<Press>),
    /// By this dead key, and a space.
    Dead(Press),
}

/// A layout.
#[derive(Clone, Debug)]
pub struct Keymap {
    name: &'static str,
    presses: BTreeMap<u32, Vec<Press>>,
    level3: bool,
}

impl Keymap {
    /// The layout of this name. `None`: there is none; [`Keymap::names`] has those that there are.
    pub fn named(name: &str) -> Option<Keymap> {
        let (names, text) = LAYOUTS.iter().find(|(names, _)| names.contains(&name))?;
        Some(Keymap::parse(names.first()?, text))
    }

    /// The names of all layouts.
    pub fn names() -> impl Iterator<Item = &'static str> {
        LAYOUTS.iter().flat_map(|(names, _)| names.iter().copied())
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Lines that are not understood are left out: the files are our own, and a test reads all of them.
    fn parse(name: &'static str, text: &str) -> Keymap {
        let mut keymap = Keymap { name, presses: BTreeMap::new(), level3: false };
        for line in text.lines().filter(|line| !line.starts_with("# ")) {
            let mut words = line.split(' ');
            let Some(Ok(code)) = words.next().map(|code| u16::from_str_radix(code, 16)) else { continue };
            let symbols: Vec<u32> = words.map_while(symbol).collect();
            let letter = is_letter(&symbols);
            keymap.level3 |= symbols.len() > 2;
            let levels = [(false, false), (true, false), (false, true), (true, true)];
            for (symbol, (shift, level3)) in symbols.into_iter().zip(levels) {
                keymap.presses.entry(symbol).or_default().push(Press { code, shift, level3, letter });
            }
        }
        keymap
    }

    /// Whether AltGr means something.
    pub(super) fn has_level3(&self) -> bool {
        self.level3
    }

    /// How a key symbol of the RFB protocol comes to be on this keyboard.
    pub(super) fn find(&self, keysym: u32) -> Option<Way> {
        let symbol = from_keysym(keysym)?;
        if let Some(presses) = self.presses.get(&symbol) {
            return Some(Way::Keys(presses.clone()));
        }
        // A dead key where there is only a living one, and the other way round.
        if let Some((_, _, character)) = DEAD.iter().find(|(_, dead, _)| *dead == symbol) {
            return self.presses.get(&u32::from(*character)).cloned().map(Way::Keys);
        }
        let (_, dead, _) = DEAD.iter().find(|(_, _, character)| u32::from(*character) == symbol)?;
        self.presses.get(dead)?.first().copied().map(Way::Dead)
    }
}

/// Lower and upper case of one letter.
fn is_letter(symbols: &[u32]) -> bool {
    let character = |at: usize| symbols.get(at).copied().and_then(char::from_u32);
    match (character(0), character(1)) {
        (Some(lower), Some(upper)) => lower != upper && lower.to_uppercase().eq([upper]),
        _ => false,
    }
}

/// A word of a file: dead keys by their key symbols, characters by their numbers in Unicode.
fn symbol(word: &str) -> Option<u32> {
    if let Some((_, dead, _)) = DEAD.iter().find(|(name, _, _)| *name == word) {
        return Some(*dead);
    }
    let mut characters = word.chars();
    match (word, characters.next(), characters.next()) {
        ("space", _, _) => Some(' '.into()),
        (_, Some(character), None) => Some(character.into()),
        _ => None,
    }
}

/// The character of a key symbol, or a dead key's own number (X11's `keysymdef.h`).
fn from_keysym(keysym: u32) -> Option<u32> {
    match keysym {
        0x20..=0x7e | 0xa0..=0xff => Some(keysym),
        0xfe50..=0xfe6f => Some(keysym),
        0x13bc => Some('Œ'.into()),
        0x13bd => Some('œ'.into()),
        0x13be => Some('Ÿ'.into()),
        0x20ac => Some('€'.into()),
        0x0100_0000..=0x0110_ffff => Some(keysym - 0x0100_0000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_line_of_every_layout_is_understood() {
        for (names, text) in LAYOUTS {
            let keymap = Keymap::named(names[0]).unwrap();
            assert_eq!(keymap.name(), names[0]);
            let lines = text.lines().filter(|line| !line.starts_with("# "));
            let words: usize = lines.clone().map(|line| line.split(' ').count() - 1).sum();
            assert_eq!(keymap.presses.values().map(Vec::len).sum::<usize>(), words, "{names:?}");
            assert!(lines.count() >= 46, "{names:?}");
            // Nobody can use a keyboard without these.
            for character in ' '..='~' {
                assert!(keymap.find(character.into()).is_some(), "{names:?}: {character}");
            }
        }
        assert!(Keymap::named("xx").is_none());
    }

    #[test]
    fn keys_of_layouts() {
        let press = |code, shift, level3, letter| Press { code, shift, level3, letter };
        for (layout, symbol, expected) in [
            ("us", '@', press(0x03, true, false, false)),
            ("uk", '@', press(0x28, true, false, false)),
            ("de", '@', press(0x10, false, true, false)),
            ("fr", '@', press(0x0b, false, true, false)),
            ("us", 'z', press(0x2c, false, false, true)),
            ("de", 'Z', press(0x15, true, false, true)),
            ("fr", 'A', press(0x10, true, false, true)),
            ("fr", '1', press(0x02, true, false, false)),
            ("de", 'ß', press(0x0c, false, false, false)),
            ("de", 'Ö', press(0x27, true, false, true)),
            ("uk", '£', press(0x04, true, false, false)),
        ] {
            let keymap = Keymap::named(layout).unwrap();
            let press =
                if layout == "de" && symbol == '@' { Press { letter: true, ..expected } } else { expected };
            assert_eq!(keymap.find(symbol.into()), Some(Way::Keys(vec![press])), "{layout} {symbol}");
        }
    }

    #[test]
    fn symbols_beyond_latin_1_and_dead_keys() {
        let de = Keymap::named("de").unwrap();
        let us = Keymap::named("us").unwrap();
        assert_eq!(de.find(0x20ac), de.find(0x0100_20ac));
        assert!(matches!(de.find(0xfe52), Some(Way::Keys(keys)) if keys[0].code == 0x29));
        assert!(matches!(de.find('^'.into()), Some(Way::Dead(Press { code: 0x29, .. }))));
        assert_eq!(us.find(0xfe52), us.find('^'.into()));
        assert_eq!(us.find('é'.into()), None);
        assert_eq!(us.find(0xffff_ffff), None);
        assert!(de.has_level3() && !us.has_level3());
    }
}
