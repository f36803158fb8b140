//! What viewers see.

use super::super::pixel::{NATIVE, PixelFormat, Translator};
use super::client::{Client, Note, Server};

const RAW: i32 = 0;
const ZLIB: i32 = 6;
const TIGHT: i32 = 7;
const ZRLE: i32 = 16;
const ALL: [i32; 4] = [RAW, ZLIB, TIGHT, ZRLE];
const LAST_RECT: i32 = -224;

/// The pixels of the screen as values of a format.
fn expected(server: &Server, format: PixelFormat) -> Vec<u32> {
    let translator = Translator::new(format);
    let value = |rgb: u32| {
        let mut bytes = Vec::new();
        translator.put(rgb, &mut bytes);
        if format.big_endian {
            bytes.reverse();
        }
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    };
    server.screen.frame().pixels.into_iter().map(value).collect()
}

fn formats() -> Vec<PixelFormat> {
    let rgb565 = PixelFormat { bits: 16, depth: 16, max: [31, 63, 31], shift: [11, 5, 0], ..NATIVE };
    let bgr233 = PixelFormat { bits: 8, depth: 8, max: [7, 7, 3], shift: [0, 3, 6], ..NATIVE };
    let big = |format| PixelFormat { big_endian: true, ..format };
    let high = PixelFormat { shift: [24, 16, 8], ..NATIVE };
    let bgr = PixelFormat { shift: [0, 8, 16], ..NATIVE };
    let rgb555 = PixelFormat { depth: 15, max: [31; 3], shift: [10, 5, 0], ..rgb565 };
    let deep = PixelFormat { depth: 30, max: [1023; 3], shift: [20, 10, 0], ..NATIVE };
    let all = PixelFormat { depth: 32, ..NATIVE };
    vec![NATIVE, big(NATIVE), rgb565, big(rgb565), rgb555, bgr233, high, big(high), bgr, deep, all]
}

#[test]
fn every_encoding_shows_every_pixel_in_every_format() {
    let server = Server::new(203, 171);
    server.screen.noise(1);
    for encoding in ALL {
        let mut client = server.viewer(&[encoding]);
        client.full();
        assert!(client.pixels == server.screen.frame().pixels, "{encoding}");
        // Streams go on through changes of the format and of the level.
        for (round, format) in formats().into_iter().enumerate() {
            client.set_format(format);
            client.set_encodings(&[encoding, -256 + i32::try_from(round).unwrap() % 10]);
            client.full();
            assert!(client.pixels == expected(&server, format), "{encoding} {format:?}");
        }
    }
}

#[test]
fn encodings_are_smaller_than_pixels() {
    let server = Server::new(640, 480);
    server.screen.fill(100, 100, 200, 50, 0x12_3456);
    for encoding in [ZLIB, TIGHT, ZRLE] {
        let mut client = server.viewer(&[encoding, LAST_RECT]);
        client.request(false);
        // The fewest bytes that an update of this kind may have, and a limit: of 1.2 MB that all pixels are.
        let mut taken = 0;
        while client.pixels != server.screen.frame().pixels {
            let before = client.drawn;
            client.update();
            taken += client.drawn - before;
            if client.pixels != server.screen.frame().pixels {
                client.request(true);
            }
        }
        assert_eq!(taken, 640 * 480, "{encoding}");
    }
}

#[test]
fn large_pictures_come_in_pieces() {
    let server = Server::new(2500, 130);
    server.screen.noise(9);
    for encoding in ALL {
        for end in [None, Some(LAST_RECT)] {
            let encodings: Vec<i32> = [encoding].into_iter().chain(end).collect();
            let mut client = server.viewer(&encodings);
            let notes = client.full();
            // Their number was told; there are viewers that overlook the mark.
            assert_eq!(notes, []);
            assert!(client.pixels == server.screen.frame().pixels, "{encoding}");
        }
    }
}

#[test]
fn a_viewer_with_a_colour_map_is_given_one() {
    let server = Server::new(70, 70);
    server.screen.fill(0, 0, 70, 35, 0xff_8000);
    let mapped = PixelFormat { bits: 8, depth: 8, true_colour: false, max: [0; 3], shift: [0; 3], ..NATIVE };
    for encoding in ALL {
        let mut client = server.viewer(&[encoding]);
        client.set_format(mapped);
        client.full();
        assert_eq!(client.colour_map.len(), 256);
        let colour = client.colour_map[client.pixels[0] as usize].map(|value| value >> 8);
        assert_eq!((colour, client.pixels[70 * 69]), ([0xff, 0x92, 0], 0), "{encoding}");
    }
}

#[test]
fn only_what_has_changed_is_sent_again() {
    let server = Server::new(320, 200);
    let mut client = server.viewer(&[ZRLE]);
    client.full();
    assert_eq!(client.drawn, 320 * 200);
    server.screen.fill(33, 50, 1, 1, 0xffff);
    client.request(true);
    client.update();
    assert_eq!(client.drawn, 320 * 200 + 16 * 16);
    assert!(client.pixels == server.screen.frame().pixels);
}

