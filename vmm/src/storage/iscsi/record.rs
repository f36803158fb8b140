//! Node records of our own: what open-iscsi knows of a target that nobody has told it about.
//!
//! `iscsiadm -o new` makes a record with the settings of `iscsid.conf`. The password of `chap=` cannot be
//! handed to `iscsiadm`, because `-o update` takes values as arguments, which every user of the host can read
//! in /proc. So the file of the record is written, which has mode 0600 and is read by `iscsiadm` only when it
//! logs in, and by iscsid when that is started anew. Records that exist are not changed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::IscsiProblem;
use super::chap::Chap;

/// The first line of our records, a comment. It tells them from others when the host itself has died and
/// nothing else remembers: a password must not stay behind for ever.
const MARK: &str = "# made by xvmm, which deletes it when it logs out";
/// Bytes of the largest record that is read.
const RECORD_MAX: u64 = 65536;

/// The file of a record without a portal group, which is how `-o new` makes it: `IQN/ADDRESS,PORT`.
pub(super) fn find(folders: &[PathBuf], iqn: &str, at: SocketAddr) -> Option<PathBuf> {
    let name = format!("{},{}", at.ip(), at.port());
    let files = folders.iter().map(|folder| folder.join(iqn).join(&name));
    files.into_iter().find(|file| fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file()))
}

/// Whether the record is one of ours.
pub(super) fn is_ours(path: &Path) -> bool {
    read(path).is_ok_and(|text| text.lines().next() == Some(MARK))
}

/// Makes a fresh record ours: nothing logs in by it when the host starts, and it has the password.
pub(super) fn adopt(path: &Path, chap: Option<&Chap>) -> Result<(), IscsiProblem> {
    let write = || -> io::Result<()> {
        let text = rewrite(&read(path)?, chap);
        let mut file = open(path, OpenOptions::new().write(true))?;
        // Before the password is in it.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|source| IscsiProblem::Record { path: path.to_owned(), source })
}

/// Deletes a record, and the folder of the target if it was the last.
pub(super) fn delete(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    if let Some(folder) = path.parent() {
        // It stays when it has other records.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

fn rewrite(text: &str, chap: Option<&Chap>) -> String {
    let mut settings = vec![("node.startup", "manual"), ("node.conn[0].startup", "manual")];
    if let Some(chap) = chap {
        settings.push(("node.session.auth.authmethod", "CHAP"));
        settings.push(("node.session.auth.username", &chap.user));
        settings.push(("node.session.auth.password", &chap.password));
    }
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let is_set = |line: &&str| !settings.iter().any(|(name, _)| *name == key(line));
    let mut lines = vec![MARK.to_owned()];
    lines.extend(
        text.lines()
            .filter(|line| *line != MARK && !line.starts_with("# END"))
            .filter(is_set)
            .map(str::to_owned),
    );
    lines.extend(settings.iter().map(|(name, value)| format!("{name} = {value}")));
    lines.push("# END RECORD\n".into());
    lines.join("\n")
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path, OpenOptions::new().read(true))?.take(RECORD_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What iscsiadm 2.1.8 writes, shortened.
    const FRESH: &str = "# BEGIN RECORD 2.1.8\nnode.name = iqn.x:a\nnode.tpgt = -1\nnode.startup = automatic\n\
                         node.session.auth.authmethod = None\nnode.session.auth.chap_algs = MD5\n\
                         node.conn[0].address = 127.0.0.1\n# END RECORD\n";

    fn fresh() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("127.0.0.1,3260");
        fs::write(&path, FRESH).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_record_gets_the_password_and_loses_the_rights_of_others() {
        let (_dir, path) = fresh();
        let chap = Chap { user: "joe".into(), password: "s3cret = #".into() };
        adopt(&path, Some(&chap)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let expected = format!(
            "{MARK}\n# BEGIN RECORD 2.1.8\nnode.name = iqn.x:a\nnode.tpgt = -1\n\
             node.session.auth.chap_algs = MD5\nnode.conn[0].address = 127.0.0.1\nnode.startup = manual\n\
             node.conn[0].startup = manual\nnode.session.auth.authmethod = CHAP\n\
             node.session.auth.username = joe\nnode.session.auth.password = s3cret = #\n# END RECORD\n"
        );
        assert_eq!(text, expected);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_settings_of_iscsid_conf_stay_without_a_password() {
        let (_dir, path) = fresh();
        adopt(&path, None).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("node.session.auth.authmethod = None\n"), "{text}");
        assert!(!text.contains("automatic"), "{text}");
    }

    #[test]
    fn records_of_ours_are_told_from_others() {
        let (_dir, path) = fresh();
        assert!(!is_ours(&path));
        adopt(&path, None).unwrap();
        assert!(is_ours(&path));
        adopt(&path, None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().matches(MARK).count(), 1);
    }

    #[test]
    fn a_link_is_not_followed() {
        let (dir, path) = fresh();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(adopt(&link, None).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), FRESH);
    }

    #[test]
    fn the_folder_of_a_target_goes_with_its_last_record() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("iqn.x:a");
        fs::create_dir(&folder).unwrap();
        let at = |address: &str| find(&[dir.path().to_owned()], "iqn.x:a", address.parse().unwrap());
        fs::write(folder.join("127.0.0.1,3260"), FRESH).unwrap();
        fs::write(folder.join("::1,3260"), FRESH).unwrap();
        assert_eq!(at("127.0.0.1:3261"), None);
        delete(&at("127.0.0.1:3260").unwrap()).unwrap();
        assert!(folder.exists());
        delete(&at("[::1]:3260").unwrap()).unwrap();
        assert!(!folder.exists());
    }
}
