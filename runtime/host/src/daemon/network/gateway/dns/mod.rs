//! The name server of private networks: guests' names from the recipe, everything else from the uplink's resolvers,
//! whose answers pass through byte for byte. One thread for UDP and one for TCP for each network: a guest that floods
//! its own network's does not touch another's.

mod answer;
pub mod tcp;
pub mod udp;
mod upstream;

use std::sync::{Arc, Mutex, PoisonError};

use super::config::Config;
use answer::View;

/// What each network sees at the moment.
pub struct Views(Mutex<Vec<Arc<View>>>);

impl Views {
    /// As the configuration says.
    pub fn new(config: &Config) -> Self {
        Self(Mutex::new(views(config)))
    }

    /// From now on as this configuration says.
    pub fn update(&self, config: &Config) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = views(config);
    }

    /// What the network with this index sees; none if there is no such network any more.
    fn of(&self, index: usize) -> Option<Arc<View>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(index).cloned()
    }
}

fn views(config: &Config) -> Vec<Arc<View>> {
    config.networks.iter().map(|net| Arc::new(View::new(&config.domain, net))).collect()
}
