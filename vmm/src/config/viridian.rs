//! Hyper-V's interfaces beside Xen's ("viridian"), in groups that have the names of xl.cfg.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{ConfigError, Problem};

/// One group of Hyper-V's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name, as in xl.cfg.
    pub name: &'static str,
    bit: u16,
    /// Groups that it needs, and brings.
    needs: u16,
}

const BASE: u16 = 1;
const FREQ: u16 = 1 << 1;
const TIME_REF_COUNT: u16 = 1 << 2;
const REFERENCE_TSC: u16 = 1 << 3;
const HCALL_REMOTE_TLB_FLUSH: u16 = 1 << 4;
const APIC_ASSIST: u16 = 1 << 5;
const CRASH_CTL: u16 = 1 << 6;
const SYNIC: u16 = 1 << 7;
const STIMER: u16 = 1 << 8;
const HCALL_IPI: u16 = 1 << 9;
const EX_PROCESSOR_MASKS: u16 = 1 << 10;

/// All groups.
pub const GROUPS: [Group; 11] = [
    Group { name: "base", bit: BASE, needs: 0 },
    Group { name: "freq", bit: FREQ, needs: BASE },
    Group { name: "time_ref_count", bit: TIME_REF_COUNT, needs: BASE },
    Group { name: "reference_tsc", bit: REFERENCE_TSC, needs: BASE },
    Group { name: "hcall_remote_tlb_flush", bit: HCALL_REMOTE_TLB_FLUSH, needs: BASE },
    Group { name: "apic_assist", bit: APIC_ASSIST, needs: BASE },
    Group { name: "crash_ctl", bit: CRASH_CTL, needs: BASE },
    Group { name: "synic", bit: SYNIC, needs: BASE },
    Group { name: "stimer", bit: STIMER, needs: BASE | SYNIC | TIME_REF_COUNT },
    Group { name: "hcall_ipi", bit: HCALL_IPI, needs: BASE },
    Group { name: "ex_processor_masks", bit: EX_PROCESSOR_MASKS, needs: BASE },
];

/// What `viridian=1` of xl.cfg means.
const DEFAULTS: u16 = BASE | FREQ | TIME_REF_COUNT | APIC_ASSIST | CRASH_CTL | SYNIC | STIMER;

/// The groups that a guest is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Viridian(u16);

impl Viridian {
    /// Nothing.
    pub const OFF: Viridian = Viridian(0);

    /// The guest sees nothing of Hyper-V.
    pub fn is_off(self) -> bool {
        self.0 == 0
    }

    /// Whether the group is among them.
    pub fn has(self, name: &str) -> bool {
        self.groups().any(|group| group.name == name)
    }

    /// The groups.
    pub fn groups(self) -> impl Iterator<Item = &'static Group> {
        GROUPS.iter().filter(move |group| self.0 & group.bit != 0)
    }
}

impl FromStr for Viridian {
    type Err = ConfigError;

    /// `on`, `off`, or names of groups with commas between them; `defaults` and `all` are several, and `!` takes one away.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let fail = |problem: String| {
            let problem = Problem::Syntax(problem);
            Err(ConfigError { flag: "--viridian", value: text.to_owned(), problem })
        };
        match text {
            "on" | "1" => return Ok(Self(DEFAULTS)),
            "off" | "0" => return Ok(Self(0)),
            _ => {}
        }
        let (mut with, mut without) = (0, 0);
        for word in text.split(',') {
            let (name, set) = match word.strip_prefix('!') {
                Some(name) => (name, &mut without),
                None => (word, &mut with),
            };
            *set |= match name {
                "defaults" => DEFAULTS,
                "all" => GROUPS.iter().fold(0, |all, group| all | group.bit),
                name => match GROUPS.iter().find(|group| group.name == name) {
                    Some(group) => group.bit,
                    None => {
                        let names = GROUPS.map(|group| group.name).join(", ");
                        return fail(format!(
                            "{name} is none of on, off, defaults, all, {names}; write such names"
                        ));
                    }
                },
            };
        }
        let chosen = Self(with & !without);
        let needed = chosen.groups().fold(0, |needed, group| needed | group.needs);
        if let Some(group) = GROUPS.iter().find(|group| needed & without & group.bit != 0) {
            return fail(format!("!{0} takes away what another group needs; leave out !{0}", group.name));
        }
        Ok(Self(chosen.0 | needed))
    }
}

impl fmt::Display for Viridian {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("off");
        }
        f.write_str(&self.groups().map(|group| group.name).collect::<Vec<_>>().join(","))
    }
}

impl Serialize for Viridian {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Viridian {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn groups_are_named_as_in_xl_cfg() {
        let table = [
            ("off", "off"),
            ("on", "base,freq,time_ref_count,apic_assist,crash_ctl,synic,stimer"),
            ("freq", "base,freq"),
            ("stimer", "base,time_ref_count,synic,stimer"),
            ("defaults,!crash_ctl,!stimer,!synic", "base,freq,time_ref_count,apic_assist"),
            ("base,reference_tsc,hcall_ipi", "base,reference_tsc,hcall_ipi"),
        ];
        for (text, groups) in table {
            let viridian: Viridian = text.parse().unwrap();
            assert_eq!(viridian.to_string(), groups, "{text}");
            let json = serde_json::to_string(&viridian).unwrap();
            assert_eq!(serde_json::from_str::<Viridian>(&json).unwrap(), viridian);
        }
        assert_eq!("all".parse::<Viridian>().unwrap().groups().count(), GROUPS.len());
    }

    #[test]
    fn what_is_no_choice_of_groups_is_told() {
        let told = |text: &str| text.parse::<Viridian>().unwrap_err().to_string();
        assert!(told("base,nested").starts_with("--viridian base,nested: nested is none of on, off, "));
        assert!(told("").contains("is none of on"));
        let sentence =
            "--viridian stimer,!synic: !synic takes away what another group needs; leave out !synic";
        assert_eq!(told("stimer,!synic"), sentence);
    }
}
