//! `xvmm network`: networks of the host.

use std::fmt::Write;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::network_args::{
    ChangeArgs, CreateArgs, NamesArgs, NetworkArgs, NetworkCommand, RepairArgs, ReserveArgs,
};
use crate::exit::{ExitStatus, Failure};
use crate::network::NetworkError;
use crate::network::host::{
    self, DEFAULT_NETWORKS_DIR, Definition, Host, HostNetError, Kind, Layout, Options, Private, Report,
    Reservation, Shared, Status, Tools,
};

/// The longest time to confirm in: a day.
const LONGEST: u64 = 86_400;

pub(super) fn network(run_dir: &Path, args: NetworkArgs) -> Result<ExitStatus, Failure> {
    let host = this_host(run_dir, &args)?;
    let json = args.json;
    match args.command {
        NetworkCommand::Create(args) => {
            let options = options(&args.network, &args.change)?;
            let report = host::create(&host, &definition(&args)?, &options)?;
            tell(&[report], options.dry_run, json);
        }
        NetworkCommand::Up(args) => each(&host, &args, None, json, host::up)?,
        NetworkCommand::Down(args) => each(&host, &args.names, Some(args.force), json, host::down)?,
        NetworkCommand::Delete(args) => each(&host, &args.names, Some(args.force), json, host::delete)?,
        NetworkCommand::List => {
            let networks = host::list(&host)?;
            if json { print_json(&networks) } else { super::print(&table(&networks)) }
        }
        NetworkCommand::Show(args) => print_json(&host::show(&host, &args.network)?),
        NetworkCommand::Repair(RepairArgs { network, dry_run }) => {
            let options = Options { dry_run, ..Options::default() };
            tell(&host::repair(&host, network.as_deref(), &options)?, dry_run, json);
            if !dry_run {
                clean_up_interfaces();
            }
        }
        NetworkCommand::Confirm(args) => tell(&[host::confirm(&host, &args.network)?], false, json),
        NetworkCommand::Reserve(args) => reserve(&host, &args, json)?,
        NetworkCommand::Supervise(args) => host::supervise(&host, &args.network)?,
        NetworkCommand::Watch(args) => host::watch(&host, &args.network, &args.id, args.seconds)?,
    }
    Ok(ExitStatus::Success)
}

/// Removes the rules of guests' interfaces that are gone. A host without nft has none.
fn clean_up_interfaces() {
    match crate::network::clean_up() {
        Ok(()) | Err(NetworkError::NoNft(_)) => {}
        Err(error) => tracing::warn!("{error}"),
    }
}

fn this_host(run_dir: &Path, args: &NetworkArgs) -> Result<Host, Failure> {
    let failed = |what: &'static str| {
        move |error: io::Error| Failure::new(ExitStatus::HostError, format!("{what}: {error}"))
    };
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(failed("the current directory is not there"));
    let definitions = args.networks_dir.clone().or_else(|| super::path_variable("XVMM_NETWORKS_DIR"));
    let definitions = definitions.unwrap_or_else(|| DEFAULT_NETWORKS_DIR.into());
    Ok(Host {
        definitions: absolute(&definitions)?,
        run_dir: absolute(run_dir)?,
        root: super::path_variable("XVMM_HOST_ROOT").unwrap_or_else(|| "/".into()),
        tools: Tools::from_env(),
        program: std::env::current_exe().map_err(failed("the program's own file"))?,
    })
}

fn options(name: &str, change: &ChangeArgs) -> Result<Options, HostNetError> {
    let seconds = |text: &String| {
        let seconds = text.parse().ok().filter(|seconds| (1..=LONGEST).contains(seconds));
        seconds.ok_or_else(|| {
            invalid(name, format!("--confirm={text}: a number of seconds from 1 to {LONGEST}"))
        })
    };
    let confirm = change.confirm.as_ref().map(seconds).transpose()?;
    Ok(Options { dry_run: change.dry_run, confirm, force: false })
}

fn invalid(name: &str, problem: impl Into<String>) -> HostNetError {
    HostNetError::Invalid { name: name.to_owned(), problem: problem.into() }
}

fn definition(args: &CreateArgs) -> Result<Definition, HostNetError> {
    let name = &args.network;
    let kind = match &args.uplink {
        Some(uplink) => {
            let layout = match args.layout.as_str() {
                "plain" => Layout::Plain,
                "classic" => Layout::Classic,
                other => return Err(invalid(name, format!("--layout {other}: plain or classic"))),
            };
            Kind::Shared(Shared { uplink: uplink.clone(), layout })
        }
        None if args.private || name.starts_with("virbr") => Kind::Private(private(args)?),
        None => {
            return Err(invalid(
                name,
                "give --uplink INTERFACE for a shared network, or --private for one of the host alone",
            ));
        }
    };
    Ok(Definition { name: name.clone(), kind })
}

