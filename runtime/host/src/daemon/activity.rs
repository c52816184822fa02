//! What is going on now, told to the main loop: it begins when this is made and is over when this is dropped, however
//! the code between ends.

use std::sync::mpsc::Sender;

use super::Event;

/// Something that goes on as long as this lives.
pub struct Doing<'a> {
    events: &'a Sender<Event>,
    about: &'static str,
}

impl<'a> Doing<'a> {
    /// It begins. `about` tells it from what else goes on; `what` is for people, as `loading drivers`.
    pub fn begin(events: &'a Sender<Event>, about: &'static str, what: &str) -> Self {
        // The main loop is gone only when the daemon ends.
        let _ = events.send(Event::Activity(about.into(), Some(what.into())));
        Self { events, about }
    }
}

impl Drop for Doing<'_> {
    fn drop(&mut self) {
        // As above.
        let _ = self.events.send(Event::Activity(self.about.into(), None));
    }
}
