//! Loads what `/sbin/modprobe` asks for in the kernel's name: the daemon has the index read already, and can read back
//! what is not in memory any more. One connection is one call: names, one a line, then the answer.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use rackstick_image::modules::ResolveError;
use rackstick_linux::modules::LoadError;

use super::{drivers::Drivers, private_socket};
use crate::modprobe::{LOADED, MAX_CALL, SOCKET};

/// The kernel calls from one place at a time for each device; whoever says nothing is dropped after this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a failed accept, such as for want of file descriptors.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// Listens, in a thread of its own.
pub fn listen(drivers: Arc<Drivers>) -> io::Result<()> {
    let listener = private_socket::bind(Path::new(SOCKET))?;
    thread::Builder::new().name("modprobe".into()).spawn(move || {
        loop {
            // A thread each: loading one module may ask for another. The kernel has at most 50 such calls at once.
            let served = listener.accept().and_then(|(stream, _)| {
                let drivers = drivers.clone();
                thread::Builder::new().name("modprobe call".into()).spawn(move || serve(stream, &drivers))
            });
            if let Err(error) = served {
                log::warn!("calls of modprobe: {error}");
                thread::sleep(FAILURE_PAUSE);
            }
        }
    })?;
    Ok(())
}

fn serve(mut stream: UnixStream, drivers: &Drivers) {
    let mut names = String::new();
    let read =
        stream.set_read_timeout(Some(PATIENCE)).and_then(|()| (&stream).take(MAX_CALL).read_to_string(&mut names));
    if let Err(error) = read {
        log::debug!("a call of modprobe: {error}");
        return;
    }
    let failed = names.lines().filter_map(|name| match drivers.load_one(name) {
        Ok(()) => None,
        // The kernel asks for many names that nobody has (`net-pf-10-proto-0-type-2`): not worth a line.
        Err(LoadError::Resolve(ResolveError::Unknown { .. })) => Some(String::new()),
        Err(error) => {
            log::warn!("modprobe {name}: {error}");
            Some(error.to_string())
        }
    });
    let failed: Vec<String> = failed.collect();
    let answer = if failed.is_empty() { LOADED.to_owned() } else { failed.join("\n") };
    if let Err(error) = stream.write_all(answer.as_bytes()) {
        log::debug!("a call of modprobe: {error}");
    }
}
