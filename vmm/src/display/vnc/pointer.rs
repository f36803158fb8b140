//! A viewer's pointer.

use devices::display::{Input, InputSink};

/// A relative position says 0 by this (QEMU's pseudo-encoding for relative pointers).
const CENTRE: i32 = 0x7fff;

const WHEEL_UP: u8 = 1 << 3;
const WHEEL_DOWN: u8 = 1 << 4;

/// Where it was, and which buttons were held.
#[derive(Debug, Default)]
pub(super) struct Pointer {
    last: Option<(u16, u16)>,
    mask: u8,
}

impl Pointer {
    /// A PointerEvent of a viewer whose picture has this size. `relative`: the viewer was told that positions are so.
    pub(super) fn event(
        &mut self,
        sink: &dyn InputSink,
        mask: u8,
        at: (u16, u16),
        size: (usize, usize),
        relative: bool,
    ) {
        let pressed = mask & !self.mask;
        let changed = buttons(mask) != buttons(self.mask);
        let dz = i8::from(pressed & WHEEL_DOWN != 0) - i8::from(pressed & WHEEL_UP != 0);
        self.mask = mask;
        let buttons = buttons(mask);
        let moved = if sink.is_absolute() {
            let scaled = |at: u16, side: usize| {
                let at = usize::from(at).min(side.saturating_sub(1));
                u16::try_from(at * 0x7fff / side.saturating_sub(1).max(1)).unwrap_or(0x7fff)
            };
            sink.input(Input::Absolute { x: scaled(at.0, size.0), y: scaled(at.1, size.1), buttons });
            (0, 0)
        } else if relative {
            (i32::from(at.0) - CENTRE, i32::from(at.1) - CENTRE)
        } else {
            let (x, y) = self.last.unwrap_or(at);
            (i32::from(at.0) - i32::from(x), i32::from(at.1) - i32::from(y))
        };
        self.last = Some(at);
        let cut = |d: i32| i16::try_from(d).unwrap_or(if d < 0 { i16::MIN } else { i16::MAX });
        if moved != (0, 0) || dz != 0 || (changed && !sink.is_absolute()) {
            sink.input(Input::Relative { dx: cut(moved.0), dy: cut(moved.1), dz, buttons });
        }
    }

    /// All buttons go up.
    pub(super) fn release(&mut self, sink: &dyn InputSink) {
        if buttons(std::mem::take(&mut self.mask)) != 0 {
            sink.input(Input::Relative { dx: 0, dy: 0, dz: 0, buttons: 0 });
        }
    }
}

/// From the protocol's left, middle, right to left, right, middle.
fn buttons(mask: u8) -> u8 {
    mask & 1 | mask >> 1 & 2 | mask << 1 & 4
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Recorder;
    use super::*;

    fn relative(dx: i16, dy: i16, dz: i8, buttons: u8) -> Input {
        Input::Relative { dx, dy, dz, buttons }
    }

    #[test]
    fn a_mouse_moves_by_differences() {
        let sink = Recorder::new();
        let mut pointer = Pointer::default();
        for (mask, at) in [(0, (100, 100)), (0, (105, 98)), (1, (105, 98)), (1, (105, 98)), (0, (0, 0xffff))]
        {
            pointer.event(&*sink, mask, at, (640, 480), false);
        }
        let expected = [relative(5, -2, 0, 0), relative(0, 0, 0, 1), relative(-105, i16::MAX, 0, 0)];
        assert_eq!(sink.events(), expected);
    }

    #[test]
    fn a_viewer_that_was_told_so_sends_differences_itself() {
        let sink = Recorder::new();
        let mut pointer = Pointer::default();
        pointer.event(&*sink, 2, (0x7fff + 3, 0x7fff - 4), (640, 480), true);
        pointer.event(&*sink, 4, (0x7fff, 0x7fff), (640, 480), true);
        pointer.event(&*sink, 0, (0, 0xffff), (640, 480), true);
        assert_eq!(
            sink.events(),
            [relative(3, -4, 0, 4), relative(0, 0, 0, 2), relative(-0x7fff, i16::MAX, 0, 0)]
        );
    }

    #[test]
    fn a_tablet_is_told_places() {
        let sink = Recorder::new();
        sink.set_absolute(true);
        let mut pointer = Pointer::default();
        for at in [(0, 0), (639, 479), (320, 9999)] {
            pointer.event(&*sink, 0, at, (640, 480), false);
        }
        let absolute = |x, y| Input::Absolute { x, y, buttons: 0 };
        assert_eq!(sink.events(), [absolute(0, 0), absolute(0x7fff, 0x7fff), absolute(16409, 0x7fff)]);
        pointer.event(&*sink, 1, (0, 0), (0, 1), false);
        assert_eq!(sink.events().last(), Some(&Input::Absolute { x: 0, y: 0, buttons: 1 }));
    }

    #[test]
    fn the_wheel_turns_when_its_button_goes_down() {
        let sink = Recorder::new();
        let mut pointer = Pointer::default();
        for mask in [WHEEL_UP, WHEEL_UP, 0, WHEEL_DOWN, 0] {
            pointer.event(&*sink, mask, (1, 1), (640, 480), false);
        }
        assert_eq!(sink.events(), [relative(0, 0, -1, 0), relative(0, 0, 1, 0)]);
    }

    #[test]
    fn buttons_are_released_once() {
        let sink = Recorder::new();
        let mut pointer = Pointer::default();
        pointer.event(&*sink, 1, (1, 1), (640, 480), false);
        pointer.release(&*sink);
        pointer.release(&*sink);
        assert_eq!(sink.events(), [relative(0, 0, 0, 1), relative(0, 0, 0, 0)]);
    }
}
