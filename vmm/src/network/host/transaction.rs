//! Runs the steps of a plan as one change: all of them, or none.

use std::io;

use serde::{Deserialize, Serialize};

use super::definition::Definition;
use super::error::{HostNetError, StepError};
use super::hands::{Done, Hands, Witness};
use super::journal::{Header, Journal};
use super::private::PrivatePlan;
use super::shared::SharedPlan;
use super::{Host, files};

/// The steps of all plans. A plan has some of them, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Step {
    /// Write the definition.
    Define,
    /// Keep the programs that look after networks away.
    Exclude,
    /// Settings of the kernel for all networks.
    Settings,
    /// Make the bridge.
    Bridge,
    /// Take the addresses from the uplink, and take it down.
    Release,
    /// Give the uplink its name and address in the bridge.
    Dress,
    /// Make the pair of interfaces between the host and the bridge.
    Cable,
    /// Put the uplink and the cable into the bridge.
    Plug,
    /// Give the host's end what the uplink had.
    Carry,
    /// Tell systemd-resolved the servers of the uplink.
    Resolve,
    /// Give the bridge its addresses.
    Address,
    /// Rules of nftables.
    Firewall,
    /// DHCP and DNS.
    Serve,
}

/// What is to be done, and what was there before.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Plan {
    Shared(Box<SharedPlan>),
    Private(PrivatePlan),
}

/// The definition's file, before it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OldDefinition {
    /// What was in the file, if it was there.
    pub(super) text: Option<String>,
}

impl Plan {
    pub(super) fn steps(&self) -> Vec<Step> {
        match self {
            Plan::Shared(plan) => plan.steps(),
            Plan::Private(plan) => plan.steps(),
        }
    }

    /// What the step does, in words.
    pub(super) fn describe(&self, step: Step, definition: &Definition) -> String {
        match (self, step) {
            (_, Step::Define) => format!("write the definition of {}", definition.name),
            (Plan::Shared(plan), step) => plan.describe(step),
            (Plan::Private(plan), step) => plan.describe(step),
        }
    }

    pub(super) fn old_definition(&mut self) -> &mut Option<OldDefinition> {
        match self {
            Plan::Shared(plan) => &mut plan.define,
            Plan::Private(plan) => &mut plan.define,
        }
    }

    fn perform(&self, step: Step, definition: &Definition, hands: &mut Hands<'_>) -> Done {
        if step == Step::Define {
            let path = Definition::path(&hands.host.definitions, &definition.name);
            return hands.write_file(&path, &definition.text());
        }
        match self {
            Plan::Shared(plan) => plan.perform(step, hands),
            Plan::Private(plan) => plan.perform(step, hands),
        }
    }

    /// Undoes a step, whether it was done, half done, or begun and not done at all.
    fn undo(&self, step: Step, header: &Header, hands: &mut Hands<'_>) -> Done {
        match self {
            _ if step == Step::Define => undo_define(header, hands),
            Plan::Shared(plan) => plan.undo(step, hands),
            Plan::Private(plan) => plan.undo(step, header.removing, hands),
        }
    }
}

fn undo_define(header: &Header, hands: &mut Hands<'_>) -> Done {
    let old = match &header.plan {
        Plan::Shared(plan) => &plan.define,
        Plan::Private(plan) => &plan.define,
    };
    let path = Definition::path(&hands.host.definitions, &header.definition.name);
    match old {
        None => Ok(()),
        Some(OldDefinition { text: None }) => hands.remove_file(&path),
        Some(OldDefinition { text: Some(text) }) => {
            if files::read(&path).ok().flatten().as_ref() == Some(text) {
                return Ok(());
            }
            hands.write_file(&path, text)
        }
    }
}

/// Does all steps. An error in one undoes those before it; nothing is left then. `before` is called when the
/// journal is there and nothing is done yet.
pub(super) fn run(
    host: &Host,
    header: Header,
    witness: &mut dyn Witness,
    before: impl FnOnce(&Header) -> io::Result<()>,
) -> Result<(), HostNetError> {
    // A change that is half done when the terminal goes away would leave the host without a network.
    let _held = HeldSignals::new();
    let mut journal = Journal::create(host, header)?;
    let result = match before(&journal.header) {
        Ok(()) => steps(host, &mut journal, witness),
        Err(error) => Err(StepError::new("start the watchdog", error)),
    };
    if let Err(error) = result {
        return Err(taken_back(host, journal, witness, error));
    }
    if journal.header.confirm.is_none() {
        journal.keep(host).map_err(|error| HostNetError::File { path: host.state(), error })?;
    }
    Ok(())
}

