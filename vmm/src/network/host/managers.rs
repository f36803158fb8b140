//! Programs that look after the host's interfaces, and would undo what is done here: systemd-networkd,
//! NetworkManager and ifupdown. Each one is told to leave ours alone, in files below /run: they are gone after
//! a restart of the host, when the uplink is brought up as ever, and then moved by `xvmm network up --all`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::definition::Layout;
use super::error::{HostNetError, StepError};
use super::hands::{Done, Hands};
use super::snapshot::Snapshot;
use super::{Host, files};

/// How often, and how many times it is looked whether NetworkManager has let go of the uplink.
const POLL: (Duration, usize) = (Duration::from_millis(50), 100);

/// What has to be told to whom.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Managers {
    /// Files to write.
    exclusions: Vec<Exclusion>,
    /// Commands that make the programs read them.
    reloads: Vec<Vec<String>>,
    /// The state that NetworkManager keeps of the uplink, below the root.
    network_manager: Option<PathBuf>,
    /// DNS servers and search domains that systemd-resolved has for the uplink.
    servers: Vec<String>,
    domains: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Exclusion {
    manager: String,
    path: PathBuf,
    text: String,
}

impl Managers {
    /// Looks who looks after the uplink. `names`: bridge, port, cable and the host's end.
    pub(super) fn plan(
        host: &Host,
        network: &str,
        before: &Snapshot,
        layout: Layout,
        names: [&str; 4],
    ) -> Result<Managers, HostNetError> {
        let mut plan = Managers::default();
        plan.ask_networkd(host, network, before.link.index, names);
        plan.ask_network_manager(host, network, before, names)?;
        plan.ask_ifupdown(host, network, before, layout)?;
        plan.ask_resolved(host, before.link.index);
        let [_, _, _, host_end] = names;
        if before.has_lease() && plan.exclusions.is_empty() {
            plan.warnings.push(format!(
                "{} has its address from a DHCP server: whoever renews the lease has to do it on {host_end}",
                before.link.name
            ));
        }
        Ok(plan)
    }

    fn ask_networkd(&mut self, host: &Host, network: &str, index: u32, names: [&str; 4]) {
        let state = host.file(format!("run/systemd/netif/links/{index}"));
        let Some(state) = files::read(&state).ok().flatten() else { return };
        if value(&state, "ADMIN_STATE").is_none_or(|state| matches!(state, "unmanaged" | "linger")) {
            return;
        }
        let [bridge, port, cable, host_end] = names;
        let dir = host.file("run/systemd/network");
        let manager = "systemd-networkd".to_owned();
        self.exclusions.push(Exclusion {
            manager: manager.clone(),
            path: dir.join(format!("00-xvmm-{network}.network")),
            text: format!("[Match]\nName={bridge} {port} {cable}\n\n[Link]\nUnmanaged=yes\n"),
        });
        let file = value(&state, "NETWORK_FILE").filter(|path| !path.is_empty());
        let config = file.and_then(|path| network_config(host, Path::new(path)));
        let text = match config {
            // It goes on with what it did, leases included, on the host's end.
            Some(config) => format!("[Match]\nName={host_end}\n\n{}", without_match(&config)),
            None => format!("[Match]\nName={host_end}\n\n[Link]\nUnmanaged=yes\n"),
        };
        self.exclusions.push(Exclusion {
            manager,
            path: dir.join(format!("01-xvmm-{network}-host.network")),
            text,
        });
        self.reload(&["networkctl", "reload"]);
    }

    fn ask_network_manager(
        &mut self,
        host: &Host,
        network: &str,
        before: &Snapshot,
        names: [&str; 4],
    ) -> Result<(), HostNetError> {
        let state = PathBuf::from(format!("run/NetworkManager/devices/{}", before.link.index));
        let Some(text) = files::read(&host.file(&state)).ok().flatten() else { return Ok(()) };
        if value(&text, "managed") != Some("true") {
            return Ok(());
        }
        let uplink = &before.link.name;
        if before.has_lease() {
            return Err(HostNetError::Manager {
                name: network.to_owned(),
                manager: "NetworkManager",
                problem: format!(
                    "renews the lease of {uplink}, which it could not when {uplink} is in a bridge of ours; give {uplink} a fixed address (`nmcli connection modify`), or let NetworkManager make the bridge (`nmcli connection add type bridge`) and use that"
                ),
            });
        }
        let list: Vec<_> = names.iter().map(|name| format!("interface-name:{name}")).collect();
        self.exclusions.push(Exclusion {
            manager: "NetworkManager".into(),
            path: host.file(format!("run/NetworkManager/conf.d/90-xvmm-{network}.conf")),
            text: format!("[keyfile]\nunmanaged-devices+={}\n", list.join(";")),
        });
        self.network_manager = Some(state);
        self.reload(&["nmcli", "general", "reload", "conf"]);
        Ok(())
    }

    fn ask_ifupdown(
        &mut self,
        host: &Host,
        network: &str,
        before: &Snapshot,
        layout: Layout,
    ) -> Result<(), HostNetError> {
        let uplink = &before.link.name;
        let states = ["run/network/ifstate".to_owned(), format!("run/network/ifstate.{uplink}")];
        let configured = states.iter().filter_map(|path| files::read(&host.file(path)).ok().flatten());
        let of_uplink = |line: &str| line.split('=').next().is_some_and(|name| name.trim() == uplink);
        if !configured.into_iter().any(|text| text.lines().any(of_uplink)) {
            return Ok(());
        }
        if before.has_lease() && layout == Layout::Plain {
            return Err(HostNetError::Manager {
                name: network.to_owned(),
                manager: "ifupdown",
                problem: format!(
                    "has a DHCP client running for {uplink}, which would give the address to {uplink} again; use --layout classic, where the host's end is called {uplink}, or give it a fixed address in /etc/network/interfaces"
                ),
            });
        }
        if host.file("run/systemd/system").is_dir() {
            self.exclusions.push(Exclusion {
                manager: "ifupdown".into(),
                path: host.file(format!("run/systemd/system/networking.service.d/xvmm-{network}.conf")),
                text: format!(
                    "# {uplink} is in a bridge: `xvmm network down {network}` first.\n[Unit]\nRefuseManualStart=yes\nRefuseManualStop=yes\n"
                ),
            });
            self.reload(&["systemctl", "daemon-reload"]);
        }
        self.warnings.push(format!(
            "ifupdown configured {uplink}: run neither ifdown nor ifup on it before `xvmm network down {network}`"
        ));
        Ok(())
    }

