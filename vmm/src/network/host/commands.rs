//! What `xvmm network` does: every command may be given twice, and does nothing the second time.

use std::fs::File;
use std::io;

use serde::Serialize;

use super::definition::{Definition, Kind, Reservation};
use super::error::{HostNetError, StepError};
use super::hands::{Consent, Hands, Witness};
use super::journal::{COMPLETE, Header, Journal, PENDING, Place};
use super::netlink::Netlink;
use super::private::PrivatePlan;
use super::shared::SharedPlan;
use super::transaction::{self, OldDefinition, Plan};
use super::{Host, dnsmasq, files, supervisor, watchdog};

/// Ways to do it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Seconds in which the change has to be confirmed.
    pub confirm: Option<u64>,
    /// Even if guests are plugged in.
    pub force: bool,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The network.
    pub network: String,
    /// Whether anything was to be done.
    pub changed: bool,
    /// What, in order.
    pub steps: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Seconds in which `xvmm network confirm` has to follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_within: Option<u64>,
}

impl Report {
    fn unchanged(name: &str) -> Report {
        Report { network: name.to_owned(), ..Report::default() }
    }

    fn of(name: &str, steps: Vec<String>) -> Report {
        Report { changed: !steps.is_empty(), steps, ..Report::unchanged(name) }
    }
}

/// Writes the definition and brings the network up.
pub fn create(host: &Host, definition: &Definition, options: &Options) -> Result<Report, HostNetError> {
    create_with(host, definition, options, &mut Consent)
}

pub(super) fn create_with(
    host: &Host,
    definition: &Definition,
    options: &Options,
    witness: &mut dyn Witness,
) -> Result<Report, HostNetError> {
    definition.check()?;
    let name = &definition.name;
    let _lock = begin(host, name, options)?;
    let define = match Definition::load(&host.definitions, name) {
        Ok(present) if present == *definition => None,
        Ok(_) => {
            return Err(HostNetError::Exists {
                name: name.clone(),
                problem: format!(
                    "it is defined with other settings, see `xvmm network show {name}`; delete it first with `xvmm network delete {name}`"
                ),
            });
        }
        Err(HostNetError::Unknown(_)) => Some(OldDefinition { text: None }),
        Err(error) => return Err(error),
    };
    bring_up(host, definition, define, options, witness)
}

/// Brings up a network that is defined.
pub fn up(host: &Host, name: &str, options: &Options) -> Result<Report, HostNetError> {
    let definition = Definition::load(&host.definitions, name)?;
    let _lock = begin(host, name, options)?;
    bring_up(host, &definition, None, options, &mut Consent)
}

fn bring_up(
    host: &Host,
    definition: &Definition,
    define: Option<OldDefinition>,
    options: &Options,
    witness: &mut dyn Witness,
) -> Result<Report, HostNetError> {
    let name = &definition.name;
    if let Some(state) = current(host, name, options)? {
        if !exists(name)? {
            return Err(HostNetError::HalfMade(name.clone()));
        }
        let mended = if options.dry_run { Vec::new() } else { mend(host, definition, &state)? };
        return Ok(Report::of(name, mended));
    }
    let mut plan = match &definition.kind {
        Kind::Shared(shared) => Plan::Shared(Box::new(SharedPlan::new(host, name, shared)?)),
        Kind::Private(private) => Plan::Private(PrivatePlan::new(host, name, private)?),
    };
    *plan.old_definition() = define;
    let steps = plan.steps().into_iter().map(|step| plan.describe(step, definition)).collect();
    let warnings = match &plan {
        Plan::Shared(plan) => plan.warnings(),
        Plan::Private(plan) => plan.warnings(host),
    };
    let report = Report { warnings, confirm_within: options.confirm, ..Report::of(name, steps) };
    if !options.dry_run {
        let failed = |error| HostNetError::Host { name: name.clone(), what: "begin a journal".into(), error };
        let header = Header::new(definition.clone(), plan, options.confirm).map_err(failed)?;
        transaction::run(host, header, witness, |header| watchdog::arm(host, header))?;
    }
    Ok(report)
}

fn mend(host: &Host, definition: &Definition, state: &Journal) -> Result<Vec<String>, HostNetError> {
    let (Plan::Private(plan), Kind::Private(private)) = (&state.header.plan, &definition.kind) else {
        return Ok(Vec::new());
    };
    let name = &definition.name;
    let failed = |error| HostNetError::Host { name: name.clone(), what: "talk to the kernel".into(), error };
    let mut plan = plan.clone();
    plan.private = private.clone();
    let mut consent = Consent;
    let mut hands = Hands::new(host, &mut consent).map_err(failed)?;
    plan.mend(&mut hands).map_err(|StepError { what, error }| HostNetError::Host {
        name: name.clone(),
        what,
        error,
    })
}

