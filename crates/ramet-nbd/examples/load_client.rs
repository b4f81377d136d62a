//! Keep one NBD connection busy, to measure a server: what `bench/datapath.py` starts.
//!
//! `load_client SOCKET EXPORT KIND DEPTH BYTES LIMIT`: KIND is `read` or `write` (random places),
//! `write-flush` (each followed by a flush), `write-fua` (each durable when it is answered),
//! `read-through`, `write-through` (in order), `write-apart`, `write-apart-flush` (in order, each
//! in 64 KiB of its own); `write-flush-32`, `write-through-flush-64` and so on: a flush after every
//! so many, which waits for those before it. LIMIT is seconds such as `1.5s`, or a number of
//! requests. Prints one JSON value.
//!
//! Costs about a microsecond for 4 KiB at depth: all requests that may be sent go out in one send,
//! replies come in as many as there are. Every block that it writes begins with its own offset, and
//! every block that it reads must, so what it reads has to be written through first.

mod nbd;

use nbd::{
    DISCONNECT, FLUSH, Failure, READ, REPLY_BYTES, REQUEST_BYTES, WRITE, cookie_of, open, request,
};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const BLOCK_BYTES: usize = 4096;
/// From one request to the next, where they are apart.
const APART_BYTES: usize = 64 << 10;
/// The cookie of a flush; the others count from 0.
const FLUSH_COOKIE: u64 = u64::MAX;

/// What is to be done.
struct Job {
    command: u16,
    in_order: bool,
    flushed: bool,
    fua: bool,
    /// So many writes, then a flush once all are answered.
    flush_every: usize,
    depth: usize,
    bytes: usize,
    /// From one place to the next.
    stride_bytes: usize,
    time_max: Option<Duration>,
    count_max: usize,
}

impl Job {
    fn parse(kind: &str, depth: &str, bytes: &str, limit: &str) -> Result<Job, Failure> {
        let (kind, flush_every) = match kind.split_once("-flush-") {
            Some((kind, count)) => (kind, count.parse()?),
            None => (kind, usize::MAX),
        };
        let (command, in_order, flushed) = match kind {
            "read" => (READ, false, false),
            "write" | "write-fua" => (WRITE, false, false),
            "write-flush" => (WRITE, false, true),
            "read-through" => (READ, true, false),
            "write-through" | "write-apart" => (WRITE, true, false),
            "write-apart-flush" => (WRITE, true, true),
            _ => return Err(format!("unknown kind {kind}").into()),
        };
        let seconds = limit.strip_suffix('s').map(str::parse).transpose()?;
        let time_max = seconds.map(Duration::from_secs_f64);
        let count_max = if time_max.is_some() { usize::MAX } else { limit.parse()? };
        let (depth, bytes): (usize, usize) = (depth.parse()?, bytes.parse()?);
        let deep = (flushed && depth > 1) || depth > flush_every;
        if depth == 0 || bytes == 0 || bytes % BLOCK_BYTES != 0 || deep {
            return Err("depth 1 to the number of writes for each flush, whole blocks".into());
        }
        let apart = kind.starts_with("write-apart");
        let stride_bytes = if apart { bytes.max(APART_BYTES) } else { bytes };
        Ok(Job {
            command,
            in_order,
            flushed,
            fua: kind == "write-fua",
            flush_every,
            depth,
            bytes,
            stride_bytes,
            time_max,
            count_max,
        })
    }

    fn payload_bytes(&self) -> usize {
        if self.command == WRITE { self.bytes } else { 0 }
    }

    fn answer_bytes(&self) -> usize {
        if self.command == READ { self.bytes } else { 0 }
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, export, kind, depth, bytes, limit] = arguments.as_slice() else {
        return Err("usage: load_client SOCKET EXPORT KIND DEPTH BYTES LIMIT".into());
    };
    let job = Job::parse(kind, depth, bytes, limit)?;
    let mut stream = UnixStream::connect(socket)?;
    let size_bytes = open(&mut stream, export)?;
    let places = size_bytes / u64::try_from(job.stride_bytes)?;
    if places == 0 {
        return Err("the export is smaller than a request".into());
    }
    let mut client = Client::new(stream, job, places);
    let begun = Instant::now();
    client.run(begun)?;
    println!("{}", client.summary(begun.elapsed()));
    client.stream.write_all(&request(DISCONNECT, 0, 0, 0))?;
    Ok(())
}

/// A request that may be in flight.
#[derive(Clone, Copy)]
struct Slot {
    sent: Instant,
    offset_bytes: u64,
}

struct Client {
    stream: UnixStream,
    job: Job,
    places: u64,
    place: u64,
    random: u64,
    slots: Vec<Slot>,
    free: Vec<usize>,
    sent_count: usize,
    unflushed_count: usize,
    /// Requests with payloads of random bytes; sending changes headers and tags only.
    requests: Vec<u8>,
    received: Vec<u8>,
    received_end: usize,
    latencies_ns: Vec<u32>,
}

