//! The machine's screen, for whoever stands before it: an overview on the first virtual terminal, drawn from the same
//! status that the API gives, and the log on the second. It is a client of the main loop like any other; a terminal
//! that stands still (Scroll Lock) stops nothing but this.

mod frame;
mod kernel_log;
mod terminal;
mod text;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use rackstick_api::rack::{Request, Response, Status};

use self::terminal::Terminal;
pub use frame::Style;

use super::Event;

/// The virtual terminal of the overview; the kernel begins with it.
pub const OVERVIEW: usize = 1;
/// The virtual terminal of the log.
pub const LOG: usize = 2;

/// How often the overview is looked at anew: times on it are in seconds.
const TICK: Duration = Duration::from_secs(1);
/// A main loop that has not answered for so long is reported.
const PATIENCE: Duration = Duration::from_secs(5);

/// The screen, while the daemon is starting; nothing on a machine that has none.
pub struct Screen(Option<Terminal>);

impl Screen {
    /// Takes the screen.
    pub fn take() -> Self {
        match Terminal::open(OVERVIEW) {
            Ok(terminal) => Self(Some(terminal)),
            Err(error) => {
                log::warn!("there is no screen: terminal {OVERVIEW} can't be opened: {error}");
                Self(None)
            }
        }
    }

    /// Shows one thing and nothing else.
    pub fn notice(&mut self, about: &str, what: &str, style: Style) {
        let Some(terminal) = &mut self.0 else { return };
        let size = terminal.size();
        if let Err(error) = terminal.draw(&frame::notice(about, what, style, size)) {
            log::warn!("the screen can't be drawn: {error}");
        }
    }

    /// From now on shows how the rack is, and the log on the other terminal.
    pub fn follow(self, events: &Sender<Event>) -> io::Result<()> {
        let Some(mut overview) = self.0 else { return Ok(()) };
        let log = Terminal::open(LOG)?;
        for keys in [overview.keys()?, log.keys()?] {
            thread::Builder::new().name("screen keys".into()).spawn(move || terminal::follow_keys(keys))?;
        }
        let disturbed = Arc::new(AtomicBool::new(false));
        let notice = disturbed.clone();
        thread::Builder::new().name("screen log".into()).spawn(move || {
            let Err(error) = kernel_log::follow(log, || notice.store(true, Ordering::Relaxed));
            log::warn!("the screen shows no log any more: {error}");
        })?;
        let events = events.clone();
        thread::Builder::new().name("screen".into()).spawn(move || {
            if let Err(error) = draw_for_ever(&mut overview, &events, &disturbed) {
                log::warn!("the screen can't be drawn any more: {error}");
            }
        })?;
        Ok(())
    }
}

/// Ends with the daemon, or when the terminal is gone.
fn draw_for_ever(terminal: &mut Terminal, events: &Sender<Event>, disturbed: &AtomicBool) -> io::Result<()> {
    let mut last: Option<Status> = None;
    let mut draw = |status: &Status, silent_s| {
        if disturbed.swap(false, Ordering::Relaxed) {
            terminal.forget();
        }
        let size = terminal.size();
        terminal.draw(&frame::overview(status, silent_s, size))
    };
    loop {
        let asked = Instant::now();
        let (reply, answer) = channel();
        if events.send(Event::Api(Request::Status, reply)).is_err() {
            return Ok(());
        }
        let status = loop {
            match answer.recv_timeout(TICK) {
                Ok(Response::Status(status)) => break *status,
                Ok(_) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(status) = &last
                        && asked.elapsed() >= PATIENCE
                    {
                        draw(status, Some(asked.elapsed().as_secs()))?;
                    }
                }
            }
        };
        draw(&status, None)?;
        last = Some(status);
        // The overview's clock.
        thread::sleep(TICK);
    }
}
