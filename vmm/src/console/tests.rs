#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;

use devices::testing::FakeGuest;
use devices::xen::Port;
use event_manager::{EventManager, SubscriberOps};

use super::*;

/// A console and the guest's half of it.
struct Domain {
    guest: FakeGuest,
    pages: Arc<SharedPages>,
    port: Port,
    console: Console,
}

impl Domain {
    fn new() -> Self {
        let guest = FakeGuest::new(4);
        let pages = Arc::new(SharedPages::new("console", 1).unwrap());
        let channel = guest.domain.events.open_reserved().unwrap();
        let port = channel.port();
        let console = Console::new(Arc::clone(&pages), 0, channel).unwrap();
        Self { guest, pages, port, console }
    }

    /// Puts output into the ring without an event.
    fn write(&self, text: &[u8]) {
        assert!(text.len() <= 2048);
        let prod = self.pages.u32_at(3084).unwrap();
        for (i, byte) in text.iter().enumerate() {
            let at = prod.load(SeqCst).wrapping_add(i as u32) as usize % 2048;
            self.pages.write(1024 + at, &[*byte]).unwrap();
        }
        prod.fetch_add(text.len() as u32, SeqCst);
    }

    /// What hvc0 does, for any amount.
    fn print(&mut self, text: &[u8]) {
        for piece in text.chunks(2048) {
            self.write(piece);
            self.guest.send(self.port);
            self.settle();
            assert_eq!(
                self.pages.u32_at(3080).unwrap().load(SeqCst),
                self.pages.u32_at(3084).unwrap().load(SeqCst)
            );
        }
    }

    /// Reads what was typed, as a driver does.
    fn typed(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let cons = self.pages.u32_at(3072).unwrap();
            let prod = self.pages.u32_at(3076).unwrap().load(SeqCst);
            let count = prod.wrapping_sub(cons.load(SeqCst));
            assert!(count <= 1024);
            if count == 0 {
                return all;
            }
            for i in 0..count {
                let mut byte = [0];
                let at = cons.load(SeqCst).wrapping_add(i) as usize % 1024;
                self.pages.read(at, &mut byte).unwrap();
                all.push(byte[0]);
            }
            cons.store(prod, SeqCst);
            self.guest.send(self.port);
            self.settle();
        }
    }

    /// Runs the console until it has nothing to do; more turns than any test needs are a busy loop.
    fn settle(&mut self) {
        for _ in 0..1000 {
            if self.console.turn(0) == 0 {
                return;
            }
        }
        panic!("the console does not come to rest");
    }

    /// Runs the console until `done`; for what the kernel does in the background (pseudo-terminals).
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..3000 {
            if done(self) {
                return;
            }
            self.console.turn(10);
        }
        panic!("it never happens");
    }

    fn log(&self) -> String {
        let mut out = Vec::new();
        let mut reader = self.console.log.reader();
        let all = |piece: &[u8]| {
            out.extend_from_slice(piece);
            Ok(piece.len())
        };
        self.console.log.feed(&mut reader, usize::MAX, all).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn finish_soon(&mut self) {
        self.console.finish_within(Duration::from_millis(50), Duration::from_secs(30));
    }
}

/// What is there to read now.
fn available(file: &mut (impl Read + AsRawFd)) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live structure.
        if unsafe { libc::poll(&mut poll, 1, 0) } <= 0 {
            return all;
        }
        let mut buf = [0; 4096];
        match file.read(&mut buf) {
            Ok(n) if n > 0 => all.extend_from_slice(&buf[..n]),
            _ => return all,
        }
    }
}

fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").unwrap()
}

#[test]
fn output_is_logged_and_the_guest_is_notified() {
    let mut domain = Domain::new();
    domain.print(b"Linux version 6.12\r\n");
    assert_eq!(domain.log(), "Linux version 6.12\r\n");
    assert_eq!(domain.guest.raises(), 1);
    assert_eq!(domain.guest.delivery.raised.lock().unwrap()[0].0, domain.port);
}

