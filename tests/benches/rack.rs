//! From packages to an image, and from power-on to a healthy rack: the figures that a newcomer feels.

#![allow(clippy::expect_used)]

use std::{fs, process::Command, time::Instant};

use rackstick_api::rack::Part;
use rackstick_tests::{
    bench::{Measure, report},
    image::Image,
    place,
    rack::{Options, Rack},
    tool,
};

/// Interleaved, so that another load on this machine strikes both measures.
const RUNS: usize = 3;

fn main() {
    let (mut build, mut boot, mut memory, mut size) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut kernel, mut first_guest) = (Vec::new(), Vec::new());
    // Fetches the packages, which no run measures.
    Image::lab();
    for run in 0..RUNS {
        let (caches, out) = (place::caches_without_layers(), place::test_folder("bench-image"));
        let mut command = tool::rackstick();
        command.arg("build").arg(place::clone().join("recipes/lab.toml")).arg("-o").arg(&out);
        let started = Instant::now();
        tool::output(command.env("RACKSTICK_CACHE", caches.path()));
        build.push(started.elapsed().as_secs_f64());
        let image = Image::only_one_in(&out);
        let allocated = tool::output(Command::new("du").args(["--block-size=1", "--summarize"]).arg(&image.path));
        size.extend(allocated.split_ascii_whitespace().next().and_then(|bytes| bytes.parse::<f64>().ok()));

        let mut rack = Rack::start(&format!("bench-{run}"), &image, Options::default());
        let status = rack.until_healthy();
        boot.push(rack.seconds());
        println!("{}", rack.boot(&status));
        let end = |part| {
            status.boot.iter().find(|phase| phase.part == part).map(|phase| phase.began_ms + phase.took_ms.unwrap_or(0))
        };
        kernel.extend(end(Part::Kernel).map(|ms| ms as f64 / 1e3));
        first_guest.extend(end(Part::FirstGuest).map(|ms| ms as f64 / 1e3));
        memory.push(status.host_memory_kib as f64 / 1024.0);
        rack.power_off();
        fs::remove_dir_all(&out).expect("what was made can be removed");
    }
    size.iter_mut().for_each(|bytes| *bytes /= f64::from(1 << 20));
    report(
        "rack",
        &[
            Measure::median("packages to image", build, "s", "<= 60"),
            Measure::median("image on disk", size, "MiB", ""),
            Measure::median("power-on to all guests healthy", boot, "s", "<= 240"),
            Measure::median("of that, kernel until PID 1", kernel, "s", ""),
            Measure::median("kernel to first guest started", first_guest, "s", "<= 10"),
            Measure::median("host memory without guests", memory, "MiB", "<= 128"),
        ],
    );
}
