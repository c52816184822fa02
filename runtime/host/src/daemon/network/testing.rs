//! For tests: network namespaces that are this process's own, joined by veth pairs. Needs root, as CI has.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    thread,
};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Moves the calling thread, and those it starts, into a new network namespace with a loopback.
pub fn enter_new() {
    // SAFETY: only the network namespace changes; no file descriptors, memory or credentials.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    run("ip link set lo up");
}

/// Runs a command and returns what it printed; it must succeed.
pub fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A namespace with one interface `eth0`, whose other end is in the namespace of the thread that made it.
pub struct Machine {
    holder: Child,
}

impl Machine {
    /// A machine with this address (with prefix length) and default gateway on `eth0`; the other end of its cable is
    /// called `cable`, and is a port of `bridge` if there is one.
    pub fn new(cable: &str, bridge: Option<&str>, address: &str, gateway: Option<&str>) -> Self {
        let holder = Command::new("unshare").args(["-n", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut machine = Self { holder: holder.unwrap() };
        machine.wait_until_apart();
        let pid = machine.holder.id();
        run(&format!("ip link add {cable} type veth peer name eth0 netns {pid}"));
        if let Some(bridge) = bridge {
            run(&format!("ip link set {cable} master {bridge}"));
        }
        run(&format!("ip link set {cable} up"));
        machine.run("ip link set lo up");
        machine.run(&format!("ip addr add {address} dev eth0"));
        machine.run("ip link set eth0 up");
        if let Some(gateway) = gateway {
            machine.run(&format!("ip route add default via {gateway}"));
        }
        machine
    }

    /// `cat` answers only once `unshare` has become it.
    fn wait_until_apart(&mut self) {
        use std::io::{Read, Write};
        self.holder.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let mut echo = [0];
        self.holder.stdout.as_mut().unwrap().read_exact(&mut echo).unwrap();
    }

    /// Runs a command on the machine.
    pub fn run(&self, command: &str) -> String {
        run(&format!("nsenter -t {} -n {command}", self.holder.id()))
    }

    /// Whether a command on the machine succeeds.
    pub fn succeeds(&self, command: &str) -> bool {
        let id = self.holder.id().to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-t", &id, "-n"]).args(command.split_whitespace());
        nsenter.stdout(Stdio::null()).status().unwrap().success()
    }

    /// Starts a command on the machine.
    pub fn start(&self, command: &str) -> Child {
        let id = self.holder.id().to_string();
        let words = command.split_whitespace();
        Command::new("nsenter").args(["-t", &id, "-n"]).args(words).spawn().unwrap()
    }

    /// Does something with sockets on the machine.
    pub fn on<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let joined = scope.spawn(|| {
                let namespace = File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind).unwrap();
                act()
            });
            joined.join().unwrap()
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The namespace goes with its last process.
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}