/// Takes the network down; the definition stays.
pub fn down(host: &Host, name: &str, options: &Options) -> Result<Report, HostNetError> {
    down_with(host, name, options, &mut Consent)
}

pub(super) fn down_with(
    host: &Host,
    name: &str,
    options: &Options,
    witness: &mut dyn Witness,
) -> Result<Report, HostNetError> {
    take_away(host, name, false, options, witness)
}

/// Takes the network down, and removes its definition.
pub fn delete(host: &Host, name: &str, options: &Options) -> Result<Report, HostNetError> {
    delete_with(host, name, options, &mut Consent)
}

pub(super) fn delete_with(
    host: &Host,
    name: &str,
    options: &Options,
    witness: &mut dyn Witness,
) -> Result<Report, HostNetError> {
    take_away(host, name, true, options, witness)
}

fn take_away(
    host: &Host,
    name: &str,
    deleting: bool,
    options: &Options,
    witness: &mut dyn Witness,
) -> Result<Report, HostNetError> {
    let definition = Definition::load(&host.definitions, name)?;
    let _lock = begin(host, name, options)?;
    let mut report = match current(host, name, options)? {
        Some(state) => take_down(host, &definition, state, deleting, options, witness)?,
        None => Report::unchanged(name),
    };
    if deleting {
        // What waits to be confirmed may come back.
        if !options.dry_run && report.confirm_within.is_none() {
            remove_files(host, name)?;
        }
        report.changed = true;
        report.steps.push(format!("remove the definition of {name}"));
    }
    Ok(report)
}

/// What outlives a network that is down.
fn remove_files(host: &Host, name: &str) -> Result<(), HostNetError> {
    let path = Definition::path(&host.definitions, name);
    [path, host.state_file(name, dnsmasq::LEASES), host.state_file(name, watchdog::LOG)]
        .into_iter()
        .try_for_each(|path| files::remove(&path).map_err(|error| HostNetError::File { path, error }))
}

fn take_down(
    host: &Host,
    definition: &Definition,
    state: Journal,
    deleting: bool,
    options: &Options,
    witness: &mut dyn Witness,
) -> Result<Report, HostNetError> {
    let name = &definition.name;
    if !options.force {
        check_unused(name, &state.header.plan)?;
    }
    let steps = state.header.plan.steps();
    let undone: Vec<_> = steps
        .iter()
        .rev()
        .filter(|step| **step != transaction::Step::Define)
        .map(|step| format!("undo: {}", state.header.plan.describe(*step, definition)))
        .collect();
    // Without a step there is nothing to bring up again.
    let confirm = options.confirm.filter(|_| !undone.is_empty());
    let report = Report { confirm_within: confirm, ..Report::of(name, undone) };
    if options.dry_run {
        return Ok(report);
    }
    let failed = |error| HostNetError::Host { name: name.clone(), what: "begin a journal".into(), error };
    let header = Header::new(definition.clone(), state.header.plan.clone(), confirm);
    let mut header = header.map_err(failed)?;
    (header.removing, header.deleting) = (true, deleting);
    if let Plan::Shared(plan) = &mut header.plan {
        plan.refresh(definition)?;
    }
    let define = deleting && confirm.is_none();
    *header.plan.old_definition() = define.then_some(OldDefinition { text: None });
    transaction::remove(host, header, state, witness, |header| watchdog::arm(host, header))?;
    Ok(report)
}

/// Keeps a change that waits for it.
pub fn confirm(host: &Host, name: &str) -> Result<Report, HostNetError> {
    let _lock = lock(host)?;
    let nothing = || HostNetError::NothingToConfirm(name.to_owned());
    let journal = Journal::open(host, name, PENDING)?.ok_or_else(nothing)?;
    let file = |error| HostNetError::File { path: host.state(), error };
    match journal.header.place().map_err(file)? {
        Place::Elsewhere => return Err(HostNetError::OtherNamespace(name.to_owned())),
        Place::Stale => return Err(nothing()),
        Place::Here if !journal.made => return Err(HostNetError::HalfMade(name.to_owned())),
        Place::Here => {}
    }
    let removing = journal.header.removing;
    journal.keep(host).map_err(file)?;
    if removing {
        // Looks at what was kept, which is that there is nothing.
        current(host, name, &Options::default())?;
    }
    Ok(Report::of(name, vec![format!("keep {name} as it is")]))
}