fn private(args: &CreateArgs) -> Result<Private, HostNetError> {
    let name = &args.network;
    let mut private = Private::standard();
    if let Some(subnet) = &args.subnet {
        private.subnet = subnet.parse().map_err(|problem| invalid(name, format!("--subnet: {problem}")))?;
        private.dhcp = host::pool(private.subnet);
    }
    if let Some(prefix) = &args.ipv6 {
        private.ipv6 = Some(prefix.parse().map_err(|problem| invalid(name, format!("--ipv6: {problem}")))?);
    }
    if let Some(range) = &args.dhcp_range {
        let ends =
            range.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let wrong = || {
            invalid(name, format!("--dhcp-range {range}: two addresses like 192.168.122.100-192.168.122.200"))
        };
        private.dhcp = Some(ends.ok_or_else(wrong)?);
    }
    if args.no_dhcp {
        private.dhcp = None;
    }
    private.dns = !args.no_dns;
    private.nat = !args.no_nat;
    for text in &args.host {
        private
            .hosts
            .push(Reservation::parse(text).map_err(|problem| invalid(name, format!("--host: {problem}")))?);
    }
    Ok(private)
}

/// Does it with one network or with all: up in the order of their names, down (`force` is given) the other way
/// round. One that fails does not keep the others from it.
fn each(
    host: &Host,
    args: &NamesArgs,
    force: Option<bool>,
    json: bool,
    act: fn(&Host, &str, &Options) -> Result<Report, HostNetError>,
) -> Result<(), Failure> {
    let options = options(args.network.as_deref().unwrap_or("all"), &args.change)?;
    let options = Options { force: force.unwrap_or(false), ..options };
    let mut names = match &args.network {
        Some(name) => vec![name.clone()],
        None => Definition::names(&host.definitions)?,
    };
    if force.is_some() {
        names.reverse();
    }
    let mut failures = Vec::new();
    let mut reports = Vec::new();
    for name in &names {
        match act(host, name, &options) {
            Ok(report) => reports.push(report),
            Err(error) => failures.push(error),
        }
    }
    tell(&reports, options.dry_run, json);
    let last = failures.pop();
    for failure in failures {
        super::complain(&failure.into());
    }
    last.map_or(Ok(()), |failure| Err(failure.into()))
}

fn reserve(host: &Host, args: &ReserveArgs, json: bool) -> Result<(), Failure> {
    let name = &args.network;
    let change = match args.address {
        Some(address) => {
            let text = format!("{}={address}", args.domain);
            Ok(Reservation::parse(&text).map_err(|problem| invalid(name, problem))?)
        }
        None => {
            let (domain, interface) = args.domain.split_once('/').unwrap_or((&args.domain, "0"));
            let wrong = |_| invalid(name, format!("{:?} is not the number of an interface", interface));
            Err((domain.to_owned(), interface.parse().map_err(wrong)?))
        }
    };
    let options = Options { dry_run: args.dry_run, ..Options::default() };
    tell(&[host::reserve(host, name, change, &options)?], args.dry_run, json);
    Ok(())
}

fn print_json(value: &impl Serialize) {
    super::print(&(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"));
}

fn tell(reports: &[Report], dry_run: bool, json: bool) {
    for warning in reports.iter().flat_map(|report| report.warnings.iter().map(move |text| (report, text))) {
        tracing::warn!("network {}: {}", warning.0.network, warning.1);
    }
    if json {
        print_json(&reports);
        return;
    }
    let mut text = String::new();
    for report in reports {
        // Writing to a String does not fail.
        if !report.changed {
            let _ = writeln!(text, "{}: nothing to do", report.network);
        } else if dry_run {
            let _ = writeln!(text, "{}: this would be done:", report.network);
            for step in &report.steps {
                let _ = writeln!(text, "  {step}");
            }
        }
        if let (Some(seconds), false) = (report.confirm_within, dry_run) {
            let _ = writeln!(
                text,
                "{name}: taken back in {seconds} s unless you run: xvmm network confirm {name}",
                name = report.network
            );
        }
    }
    super::print(&text);
}

fn table(networks: &[Status]) -> String {
    let mut text = row("Name", "Kind", "State", "Guests", "Uplink or subnet");
    for network in networks {
        let (kind, what) = match &network.definition.kind {
            Kind::Shared(shared) => ("shared", shared.uplink.clone()),
            Kind::Private(private) => {
                let six = private.ipv6.map(|prefix| format!(" {prefix}")).unwrap_or_default();
                ("private", format!("{}{six}", private.subnet))
            }
        };
        text += &row(&network.definition.name, kind, network.state, &network.guests.len().to_string(), &what);
    }
    text
}

fn row(name: &str, kind: &str, state: &str, guests: &str, what: &str) -> String {
    format!("{name:<15}  {kind:<7}  {state:<11}  {guests:>6}  {what}\n")
}
