//! The rules of a private network: a table of nftables of its own, and what other tables would drop.

use serde_json::Value;

use super::definition::Private;

/// The table's name: what nft does not take in a name is written as its number.
pub(super) fn table(bridge: &str) -> String {
    let letter = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("_{other:02x}"),
    };
    format!("xvmm_{}", bridge.bytes().map(letter).collect::<String>())
}

/// The table as input of `nft -f`. It replaces one that is there, in one step.
pub(super) fn ruleset(bridge: &str, private: &Private) -> String {
    let subnet = private.subnet.subnet();
    let mut networks = vec![("ip", subnet.to_string())];
    networks.extend(private.ipv6.map(|prefix| ("ip6", prefix.subnet().to_string())));
    let table = table(bridge);
    let mut rules = format!("table inet {table} {{}}\ndelete table inet {table}\ntable inet {table} {{\n");
    rules += "\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n";
    let mut line = |text: String| {
        rules.push_str(if text == "}" || text.ends_with('{') { "\t" } else { "\t\t" });
        rules.push_str(&text);
        rules.push('\n');
    };
    line(format!("iifname \"{bridge}\" oifname \"{bridge}\" accept"));
    for (family, network) in &networks {
        line(format!("iifname \"{bridge}\" {family} saddr {network} accept"));
        // Without translation the outside may begin a connection, too.
        let answers = if private.nat { " ct state established,related" } else { "" };
        line(format!("oifname \"{bridge}\" {family} daddr {network}{answers} accept"));
    }
    line(format!("iifname \"{bridge}\" reject with icmpx type admin-prohibited"));
    line(format!("oifname \"{bridge}\" reject with icmpx type admin-prohibited"));
    if private.nat {
        line("}".into());
        line("chain postrouting {".into());
        line("type nat hook postrouting priority srcnat; policy accept;".into());
        for (family, network) in &networks {
            let groups = if *family == "ip" { "{ 224.0.0.0/24, 255.255.255.255 }" } else { "ff00::/8" };
            line(format!("{family} saddr {network} {family} daddr {groups} return"));
            line(format!(
                "{family} saddr {network} {family} daddr != {network} oifname != \"{bridge}\" masquerade"
            ));
        }
    }
    rules += "\t}\n}\n";
    rules
}

/// What takes the table away; it is good if it is not there.
pub(super) fn removal(bridge: &str) -> String {
    let table = table(bridge);
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

/// Chains of other tables that drop what no rule of theirs accepts, out of the answer to `nft -j list
/// ruleset`. No rule of ours could overrule them. One sentence each.
pub(super) fn obstacles(bridge: &str, ruleset: &str) -> Vec<String> {
    let Ok(ruleset) = serde_json::from_str::<Value>(ruleset) else { return Vec::new() };
    let objects = ruleset.get("nftables").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let own = table(bridge);
    let mut sentences = Vec::new();
    for chain in objects.iter().filter_map(|object| object.get("chain")) {
        let text = |key| chain.get(key).and_then(Value::as_str).unwrap_or_default();
        let (family, table, name, hook) = (text("family"), text("table"), text("name"), text("hook"));
        if !matches!(family, "ip" | "inet") || table == own || table.starts_with("xvmm_") {
            continue;
        }
        if !matches!(hook, "forward" | "input") || text("type") != "filter" {
            continue;
        }
        let rules: Vec<&Value> = objects
            .iter()
            .filter_map(|object| object.get("rule"))
            .filter(|rule| {
                let text = |key| rule.get(key).and_then(Value::as_str).unwrap_or_default();
                (text("family"), text("table"), text("chain")) == (family, table, name)
            })
            .collect();
        let drops = text("policy") == "drop" || rules.iter().any(|rule| refuses_everything(rule));
        let knows_us = rules.iter().any(|rule| rule.to_string().contains(&format!("\"{bridge}\"")));
        if drops && !knows_us {
            sentences.push(obstacle(bridge, (family, table, name), hook));
        }
    }
    sentences
}

fn obstacle(bridge: &str, (family, table, chain): (&str, &str, &str), hook: &str) -> String {
    let insert = format!("nft insert rule {family} {table} {chain}");
    let (what, ways) = if hook == "forward" {
        (
            "what guests send to the outside",
            format!(
                "`{insert} iifname {bridge} accept` and `{insert} oifname {bridge} ct state established,related accept`"
            ),
        )
    } else {
        (
            "the guests' DHCP and DNS",
            format!(
                "`{insert} iifname {bridge} meta l4proto {{ tcp, udp }} th dport {{ 53, 67, 547 }} accept`"
            ),
        )
    };
    let manager = match table {
        "firewalld" => {
            "; with firewalld: `firewall-cmd --permanent --zone=trusted --add-interface=".to_owned()
                + bridge
                + "`"
        }
        _ => String::new(),
    };
    format!(
        "the firewall's chain {chain} (table {family} {table}) drops {what}, and a rule elsewhere cannot change that; add {ways}{manager}"
    )
}

/// A rule without a condition that drops or rejects.
fn refuses_everything(rule: &Value) -> bool {
    let expressions = rule.get("expr").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let refuses = |one: &Value| one.get("drop").is_some() || one.get("reject").is_some();
    let neutral = |one: &Value| refuses(one) || one.get("counter").is_some() || one.get("log").is_some();
    expressions.iter().any(refuses) && expressions.iter().all(neutral)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_bridge_has_a_table_of_its_own() {
        assert_eq!(table("virbr0"), "xvmm_virbr0");
        assert_ne!(table("a-b"), table("a_b"));
    }

    #[test]
    fn a_firewall_that_drops_is_found() {
        let chain = |name: &str, hook: &str, policy: &str| {
            format!(
                r#"{{"chain":{{"family":"inet","table":"filter","name":"{name}","type":"filter","hook":"{hook}","prio":0,"policy":"{policy}"}}}}"#
            )
        };
        let rule = |chain: &str, expr: &str| {
            format!(r#"{{"rule":{{"family":"inet","table":"filter","chain":"{chain}","expr":[{expr}]}}}}"#)
        };
        let matching =
            r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"virbr0"}},{"accept":null}"#;
        let cases = [
            (vec![chain("forward", "forward", "accept")], 0),
            (vec![chain("forward", "forward", "drop")], 1),
            (vec![chain("forward", "forward", "drop"), rule("forward", matching)], 0),
            (vec![chain("input", "input", "accept"), rule("input", r#"{"counter":{}},{"drop":null}"#)], 1),
            (vec![chain("input", "input", "accept"), rule("input", r#"{"match":{}},{"drop":null}"#)], 0),
            (vec![chain("output", "output", "drop")], 0),
        ];
        for (objects, count) in cases {
            let text = format!(r#"{{"nftables":[{}]}}"#, objects.join(","));
            let found = obstacles("virbr0", &text);
            assert_eq!(found.len(), count, "{text}: {found:?}");
        }
        let text = format!(r#"{{"nftables":[{}]}}"#, chain("forward", "forward", "drop"));
        let sentence = obstacles("virbr0", &text).remove(0);
        assert!(
            sentence.contains("`nft insert rule inet filter forward iifname virbr0 accept`"),
            "{sentence}"
        );
    }
}
