//! The keys that sign archives, Debian's pinned by fingerprint, and the check of a signature against them: OpenPGP
//! (RFC 9580) certificates with their self-signatures, expiry, revocations and subkey bindings (sections 5.2.3 and
//! 10.1). The `pgp` crate checks single signatures; which of them make a key valid is decided here.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{Cursor, Read},
    path::Path,
    time::Duration,
};

use pgp::{
    composed::{CleartextSignedMessage, Deserializable, SignedPublicKey, SignedPublicSubKey},
    crypto::hash::HashAlgorithm,
    packet::{Signature, SignatureType, SignatureVersion, SubpacketData},
    types::{KeyDetails, Tag, Timestamp, VerifyingKey},
};

/// How far a signature may lie in the future, in seconds: clocks differ, by minutes at most.
pub const CLOCK_SKEW: i64 = 3600;

/// A certificate as it is compiled in.
struct Pinned {
    owner: &'static str,
    fingerprint: &'static str,
    armored: &'static str,
}

// Source of keys and fingerprints: builder/keys/README.md.
const AUTOMATIC: Pinned = Pinned {
    owner: "Debian Archive Automatic Signing Key (13/trixie)",
    fingerprint: "04b54c3cdca79751b16bc6b5225629df75b188bd",
    armored: include_str!("../../keys/debian-archive-trixie-automatic.asc"),
};
const STABLE: Pinned = Pinned {
    owner: "Debian Stable Release Key (13/trixie)",
    fingerprint: "41587f7db8c774bccf131416762f67a0b2c39de4",
    armored: include_str!("../../keys/debian-archive-trixie-stable.asc"),
};
// Bookworm's security updates are signed by this and an older key.
const BOOKWORM_SECURITY: Pinned = Pinned {
    owner: "Debian Security Archive Automatic Signing Key (12/bookworm)",
    fingerprint: "05ab90340c0c5e797f44a8c8254cf3b5aec0a8f0",
    armored: include_str!("../../keys/debian-archive-bookworm-security-automatic.asc"),
};
const SECURITY: Pinned = Pinned {
    owner: "Debian Security Archive Automatic Signing Key (13/trixie)",
    fingerprint: "5e04a1e3223a19a20706e20f9904613d4cce68c6",
    armored: include_str!("../../keys/debian-archive-trixie-security-automatic.asc"),
};

/// Most characters of the name in a key that messages repeat.
const MAX_OWNER: usize = 100;
/// Largest file of keys in bytes: all of Debian's have 60 KB together. Stops a file named by mistake from filling
/// memory.
const MAX_KEYS: u64 = 1 << 20;

/// What is wrong with a key or a signature.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A certificate can't be read.
    #[error("the certificate of {owner} can't be read: {source}")]
    Unreadable {
        /// Whose it is.
        owner: String,
        /// Why.
        source: Box<pgp::errors::Error>,
    },
    /// A file of keys can't be read, or there is none in it.
    #[error("{0}")]
    NoKeys(String),
    /// A certificate is another one than pinned.
    #[error("the certificate of {owner} has fingerprint {found}, not {pinned}")]
    Fingerprint {
        /// Whose it should be.
        owner: String,
        /// What it should have.
        pinned: String,
        /// What it has.
        found: String,
    },
    /// The file is no cleartext signed message.
    #[error("it is not a signed file: {0}")]
    Message(Box<pgp::errors::Error>),
    /// No signature is by a key that is accepted; the reasons, one per signature and certificate that came close.
    #[error("it has no signature that counts: {0}")]
    NotSigned(String),
}

/// Who may sign which archive.
pub struct Trust {
    /// The keys for the archive `debian`.
    pub debian: Keyring,
    /// The keys for the archive `debian-security`.
    pub security: Keyring,
    /// The keys for others' archives, by the repository's name.
    pub foreign: BTreeMap<String, Keyring>,
}

impl Trust {
    /// Debian's keys, with which it signs all its living suites, and the given ones for others' archives.
    pub fn debian(foreign: BTreeMap<String, Keyring>) -> Result<Self, KeyError> {
        let security = Keyring::of(&[SECURITY, BOOKWORM_SECURITY])?;
        Ok(Self { debian: Keyring::of(&[AUTOMATIC, STABLE])?, security, foreign })
    }
}

