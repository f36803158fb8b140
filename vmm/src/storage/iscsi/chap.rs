//! The file of `chap=`: who we are for the target.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::IscsiProblem;

/// Bytes of the largest file that is read.
const FILE_MAX: u64 = 4096;
/// Bytes of user and password less one, in open-iscsi (`AUTH_STR_MAX_LEN`).
const VALUE_MAX: usize = 255;

/// User and password of the initiator.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Chap {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Chap {
    /// Without the password: this may end in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chap").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Chap {
    /// Reads a file with two lines, the user and the password, or with one line `user:password`.
    pub(super) fn read(path: &Path) -> Result<Chap, IscsiProblem> {
        read(path).map_err(|reason| IscsiProblem::Chap { path: path.to_owned(), reason })
    }
}

fn read(path: &Path) -> Result<Chap, String> {
    let cannot = |error: std::io::Error| format!("cannot be read ({error}); check the path and its rights");
    // Looked at before it is opened, because opening a pipe would wait for its other end.
    let not_a_file = || "is not a regular file; name a file with user and password".to_owned();
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(not_a_file());
    }
    let file: File =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(cannot)?;
    let meta = file.metadata().map_err(cannot)?;
    if !meta.is_file() {
        return Err(not_a_file());
    }
    if meta.mode() & 0o007 != 0 || meta.mode() & 0o020 != 0 {
        return Err(format!(
            "has a password and mode {:o}, with rights for others; take them away with `chmod 600`",
            meta.mode() & 0o777
        ));
    }
    let mut text = String::new();
    file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > FILE_MAX {
        return Err(format!("has more than {FILE_MAX} bytes; write user and password only"));
    }
    parse(&text)
}

fn parse(text: &str) -> Result<Chap, String> {
    let lines: Vec<&str> = text.lines().collect();
    let (user, password) = match lines[..] {
        [user, password] => (user, password),
        [line] => line.split_once(':').unwrap_or_default(),
        _ => Default::default(),
    };
    if user.is_empty() || password.is_empty() {
        return Err(
            "does not have a user and a password; write them on two lines, or as user:password".into()
        );
    }
    for (what, value) in [("user", user), ("password", password)] {
        // The lines of a node record are `key = value`, without quotes.
        if value.trim() != value || value.chars().any(char::is_control) {
            return Err(format!(
                "has blanks around the {what} or control characters in it, which open-iscsi cannot keep; remove them"
            ));
        }
        if value.len() > VALUE_MAX {
            return Err(format!("has a {what} of more than {VALUE_MAX} bytes; choose a shorter one"));
        }
    }
    Ok(Chap { user: user.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn chap(user: &str, password: &str) -> Chap {
        Chap { user: user.into(), password: password.into() }
    }

    #[test]
    fn texts_and_what_they_say() {
        let table = [
            ("joe:secret", chap("joe", "secret")),
            ("joe:secret\n", chap("joe", "secret")),
            ("joe\nsecret\n", chap("joe", "secret")),
            ("joe\r\nsecret", chap("joe", "secret")),
            ("joe:a:b", chap("joe", "a:b")),
            ("iqn.2026-01.org.example:joe\na b = #c", chap("iqn.2026-01.org.example:joe", "a b = #c")),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn texts_that_say_nothing() {
        let long = format!("joe:{}", "a".repeat(256));
        for text in [
            "",
            "\n",
            "joe",
            ":",
            "joe:",
            ":secret",
            "joe\n\n",
            "\nsecret",
            "a\nb\nc",
            "joe: secret",
            "joe:a\tb",
            &long,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chap");
        fs::write(&path, "joe:secret").unwrap();
        for (mode, good) in
            [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o602, false), (0o660, false)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path).is_ok(), good, "{mode:o}");
        }
    }

    #[test]
    fn what_is_no_file_of_a_few_lines_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chap");
        assert!(read(&path).unwrap_err().starts_with("cannot be read"));
        assert!(read(dir.path()).unwrap_err().contains("not a regular file"));
        fs::write(&path, "a".repeat(5000)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read(&path).unwrap_err().contains("more than 4096 bytes"));
    }

    #[test]
    fn a_password_is_not_shown() {
        assert!(!format!("{:?}", chap("joe", "secret")).contains("secret"));
    }
}
