//! Viewers that lie, flood, or do not listen.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use super::super::connection::End;
use super::super::protocol::Refusal;
use super::client::{Client, Server};

#[test]
fn who_speaks_something_else_is_refused_at_the_first_bytes() {
    let server = Server::new(8, 8);
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"RFB 003.00x\n", b"RFX", b"\0"] {
        let (mut stream, thread) = server.connect();
        stream.write_all(words).unwrap();
        assert!(matches!(thread.join().unwrap(), End::Refused(Refusal::Version)), "{words:?}");
    }
}

#[test]
fn lies_end_the_connection_and_nothing_else() {
    let server = Server::new(64, 64);
    let mut honest = server.viewer(&[16]);
    honest.full();
    for lie in [
        &[99][..],
        &[2, 0, 0xff, 0xff],
        &[6, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff],
        &[0, 0, 0, 0, 24, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0],
        &[0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 200, 8, 0, 0, 0, 0],
        &[255, 9],
        &[150, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let mut liar = server.viewer(&[0]);
        liar.key(0x61, true);
        liar.full();
        liar.send(lie);
        assert!(liar.is_closed(), "{lie:?}");
        assert!(matches!(liar.end(), End::Refused(_)), "{lie:?}");
    }
    // Its keys went up each time.
    assert!(server.sink.keys().ends_with("+1e -1e"));
    server.screen.fill(0, 0, 9, 9, 9);
    let expected = server.screen.frame().pixels;
    honest.until(&expected);
}

#[test]
fn a_viewer_that_takes_nothing_costs_one_piece_of_an_update() {
    let server = Server::new(1024, 768);
    server.screen.noise(1);
    let mut deaf = server.viewer(&[0]);
    deaf.request(false);
    // The screen goes on, and so do others; the deaf one has its piece, and asks for nothing more.
    let mut other = server.viewer(&[16]);
    for seed in 2..8 {
        server.screen.noise(seed);
        other.full();
        assert!(other.pixels == server.screen.frame().pixels);
    }
    // Its keys still arrive: it is heard though it does not listen.
    deaf.key(0x62, true);
    while !server.sink.keys().contains("+30") {
        std::thread::sleep(Duration::from_millis(1));
    }
    // When it listens at last, it gets the whole update, and then the picture as it is now.
    deaf.update();
    deaf.until(&server.screen.frame().pixels.clone());
    assert!(matches!(deaf.end(), End::Left));
    assert!(server.sink.keys().ends_with("-30"));
}

#[test]
fn requests_without_end_are_answered_one_at_a_time() {
    let server = Server::new(320, 200);
    server.screen.noise(1);
    let mut flood = server.viewer(&[0]);
    let looks = server.screen.looks();
    for _ in 0..5000 {
        flood.request(false);
    }
    flood.update();
    flood.key(0x61, true);
    while !server.sink.keys().contains("+1e") {
        // Nothing that was asked for is lost: the last request has an answer.
        flood.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut byte = [0; 65536];
        match flood.stream.read(&mut byte) {
            Ok(len) => assert!(len > 0),
            Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)),
        }
    }
    let used = server.screen.looks() - looks;
    assert!(used < 500, "{used} looks at the screen for 5000 requests");
}

#[test]
fn cut_text_is_skipped_to_its_limit() {
    let server = Server::new(8, 8);
    let mut client = server.viewer(&[0]);
    let len = 100_000_u32;
    client.send(&[6, 0, 0, 0]);
    client.send(&len.to_be_bytes());
    client.send(&vec![0x63; len as usize]);
    client.key(0x61, true);
    client.full();
    assert_eq!(server.sink.keys(), "+1e");
}

#[test]
fn a_message_in_single_bytes_is_understood() {
    let server = Server::new(8, 8);
    let (stream, thread) = server.connect();
    let mut client = Client::new(stream, thread);
    client.bytes(12);
    for byte in b"RFB 003.008\n\x01\x01\x04\x01\x00\x00\x00\x00\x00\x61" {
        client.send(&[*byte]);
    }
    // Security types, the result, ServerInit.
    client.bytes(2 + 4 + 24 + 3);
    while server.sink.keys().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(server.sink.keys(), "+1e");
}

#[test]
fn those_who_only_connect_make_room_for_others() {
    let server = Server::new(8, 8);
    let (first, first_thread) = server.connect();
    let others: Vec<_> = (0..16).map(|_| server.connect()).collect();
    assert!(matches!(first_thread.join().unwrap(), End::Stopped));
    drop(first);
    let mut viewer = server.viewer(&[0]);
    viewer.full();
    assert_eq!(server.peers.viewers(), 1);
    drop(others);
}