#[test]
fn a_part_is_sent_to_who_asks_for_a_part() {
    let server = Server::new(320, 200);
    server.screen.noise(2);
    let mut client = server.viewer(&[RAW]);
    client.request_area(false, [10, 20, 5, 7]);
    client.update();
    assert_eq!(client.drawn, 5 * 7);
    // Outside of the picture there is nothing.
    client.request_area(false, [319, 199, 100, 100]);
    client.update();
    assert_eq!(client.drawn, 5 * 7 + 1);
    client.request_area(false, [400, 400, 100, 100]);
    client.update();
    assert_eq!(client.drawn, 5 * 7 + 1);
}

#[test]
fn nothing_comes_while_nothing_changes() {
    let server = Server::new(64, 64);
    let mut client = server.viewer(&[RAW, -224]);
    client.full();
    client.request(true);
    let looks = server.screen.looks();
    while server.screen.looks() < looks + 4 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    client.stream.set_nonblocking(true).unwrap();
    let mut byte = [0];
    let error = std::io::Read::read(&mut client.stream, &mut byte).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    client.stream.set_nonblocking(false).unwrap();
    server.screen.fill(0, 0, 1, 1, 1);
    client.update();
    assert!(client.pixels == server.screen.frame().pixels);
}

/// Shows a picture of another size, and follows.
fn after_a_resize(server: &Server, client: &mut Client) -> Vec<Note> {
    client.full();
    server.screen.show(devices::display::Frame { width: 90, height: 33, pixels: vec![0x77_6655; 90 * 33] });
    let mut notes = Vec::new();
    while (client.width, client.height) != (90, 33) {
        client.request(true);
        notes.extend(client.update());
    }
    let expected = server.screen.frame().pixels;
    client.until(&expected);
    notes
}

#[test]
fn viewers_follow_another_size_of_the_screen() {
    for encoding in ALL {
        let server = Server::new(64, 64);
        let notes = after_a_resize(&server, &mut server.viewer(&[encoding, -223]));
        assert_eq!(notes, [Note::Size(90, 33)]);
        let server = Server::new(64, 64);
        let notes = after_a_resize(&server, &mut server.viewer(&[encoding, -223, -308]));
        assert_eq!(notes, [Note::ExtendedSize { reason: 0, result: 0, width: 90, height: 33 }]);
    }
}

#[test]
fn a_viewer_that_cannot_follow_sees_a_part_and_black_around_it() {
    let server = Server::new(64, 64);
    let mut client = server.viewer(&[TIGHT]);
    client.full();
    server.screen.show(devices::display::Frame { width: 100, height: 32, pixels: vec![7; 3200] });
    let expected: Vec<u32> = (0..64 * 64).map(|at| if at / 64 < 32 { 7 } else { 0 }).collect();
    client.pixels = vec![9; 64 * 64];
    client.until(&expected);
    // And goes on seeing it.
    server.screen.fill(0, 0, 1, 1, 8);
    let mut expected = expected;
    expected[0] = 8;
    client.until(&expected);
}

#[test]
fn capabilities_are_told_once_with_the_next_update() {
    let server = Server::new(64, 64);
    server.sink.set_leds(2);
    let mut client = server.viewer(&[RAW, -223, -308, -239, -257, -258, -261]);
    let size = Note::ExtendedSize { reason: 0, result: 0, width: 64, height: 64 };
    let notes = client.full();
    assert_eq!(
        notes,
        [size, Note::Cursor, Note::ExtendedKey, Note::Pointer { absolute: false }, Note::Leds(2)]
    );
    assert_eq!(client.full(), []);
    // A change of the lights and of the pointer is told, too.
    server.sink.set_leds(6);
    client.request(true);
    assert_eq!(client.update(), [Note::Leds(6)]);
    server.sink.set_absolute(true);
    client.request(true);
    assert_eq!(client.update(), [Note::Pointer { absolute: true }]);
}

#[test]
fn a_wish_for_another_size_is_refused() {
    let server = Server::new(64, 64);
    let mut client = server.viewer(&[RAW, -308]);
    client.full();
    let mut wish = vec![251, 0, 0, 99, 0, 99, 1, 0];
    wish.extend([0; 16]);
    client.send(&wish);
    client.request(true);
    assert_eq!(client.update(), [Note::ExtendedSize { reason: 1, result: 1, width: 64, height: 64 }]);
}

#[test]
fn a_picture_is_not_older_than_the_request_for_it() {
    let server = Server::new(64, 64);
    let mut client = server.viewer(&[RAW]);
    client.full();
    for colour in 1..20 {
        server.screen.fill(0, 0, 64, 64, colour);
        client.full();
        assert_eq!(client.pixels, vec![colour; 64 * 64]);
    }
}