#[test]
fn an_event_without_output_is_not_answered() {
    let mut domain = Domain::new();
    domain.guest.send(domain.port);
    domain.settle();
    assert_eq!(domain.guest.raises(), 0);
}

#[test]
fn a_hostile_index_costs_the_guest_its_output_only() {
    let mut domain = Domain::new();
    domain.pages.u32_at(3084).unwrap().store(0xdead_beef, SeqCst);
    domain.guest.send(domain.port);
    domain.settle();
    domain.print(b"sane again");
    assert_eq!(domain.log(), "sane again");
}

#[test]
fn the_event_manager_runs_it() {
    let Domain { guest, pages, port, console } = Domain::new();
    let console = Rc::new(RefCell::new(console));
    let mut manager = EventManager::<Rc<RefCell<dyn MutEventSubscriber>>>::new().unwrap();
    manager.add_subscriber(Rc::clone(&console) as _);
    pages.write(1024, b"hi").unwrap();
    pages.u32_at(3084).unwrap().store(2, SeqCst);
    guest.send(port);
    assert_eq!(manager.run_with_timeout(10_000).unwrap(), 1);
    assert_eq!(console.borrow().log().last_lines(1), ["hi"]);
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0, "idle means idle");
}

#[test]
fn early_output_and_the_ring_are_merged_in_the_guests_order() {
    let mut domain = Domain::new();
    let early = domain.console.early_output();
    early.write(b"[early 1]");
    domain.write(b"[ring 1]");
    early.write(b"[early 2]");
    early.write(b"[early 3]");
    domain.write(b"[ring 2]");
    domain.settle();
    assert_eq!(domain.log(), "[early 1][ring 1][early 2][early 3][ring 2]");
}

#[test]
fn early_output_from_a_vcpu_thread_wakes_the_console() {
    let mut domain = Domain::new();
    let early = domain.console.early_output();
    std::thread::spawn(move || early.write(b"from a vCPU\n")).join().unwrap();
    assert_eq!(domain.console.turn(10_000), 1);
    assert_eq!(domain.log(), "from a vCPU\r\n");
}

#[test]
fn early_line_feeds_get_a_carriage_return_once() {
    let mut domain = Domain::new();
    let early = domain.console.early_output();
    for piece in [&b"a\nb\r"[..], b"\nc\r\n"] {
        early.write(piece);
        domain.settle();
    }
    assert_eq!(domain.log(), "a\r\nb\r\nc\r\n");
}

#[test]
fn early_output_nobody_fetches_is_bounded_and_noted() {
    let mut domain = Domain::new();
    let early = domain.console.early_output();
    for _ in 0..EARLY_BYTES {
        early.write(b"x");
    }
    early.write(b"end");
    domain.settle();
    let log = domain.log();
    assert!(log.starts_with("\r\n[xvmm: 3 bytes of early output lost]\r\nxxx"));
    assert!(log.ends_with("xend"));
}

#[test]
fn stdin_and_stdout_may_be_pipes() {
    let mut domain = Domain::new();
    let (stdin, mut typist) = io::pipe().unwrap();
    let (mut screen, stdout) = io::pipe().unwrap();
    domain.console.attach_standard(stdin.as_fd(), stdout.as_fd()).unwrap();
    domain.print(b"login: ");
    assert_eq!(available(&mut screen), b"login: ");
    typist.write_all(b"root\n\x1d").unwrap();
    domain.settle();
    assert_eq!(domain.typed(), b"root\n\x1d", "the escape key is for people at terminals");
}

#[test]
fn the_end_of_stdin_is_not_an_event_for_ever() {
    let mut domain = Domain::new();
    let (stdin, mut typist) = io::pipe().unwrap();
    let (mut screen, stdout) = io::pipe().unwrap();
    domain.console.attach_standard(stdin.as_fd(), stdout.as_fd()).unwrap();
    typist.write_all(b"halt\n").unwrap();
    drop(typist);
    domain.settle();
    assert_eq!(domain.typed(), b"halt\n");
    domain.print(b"still here");
    assert_eq!(available(&mut screen), b"still here");
}

