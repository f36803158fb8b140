//! The server against a viewer of its own, through sockets.
#![allow(clippy::unwrap_used)]

mod abuse;
mod client;
mod listening;
mod pictures;

use client::Server;

use super::connection::End;
use super::protocol::Refusal;

#[test]
fn every_version_comes_in_with_and_without_a_password() {
    for minor in [3, 7, 8] {
        for password in [None, Some("secret")] {
            let server = Server::with_password(33, 17, password);
            server.screen.noise(5);
            let (stream, thread) = server.connect();
            let mut client = client::Client::new(stream, thread);
            assert_eq!(client.handshake(minor, password), 0, "{minor} {password:?}");
            client.init(true);
            assert_eq!((client.width, client.height, client.name.as_str()), (33, 17, "web"));
            client.full();
            assert!(client.pixels == server.screen.frame().pixels, "{minor} {password:?}");
            assert!(matches!(client.end(), End::Left));
        }
    }
}

#[test]
fn a_wrong_password_is_refused_in_the_words_of_the_version() {
    for (minor, reason) in [(3, &b""[..]), (7, b""), (8, b"\0\0\0\x15the password is wrong")] {
        let server = Server::with_password(8, 8, Some("secret"));
        let (stream, thread) = server.connect();
        let mut client = client::Client::new(stream, thread);
        assert_eq!(client.handshake(minor, Some("Secret")), 1);
        assert_eq!(client.bytes(reason.len()), reason);
        assert!(client.is_closed());
        assert!(matches!(client.end(), End::Refused(Refusal::Password)));
    }
}

#[test]
fn a_security_type_that_was_not_offered_is_refused() {
    let server = Server::with_password(8, 8, Some("secret"));
    let (stream, thread) = server.connect();
    let mut client = client::Client::new(stream, thread);
    client.bytes(12);
    client.send(b"RFB 003.008\n");
    assert_eq!(client.bytes(2), [1, 2]);
    client.send(&[1]);
    assert_eq!(client.u32(), 1);
    assert!(matches!(client.end(), End::Refused(Refusal::Security(1))));
}

#[test]
fn keys_arrive_and_go_up_when_the_viewer_goes() {
    let server = Server::new(64, 64);
    let mut client = server.viewer(&[0, -258]);
    client.full();
    for (keysym, down) in [(0x40, true), (0x40, false), (0xffe3, true)] {
        client.key(keysym, down);
    }
    // Extended: the scan code counts.
    client.send(&[255, 0, 0, 1, 0, 0, 0, 0x79, 0, 0, 0, 0x2c]);
    client.send(&[5, 1, 0, 3, 0, 4]);
    client.full();
    assert!(matches!(client.end(), End::Left));
    assert_eq!(server.sink.keys(), "+2a +03 -2a -03 +1d +2c -1d -2c");
    let last = devices::display::Input::Relative { dx: 0, dy: 0, dz: 0, buttons: 0 };
    assert_eq!(server.sink.events().last(), Some(&last));
}

#[test]
fn an_exclusive_viewer_ends_the_others_and_keeps_shared_ones_out() {
    let server = Server::new(8, 8);
    let mut first = server.viewer(&[0]);
    first.full();
    let (stream, thread) = server.connect();
    let mut exclusive = client::Client::new(stream, thread);
    exclusive.handshake(8, None);
    exclusive.init(false);
    exclusive.full();
    assert!(first.is_closed());
    assert!(matches!(first.end(), End::Stopped));
    let (stream, thread) = server.connect();
    let mut third = client::Client::new(stream, thread);
    third.handshake(8, None);
    third.send(&[1]);
    assert!(third.is_closed());
    assert!(matches!(third.end(), End::Refused(Refusal::NotShared)));
    exclusive.full();
}

#[test]
fn sixteen_viewers_see_the_same_and_a_seventeenth_is_refused() {
    let server = Server::new(80, 50);
    let mut viewers: Vec<_> =
        [16, 7, 0, 6].iter().cycle().take(16).map(|encoding| server.viewer(&[*encoding])).collect();
    server.screen.noise(3);
    viewers.iter_mut().for_each(|viewer| drop(viewer.full()));
    let (stream, thread) = server.connect();
    let mut more = client::Client::new(stream, thread);
    more.handshake(8, None);
    more.send(&[1]);
    assert!(more.is_closed());
    assert!(matches!(more.end(), End::Refused(Refusal::TooMany)));
    server.screen.noise(4);
    let expected = server.screen.frame().pixels;
    viewers.iter_mut().for_each(|viewer| viewer.until(&expected));
    drop(viewers);
}
