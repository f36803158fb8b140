//! Keys pressed on behalf of somebody who is not in front of the screen: `xvmm sendkey`.

use std::time::Duration;

use devices::display::{Input, InputSink};

use super::names;
use crate::display::Display;

/// Keys held together, and such chords in a row.
const CHORD_MAX: usize = 16;
const CHORDS_MAX: usize = 256;
/// How long a chord is held, if nothing is said: longer than a slow guest needs to notice, and too short for the key to repeat.
const HOLD: Duration = Duration::from_millis(100);
/// How long all of a sequence may take.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Why keys cannot be sent. One sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// A name that is none.
    #[error(
        "{chord}: there is no key `{name}`; keys are called as in QEMU or virsh (ctrl, alt, delete, f1, ret, spc, a), or by \
         their scan code as 0x1d"
    )]
    Unknown {
        /// The argument.
        chord: String,
        /// The part of it that is no name.
        name: String,
    },
    /// Too many of them.
    #[error(
        "too many keys; send at most {CHORDS_MAX} at a time, of at most {CHORD_MAX} keys that are held together"
    )]
    TooMany,
    /// No keys at all.
    #[error("no keys; name at least one")]
    None,
    /// It would take too long.
    #[error("the keys would take longer than {} s; send fewer, or hold them for a shorter time", TIME_MAX.as_secs())]
    TooLong,
}

/// Chords, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySequence {
    chords: Vec<Vec<u16>>,
    hold: Duration,
}

impl KeySequence {
    /// Parses chords like `ctrl-alt-delete`, which are held for this long each.
    pub fn parse(chords: &[String], hold: Option<Duration>) -> Result<KeySequence, KeysError> {
        let hold = hold.unwrap_or(HOLD);
        if chords.is_empty() {
            return Err(KeysError::None);
        }
        if chords.len() > CHORDS_MAX {
            return Err(KeysError::TooMany);
        }
        let count = u32::try_from(chords.len()).unwrap_or(u32::MAX);
        if hold.saturating_add(PAUSE).saturating_mul(count) > TIME_MAX {
            return Err(KeysError::TooLong);
        }
        let chords = chords.iter().map(|chord| parse_chord(chord)).collect::<Result<_, _>>()?;
        Ok(KeySequence { chords, hold })
    }

    /// Presses the keys of each chord in their order, waits, and releases them. Takes as long as that; ends early when
    /// the guest goes.
    pub fn send(&self, display: &Display) {
        let plugs = display.plugs();
        for chord in &self.chords {
            for code in chord {
                display.input(Input::Key { code: *code, down: true });
            }
            let goes_on = display.pass(self.hold, plugs);
            for code in chord.iter().rev() {
                display.input(Input::Key { code: *code, down: false });
            }
            if !goes_on || !display.pass(PAUSE, plugs) {
                return;
            }
        }
    }
}

/// Between two chords.
const PAUSE: Duration = Duration::from_millis(20);

fn parse_chord(chord: &str) -> Result<Vec<u16>, KeysError> {
    let names: Vec<&str> = chord.split('-').collect();
    if names.len() > CHORD_MAX {
        return Err(KeysError::TooMany);
    }
    let unknown = |name: &str| KeysError::Unknown { chord: chord.to_owned(), name: name.to_owned() };
    names.into_iter().map(|name| names::by_name(name).ok_or_else(|| unknown(name))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::super::super::testing::{Recorder, TestScreen};
    use super::*;

    fn parse(chords: &[&str], millis: u64) -> Result<KeySequence, KeysError> {
        let chords: Vec<String> = chords.iter().map(|chord| (*chord).to_owned()).collect();
        KeySequence::parse(&chords, Some(Duration::from_millis(millis)))
    }

    #[test]
    fn chords_go_down_in_order_and_up_in_reverse() {
        let display = Display::new();
        let sink = Recorder::new();
        display.connect(Box::new(TestScreen::new(8, 8)), Arc::clone(&sink) as _);
        parse(&["ctrl-alt-delete", "a", "0x3b"], 1).unwrap().send(&display);
        assert_eq!(sink.keys(), "+1d +38 +e053 -e053 -38 -1d +1e -1e +3b -3b");
    }

    #[test]
    fn keys_are_released_at_once_when_the_guest_goes() {
        let display = Display::new();
        let sink = Recorder::new();
        display.connect(Box::new(TestScreen::new(8, 8)), Arc::clone(&sink) as _);
        let thread = {
            let display = Arc::clone(&display);
            std::thread::spawn(move || parse(&["a", "b"], 20_000).unwrap().send(&display))
        };
        while sink.keys().is_empty() {
            std::thread::yield_now();
        }
        display.disconnect();
        thread.join().unwrap();
        // The keyboard is gone; the second chord is not sent.
        assert_eq!(sink.keys(), "+1e");
    }

    #[test]
    fn what_cannot_be_sent() {
        let unknown = |chord: &str, name: &str| KeysError::Unknown { chord: chord.into(), name: name.into() };
        assert_eq!(parse(&["ctrl-foo"], 1), Err(unknown("ctrl-foo", "foo")));
        assert_eq!(parse(&["ctrl-"], 1), Err(unknown("ctrl-", "")));
        assert_eq!(parse(&[], 1), Err(KeysError::None));
        assert_eq!(parse(&["a"; 257], 0), Err(KeysError::TooMany));
        assert_eq!(parse(&["a-a-a-a-a-a-a-a-a-a-a-a-a-a-a-a-a"], 1), Err(KeysError::TooMany));
        assert_eq!(parse(&["a"], 60_000), Err(KeysError::TooLong));
        assert_eq!(KeySequence::parse(&["a".into()], Some(Duration::MAX)), Err(KeysError::TooLong));
    }
}
