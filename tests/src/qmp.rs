//! Speaks to QEMU's monitor (QEMU Machine Protocol, `docs/interop/qmp-spec.rst` of QEMU): plugs and pulls devices,
//! presses the power button, waits for events.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::wait;

/// How long QEMU may take for an answer; software emulation can hold its lock for a while.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A connection to the monitor of a running QEMU, which serves one at a time.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What was received of a line that has not ended.
    partial: Vec<u8>,
    /// Events that came and that nobody has waited for yet.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects, once QEMU listens, and leaves negotiation mode.
    pub fn connect(socket: &Path) -> Self {
        let what = format!("QEMU's monitor at {}", socket.display());
        let stream = wait::until(&what, ANSWER_LIMIT, || UnixStream::connect(socket).ok());
        let mut qmp = Self { stream: BufReader::new(stream), partial: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.line(Instant::now() + ANSWER_LIMIT).expect("QEMU's monitor greets");
        assert!(greeting.get("QMP").is_some(), "this is no QMP greeting: {greeting}");
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    /// Runs a command and returns what it returned; panics with QEMU's words if it failed.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.try_execute(command, arguments).unwrap_or_else(|why| panic!("QEMU refused `{command}`: {why}"))
    }

    /// Runs a command; an error is QEMU's description.
    #[track_caller]
    pub fn try_execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.stream.get_mut().write_all(line.as_bytes()).expect("QEMU's monitor can be written to");
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let mut message = self.line(deadline).unwrap_or_else(|| panic!("QEMU did not answer `{command}`"));
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(error) = message.get("error") {
                return Err(error["desc"].as_str().unwrap_or("it gave no reason").to_owned());
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Waits until QEMU reports an event of this name, or takes one that it reported before; returns its data.
    #[track_caller]
    pub fn until_event(&mut self, name: &str, limit: Duration) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(index) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.remove(index).map(|mut event| event["data"].take()).unwrap_or_default();
            }
            let message = self.line(deadline);
            let event = message.unwrap_or_else(|| panic!("after {} s no event {name} from QEMU", limit.as_secs()));
            self.events.push_back(event);
        }
    }

    /// Plugs a device in, for example `{"driver": "e1000e", "id": "nic1", "bus": "slot0", "netdev": "net1"}`.
    #[track_caller]
    pub fn plug(&mut self, device: Value) {
        self.execute("device_add", device);
    }

    /// Pulls a device out and waits until the rack has let go of it.
    #[track_caller]
    pub fn pull(&mut self, id: &str, limit: Duration) {
        self.execute("device_del", json!({ "id": id }));
        let deadline = Instant::now() + limit;
        // A device brings one event for each of its parts, most of which have no name.
        while self.until_event("DEVICE_DELETED", deadline.saturating_duration_since(Instant::now()))["device"] != id {}
    }

    /// Plugs a NIC's cable in or pulls it.
    #[track_caller]
    pub fn cable(&mut self, nic: &str, plugged: bool) {
        self.execute("set_link", json!({ "name": nic, "up": plugged }));
    }

    /// Presses the power button.
    #[track_caller]
    pub fn press_power_button(&mut self) {
        self.execute("system_powerdown", json!({}));
    }

    /// The next message; none after the deadline.
    fn line(&mut self, deadline: Instant) -> Option<Value> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.get_ref().set_read_timeout(Some(left)).expect("a socket takes a time limit");
            match self.stream.read_until(b'\n', &mut self.partial) {
                Ok(0) => panic!("QEMU closed its monitor"),
                Ok(_) => {
                    let message = serde_json::from_slice(&self.partial);
                    self.partial.clear();
                    return Some(message.expect("QEMU's monitor speaks JSON lines"));
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => panic!("can't read from QEMU's monitor: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// Not left behind when the test fails.
    struct Qemu(Child);

    impl Drop for Qemu {
        fn drop(&mut self) {
            // It has ended already where all is well.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn qemus_monitor_plugs_refuses_and_tells_of_events() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-S",
            "-machine",
            "q35",
            "-nodefaults",
            "-display",
            "none",
            "-device",
            "pcie-root-port,id=slot0",
        ]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        let mut qemu = Qemu(command.spawn().unwrap());
        let mut qmp = Qmp::connect(&socket);
        qmp.plug(json!({ "driver": "virtio-net-pci", "id": "nic0", "bus": "slot0" }));
        qmp.cable("nic0", false);
        let why = qmp.try_execute("device_del", json!({ "id": "nic1" })).unwrap_err();
        assert!(why.contains("nic1"), "{why}");
        qmp.execute("cont", json!({}));
        qmp.until_event("RESUME", ANSWER_LIMIT);
        qmp.execute("quit", json!({}));
        assert_eq!(qmp.until_event("SHUTDOWN", ANSWER_LIMIT)["reason"], "host-qmp-quit");
        assert!(qemu.0.wait().unwrap().success());
    }
}
