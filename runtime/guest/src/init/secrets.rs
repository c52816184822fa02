//! Puts secrets where the image's programs look for them, in memory: `/run` is a tmpfs that moves along into the new
//! root. What stood in the initrd is deleted with it.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown},
    path::Path,
};

use rackstick_api::guest::Secret;

use super::InitError;

/// Of folders on the way to a secret: each file in them has a mode of its own.
const FOLDER_MODE: u32 = 0o755;

/// Puts each secret at its path below `root`, its value being a file with its name in `values`. Nothing else runs yet,
/// and all of `/run` is our own, so that no link leads elsewhere.
pub(super) fn place(secrets: &[Secret], values: &Path, root: &Path) -> Result<(), InitError> {
    for secret in secrets {
        let failed = |source| InitError::Secret { name: secret.name.clone(), path: secret.path.clone(), source };
        place_one(secret, &values.join(&secret.name), root).map_err(failed)?;
    }
    Ok(())
}

fn place_one(secret: &Secret, value: &Path, root: &Path) -> io::Result<()> {
    let value = fs::read(value)?;
    let path = root.join(secret.path.trim_start_matches('/'));
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    }
    // Nobody reads it before it belongs to its user.
    let mut file = File::options().write(true).create_new(true).mode(0o000).open(&path)?;
    file.write_all(&value)?;
    fchown(&file, Some(secret.uid), Some(secret.gid))?;
    // After that, since it would take bits away.
    file.set_permissions(Permissions::from_mode(secret.mode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn secret(name: &str, path: &str) -> Secret {
        Secret { name: name.into(), path: path.into(), uid: 33, gid: 8, mode: 0o440 }
    }

    #[test]
    fn a_secret_has_its_bytes_owner_and_mode_and_needs_root_for_that() {
        let (values, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(values.path().join("dkim"), b"\0key\n").unwrap();
        place(&[secret("dkim", "/run/secrets/dkim")], values.path(), root.path()).unwrap();
        let path = root.path().join("run/secrets/dkim");
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (33, 8, 0o440));
        assert_eq!(fs::read(&path).unwrap(), b"\0key\n");
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o755);
    }

    #[test]
    fn one_that_is_not_there_is_named() {
        let (values, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let error = place(&[secret("dkim", "/run/dkim")], values.path(), root.path()).unwrap_err();
        assert!(error.to_string().contains("secret `dkim` can't be put at /run/dkim"), "{error}");
        assert!(!root.path().join("run").exists());
    }
}
