//! The journal of a change: JSON, one value a line. First what is to be done and what was there before, then
//! the steps as they are begun, at last that it is complete. Each line is on the disk before what it tells.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::definition::Definition;
use super::error::HostNetError;
use super::transaction::{Plan, Step};
use super::{Host, files};

/// Suffix while a change is made or waits to be confirmed.
pub(super) const PENDING: &str = "journal";
/// Suffix when it is complete: what `down` undoes.
pub(super) const COMPLETE: &str = "state";

/// The first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Header {
    /// A random one for each change.
    pub(super) id: String,
    /// The kernel's id of this start of the host: what is made does not outlive it.
    boot: String,
    /// Inode of the network namespace.
    namespace: u64,
    pub(super) definition: Definition,
    pub(super) plan: Plan,
    /// The network is being taken away. Interrupted, this is continued; but if it has to be confirmed, it is
    /// taken back like any other change.
    pub(super) removing: bool,
    /// The definition goes with it.
    pub(super) deleting: bool,
    /// Seconds in which the change has to be confirmed.
    pub(super) confirm: Option<u64>,
}

/// The other lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Entry {
    Begin(Step),
    Made,
}

/// The file, open.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    pub(super) header: Header,
    pub(super) begun: Vec<Step>,
    /// All steps are done.
    pub(super) made: bool,
}

/// Whose journal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Of this namespace, since the start of the host.
    Here,
    /// Of a start before this one: what it made is gone.
    Stale,
    /// Of another namespace.
    Elsewhere,
}

impl Header {
    pub(super) fn new(definition: Definition, plan: Plan, confirm: Option<u64>) -> io::Result<Header> {
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        let (boot, namespace) = (boot()?, namespace()?);
        Ok(Header { id, boot, namespace, definition, plan, removing: false, deleting: false, confirm })
    }

    pub(super) fn place(&self) -> io::Result<Place> {
        Ok(match (self.boot == boot()?, self.namespace == namespace()?) {
            (false, _) => Place::Stale,
            (true, true) => Place::Here,
            (true, false) => Place::Elsewhere,
        })
    }
}

impl Journal {
    /// Begins a journal. One that is there is an error.
    pub(super) fn create(host: &Host, header: Header) -> Result<Journal, HostNetError> {
        let path = host.state_file(&header.definition.name, PENDING);
        let failed = |error| HostNetError::File { path: path.clone(), error };
        fs::create_dir_all(host.state()).map_err(failed)?;
        let file =
            OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let mut journal = Journal { path: path.clone(), file, header, begun: Vec::new(), made: false };
        let line = serde_json::to_string(&journal.header).map_err(|error| failed(io::Error::other(error)))?;
        journal.line(&line).and_then(|()| sync_dir(&path)).map_err(|error| {
            let _ = fs::remove_file(&path);
            failed(error)
        })?;
        Ok(journal)
    }

    /// The journal with this suffix, if there is one.
    pub(super) fn open(host: &Host, name: &str, suffix: &str) -> Result<Option<Journal>, HostNetError> {
        let path = host.state_file(name, suffix);
        let failed = |error| HostNetError::File { path: path.clone(), error };
        let Some(text) = files::read(&path).map_err(failed)? else { return Ok(None) };
        let damaged = |problem: String| HostNetError::Damaged { path: path.clone(), problem };
        let mut lines = text.split_inclusive('\n');
        let first = lines.next().unwrap_or_default();
        if !first.ends_with('\n') {
            // The process ended before anything was done.
            files::remove(&path).map_err(failed)?;
            return Ok(None);
        }
        let header = serde_json::from_str(first).map_err(|error| damaged(error.to_string()))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
        let mut journal = Journal { path: path.clone(), file, header, begun: Vec::new(), made: false };
        // A line that is cut short told of a step that was not begun.
        for line in lines.filter(|line| line.ends_with('\n')) {
            match serde_json::from_str(line).map_err(|error| damaged(error.to_string()))? {
                Entry::Begin(step) => journal.begun.push(step),
                Entry::Made => journal.made = true,
            }
        }
        Ok(Some(journal))
    }

    /// A step is about to begin.
    pub(super) fn begin(&mut self, step: Step) -> io::Result<()> {
        self.entry(Entry::Begin(step))?;
        self.begun.push(step);
        Ok(())
    }

    /// All steps are done.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.entry(Entry::Made)?;
        self.made = true;
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> io::Result<()> {
        let line = serde_json::to_string(&entry).map_err(io::Error::other)?;
        self.line(&line)
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.file.sync_data()
    }

    /// Makes it the record of what is there.
    pub(super) fn keep(self, host: &Host) -> io::Result<()> {
        let path = host.state_file(&self.header.definition.name, COMPLETE);
        fs::rename(&self.path, &path)?;
        sync_dir(&path)
    }

    /// Nothing is left of what it tells.
    pub(super) fn discard(self) -> io::Result<()> {
        files::remove(&self.path)?;
        sync_dir(&self.path)
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}