/// The certificates that may sign one archive.
#[derive(Debug)]
pub struct Keyring(Vec<Certificate>);

#[derive(Debug)]
struct Certificate {
    owner: String,
    key: SignedPublicKey,
}

/// What was signed.
pub struct Signed {
    /// The text, with `\n` ends of line. Only that may be used: the file can hold more around it.
    pub text: String,
    /// Who signed it: the certificate's owner and fingerprint.
    pub by: String,
}

impl Keyring {
    /// The keyring by which nothing is signed.
    pub const NONE: &'static Self = &Self(Vec::new());

    fn of(pinned: &[Pinned]) -> Result<Self, KeyError> {
        pinned.iter().map(|p| Certificate::read(p.owner, p.fingerprint, p.armored)).collect::<Result<_, _>>().map(Self)
    }

    /// The certificates in a file, armored or binary, as archives publish them. It needs no pin of its own: whoever
    /// names it keeps it in git, and the lock has its fingerprints.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_KEYS + 1).read_to_end(&mut bytes));
        read.map_err(|error| KeyError::NoKeys(format!("it can't be read: {error}")))?;
        if bytes.len() as u64 > MAX_KEYS {
            return Err(KeyError::NoKeys(format!("it has more than {MAX_KEYS} bytes")));
        }
        let broken = |error: pgp::errors::Error| KeyError::NoKeys(format!("it is not a file of public keys: {error}"));
        let (keys, _headers) = SignedPublicKey::from_reader_many(Cursor::new(&bytes)).map_err(broken)?;
        let keys = keys.collect::<Result<Vec<_>, _>>().map_err(broken)?;
        if keys.is_empty() {
            return Err(KeyError::NoKeys("there is no public key in it".to_owned()));
        }
        Ok(Self(keys.into_iter().map(Certificate::new).collect()))
    }

    /// The fingerprints of its certificates, sorted.
    pub fn fingerprints(&self) -> Vec<String> {
        let mut all: Vec<String> = self.0.iter().map(Certificate::fingerprint).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Checks a cleartext signed file (RFC 9580, section 7) at a time in seconds since 1970.
    pub fn verify(&self, file: &str, now: i64) -> Result<Signed, KeyError> {
        let (message, _headers) =
            CleartextSignedMessage::from_string(file).map_err(|error| KeyError::Message(Box::new(error)))?;
        let text = message.signed_text();
        let mut refusals = Vec::new();
        for signature in message.signatures() {
            for certificate in &self.0 {
                match certificate.verify(signature, text.as_bytes(), now) {
                    Ok(()) => return Ok(Signed { text: text.replace("\r\n", "\n"), by: certificate.to_string() }),
                    Err(Refusal::OtherKey) => {}
                    Err(Refusal::Because(why)) => refusals.push(format!("that of {certificate}: {why}")),
                }
            }
        }
        if refusals.is_empty() {
            let made: Vec<String> = message.signatures().iter().map(maker).collect();
            let wanted: Vec<String> = self.0.iter().map(ToString::to_string).collect();
            refusals.push(format!("it was signed {}, and not by {}", made.join(", "), wanted.join(" or ")));
        }
        Err(KeyError::NotSigned(refusals.join("; ")))
    }
}

/// Why a certificate does not vouch for a signature.
enum Refusal {
    /// Another key made it.
    OtherKey,
    /// This key made it, or claims to, but it does not count.
    Because(String),
}

impl Certificate {
    fn read(owner: &str, pinned: &str, armored: &str) -> Result<Self, KeyError> {
        let (key, _headers) = SignedPublicKey::from_string(armored)
            .map_err(|source| KeyError::Unreadable { owner: owner.to_owned(), source: Box::new(source) })?;
        let found = key.fingerprint().to_string().to_lowercase();
        if found != pinned {
            return Err(KeyError::Fingerprint { owner: owner.to_owned(), pinned: pinned.to_owned(), found });
        }
        Ok(Self { owner: owner.to_owned(), key })
    }

