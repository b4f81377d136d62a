//! Several listeners of one server: unix, TCP, and sockets that somebody else made.

use crate::common::memory::{MemoryDevice, MemoryExports};
use crate::common::raw::{ACK, Client, WRITE, info_data, request};
use crate::common::{Directory, VOLUME};
use ramet_engine::Kind;
use ramet_nbd::{Address, Limits, Listening, NbdError, NbdServer, UnixAddress};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Served {
    server: NbdServer,
    volume: Arc<MemoryDevice>,
}

fn start(addresses: Vec<Address>, plain_tcp: bool) -> Result<Served, NbdError> {
    start_limited(addresses, plain_tcp, Limits::default())
}

fn start_limited(
    addresses: Vec<Address>,
    plain_tcp: bool,
    limits: Limits,
) -> Result<Served, NbdError> {
    let exports = Arc::new(MemoryExports::default());
    let volume = exports.add("volume", VOLUME, MemoryDevice::new(1 << 20));
    let listening = Listening { addresses, plain_tcp, ..Listening::default() };
    let server = NbdServer::start(listening, exports, limits)?;
    Ok(Served { server, volume })
}

fn refused(addresses: Vec<Address>) -> (Kind, &'static str) {
    let error = start(addresses, false).err().expect("it was not refused");
    (error.kind(), error.code())
}

impl Served {
    fn tcp(&self) -> String {
        let addresses = self.server.addresses();
        addresses.into_iter().find(|address| address.starts_with("tcp:")).unwrap()
    }

    fn attach_tcp(&self) -> Client {
        attach(Client::connect_tcp(&self.tcp()))
    }
}

fn attach(mut client: Client) -> Client {
    client.greet(3);
    client.go("volume");
    client
}

#[test]
fn one_server_listens_at_several_addresses_and_gives_all_up_at_the_end() {
    let directory = Directory::new();
    let (first, second) = (directory.path("a.sock"), directory.path("b.sock"));
    let addresses = vec![
        Address::unix(&first),
        // An address of this test alone: nobody else takes its port in between.
        Address::Tcp(SocketAddr::from((Ipv4Addr::new(127, 77, 0, 1), 0))),
        Address::unix(&second),
    ];
    let served = start(addresses, false).unwrap();
    let told = served.server.addresses();
    assert_eq!(told[0], format!("unix:{}", first.display()));
    assert!(told[1].starts_with("tcp:127.77.0.1:") && !told[1].ends_with(":0"), "{told:?}");
    let mut clients = [
        attach(Client::connect(&first)),
        attach(Client::connect_tcp(&told[1])),
        attach(Client::connect(&second)),
    ];
    assert_eq!(served.server.connections_count(), 3);
    for (number, client) in (0_u8..).zip(&mut clients) {
        assert_eq!(client.write(0, 0, &[number; 3]), 0);
    }
    assert_eq!(clients[0].read(0, 3), [2; 3]);
    served.server.close().unwrap();
    assert!(!first.exists() && !second.exists());
    let address = told[1].strip_prefix("tcp:").unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
    TcpListener::bind(address).unwrap();
}

#[test]
fn ipv6_is_served_where_there_is_any() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        println!("skipped: no IPv6");
        return;
    }
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let served = start(vec![Address::Tcp(address)], false).unwrap();
    assert!(served.tcp().starts_with("tcp:[::1]:"), "{}", served.tcp());
    assert_eq!(served.attach_tcp().read(0, 2), [0, 0]);
}

#[test]
fn where_one_address_cannot_be_had_none_is_kept() {
    let directory = Directory::new();
    let path = directory.path("nbd.sock");
    let taken = TcpListener::bind(LOOPBACK).unwrap();
    let addresses = vec![Address::unix(&path), Address::Tcp(taken.local_addr().unwrap())];
    assert_eq!(refused(addresses), (Kind::Busy, "nbd_address_in_use"));
    assert!(!path.exists());
    let elsewhere = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 0));
    let error = start(vec![Address::Tcp(elsewhere)], true).err().unwrap();
    assert_eq!((error.kind(), error.code()), (Kind::Unavailable, "nbd_address_failed"));
}

#[test]
fn plain_tcp_beyond_the_machine_is_refused_unless_it_is_asked_for() {
    let any = || Address::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    assert_eq!(refused(vec![any()]), (Kind::Invalid, "nbd_address_insecure"));
    let any6 = Address::Tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    assert_eq!(refused(vec![any6]), (Kind::Invalid, "nbd_address_insecure"));
    let given = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let given = Address::Given(OwnedFd::from(given));
    assert_eq!(refused(vec![given]), (Kind::Invalid, "nbd_address_insecure"));
    let served = start(vec![any()], true).unwrap();
    let mut client = attach(Client::connect_tcp(&served.tcp().replace("0.0.0.0", "127.0.0.1")));
    assert_eq!(client.read(0, 2), [0, 0]);
}

