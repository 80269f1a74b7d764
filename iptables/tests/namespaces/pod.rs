//! A pod with the proxy's ports and a workload, the network that it is on, and a network behind it.
//!
//! ```text
//! outside 10.77.0.1 ------ eth0 pod 10.77.0.2, 10.77.0.3 eth1 ------ behind 10.99.0.2
//! ```
//! The proxy is only its listeners here: each tells whom it is and for which address a connection was meant.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use outrigger_iptables::{Applied, Family, Ipv6, Owner, Settings, Tools, apply};
use socket2::{Domain, SockRef, Socket, Type};

use crate::support::{Namespace, uids_are_mapped};

const PATIENCE: Duration = Duration::from_secs(10);

pub struct Pod {
    pub inside: Namespace,
    pub outside: Namespace,
    pub behind: Namespace,
    pub settings: Settings,
    listeners: Vec<Listener>,
}

/// The addresses of one family.
pub struct Addresses {
    pub family: Family,
    pub loopback: IpAddr,
    pub inbound_source: IpAddr,
    pub pod: IpAddr,
    pub pod_second: IpAddr,
    pub outside: IpAddr,
    /// Beyond the pod's own network.
    pub far: IpAddr,
    pub metadata: IpAddr,
    pub excluded: IpAddr,
    pub behind: IpAddr,
}

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Workload,
    Proxy,
    /// Another user of the proxy's group; the proxy itself where there are only marks.
    ProxyGroup,
    InboundSide,
}

/// What a listener says of a connection that it got.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub by: String,
    pub original_destination: String,
    pub peer: String,
}

struct Listener {
    socket: Arc<TcpListener>,
}

/// Everything on a port without a listener of its own; the workload's ports are below.
pub const WORKLOAD: u16 = 8080;
pub const POD_ADDRESS_ONLY: u16 = 8081;
pub const LOOPBACK_ONLY: u16 = 8082;
pub const FOREIGN: u16 = 9000;
pub const FOREIGN_EXCLUDED: u16 = 9001;

/// Runs a test once for each way to tell the proxy's traffic and each family, in a fresh pod with the rules applied.
pub fn in_each_pod(change: impl Fn(&mut Settings), test: impl Fn(&Pod, &Addresses)) {
    for owner in owners() {
        let mut settings = Settings { owner, ..Settings::default() };
        change(&mut settings);
        let pod = Pod::new(settings);
        pod.apply();
        for addresses in Addresses::all() {
            eprintln!("{owner:?}, {}", addresses.family);
            test(&pod, &addresses);
        }
    }
}

pub fn owners() -> Vec<Owner> {
    if uids_are_mapped() { vec![Owner::USER, Owner::MARK] } else { vec![Owner::MARK] }
}

impl Pod {
    pub fn new(settings: Settings) -> Self {
        let (inside, outside, behind) = (Namespace::new(), Namespace::new(), Namespace::new());
        inside.connect("eth0", &outside, "eth0");
        inside.connect("eth1", &behind, "eth0");
        for namespace in [&inside, &outside, &behind] {
            namespace.command("ip link set lo up");
            namespace.command("ip link set eth0 up");
        }
        inside.command("ip link set eth1 up");
        inside.set("ipv4/ip_forward", "1");
        inside.set("ipv6/conf/all/forwarding", "1");
        for line in [
            "ip addr add 10.77.0.2/24 dev eth0",
            "ip addr add 10.77.0.3/24 dev eth0",
            "ip addr add 10.99.0.1/24 dev eth1",
            "ip route add default via 10.77.0.1",
            "ip addr add fd77::2/64 dev eth0 nodad",
            "ip addr add fd77::3/64 dev eth0 nodad",
            "ip addr add fd99::1/64 dev eth1 nodad",
            "ip route add default via fd77::1",
        ] {
            inside.command(line);
        }
        for line in [
            "ip addr add 10.77.0.1/24 dev eth0",
            "ip addr add 10.88.0.1/32 dev lo",
            "ip addr add 169.254.169.254/32 dev lo",
            "ip addr add 192.168.5.5/32 dev lo",
            "ip route add 10.99.0.0/24 via 10.77.0.2",
            "ip addr add fd77::1/64 dev eth0 nodad",
            "ip addr add fd88::1/128 dev lo",
            "ip addr add fd00:ec2::254/128 dev lo",
            "ip addr add fd55::5/128 dev lo",
            "ip route add fd99::/64 via fd77::2",
        ] {
            outside.command(line);
        }
        for line in [
            "ip addr add 10.99.0.2/24 dev eth0",
            "ip route add default via 10.99.0.1",
            "ip addr add fd99::2/64 dev eth0 nodad",
            "ip route add default via fd99::1",
        ] {
            behind.command(line);
        }
        let mut pod = Self { inside, outside, behind, settings, listeners: Vec::new() };
        pod.listen_everywhere();
        pod
    }

    /// Applies the pod's settings, IPv6 as the pod has it.
    pub fn apply(&self) -> Applied {
        self.inside.run(|| apply(&self.settings, Ipv6::Auto, &Tools::find()).expect("applying"))
    }

