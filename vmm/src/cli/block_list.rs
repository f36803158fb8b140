//! `xvmm block-list`: the disks that a guest has now.

use std::path::Path;

use serde_json::{Value, json};

use super::args::BlockListArgs;
use crate::api::ApiClient;
use crate::config::{Access, DiskConfig, DomainConfig};
use crate::exit::{ExitStatus, Failure};

pub(super) fn block_list(run_dir: &Path, args: &BlockListArgs) -> Result<ExitStatus, Failure> {
    let (config, info) = ask(run_dir, &args.domain)?;
    super::print(&if args.json { as_json(&config, &info) } else { as_table(&config, &info) });
    Ok(ExitStatus::Success)
}

/// What the domain says of itself: what it is made of, and all the rest.
pub(super) fn ask(run_dir: &Path, domain: &str) -> Result<(DomainConfig, Value), Failure> {
    let (_, entry) = super::lookup(run_dir, domain)?;
    let info = ApiClient::new(&entry.api_socket()).info()?;
    let config = info.get("config").cloned().unwrap_or_else(|| json!({}));
    let config: DomainConfig = serde_json::from_value(config).map_err(|error| {
        Failure::new(ExitStatus::HostError, format!("{domain}: the domain describes itself as: {error}"))
    })?;
    Ok((config, info))
}

/// What the domain says of a device.
pub(super) fn device<'a>(info: &'a Value, class: &str, index: u32) -> Option<&'a Value> {
    let mut devices = info.get("devices")?.as_array()?.iter();
    devices.find(|device| {
        device.get("class").and_then(Value::as_str) == Some(class)
            && device.get("index").and_then(Value::as_u64) == Some(index.into())
    })
}

/// The description of a device, with what the device does.
pub(super) fn described(description: Value, device: Option<&Value>) -> Value {
    let mut described = description;
    if let (Some(fields), Some(device)) = (described.as_object_mut(), device) {
        for key in ["index", "state", "connected", "detaching", "counters"] {
            fields.insert(key.into(), device.get(key).cloned().unwrap_or_default());
        }
    }
    described
}

/// The state of a device in a word.
pub(super) fn state(device: Option<&Value>) -> &str {
    let is = |key: &str| device.and_then(|device| device.get(key)).and_then(Value::as_bool) == Some(true);
    let state = device.and_then(|device| device.get("state")).and_then(Value::as_str).unwrap_or("-");
    if is("detaching") { "detaching" } else { state }
}

/// A list of the descriptions of the disks, with what their devices do.
fn as_json(config: &DomainConfig, info: &Value) -> String {
    let describe =
        |disk: &DiskConfig| described(json!(disk), device(info, "vbd", disk.vdev.virtual_device()));
    let disks: Vec<Value> = config.disks.iter().map(describe).collect();
    format!("{:#}\n", Value::from(disks))
}

fn as_table(config: &DomainConfig, info: &Value) -> String {
    let mut text = format!("{:<10} {:>9}  {:<12} {:<6} {}\n", "Vdev", "Number", "State", "Mode", "Image");
    for disk in &config.disks {
        let state = state(device(info, "vbd", disk.vdev.virtual_device()));
        let mode = match (disk.access(), disk.cdrom) {
            (_, true) => "cdrom",
            (Access::ReadOnly, _) => "r",
            (Access::Exclusive, _) => "w",
            (Access::Shared, _) => "w!",
        };
        let number = disk.vdev.virtual_device();
        let image: String = disk.source.to_string().chars().flat_map(printable).collect();
        text += &format!("{:<10} {number:>9}  {state:<12} {mode:<6} {image}\n", disk.vdev.to_string());
    }
    text
}

/// A name on the host may have line breaks and control sequences in it.
fn printable(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{DiskSource, DiskSpec};

    fn sample() -> (DomainConfig, Value) {
        let specs = ["/a.img", "/b.iso,,xvdc,cdrom", "/c.img,,,w!"];
        let specs = specs.map(|spec| DiskSpec::parse(spec).unwrap());
        let config =
            DomainConfig { disks: DiskSpec::assign(specs.into()).unwrap(), ..DomainConfig::default() };
        let device = |class: &str, index: u32, state: &str, detaching: bool| {
            json!({"class": class, "index": index, "state": state, "connected": state == "Connected",
                   "detaching": detaching, "counters": {"reads": 7}})
        };
        let devices = [
            device("vif", 51712, "InitWait", false),
            device("vbd", 51712, "Connected", false),
            device("vbd", 51744, "Closing", true),
        ];
        let info = json!({"config": &config, "devices": devices});
        (config, info)
    }

    #[test]
    fn disks_are_listed_with_their_states() {
        let (config, info) = sample();
        let expected = "\
Vdev          Number  State        Mode   Image
xvda           51712  Connected    w      /a.img
xvdc           51744  detaching    cdrom  /b.iso
xvdb           51728  -            w!     /c.img
";
        assert_eq!(as_table(&config, &info), expected);
    }

    #[test]
    fn the_list_as_json_has_the_description_and_the_counters() {
        let (config, info) = sample();
        let list: Value = serde_json::from_str(&as_json(&config, &info)).unwrap();
        let first = &list[0];
        assert_eq!(
            (&first["vdev"], &first["connected"], &first["counters"]["reads"]),
            (&json!("xvda"), &json!(true), &json!(7))
        );
        assert_eq!(serde_json::from_value::<DiskConfig>(first.clone()).unwrap(), config.disks[0]);
        assert_eq!((&list[1]["state"], &list[1]["detaching"]), (&json!("Closing"), &json!(true)));
        assert_eq!(list.as_array().unwrap().len(), 3);
    }

    #[test]
    fn names_of_images_cannot_control_the_terminal() {
        let (mut config, info) = sample();
        config.disks[0].source = DiskSource::Path("/a\x1b[2J\nb".into());
        assert!(as_table(&config, &info).contains("/a\\u{1b}[2J\\nb"));
    }
}
