//! The keys that sign Debian's archives, pinned by fingerprint, and the check of a signature against them: OpenPGP
//! (RFC 9580) certificates with their self-signatures, expiry, revocations and subkey bindings (sections 5.2.3 and
//! 10.1). The `pgp` crate checks single signatures; which of them make a key valid is decided here.

use std::time::Duration;

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
const SECURITY: Pinned = Pinned {
    owner: "Debian Security Archive Automatic Signing Key (13/trixie)",
    fingerprint: "5e04a1e3223a19a20706e20f9904613d4cce68c6",
    armored: include_str!("../../keys/debian-archive-trixie-security-automatic.asc"),
};

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
    #[error("no signature by a key that is accepted for it ({0})")]
    NotSigned(String),
}

/// Who may sign which archive.
pub struct Trust {
    /// The keys for the archive `debian`.
    pub debian: Keyring,
    /// The keys for the archive `debian-security`.
    pub security: Keyring,
}

impl Trust {
    /// Debian's keys for trixie.
    pub fn trixie() -> Result<Self, KeyError> {
        Ok(Self { debian: Keyring::of(&[AUTOMATIC, STABLE])?, security: Keyring::of(&[SECURITY])? })
    }
}

/// The certificates that may sign one archive.
pub struct Keyring(Vec<Certificate>);

struct Certificate {
    owner: String,
    key: SignedPublicKey,
}

impl Keyring {
    fn of(pinned: &[Pinned]) -> Result<Self, KeyError> {
        pinned.iter().map(|p| Certificate::read(p.owner, p.fingerprint, p.armored)).collect::<Result<_, _>>().map(Self)
    }

    /// Checks a cleartext signed file (RFC 9580, section 7) at a time in seconds since 1970, and gives the text that was
    /// signed, with `\n` ends of line. Only that text may be used: the file can hold more around it.
    pub fn verify(&self, file: &str, now: i64) -> Result<String, KeyError> {
        let (message, _headers) =
            CleartextSignedMessage::from_string(file).map_err(|error| KeyError::Message(Box::new(error)))?;
        let text = message.signed_text();
        let mut refusals = Vec::new();
        for signature in message.signatures() {
            for certificate in &self.0 {
                match certificate.verify(signature, text.as_bytes(), now) {
                    Ok(()) => return Ok(text.replace("\r\n", "\n")),
                    Err(Refusal::OtherKey) => {}
                    Err(Refusal::Because(why)) => refusals.push(format!("{}: {why}", certificate.owner)),
                }
            }
        }
        if refusals.is_empty() {
            let owners: Vec<&str> = self.0.iter().map(|certificate| certificate.owner.as_str()).collect();
            refusals.push(format!("{} signatures, none by {}", message.signatures().len(), owners.join(" or ")));
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
