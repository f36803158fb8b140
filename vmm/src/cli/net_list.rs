//! `xvmm network-list`: the interfaces that a guest has now.

use std::path::Path;

use serde_json::{Value, json};

use super::args::BlockListArgs;
use super::block_list::{ask, described, device, state};
use crate::config::{DomainConfig, NetConfig};
use crate::exit::{ExitStatus, Failure};
use crate::network::vif_name;

pub(super) fn net_list(run_dir: &Path, args: &BlockListArgs) -> Result<ExitStatus, Failure> {
    let (config, info) = ask(run_dir, &args.domain)?;
    super::print(&if args.json { as_json(&config, &info) } else { as_table(&config, &info) });
    Ok(ExitStatus::Success)
}

/// What the domain says of the device of an interface.
fn vif<'a>(info: &'a Value, net: &NetConfig) -> Option<&'a Value> {
    device(info, "vif", net.devid?)
}

/// The name of the interface on the host.
fn name(info: &Value, net: &NetConfig) -> String {
    let domid = info.get("domid").and_then(Value::as_u64).and_then(|domid| domid.try_into().ok());
    let usual = || vif_name(domid.unwrap_or(0), net.devid.unwrap_or(0));
    match net.fds.is_empty() {
        true => net.vifname.clone().unwrap_or_else(usual),
        false => "-".to_owned(),
    }
}

/// A list of the descriptions of the interfaces, with what their devices do.
fn as_json(config: &DomainConfig, info: &Value) -> String {
    let nets: Vec<Value> = config.nets.iter().map(|net| described(json!(net), vif(info, net))).collect();
    format!("{:#}\n", Value::from(nets))
}

fn as_table(config: &DomainConfig, info: &Value) -> String {
    let mut text =
        format!("{:>5}  {:<17}  {:<12} {:<15} {}\n", "Devid", "MAC", "State", "Interface", "Plugged into");
    for net in &config.nets {
        let devid = net.devid.map_or("-".to_owned(), |devid| devid.to_string());
        let mac = net.mac.map_or("-".to_owned(), |mac| mac.to_string());
        let place = match (net.bridge(), net.fds.is_empty()) {
            (Some(bridge), _) => bridge.to_owned(),
            (None, true) => net.script.to_string(),
            (None, false) => "a tap of the caller".to_owned(),
        };
        let (state, name) = (state(vif(info, net)), name(info, net));
        text += &format!("{devid:>5}  {mac:<17}  {state:<12} {name:<15} {place}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> (DomainConfig, Value) {
        let specs = ["xenbr0", "br1,vifname=web,devid=7", "script=vif-nat,ip=10.0.0.1", "fd=5"];
        let mut config = DomainConfig {
            name: Some("web".into()),
            nets: specs.map(|spec| spec.parse().unwrap()).into(),
            ..DomainConfig::default()
        };
        config.assign_nets();
        let device = |index: u32, state: &str, detaching: bool| {
            json!({"class": "vif", "index": index, "state": state, "connected": state == "Connected",
                   "detaching": detaching, "counters": {"tx_packets": 7}})
        };
        let devices =
            [device(0, "Connected", false), device(7, "Closing", true), device(1, "InitWait", false)];
        let info = json!({"domid": 3, "config": &config, "devices": devices});
        (config, info)
    }

    #[test]
    fn interfaces_are_listed_with_their_states() {
        let (config, info) = sample();
        let macs: Vec<String> = config.nets.iter().map(|net| net.mac.unwrap().to_string()).collect();
        let expected = format!(
            "\
Devid  MAC                State        Interface       Plugged into
    0  {}  Connected    vif3.0          xenbr0
    7  {}  detaching    web             br1
    1  {}  InitWait     vif3.1          vif-nat
    2  {}  -            -               a tap of the caller
",
            macs[0], macs[1], macs[2], macs[3]
        );
        assert_eq!(as_table(&config, &info), expected);
    }

    #[test]
    fn the_list_as_json_has_the_description_and_the_counters() {
        let (config, info) = sample();
        let list: Value = serde_json::from_str(&as_json(&config, &info)).unwrap();
        assert_eq!(list[0]["counters"]["tx_packets"], 7);
        assert_eq!(serde_json::from_value::<NetConfig>(list[1].clone()).unwrap(), config.nets[1]);
        assert_eq!(list.as_array().unwrap().len(), 4);
    }
}
