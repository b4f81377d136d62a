//! Many NBD connections of one process, each of which writes 4 KiB and flushes, over and over: what
//! `bench/datapath.py` starts for many volumes at once.
//!
//! `many_clients SOCKET EXPORT COUNT SECONDS`: `{n}` in SOCKET or EXPORT stands for 1 to COUNT.
//! Prints one JSON value. One thread, so that the clients leave the processors to the server.

mod nbd;

use nbd::{DISCONNECT, FLUSH, Failure, REPLY_BYTES, WRITE, cookie_of, open, request};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const BLOCK_BYTES: usize = 4096;
/// The cookies of a write and of a flush.
const WRITTEN: u64 = 1;
const FLUSHED: u64 = 2;

struct Client {
    stream: UnixStream,
    blocks_count: u64,
    random: u64,
    begun: Instant,
    /// Nothing more is sent after the flush that is awaited.
    is_idle: bool,
    block: Vec<u8>,
}

impl Client {
    fn connect(socket: &str, export: &str, number: u64) -> Result<Client, Failure> {
        let name = |pattern: &str| pattern.replace("{n}", &number.to_string());
        let mut stream = UnixStream::connect(name(socket))?;
        let blocks_count = open(&mut stream, &name(export))? / u64::try_from(BLOCK_BYTES)?;
        if blocks_count == 0 {
            return Err("the export is smaller than a block".into());
        }
        let random = 0x9e37_79b9_7f4a_7c15 ^ number;
        let block = random.to_le_bytes().repeat(BLOCK_BYTES / 8);
        let begun = Instant::now();
        Ok(Client { stream, blocks_count, random, begun, is_idle: false, block })
    }

    fn write(&mut self) -> Result<(), Failure> {
        // Xorshift: repeatable, and cheap beside a request.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.begun = Instant::now();
        let bytes = u32::try_from(BLOCK_BYTES)?;
        let offset_bytes = (self.random >> 8) % self.blocks_count * u64::from(bytes);
        let mut message = request(WRITE, WRITTEN, offset_bytes, bytes).to_vec();
        message.extend_from_slice(&self.block);
        Ok(self.stream.write_all(&message)?)
    }

    /// A reply is there. Result: how long the write and its flush took, after the flush.
    fn answered(&mut self) -> Result<Option<Duration>, Failure> {
        let mut reply = [0; REPLY_BYTES];
        self.stream.read_exact(&mut reply)?;
        match cookie_of(&reply)? {
            WRITTEN => {
                self.stream.write_all(&request(FLUSH, FLUSHED, 0, 0))?;
                Ok(None)
            }
            FLUSHED => Ok(Some(self.begun.elapsed())),
            _ => Err("unknown cookie".into()),
        }
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, export, count, seconds] = arguments.as_slice() else {
        return Err("usage: many_clients SOCKET EXPORT COUNT SECONDS".into());
    };
    let count: u64 = count.parse()?;
    let clients = (1..=count).map(|number| Client::connect(socket, export, number));
    let mut clients: Vec<Client> = clients.collect::<Result<_, _>>()?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(seconds.parse()?);
    let mut took_ns: Vec<u64> = Vec::new();
    clients.iter_mut().try_for_each(Client::write)?;
    while clients.iter().any(|client| !client.is_idle) {
        for number in ready(&clients)? {
            let client = &mut clients[number];
            if let Some(took) = client.answered()? {
                took_ns.push(u64::try_from(took.as_nanos())?);
                client.is_idle = Instant::now() >= end;
                if !client.is_idle {
                    client.write()?;
                }
            }
        }
    }
    let elapsed = begun.elapsed();
    took_ns.sort_unstable();
    let thousandth = |part: usize| {
        let at = (took_ns.len().max(1) - 1) * part / 1000;
        Duration::from_nanos(took_ns.get(at).copied().unwrap_or(0)).as_secs_f64() * 1e6
    };
    println!(
        r#"{{"count": {}, "seconds": {}, "p50_us": {}, "p99_us": {}, "max_us": {}}}"#,
        took_ns.len(),
        elapsed.as_secs_f64(),
        thousandth(500),
        thousandth(990),
        thousandth(1000),
    );
    for client in &mut clients {
        client.stream.write_all(&request(DISCONNECT, 0, 0, 0))?;
    }
    Ok(())
}

/// Those for which a reply is there; waits for one.
fn ready(clients: &[Client]) -> Result<Vec<usize>, Failure> {
    let mut polled: Vec<PollFd<'_>> =
        clients.iter().map(|client| PollFd::new(&client.stream, PollFlags::IN)).collect();
    poll(&mut polled, None)?;
    let ready = polled.iter().enumerate().filter(|(_, one)| !one.revents().is_empty());
    Ok(ready.map(|(number, _)| number).collect())
}