    /// Of somebody whom the key itself names. Its text may be anybody's.
    fn new(key: SignedPublicKey) -> Self {
        let user = key.details.users.first().map(|user| String::from_utf8_lossy(user.id.id()).into_owned());
        let shown = |name: String| name.chars().take(MAX_OWNER).flat_map(char::escape_debug).collect();
        Self { owner: user.map_or_else(|| "a key without a name".to_owned(), shown), key }
    }

    fn fingerprint(&self) -> String {
        self.key.fingerprint().to_string().to_uppercase()
    }

    fn verify(&self, signature: &Signature, text: &[u8], now: i64) -> Result<(), Refusal> {
        let primary = &self.key.primary_key;
        if made_by(signature, primary) {
            let rights = self.primary_rights(now).map_err(Refusal::Because)?;
            rights.allow("the key", primary, now).map_err(Refusal::Because)?;
            return check_document(signature, primary, text, now).map_err(Refusal::Because);
        }
        let Some(subkey) = self.key.public_subkeys.iter().find(|subkey| made_by(signature, &subkey.key)) else {
            return Err(Refusal::OtherKey);
        };
        let check = || {
            // A subkey lives no longer than its primary key, but the primary key needs no right to sign documents.
            Rights { sign: true, ..self.primary_rights(now)? }.allow("the primary key", primary, now)?;
            self.subkey_rights(subkey, now)?.allow("the subkey", &subkey.key, now)?;
            check_document(signature, &subkey.key, text, now)
        };
        check().map_err(Refusal::Because)
    }

    /// What the newest self-signature says of the primary key.
    fn primary_rights(&self, now: i64) -> Result<Rights, String> {
        let primary = &self.key.primary_key;
        let details = &self.key.details;
        if details.revocation_signatures.iter().any(|revocation| revocation.verify_key(primary).is_ok()) {
            return Err("the key is revoked".to_owned());
        }
        let direct = details.direct_signatures.iter().filter(|signature| signature.verify_key(primary).is_ok());
        let of_users = details.users.iter().flat_map(|user| {
            let valid = |signature: &&Signature| signature.verify_certification(primary, Tag::UserId, &user.id).is_ok();
            let own: Vec<&Signature> = user.signatures.iter().filter(valid).collect();
            let revoked = own.iter().any(|signature| signature.typ() == Some(SignatureType::CertRevocation));
            if revoked { Vec::new() } else { own }
        });
        let newest = direct
            .chain(of_users)
            .filter(|signature| acceptable(signature, now).is_ok())
            .max_by_key(|signature| signature.created());
        newest.map(Rights::of).ok_or_else(|| "the key carries no valid self-signature".to_owned())
    }

    /// What the newest binding says of a subkey.
    fn subkey_rights(&self, subkey: &SignedPublicSubKey, now: i64) -> Result<Rights, String> {
        let primary = &self.key.primary_key;
        let valid = |signature: &&Signature| signature.verify_subkey_binding(primary, &subkey.key).is_ok();
        let own: Vec<&Signature> = subkey.signatures.iter().filter(valid).collect();
        if own.iter().any(|signature| signature.typ() == Some(SignatureType::SubkeyRevocation)) {
            return Err("the subkey is revoked".to_owned());
        }
        let newest = own
            .into_iter()
            .filter(|signature| acceptable(signature, now).is_ok())
            .max_by_key(|signature| signature.created())
            .ok_or("the subkey is not bound to the primary key")?;
        // Without the subkey's own signature, anyone could adopt somebody else's signing key.
        let back = newest.embedded_signature().ok_or("the subkey did not agree to its primary key")?;
        back.verify_primary_key_binding(&subkey.key, primary)
            .map_err(|error| format!("the subkey did not agree to its primary key: {error}"))?;
        acceptable(back, now)?;
        Ok(Rights::of(newest))
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, key {}", self.owner, self.fingerprint())
    }
}

/// What a self-signature or binding says of its key.
struct Rights {
    sign: bool,
    lifetime: Option<Duration>,
}

