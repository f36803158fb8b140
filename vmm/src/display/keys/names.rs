//! Keys by their names, and key symbols that are no characters.

/// Names and scan codes of set 1 (with 0xe000 for the prefix 0xe0): the names of QEMU's monitor, and those of Linux's
/// `input-event-codes.h` without `KEY_`, in lower case, as virsh takes them.
#[rustfmt::skip]
const NAMES: &[(&[&str], u16)] = &[
    (&["esc"], 0x01), (&["1"], 0x02), (&["2"], 0x03), (&["3"], 0x04), (&["4"], 0x05), (&["5"], 0x06), (&["6"], 0x07),
    (&["7"], 0x08), (&["8"], 0x09), (&["9"], 0x0a), (&["0"], 0x0b), (&["minus"], 0x0c), (&["equal"], 0x0d),
    (&["backspace"], 0x0e), (&["tab"], 0x0f), (&["q"], 0x10), (&["w"], 0x11), (&["e"], 0x12), (&["r"], 0x13),
    (&["t"], 0x14), (&["y"], 0x15), (&["u"], 0x16), (&["i"], 0x17), (&["o"], 0x18), (&["p"], 0x19),
    (&["bracket_left", "leftbrace"], 0x1a), (&["bracket_right", "rightbrace"], 0x1b), (&["ret", "enter", "return"], 0x1c),
    (&["ctrl", "leftctrl"], 0x1d), (&["a"], 0x1e), (&["s"], 0x1f), (&["d"], 0x20), (&["f"], 0x21), (&["g"], 0x22),
    (&["h"], 0x23), (&["j"], 0x24), (&["k"], 0x25), (&["l"], 0x26), (&["semicolon"], 0x27), (&["apostrophe"], 0x28),
    (&["grave_accent", "grave"], 0x29), (&["shift", "leftshift"], 0x2a), (&["backslash"], 0x2b), (&["z"], 0x2c),
    (&["x"], 0x2d), (&["c"], 0x2e), (&["v"], 0x2f), (&["b"], 0x30), (&["n"], 0x31), (&["m"], 0x32), (&["comma"], 0x33),
    (&["dot"], 0x34), (&["slash"], 0x35), (&["shift_r", "rightshift"], 0x36),
    (&["kp_multiply", "asterisk", "kpasterisk"], 0x37), (&["alt", "leftalt"], 0x38), (&["spc", "space"], 0x39),
    (&["caps_lock", "capslock"], 0x3a), (&["f1"], 0x3b), (&["f2"], 0x3c), (&["f3"], 0x3d), (&["f4"], 0x3e), (&["f5"], 0x3f),
    (&["f6"], 0x40), (&["f7"], 0x41), (&["f8"], 0x42), (&["f9"], 0x43), (&["f10"], 0x44), (&["num_lock", "numlock"], 0x45),
    (&["scroll_lock", "scrolllock"], 0x46), (&["kp_7", "kp7"], 0x47), (&["kp_8", "kp8"], 0x48), (&["kp_9", "kp9"], 0x49),
    (&["kp_subtract", "kpminus"], 0x4a), (&["kp_4", "kp4"], 0x4b), (&["kp_5", "kp5"], 0x4c), (&["kp_6", "kp6"], 0x4d),
    (&["kp_add", "kpplus"], 0x4e), (&["kp_1", "kp1"], 0x4f), (&["kp_2", "kp2"], 0x50), (&["kp_3", "kp3"], 0x51),
    (&["kp_0", "kp0"], 0x52), (&["kp_decimal", "kpdot"], 0x53), (&["less", "102nd"], 0x56), (&["f11"], 0x57),
    (&["f12"], 0x58), (&["kp_enter", "kpenter"], 0xe01c), (&["ctrl_r", "rightctrl"], 0xe01d),
    (&["kp_divide", "kpslash"], 0xe035), (&["print", "sysrq"], 0xe037), (&["alt_r", "altgr", "rightalt"], 0xe038),
    (&["pause"], 0xe046), (&["home"], 0xe047), (&["up"], 0xe048), (&["pgup", "pageup"], 0xe049), (&["left"], 0xe04b),
    (&["right"], 0xe04d), (&["end"], 0xe04f), (&["down"], 0xe050), (&["pgdn", "pagedown"], 0xe051), (&["insert"], 0xe052),
    (&["delete", "del"], 0xe053), (&["meta_l", "meta", "win", "leftmeta"], 0xe05b), (&["meta_r", "rightmeta"], 0xe05c),
    (&["menu", "compose"], 0xe05d),
];