#[test]
fn a_socket_file_has_the_mode_and_the_group_that_were_asked_for() {
    let directory = Directory::new();
    let group = std::fs::metadata(&directory.0).unwrap().gid();
    let path = directory.path("nbd.sock");
    let address = UnixAddress { path: path.clone(), mode: 0o660, group: Some(group) };
    let _served = start(vec![Address::Unix(address)], false).unwrap();
    let facts = std::fs::metadata(&path).unwrap();
    assert_eq!((facts.permissions().mode() & 0o7777, facts.gid()), (0o660, group));
}

#[test]
fn a_given_socket_is_served_and_left_as_it_was() {
    let directory = Directory::new();
    let path = directory.path("nbd.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind(LOOPBACK).unwrap();
    let give = || {
        let (unix, tcp) = (unix.try_clone().unwrap(), tcp.try_clone().unwrap());
        vec![Address::Given(OwnedFd::from(unix)), Address::Given(OwnedFd::from(tcp))]
    };
    let early = UnixStream::connect(&path).unwrap();
    for _ in 0..2 {
        let served = start(give(), false).unwrap();
        let told = served.server.addresses();
        assert_eq!(told[0], format!("unix:{}", path.display()));
        assert_eq!(attach(Client::connect(&path)).read(0, 2), [0, 0]);
        assert_eq!(served.attach_tcp().read(0, 2), [0, 0]);
        served.server.close().unwrap();
        // Who connects now is served by the next server that has the socket.
        let _late = UnixStream::connect(&path).unwrap();
    }
    drop(early);
}

#[test]
fn a_given_descriptor_that_is_no_listening_stream_socket_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let connected = UnixStream::pair().unwrap().0;
    let datagrams = UdpSocket::bind(LOOPBACK).unwrap();
    for given in [OwnedFd::from(file), OwnedFd::from(connected), OwnedFd::from(datagrams)] {
        assert_eq!(refused(vec![Address::Given(given)]), (Kind::Invalid, "nbd_socket_unusable"));
    }
}

/// The story: over TCP a peer that died and one that sends no more look alike. One that died
/// counted as half-closed and alive, and its stalled write landed over its successor's.
#[test]
fn a_stalled_write_of_a_dead_tcp_connection_lands_before_its_successor_is_served() {
    let served = start(vec![Address::Tcp(LOOPBACK)], false).unwrap();
    let mut dying = served.attach_tcp();
    served.volume.write_gate.close();
    let mut bytes = request(0, WRITE, 1, (0, 4));
    bytes.extend(b"old!");
    bytes.extend(request(0, WRITE, 2, (0, 4)));
    bytes.extend(b"late");
    dying.send(&bytes);
    served.volume.write_gate.wait_for_caller();
    drop(dying);
    let mut successor = Client::connect_tcp(&served.tcp());
    successor.greet(3);
    successor.send_option(7, &info_data("volume", &[]));
    successor.expect_silence();
    served.volume.write_gate.open();
    while successor.option_reply().reply != ACK {}
    assert_eq!(successor.read(0, 4), b"old!", "the stalled one landed before, the next never");
}

/// The story: who reached the port without a certificate could hold every connection that the
/// server had, without a word, and lock out even the commands of its own machine.
#[test]
fn silent_tcp_clients_make_way_and_nobody_else_does() {
    let directory = Directory::new();
    let path = directory.path("nbd.sock");
    let limits = Limits { connections_max: 3, ..Limits::default() };
    let addresses = vec![Address::unix(&path), Address::Tcp(LOOPBACK)];
    let served = start_limited(addresses, false, limits).unwrap();
    // Greeted one after the other, so that it is known which came first.
    let mut working = served.attach_tcp();
    let silent = || {
        let mut client = Client::connect_tcp(&served.tcp());
        client.greet(3);
        client
    };
    let (mut first, mut second) = (silent(), silent());
    let mut local = Client::connect(&path);
    local.greet(3);
    first.expect_end();
    let mut by_tcp = served.attach_tcp();
    second.expect_end();
    // All three are at work, or of this machine: now it is full.
    for mut late in [Client::connect(&path), Client::connect_tcp(&served.tcp())] {
        late.expect_end();
    }
    local.go("volume");
    for client in [&mut working, &mut local, &mut by_tcp] {
        assert_eq!(client.read(0, 1), [0]);
    }
}
