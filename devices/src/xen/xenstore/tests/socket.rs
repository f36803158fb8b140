//! What only the socket has: clients that come, go, or do not read.

use super::*;

fn pair(client: &mut SocketClient, store: &mut XenStore) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    client.server.add_client(ours, store).unwrap();
    theirs
}

#[test]
fn a_closed_client_takes_its_watches_along() {
    let mut store = XenStore::new();
    let mut client = SocketClient::new(&mut store, 0);
    client.stream.write_all(&message(4, 1, 0, b"/w\0t\0")).unwrap();
    client.server.process(&mut store).unwrap();
    assert_eq!((client.server.clients(), store.watches(DomId(0))), (1, 1));
    client.stream.shutdown(std::net::Shutdown::Both).unwrap();
    client.server.process(&mut store).unwrap();
    assert_eq!((client.server.clients(), store.watches(DomId(0))), (0, 0));
}

#[test]
fn a_message_too_long_disconnects() {
    let mut store = XenStore::new();
    let mut client = SocketClient::new(&mut store, 0);
    client.stream.write_all(&Header { kind: 2, req_id: 0, tx_id: 0, len: 5000 }.emit()).unwrap();
    client.server.process(&mut store).unwrap();
    assert_eq!(client.server.clients(), 0);
    assert_eq!(client.stream.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn clients_past_the_limit_are_turned_away() {
    let mut store = XenStore::new();
    let mut client = SocketClient::new(&mut store, 0);
    let address = client.stream.peer_addr().unwrap();
    let more: Vec<UnixStream> = (0..66)
        .map(|_| {
            let stream = UnixStream::connect_addr(&address).unwrap();
            client.server.process(&mut store).unwrap();
            stream
        })
        .collect();
    assert_eq!(client.server.clients(), 64);
    let mut last = more.last().unwrap();
    assert_eq!(last.read(&mut [0; 16]).unwrap(), 0, "closed at once");
    drop(more);
    for _ in 0..3 {
        client.server.process(&mut store).unwrap();
    }
    assert_eq!(client.server.clients(), 1);
}

#[test]
fn a_client_that_does_not_read_its_replies_is_not_read() {
    let mut store = XenStore::new();
    let mut client = SocketClient::new(&mut store, 0);
    store.write("/v", vec![b'v'; 4000]).unwrap();
    let request = message(2, 1, 0, b"/v\0");
    let mut sent = 0;
    // Until the socket is full both ways, and the server stopped reading.
    let mut still = 0;
    while still < 10 {
        match client.stream.write(&request) {
            Ok(count) => {
                assert_eq!(count, request.len());
                sent += 1;
                still = 0;
            }
            Err(_) => still += 1,
        }
        client.server.process(&mut store).unwrap();
        assert!(store.transient_memory(DomId(0)) < 100 << 10);
    }
    let mut received = 0;
    let mut buffer = vec![0; 1 << 16];
    while received < sent * 4016 {
        received += client.stream.read(&mut buffer).unwrap_or(0);
        client.server.process(&mut store).unwrap();
    }
    assert_eq!(received, sent * 4016, "each request has its reply");
}

#[test]
fn a_client_that_does_not_read_its_events_is_disconnected() {
    let mut store = XenStore::new();
    let mut client = SocketClient::new(&mut store, 0);
    let reader = pair(&mut client, &mut store);
    client.stream.write_all(&message(4, 1, 0, b"/w\0t\0")).unwrap();
    client.server.process(&mut store).unwrap();
    for i in 0..100_000 {
        store.write(&format!("/w/{i}"), "").unwrap();
        store.rm(&format!("/w/{i}")).unwrap();
        client.server.flush(&mut store).unwrap();
        assert!(store.transient_memory(DomId(0)) < 2 << 20);
        if client.server.clients() == 1 {
            break;
        }
    }
    assert_eq!(client.server.clients(), 1, "only the one that does not watch is left");
    drop(reader);
}