impl Client {
    fn new(stream: UnixStream, job: Job, places: u64) -> Client {
        let mut client = Client {
            stream,
            places,
            place: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            slots: vec![Slot { sent: Instant::now(), offset_bytes: 0 }; job.depth],
            free: (0..job.depth).collect(),
            sent_count: 0,
            unflushed_count: 0,
            requests: vec![0; (REQUEST_BYTES + job.payload_bytes()) * job.depth],
            received: vec![0; (job.depth + 1) * (REPLY_BYTES + job.answer_bytes())],
            received_end: 0,
            latencies_ns: Vec::with_capacity(1 << 22),
            job,
        };
        for at in (0..client.requests.len()).step_by(8) {
            let end = client.requests.len().min(at + 8);
            let drawn = client.draw().to_le_bytes();
            client.requests[at..end].copy_from_slice(&drawn[..end - at]);
        }
        client
    }

    /// Xorshift: repeatable, and cheap beside a request.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn run(&mut self, begun: Instant) -> Result<(), Failure> {
        let mut now = begun;
        loop {
            let over = self.job.time_max.is_some_and(|most| now - begun >= most);
            if over || self.sent_count >= self.job.count_max {
                if self.free.len() == self.job.depth {
                    return Ok(());
                }
            } else {
                self.send(now)?;
            }
            let length_bytes = self.stream.read(&mut self.received[self.received_end..])?;
            if length_bytes == 0 {
                return Err("the server hung up".into());
            }
            self.received_end += length_bytes;
            now = Instant::now();
            if self.job.flushed && self.received_end == REPLY_BYTES {
                // Its flush is part of how long a write takes.
                self.flush()?;
                now = Instant::now();
            }
            self.take_replies(now)?;
            let all_answered = self.free.len() == self.job.depth;
            if all_answered && self.unflushed_count >= self.job.flush_every {
                self.flush()?;
                self.unflushed_count = 0;
                now = Instant::now();
            }
        }
    }

    /// Send as many requests as may be in flight.
    fn send(&mut self, now: Instant) -> Result<(), Failure> {
        let mut end = 0;
        while self.sent_count < self.job.count_max
            && self.unflushed_count < self.job.flush_every
            && let Some(number) = self.free.pop()
        {
            let place = if self.job.in_order { self.place } else { self.draw() >> 8 };
            self.place += 1;
            let bytes = u32::try_from(self.job.bytes)?;
            let offset_bytes = place % self.places * u64::try_from(self.job.stride_bytes)?;
            self.slots[number] = Slot { sent: now, offset_bytes };
            let mut header = request(self.job.command, u64::try_from(number)?, offset_bytes, bytes);
            header[5] = u8::from(self.job.fua);
            self.requests[end..end + REQUEST_BYTES].copy_from_slice(&header);
            end += REQUEST_BYTES;
            let payload = &mut self.requests[end..end + self.job.payload_bytes()];
            for (block, tag) in payload.chunks_mut(BLOCK_BYTES).zip(tags(offset_bytes)) {
                block[..8].copy_from_slice(&tag);
            }
            end += self.job.payload_bytes();
            self.sent_count += 1;
            self.unflushed_count += 1;
        }
        self.stream.write_all(&self.requests[..end])?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.stream.write_all(&request(FLUSH, FLUSH_COOKIE, 0, 0))?;
        let mut reply = [0; REPLY_BYTES];
        self.stream.read_exact(&mut reply)?;
        if cookie_of(&reply)? == FLUSH_COOKIE { Ok(()) } else { Err("not the flush".into()) }
    }

    /// Take the replies that are there whole; a partial one stays.
    fn take_replies(&mut self, now: Instant) -> Result<(), Failure> {
        let each = REPLY_BYTES + self.job.answer_bytes();
        let mut at = 0;
        while at + each <= self.received_end {
            let reply = &self.received[at..at + each];
            let number = usize::try_from(cookie_of(reply)?)?;
            let slot = *self.slots.get(number).ok_or("unknown cookie")?;
            for (block, tag) in
                reply[REPLY_BYTES..].chunks(BLOCK_BYTES).zip(tags(slot.offset_bytes))
            {
                if block[..8] != tag {
                    return Err("a block holds what was not written there".into());
                }
            }
            self.free.push(number);
            let latency_ns = (now - slot.sent).as_nanos();
            self.latencies_ns.push(u32::try_from(latency_ns).unwrap_or(u32::MAX));
            at += each;
        }
        self.received.copy_within(at..self.received_end, 0);
        self.received_end -= at;
        Ok(())
    }

    fn summary(&mut self, elapsed: Duration) -> String {
        self.latencies_ns.sort_unstable();
        let last = self.latencies_ns.len() - 1;
        let thousandth = |part: usize| f64::from(self.latencies_ns[last * part / 1000]) / 1e3;
        format!(
            r#"{{"count": {}, "seconds": {}, "p50_us": {}, "p99_us": {}, "max_us": {}}}"#,
            last + 1,
            elapsed.as_secs_f64(),
            thousandth(500),
            thousandth(990),
            thousandth(1000),
        )
    }
}

/// What the blocks from an offset on begin with.
fn tags(offset_bytes: u64) -> impl Iterator<Item = [u8; 8]> {
    (offset_bytes..).step_by(BLOCK_BYTES).map(u64::to_le_bytes)
}
