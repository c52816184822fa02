//! What is started in an image: the recipe's words before the image's own, checked against the image's files, so that a
//! guest that can't start is found when it is built.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use rackstick_image::{
    erofs::Kind,
    manifest::Process,
    recipe::{Archive, Diagnostic, Root},
};
use serde::{Deserialize, Serialize};

use super::{oci::Config, tree::Files, users};

/// The image's own PID 1, where neither recipe nor image names a command.
const INIT: &str = "/sbin/init";
/// Where programs are looked for unless the image says otherwise; what container runtimes say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SIGTERM: u8 = 15;
/// SIGRTMIN of the C library.
const SIGRTMIN: u8 = 34;
/// Signals by name (signal(7)), those that it makes sense to stop a program with.
const SIGNALS: [(&str, u8); 12] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("ALRM", 14),
    ("TERM", SIGTERM),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
];
/// ELF's numbers of the machines whose programs run here (`e_machine`): x86-64 and its 32-bit mode.
const MACHINES: [u16; 2] = [62, 3];

/// What a guest starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Program and arguments.
    pub init: Vec<String>,
    /// How; none: it becomes PID 1.
    pub process: Option<Process>,
}

/// What the recipe and the image's `config` say.
pub fn start(files: &Files, root: &Root, config: Option<&Config>) -> Result<Start, Diagnostic> {
    let wrong = |message: String, hint: &str| Diagnostic::new(root.archive.name().place.clone(), message).hint(hint);
    let none = Config::default();
    let config = config.unwrap_or(&none);
    let named = root.command.as_ref();
    let own = [config.entrypoint.clone().unwrap_or_default(), config.cmd.clone().unwrap_or_default()].concat();
    let command = match named {
        Some(command) => command.value.clone(),
        None if !own.is_empty() => own,
        None if matches!(root.archive, Archive::Rootfs(_)) && files.get(INIT.as_bytes()).is_some() => {
            return Ok(Start { init: vec![INIT.to_owned()], process: None });
        }
        None => {
            let message = format!("the image names no command, and it has no {INIT}");
            return Err(wrong(
                message,
                r#"say what it runs, for example `command = ["/usr/bin/server", "--port", "80"]`"#,
            ));
        }
    };

    let name = root.user.as_ref().map(|user| user.value.as_str()).or(config.user.as_deref()).unwrap_or_default();
    let user = users::find(files, name).map_err(|error| {
        let place = root.user.as_ref().unwrap_or(root.archive.name()).place.clone();
        Diagnostic::new(place, error.to_string()).hint("give the number, as in `user = \"33:33\"`, or another user")
    })?;
    let mut env = BTreeMap::from([("PATH".to_owned(), PATH.to_owned()), ("HOME".to_owned(), user.home.clone())]);
    let variables = config.env.iter().flatten().filter(|variable| !variable.contains('\0'));
    env.extend(variables.filter_map(|variable| {
        let (name, value) = variable.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    }));
    env.extend(root.env.clone());
    let workdir = root.workdir.clone().or_else(|| config.working_dir.clone()).filter(|folder| !folder.is_empty());
    let workdir = workdir.map_or_else(|| "/".to_owned(), |folder| format!("/{}", folder.trim_start_matches('/')));
    let stop_signal = match config.stop_signal.as_deref().filter(|name| !name.is_empty()) {
        None => SIGTERM,
        Some(name) => signal(name).ok_or_else(|| {
            wrong(format!("the image wants to be stopped by `{name}`, which is no signal"), "make the image anew")
        })?,
    };
    if command.iter().chain([&workdir]).any(|word| word.contains('\0')) {
        return Err(wrong("the image's command has a NUL in it".to_owned(), "give another `command`"));
    }
    check(files, &command[0], &workdir, &env).map_err(|message| {
        let place = named.map_or(&root.archive.name().place, |command| &command.place).clone();
        Diagnostic::new(place, message).hint("`command` begins with a program in the image, by its path or its name")
    })?;
    let process = Process { env, workdir, uid: user.uid, gid: user.gid, groups: user.groups, stop_signal };
    Ok(Start { init: command, process: Some(process) })
}

/// `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`.
fn signal(text: &str) -> Option<u8> {
    let is_one = |number: &u8| matches!(number, 1..=31 | SIGRTMIN..=64);
    if let Ok(number) = text.parse() {
        return Some(number).filter(is_one);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if let Some(after) = name.strip_prefix("RTMIN") {
        let after = after.strip_prefix('+').map_or(Some(0), |number| number.parse().ok())?;
        return SIGRTMIN.checked_add(after).filter(is_one);
    }
    SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Whether the program is there and can run here.
fn check(files: &Files, program: &str, workdir: &str, env: &BTreeMap<String, String>) -> Result<(), String> {
    let candidates: Vec<String> = if program.starts_with('/') {
        vec![program.to_owned()]
    } else if program.contains('/') {
        vec![format!("{workdir}/{program}")]
    } else {
        let path = env.get("PATH").map_or(PATH, String::as_str);
        path.split(':').map(|folder| format!("{folder}/{program}")).collect()
    };
    let found = candidates.iter().filter_map(|path| Some((path, files.get(path.as_bytes())?)));
    let mut other = None;
    for (path, node) in found {
        match &node.kind {
            Kind::File(_) if node.mode & 0o111 == 0 => {
                other.get_or_insert(format!("the image's {path} is no program: its mode is 0o{:o}", node.mode));
            }
            Kind::File(source) => {
                let mut head = Vec::new();
                let read =
                    source.reader().map_err(io::Error::other).and_then(|file| file.take(20).read_to_end(&mut head));
                read.map_err(|error| format!("the image's {path} can't be read: {error}"))?;
                return match head.as_slice() {
                    [0x7f, b'E', b'L', b'F', .., low, high] if head.len() == 20 => {
                        let machine = u16::from_le_bytes([*low, *high]);
                        let fine = MACHINES.contains(&machine);
                        let message =
                            format!("the image's {path} is a program for another processor (ELF machine {machine})");
                        if fine { Ok(()) } else { Err(message) }
                    }
                    _ => Ok(()),
                };
            }
            _ => {}
        }
    }
    Err(other.unwrap_or_else(|| format!("the image has no program `{program}`; looked for {}", candidates.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [("SIGQUIT", 3), ("WINCH", 28), ("15", 15), ("SIGRTMIN+3", 37), ("RTMIN", 34)] {
            assert_eq!(signal(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "33", "SIGNOTHING", "SIGRTMIN+31", "SIGRTMIN+x", "-1"] {
            assert_eq!(signal(text), None, "{text}");
        }
    }
}
