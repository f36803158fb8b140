//! Takes a change back that nobody confirms: a process of its own, started before the first step, that
//! outlives the terminal and the command.

use std::io;
use std::time::Duration;

use super::error::HostNetError;
use super::hands::Consent;
use super::journal::{Header, Journal, PENDING};
use super::{Host, commands, supervisor, transaction};

/// Suffix of what it has to say.
pub(super) const LOG: &str = "watchdog.log";
/// How often it tries, and the pause in between.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_secs(2);

/// Starts it, if the change has to be confirmed.
pub(super) fn arm(host: &Host, header: &Header) -> io::Result<()> {
    let Some(seconds) = header.confirm else { return Ok(()) };
    let name = &header.definition.name;
    let log = host.state_file(name, LOG);
    supervisor::spawn(host, &["watch", name, &header.id, &seconds.to_string()], &log).map(|_| ())
}

/// Its life: sleeps, and looks whether the change `id` still waits.
pub fn watch(host: &Host, name: &str, id: &str, seconds: u64) -> Result<(), HostNetError> {
    std::thread::sleep(Duration::from_secs(seconds));
    // A change that is being made at this moment is waited for.
    let _lock = commands::lock(host)?;
    for _ in 1..TRIES {
        let Some(journal) = waiting(host, name, id)? else { return Ok(()) };
        match transaction::take_back(host, journal, &mut Consent) {
            Ok(()) => {
                tracing::warn!("network {name}: not confirmed within {seconds} s, and taken back");
                return Ok(());
            }
            Err(error) => tracing::error!("network {name}: cannot {}: {}", error.what, error.error),
        }
        std::thread::sleep(PAUSE);
    }
    Err(HostNetError::HalfMade(name.to_owned()))
}

fn waiting(host: &Host, name: &str, id: &str) -> Result<Option<Journal>, HostNetError> {
    let journal = Journal::open(host, name, PENDING)?;
    Ok(journal.filter(|journal| journal.header.id == id && journal.header.confirm.is_some()))
}
