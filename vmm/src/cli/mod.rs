//! The command line: one file per subcommand.

mod args;
mod block_attach;
mod block_detach;
mod block_list;
mod cd_insert;
mod console;
mod destroy;
mod info;
mod list;
mod net_attach;
mod net_detach;
mod net_list;
mod network;
mod network_args;
mod run;
mod screenshot;
mod sendkey;
mod shutdown;
mod vncviewer;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing::level_filters::LevelFilter;

use crate::config::{DEFAULT_RUN_DIR, DomainConfig};
use crate::domain::{DomainEntry, DomainError, Registry};
use crate::exit::{ExitStatus, Failure};
use args::{Cli, Command};

/// What runs a domain until it is over.
pub type Runner = fn(DomainConfig) -> Result<ExitStatus, Failure>;

/// The program: parses `args` (the program's name first), does what they say, and tells on stderr what went
/// wrong, in one line.
pub fn main(args: impl IntoIterator<Item = OsString>, runner: Runner) -> ExitCode {
    tell_panics_in_one_line();
    let cli = match Cli::try_parse_from(args::with_default_command(args)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error).into(),
    };
    log_to_stderr(cli.verbose);
    let run_dir = cli.run_dir.or_else(|| path_variable("XVMM_RUN_DIR"));
    let run_dir = run_dir.unwrap_or_else(|| DEFAULT_RUN_DIR.into());
    let result = match cli.command {
        Command::Run(args) => run::run(*args, run_dir, runner),
        Command::List => list::list(&run_dir),
        Command::Console(args) => console::console(&run_dir, &args.domain),
        Command::Info(args) => info::info(&run_dir, &args.domain),
        Command::Shutdown(args) => shutdown::shutdown(&run_dir, &args),
        Command::Reboot(args) => shutdown::reboot(&run_dir, &args),
        Command::Destroy(args) => destroy::destroy(&run_dir, &args.domain),
        Command::BlockAttach(args) => block_attach::block_attach(&run_dir, &args),
        Command::BlockDetach(args) => block_detach::block_detach(&run_dir, &args),
        Command::BlockList(args) => block_list::block_list(&run_dir, &args),
        Command::CdInsert(args) => cd_insert::cd_insert(&run_dir, &args),
        Command::CdEject(args) => cd_insert::cd_eject(&run_dir, &args),
        Command::Network(args) => network::network(&run_dir, args),
        Command::NetworkAttach(args) => net_attach::net_attach(&run_dir, &args),
        Command::NetworkDetach(args) => net_detach::net_detach(&run_dir, &args),
        Command::Screenshot(args) => screenshot::screenshot(&run_dir, &args),
        Command::Sendkey(args) => sendkey::sendkey(&run_dir, &args),
        Command::Vncviewer(args) => vncviewer::vncviewer(&run_dir, &args.domain),
        Command::NetworkList(args) => net_list::net_list(&run_dir, &args),
    };
    result.unwrap_or_else(|failure| complain(&failure)).into()
}

/// The running domain `wanted`; a missing folder means that there is none.
fn lookup(run_dir: &std::path::Path, wanted: &str) -> Result<(Registry, DomainEntry), DomainError> {
    let missing = || DomainError::NoSuchDomain { wanted: wanted.to_owned() };
    let registry = Registry::open_existing(run_dir)?.ok_or_else(missing)?;
    let entry = registry.lookup(wanted)?;
    Ok((registry, entry))
}

/// The current directory, for relative names in a request.
fn current_dir() -> Option<PathBuf> {
    std::env::current_dir().ok()
}

fn path_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Writes to stdout. A reader that has gone is nobody's fault.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn complain(failure: &Failure) -> ExitStatus {
    let _ = writeln!(io::stderr(), "xvmm: {failure}");
    failure.status
}

/// Shows help and version, or makes one line of what clap has to say.
fn usage(error: &clap::Error) -> ExitStatus {
    let text = error.render().to_string();
    if !error.use_stderr() {
        print(&text);
        return ExitStatus::Success;
    }
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let sentence = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
    complain(&Failure::new(ExitStatus::Usage, format!("{sentence}; see `xvmm --help`")))
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(Stderr::default);
    // Fails when a subscriber is there already, which then does the same.
    let _ = builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init();
}

/// Collects a message and writes it at once, with the line ends that the terminal needs: in raw mode a line
/// feed alone would leave the cursor where it is.
#[derive(Default)]
struct Stderr(Vec<u8>);

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let text = std::mem::take(&mut self.0);
        if !crate::console::terminal::is_raw() {
            return io::stderr().write_all(&text);
        }
        io::stderr().write_all(&with_returns(&text))
    }
}

/// Puts a carriage return before every line feed.
fn with_returns(text: &[u8]) -> Vec<u8> {
    let bytes = text.iter().flat_map(|byte| match byte {
        b'\n' => b"\r\n",
        byte => std::slice::from_ref(byte),
    });
    bytes.copied().collect()
}

impl Drop for Stderr {
    fn drop(&mut self) {
        // Nobody is left who could be told of an error.
        let _ = self.flush();
    }
}

/// A panic in any thread ends the process, restores the terminal, and is told in one line without a backtrace.
fn tell_panics_in_one_line() {
    std::panic::set_hook(Box::new(|panic| {
        crate::console::terminal::restore();
        let payload = panic.payload();
        let reason = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let reason = reason.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        let message = format!("internal error: {reason}{place}; please report it");
        let status = complain(&Failure::new(ExitStatus::Internal, message));
        // SAFETY: _exit takes a number. Destructors must not run beside the thread that panics.
        unsafe { libc::_exit(status.code().into()) }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_for_a_raw_terminal_begin_at_its_left_edge() {
        assert_eq!(with_returns(b"one\ntwo\n\nthree"), b"one\r\ntwo\r\n\r\nthree");
    }
}
