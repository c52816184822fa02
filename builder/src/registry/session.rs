//! How a registry is asked: as whom, and with which words. A registry that wants to know who asks answers with a
//! challenge (RFC 9110, section 11): `Basic` wants credentials, `Bearer` a token, which another server gives to whoever
//! may read the repository (Distribution's token authentication). Credentials are those that `podman login` or `docker
//! login` left (containers-auth.json(5)).

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use http_auth::ChallengeParser;
use rackstick_image::reference::Reference;
use serde::Deserialize;
use ureq::{Agent, http::Uri};

use super::is_plain;

/// What may stand under an image's name. Registries answer who does not say so in formats of the past.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                          application/vnd.docker.distribution.manifest.list.v2+json, \
                          application/vnd.docker.distribution.manifest.v2+json, */*;q=0.5";
/// Bytes of a token server's answer at most: what stops one that never ends.
const MAX_TOKEN_BYTES: u64 = 256 << 10;

/// A conversation with one registry about one repository.
pub struct Session {
    reference: Reference,
    authorization: Mutex<Option<String>>,
}

/// Why credentials can't be read.
#[derive(Debug, thiserror::Error)]
#[error("the credentials in {} can't be read: {source}", .path.display())]
pub struct CredentialsError {
    /// The file.
    path: PathBuf,
    /// Why.
    source: io::Error,
}

/// Why a challenge can't be met.
#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    /// Nobody is logged in, or as the wrong one.
    #[error("the registry lets only some people have it{}: log in with `podman login {registry}` or `docker login {registry}`",
        if *.known { ", and not whom this machine is logged in as" } else { "" })]
    Denied {
        /// Where.
        registry: String,
        /// Whether there were credentials.
        known: bool,
    },
    /// It is not known who asks.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A challenge of another kind.
    #[error("the registry asks for `{0}`, of which only `Basic` and `Bearer` are known")]
    Unknown(String),
    /// It would send credentials in the clear.
    #[error("the registry sends whoever asks to {0}, which is no HTTPS: nothing is sent there")]
    Plain(String),
    /// The token server.
    #[error("no token from {realm}: {why}")]
    Token {
        /// Its address.
        realm: String,
        /// What happened.
        why: String,
    },
}

/// Files with credentials, as far as they are of use here.
#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
}

/// What a token server answers.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Session {
    /// A conversation about this image.
    pub fn new(reference: &Reference) -> Self {
        Self { reference: reference.clone(), authorization: Mutex::default() }
    }

    /// Whether the registry is on this very machine: only then it needs no certificate, as for all tools.
    pub fn is_plain(&self) -> bool {
        is_plain(&self.reference.registry)
    }

    /// Whether this is an address of the registry itself.
    pub fn is_with(&self, url: &Uri) -> bool {
        let scheme = if self.is_plain() { "http" } else { "https" };
        let host = url.authority().is_some_and(|authority| authority.as_str() == self.reference.registry);
        host && url.scheme_str() == Some(scheme)
    }

    /// What to say of oneself, if the registry wanted to know.
    pub fn authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does what the registry asks for in a challenge.
    pub fn answer(&self, agent: &Agent, challenge: &str) -> Result<(), ChallengeError> {
        let challenges: Vec<_> = ChallengeParser::new(challenge).map_while(Result::ok).collect();
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme));
        let authorization = if let Some(bearer) = find("Bearer") {
            let parameter = |name: &str| {
                let (_, value) = bearer.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                Some(value.to_unescaped())
            };
            let realm = parameter("realm").unwrap_or_default();
            format!("Bearer {}", self.token(agent, &realm, parameter("service").as_deref())?)
        } else if find("Basic").is_some() {
            format!("Basic {}", self.credentials()?.ok_or_else(|| self.denied(false))?)
        } else {
            return Err(ChallengeError::Unknown(challenge.chars().take(100).collect()));
        };
        let mut known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(authorization);
        Ok(())
    }

    /// That nobody here may have it. `known`: although there are credentials.
    fn denied(&self, known: bool) -> ChallengeError {
        ChallengeError::Denied { registry: self.reference.registry.clone(), known }
    }

    /// That the registry does not take what it asked for.
    pub fn refused(&self) -> ChallengeError {
        match self.credentials() {
            Ok(credentials) => self.denied(credentials.is_some()),
            Err(error) => error.into(),
        }
    }

    /// `Authorization` of whoever is logged in, as it stands in the file: user and password in base64. It is read when
    /// it is asked for, so that who needs none can do without.
    fn credentials(&self) -> Result<Option<String>, CredentialsError> {
        credentials(&self.reference, files())
    }

    fn token(&self, agent: &Agent, realm: &str, service: Option<&str>) -> Result<String, ChallengeError> {
        let host = |url: Uri| url.authority().is_some_and(|authority| is_plain(authority.as_str()));
        let near = self.is_plain() && realm.starts_with("http://") && realm.parse().is_ok_and(host);
        if !realm.starts_with("https://") && !near {
            return Err(ChallengeError::Plain(realm.chars().take(200).collect()));
        }
        let failed = |why: String| ChallengeError::Token { realm: realm.to_owned(), why };
        let mut request = agent.get(realm).query("scope", format!("repository:{}:pull", self.reference.repository));
        if let Some(service) = service {
            request = request.query("service", service);
        }
        let credentials = self.credentials()?;
        if let Some(credentials) = &credentials {
            request = request.header("Authorization", format!("Basic {credentials}"));
        }
        let mut answer = request.call().map_err(|error| failed(error.to_string()))?;
        match answer.status().as_u16() {
            200 => {}
            401 | 403 => return Err(self.denied(credentials.is_some())),
            status => return Err(failed(format!("the server answered with status {status}"))),
        }
        let text = answer.body_mut().with_config().limit(MAX_TOKEN_BYTES).read_to_vec();
        let text = text.map_err(|error| failed(error.to_string()))?;
        let token: Token = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        token.token.or(token.access_token).ok_or_else(|| failed("there is none in the answer".to_owned()))
    }
}

/// Where `podman login` and `docker login` leave credentials; the first that knows the registry counts.
fn files() -> Vec<PathBuf> {
    let under = |variable: &str, path: &str| Some(PathBuf::from(env::var_os(variable)?).join(path));
    if let Some(file) = env::var_os("REGISTRY_AUTH_FILE") {
        return vec![file.into()];
    }
    let config =
        under("XDG_CONFIG_HOME", "containers/auth.json").or_else(|| under("HOME", ".config/containers/auth.json"));
    let docker = under("DOCKER_CONFIG", "config.json").or_else(|| under("HOME", ".docker/config.json"));
    [under("XDG_RUNTIME_DIR", "containers/auth.json"), config, docker].into_iter().flatten().collect()
}

/// The credentials for a repository, or else for a part of the registry around it, or for all of it.
fn credentials(reference: &Reference, files: Vec<PathBuf>) -> Result<Option<String>, CredentialsError> {
    let whole = format!("{}/{}", reference.registry, reference.repository);
    let ends = whole.match_indices('/').map(|(end, _)| end).chain([whole.len()]);
    let mut names: Vec<&str> = ends.map(|end| &whole[..end]).collect();
    names.reverse();
    for path in files {
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            result => result,
        };
        let read = text.and_then(|text| Ok(serde_json::from_slice::<AuthFile>(&text)?));
        let file = read.map_err(|source| CredentialsError { path, source })?;
        let found = names.iter().find_map(|name| file.auths.get(*name)?.auth.clone());
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_that_name_the_image_most_closely() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name)
        };
        let first =
            write("a", r#"{"auths": {"r.test": {"auth": "all"}, "r.test/team": {"auth": "team"}}, "credsStore": "x"}"#);
        let second =
            write("b", r#"{"auths": {"r.test/team/app": {"auth": "late"}, "s.test": {"auth": "s"}, "t.test": {}}}"#);
        let none = folder.path().join("none");
        let find = |reference: &str| {
            let files = vec![none.clone(), first.clone(), second.clone()];
            credentials(&reference.parse().unwrap(), files).unwrap()
        };
        assert_eq!(find("r.test/team/app:1").as_deref(), Some("team"));
        assert_eq!(find("r.test/teams/app:1").as_deref(), Some("all"));
        assert_eq!(find("s.test/app").as_deref(), Some("s"));
        assert_eq!(find("t.test/app"), None);
        assert_eq!(find("u.test/app"), None);
        let broken = write("c", "{");
        assert!(credentials(&"r.test/a".parse().unwrap(), vec![broken]).is_err());
    }
}
