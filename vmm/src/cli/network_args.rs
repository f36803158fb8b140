//! The grammar of `xvmm network`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    /// The folder of definitions [default: /etc/xvmm/networks]
    #[arg(long, value_name = "DIR", global = true)]
    pub(super) networks_dir: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: NetworkCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Define a network and bring it up: shared with --uplink, private with --private
    Create(Box<CreateArgs>),
    /// Take a network down and remove its definition
    Delete(DownArgs),
    /// Bring up a network that is defined
    Up(NamesArgs),
    /// Take a network down; its definition stays
    Down(DownArgs),
    /// List the networks
    List,
    /// Describe a network, as JSON
    Show(NameArg),
    /// Take back what was interrupted or is not confirmed, and start what has died
    Repair(RepairArgs),
    /// Keep a change that was made with --confirm
    Confirm(NameArg),
    /// Give a domain an address that it always gets, on a private network
    Reserve(ReserveArgs),
    /// Looks after dnsmasq
    #[command(hide = true)]
    Supervise(NameArg),
    /// Takes back what is not confirmed
    #[command(hide = true)]
    Watch(WatchArgs),
}

#[derive(Debug, Args)]
pub(super) struct NameArg {
    /// Name of the network and of its bridge
    pub(super) network: String,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Name of the network and of its bridge
    pub(super) network: String,
    /// A shared network: the network card, bond or VLAN that goes into the bridge
    #[arg(long, value_name = "INTERFACE", conflicts_with = "private")]
    pub(super) uplink: Option<String>,
    /// How interfaces are called: plain, or classic for eth0, peth0 and vif0.0 as on a Xen host
    #[arg(long, value_name = "LAYOUT", default_value = "plain", requires = "uplink")]
    pub(super) layout: String,
    /// A private network, with address translation, DHCP and DNS
    #[arg(long)]
    pub(super) private: bool,
    /// The host's address on a private network
    #[arg(long, value_name = "ADDRESS/BITS", conflicts_with = "uplink")]
    pub(super) subnet: Option<String>,
    /// A prefix of IPv6 for a private network
    #[arg(long, value_name = "PREFIX/BITS", conflicts_with = "uplink")]
    pub(super) ipv6: Option<String>,
    /// The addresses for guests [default: all behind the host's]
    #[arg(long, value_name = "FIRST-LAST", conflicts_with_all = ["uplink", "no_dhcp"])]
    pub(super) dhcp_range: Option<String>,
    /// No DHCP on a private network
    #[arg(long, conflicts_with = "uplink")]
    pub(super) no_dhcp: bool,
    /// No DNS on a private network
    #[arg(long, conflicts_with = "uplink")]
    pub(super) no_dns: bool,
    /// No address translation: the network outside has to know the way to the subnet
    #[arg(long, conflicts_with = "uplink")]
    pub(super) no_nat: bool,
    /// An address that a domain always gets; may be given several times
    #[arg(long, value_name = "DOMAIN=ADDRESS", conflicts_with = "uplink")]
    pub(super) host: Vec<String>,
    #[command(flatten)]
    pub(super) change: ChangeArgs,
}

#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// Tell what would be done, and do nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Take everything back unless `xvmm network confirm` follows within this time [default: 60]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60", require_equals = true)]
    pub(super) confirm: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct NamesArgs {
    /// Name of the network
    #[arg(required_unless_present = "all")]
    pub(super) network: Option<String>,
    /// All networks that are defined
    #[arg(long, conflicts_with_all = ["network", "confirm"])]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) change: ChangeArgs,
}

#[derive(Debug, Args)]
pub(super) struct DownArgs {
    #[command(flatten)]
    pub(super) names: NamesArgs,
    /// Even if guests are plugged in
    // They would not be plugged in again when the network is brought up again.
    #[arg(long, conflicts_with = "confirm")]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    /// Name of the network; all without it
    pub(super) network: Option<String>,
    /// Tell what would be done, and do nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReserveArgs {
    /// Name of the network
    pub(super) network: String,
    /// Name of the domain, NAME/N for its interface N, or an Ethernet address
    pub(super) domain: String,
    /// The address
    #[arg(required_unless_present = "remove")]
    pub(super) address: Option<Ipv4Addr>,
    /// Take the reservation away
    #[arg(long, conflicts_with = "address")]
    pub(super) remove: bool,
    /// Tell what would be done, and do nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// Name of the network
    pub(super) network: String,
    /// Id of the change
    pub(super) id: String,
    /// How long it may wait
    pub(super) seconds: u64,
}
