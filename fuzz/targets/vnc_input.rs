//! What a VNC viewer sends, from the first byte on.
//!
//! Input: the first byte says whether there is a password (bit 0), how the screen begins and whether the handshake is
//! done already (bit 1); then steps: bytes that come, in pieces of a length, changes of the screen, and bytes that the
//! viewer takes.

#![no_main]

use std::sync::Arc;

use devices::display::Frame;
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use xvmm::display::Display;
use xvmm::display::keys::Keymap;
use xvmm::display::testing::{Recorder, TestScreen};
use xvmm::display::vnc::peers::{Peers, Stop};
use xvmm::display::vnc::{Password, Session, Setup};
use xvmm_fuzz::Input;

/// Bytes that a viewer that takes nothing may cost: a chunk, a rectangle of 2048 by 64 pixels, a colour map.
const OUTPUT_MAX: usize = (64 << 10) + 2048 * 64 * 5 + 8192;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let flags = input.u8();
    let password = (flags & 1 != 0).then(|| Password::new("secret").expect("a password"));
    let layouts: Vec<&str> = Keymap::names().collect();
    let keymap = layouts.get(usize::from(flags >> 4)).copied().unwrap_or("us");
    let (display, sink) = (Display::new(), Recorder::new());
    let screen = TestScreen::new(100, 70);
    screen.noise(flags.into());
    display.connect(Box::new(screen.clone()), Arc::clone(&sink) as _);
    let setup = Setup {
        display: Arc::clone(&display),
        password,
        keymap: Arc::new(Keymap::named(keymap).expect("a layout")),
        name: "fuzz".into(),
    };
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    let peers = Arc::new(Peers::default());
    let id = peers.add(Stop::new(Arc::clone(&wake)));
    let mut session = Session::new(Arc::new(setup), peers, id, [7; 16], wake);
    let mut refused = false;
    if flags & 2 != 0 {
        refused = session.receive(b"RFB 003.008\n\x01\x01").is_err();
    }
    while !input.is_empty() && !refused {
        match input.u8() {
            0x80..=0xbf => drop(session.output().drain(..)),
            0xc0..=0xc7 => {
                let taken = usize::from(input.u8()).min(session.output().len());
                session.output().drain(..taken);
            }
            0xc8..=0xcf => screen.fill(input.u8().into(), input.u8().into(), 20, 9, input.u32()),
            0xd0..=0xd7 => {
                let (width, height) = (usize::from(input.u8()), usize::from(input.u8()));
                screen.show(Frame { width, height, pixels: vec![input.u32(); width * height] });
            }
            0xd8..=0xdf => drop(display.picture()),
            0xe0..=0xe7 => sink.set_leds(input.u8()),
            0xe8..=0xef => sink.set_absolute(input.u8() & 1 != 0),
            len => {
                let bytes = input.bytes(len.into());
                refused = session.receive(bytes).is_err();
            }
        }
        session.produce();
        assert!(session.output().len() <= OUTPUT_MAX, "{}", session.output().len());
    }
    drop(session);
    // Nothing stays pressed.
    let mut held = std::collections::BTreeSet::new();
    for key in sink.keys().split(' ').filter(|key| !key.is_empty()) {
        match key.split_at(1) {
            ("+", code) => drop(held.insert(code.to_owned())),
            (_, code) => drop(held.remove(code)),
        }
    }
    assert!(held.is_empty() || sink.events().len() >= 1 << 16, "{held:?}");
    assert_eq!(display.watchers(), 0);
});
