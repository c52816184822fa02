//! Who this rack is: made on the first boot, kept under `state/` of the data partition, bound to nothing of the PC.
//! The same stick in another PC is the same rack; a stick that is flashed again is another.
//!
//! The key is Ed25519 (RFC 8032) as PKCS #8 in PEM (RFC 8410); its fingerprint is the SHA-256 of the public key's
//! SubjectPublicKeyInfo, as `openssl pkey -pubout -outform DER | sha256sum` gives it. The machine id is that of
//! machine-id(5).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ed25519_dalek::{
    SigningKey,
    pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, KeypairBytes, spki::der::pem::LineEnding},
};
use rackstick_api::rack::Identity;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest, Sha256};

use super::keep;

const MACHINE_ID: &str = "machine-id";
const KEY: &str = "identity.pem";
/// Anybody may know it.
const MACHINE_ID_MODE: u32 = 0o444;
const KEY_MODE: u32 = 0o600;

/// Why the rack does not know who it is. It runs all the same.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is there and can't be read.
    #[error("the rack's identity can't be read from {}: {source}; the data partition is damaged", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is there and is not what was written.
    #[error(
        "the rack's identity in {} is damaged ({why}) and left as it is: restore the file from a backup, or flash the \
         rack again, which makes a new identity",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It could not be kept.
    #[error("the rack's identity can't be kept in {}: {source}; it has none until the next boot", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel gave no random bytes.
    #[error("no identity can be made: the kernel gives no random bytes: {0}")]
    Random(io::Error),
    /// The key can't be put into its format.
    #[error("no identity can be made: {0}")]
    Encode(String),
}

/// The rack's identity; on the first boot a new one. Waits for the kernel's random pool only when it makes one.
pub fn load_or_make(state: &Path) -> Result<Identity, Error> {
    let path = state.join(MACHINE_ID);
    let machine_id = match read(&path)? {
        Some(text) => text,
        None => {
            let text = format!("{}\n", new_machine_id()?);
            keep::write(&path, MACHINE_ID_MODE, text.as_bytes()).map_err(unkept(&path))?;
            log::info!("first boot: this rack's machine id is {}", text.trim_end());
            text
        }
    };
    let machine_id = machine_id.trim_end();
    let digits = machine_id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if machine_id.len() != 32 || !digits {
        return Err(Error::Damaged { path, why: "it is not 32 hexadecimal digits".into() });
    }

    let path = state.join(KEY);
    let (key, new) = match read(&path)? {
        Some(text) => {
            let damaged =
                |error: ed25519_dalek::pkcs8::Error| Error::Damaged { path: path.clone(), why: error.to_string() };
            (SigningKey::from_pkcs8_pem(&text).map_err(damaged)?, false)
        }
        None => {
            let key = SigningKey::from_bytes(&random()?);
            // Without the public key, which OpenSSL does not accept there.
            let bytes = KeypairBytes { secret_key: key.to_bytes(), public_key: None };
            let text = bytes.to_pkcs8_pem(LineEnding::LF).map_err(|error| Error::Encode(error.to_string()))?;
            keep::write(&path, KEY_MODE, text.as_bytes()).map_err(unkept(&path))?;
            (key, true)
        }
    };
    let public = key.verifying_key().to_public_key_der().map_err(|error| Error::Encode(error.to_string()))?;
    let fingerprint = hex(&Sha256::digest(public.as_bytes()));
    let made = if new { "made now" } else { "known" };
    log::info!("this rack's key ({made}) has the fingerprint SHA256 {fingerprint}");
    Ok(Identity { machine_id: machine_id.to_owned(), key_sha256: fingerprint })
}

/// 128 random bits, with the version and variant of RFC 9562 as systemd has them.
fn new_machine_id() -> Result<String, Error> {
    let mut bytes: [u8; 16] = random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(hex(&bytes))
}

/// Random bytes, once the kernel's pool is ready: credited from the CPU's own generator or the firmware's, else by the
/// kernel's jitter generator, which this call sets going and which takes a second.
fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], Error> {
    let mut bytes = [0; LENGTH];
    let mut at = 0;
    while at < LENGTH {
        match getrandom(&mut bytes[at..], GetRandomFlags::empty()) {
            Ok(count) => at += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::Random(error.into())),
        }
    }
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unkept(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Write { path, source }
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read(path) {
        Ok(bytes) => {
            let why = |_| Error::Damaged { path: path.to_owned(), why: "it is no text".into() };
            String::from_utf8(bytes).map(Some).map_err(why)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, process::Command};

    use super::*;

    #[test]
    fn a_rack_keeps_its_identity_and_a_new_one_gets_another() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = load_or_make(one.path()).unwrap();
        assert_eq!(load_or_make(one.path()).unwrap(), first);
        let second = load_or_make(other.path()).unwrap();
        assert_ne!(first.machine_id, second.machine_id);
        assert_ne!(first.key_sha256, second.key_sha256);
        let mode = |name| fs::metadata(one.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(KEY), mode(MACHINE_ID)), (0o600, 0o444));
        assert_eq!(fs::read_dir(one.path()).unwrap().count(), 2);
    }

    #[test]
    fn openssl_reads_the_key_and_agrees_on_its_fingerprint() {
        let state = tempfile::tempdir().unwrap();
        let identity = load_or_make(state.path()).unwrap();
        let output = Command::new("openssl")
            .args(["pkey", "-pubout", "-outform", "DER", "-in"])
            .arg(state.path().join(KEY))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(hex(&Sha256::digest(&output.stdout)), identity.key_sha256);
    }

    #[test]
    fn what_a_cut_left_is_no_obstacle_and_gives_no_wider_rights() {
        let state = tempfile::tempdir().unwrap();
        let left = state.path().join("identity.new");
        fs::write(&left, b"half a ke").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o666)).unwrap();
        load_or_make(state.path()).unwrap();
        assert_eq!(fs::metadata(state.path().join(KEY)).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!left.exists());
    }

    #[test]
    fn a_damaged_identity_is_named_and_left_as_it_is() {
        for (name, content) in [(MACHINE_ID, "0123"), (MACHINE_ID, ""), (KEY, "no key"), (KEY, "")] {
            let state = tempfile::tempdir().unwrap();
            load_or_make(state.path()).unwrap();
            let path = state.path().join(name);
            fs::remove_file(&path).unwrap();
            fs::write(&path, content).unwrap();
            let error = load_or_make(state.path()).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains(name), "{error}");
            assert_eq!(fs::read(&path).unwrap(), content.as_bytes());
        }
    }

    #[test]
    fn without_room_for_it_the_rack_says_so() {
        let state = tempfile::tempdir().unwrap();
        let error = load_or_make(&state.path().join("gone")).unwrap_err();
        assert!(matches!(error, Error::Write { .. }), "{error}");
    }
}
