//! A viewer that has been let in: what it is told, and what it does.

use std::collections::VecDeque;
use std::sync::Arc;

use devices::display::InputSink;
use vmm_sys_util::eventfd::EventFd;

use super::encoder::Encoder;
use super::pixel::{NATIVE, Translator};
use super::pointer::Pointer;
use super::protocol::{Encodings, Features, Message, pseudo, put_rectangle};
use crate::display::keys::{Keymap, Typist};
use crate::display::{Area, Display, Ready, Status, Watcher};

/// Bytes of an update that wait for the viewer to take them, before more of it is made: one rectangle may go beyond.
const CHUNK: usize = 64 << 10;
/// Rectangles of an update; one more would be one around all of them.
const RECTANGLES_MAX: usize = 0xff00;

/// ExtendedDesktopSize: who asked for the change, and what became of it.
const BY_SERVER: (usize, usize) = (0, 0);
const BY_CLIENT_PROHIBITED: (usize, usize) = (1, 1);

/// What a viewer is to be told with its next update, besides pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pending {
    size: Option<(usize, usize)>,
    cursor: bool,
    extended_key: bool,
    pointer: bool,
    leds: bool,
}

/// What has been begun of an update.
#[derive(Debug)]
struct Update {
    areas: VecDeque<Area>,
}

/// A viewer. Keys and buttons that it holds go up when it is dropped.
#[derive(Debug)]
pub(super) struct Viewer {
    display: Arc<Display>,
    watcher: Watcher,
    encoder: Encoder,
    typist: Typist,
    pointer: Pointer,
    features: Features,
    pending: Pending,
    colour_map: bool,
    /// The size that the viewer believes in, and the one that it would be told if it could be.
    size: (usize, usize),
    seen: (usize, usize),
    told: Status,
    /// What it has asked for and not got: changes in an area, an area in any case, and the look at the screen that the
    /// latter waits for.
    request: Option<Area>,
    incremental: bool,
    forced: Area,
    look: Option<u64>,
    update: Option<Update>,
}

impl Viewer {
    /// Somebody new, who gets ServerInit (RFC 6143, section 7.3.2).
    pub(super) fn new(
        display: &Arc<Display>,
        keymap: Arc<Keymap>,
        name: &str,
        wake: Arc<EventFd>,
        out: &mut Vec<u8>,
    ) -> Viewer {
        let watcher = display.watch(wake);
        // Many viewers cannot be told of another size later.
        let frame = display.picture();
        let size = (frame.width, frame.height);
        for side in [size.0, size.1] {
            out.extend_from_slice(&u16::try_from(side).unwrap_or(u16::MAX).to_be_bytes());
        }
        out.extend_from_slice(&NATIVE.emit());
        out.extend_from_slice(&u32::try_from(name.len()).unwrap_or_default().to_be_bytes());
        out.extend_from_slice(name.as_bytes());
        Viewer {
            display: Arc::clone(display),
            watcher,
            encoder: Encoder::new(),
            typist: Typist::new(keymap),
            pointer: Pointer::default(),
            features: Features::default(),
            pending: Pending::default(),
            colour_map: false,
            size,
            seen: size,
            told: Status { leds: display.leds(), absolute: display.is_absolute() },
            request: None,
            incremental: false,
            forced: Area::default(),
            look: None,
            update: None,
        }
    }

    /// Does what a message says.
    pub(super) fn message(&mut self, message: Message) {
        match message {
            Message::PixelFormat(format) => {
                self.colour_map = !format.true_colour;
                self.encoder.set_format(format);
            }
            Message::Encodings(encodings) => self.set_encodings(&encodings),
            Message::UpdateRequest { incremental, area } => {
                let area = area.and(self.screen());
                self.request = Some(self.request.unwrap_or_default().around(area));
                self.incremental |= incremental;
                if !incremental {
                    self.forced = self.forced.around(area);
                    self.look = Some(self.watcher.next_look());
                }
            }
            Message::Key { down, keysym } => self.typist.symbol(&*self.display, keysym, down),
            Message::ExtendedKey { down, keysym, code } => match scan_code(code) {
                Some(code) => self.typist.key(&*self.display, code, down),
                None => self.typist.symbol(&*self.display, keysym, down),
            },
            Message::Pointer { buttons, x, y } => {
                let relative = self.features.pointer_type && !self.told.absolute && !self.pending.pointer;
                self.pointer.event(&*self.display, buttons, (x, y), self.size, relative);
            }
            Message::SetDesktopSize => {
                // It is the guest that decides.
                if self.features.extended_desktop_size {
                    self.pending.size = Some(BY_CLIENT_PROHIBITED);
                }
            }
            Message::CutText(_) => {}
        }
    }