    fn ask_resolved(&mut self, host: &Host, index: u32) {
        let state = host.file(format!("run/systemd/resolve/netif/{index}"));
        let Some(state) = files::read(&state).ok().flatten() else { return };
        let words =
            |key| value(&state, key).unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        self.servers = words("SERVERS");
        self.domains = words("DOMAINS");
    }

    fn reload(&mut self, command: &[&str]) {
        self.reloads.push(command.iter().map(|word| (*word).to_owned()).collect());
    }

    pub(super) fn has_exclusion(&self) -> bool {
        !self.exclusions.is_empty()
    }

    pub(super) fn has_resolver(&self) -> bool {
        !self.servers.is_empty()
    }

    pub(super) fn describe(&self) -> String {
        let files: Vec<_> =
            self.exclusions.iter().map(|one| format!("{} ({})", one.path.display(), one.manager)).collect();
        format!("write {}", files.join(", "))
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    pub(super) fn exclude(&self, hands: &mut Hands<'_>) -> Done {
        for one in &self.exclusions {
            hands.write_file(&one.path, &one.text)?;
        }
        self.run_reloads(hands)?;
        let Some(state) = &self.network_manager else { return Ok(()) };
        let state = hands.host.file(state);
        for _ in 0..POLL.1 {
            let text = fs::read_to_string(&state).unwrap_or_default();
            if value(&text, "managed") != Some("true") {
                return Ok(());
            }
            std::thread::sleep(POLL.0);
        }
        let kept = io::Error::other("NetworkManager does not let go of it");
        Err(StepError::new("take over the uplink", kept))
    }

    pub(super) fn include(&self, hands: &mut Hands<'_>) -> Done {
        let mut removed = false;
        for one in &self.exclusions {
            removed |= one.path.exists();
            hands.remove_file(&one.path)?;
        }
        // The folder of the unit's settings is ours if it is empty now; otherwise this fails, and should.
        for dir in self.exclusions.iter().filter_map(|one| one.path.parent()) {
            if dir.ends_with("networking.service.d") {
                let _ = fs::remove_dir(dir);
            }
        }
        // Without it the manager goes on ignoring the uplink, which works all the same.
        if removed && let Err(StepError { what, error }) = self.run_reloads(hands) {
            tracing::warn!("cannot {what}: {error}");
        }
        Ok(())
    }

    fn run_reloads(&self, hands: &mut Hands<'_>) -> Done {
        for command in &self.reloads {
            let mut words = command.iter().map(String::as_str);
            let tool = words.next().unwrap_or_default();
            hands.run(tool, &words.collect::<Vec<_>>(), "")?;
        }
        Ok(())
    }

    /// Gives the host's end the servers of the uplink. Networkd does so by itself with those from DHCP.
    pub(super) fn resolve(&self, hands: &mut Hands<'_>, host_end: &str) -> Done {
        for (command, values) in [("dns", &self.servers), ("domain", &self.domains)] {
            if !values.is_empty() {
                let args: Vec<_> =
                    [command, host_end].into_iter().chain(values.iter().map(String::as_str)).collect();
                hands.run("resolvectl", &args, "")?;
            }
        }
        Ok(())
    }
}

/// The value of `KEY=VALUE`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .map(|value| value.trim().trim_matches('"'))
}

/// A .network file with its drop-ins behind it, as networkd reads them.
fn network_config(host: &Host, path: &Path) -> Option<String> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let mut text = files::read(&host.file(relative)).ok().flatten()?;
    let name = path.file_name()?.to_str()?;
    for dir in ["usr/lib/systemd/network", "run/systemd/network", "etc/systemd/network"] {
        let dir = host.file(format!("{dir}/{name}.d"));
        for drop_in in files::stems(&dir, ".conf").ok()? {
            text.push('\n');
            text += &files::read(&dir.join(format!("{drop_in}.conf"))).ok().flatten()?;
        }
    }
    Some(text)
}

/// The text without its [Match] sections.
fn without_match(text: &str) -> String {
    let mut in_match = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with('[') {
            in_match = line.trim() == "[Match]";
        }
        if !in_match {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_file_is_taken_over_without_its_match() {
        let text = "# eth0\n[Match]\nName=eth0\nType=ether\n[Network]\nDHCP=yes\n[Match]\nX=y\n[DHCPv4]\nUseMTU=yes\n";
        assert_eq!(without_match(text), "# eth0\n[Network]\nDHCP=yes\n[DHCPv4]\nUseMTU=yes\n");
    }

    #[test]
    fn values_are_found() {
        let text = "A=1\nADMIN_STATE=configured\nSERVERS=\"192.0.2.1 192.0.2.2\"\n";
        assert_eq!(value(text, "ADMIN_STATE"), Some("configured"));
        assert_eq!(value(text, "SERVERS"), Some("192.0.2.1 192.0.2.2"));
        assert_eq!(value(text, "STATE"), None);
    }
}