impl Rights {
    fn of(signature: &Signature) -> Self {
        let lifetime = signature.key_expiration_time().map(Duration::from);
        Self { sign: signature.key_flags().sign(), lifetime: lifetime.filter(|time| !time.is_zero()) }
    }

    fn allow(&self, what: &str, key: &impl KeyDetails, now: i64) -> Result<(), String> {
        if !self.sign {
            return Err(format!("{what} is not one for signing"));
        }
        let created = seconds(key.created_at());
        if created > now + CLOCK_SKEW {
            return Err(format!("{what} is from the future, {}", super::date::show(created)));
        }
        match self.lifetime.map(|time| created.saturating_add_unsigned(time.as_secs())) {
            Some(end) if end <= now => Err(format!("{what} expired on {}", super::date::show(end))),
            _ => Ok(()),
        }
    }
}

/// Whether a signature names the key as its maker. One that names nobody is made by nobody we know.
fn made_by(signature: &Signature, key: &impl KeyDetails) -> bool {
    let fingerprints = signature.issuer_fingerprint();
    if fingerprints.is_empty() {
        return signature.issuer_key_id().into_iter().any(|id| *id == key.legacy_key_id());
    }
    fingerprints.into_iter().any(|fingerprint| *fingerprint == key.fingerprint())
}

/// By which key a signature says it was made, and when.
fn maker(signature: &Signature) -> String {
    let fingerprint = signature.issuer_fingerprint().first().map(|fingerprint| fingerprint.to_string().to_uppercase());
    let id = || signature.issuer_key_id().first().map(|id| id.to_string().to_uppercase());
    let key = fingerprint.or_else(id).map_or_else(|| "by nobody named".to_owned(), |key| format!("by key {key}"));
    let created = signature.created().map(|created| format!(" on {}", super::date::show(seconds(created))));
    key + &created.unwrap_or_default()
}

fn check_document(signature: &Signature, key: &impl VerifyingKey, text: &[u8], now: i64) -> Result<(), String> {
    if !matches!(signature.typ(), Some(SignatureType::Text | SignatureType::Binary)) {
        return Err(format!("the signature is not one over a document but {:?}", signature.typ()));
    }
    acceptable(signature, now)?;
    if signature.created() < Some(key.created_at()) {
        return Err("the signature is older than its key".to_owned());
    }
    signature.verify(key, text).map_err(|_| "the file was changed after it was signed".to_owned())
}

/// Whether a signature may count at all, whatever it is over: its hash, its time, and nothing in it that must be
/// understood and is not (RFC 9580, section 5.2.3.7).
fn acceptable(signature: &Signature, now: i64) -> Result<(), String> {
    if !matches!(signature.version(), SignatureVersion::V4 | SignatureVersion::V6) {
        return Err(format!("the signature is of version {:?}, which is not accepted", signature.version()));
    }
    match signature.hash_alg() {
        Some(HashAlgorithm::Sha256 | HashAlgorithm::Sha384 | HashAlgorithm::Sha512) => {}
        other => return Err(format!("the signature uses {other:?}, which is not accepted")),
    }
    let config = signature.config().ok_or("the signature is of an unknown version")?;
    let unknown = |data: &SubpacketData| {
        matches!(data, SubpacketData::Experimental(..) | SubpacketData::Other(..) | SubpacketData::Notation(..))
    };
    if config.hashed_subpackets().any(|packet| packet.is_critical && unknown(&packet.data)) {
        return Err("the signature says something that must be understood and is not".to_owned());
    }
    let created = seconds(signature.created().ok_or("the signature has no date")?);
    if created > now + CLOCK_SKEW {
        return Err(format!("the signature is from the future, {}", super::date::show(created)));
    }
    let lifetime = signature.signature_expiration_time().map(Duration::from).filter(|time| !time.is_zero());
    match lifetime.map(|time| created.saturating_add_unsigned(time.as_secs())) {
        Some(end) if end <= now => Err(format!("the signature expired on {}", super::date::show(end))),
        _ => Ok(()),
    }
}

fn seconds(time: Timestamp) -> i64 {
    i64::from(time.as_secs())
}

#[cfg(test)]
pub mod tests;
