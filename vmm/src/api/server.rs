//! The server: one listening socket and its clients, on the main thread's event loop.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::ApiHandler;
use super::http::{self, Response};
use super::reply::{Outbox, Ticket};
use super::routes::{self, Answer};

/// Clients at a time. When one more comes, the one that was silent for the longest time is dropped: idle
/// connections can neither use up descriptors nor lock anybody out. Those that wait for an answer are not
/// silent, and go only where all do.
const CLIENTS_MAX: usize = 16;

/// Bytes taken from a client per event, so that a busy one leaves the loop to the others.
const READ_CHUNK: usize = 4096;

/// The server of one domain.
#[derive(Debug)]
pub struct ApiServer<H> {
    listener: UnixListener,
    handler: H,
    outbox: Arc<Outbox>,
    clients: BTreeMap<RawFd, Client>,
    /// Counts events, to tell who was silent the longest.
    clock: u64,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// Received and not yet a whole request. Bounded by the limits in [`http`] and one chunk.
    input: Vec<u8>,
    /// Bytes of the answer that the client has not taken. While there are any, nothing is read.
    output: Vec<u8>,
    /// The connection ends behind the output.
    closing: bool,
    /// The answer to its last request is still to come. Nothing is read meanwhile.
    waiting: Option<Ticket>,
    last_active: u64,
}

impl<H: ApiHandler> ApiServer<H> {
    /// Listens on a new socket at `path`.
    pub fn bind(path: &Path, handler: H) -> io::Result<ApiServer<H>> {
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(ApiServer { listener, handler, outbox: Outbox::new()?, clients: BTreeMap::new(), clock: 0 })
    }

    /// The domain behind the API.
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// Sends the answers that have become ready, as far as they can be sent at once: the server ends.
    pub fn finish(&mut self) {
        for (ticket, response) in self.outbox.take() {
            if let Some(client) = self.clients.values_mut().find(|c| c.waiting == Some(ticket)) {
                client.take_answer(&response);
                let _ = client.send();
            }
        }
    }

    /// Passes on the answers that have become ready.
    fn deliver(&mut self, ops: &mut EventOps) {
        for (ticket, response) in self.outbox.take() {
            // A client that did not wait for its answer does not get it.
            let Some((fd, client)) = self.clients.iter_mut().find(|(_, c)| c.waiting == Some(ticket)) else {
                continue;
            };
            let fd = *fd;
            client.take_answer(&response);
            let result = client.go_on(&mut self.handler, &self.outbox);
            self.settle(fd, result, ops);
        }
    }

    /// Waits for what the client is to do next, or drops it.
    fn settle(&mut self, fd: RawFd, result: io::Result<()>, ops: &mut EventOps) {
        let Some(client) = self.clients.get(&fd) else { return };
        if result
            .and_then(|()| ops.modify(Events::new(&client.stream, client.wanted())).map_err(io::Error::other))
            .is_err()
        {
            self.close(fd, ops);
        }
    }

    /// Takes in everybody who waits: the listener is watched for edges, so that a failing accept does not
    /// turn the loop into a busy one.
    fn accept(&mut self, ops: &mut EventOps) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!("the API cannot take a connection: {error}");
                    return;
                }
            };
            if self.clients.len() >= CLIENTS_MAX {
                let silent = self.clients.iter().min_by_key(|(_, c)| (c.waiting.is_some(), c.last_active));
                if let Some(fd) = silent.map(|(fd, _)| *fd) {
                    self.close(fd, ops);
                }
            }
            if stream.set_nonblocking(true).is_err() || ops.add(Events::new(&stream, EventSet::IN)).is_err() {
                continue;
            }
            let (input, output) = (Vec::new(), Vec::new());
            // Of those who come in one event, too, one was the first.
            self.clock += 1;
            let last_active = self.clock;
            let client = Client { stream, input, output, closing: false, waiting: None, last_active };
            self.clients.insert(client.stream.as_raw_fd(), client);
        }
    }

    fn close(&mut self, fd: RawFd, ops: &mut EventOps) {
        if let Some(client) = self.clients.remove(&fd) {
            let _ = ops.remove(Events::empty(&client.stream));
        }
    }
}

