//! `xvmm screenshot`: the screen of a guest as a file.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use super::args::ScreenshotArgs;
use crate::api::ApiClient;
use crate::exit::{ExitStatus, Failure};

pub(super) fn screenshot(run_dir: &Path, args: &ScreenshotArgs) -> Result<ExitStatus, Failure> {
    let to_stdout = args.file == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        let message =
            "the picture is no text; send the standard output to a file or a program, or name a file";
        return Err(Failure::new(ExitStatus::Usage, message));
    }
    let (_, entry) = super::lookup(run_dir, &args.domain)?;
    let picture = ApiClient::new(&entry.api_socket()).screenshot()?;
    let written = if to_stdout {
        let mut stdout = io::stdout().lock();
        stdout.write_all(&picture).and_then(|()| stdout.flush())
    } else {
        fs::write(&args.file, &picture)
    };
    let failed = |error| {
        Failure::new(ExitStatus::HostError, format!("{}: cannot be written: {error}", args.file.display()))
    };
    written.map_err(failed)?;
    Ok(ExitStatus::Success)
}
