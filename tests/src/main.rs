//! End-to-end tests of xvmm: real guest kernels, on this host's KVM or in a nested host.
//!
//! The program is both sides of the tests. On the machine of the developer it prepares the material,
//! decides where to run, starts the nested host and prints the results (`nested`, `driver`); on the
//! KVM host, which may be the nested one, it runs the tests themselves (`runner`, `guest`, `cases`).

// A program has no users of its items outside; `pub` says what a module offers to the others.
#![allow(unreachable_pub)]

mod bench;
mod cases;
mod cpio;
mod demo;
mod driver;
mod formats;
mod grub;
mod guest;
mod images;
mod kit;
mod kvm;
mod nested;
mod network;
mod packages;
mod pc_images;
mod program;
mod pvhvm_images;
mod records;
mod runner;
mod storage;

use std::process::ExitCode;

/// An error is one sentence for the person who reads the test's result.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// What fallible functions here return.
pub type Result<T> = std::result::Result<T, Error>;

/// Returns an error made from a format string.
#[macro_export]
macro_rules! fail {
    ($($text:tt)*) => { Err($crate::Error::from(format!($($text)*))) };
}

/// Ends the test with the formatted reason unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return $crate::fail!($($text)*);
        }
    };
}

const USAGE: &str = "\
usage: xvmm-tests COMMAND
  prepare                 fetch the Debian packages, build the images
  list [--full]           the names of the tests
  run [--full] [--part N/M] [--nested | --direct] [--jobs N] [TEST...]
                          run the tests (TEST: a name, or the start of one followed by *)
  try                     a guest with a shell on this terminal
  bench [--rounds N] [--loads N] [--direct] [--write] [PEER...]
                          xvmm beside QEMU, see docs/benchmarks.md
  probe [--nested]        what KVM offers here, or in the nested host
variables: XVMM (the program under test), XVMM_CACHE (folder for downloads and images)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("", &[][..]),
    };
    let result = match command {
        "prepare" => driver::prepare(),
        "list" => driver::Options::parse(rest).and_then(|options| driver::list(&options)),
        "run" => driver::Options::parse(rest).and_then(|options| driver::run(&options)),
        "probe" if rest.iter().any(|word| word == "--nested") => nested::probe(),
        "probe" => kvm::probe(),
        "try" => demo::demo(rest),
        "bench" => bench::bench(rest),
        // These are started by the ones above: on the KVM host, and in a guest.
        "inside" => runner::inside(rest),
        "one" => runner::one(rest),
        "bench-inside" => bench::inside(rest),
        "bench-write" => bench::write(rest),
        "bench-disk" => bench::disk(rest),
        "bench-net" => bench::net(rest),
        "records" => records::load(rest),
        "xdp" => cases::network::xdp::load(rest),
        "reach" => cases::isolation::reach(rest),
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