/// Takes back what was interrupted or not confirmed, and completes what was being taken away. Without a name,
/// of all networks.
pub fn repair(host: &Host, name: Option<&str>, options: &Options) -> Result<Vec<Report>, HostNetError> {
    let _lock = begin(host, name.unwrap_or("all"), &Options { force: true, ..*options })?;
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => {
            let mut names = files::stems(&host.state(), &format!(".{PENDING}"))?;
            names.extend(files::stems(&host.state(), &format!(".{COMPLETE}"))?);
            names.sort();
            names.dedup();
            names
        }
    };
    names.iter().map(|name| repair_one(host, name, options, &mut Consent)).collect()
}

pub(super) fn repair_one(
    host: &Host,
    name: &str,
    options: &Options,
    witness: &mut dyn Witness,
) -> Result<Report, HostNetError> {
    let file = |error| HostNetError::File { path: host.state(), error };
    let failed = |error| transaction::not_undone(name.to_owned(), error);
    let _held = transaction::HeldSignals::new();
    if let Some(journal) = Journal::open(host, name, PENDING)? {
        let Header { removing, confirm, .. } = journal.header;
        let place = journal.header.place().map_err(file)?;
        let what = match (removing, confirm, place) {
            (_, _, Place::Elsewhere) => return Err(HostNetError::OtherNamespace(name.to_owned())),
            (_, _, Place::Stale) => format!("forget a change of {name} from before the host was restarted"),
            (true, None, Place::Here) => format!("complete what takes {name} away"),
            (true, Some(_), Place::Here) => format!("bring up {name} again, which was taken away"),
            (false, _, Place::Here) => {
                format!("take back the change of {name}, begun up to: {:?}", journal.begun.last())
            }
        };
        if !options.dry_run {
            match (removing, confirm, place) {
                (_, _, Place::Stale) => transaction::forget(host, journal, witness),
                (true, None, _) => transaction::undo(host, journal, witness),
                _ => transaction::take_back(host, journal, witness),
            }
            .map_err(failed)?;
            if removing
                && (confirm.is_none() || place == Place::Stale)
                && let Some(state) = Journal::open(host, name, COMPLETE)?
            {
                state.discard().map_err(file)?;
            }
        }
        return Ok(Report::of(name, vec![what]));
    }
    let Some(mut state) = current(host, name, options)? else {
        // Known, and down: there is nothing to repair.
        Definition::load(&host.definitions, name)?;
        return Ok(Report::unchanged(name));
    };
    if exists(name)? {
        let definition = Definition::load(&host.definitions, name)?;
        let mended = if options.dry_run { Vec::new() } else { mend(host, &definition, &state)? };
        return Ok(Report::of(name, mended));
    }
    // Somebody deleted the bridge.
    state.header.removing = true;
    *state.header.plan.old_definition() = None;
    if !options.dry_run {
        transaction::undo(host, state, witness).map_err(failed)?;
    }
    Ok(Report::of(name, vec![format!("take away what is left of {name}, whose bridge is gone")]))
}

/// Gives a domain an address that it always gets, or takes it away (`address` None).
pub fn reserve(
    host: &Host,
    name: &str,
    change: Result<Reservation, (String, u32)>,
    options: &Options,
) -> Result<Report, HostNetError> {
    let mut definition = Definition::load(&host.definitions, name)?;
    let _lock = begin(host, name, options)?;
    let invalid =
        |problem: &str| HostNetError::Invalid { name: name.to_owned(), problem: problem.to_owned() };
    let Kind::Private(private) = &mut definition.kind else {
        return Err(invalid("a shared network gives no addresses; reserve it on the DHCP server outside"));
    };
    let before = private.hosts.clone();
    let step = match change {
        Ok(new) => {
            private.hosts.retain(|old| old.mac() != new.mac());
            let step = format!("give {} ({}) the address {}", new.domain, new.mac(), new.address);
            private.hosts.push(new);
            step
        }
        Err((domain, interface)) => {
            private.hosts.retain(|old| (&old.domain, old.interface) != (&domain, interface));
            format!("{domain} gets any address")
        }
    };
    private.hosts.sort_by_key(|host| host.address);
    if private.hosts == before {
        return Ok(Report::unchanged(name));
    }
    let text = dnsmasq::hosts(private);
    definition.check()?;
    if !options.dry_run {
        let write = |path: std::path::PathBuf, text: &str| {
            files::write(&path, text).map_err(|error| HostNetError::File { path, error })
        };
        write(Definition::path(&host.definitions, name), &definition.text())?;
        if supervisor::runs(host, name) {
            write(host.state_file(name, dnsmasq::HOSTS), &text)?;
            let failed =
                |error| HostNetError::Host { name: name.to_owned(), what: "reload dnsmasq".into(), error };
            supervisor::reload(host, name).map_err(failed)?;
        }
    }
    Ok(Report::of(name, vec![step]))
}