    fn screen(&self) -> Area {
        Area::whole(self.size.0, self.size.1)
    }

    fn set_encodings(&mut self, encodings: &Encodings) {
        let (before, now) = (self.features, encodings.features);
        self.encoder.set_encoding(encodings.encoding, encodings.level);
        self.features = now;
        if now.extended_desktop_size && !before.extended_desktop_size {
            self.pending.size = Some(BY_SERVER);
        }
        self.pending.cursor |= now.cursor && !before.cursor;
        self.pending.extended_key |= now.extended_key && !before.extended_key;
        self.pending.pointer |= now.pointer_type && !before.pointer_type;
        self.pending.leds |= now.led_state && !before.led_state;
    }

    /// Adds to `out` what there is to say, if the viewer has taken what was there before.
    pub(super) fn produce(&mut self, out: &mut Vec<u8>) {
        if !out.is_empty() {
            return;
        }
        if self.update.is_none() {
            if std::mem::take(&mut self.colour_map) {
                out.extend_from_slice(&Translator::colour_map());
            }
            self.begin(out);
        }
        self.go_on(out);
    }

    /// Begins an update if one was asked for and there is something in it.
    fn begin(&mut self, out: &mut Vec<u8>) {
        let Some(request) = self.request else { return };
        let ready = loop {
            // Who asks for a part gets that part: what has changed around it can wait.
            let area = if self.incremental { request } else { self.forced.whole_tiles(self.screen()) };
            let ready = self.watcher.take(area, self.seen, self.told, self.look);
            let Some(ready) = ready else { break None };
            if (ready.frame.width, ready.frame.height) != self.seen {
                self.seen = (ready.frame.width, ready.frame.height);
                if self.resize(out) {
                    return;
                }
                // A viewer that cannot follow sees a part, or black around it.
                (self.forced, self.incremental) = (self.screen(), true);
                continue;
            }
            self.note(ready.status);
            // A change of the state alone may be one that this viewer does not want to know.
            if self.look.is_none() && ready.areas.is_empty() && self.pending == Pending::default() {
                continue;
            }
            break Some(ready);
        };
        if ready.is_none() && (self.look.is_some() || self.pending == Pending::default()) {
            return;
        }
        let areas = ready.map(|ready| self.areas(ready)).unwrap_or_default();
        let mut notes = Vec::new();
        let count = self.put_notes(&mut notes);
        let mut areas: VecDeque<Area> =
            areas.into_iter().flat_map(|area| self.encoder.rectangles(area)).collect();
        if areas.len() > RECTANGLES_MAX {
            let all = areas.iter().fold(Area::default(), |all, area| all.around(*area));
            areas = self.encoder.rectangles(all).collect();
        }
        put_update(u16::try_from(areas.len() + count).unwrap_or(u16::MAX), out);
        out.append(&mut notes);
        self.update = Some(Update { areas });
        (self.request, self.incremental) = (None, false);
    }

    /// What is to be sent of a picture: what was asked for in any case, and what has changed elsewhere.
    fn areas(&mut self, ready: Ready) -> Vec<Area> {
        let screen = self.screen();
        let forced = std::mem::take(&mut self.forced).and(screen);
        self.look = None;
        let others = ready.areas.into_iter().map(|area| area.and(screen));
        let others = others.filter(|area| !area.is_empty() && area.and(forced) != *area);
        [forced].into_iter().filter(|area| !area.is_empty()).chain(others).collect()
    }

