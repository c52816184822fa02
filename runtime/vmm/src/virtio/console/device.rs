//! The console's two queues (5.3.2): input to the guest, output from it.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Output;
use crate::virtio::{Activation, Device, DeviceError, QueueError, Queues};

const ID: u16 = 3;
const QUEUE_SIZES: &[u16] = &[64, 64];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Most bytes taken at once from either side.
const CHUNK: usize = 4096;
/// Most bytes of one chain that are printed; a chain of gigabytes would keep the event loop from other devices.
const MAX_OUTPUT: usize = 64 * 1024;

/// The device.
pub struct Console {
    output: Output,
    input: Option<io::Stdin>,
    /// Read, but not yet taken by the guest.
    waiting: VecDeque<u8>,
    output_failed: bool,
    queues: Queues,
}

impl Console {
    /// A console that prints to `output`, with standard input as its input if `stdin` says so.
    pub fn new(output: Output, stdin: bool) -> Self {
        Self {
            output,
            input: stdin.then(io::stdin),
            waiting: VecDeque::new(),
            output_failed: false,
            queues: Queues::default(),
        }
    }

    fn transmit(&mut self) -> Result<(), QueueError> {
        let Self { output, output_failed, queues, .. } = self;
        let Some(queue) = queues.get(TRANSMIT) else { return Ok(()) };
        queue.serve(|mut chain| {
            let mut text = chain.readable.split_front(MAX_OUTPUT);
            let mut bytes = [0; CHUNK];
            while !text.is_empty() {
                let length = text.split_front(CHUNK).copy_to(&mut bytes);
                let done = output.write(&bytes[..length]);
                // A full disk must not stop the guest: what it prints is lost, and that is said once.
                if let (Err(error), false) = (&done, *output_failed) {
                    log::error!("console output is lost: {error}");
                }
                *output_failed = done.is_err();
            }
            0
        })
    }

    fn receive(&mut self) -> Result<(), DeviceError> {
        let Self { waiting, input, queues, .. } = self;
        let Some(queue) = queues.get(RECEIVE) else { return Ok(()) };
        let ram = queue.ram();
        loop {
            if waiting.is_empty() {
                let mut bytes = [0; CHUNK];
                let length = read_ready(input, &mut bytes)?;
                waiting.extend(&bytes[..length]);
            }
            if waiting.is_empty() {
                break;
            }
            let Some(chain) = queue.pop(&ram)? else {
                // None yet: the driver notifies us when it has added one.
                if queue.want_kick()? {
                    continue;
                }
                break;
            };
            let taken = chain.writable.copy_from(waiting.make_contiguous());
            waiting.drain(..taken);
            queue.add_used(chain.head, taken as u32)?;
        }
        queue.notify()?;
        Ok(())
    }
}

/// Reads what is there without waiting; nothing at the end of input, which closes it.
fn read_ready(input: &mut Option<io::Stdin>, bytes: &mut [u8]) -> Result<usize, DeviceError> {
    let Some(stdin) = input else { return Ok(0) };
    let failed =
        |source: rustix::io::Errno| DeviceError::Host { what: "reading standard input", source: source.into() };
    let mut fds = [PollFd::new(stdin, PollFlags::IN)];
    if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_err(failed)? == 0 {
        return Ok(0);
    }
    let length = rustix::io::read(&*stdin, bytes).map_err(failed)?;
    if length == 0 {
        *input = None;
    }
    Ok(length)
}

impl Device for Console {
    fn name(&self) -> &str {
        "console"
    }
    fn id(&self) -> u16 {
        ID
    }
    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }
    fn features(&self) -> u64 {
        0
    }
    fn config(&self) -> &[u8] {
        // All fields belong to features that are not offered.
        &[0; 12]
    }
    fn activate(&mut self, start: Activation) -> Result<(), DeviceError> {
        self.queues = start.queues;
        Ok(())
    }
    fn handle_queue(&mut self, index: usize) -> Result<(), DeviceError> {
        match index {
            TRANSMIT => Ok(self.transmit()?),
            _ => self.receive(),
        }
    }
    fn backend(&self) -> Option<RawFd> {
        self.input.as_ref().map(AsRawFd::as_raw_fd)
    }
    fn handle_backend(&mut self) -> Result<(), DeviceError> {
        self.receive()
    }
    fn reset(&mut self) {
        self.queues = Queues::default();
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::virtio::testing::{Driver, Part, RAM};

    #[test]
    fn what_the_guest_prints_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let mut console = Console::new(Output::file(&path, 64).unwrap(), false);
        let mut driver = Driver::new(TRANSMIT);
        driver.start(&mut console, 0);
        driver.submit(&[Part::Out(b"hello, "), Part::Out(b"world"), Part::Out(b"\n")]);
        driver.submit(&[Part::In(100)]);
        console.handle_queue(TRANSMIT).unwrap();
        assert_eq!([driver.finished(), driver.finished()], [Some(0), Some(0)]);
        assert_eq!(fs::read(&path).unwrap(), b"hello, world\n");
    }

    #[test]
    fn buffers_outside_of_memory_are_given_back_and_lose_no_other_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let mut console = Console::new(Output::file(&path, 64).unwrap(), false);
        let mut output = Driver::new(TRANSMIT);
        output.start(&mut console, 0);
        output.submit(&[Part::Out(b"half"), Part::OutAt(RAM, 4)]);
        output.submit(&[Part::Out(b"whole\n")]);
        console.handle_queue(TRANSMIT).unwrap();
        assert_eq!([output.finished(), output.finished()], [Some(0), Some(0)]);
        assert_eq!(fs::read(&path).unwrap(), b"whole\n");
        let mut input = Driver::new(RECEIVE);
        input.start(&mut console, 0);
        console.waiting.extend(b"typed");
        input.submit(&[Part::InAt(RAM, 8)]);
        let buffer = input.submit(&[Part::In(8)])[0];
        console.handle_queue(RECEIVE).unwrap();
        assert_eq!([input.finished(), input.finished()], [Some(0), Some(5)]);
        assert_eq!(input.bytes(buffer, 5), b"typed");
    }

    #[test]
    fn a_file_that_can_not_be_written_does_not_stop_the_guest() {
        let mut console = Console::new(Output::file("/dev/full".as_ref(), 64).unwrap(), false);
        let mut driver = Driver::new(TRANSMIT);
        driver.start(&mut console, 0);
        for _ in 0..40 {
            driver.submit(&[Part::Out(b"lost")]);
            console.handle_queue(TRANSMIT).unwrap();
            assert_eq!(driver.finished(), Some(0));
        }
    }

    #[test]
    fn what_waits_for_the_guest_is_spread_over_its_buffers() {
        let mut console = Console::new(Output::Stdout, false);
        let mut driver = Driver::new(RECEIVE);
        driver.start(&mut console, 0);
        console.waiting.extend(b"abcdef");
        let first = driver.submit(&[Part::In(4)])[0];
        console.handle_queue(RECEIVE).unwrap();
        let second = driver.submit(&[Part::In(4)])[0];
        console.handle_queue(RECEIVE).unwrap();
        assert_eq!([driver.finished(), driver.finished(), driver.finished()], [Some(4), Some(2), None]);
        assert_eq!((driver.bytes(first, 4), driver.bytes(second, 2)), (b"abcd".to_vec(), b"ef".to_vec()));
    }
}