/// Takes away `state`, a network that is up, by undoing the steps of its plan as `header` has it. If that has
/// to be confirmed, `state` stays until then, and an error brings the network up again; otherwise an error
/// leaves a journal that tells what is to be continued.
pub(super) fn remove(
    host: &Host,
    header: Header,
    state: Journal,
    witness: &mut dyn Witness,
    before: impl FnOnce(&Header) -> io::Result<()>,
) -> Result<(), HostNetError> {
    let _held = HeldSignals::new();
    let file = |error| HostNetError::File { path: host.state(), error };
    let mut journal = Journal::create(host, header)?;
    if let Err(error) = before(&journal.header) {
        // Nothing is done yet.
        journal.discard().map_err(file)?;
        let Header { definition, .. } = state.header;
        return Err(HostNetError::Host { name: definition.name, what: "start the watchdog".into(), error });
    }
    for step in state.header.plan.steps() {
        journal.begin(step).map_err(file)?;
    }
    if journal.header.confirm.is_none() {
        let name = state.header.definition.name.clone();
        state.discard().map_err(file)?;
        return undo(host, journal, witness).map_err(|error| not_undone(name, error));
    }
    let undone = undo_steps(host, &journal, witness);
    match undone.and_then(|()| journal.finish().map_err(|error| StepError::new("write the journal", error))) {
        Ok(()) => Ok(()),
        Err(error) => Err(taken_back(host, journal, witness, error)),
    }
}

/// What a change that failed ends in.
fn taken_back(host: &Host, journal: Journal, witness: &mut dyn Witness, failure: StepError) -> HostNetError {
    let name = journal.header.definition.name.clone();
    let StepError { what, error } = failure;
    match take_back(host, journal, witness) {
        Ok(()) => HostNetError::Undone { name, what, error },
        Err(undoing) => {
            let left = format!(" (cannot {}: {})", undoing.what, undoing.error);
            HostNetError::NotUndone { name, what, error, left }
        }
    }
}

pub(super) fn not_undone(name: String, StepError { what, error }: StepError) -> HostNetError {
    HostNetError::NotUndone { name, what, error, left: String::new() }
}

/// Makes the host what it was before the change, however much of it was done, and removes the journal: what was
/// made is undone, what was taken away is brought up again. After an error the journal stays.
pub(super) fn take_back(host: &Host, journal: Journal, witness: &mut dyn Witness) -> Done {
    if !journal.header.removing {
        return undo(host, journal, witness);
    }
    // Half of it may be there. Steps are made on a host that has nothing of them.
    undo_steps(host, &journal, witness)?;
    let Header { plan, definition, .. } = &journal.header;
    let mut hands = Hands::new(host, witness).map_err(|error| StepError::new("talk to the kernel", error))?;
    let made = plan.steps().into_iter().try_for_each(|step| plan.perform(step, definition, &mut hands));
    if let Err(error) = made {
        // Without the network, but whole: the host has what it needs on the uplink.
        let _ = undo_steps(host, &journal, witness);
        return Err(error);
    }
    journal.discard().map_err(|error| StepError::new("remove the journal", error))
}

fn steps(host: &Host, journal: &mut Journal, witness: &mut dyn Witness) -> Done {
    let connect = |error| StepError::new("talk to the kernel", error);
    let mut hands = Hands::new(host, witness).map_err(connect)?;
    for step in journal.header.plan.steps() {
        journal.begin(step).map_err(|error| StepError::new("write the journal", error))?;
        journal.header.plan.perform(step, &journal.header.definition, &mut hands)?;
    }
    journal.finish().map_err(|error| StepError::new("write the journal", error))
}

/// Undoes what the journal tells, and removes it; after an error it stays.
pub(super) fn undo(host: &Host, journal: Journal, witness: &mut dyn Witness) -> Done {
    undo_steps(host, &journal, witness)?;
    journal.discard().map_err(|error| StepError::new("remove the journal", error))
}

/// Undoes what the journal tells, the last step first. Goes on after an error, and returns the first one.
fn undo_steps(host: &Host, journal: &Journal, witness: &mut dyn Witness) -> Done {
    let mut hands = Hands::new(host, witness).map_err(|error| StepError::new("talk to the kernel", error))?;
    let mut first = None;
    for step in journal.begun.iter().rev() {
        if let Err(error) = journal.header.plan.undo(*step, &journal.header, &mut hands) {
            tracing::debug!("cannot {}: {}", error.what, error.error);
            first.get_or_insert(error);
        }
    }
    first.map_or(Ok(()), Err)
}

/// Of a journal of an earlier start of the host: only files on the disk are left of what it tells.
pub(super) fn forget(host: &Host, journal: Journal, witness: &mut dyn Witness) -> Done {
    let mut hands = Hands::new(host, witness).map_err(|error| StepError::new("talk to the kernel", error))?;
    if journal.begun.contains(&Step::Define) {
        undo_define(&journal.header, &mut hands)?;
    }
    journal.discard().map_err(|error| StepError::new("remove the journal", error))
}

/// While it lives, SIGHUP, SIGINT and SIGTERM wait.
pub(super) struct HeldSignals {
    before: libc::sigset_t,
}

impl HeldSignals {
    pub(super) fn new() -> HeldSignals {
        // SAFETY: sigset_t is an array of integers; the calls write to the two sets, which outlive them.
        unsafe {
            let mut signals: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                libc::sigaddset(&raw mut signals, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, &raw mut before);
            HeldSignals { before }
        }
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // SAFETY: the set was filled in by the call in `new`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
