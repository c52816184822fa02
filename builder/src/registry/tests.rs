//! Registries that ask who asks, lead around, or lie; a real one is asked in `tests/tests/registry.rs`.

use rackstick_image::{digest::Sha256, lock::Input};
use serde_json::json;

use super::{RegistryError, ask};
use crate::store::server::{Answer, Server};

/// A server, and the name of an image in it.
struct Registry {
    server: Server,
    reference: String,
}

impl Registry {
    fn start() -> Self {
        let server = Server::start();
        let reference = server.root("team/app:1").replace("http://", "");
        Self { server, reference }
    }

    /// Something that stands under a tag or a digest.
    fn put(&self, version: &str, answer: Answer) {
        self.server.answer(&format!("/v2/team/app/manifests/{version}"), vec![answer]);
    }

    fn ask(&self) -> Result<Input, RegistryError> {
        ask(&self.reference)
    }

    /// All that went wrong, in words.
    fn wrong(&self) -> String {
        let error = self.ask().unwrap_err();
        let mut text = error.to_string();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
        while let Some(this) = cause {
            text = format!("{text}: {this}");
            cause = this.source();
        }
        text
    }
}

fn manifest() -> Vec<u8> {
    let blob = |byte: &str, size: u64| json!({ "digest": format!("sha256:{}", byte.repeat(32)), "size": size });
    json!({ "config": blob("aa", 3), "layers": [blob("bb", 4), blob("bb", 4)] }).to_string().into_bytes()
}

/// An index with images for two machines.
fn index(amd64: &str) -> Vec<u8> {
    let entry = |architecture: &str, digest: &str| json!({ "digest": digest, "platform": { "os": "linux", "architecture": architecture } });
    json!({ "manifests": [entry("arm64", &format!("sha256:{}", "cc".repeat(32))), entry("amd64", amd64)] })
        .to_string()
        .into_bytes()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::of(bytes))
}

#[test]
fn of_several_platforms_ours_is_taken_and_each_file_is_wanted_once() {
    let registry = Registry::start();
    let own = digest(&manifest());
    registry.put("1", Answer::Whole(index(&own)));
    registry.put(&own, Answer::Whole(manifest()));
    let input = registry.ask().unwrap();
    assert_eq!((format!("sha256:{}", input.sha256()), input.blobs().count()), (own, 4));
    let wants: Vec<_> = super::wants(&input).into_iter().map(|want| (want.path, want.size)).collect();
    let path = |kind: &str, digest: &str| format!("{kind}/sha256:{digest}");
    let manifest = (path("manifests", &input.sha256().to_string()), manifest().len() as u64);
    assert_eq!(wants, [manifest, (path("blobs", &"aa".repeat(32)), 3), (path("blobs", &"bb".repeat(32)), 4)]);
}