/// One change at a time.
pub(super) fn lock(host: &Host) -> Result<File, HostNetError> {
    let path = host.state().join("lock");
    files::lock(&path, true).map_err(|error| HostNetError::File { path, error })
}

/// Takes the lock, if anything is to be changed, and refuses where a change is half made.
fn begin(host: &Host, name: &str, options: &Options) -> Result<Option<File>, HostNetError> {
    let guard = if options.dry_run {
        None
    } else {
        if !may_change_network() {
            return Err(HostNetError::NotPermitted(name.to_owned()));
        }
        Some(lock(host)?)
    };
    if options.force {
        return Ok(guard);
    }
    if let Some(journal) = Journal::open(host, name, PENDING)? {
        let file = |error| HostNetError::File { path: host.state(), error };
        match journal.header.place().map_err(file)? {
            Place::Elsewhere => return Err(HostNetError::OtherNamespace(name.to_owned())),
            Place::Here => return Err(HostNetError::HalfMade(name.to_owned())),
            Place::Stale if options.dry_run => {}
            Place::Stale => {
                let forgotten = transaction::forget(host, journal, &mut Consent);
                forgotten.map_err(|StepError { error, .. }| file(error))?;
            }
        }
    }
    Ok(guard)
}

/// What is up, of this start of the host.
fn current(host: &Host, name: &str, options: &Options) -> Result<Option<Journal>, HostNetError> {
    let file = |error| HostNetError::File { path: host.state(), error };
    let Some(state) = Journal::open(host, name, COMPLETE)? else { return Ok(None) };
    match state.header.place().map_err(file)? {
        Place::Here if state.header.removing => {
            // Confirmed, and down.
            if !options.dry_run {
                if state.header.deleting {
                    remove_files(host, name)?;
                }
                state.discard().map_err(file)?;
            }
            Ok(None)
        }
        Place::Here => Ok(Some(state)),
        Place::Elsewhere => Err(HostNetError::OtherNamespace(name.to_owned())),
        Place::Stale => {
            if !options.dry_run {
                state.discard().map_err(file)?;
            }
            Ok(None)
        }
    }
}

fn exists(name: &str) -> Result<bool, HostNetError> {
    let failed =
        |error| HostNetError::Host { name: name.to_owned(), what: "look for the bridge".into(), error };
    Ok(Netlink::new().and_then(|mut netlink| netlink.link(name)).map_err(failed)?.is_some())
}

/// Ports of the bridge that are not ours.
pub(super) fn guests(name: &str, plan: &Plan) -> io::Result<Vec<String>> {
    let links = Netlink::new()?.links()?;
    let Some(bridge) = links.iter().find(|link| link.name == name) else { return Ok(Vec::new()) };
    let own = |name: &str| match plan {
        Plan::Shared(plan) => name == plan.port || name == plan.cable,
        Plan::Private(_) => false,
    };
    let ports = links.iter().filter(|link| link.master == Some(bridge.index) && !own(&link.name));
    Ok(ports.map(|link| link.name.clone()).collect())
}

fn check_unused(name: &str, plan: &Plan) -> Result<(), HostNetError> {
    if matches!(plan, Plan::Private(PrivatePlan { owner: Some(_), .. })) {
        return Ok(());
    }
    let failed = |error| HostNetError::Host { name: name.to_owned(), what: "list the ports".into(), error };
    let ports = guests(name, plan).map_err(failed)?;
    if ports.is_empty() {
        Ok(())
    } else {
        Err(HostNetError::InUse { name: name.to_owned(), ports: ports.join(", ") })
    }
}

/// Whether this thread has CAP_NET_ADMIN.
fn may_change_network() -> bool {
    const CAP_NET_ADMIN: u64 = 12;
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    effective.is_none_or(|effective| effective & 1 << CAP_NET_ADMIN != 0)
}
