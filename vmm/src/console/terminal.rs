//! Raw mode of the terminal that xvmm was started from, and its way back.
//!
//! However xvmm ends, the user's shell must get its terminal back as it was: when the guard is dropped, at
//! `exit`, from the panic hook (release builds abort on a panic, so nothing is dropped there) and on the
//! signals that end a process. Only SIGKILL leaves raw mode behind: `stty sane` helps then.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

/// What the terminal was like, for whoever ends the process.
struct Saved {
    /// A descriptor of the terminal; [`FREE`] when there is nothing to restore, [`BUSY`] while `settings` is
    /// being read or written.
    fd: AtomicI32,
    settings: UnsafeCell<MaybeUninit<libc::termios>>,
}

const FREE: i32 = -1;
const BUSY: i32 = -2;

// SAFETY: `settings` is touched only by whoever changed `fd` to BUSY.
unsafe impl Sync for Saved {}

static SAVED: Saved = Saved { fd: AtomicI32::new(FREE), settings: UnsafeCell::new(MaybeUninit::uninit()) };

/// Signals that end the process where nobody else handles them.
const DEADLY: [i32; 11] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGSYS,
    libc::SIGXFSZ,
];

/// A terminal in raw mode; dropping it restores the terminal.
#[derive(Debug)]
pub struct TerminalGuard(());

impl TerminalGuard {
    /// Puts the terminal `fd` into raw mode. `None`, and nothing changed, if it is no terminal, or if xvmm runs
    /// in the background of its shell, whose terminal it is then. One guard at a time.
    pub fn enter(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let Some(old) = settings(fd) else { return Ok(None) };
        if in_background(fd) {
            return Ok(None);
        }
        let fd = fd.try_clone_to_owned()?;
        if SAVED.fd.compare_exchange(FREE, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a terminal is in raw mode already"));
        }
        // SAFETY: BUSY makes the cell ours.
        unsafe { (*SAVED.settings.get()).write(old) };
        let raw_fd = fd.into_raw_fd();
        SAVED.fd.store(raw_fd, Ordering::Release);
        let guard = Self(());
        install_hooks();
        // SAFETY: the descriptor is open: only restore() closes it.
        set_raw(unsafe { BorrowedFd::borrow_raw(raw_fd) })?;
        Ok(Some(guard))
    }
}

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether the terminal is in raw mode now: a line end needs a carriage return then.
pub fn is_raw() -> bool {
    SAVED.fd.load(Ordering::Relaxed) >= 0
}

/// Restores the terminal if it is in raw mode. Async-signal-safe: may be called from a signal handler, a panic
/// hook and any thread, any number of times.
pub fn restore() {
    // SAFETY: the calls are async-signal-safe, all pointers are to live values, and BUSY makes the cell ours,
    // which enter() had written before it stored the descriptor. Signals are blocked: one that ends the
    // process in the middle would find BUSY and leave the terminal as it is, and SIGTTOU would stop a process
    // that was moved to the background meanwhile; blocked, the change is allowed.
    unsafe {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut old = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), old.as_mut_ptr());
        let fd = SAVED.fd.load(Ordering::Relaxed);
        let busy = || SAVED.fd.compare_exchange(fd, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if fd >= 0 && busy() {
            libc::tcsetattr(fd, libc::TCSANOW, (*SAVED.settings.get()).as_ptr());
            libc::close(fd);
            SAVED.fd.store(FREE, Ordering::Release);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), ptr::null_mut());
    }
}

/// The settings of a terminal; `None` if `fd` is none.
fn settings(fd: BorrowedFd<'_>) -> Option<libc::termios> {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: tcgetattr fills the structure when it returns 0.
    unsafe { (libc::tcgetattr(fd.as_raw_fd(), settings.as_mut_ptr()) == 0).then(|| settings.assume_init()) }
}

/// Raw mode: every byte goes to the guest as typed, and comes from it as printed.
pub(super) fn set_raw(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut raw = settings(fd).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: both get a live structure.
    let result = unsafe {
        libc::cfmakeraw(&mut raw);
        libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &raw)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether `fd` is our controlling terminal and another job has it: changing it would stop us.
pub(super) fn in_background(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: no pointers.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(fd.as_raw_fd()), libc::getpgrp()) };
    foreground >= 0 && foreground != own
}

/// Makes every end of the process restore the terminal.
fn install_hooks() {
    static HOOKS: Once = Once::new();
    HOOKS.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            previous(panic);
        }));
        // SAFETY: the function is `extern "C"`, takes nothing and does not unwind.
        unsafe { libc::atexit(at_exit) };
        for (slot, signal) in PREVIOUS.0.iter().zip(DEADLY) {
            // SAFETY: the slot is written before the handler that reads it is installed, and never again. The
            // handler keeps to async-signal-safe calls. SA_ONSTACK: it may run after a stack overflow.
            unsafe {
                let old = slot.get().cast::<libc::sigaction>();
                if libc::sigaction(signal, ptr::null(), old) != 0 || (*old).sa_sigaction == libc::SIG_IGN {
                    continue;
                }
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_deadly_signal as extern "C" fn(i32) as libc::sighandler_t;
                action.sa_flags = libc::SA_ONSTACK;
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
    });
}

/// What was to happen on each signal of [`DEADLY`] before us.
struct Previous([UnsafeCell<MaybeUninit<libc::sigaction>>; DEADLY.len()]);

