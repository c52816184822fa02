//! What the parts of a rack say to each other, and what is said to a rack from outside.
//!
//! - [`rack`]: the rack's API, served by the daemon; spoken by the command and by tests through [`client`].
//! - [`agent`]: what the daemon asks of the agent inside a guest.
//! - [`guest`]: what a guest is told about itself at boot.
//!
//! All three are JSON, one message a line, at most [`MAX_LINE`] bytes.

pub mod agent;
pub mod client;
pub mod guest;
pub mod rack;

/// The longest line either side accepts, in bytes: a peer that never ends its line can't fill our memory.
pub const MAX_LINE: usize = 64 * 1024;
