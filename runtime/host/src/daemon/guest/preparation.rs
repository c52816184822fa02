//! The preparation of a guest's volumes, in a thread of its own: it writes to the disk, and a slow stick may take its
//! time for that without the main loop standing still.

use std::{io, mem, panic, path::Path, sync::mpsc::Sender, thread, time::Instant};

use rackstick_image::manifest;

use super::volumes::{self, Ready};
use crate::daemon::Event;

/// How far it is.
#[derive(Debug, Default)]
pub enum Preparation {
    /// Not asked for.
    #[default]
    None,
    /// A thread is at it since then. It can't be called off, and there is never a second one.
    Running(Instant),
    /// The volumes can be used.
    Done(Vec<Ready>),
}

impl Preparation {
    /// Since when it goes on, if it does.
    pub fn since(&self) -> Option<Instant> {
        match self {
            Self::Running(since) => Some(*since),
            Self::None | Self::Done(_) => None,
        }
    }

    /// The volumes, for one start of the guest, or none as long as they are not ready. Begins the preparation if nobody
    /// has: its end is an [`Event::Volumes`].
    pub fn take(
        &mut self,
        base: &Path,
        spec: &manifest::Guest,
        disk: Option<&manifest::Disk>,
        (index, uid): (usize, u32),
        events: &Sender<Event>,
        now: Instant,
    ) -> io::Result<Option<Vec<Ready>>> {
        match mem::take(self) {
            Self::Done(ready) => return Ok(Some(ready)),
            Self::None if spec.volumes.is_empty() && disk.is_none() => return Ok(Some(Vec::new())),
            Self::None => {
                let (base, spec, disk, events) = (base.to_owned(), spec.clone(), disk.cloned(), events.clone());
                thread::Builder::new().name(format!("volumes {}", spec.name)).spawn(move || {
                    // A guest whose thread has ended without a word would wait for ever.
                    let prepared = panic::catch_unwind(|| volumes::prepare(&base, &spec, disk.as_ref(), uid))
                        .unwrap_or_else(|_| Err(volumes::Error::Panicked(spec.name.clone())));
                    // The main loop is gone only when the daemon ends.
                    let _ = events.send(Event::Volumes { index, prepared });
                })?;
                *self = Self::Running(now);
            }
            running @ Self::Running(_) => *self = running,
        }
        Ok(None)
    }

    /// Forgets volumes that are ready: at the guest's next start they are looked at again.
    pub fn forget(&mut self) {
        if matches!(self, Self::Done(_)) {
            *self = Self::None;
        }
    }
}