#[test]
fn a_closed_stdin_waits_until_the_guest_has_read_it_all() {
    let mut domain = Domain::new();
    let (stdin, mut typist) = io::pipe().unwrap();
    let stdout = null();
    domain.console.attach_standard(stdin.as_fd(), stdout.as_fd()).unwrap();
    let text: Vec<u8> = (0..30_000).map(|i| (i % 251) as u8).collect();
    typist.write_all(&text).unwrap();
    drop(typist);
    domain.settle();
    assert!(domain.console.input.len() <= INPUT_BYTES);
    assert_eq!(domain.typed(), text);
}

#[test]
fn stdin_may_be_a_file() {
    let mut domain = Domain::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script");
    let text: Vec<u8> = (0..20_000).map(|i| (i % 253) as u8).collect();
    std::fs::write(&path, &text).unwrap();
    let (stdin, stdout) = (File::open(&path).unwrap(), null());
    domain.console.attach_standard(stdin.as_fd(), stdout.as_fd()).unwrap();
    domain.settle();
    assert_eq!(domain.typed(), text);
    domain.settle();
}

#[test]
fn an_endless_stdin_does_not_hold_the_console() {
    let mut domain = Domain::new();
    let (stdin, stdout) = (File::open("/dev/zero").unwrap(), null());
    domain.console.attach_standard(stdin.as_fd(), stdout.as_fd()).unwrap();
    domain.settle();
    assert_eq!(domain.console.input.len(), INPUT_BYTES);
    domain.print(b"output still flows");
    assert_eq!(domain.log(), "output still flows");
}

#[test]
fn a_reader_of_stdout_that_ends_is_not_an_event_for_ever() {
    let mut domain = Domain::new();
    let (stdin, mut typist) = io::pipe().unwrap();
    let (screen, stdout) = io::pipe().unwrap();
    domain.console.attach_standard(stdin.as_fd(), stdout.as_fd()).unwrap();
    drop(screen);
    domain.settle();
    domain.print(b"nobody reads");
    typist.write_all(b"input still flows").unwrap();
    domain.settle();
    assert_eq!(domain.typed(), b"input still flows");
}

#[test]
fn a_slow_reader_loses_nothing_that_the_log_keeps() {
    let mut domain = Domain::new();
    let stdin = null();
    let (mut screen, stdout) = io::pipe().unwrap();
    domain.console.attach_standard(stdin.as_fd(), stdout.as_fd()).unwrap();
    let text: Vec<u8> = (0..500_000u32).map(|i| b'a' + (i % 23) as u8).collect();
    domain.print(&text);
    let mut seen = Vec::new();
    while seen.len() < text.len() {
        let some = available(&mut screen);
        assert!(!some.is_empty(), "the output stops after {} bytes", seen.len());
        seen.extend(some);
        domain.settle();
    }
    assert_eq!(seen, text);
}

#[test]
fn the_rest_of_the_output_is_flushed_at_the_end() {
    let mut domain = Domain::new();
    let stdin = null();
    let (mut screen, stdout) = io::pipe().unwrap();
    domain.console.attach_standard(stdin.as_fd(), stdout.as_fd()).unwrap();
    domain.print(&[b'x'; 300_000]);
    domain.console.early_output().write(b"panic");
    domain.write(b" and last words");
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        screen.read_to_end(&mut seen).unwrap();
        seen
    });
    domain.console.finish_within(Duration::from_secs(30), Duration::from_secs(30));
    drop(domain);
    drop(stdout);
    let seen = reader.join().unwrap();
    assert_eq!(seen.len(), 300_000 + 20);
    assert!(seen.ends_with(b"panic and last words"));
}

#[test]
fn a_hung_reader_does_not_hold_up_the_end() {
    let mut domain = Domain::new();
    let stdin = null();
    let (_screen, stdout) = io::pipe().unwrap();
    domain.console.attach_standard(stdin.as_fd(), stdout.as_fd()).unwrap();
    domain.print(&[b'x'; 300_000]);
    domain.finish_soon();
    assert!(domain.console.attachments.is_empty());
}

