//! Where connections go under each rule.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::pod::*;
use crate::support::namespace_tests;

namespace_tests! {
    fn what_comes_from_outside_goes_to_the_inbound_side() {
        in_each_pod(|_| {}, |pod, at| {
            for to in [
                SocketAddr::new(at.pod, WORKLOAD),
                SocketAddr::new(at.pod_second, WORKLOAD),
                SocketAddr::new(at.pod, POD_ADDRESS_ONLY),
                SocketAddr::new(at.pod, LOOPBACK_ONLY),
                SocketAddr::new(at.pod, 7),
            ] {
                let answer = pod.dial_from_outside(to).unwrap();
                answer.assert("inbound", to);
                assert_eq!(answer.peer, at.outside.to_string());
            }
        });
    }

    fn of_the_proxy_only_metrics_and_health_are_reached_from_outside() {
        in_each_pod(|_| {}, |pod, at| {
            for (port, by) in [(15020, "metrics"), (15021, "health"), (15000, "inbound"), (15001, "inbound"), (15006, "inbound")] {
                let to = SocketAddr::new(at.pod, port);
                pod.dial_from_outside(to).unwrap().assert(by, to);
            }
        });
    }

    fn excluded_inbound_ports_are_reached_without_the_proxy() {
        in_each_pod(|settings| settings.skip_inbound_ports = [WORKLOAD].into(), |pod, at| {
            for (port, by) in [(WORKLOAD, "workload"), (POD_ADDRESS_ONLY, "inbound")] {
                let to = SocketAddr::new(at.pod, port);
                pod.dial_from_outside(to).unwrap().assert(by, to);
            }
        });
    }

    fn what_the_workload_sends_goes_to_the_outbound_side() {
        in_each_pod(|_| {}, |pod, at| {
            for to in [
                SocketAddr::new(at.outside, FOREIGN),
                SocketAddr::new(at.far, FOREIGN),
                SocketAddr::new(at.behind, FOREIGN),
                SocketAddr::new(at.far, 7),
            ] {
                pod.dial(Caller::Workload, None, to).unwrap().assert("outbound", to);
            }
        });
    }

    fn excluded_ports_and_blocks_and_metadata_services_are_reached_without_the_proxy() {
        let change = |settings: &mut outrigger_iptables::Settings| {
            settings.skip_outbound_ports = [FOREIGN_EXCLUDED].into();
            settings.skip_outbound_cidrs = ["192.168.5.0/24", "fd55::/16"].map(|block| block.parse().unwrap()).into();
        };
        in_each_pod(change, |pod, at| {
            for (address, port, by) in [
                (at.far, FOREIGN_EXCLUDED, "outside"),
                (at.excluded, FOREIGN, "outside"),
                (at.metadata, FOREIGN, "outside"),
                (at.far, FOREIGN, "outbound"),
            ] {
                let to = SocketAddr::new(address, port);
                pod.dial(Caller::Workload, None, to).unwrap().assert(by, to);
            }
        });
    }

    fn a_workload_that_calls_itself_is_left_alone() {
        in_each_pod(|_| {}, |pod, at| {
            for address in [at.loopback, at.pod, at.pod_second] {
                let to = SocketAddr::new(address, WORKLOAD);
                pod.dial(Caller::Workload, None, to).unwrap().assert("workload", to);
            }
        });
    }

    fn the_proxys_own_traffic_leaves_the_pod_as_it_is() {
        in_each_pod(|_| {}, |pod, at| {
            for caller in [Caller::Proxy, Caller::ProxyGroup] {
                let to = SocketAddr::new(at.far, FOREIGN);
                pod.dial(caller, None, to).unwrap().assert("outside", to);
                let to = SocketAddr::new(at.loopback, WORKLOAD);
                pod.dial(caller, None, to).unwrap().assert("workload", to);
            }
        });
    }

    fn the_proxys_own_traffic_to_the_pods_address_enters_by_the_inbound_side() {
        in_each_pod(|_| {}, |pod, at| {
            for caller in [Caller::Proxy, Caller::ProxyGroup] {
                for address in [at.pod, at.pod_second] {
                    let to = SocketAddr::new(address, WORKLOAD);
                    pod.dial(caller, None, to).unwrap().assert("inbound", to);
                }
            }
        });
    }

    fn the_inbound_side_reaches_a_workload_that_is_bound_to_the_pods_address_only() {
        in_each_pod(|_| {}, |pod, at| {
            for port in [WORKLOAD, POD_ADDRESS_ONLY] {
                let to = SocketAddr::new(at.pod, port);
                let answer = pod.dial(Caller::InboundSide, Some(at.inbound_source), to).unwrap();
                answer.assert("workload", to);
                assert_eq!(answer.peer, at.inbound_source.to_string());
            }
        });
    }

    fn a_workload_that_is_bound_to_loopback_only_stays_unreachable() {
        in_each_pod(|_| {}, |pod, at| {
            let to = SocketAddr::new(at.pod, LOOPBACK_ONLY);
            // From outside it would be the inbound side that is reached, and this is what the inbound side finds.
            let error = pod.dial(Caller::InboundSide, Some(at.inbound_source), to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    fn the_inbound_sides_mark_is_enough_where_its_source_address_is_another() {
        in_each_pod(|settings| settings.owner = outrigger_iptables::Owner::MARK, |pod, at| {
            let to = SocketAddr::new(at.pod, WORKLOAD);
            pod.dial(Caller::InboundSide, None, to).unwrap().assert("workload", to);
        });
    }

    fn packets_routed_through_the_pod_to_a_foreign_address_are_never_relayed() {
        in_each_pod(|_| {}, |pod, at| {
            let to = SocketAddr::new(at.behind, FOREIGN);
            let answer = pod.dial_from_outside(to).unwrap();
            answer.assert("behind", to);
            assert_eq!(answer.peer, at.outside.to_string());
        });
    }

    fn an_ack_before_the_syn_does_not_lead_past_the_inbound_side() {
        in_each_pod(|_| {}, |pod, at| {
            let (IpAddr::V4(source), IpAddr::V4(pod_address)) = (at.outside, at.pod) else {
                return;
            };
            let to = SocketAddr::new(at.pod, WORKLOAD);
            let source_port = 40_000;
            pod.outside.run(|| send_ack(source, source_port, pod_address, WORKLOAD).unwrap());
            let answer = pod.dial_from_outside_address(SocketAddr::new(at.outside, source_port), to).unwrap();
            answer.assert("inbound", to);
        });
    }

    fn a_direction_that_is_not_captured_is_left_alone() {
        in_each_pod(|settings| settings.capture_outbound = false, |pod, at| {
            let to = SocketAddr::new(at.far, FOREIGN);
            pod.dial(Caller::Workload, None, to).unwrap().assert("outside", to);
            let to = SocketAddr::new(at.pod, WORKLOAD);
            pod.dial_from_outside(to).unwrap().assert("inbound", to);
        });
        in_each_pod(|settings| settings.capture_inbound = false, |pod, at| {
            let to = SocketAddr::new(at.far, FOREIGN);
            pod.dial(Caller::Workload, None, to).unwrap().assert("outbound", to);
            let to = SocketAddr::new(at.pod, WORKLOAD);
            pod.dial_from_outside(to).unwrap().assert("workload", to);
            pod.dial(Caller::Proxy, None, to).unwrap().assert("workload", to);
        });
    }
}

/// Sends a lone ACK, as the first packet of a connection that nobody opened (RFC 9293, section 3.1).
fn send_ack(source: Ipv4Addr, source_port: u16, to: Ipv4Addr, port: u16) -> io::Result<()> {
    const HEADER_WORDS_AND_FLAGS: u16 = (5 << 12) | 0x10;
    let mut words = [source_port, port, 0, 1, 0, 1, HEADER_WORDS_AND_FLAGS, 1024, 0, 0];
    let pseudo_header = [source, to].map(|address| {
        let [a, b, c, d] = address.octets();
        u32::from(u16::from_be_bytes([a, b])) + u32::from(u16::from_be_bytes([c, d]))
    });
    let mut sum =
        pseudo_header.iter().sum::<u32>() + 6 + 20 + words.iter().map(|word| u32::from(*word)).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    words[8] = !(sum as u16);
    let segment: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    socket.send_to(&segment, &SocketAddr::new(to.into(), 0).into()).map(drop)
}