    /// Tells the viewer that the picture has another size, in an update of its own; false: it would not understand.
    fn resize(&mut self, out: &mut Vec<u8>) -> bool {
        if !self.features.desktop_size && !self.features.extended_desktop_size {
            return false;
        }
        self.size = self.seen;
        put_update(1, out);
        if self.features.extended_desktop_size {
            self.pending.size = None;
            put_desktop(self.screen(), BY_SERVER, out);
        } else {
            put_rectangle(self.screen(), pseudo::DESKTOP_SIZE, out);
        }
        (self.request, self.incremental, self.forced, self.look) = (None, false, Area::default(), None);
        true
    }

    fn note(&mut self, status: Status) {
        self.pending.leds |= self.features.led_state && status.leds != self.told.leds;
        self.pending.pointer |= self.features.pointer_type && status.absolute != self.told.absolute;
        self.told = status;
    }

    /// Adds the rectangles without pixels; how many they are.
    fn put_notes(&mut self, out: &mut Vec<u8>) -> usize {
        let pending = std::mem::take(&mut self.pending);
        let mut count = 0;
        if let Some(reason) = pending.size {
            put_desktop(self.screen(), reason, out);
            count += 1;
        }
        let mut note = |wanted: bool, area: Area, encoding: i32, content: &[u8]| {
            if wanted {
                put_rectangle(area, encoding, out);
                out.extend_from_slice(content);
                count += 1;
            }
        };
        // The guest draws its pointer itself: the viewer's own one has no pixels.
        note(pending.cursor, Area::default(), pseudo::CURSOR, &[]);
        note(pending.extended_key, Area::default(), pseudo::EXTENDED_KEY, &[]);
        let kind = Area { x: usize::from(self.told.absolute), ..self.screen() };
        note(pending.pointer, kind, pseudo::POINTER_TYPE, &[]);
        note(pending.leds, Area::default(), pseudo::LED_STATE, &[self.told.leds & 7]);
        count
    }

    /// Adds the next rectangles of the update that was begun, with the pixels as they are now.
    fn go_on(&mut self, out: &mut Vec<u8>) {
        let Some(update) = &mut self.update else { return };
        let frame = self.watcher.frame();
        if self.features.last_rect && !update.areas.is_empty() && (frame.width, frame.height) != self.seen {
            // The rest is of no use: the number of rectangles was told, but the update may end before.
            put_rectangle(Area::default(), pseudo::LAST_RECT, out);
            self.update = None;
            return;
        }
        while out.len() < CHUNK {
            let Some(area) = update.areas.pop_front() else { break };
            self.encoder.encode(&frame, area, out);
        }
        if update.areas.is_empty() {
            self.update = None;
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.typist.release_all(&*self.display);
        self.pointer.release(&*self.display);
    }
}

/// The head of a FramebufferUpdate.
fn put_update(rectangles: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&rectangles.to_be_bytes());
}

/// ExtendedDesktopSize with one screen.
fn put_desktop(screen: Area, (reason, result): (usize, usize), out: &mut Vec<u8>) {
    put_rectangle(Area { x: reason, y: result, ..screen }, pseudo::EXTENDED_DESKTOP_SIZE, out);
    // One screen; its number 0, its place, its size, its flags.
    out.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for side in [screen.width, screen.height] {
        out.extend_from_slice(&u16::try_from(side).unwrap_or(u16::MAX).to_be_bytes());
    }
    out.extend_from_slice(&[0; 4]);
}

/// A scan code as QEMU's extended key event has it: with the prefix 0xe0 its highest bit is set. `None`: there is none.
fn scan_code(code: u32) -> Option<u16> {
    match u16::try_from(code).ok()? {
        // Print Screen with Alt, which is the same key.
        0x54 => Some(0xe037),
        code @ 0x01..=0x7f => Some(code),
        code @ 0x81..=0xff => Some(0xe000 | code & 0x7f),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scan_codes_of_extended_keys() {
        for (code, expected) in [
            (0x1e, Some(0x1e)),
            (0xc8, Some(0xe048)),
            (0xc6, Some(0xe046)),
            (0x54, Some(0xe037)),
            (0xb7, Some(0xe037)),
        ] {
            assert_eq!(scan_code(code), expected);
        }
        for none in [0, 0x80, 0x100, 0xe048, u32::MAX] {
            assert_eq!(scan_code(none), None);
        }
    }
}
