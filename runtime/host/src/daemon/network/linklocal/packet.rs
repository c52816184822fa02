//! ARP for IPv4 over Ethernet (RFC 826), as RFC 5227 uses it: always broadcast.

use std::net::Ipv4Addr;

use rackstick_linux::netlink::Mac;

/// Bytes of a frame: Ethernet's head, then ARP's fixed size.
pub const FRAME: usize = 14 + 28;
/// ETH_P_ARP.
pub const ETHERTYPE: u16 = 0x0806;
/// Ethernet, IPv4, and the sizes of their addresses.
const KINDS: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u16 = 1;

/// An ARP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arp {
    /// Whether it is a question.
    pub request: bool,
    /// Who says it.
    pub mac: Mac,
    /// The sender's address; 0.0.0.0 in a probe.
    pub sender: Ipv4Addr,
    /// The address it is about.
    pub target: Ipv4Addr,
}

impl Arp {
    /// The question whether somebody has the address (RFC 5227 section 2.1.1).
    pub fn probe(mac: Mac, address: Ipv4Addr) -> Self {
        Self { request: true, mac, sender: Ipv4Addr::UNSPECIFIED, target: address }
    }

    /// Says that the address is taken (RFC 5227 section 2.3).
    pub fn announcement(mac: Mac, address: Ipv4Addr) -> Self {
        Self { request: true, mac, sender: address, target: address }
    }

    /// Whether it is a probe.
    pub fn is_probe(&self) -> bool {
        self.request && self.sender.is_unspecified()
    }

    /// The frame to everyone.
    pub fn frame(&self) -> Vec<u8> {
        let operation: u16 = if self.request { REQUEST } else { 2 };
        let mut frame = Vec::with_capacity(FRAME);
        frame.extend([0xff; 6]);
        frame.extend(self.mac.0);
        frame.extend(ETHERTYPE.to_be_bytes());
        frame.extend(KINDS);
        frame.extend(operation.to_be_bytes());
        frame.extend(self.mac.0);
        frame.extend(self.sender.octets());
        frame.extend([0; 6]);
        frame.extend(self.target.octets());
        frame
    }

    /// Reads a frame; none if it is not ARP for IPv4 over Ethernet. What follows is padding.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(14..FRAME)?;
        if frame.get(12..14)? != ETHERTYPE.to_be_bytes() || packet.get(..6)? != KINDS {
            return None;
        }
        let address = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(|octets: [u8; 4]| octets.into());
        Some(Self {
            request: packet.get(6..8)? == REQUEST.to_be_bytes(),
            mac: Mac(packet.get(8..14)?.try_into().ok()?),
            sender: address(14)?,
            target: address(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_back_and_a_cut_one_is_not() {
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        for packet in [Arp::probe(mac, [169, 254, 7, 8].into()), Arp::announcement(mac, [169, 254, 7, 8].into())] {
            let frame = packet.frame();
            assert_eq!(Arp::parse(&frame), Some(packet));
            for length in 0..frame.len() {
                assert_eq!(Arp::parse(&frame[..length]), None);
            }
        }
    }
}