/// The scan code of a key's name, or of a number as 0x1d or 0xe01d.
pub(super) fn by_name(name: &str) -> Option<u16> {
    let lower = name.to_ascii_lowercase();
    if let Some(digits) = lower.strip_prefix("0x") {
        let code =
            u16::from_str_radix(digits, 16).ok().filter(|_| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        return matches!(code, 0x01..=0x7f | 0xe001..=0xe07f).then_some(code);
    }
    let plain = lower.strip_prefix("key_").unwrap_or(&lower);
    NAMES.iter().find(|(names, _)| names.contains(&plain)).map(|(_, code)| *code)
}

/// Key symbols that are no characters, and their keys (X11's `keysymdef.h`).
#[rustfmt::skip]
const KEYSYMS: &[(u32, u16)] = &[
    (0xff08, 0x0e), (0xff09, 0x0f), (0xfe20, 0x0f), (0xff0d, 0x1c), (0xff13, 0xe046), (0xff14, 0x46), (0xff15, 0xe037),
    (0xff1b, 0x01), (0xffff, 0xe053), (0xff50, 0xe047), (0xff51, 0xe04b), (0xff52, 0xe048), (0xff53, 0xe04d),
    (0xff54, 0xe050), (0xff55, 0xe049), (0xff56, 0xe051), (0xff57, 0xe04f), (0xff61, 0xe037), (0xff63, 0xe052),
    (0xff67, 0xe05d), (0xff6b, 0xe046), (0xff7f, 0x45), (0xff8d, 0xe01c), (0xffaa, 0x37), (0xffab, 0x4e), (0xffad, 0x4a),
    (0xffaf, 0xe035), (0xffbe, 0x3b), (0xffbf, 0x3c), (0xffc0, 0x3d), (0xffc1, 0x3e), (0xffc2, 0x3f), (0xffc3, 0x40),
    (0xffc4, 0x41), (0xffc5, 0x42), (0xffc6, 0x43), (0xffc7, 0x44), (0xffc8, 0x57), (0xffc9, 0x58), (0xffe1, 0x2a),
    (0xffe2, 0x36), (0xffe3, 0x1d), (0xffe4, 0xe01d), (0xffe5, 0x3a), (0xffe7, 0xe05b), (0xffe8, 0xe05c), (0xffe9, 0x38),
    (0xffea, 0xe038), (0xffeb, 0xe05b), (0xffec, 0xe05c), (0xffed, 0xe05b), (0xffee, 0xe05c), (0xff0a, 0x1c),
    (0xff20, 0xe05d),
];

/// The keys of the number pad with two meanings: the symbol with Num Lock, the one without, the key, and the key
/// elsewhere that gives the second one always.
const PAD: [(u32, u32, u16, u16); 11] = [
    (0xffb0, 0xff9e, 0x52, 0xe052),
    (0xffb1, 0xff9c, 0x4f, 0xe04f),
    (0xffb2, 0xff99, 0x50, 0xe050),
    (0xffb3, 0xff9b, 0x51, 0xe051),
    (0xffb4, 0xff96, 0x4b, 0xe04b),
    (0xffb5, 0xff9d, 0x4c, 0x4c),
    (0xffb6, 0xff98, 0x4d, 0xe04d),
    (0xffb7, 0xff95, 0x47, 0xe047),
    (0xffb8, 0xff97, 0x48, 0xe048),
    (0xffb9, 0xff9a, 0x49, 0xe049),
    (0xffae, 0xff9f, 0x53, 0xe053),
];

/// A key symbol that is no character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// It is this key.
    Key(u16),
    /// It is what the key for this character gives.
    Character(char),
}

/// What a key symbol that is no character stands for. The number pad is used only as it works in the guest now:
/// its Num Lock need not be the viewer's, and does not have to be touched so.
pub(super) fn special(keysym: u32, num_lock: bool) -> Option<Special> {
    for (digit, other, code, elsewhere) in PAD {
        if keysym == other {
            return Some(Special::Key(if num_lock { elsewhere } else { code }));
        }
        if keysym == digit {
            let character = match keysym {
                0xffae => Some('.'),
                _ => keysym.checked_sub(0xffb0).and_then(|digit| char::from_digit(digit, 10)),
            };
            return if num_lock { Some(Special::Key(code)) } else { character.map(Special::Character) };
        }
    }
    match keysym {
        0xffac => Some(Special::Character(',')),
        0xffbd => Some(Special::Character('=')),
        0xff80 => Some(Special::Character(' ')),
        _ => KEYSYMS.iter().find(|(symbol, _)| *symbol == keysym).map(|(_, code)| Special::Key(*code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_conventions() {
        for (name, code) in [
            ("ret", 0x1c),
            ("KEY_ENTER", 0x1c),
            ("spc", 0x39),
            ("ctrl", 0x1d),
            ("KEY_LEFTCTRL", 0x1d),
            ("altgr", 0xe038),
            ("Delete", 0xe053),
            ("meta", 0xe05b),
            ("menu", 0xe05d),
            ("f12", 0x58),
            ("kp_enter", 0xe01c),
            ("0x3b", 0x3b),
            ("0xe053", 0xe053),
        ] {
            assert_eq!(by_name(name), Some(code), "{name}");
        }
        for name in
            ["", "hyper", "key_", "0x", "0x0", "0x80", "0xe000", "0xe080", "0x+1", "0x1ffff", "ctrl-alt"]
        {
            assert_eq!(by_name(name), None, "{name}");
        }
    }

    #[test]
    fn no_name_means_two_keys_and_no_key_has_two_entries() {
        let mut names: Vec<&str> = NAMES.iter().flat_map(|(names, _)| names.iter().copied()).collect();
        let mut codes: Vec<u16> = NAMES.iter().map(|(_, code)| *code).collect();
        let (all_names, all_codes) = (names.len(), codes.len());
        names.sort_unstable();
        names.dedup();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!((names.len(), codes.len()), (all_names, all_codes));
    }

    #[test]
    fn the_number_pad_follows_the_guests_num_lock() {
        assert_eq!(special(0xffb7, true), Some(Special::Key(0x47)));
        assert_eq!(special(0xffb7, false), Some(Special::Character('7')));
        assert_eq!(special(0xff95, false), Some(Special::Key(0x47)));
        assert_eq!(special(0xff95, true), Some(Special::Key(0xe047)));
        assert_eq!(special(0xffae, false), Some(Special::Character('.')));
        assert_eq!(special(0xff0d, false), Some(Special::Key(0x1c)));
        assert_eq!(special(0x61, false), None);
    }
}
