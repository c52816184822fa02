//! How long the parts of coming up took: told to the main loop, kept for the next daemon, said in one line.

use std::{env, fs, io, path::Path, sync::mpsc::Sender};

use rackstick_api::rack::{Part, Phase};
use rackstick_linux::efi;
use rustix::time::{ClockId, clock_gettime};

use super::Event;
use crate::STARTED;

/// The parts are timed once a boot; a daemon that was started again finds them here.
const RECORD: &str = "/run/rackstick/boot.json";

/// Milliseconds since the kernel's clock began.
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Times one part from where it is made.
pub struct Watch {
    events: Sender<Event>,
    part: Part,
    began_ms: u64,
}

impl Watch {
    /// The part begins.
    pub fn begin(events: &Sender<Event>, part: Part) -> Self {
        Self { events: events.clone(), part, began_ms: now_ms() }
    }

    /// The part is over.
    pub fn end(self) {
        let took_ms = Some(now_ms().saturating_sub(self.began_ms));
        // The main loop is gone only when the daemon ends.
        let _ = self.events.send(Event::Phase(Phase { part: self.part, began_ms: self.began_ms, took_ms }));
    }
}

/// The parts before the daemon. Reads EFI variables, which takes a moment.
pub fn tell_earlier(events: &Sender<Event>) {
    let (firmware, loader) = loader_times().unwrap_or_else(|error| {
        log::warn!("what the boot loader says of its times can't be read: {error}");
        (None, None)
    });
    for (part, took_ms) in [(Part::Firmware, firmware), (Part::Loader, loader), (Part::Kernel, kernel_ms())] {
        // As above.
        let _ = events.send(Event::Phase(Phase { part, began_ms: 0, took_ms }));
    }
}

/// Until PID 1 started, as PID 1 says; none if something else started the daemon.
fn kernel_ms() -> Option<u64> {
    env::var(STARTED).ok()?.parse().ok()
}

/// How long firmware and loader took. Both are said in microseconds since power-on, as the processor counts them.
fn loader_times() -> io::Result<(Option<u64>, Option<u64>)> {
    if !efi::mount_variables().map_err(io::Error::other)? {
        return Ok((None, None));
    }
    let at = |name| Ok::<_, io::Error>(efi::loader_variable(name)?.and_then(|text| text.parse::<u64>().ok()));
    let (began, ended) = (at("LoaderTimeInitUSec")?, at("LoaderTimeExecUSec")?);
    let loader = began.zip(ended).and_then(|(began, ended)| ended.checked_sub(began));
    Ok((began.map(|us| us / 1000), loader.map(|us| us / 1000)))
}

/// The parts as far as they are over.
#[derive(Default)]
pub struct Boot {
    phases: Vec<Phase>,
    said: bool,
}

impl Boot {
    /// What an earlier daemon of this boot has timed.
    pub fn load() -> Self {
        match fs::read(RECORD).map(|text| serde_json::from_slice(&text)) {
            Ok(Ok(phases)) => Self { phases, said: true },
            Ok(Err(error)) => {
                log::warn!("{RECORD} can't be understood: {error}");
                Self::default()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                log::warn!("{RECORD} can't be read: {error}");
                Self::default()
            }
        }
    }

    /// The parts, in the order in which they ended.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// A part is over. Says all in one line once the parts are complete; `guests`: whether a guest is among them.
    pub fn add(&mut self, phase: Phase, guests: bool) {
        if self.said || self.phases.iter().any(|known| known.part == phase.part) {
            return;
        }
        self.phases.push(phase);
        let mut all = vec![
            Part::Firmware,
            Part::Loader,
            Part::Kernel,
            Part::Drivers,
            Part::LateDrivers,
            Part::Data,
            Part::Networks,
        ];
        all.extend(guests.then_some(Part::FirstGuest));
        let Some(line) = line(&self.phases, &all) else { return };
        self.said = true;
        log::info!("{line}");
        let saved = serde_json::to_vec(&self.phases).map_err(io::Error::other).and_then(|text| {
            fs::create_dir_all(Path::new(RECORD).parent().unwrap_or(Path::new("/")))?;
            fs::write(RECORD, text)
        });
        if let Err(error) = saved {
            log::warn!("{RECORD} can't be written: {error}");
        }
    }
}

/// One line about `all` parts; none before they are complete.
fn line(phases: &[Phase], all: &[Part]) -> Option<String> {
    let parts: Vec<&Phase> =
        all.iter().map(|part| phases.iter().find(|phase| phase.part == *part)).collect::<Option<_>>()?;
    let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
    let told = parts.iter().map(|phase| {
        let took = phase.took_ms.map_or_else(|| "not told".to_owned(), seconds);
        format!("{} {took}", name(phase.part))
    });
    let told: Vec<String> = told.collect();
    let first = parts.iter().find(|phase| phase.part == Part::FirstGuest);
    let total = first.map_or_else(
        || "came up".to_owned(),
        |first| {
            format!(
                "first guest started {} after the kernel began",
                seconds(first.began_ms + first.took_ms.unwrap_or(0))
            )
        },
    );
    Some(format!("{total}: {}", told.join(", ")))
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Firmware => "firmware",
        Part::Loader => "loader",
        Part::Kernel => "kernel",
        Part::Drivers => "drivers",
        Part::LateDrivers => "late drivers",
        Part::Data => "data",
        Part::Networks => "networks",
        Part::FirstGuest => "first guest",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_told_is_said_to_be_so_and_nothing_is_said_too_early() {
        let phase = |part, began_ms, took_ms| Phase { part, began_ms, took_ms };
        let mut phases = vec![phase(Part::Firmware, 0, None), phase(Part::Kernel, 0, Some(1900))];
        let all = [Part::Firmware, Part::Kernel, Part::FirstGuest];
        assert_eq!(line(&phases, &all), None);
        phases.push(phase(Part::FirstGuest, 7000, Some(340)));
        let said = line(&phases, &all).unwrap();
        assert_eq!(
            said,
            "first guest started 7.3 s after the kernel began: firmware not told, kernel 1.9 s, first guest 0.3 s"
        );
    }
}