impl<H: ApiHandler> MutEventSubscriber for ApiServer<H> {
    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::new(&self.listener, EventSet::IN | EventSet::EDGE_TRIGGERED);
        let answers = Events::new_raw(self.outbox.as_raw_fd(), EventSet::IN);
        if let Err(error) = ops.add(events).and_then(|()| ops.add(answers)) {
            tracing::error!("the API cannot listen: {error}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        self.clock += 1;
        if fd == self.listener.as_raw_fd() {
            return self.accept(ops);
        }
        if fd == self.outbox.as_raw_fd() {
            return self.deliver(ops);
        }
        let Some(client) = self.clients.get_mut(&fd) else { return };
        client.last_active = self.clock;
        let received = client.receive(events.event_set());
        let result = received.and_then(|()| client.go_on(&mut self.handler, &self.outbox));
        self.settle(fd, result, ops);
    }
}

impl Client {
    /// What is of interest about the client: while it waits for an answer, only that it goes.
    fn wanted(&self) -> EventSet {
        match (self.waiting, self.output.is_empty()) {
            (Some(_), _) => EventSet::empty(),
            (None, true) => EventSet::IN,
            (None, false) => EventSet::OUT,
        }
    }

    /// Takes what came. An error ends the connection.
    fn receive(&mut self, ready: EventSet) -> io::Result<()> {
        if !self.output.is_empty() {
            return Ok(());
        }
        if self.waiting.is_some() || !ready.contains(EventSet::IN) {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let mut chunk = [0; READ_CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.input.extend_from_slice(chunk.get(..len).unwrap_or_default());
                Ok(())
            }
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Answers what was received, and sends what fits. An error ends the connection.
    fn go_on(&mut self, handler: &mut dyn ApiHandler, outbox: &Arc<Outbox>) -> io::Result<()> {
        self.send()?;
        // Further requests may have come in one piece with the first.
        while self.output.is_empty() && !self.closing && self.waiting.is_none() {
            let (answer, keep_alive) = match http::parse(&self.input) {
                Ok(None) => return Ok(()),
                Ok(Some((request, used))) => {
                    self.input.drain(..used);
                    (routes::answer(&request, handler, outbox), request.keep_alive)
                }
                Err(bad) => (Response::from(bad).into(), false),
            };
            self.closing = !keep_alive;
            match answer {
                Answer::Now(response) => {
                    self.output = response.emit(keep_alive);
                    self.send()?;
                }
                Answer::Later(ticket) => self.waiting = Some(ticket),
            }
        }
        Ok(())
    }

    /// The answer that the client waits for.
    fn take_answer(&mut self, response: &Response) {
        self.waiting = None;
        self.output = response.emit(!self.closing);
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => drop(self.output.drain(..len)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // All is sent; unless the answer is still to come.
        let done = self.closing && self.waiting.is_none();
        if done { Err(ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use event_manager::{EventManager, SubscriberOps};
    use serde_json::json;

    use super::*;
    use crate::api::{
        ApiClient, ApiError, BlockAttach, BlockDetach, CdInsert, DeviceChange, Reply, Shutdown, ShutdownKind,
    };
    use crate::exit::{ExitStatus, Failure};

    /// A domain that notes what it is told.
    #[derive(Default)]
    struct Recorder {
        requests: Vec<Shutdown>,
        destroyed: bool,
        deaf: bool,
        changes: Vec<DeviceChange>,
        replies: Vec<Reply>,
    }

    #[derive(Clone, Default)]
    struct Domain(Rc<RefCell<Recorder>>);

    impl ApiHandler for Domain {
        fn info(&self) -> serde_json::Value {
            json!({"name": "web", "id": 7})
        }
        fn shutdown(&mut self, request: Shutdown) -> Result<(), String> {
            if self.0.borrow().deaf {
                return Err("the guest does not listen".into());
            }
            self.0.borrow_mut().requests.push(request);
            Ok(())
        }
        fn destroy(&mut self) -> Result<(), String> {
            self.0.borrow_mut().destroyed = true;
            Ok(())
        }
        fn change_devices(&mut self, change: DeviceChange, reply: Reply) {
            let mut domain = self.0.borrow_mut();
            domain.changes.push(change);
            domain.replies.push(reply);
        }
    }

    type Loop = EventManager<Rc<RefCell<dyn MutEventSubscriber>>>;

    struct Fixture {
        dir: tempfile::TempDir,
        domain: Domain,
        server: Rc<RefCell<ApiServer<Domain>>>,
        events: Loop,
    }

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            let domain = Domain::default();
            let server = ApiServer::bind(&dir.path().join("api.sock"), domain.clone()).unwrap();
            let server = Rc::new(RefCell::new(server));
            let mut events = Loop::new().unwrap();
            events.add_subscriber(Rc::clone(&server) as Rc<RefCell<dyn MutEventSubscriber>>);
            Fixture { dir, domain, server, events }
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(self.dir.path().join("api.sock")).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream
        }

        /// Handles events until there are none.
        fn settle(&mut self) {
            while self.events.run_with_timeout(0).unwrap() > 0 {}
        }

        /// Sends `text` and says no more; what comes back until the server closes.
        fn exchange(&mut self, text: &str) -> String {
            let mut stream = self.connect();
            stream.write_all(text.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            self.settle();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        }

        fn clients(&self) -> usize {
            self.server.borrow().clients.len()
        }

        /// Runs `act` with a client in another thread while the loop turns.
        fn with_client<T: Send + 'static>(&mut self, act: impl FnOnce(ApiClient) -> T + Send + 'static) -> T {
            let client = ApiClient::new(&self.dir.path().join("api.sock"));
            let thread = std::thread::spawn(move || act(client));
            while !thread.is_finished() {
                self.events.run_with_timeout(1).unwrap();
            }
            thread.join().unwrap()
        }
    }

    #[test]
    fn info_is_told() {
        let answer = Fixture::new().exchange("GET /api/v1/vm.info HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n{\"id\":7,\"name\":\"web\"}\n"), "{answer}");
    }

    #[test]
    fn requests_reach_the_domain() {
        let seconds = Duration::from_secs_f64;
        let table = [
            ("shutdown", "", Some((ShutdownKind::Poweroff, None))),
            ("shutdown", "{}", Some((ShutdownKind::Poweroff, None))),
            ("shutdown", r#"{"timeout":1.5}"#, Some((ShutdownKind::Poweroff, Some(seconds(1.5))))),
            ("reboot", r#"{"timeout":0}"#, Some((ShutdownKind::Reboot, Some(seconds(0.0))))),
            ("shutdown", r#"{"timeout":-1}"#, None),
            ("shutdown", r#"{"timeout":1e300}"#, None),
            ("shutdown", r#"{"time":1}"#, None),
            ("shutdown", "[]", None),
            ("shutdown", "{", None),
        ];
        for (verb, body, expected) in table {
            let mut fixture = Fixture::new();
            let len = body.len();
            let answer = fixture
                .exchange(&format!("PUT /api/v1/vm.{verb} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n{body}"));
            let status = if expected.is_some() { "HTTP/1.1 204 " } else { "HTTP/1.1 400 " };
            assert!(answer.starts_with(status), "{verb} {body}: {answer}");
            let expected: Vec<_> =
                expected.into_iter().map(|(kind, timeout)| Shutdown { kind, timeout }).collect();
            assert_eq!(fixture.domain.0.borrow().requests, expected, "{verb} {body}");
        }
    }

    #[test]
    fn destroy_reaches_the_domain() {
        let mut fixture = Fixture::new();
        let answer = fixture.exchange("PUT /api/v1/vm.destroy HTTP/1.1\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
        assert!(fixture.domain.0.borrow().destroyed);
    }

    #[test]
    fn wrong_paths_and_methods_do_nothing() {
        for (request, status) in [
            ("GET / HTTP/1.1", 404),
            ("GET /api/v1/vm.info/ HTTP/1.1", 404),
            ("PUT /api/v1/vm.destroy?now HTTP/1.1", 404),
            ("GET /api/v1/vm.destroy HTTP/1.1", 405),
            ("POST /api/v1/vm.shutdown HTTP/1.1", 405),
        ] {
            let mut fixture = Fixture::new();
            let answer = fixture.exchange(&format!("{request}\r\n\r\n"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
            let domain = fixture.domain.0.borrow();
            assert!(!domain.destroyed && domain.requests.is_empty(), "{request}");
        }
    }

    #[test]
    fn a_malformed_request_is_answered_and_closed() {
        let mut fixture = Fixture::new();
        let mut stream = fixture.connect();
        stream.write_all(b"what\r\n\r\nGET /api/v1/vm.destroy HTTP/1.1\r\n\r\n").unwrap();
        fixture.settle();
        let mut answer = String::new();
        // The rest of what was sent makes the close a reset for some kernels: what counts is the answer.
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("Connection: close"), "{answer}");
        assert_eq!(fixture.clients(), 0);
    }

    #[test]
    fn a_request_in_single_bytes_is_understood() {
        let mut fixture = Fixture::new();
        let mut stream = fixture.connect();
        for byte in b"GET /api/v1/vm.info HTTP/1.1\r\nConnection: close\r\n\r\n" {
            stream.write_all(&[*byte]).unwrap();
            fixture.settle();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[test]
    fn several_requests_on_one_connection_are_answered_in_order() {
        let answer = Fixture::new()
            .exchange("GET /api/v1/vm.info HTTP/1.1\r\n\r\nGET /no HTTP/1.1\r\n\r\nPUT /api/v1/vm.reboot HTTP/1.1\r\n\r\n");
        let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|part| &part[..3]).collect();
        assert_eq!(statuses, ["200", "404", "204"]);
    }

    #[test]
    fn an_endless_head_is_cut_off() {
        let mut fixture = Fixture::new();
        let mut stream = fixture.connect();
        stream.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while sent < 4 * http::HEAD_MAX {
            match stream.write(&[b'A'; 1000]) {
                Ok(len) => sent += len,
                Err(_) => break,
            }
            fixture.settle();
        }
        assert_eq!(fixture.clients(), 0);
        assert!(sent <= http::HEAD_MAX + READ_CHUNK, "{sent}");
    }

    #[test]
    fn a_client_that_takes_no_answers_is_not_read_further() {
        let mut fixture = Fixture::new();
        let mut stream = fixture.connect();
        stream.set_nonblocking(true).unwrap();
        let request = b"GET /api/v1/vm.info HTTP/1.1\r\n\r\n";
        // Both directions of the socket fill up, and then the server stops reading.
        let mut rounds = 0;
        while stream.write(request).is_ok() {
            fixture.settle();
            rounds += 1;
            assert!(rounds < 1_000_000);
        }
        let server = fixture.server.borrow();
        let client = server.clients.values().next().unwrap();
        assert!(client.output.len() < 4096 && client.input.len() <= http::HEAD_MAX + READ_CHUNK);
    }

    #[test]
    fn the_longest_silent_client_makes_room() {
        let mut fixture = Fixture::new();
        let mut first = fixture.connect();
        fixture.settle();
        let mut others: Vec<UnixStream> = (1..CLIENTS_MAX).map(|_| fixture.connect()).collect();
        fixture.settle();
        first.write_all(b"GET").unwrap();
        fixture.settle();
        let _last = fixture.connect();
        fixture.settle();
        assert_eq!(fixture.clients(), CLIENTS_MAX);
        // The first one spoke: the second had to go.
        assert_eq!(others[0].read(&mut [0]).unwrap(), 0);
        first.write_all(b" /api/v1/vm.info HTTP/1.1\r\n\r\n").unwrap();
        fixture.settle();
        assert!(first.read(&mut [0; 100]).unwrap() > 0);
    }

    #[test]
    fn a_client_that_leaves_is_forgotten() {
        let mut fixture = Fixture::new();
        let stream = fixture.connect();
        fixture.settle();
        assert_eq!(fixture.clients(), 1);
        drop(stream);
        fixture.settle();
        assert_eq!(fixture.clients(), 0);
    }

    #[test]
    fn the_socket_is_for_its_owner_alone() {
        let fixture = Fixture::new();
        let mode = fs::metadata(fixture.dir.path().join("api.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_client_speaks_to_the_server() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.with_client(|client| client.info()).unwrap(), json!({"name": "web", "id": 7}));
        let timeout = Some(Duration::from_secs(5));
        fixture.with_client(move |client| client.shutdown(ShutdownKind::Reboot, timeout)).unwrap();
        fixture.with_client(|client| client.destroy()).unwrap();
        let domain = fixture.domain.0.borrow();
        assert_eq!(domain.requests, [Shutdown { kind: ShutdownKind::Reboot, timeout }]);
        assert!(domain.destroyed);
    }

    #[test]
    fn the_client_hears_why_a_request_is_refused() {
        let mut fixture = Fixture::new();
        fixture.domain.0.borrow_mut().deaf = true;
        let result = fixture.with_client(|client| client.shutdown(ShutdownKind::Poweroff, None));
        match result {
            Err(ApiError::Refused { sentence, status: None }) => {
                assert_eq!(sentence, "the guest does not listen")
            }
            other => unreachable!("{other:?}"),
        }
    }

    /// A request for a change of the devices.
    fn put(verb: &str, body: &str) -> String {
        format!("PUT /api/v1/vm.{verb} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn attach(spec: &str) -> DeviceChange {
        DeviceChange::BlockAttach(BlockAttach { spec: spec.into(), directory: None })
    }

    fn detach(vdev: &str, force: bool, timeout: Option<f64>) -> BlockDetach {
        BlockDetach { vdev: vdev.into(), force, timeout: timeout.map(Duration::from_secs_f64) }
    }

    #[test]
    fn changes_of_devices_reach_the_domain() {
        let insert = |directory: Option<&str>| CdInsert {
            vdev: "xvdc".into(),
            file: "a.iso".into(),
            directory: directory.map(Into::into),
            force: false,
            timeout: None,
        };
        let table = [
            ("block-attach", r#"{"spec":"a.img"}"#, Some(attach("a.img"))),
            ("block-attach", r#"{"spec":1}"#, None),
            ("block-attach", r#"{"spec":"a","colour":"blue"}"#, None),
            ("block-attach", "", None),
            (
                "block-detach",
                r#"{"vdev":"xvdb"}"#,
                Some(DeviceChange::BlockDetach(detach("xvdb", false, None))),
            ),
            (
                "block-detach",
                r#"{"vdev":"51728","force":true,"timeout":0.5}"#,
                Some(DeviceChange::BlockDetach(detach("51728", true, Some(0.5)))),
            ),
            ("block-detach", r#"{"vdev":"xvdb","timeout":-1}"#, None),
            ("block-detach", r#"{"vdev":"xvdb","timeout":1e300}"#, None),
            ("cd-eject", r#"{"vdev":"xvdc"}"#, Some(DeviceChange::CdEject(detach("xvdc", false, None)))),
            (
                "cd-insert",
                r#"{"vdev":"xvdc","file":"a.iso","directory":"/srv"}"#,
                Some(DeviceChange::CdInsert(insert(Some("/srv")))),
            ),
            ("cd-insert", r#"{"vdev":"xvdc"}"#, None),
        ];
        for (verb, body, expected) in table {
            let mut fixture = Fixture::new();
            let mut stream = fixture.connect();
            stream.write_all(put(verb, body).as_bytes()).unwrap();
            fixture.settle();
            let changes: Vec<DeviceChange> = expected.into_iter().collect();
            assert_eq!(fixture.domain.0.borrow().changes, changes, "{verb} {body}");
            if changes.is_empty() {
                let mut answer = [0; 12];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"HTTP/1.1 400", "{verb} {body}");
            }
        }
    }

    #[test]
    fn an_answer_may_come_later_and_requests_behind_it_wait() {
        let mut fixture = Fixture::new();
        let mut stream = fixture.connect();
        let requests = put("block-attach", r#"{"spec":"a"}"#) + "GET /api/v1/vm.info HTTP/1.1\r\n\r\n";
        stream.write_all(requests.as_bytes()).unwrap();
        fixture.settle();
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        let reply = fixture.domain.0.borrow_mut().replies.pop().unwrap();
        reply.send(Ok(json!({"vdev": "xvdb"})));
        fixture.settle();
        let mut answers = [0; 4096];
        let len = stream.read(&mut answers).unwrap();
        let answers = String::from_utf8_lossy(&answers[..len]).into_owned();
        let place = |text: &str| answers.find(text).unwrap_or_else(|| unreachable!("{text}: {answers}"));
        assert!(place(r#"{"vdev":"xvdb"}"#) < place(r#"{"id":7,"name":"web"}"#), "{answers}");
    }

    #[test]
    fn a_client_that_leaves_before_its_answer_is_forgotten() {
        let mut fixture = Fixture::new();
        let mut stream = fixture.connect();
        stream.write_all(put("block-attach", r#"{"spec":"a"}"#).as_bytes()).unwrap();
        fixture.settle();
        drop(stream);
        fixture.settle();
        assert_eq!(fixture.clients(), 0);
        fixture.domain.0.borrow_mut().replies.pop().unwrap().send(Ok(json!(null)));
        fixture.settle();
        assert!(fixture.exchange("GET /api/v1/vm.info HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn those_who_wait_for_an_answer_are_not_pushed_out() {
        let mut fixture = Fixture::new();
        let mut waiting = fixture.connect();
        waiting.write_all(put("block-attach", r#"{"spec":"a"}"#).as_bytes()).unwrap();
        fixture.settle();
        let _others: Vec<UnixStream> = (0..CLIENTS_MAX).map(|_| fixture.connect()).collect();
        fixture.settle();
        assert_eq!(fixture.clients(), CLIENTS_MAX);
        fixture.domain.0.borrow_mut().replies.pop().unwrap().send(Ok(json!(null)));
        fixture.settle();
        let mut answer = [0; 12];
        waiting.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 204");
    }

    #[test]
    fn the_end_of_the_guest_is_the_last_answer() {
        let mut fixture = Fixture::new();
        let mut stream = fixture.connect();
        stream.write_all(put("block-attach", r#"{"spec":"a"}"#).as_bytes()).unwrap();
        fixture.settle();
        fixture.domain.0.borrow_mut().replies.clear();
        fixture.server.borrow_mut().finish();
        let mut answer = [0; 1024];
        let len = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 409 ") && answer.contains("the guest has ended"), "{answer}");
    }

    #[test]
    fn the_client_hears_what_became_of_a_change() {
        let answers = [
            (Ok(json!({"vdev": "xvdb"})), Ok(json!({"vdev": "xvdb"}))),
            (Ok(json!(null)), Ok(json!(null))),
            (
                Err(Failure::new(ExitStatus::DiskInUse, "in use")),
                Err(Failure::new(ExitStatus::DiskInUse, "in use")),
            ),
        ];
        for (answer, expected) in answers {
            let mut fixture = Fixture::new();
            let client = ApiClient::new(&fixture.dir.path().join("api.sock"));
            let thread = std::thread::spawn(move || client.change_devices(&attach("a")));
            let mut answer = Some(answer);
            while !thread.is_finished() {
                fixture.events.run_with_timeout(1).unwrap();
                if let Some(reply) = fixture.domain.0.borrow_mut().replies.pop() {
                    reply.send(answer.take().unwrap());
                }
            }
            assert_eq!(thread.join().unwrap().map_err(Failure::from), expected);
            assert_eq!(fixture.domain.0.borrow().changes, [attach("a")]);
        }
    }
}