    fn listen_everywhere(&mut self) {
        for addresses in Addresses::all() {
            let any = addresses.any();
            for (by, address, port) in [
                ("outbound", addresses.loopback, self.settings.outbound_port),
                ("admin", addresses.loopback, 15000),
                ("inbound", any, self.settings.inbound_port),
                ("metrics", any, self.settings.metrics_port),
                ("health", any, self.settings.health_port),
                ("workload", any, WORKLOAD),
                ("workload", addresses.pod, POD_ADDRESS_ONLY),
                ("workload", addresses.loopback, LOOPBACK_ONLY),
            ] {
                self.listeners.push(Listener::new(&self.inside, by, SocketAddr::new(address, port)));
            }
            for port in [FOREIGN, FOREIGN_EXCLUDED] {
                self.listeners.push(Listener::new(&self.outside, "outside", SocketAddr::new(any, port)));
            }
            self.listeners.push(Listener::new(&self.behind, "behind", SocketAddr::new(any, FOREIGN)));
        }
    }

    /// What a connection of somebody in the pod comes to.
    pub fn dial(&self, caller: Caller, source: Option<IpAddr>, to: SocketAddr) -> io::Result<Answer> {
        let owner = self.settings.owner;
        self.inside.run(|| dial(caller, owner, source.map(|source| SocketAddr::new(source, 0)), to))
    }

    /// What a connection from outside comes to.
    pub fn dial_from_outside(&self, to: SocketAddr) -> io::Result<Answer> {
        let owner = self.settings.owner;
        self.outside.run(|| dial(Caller::Workload, owner, None, to))
    }

    /// The same from a given address.
    pub fn dial_from_outside_address(&self, source: SocketAddr, to: SocketAddr) -> io::Result<Answer> {
        let owner = self.settings.owner;
        self.outside.run(|| dial(Caller::Workload, owner, Some(source), to))
    }
}

impl Addresses {
    pub fn all() -> [Self; 2] {
        let address = |text: &str| text.parse().expect("an address");
        [
            Self {
                family: Family::Ipv4,
                loopback: address("127.0.0.1"),
                inbound_source: address("127.0.0.6"),
                pod: address("10.77.0.2"),
                pod_second: address("10.77.0.3"),
                outside: address("10.77.0.1"),
                far: address("10.88.0.1"),
                metadata: address("169.254.169.254"),
                excluded: address("192.168.5.5"),
                behind: address("10.99.0.2"),
            },
            Self {
                family: Family::Ipv6,
                loopback: address("::1"),
                inbound_source: address("::6"),
                pod: address("fd77::2"),
                pod_second: address("fd77::3"),
                outside: address("fd77::1"),
                far: address("fd88::1"),
                metadata: address("fd00:ec2::254"),
                excluded: address("fd55::5"),
                behind: address("fd99::2"),
            },
        ]
    }

    fn any(&self) -> IpAddr {
        match self.family {
            Family::Ipv4 => IpAddr::from([0; 4]),
            Family::Ipv6 => IpAddr::from([0; 16]),
        }
    }
}

impl Answer {
    #[track_caller]
    pub fn assert(&self, by: &str, original_destination: SocketAddr) {
        assert_eq!(
            (self.by.as_str(), self.original_destination.as_str()),
            (by, original_destination.to_string().as_str())
        );
    }
}

impl Listener {
    fn new(namespace: &Namespace, by: &'static str, address: SocketAddr) -> Self {
        let socket = namespace.run(|| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&address.into())?;
            socket.listen(128)?;
            io::Result::Ok(TcpListener::from(socket))
        });
        let socket = Arc::new(socket.unwrap_or_else(|error| panic!("listening on {address}: {error}")));
        let accepting = Arc::clone(&socket);
        thread::spawn(move || {
            while let Ok((mut stream, peer)) = accepting.accept() {
                let socket = SockRef::from(&stream);
                let original =
                    if peer.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
                // Where no rule was ever in force, nothing but the socket's own address is known.
                let original = original.ok().and_then(|address| address.as_socket());
                let original =
                    original.or(stream.local_addr().ok()).map_or("unknown".to_owned(), |at| at.to_string());
                // A caller that is gone has no use for an answer.
                drop(write!(stream, "{by} {original} {}", peer.ip()));
            }
        });
        Self { socket }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Wakes the accepting thread, which ends with an error then.
        drop(SockRef::from(&*self.socket).shutdown(std::net::Shutdown::Both));
    }
}

fn dial(caller: Caller, owner: Owner, source: Option<SocketAddr>, to: SocketAddr) -> io::Result<Answer> {
    if let Owner::User { uid, gid } = owner {
        // These are the thread's own, and what xt_owner looks at.
        match caller {
            Caller::Workload => {}
            Caller::Proxy | Caller::InboundSide => drop(setfsuid(Uid::from_raw(uid))),
            Caller::ProxyGroup => drop(setfsgid(Gid::from_raw(gid))),
        }
    }
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Owner::Mark { proxy, inbound } = owner {
        match caller {
            Caller::Workload => {}
            Caller::Proxy | Caller::ProxyGroup => socket.set_mark(proxy)?,
            Caller::InboundSide => socket.set_mark(inbound)?,
        }
    }
    if let Some(source) = source {
        socket.bind(&source.into())?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let mut words = answer.split_whitespace().map(str::to_owned);
    let mut word = || words.next().ok_or(io::Error::from(io::ErrorKind::UnexpectedEof));
    Ok(Answer { by: word()?, original_destination: word()?, peer: word()? })
}
