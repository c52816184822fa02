//! Ring 3: `recipes/spare-pc.toml`, a rack without guests.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use rackstick_tests::{
    image::Image,
    rack::{BOOT_LIMIT, Options, Rack},
};

#[test]
#[ignore = "for ci/soak labs"]
fn a_rack_without_guests_comes_up_has_nothing_to_complain_of_and_says_that_it_has_none() {
    let mut rack = Rack::start("spare-pc", Image::spare_pc(), Options { screen: true, ..Options::default() });
    let status = rack.until_status("the rack to be up", BOOT_LIMIT, |status| {
        status.activities.is_empty() && status.data.is_some() && !status.addresses.is_empty()
    });
    assert_eq!((status.rack.as_str(), status.problems.as_slice()), ("spare-pc", [].as_slice()));
    assert!(status.guests.is_empty(), "{status:?}");
    rack.until_console("rackstick: this rack has no guests", Duration::from_secs(10));
    rack.until_screen("Guests     none, the recipe names none", Duration::from_secs(60));
    rack.power_off();
}
