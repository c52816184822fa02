//! Ring 3: `recipes/hosting.toml`: every tenant serves its own site, and none reaches another.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeSet, fs, time::Duration};

use rackstick_api::rack::Request;
use rackstick_tests::{
    client::curl,
    image::Image,
    place,
    rack::{Options, Rack},
    recipe::Recipes,
    tool,
};

/// In the order of their networks and ports.
const TENANTS: [&str; 8] = ["ada", "bela", "cleo", "dino", "emil", "fay", "gus", "hal"];
/// How long eight guests may take on two emulated CPUs that may have other work.
const EIGHT_GUESTS_LIMIT: Duration = Duration::from_secs(900);
/// How long a round of the probe may take: each connection that nobody answers takes 20 s, all of them at once.
const ROUND_LIMIT: Duration = Duration::from_secs(300);
/// The first and the last tenant say over and over to which of all tenants and of the rack's addresses it can connect.
const PROBE: &str = r#"
[[files]]
path    = "/usr/local/bin/probe"
mode    = 0o755
content = '''
#!/bin/bash
for ((round = 1; ; round++)); do
    reached=$(for ((n = 1; n <= 8; n++)); do
        for place in 10.21.$n.2/80 10.21.$n.1/53; do
            (timeout 20 bash -c "exec 3<>/dev/tcp/$place" 2>/dev/null && echo $place) &
        done
    done; wait)
    echo "probe: round $round reaches" $(sort <<< "$reached") "of all."
done
'''

[[files]]
path    = "/etc/systemd/system/probe.service"
content = '''
[Unit]
ConditionHost=|ada
ConditionHost=|hal
[Service]
ExecStart=/usr/local/bin/probe
StandardOutput=journal+console
[Install]
WantedBy=multi-user.target
'''
"#;

fn build() -> Image {
    let recipes = Recipes::copy();
    recipes.edit("images/tenant.toml", "services = [\"site\"]", "services = [\"probe\", \"site\"]");
    let image = recipes.path("images/tenant.toml");
    fs::write(&image, fs::read_to_string(&image).unwrap() + PROBE).unwrap();
    let out = place::test_folder("images/hosting");
    tool::output(tool::rackstick().arg("build").arg(recipes.path("hosting.toml")).arg("-o").arg(&out));
    Image::only_one_in(&out)
}

/// The last round that a tenant's probe has ended, and what it reached.
fn last_round(rack: &Rack, tenant: &str) -> Option<(u32, BTreeSet<String>)> {
    let console = rack.client().text(Request::Console { guest: tenant.into() }).ok()?;
    let (_, line) = console[..console.rfind(" of all.")?].rsplit_once("probe: round ")?;
    let (round, reached) = line.split_once(" reaches")?;
    Some((round.parse().ok()?, reached.split_ascii_whitespace().map(str::to_owned).collect()))
}

#[test]
#[ignore = "for ci/soak labs"]
fn every_tenant_serves_its_own_site_and_reaches_no_other_tenant() {
    let mut rack = Rack::start("hosting", &build(), Options::default());
    let status = rack.until_healthy_within(EIGHT_GUESTS_LIMIT);
    assert_eq!((status.guests.len(), status.problems.as_slice()), (TENANTS.len(), [].as_slice()));

    for (tenant, port) in TENANTS.into_iter().zip(8001..) {
        let site = place::clone().join(format!("recipes/images/tenant/{tenant}/index.html"));
        let page = curl(rack.address(&format!("{port}/tcp")), "/");
        assert_eq!(page, Ok(fs::read_to_string(site).unwrap()), "{tenant}");
    }

    // All of them listen now. A round that begins after this one has had all to find.
    for (tenant, number) in [("ada", 1), ("hal", 8)] {
        let what = format!("a round of the probe of {tenant}");
        let (before, _) = rack.until(&what, ROUND_LIMIT, |rack| last_round(rack, tenant));
        let reached = rack.until(&what, ROUND_LIMIT, |rack| {
            let (round, reached) = last_round(rack, tenant)?;
            (round >= before + 2).then_some(reached)
        });
        let own = [format!("10.21.{number}.1/53"), format!("10.21.{number}.2/80")];
        assert_eq!(reached, BTreeSet::from(own), "{tenant} reaches itself and its gateway, so the probe works");
    }
    rack.power_off();
}