// SAFETY: written once under HOOKS before any handler can read it.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous([const { UnsafeCell::new(MaybeUninit::uninit()) }; DEADLY.len()]);

extern "C" fn at_exit() {
    restore();
}

/// Restores the terminal, then lets happen what would have happened without us.
extern "C" fn on_deadly_signal(signal: i32) {
    restore();
    let index = DEADLY.iter().position(|s| *s == signal);
    if let Some(slot) = index.and_then(|index| PREVIOUS.0.get(index)) {
        // SAFETY: the slot was written before this handler was installed. The signal is blocked until we
        // return, so what is raised here arrives after that, at the previous handler.
        unsafe {
            libc::sigaction(signal, slot.get().cast::<libc::sigaction>(), ptr::null_mut());
            libc::raise(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn open_terminal() -> (File, OwnedFd) {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: openpty fills both numbers; nothing else owns them.
        unsafe {
            let null = ptr::null_mut();
            assert_eq!(libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()), 0);
            libc::fcntl(master, libc::F_SETFD, libc::FD_CLOEXEC);
            (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
        }
    }

    fn flags(fd: BorrowedFd<'_>) -> (u32, u32, u32, u32, u8) {
        let t = settings(fd).unwrap();
        (t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag, t.c_cc[libc::VEOF])
    }

    const CHILD: &str = "XVMM_TEST_TERMINAL_CHILD";

    /// Not a test of its own: what the tests below run as another process, on a terminal as its stdin.
    #[test]
    fn as_a_child() {
        let Ok(end) = std::env::var(CHILD) else { return };
        let stdin = io::stdin();
        let before = flags(stdin.as_fd());
        let guard = TerminalGuard::enter(stdin.as_fd()).unwrap().unwrap();
        assert!(is_raw());
        println!("raw");
        let mut byte = [0];
        io::stdin().read_exact(&mut byte).unwrap();
        match end.as_str() {
            "drop" => {
                drop(guard);
                // SAFETY: ends the process before anything else could restore the terminal.
                unsafe { libc::_exit(0) }
            }
            "exit" => std::process::exit(0),
            "panic" => {
                let thread = std::thread::spawn(|| panic!("a vCPU thread fails"));
                thread.join().unwrap_err();
                let restored = flags(stdin.as_fd()) == before;
                // SAFETY: as above.
                unsafe { libc::_exit(if restored { 0 } else { 1 }) }
            }
            "abort" => std::process::abort(),
            "fault" => {
                // SAFETY: nothing is mapped there, which is the point.
                unsafe { ptr::read_volatile(ptr::without_provenance::<u8>(8)) };
            }
            _ => loop {
                std::thread::park();
            },
        }
    }

    /// Starts the child; returns when it is in raw mode.
    fn start(end: &str, terminal: &OwnedFd) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "console::terminal::tests::as_a_child", "--nocapture", "--test-threads=1"])
            .env(CHILD, end)
            .stdin(terminal.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // Whoever started the tests may have had signals ignored, as nohup does.
        let heed_signals = || {
            for signal in DEADLY {
                // SAFETY: sets a disposition, of the child.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            Ok(())
        };
        // SAFETY: it calls nothing but signal(), which is safe after fork().
        let mut child = unsafe { command.pre_exec(heed_signals) }.spawn().unwrap();
        let mut seen = Vec::new();
        let stdout = child.stdout.as_mut().unwrap();
        while !seen.ends_with(b"raw\n") {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        child
    }

    fn ends_restored(end: &str, signal: Option<i32>) {
        let (mut master, terminal) = open_terminal();
        let mut odd = settings(terminal.as_fd()).unwrap();
        // Settings that are neither raw mode nor what a reset would give.
        odd.c_lflag &= !libc::ECHO;
        odd.c_cc[libc::VEOF] = 7;
        // SAFETY: a live structure.
        unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &odd) };
        let before = flags(terminal.as_fd());
        let mut child = start(end, &terminal);
        assert_ne!(flags(terminal.as_fd()), before, "the child is not in raw mode");
        if let Some(signal) = signal {
            // SAFETY: our own child, which we have not waited for.
            unsafe { libc::kill(i32::try_from(child.id()).unwrap(), signal) };
        } else {
            master.write_all(b"x").unwrap();
        }
        let status = child.wait().unwrap();
        assert_eq!(flags(terminal.as_fd()), before, "the terminal is not what it was");
        match end {
            "signal" => assert_eq!(status.signal(), signal),
            "abort" => assert_eq!(status.signal(), Some(libc::SIGABRT)),
            "fault" => assert_eq!(status.signal(), Some(libc::SIGSEGV)),
            _ => assert_eq!(status.code(), Some(0)),
        }
    }

    #[test]
    fn restored_when_the_guard_is_dropped() {
        ends_restored("drop", None);
    }

    #[test]
    fn restored_at_exit() {
        ends_restored("exit", None);
    }

    #[test]
    fn restored_when_a_thread_panics() {
        ends_restored("panic", None);
    }

    #[test]
    fn restored_at_abort() {
        ends_restored("abort", None);
    }

    #[test]
    fn restored_after_a_fault() {
        ends_restored("fault", None);
    }

    #[test]
    fn restored_by_deadly_signals_which_still_kill() {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            ends_restored("signal", Some(signal));
        }
    }

    #[test]
    fn what_is_no_terminal_stays_alone() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(TerminalGuard::enter(reader.as_fd()).unwrap().is_none());
    }
}
