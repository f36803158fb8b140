//! VNC authentication (RFC 6143, section 7.2.2): a challenge, encrypted with the password as a DES key. It keeps out
//! who does not know the password, and hides nothing of what follows.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};

/// Bytes of a password that count.
const PASSWORD_MAX: usize = 8;
/// Bytes of the largest file that is read.
const FILE_MAX: u64 = 4096;

/// A challenge, or the answer to it.
pub(super) type Challenge = [u8; 16];

/// A password.
#[derive(Clone, PartialEq, Eq)]
pub struct Password([u8; PASSWORD_MAX]);

impl std::fmt::Debug for Password {
    /// Without the password: this may end in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Password").finish_non_exhaustive()
    }
}

impl Password {
    /// The password of this text; the sentence says what is wrong with it.
    pub fn new(text: &str) -> Result<Password, &'static str> {
        let mut bytes = [0; PASSWORD_MAX];
        match text.len() {
            0 => Err("is empty; write a password of one to eight characters into it"),
            len @ ..=PASSWORD_MAX if !text.bytes().any(|byte| byte == 0) => {
                bytes.get_mut(..len).into_iter().for_each(|to| to.copy_from_slice(text.as_bytes()));
                Ok(Password(bytes))
            }
            _ => Err(
                "has a password of more than eight bytes, of which VNC would ignore the rest; choose a shorter one",
            ),
        }
    }

    /// The password in the first line of a file; the sentence says what is wrong with it.
    pub fn read(path: &Path) -> Result<Password, String> {
        let cannot = |error: io::Error| format!("cannot be read ({error}); check the path and its rights");
        let not_a_file = || "is not a regular file; name a file with a password in it".to_owned();
        // Looked at before it is opened, because opening a pipe would wait for its other end.
        if !fs::metadata(path).map_err(cannot)?.is_file() {
            return Err(not_a_file());
        }
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(cannot)?;
        let meta = file.metadata().map_err(cannot)?;
        if !meta.is_file() {
            return Err(not_a_file());
        }
        if meta.mode() & 0o027 != 0 {
            let mode = meta.mode() & 0o777;
            return Err(format!(
                "has a password and mode {mode:o}, with rights for others; take them away with `chmod 600`"
            ));
        }
        let mut text = String::new();
        file.take(FILE_MAX).read_to_string(&mut text).map_err(cannot)?;
        Password::new(text.lines().next().unwrap_or_default()).map_err(str::to_owned)
    }

    /// The right answer to a challenge. The bits of each byte of the key are in reverse order.
    pub(super) fn answer(&self, challenge: &Challenge) -> Challenge {
        let cipher = Des::new(&self.0.map(u8::reverse_bits).into());
        let mut answer = *challenge;
        let (blocks, _) = answer.as_chunks_mut::<8>();
        for block in blocks {
            cipher.encrypt_block(block.into());
        }
        answer
    }

    /// Whether the answer is right, in a time that does not tell how much of it is.
    pub(super) fn accepts(&self, challenge: &Challenge, answer: &Challenge) -> bool {
        let right = self.answer(challenge);
        let different = right.iter().zip(answer).fold(0, |different, (a, b)| different | (a ^ b));
        std::hint::black_box(different) == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn answers_are_those_of_des_with_mirrored_bytes() {
        // FIPS 81's example key 0123456789abcdef and its block "Now is t", mirrored in the password.
        let key = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef_u8].map(u8::reverse_bits);
        let password = Password(key);
        let challenge = *b"Now is the time ";
        let expected =
            [0x3f, 0xa4, 0x0e, 0x8a, 0x98, 0x4d, 0x48, 0x15, 0x6a, 0x27, 0x17, 0x87, 0xab, 0x88, 0x83, 0xf9];
        assert_eq!(password.answer(&challenge), expected);
        assert!(password.accepts(&challenge, &expected));
        let mut wrong = expected;
        wrong[15] ^= 1;
        assert!(!password.accepts(&challenge, &wrong));
    }

    #[test]
    fn files_and_their_passwords() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let read = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Password::read(&path)
        };
        assert_eq!(read("secret\n", 0o600), Ok(Password(*b"secret\0\0")));
        assert_eq!(read("eightcha", 0o640), Ok(Password(*b"eightcha")));
        assert!(read("secret\n", 0o644).unwrap_err().contains("chmod 600"));
        assert!(read("", 0o600).unwrap_err().contains("empty"));
        assert!(read("\nsecret", 0o600).unwrap_err().contains("empty"));
        assert!(read("ninechars", 0o600).unwrap_err().contains("eight"));
        assert!(Password::read(&dir.path().join("none")).unwrap_err().contains("cannot be read"));
        assert!(Password::read(dir.path()).unwrap_err().contains("not a regular file"));
        assert_eq!(format!("{:?}", Password::new("secret").unwrap()), "Password { .. }");
    }
}