#[test]
fn a_token_is_fetched_when_the_registry_wants_one() {
    let registry = Registry::start();
    let realm = registry.server.root("token");
    let challenge = format!("Bearer realm=\"{realm}\",service=\"a, b\",scope=\"repository:team/app:pull\"");
    registry.put("1", Answer::Guarded(challenge, "Bearer t-1".to_owned(), manifest()));
    let token = "/token?scope=repository%3Ateam%2Fapp%3Apull&service=a%2C%20b";
    registry.server.answer(token, vec![Answer::Whole(br#"{"access_token": "t-1"}"#.to_vec())]);
    registry.ask().unwrap_or_else(|error| panic!("{error:?} after {:?}", registry.server.requests()));

    // Another token does not open it.
    registry.server.answer(token, vec![Answer::Whole(br#"{"token": "t-2"}"#.to_vec())]);
    assert!(
        registry.wrong().contains("lets only some people have it: log in with `podman login"),
        "{}",
        registry.wrong()
    );
    registry.server.answer(token, vec![Answer::Whole(b"{}".to_vec())]);
    assert!(registry.wrong().contains("there is none in the answer"), "{}", registry.wrong());
    registry.server.answer(token, vec![Answer::Status(403)]);
    assert!(registry.wrong().contains("lets only some people have it"), "{}", registry.wrong());
}

#[test]
fn what_a_registry_can_not_be_trusted_with_is_refused() {
    let registry = Registry::start();
    let guarded = |challenge: &str| Answer::Guarded(challenge.to_owned(), "no".to_owned(), manifest());
    let other = digest(b"something else");
    let circle = index(&digest(b"x"));
    for (answer, expected) in [
        (Answer::Status(404), "not found"),
        (Answer::Status(500), "status 500"),
        (Answer::Whole(b"<html>".to_vec()), "no valid manifest"),
        (Answer::Whole(b"{}".to_vec()), "neither an index nor a manifest"),
        (Answer::Whole(vec![b' '; (4 << 20) + 1]), "larger than 4194304 bytes"),
        (Answer::Whole(index("sha512:00")), "only those of the form `sha256:`"),
        (Answer::Whole(index(&other)), "it has the hash"),
        (Answer::Whole(json!({ "manifests": [] }).to_string().into_bytes()), "neither an index nor a manifest"),
        (guarded("Negotiate"), "only `Basic` and `Bearer` are known"),
        (guarded("Basic realm=\"x\""), "log in with `podman login 127.0.0.1:"),
        (guarded("Bearer realm=\"ftp://r.test/token\""), "nothing is sent there"),
        (guarded("Bearer realm=\"http://r.test/token\""), "nothing is sent there"),
    ] {
        registry.put("1", answer);
        registry.put(&other, Answer::Whole(circle.clone()));
        let wrong = registry.wrong();
        assert!(wrong.contains(expected), "`{expected}` is not in: {wrong}");
    }
    let arm = json!({ "manifests": [{ "digest": other, "platform": { "os": "linux", "architecture": "arm64" } }] });
    registry.put("1", Answer::Whole(arm.to_string().into_bytes()));
    assert!(registry.wrong().contains("only for linux/arm64"), "{}", registry.wrong());
}

#[test]
fn whom_a_registry_leads_to_is_not_told_who_asks() {
    let (registry, other) = (Registry::start(), Server::start());
    registry.put("1", Answer::Redirect(other.root("elsewhere")));
    let challenge = format!("Bearer realm=\"{}\"", other.root("token"));
    other.answer("/elsewhere", vec![Answer::Guarded(challenge, "no".to_owned(), manifest())]);
    assert!(registry.wrong().contains("status 401"), "{}", registry.wrong());
    assert!(other.requests().iter().all(|request| request == "/elsewhere"), "{:?}", other.requests());
    // What it has there is taken, if it does not ask.
    other.answer("/elsewhere", vec![Answer::Whole(manifest())]);
    assert!(registry.ask().is_ok());
}

#[test]
fn only_this_very_machine_is_asked_in_the_clear() {
    for (registry, plain) in [
        ("localhost", true),
        ("localhost:5000", true),
        ("127.0.0.1:5000", true),
        ("127.1.2.3", true),
        ("[::1]", true),
        ("[::1]:5000", true),
        ("[::1:5]", false),
        ("localhost.example.org", false),
        ("10.0.0.1:5000", false),
        ("127.0.0.1.example.org", false),
    ] {
        assert_eq!(super::is_plain(registry), plain, "{registry}");
    }
}

#[test]
fn an_image_that_is_named_by_its_digest_must_be_that_one() {
    let registry = Registry::start();
    let own = digest(&manifest());
    let reference = format!("{}@{own}", registry.reference);
    registry.put(&own, Answer::Whole(manifest()));
    assert!(ask(&reference).is_ok());
    registry.put(&own, Answer::Whole(index(&own)));
    assert!(matches!(ask(&reference), Err(RegistryError::Other { .. })));
}