fn connect(domain: &mut Domain, path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    domain.settle();
    client
}

#[test]
fn clients_come_and_go() {
    let mut domain = Domain::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.sock");
    domain.console.listen(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    domain.print(b"booted\r\n");
    let mut first = connect(&mut domain, &path);
    assert_eq!(available(&mut first), b"booted\r\n");
    let mut second = connect(&mut domain, &path);
    domain.print(b"login: ");
    assert_eq!(available(&mut first), b"login: ");
    assert_eq!(available(&mut second), b"booted\r\nlogin: ");
    first.write_all(b"ro").unwrap();
    domain.settle();
    second.write_all(b"ot\n").unwrap();
    domain.settle();
    assert_eq!(domain.typed(), b"root\n");
    drop(first);
    domain.settle();
    assert_eq!(domain.console.clients(), 1);
    domain.print(b"Password: ");
    assert_eq!(available(&mut second), b"Password: ");
    drop(second);
    domain.settle();
    assert_eq!(domain.console.clients(), 0);
    let mut third = connect(&mut domain, &path);
    assert_eq!(available(&mut third), b"booted\r\nlogin: Password: ");
    domain.finish_soon();
    assert!(!path.exists());
    assert_eq!(third.read(&mut [0; 8]).unwrap(), 0, "a client sees the end of the domain");
}

#[test]
fn what_a_client_sends_before_it_leaves_counts() {
    let mut domain = Domain::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.sock");
    domain.console.listen(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"poweroff\n").unwrap();
    drop(client);
    domain.settle();
    assert_eq!(domain.typed(), b"poweroff\n");
    assert_eq!(domain.console.clients(), 0);
}

#[test]
fn a_client_may_end_its_input_and_go_on_watching() {
    let mut domain = Domain::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.sock");
    domain.console.listen(&path).unwrap();
    let mut client = connect(&mut domain, &path);
    client.write_all(b"ls\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    domain.settle();
    assert_eq!(domain.typed(), b"ls\n");
    domain.print(b"bin etc\r\n");
    assert_eq!(available(&mut client), b"bin etc\r\n");
    drop(client);
    domain.settle();
    assert_eq!(domain.console.clients(), 0);
}

#[test]
fn a_hung_client_blocks_nobody_and_is_told_what_it_lost() {
    let mut domain = Domain::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.sock");
    domain.console.listen(&path).unwrap();
    let mut hung = connect(&mut domain, &path);
    let mut lively = connect(&mut domain, &path);
    let line = [b'x'; 2048];
    for _ in 0..(2 * LOG_BYTES / line.len()) {
        domain.print(&line);
        assert_eq!(available(&mut lively), line);
    }
    let mut seen = Vec::new();
    loop {
        let some = available(&mut hung);
        if some.is_empty() {
            break;
        }
        seen.extend(some);
        domain.settle();
    }
    let text = String::from_utf8(seen).unwrap();
    let notes: Vec<&str> = text.lines().filter(|l| l.starts_with("[xvmm: ")).collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    let lost: usize = notes[0].split(' ').nth(1).unwrap().parse().unwrap();
    let output = text.bytes().filter(|b| *b == b'x').count() - notes[0].matches('x').count();
    assert_eq!(output + lost, 2 * LOG_BYTES);
}

#[test]
fn clients_that_leave_input_the_guest_never_reads_free_their_place() {
    let mut domain = Domain::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.sock");
    domain.console.listen(&path).unwrap();
    for _ in 0..MAX_CLIENTS + 8 {
        let mut client = connect(&mut domain, &path);
        client.write_all(&[b'y'; 3000]).unwrap();
        drop(client);
        domain.settle();
    }
    assert_eq!(domain.console.clients(), 0);
    assert!(domain.console.input.len() <= INPUT_BYTES);
}

#[test]
fn one_client_too_many_is_told_so() {
    let mut domain = Domain::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.sock");
    domain.console.listen(&path).unwrap();
    let clients: Vec<_> = (0..MAX_CLIENTS).map(|_| connect(&mut domain, &path)).collect();
    let mut late = connect(&mut domain, &path);
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "xvmm: 32 clients are attached to this console; detach one first\r\n");
    assert_eq!(domain.console.clients(), MAX_CLIENTS);
    drop(clients);
    domain.settle();
    connect(&mut domain, &path);
    assert_eq!(domain.console.clients(), 1);
}

#[test]
fn a_socket_that_cannot_be_made_is_named() {
    let mut domain = Domain::new();
    let error = domain.console.listen(Path::new("/nonexistent/console.sock")).unwrap_err().to_string();
    assert!(error.starts_with("the console socket /nonexistent/console.sock cannot be made: "), "{error}");
}

#[test]
fn a_file_is_appended_to() {
    let mut domain = Domain::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.log");
    domain.console.attach(&ConsoleTarget::File(path.clone())).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    domain.print(b"one ");
    std::fs::write(&path, "rotated ").unwrap();
    domain.print(b"two");
    assert_eq!(std::fs::read(&path).unwrap(), b"rotated two");
    let error = domain.console.attach(&ConsoleTarget::File(folder.path().into())).unwrap_err().to_string();
    assert!(error.starts_with("--console file=/"), "{error}");
}

#[test]
fn a_guest_cannot_fill_the_disk() {
    let mut domain = Domain::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.log");
    let (file, stream) = LogFile::open(&path, 10_000).unwrap();
    domain.console.add(Kind::File(file), Some(stream), None).unwrap();
    for i in 0..200 {
        domain.print(format!("{i:0998}\r\n").as_bytes());
    }
    let sizes: u64 =
        std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(sizes <= 2 * 11_000, "{sizes} bytes");
    assert!(std::fs::read_to_string(&path).unwrap().ends_with("199\r\n"));
}

#[test]
fn a_file_that_cannot_be_put_aside_is_begun_anew() {
    let mut domain = Domain::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.log");
    let (file, stream) = LogFile::open(&path, 1000).unwrap();
    domain.console.add(Kind::File(file), Some(stream), None).unwrap();
    // A folder in the way of the new name.
    std::fs::create_dir_all(folder.path().join("guest.log.1/x")).unwrap();
    domain.print(&[b'a'; 1000]);
    domain.print(b"b");
    assert_eq!(std::fs::read(&path).unwrap(), b"b");
}

fn open_terminal(path: &Path) -> File {
    File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
}

#[test]
fn a_pty_passes_both_ways_and_does_not_echo() {
    let mut domain = Domain::new();
    domain.console.attach(&ConsoleTarget::Pty).unwrap();
    domain.print(b"before anybody came\r\n");
    let path = domain.console.pty_path().unwrap().to_owned();
    let mut user = open_terminal(&path);
    let mut seen = Vec::new();
    domain.until(|_| {
        seen.extend(available(&mut user));
        seen == b"before anybody came\r\n"
    });
    user.write_all(b"root\r\x03").unwrap();
    let mut typed = Vec::new();
    domain.until(|domain| {
        typed.extend(domain.typed());
        typed.len() >= 6
    });
    assert_eq!(typed, b"root\r\x03");
    domain.print(b"# ");
    seen.clear();
    domain.until(|_| {
        seen.extend(available(&mut user));
        seen.len() >= 2
    });
    assert_eq!(seen, b"# ", "the terminal echoes");
    assert!(domain.typed().is_empty(), "output came back as input");
}

#[test]
fn a_pty_that_nobody_has_open_keeps_the_log_and_is_quiet() {
    let mut domain = Domain::new();
    domain.console.attach(&ConsoleTarget::Pty).unwrap();
    let path = domain.console.pty_path().unwrap().to_owned();
    drop(open_terminal(&path));
    domain.settle();
    let text: Vec<u8> = (0..200_000u32).map(|i| b'a' + (i % 23) as u8).collect();
    domain.print(&text);
    domain.settle();
    let mut user = open_terminal(&path);
    let mut seen = Vec::new();
    domain.until(|_| {
        seen.extend(available(&mut user));
        seen.len() >= text.len()
    });
    assert_eq!(seen, text);
}

#[test]
fn a_pty_survives_vhangup() {
    let mut domain = Domain::new();
    domain.console.attach(&ConsoleTarget::Pty).unwrap();
    let path = domain.console.pty_path().unwrap().to_owned();
    let mut command = Command::new("true");
    command.stdin(open_terminal(&path));
    // SAFETY: async-signal-safe calls only.
    unsafe {
        command.pre_exec(|| {
            // The hang-up signals the session's leader, too.
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 || libc::vhangup() < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    match command.status() {
        // Only root may do so: then nobody can do it to us either.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return,
        status => assert!(status.unwrap().success()),
    }
    drop(command);
    domain.settle();
    let mut user = open_terminal(&path);
    domain.print(b"still there");
    let mut seen = Vec::new();
    domain.until(|_| {
        seen.extend(available(&mut user));
        seen.len() >= 11
    });
    assert_eq!(seen, b"still there");
    user.write_all(b"yes").unwrap();
    let mut typed = Vec::new();
    domain.until(|domain| {
        typed.extend(domain.typed());
        typed.len() >= 3
    });
    assert_eq!(typed, b"yes", "the terminal echoes");
}

/// A terminal as xvmm's stdin and stdout: its other side, and it.
fn user_terminal() -> (File, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: openpty fills both numbers; nothing else owns them.
    unsafe {
        let null = std::ptr::null_mut();
        assert_eq!(libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()), 0);
        (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    }
}

#[test]
fn a_terminal_is_raw_and_its_escape_key_works_though_the_guest_hangs() {
    let mut domain = Domain::new();
    let (mut user, terminal) = user_terminal();
    let escapes = Rc::new(Cell::new(0));
    let counter = Rc::clone(&escapes);
    domain.console.set_on_escape(move || counter.set(counter.get() + 1));
    domain.console.attach_standard(terminal.as_fd(), terminal.as_fd()).unwrap();
    assert!(terminal::is_raw());
    user.write_all(b"a\x03\x1db").unwrap();
    domain.until(|_| escapes.get() == 1);
    assert_eq!(domain.typed(), b"a\x03b");
    // The guest reads nothing any more, and the user types more than there is room for.
    for _ in 0..100 {
        user.write_all(&[b'q'; 1000]).unwrap();
        domain.console.turn(10);
    }
    user.write_all(b"\x1d").unwrap();
    domain.until(|_| escapes.get() == 2);
    assert_eq!(domain.console.input.len(), TYPED_BYTES);
    domain.print(b"output\r\n");
    let mut seen = Vec::new();
    domain.until(|_| {
        seen.extend(available(&mut user));
        seen.len() >= 8
    });
    assert_eq!(seen, b"output\r\n");
    domain.finish_soon();
    assert!(!terminal::is_raw());
}

#[test]
fn a_serial_port_takes_input_until_the_guest_has_a_console() {
    let mut domain = Domain::new();
    let port = Rc::new(RefCell::new(Vec::new()));
    let end = Rc::clone(&port);
    domain.console.set_serial(move |bytes| {
        // It has room for three bytes.
        let taken = bytes.len().min(3 - end.borrow().len());
        end.borrow_mut().extend_from_slice(&bytes[..taken]);
        taken
    });
    let (mut typist, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    domain.console.add_client(theirs).unwrap();
    typist.write_all(b"12345").unwrap();
    domain.settle();
    assert_eq!((port.borrow().as_slice(), domain.typed()), (b"123".as_slice(), Vec::new()));
    // What the port had no room for goes to the console, too.
    domain.print(b"login: ");
    typist.write_all(b"root").unwrap();
    domain.settle();
    assert_eq!((port.borrow().as_slice(), domain.typed()), (b"123".as_slice(), b"45root".to_vec()));
}
