//! The keys and signed files are GnuPG's: builder/tests/signatures/make.sh.

use super::*;

/// 2025-06-02 00:00 UTC, a day after everything there was signed.
pub const NOW: i64 = 1_748_822_400;

pub fn data(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/signatures/").to_owned() + name;
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A keyring of one key there, pinned to the fingerprint that it has.
pub fn keyring(name: &str) -> Keyring {
    let armored = data(&format!("{name}.asc"));
    let (key, _) = SignedPublicKey::from_string(&armored).unwrap();
    let pinned = key.fingerprint().to_string().to_lowercase();
    Keyring(vec![Certificate::read(name, &pinned, &armored).unwrap()])
}

fn verify(key: &str, file: &str) -> Result<String, String> {
    keyring(key).verify(&data(file), NOW).map(|signed| signed.text).map_err(|error| error.to_string())
}

#[test]
fn what_a_key_or_its_signing_subkey_signed_is_accepted() {
    for name in ["primary", "subkey"] {
        let text = verify(name, &format!("{name}.InRelease")).unwrap();
        assert!(text.starts_with("Origin: Debian\n") && text.contains("\nCodename: trixie\n"), "{text}");
    }
}

#[test]
fn what_another_key_signed_is_refused() {
    let fingerprint = |name| keyring(name).fingerprints().remove(0);
    let expected = format!(
        "it has no signature that counts: it was signed by key {} on Sun, 01 Jun 2025 00:00:00 UTC, and not by primary, key {}",
        fingerprint("other"),
        fingerprint("primary")
    );
    assert_eq!(verify("primary", "other.InRelease").unwrap_err(), expected);
    assert!(verify("subkey", "primary.InRelease").is_err());
}

#[test]
fn expired_and_revoked_keys_are_refused_although_they_signed_while_they_were_good() {
    for (name, why) in [
        ("expired-primary", "the primary key expired on Sun, 01 Jun 2025 12:00:00 UTC"),
        ("expired-subkey", "the subkey expired on Sun, 01 Jun 2025 12:00:00 UTC"),
        ("revoked-primary", "the key is revoked"),
        ("revoked-subkey", "the subkey is revoked"),
    ] {
        let file = format!("{name}.InRelease");
        let fingerprint = keyring(name).fingerprints().remove(0);
        let expected = format!("it has no signature that counts: that of {name}, key {fingerprint}: {why}");
        assert_eq!(verify(name, &file).unwrap_err(), expected);
        if name.starts_with("expired") {
            keyring(name).verify(&data(&file), NOW - 86_400).unwrap();
        }
    }
}

#[test]
fn expired_weak_and_future_signatures_are_refused() {
    for (file, why) in
        [("expired-signature.InRelease", "the signature expired on"), ("sha1.InRelease", "which is not accepted")]
    {
        let error = verify("primary", file).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let before = NOW - 2 * 86_400;
    let error = keyring("primary").verify(&data("primary.InRelease"), before).err().unwrap().to_string();
    assert!(error.contains("from the future"), "{error}");
}

#[test]
fn a_changed_file_is_refused_wherever_it_was_changed() {
    let good = data("primary.InRelease");
    let keyring = keyring("primary");
    for (from, to) in [
        ("trixie", "trixiE"),
        ("\nCodename", "\n Codename"),
        ("Acquire-By-Hash: yes\n", ""),
        ("\n-----BEGIN PGP SIGNATURE", "\nExtra: field\n-----BEGIN PGP SIGNATURE"),
        ("-----BEGIN PGP SIGNED MESSAGE", "Codename: evil\n-----BEGIN PGP SIGNED MESSAGE"),
        ("-----END PGP SIGNATURE-----", "-----END PGP SIGNATURE-----\nCodename: evil"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        assert!(keyring.verify(&bad, NOW).is_err(), "{to}");
    }
    for cut in (0..good.trim_end().len()).filter(|&cut| good.is_char_boundary(cut)) {
        assert!(keyring.verify(&good[..cut], NOW).is_err(), "cut at {cut}");
    }
}

#[test]
fn no_flipped_bit_in_a_signed_file_makes_another_text_pass() {
    let good = data("subkey.InRelease");
    let keyring = keyring("subkey");
    let text = keyring.verify(&good, NOW).unwrap().text;
    for index in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[index] ^= 1;
        if let Ok(Ok(verified)) = String::from_utf8(bytes).map(|bad| keyring.verify(&bad, NOW)) {
            assert_eq!(verified.text, text, "byte {index}");
        }
    }
}

#[test]
fn a_subkey_that_did_not_agree_to_its_primary_key_is_refused() {
    let (mut key, _) = SignedPublicKey::from_string(&data("subkey.asc")).unwrap();
    let binding = &mut key.public_subkeys[0].signatures[0];
    let unhashed = binding.config().unwrap().unhashed_subpackets().count();
    for index in (0..unhashed).rev() {
        binding.unhashed_subpacket_remove(index).unwrap();
    }
    let keyring = Keyring(vec![Certificate { owner: "subkey".to_owned(), key }]);
    let error = keyring.verify(&data("subkey.InRelease"), NOW).err().unwrap().to_string();
    assert!(error.contains("did not agree"), "{error}");
}

#[test]
fn a_subkey_without_binding_is_refused() {
    let (mut key, _) = SignedPublicKey::from_string(&data("primary.asc")).unwrap();
    let (other, _) = SignedPublicKey::from_string(&data("subkey.asc")).unwrap();
    key.public_subkeys = other.public_subkeys;
    let keyring = Keyring(vec![Certificate { owner: "primary".to_owned(), key }]);
    let error = keyring.verify(&data("subkey.InRelease"), NOW).err().unwrap().to_string();
    assert!(error.contains("the subkey is not bound"), "{error}");
}

#[test]
fn files_of_keys_are_read_armored_and_binary_and_nothing_else_is() {
    let path = |name: &str| format!("{}/tests/signatures/{name}", env!("CARGO_MANIFEST_DIR"));
    let read = Keyring::read(Path::new(&path("subkey.asc"))).unwrap();
    assert_eq!(read.fingerprints(), keyring("subkey").fingerprints());
    read.verify(&data("subkey.InRelease"), NOW).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let mut both = Vec::new();
    for name in ["subkey", "other"] {
        let (key, _) = SignedPublicKey::from_string(&data(&format!("{name}.asc"))).unwrap();
        both.extend(pgp::ser::Serialize::to_bytes(&key).unwrap());
    }
    std::fs::write(&file, &both).unwrap();
    let read = Keyring::read(&file).unwrap();
    assert_eq!(read.fingerprints().len(), 2);
    for name in ["subkey", "other"] {
        read.verify(&data(&format!("{name}.InRelease")), NOW).unwrap();
    }
    assert!(read.verify(&data("primary.InRelease"), NOW).is_err());

    let large = vec![0; 1 + MAX_KEYS as usize];
    for bad in [b"".as_slice(), b"<html>", data("subkey.InRelease").as_bytes(), &both[..both.len() - 9], &large] {
        std::fs::write(&file, bad).unwrap();
        assert!(matches!(Keyring::read(&file), Err(KeyError::NoKeys(_))), "{} bytes", bad.len());
    }
}

#[test]
fn the_built_in_keys_are_those_that_are_pinned_and_can_sign() {
    let trust = Trust::debian(BTreeMap::new()).unwrap();
    for keyring in [trust.debian, trust.security] {
        for certificate in &keyring.0 {
            let now = seconds(certificate.key.primary_key.created_at()) + 86_400;
            let primary = certificate.primary_rights(now).unwrap();
            let subkeys = &certificate.key.public_subkeys;
            let subkeys = subkeys.iter().filter(|subkey| {
                certificate.subkey_rights(subkey, now).is_ok_and(|rights| rights.allow("", &subkey.key, now).is_ok())
            });
            assert!(primary.sign || subkeys.count() == 1, "{}", certificate.owner);
        }
    }
    let wrong = Certificate::read("x", SECURITY.fingerprint, AUTOMATIC.armored);
    assert!(matches!(wrong, Err(KeyError::Fingerprint { .. })));
}
