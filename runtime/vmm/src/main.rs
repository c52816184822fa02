//! `rackstick-vmm --config FILE`: runs one virtual machine to its end. The end's reason goes to the exit file, to
//! standard error as one line, and into the exit status (see `rackstick_vmm::exit::Exit`).

#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use rackstick_vmm::{config::Config, exit::Exit, logger, machine};

/// Exit status for bad arguments.
const BAD_ARGUMENTS: u8 = 2;

/// Set by the thread that says why the machine ended. There is one end: a second thread would write the same file,
/// and a panic on the way would come back to where it arose.
static ENDING: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    logger::install();
    let mut arguments = std::env::args_os().skip(1);
    let path = match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(flag), Some(path), None) if flag == "--config" => PathBuf::from(path),
        _ => {
            say("usage: rackstick-vmm --config FILE");
            return ExitCode::from(BAD_ARGUMENTS);
        }
    };
    let config = match read(&path) {
        Ok(config) => config,
        Err(message) => return end(&path.display().to_string(), None, &Exit::Error { message }),
    };
    end_on_panic(&config);
    let exit = machine::run(&config);
    end(&config.name, config.exit_file.as_deref(), &exit)
}

fn read(path: &Path) -> Result<Config, String> {
    let text = fs::read(path).map_err(|error| format!("cannot read the configuration: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| format!("configuration: {error}"))
}

/// A panic in any thread is a bug of ours; the machine must not go on with a part missing.
fn end_on_panic(config: &Config) {
    let (name, exit_file) = (config.name.clone(), config.exit_file.clone());
    std::panic::set_hook(Box::new(move |panic| {
        let exit = Exit::Error { message: format!("bug in rackstick-vmm: {panic}") };
        if ENDING.swap(true, Ordering::SeqCst) {
            // The machine's end is being told already; this is all that is left to tell.
            return say(&format!("{name}: {exit}"));
        }
        tell(&name, exit_file.as_deref(), &exit);
        std::process::exit(exit.code().into());
    }));
}

/// Says why the machine ended, in all three ways.
fn end(name: &str, exit_file: Option<&Path>, exit: &Exit) -> ExitCode {
    while ENDING.swap(true, Ordering::SeqCst) {
        // Another thread panicked and ends the process as soon as it has said so.
        std::thread::park();
    }
    tell(name, exit_file, exit)
}

/// The exit file comes first: the supervisor goes by it, and standard error may be a full file.
fn tell(name: &str, exit_file: Option<&Path>, exit: &Exit) -> ExitCode {
    let written = exit_file.map_or(Ok(()), |path| write_exit(path, exit));
    let code = match written {
        Ok(()) => exit.code(),
        Err(error) => {
            say(&format!("{name}: cannot write the exit file: {error}"));
            Exit::Error { message: String::new() }.code()
        }
    };
    say(&format!("{name}: {exit}"));
    ExitCode::from(code)
}

/// One line to standard error. `eprintln!` would panic where it is full, which a guest that causes many messages
/// can bring about.
fn say(line: &str) {
    // There is nowhere to report that standard error can't be written.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes beside, then renames: whoever reads the file finds all of it or nothing.
fn write_exit(path: &Path, exit: &Exit) -> io::Result<()> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(exit)?)?;
    file.sync_all()?;
    fs::rename(beside, path)
}
