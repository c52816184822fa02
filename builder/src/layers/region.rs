//! The time zone and the locale of an image, as Debian's tools and systemd find them. Follows localtime(5),
//! locale.conf(5), locale-gen(8).

use std::{
    io,
    path::{Path, PathBuf},
};

use rackstick_image::recipe;

use super::{
    configure::{Configure, failed},
    stage::protocol::{Failure, Marked},
    tree::Tree,
};

/// Time zones, of package tzdata.
const ZONES: &str = "/usr/share/zoneinfo";
/// What a time zone's file begins with (RFC 9636, section 3.1).
const ZONE_MAGIC: &[u8] = b"TZif";
/// Which locales can be generated, of package locales: a name and its character set on each line.
const SUPPORTED: &str = "/usr/share/i18n/SUPPORTED";
/// The locale that libc-bin ships.
const BUILT_IN: &str = "C.UTF-8";
/// Where systemd looks for the locale, and where Debian's PAM does.
const LOCALE_CONF: &str = "/etc/locale.conf";
const LOCALE_OF_PAM: &str = "/etc/default/locale";

/// Sets the time zone.
pub fn set_timezone(tree: &Tree, zone: &Marked<String>) -> Result<(), Failure> {
    let Marked { value: zone, mark } = zone;
    let path = Path::new(ZONES).join(zone);
    let at = failed(ZONES);
    let is_zone = || Ok(tree.is_file(&path)? && tree.read(&path)?.is_some_and(|bytes| bytes.starts_with(ZONE_MAGIC)));
    if !is_zone().map_err(&at)? {
        let zones = zones(tree).map_err(&at)?;
        let message = format!("the image has no time zone `{zone}`");
        let hint = if zones.is_empty() {
            "add package `tzdata` to `packages`; without `timezone` it is UTC".to_owned()
        } else {
            match recipe::closest(zone, zones.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "a name like `Europe/Berlin`; old ones, like `US/Eastern`, are in package `tzdata-legacy`"
                    .to_owned(),
            }
        };
        return Err(Failure::mistake(*mark, message, hint));
    }
    let set = || {
        tree.symlink(&path, Path::new("/etc/localtime"))?;
        tree.write(Path::new("/etc/timezone"), format!("{zone}\n").as_bytes(), 0o644)
    };
    set().map_err(failed("/etc/localtime"))
}

/// The names of all time zones.
fn zones(tree: &Tree) -> io::Result<Vec<String>> {
    let mut zones = Vec::new();
    tree.walk(Path::new(ZONES), &mut |path, _| {
        let name = path.strip_prefix(ZONES).ok().and_then(Path::to_str);
        // Copies of all of them, with and without leap seconds.
        zones.extend(name.filter(|name| !name.starts_with("posix/") && !name.starts_with("right/")).map(str::to_owned));
        Ok(())
    })?;
    Ok(zones)
}

impl Configure<'_> {
    /// Sets the locale of all services and logins, and has the image's own locale-gen make it.
    pub fn set_locale(&self, locale: &Marked<String>) -> Result<(), Failure> {
        let Marked { value: locale, mark } = locale;
        if locale != BUILT_IN {
            let message = format!("the image has no locale `{locale}`");
            let refused = |hint: String| Failure::mistake(*mark, &message, hint);
            let supported = self.tree.read(Path::new(SUPPORTED)).map_err(failed(SUPPORTED))?;
            let Some(supported) = supported else {
                return Err(refused(format!("add package `locales` to `packages`; only `{BUILT_IN}` needs none")));
            };
            let supported = String::from_utf8_lossy(&supported);
            let names = supported.lines().filter_map(|line| line.strip_suffix(" UTF-8"));
            if !names.clone().any(|name| name == locale) {
                return Err(refused(match recipe::closest(locale, names) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("those that there are stand in {SUPPORTED}, for example `de_DE.UTF-8`"),
                }));
            }
            let wanted = format!("{locale} UTF-8\n");
            self.tree
                .write(Path::new("/etc/locale.gen"), wanted.as_bytes(), 0o644)
                .map_err(failed("/etc/locale.gen"))?;
            self.run("locale-gen", &["locale-gen"], &[])?;
        }
        let set = || {
            self.tree.write(Path::new(LOCALE_CONF), format!("LANG={locale}\n").as_bytes(), 0o644)?;
            self.tree.symlink(&PathBuf::from("../locale.conf"), Path::new(LOCALE_OF_PAM))
        };
        set().map_err(failed(LOCALE_CONF))
    }
}
