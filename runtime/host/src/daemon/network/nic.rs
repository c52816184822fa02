//! Which of the rack's network cards belongs to an uplink. The rule, as docs/recipes.md has it: a card that is named by
//! MAC address or name is waited for; `auto` takes the first with a carrier, in order of bus address, USB last.

use std::{fs, path::Path};

use rackstick_image::manifest::Nic;
use rackstick_linux::netlink::Link;

/// A network card, or what stands for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// The link.
    pub link: Link,
    /// Where it is plugged in.
    place: Place,
}

impl Card {
    /// What a person calls it.
    pub fn shown(&self) -> String {
        match self.link.mac {
            Some(mac) => format!("{} ({mac})", self.link.name),
            None => self.link.name.clone(),
        }
    }
}

/// Where a card is plugged in. In order: fixed cards by bus address, then those on USB, then what has no bus.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Bus(String),
    Usb(String),
    Nowhere(String),
}

impl Place {
    /// From the device's path below `/sys`, as `/sys/devices/pci0000:00/0000:00:02.0/virtio0`.
    fn of(name: &str, device: Option<&str>) -> Self {
        match device {
            Some(path) if path.split('/').any(|part| part.starts_with("usb")) => Self::Usb(path.to_owned()),
            Some(path) => Self::Bus(path.to_owned()),
            None => Self::Nowhere(name.to_owned()),
        }
    }
}

/// The cards that a network may have, in the order of the rule.
pub fn candidates(wanted: &Nic, links: &[Link]) -> Vec<Card> {
    let fits = |link: &&Link| match wanted {
        Nic::Auto => link.ethernet && link.kind.is_none() && !wireless(&link.name),
        // The rack's own bridges have the MAC address of their card.
        Nic::Mac(mac) => {
            let own = matches!(link.kind.as_deref(), Some("bridge" | "tun"));
            link.ethernet && !own && link.mac.is_some_and(|own| own.to_string() == *mac)
        }
        Nic::Name(name) => link.name == *name,
    };
    let mut cards: Vec<Card> =
        links.iter().filter(fits).map(|link| Card { place: place(link), link: link.clone() }).collect();
    cards.sort_by(|one, other| one.place.cmp(&other.place));
    cards
}

/// The card to take now; none: wait. A card that was just switched on needs some seconds until its carrier shows:
/// before `settled`, `auto` waits for those that come first.
pub fn choose<'a>(wanted: &Nic, cards: &'a [Card], settled: bool) -> Option<&'a Card> {
    match wanted {
        Nic::Mac(_) | Nic::Name(_) => cards.first(),
        Nic::Auto if settled => cards.iter().find(|card| card.link.carrier),
        Nic::Auto => cards.first().filter(|card| card.link.carrier),
    }
}

/// What a person calls the card that is wanted.
pub fn shown(wanted: &Nic) -> String {
    match wanted {
        Nic::Auto => "a network card with a cable".to_owned(),
        Nic::Mac(mac) => format!("the network card {mac}"),
        Nic::Name(name) => format!("the network card {name}"),
    }
}

fn place(link: &Link) -> Place {
    let device = fs::canonicalize(Path::new("/sys/class/net").join(&link.name).join("device")).ok();
    Place::of(&link.name, device.as_deref().and_then(Path::to_str))
}

/// A wireless card can't be a port of a bridge.
fn wireless(name: &str) -> bool {
    let class = Path::new("/sys/class/net").join(name);
    class.join("phy80211").exists() || class.join("wireless").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(index: u32, device: &str, carrier: bool) -> Card {
        let name = format!("eth{index}");
        let place = Place::of(&name, Some(device));
        let (mac, kind, master) = (None, None, None);
        let link =
            Link { index, name, mac, ethernet: true, kind, up: true, carrier, master, forwards: false, mtu: 1500 };
        Card { link, place }
    }

    /// As the kernel numbered them: the USB card first, then the one in the second slot.
    fn cards(usb: bool, second: bool, first: bool) -> Vec<Card> {
        let mut cards = vec![
            card(0, "/sys/devices/pci0000:00/0000:00:01.0/usb1/1-2/1-2:1.0", usb),
            card(1, "/sys/devices/pci0000:00/0000:00:1c.0/0000:02:00.0", second),
            card(2, "/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0", first),
        ];
        cards.sort_by(|one, other| one.place.cmp(&other.place));
        cards
    }

    #[test]
    fn the_first_card_by_bus_address_is_taken_whatever_the_kernel_numbered_first() {
        let taken = |cards: &[Card], settled| choose(&Nic::Auto, cards, settled).map(|card| card.link.index);
        assert_eq!(taken(&cards(true, true, true), false), Some(2));
        // Its carrier may still come; after a while it won't.
        assert_eq!(taken(&cards(true, true, false), false), None);
        assert_eq!(taken(&cards(true, true, false), true), Some(1));
        assert_eq!(taken(&cards(true, false, false), true), Some(0));
        assert_eq!(taken(&cards(false, false, false), true), None);
    }

    #[test]
    fn a_card_that_is_named_is_taken_without_a_cable_and_a_bridge_with_its_address_is_not() {
        let mac = "52:54:00:12:34:56";
        let mut nic = card(3, "/sys/devices/pci0000:00/0000:00:02.0", false).link;
        nic.mac = Some(mac.parse().unwrap());
        let bridge = Link { index: 2, name: "br-lan".into(), kind: Some("bridge".into()), ..nic.clone() };
        let wanted = Nic::Mac(mac.into());
        let found = candidates(&wanted, &[bridge, nic]);
        assert_eq!(choose(&wanted, &found, false).map(|card| card.link.index), Some(3));
    }
}
