//! An NBD client of raw bytes, written from the protocol document and not from the codec.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// No answer takes so long; a test fails rather than hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// An answer that nothing holds up takes far less.
const SILENCE: Duration = Duration::from_millis(300);

pub struct Client {
    pub stream: UnixStream,
}

/// A reply to an option.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub option: u32,
    pub reply: u32,
    pub data: Vec<u8>,
}

pub const ACK: u32 = 1;
pub const ERR_UNSUP: u32 = 0x8000_0001;
pub const ERR_INVALID: u32 = 0x8000_0003;
pub const ERR_UNKNOWN: u32 = 0x8000_0006;
pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
pub const ERR_TOO_BIG: u32 = 0x8000_0009;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

pub const STRUCTURED_REPLY: u32 = 8;
pub const LIST_META_CONTEXT: u32 = 9;
pub const SET_META_CONTEXT: u32 = 10;
pub const EXTENDED_HEADERS: u32 = 11;
pub const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

pub const DATA: u16 = 1;
pub const HOLE: u16 = 2;
pub const STATUS: u16 = 5;
pub const STATUS_EXT: u16 = 6;
pub const ERROR: u16 = 0x8001;
pub const ERROR_OFFSET: u16 = 0x8002;

/// A chunk of a structured or extended reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    pub done: bool,
    pub kind: u16,
    pub cookie: u64,
    pub payload: Vec<u8>,
}

impl Client {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream }
    }

    pub fn connect_tcp(address: &str) -> Self {
        let stream = TcpStream::connect(address.strip_prefix("tcp:").unwrap()).unwrap();
        // Only the type says that it is a unix socket; all that is called is the same for TCP.
        let stream = UnixStream::from(OwnedFd::from(stream));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn receive(&mut self, length_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; length_bytes];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The server has closed the connection, and sent nothing more.
    pub fn expect_end(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert_eq!(rest, b"", "bytes before the end"),
            // What we sent was still unread when the server closed.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    /// The server says nothing for a while: it must be waiting for something.
    pub fn expect_silence(&mut self) {
        self.stream.set_read_timeout(Some(SILENCE)).unwrap();
        let error = self.stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// Take the greeting and answer it.
    pub fn greet(&mut self, client_flags: u32) {
        let greeting = self.receive(18);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[16..], [0, 3], "fixed newstyle, no zeroes");
        self.send(&client_flags.to_be_bytes());
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        self.send_option_header(option, u32::try_from(data.len()).unwrap());
        self.send(data);
    }

    pub fn send_option_header(&mut self, option: u32, length_bytes: u32) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(length_bytes.to_be_bytes());
        self.send(&bytes);
    }

    pub fn option_reply(&mut self) -> OptionReply {
        let header = self.receive(20);
        assert_eq!(header[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let (option, reply) = (word(8), word(12));
        let data = self.receive(usize::try_from(word(16)).unwrap());
        OptionReply { option, reply, data }
    }

    /// Send an option and take its only reply's type.
    pub fn option(&mut self, option: u32, data: &[u8]) -> u32 {
        self.send_option(option, data);
        let reply = self.option_reply();
        assert_eq!(reply.option, option);
        reply.reply
    }

    /// Enter transmission with `export`.
    pub fn go(&mut self, export: &str) {
        self.send_option(7, &info_data(export, &[]));
        assert_eq!(self.option_reply().reply, 3);
        assert_eq!(self.option_reply().reply, ACK);
    }

    pub fn send_request(&mut self, flags: u16, command: u16, cookie: u64, range: (u64, u32)) {
        self.send(&request(flags, command, cookie, range));
    }

    /// One chunk of a structured reply.
    pub fn chunk(&mut self) -> Chunk {
        let header = self.receive(20);
        assert_eq!(header[..4], [0x66, 0x8e, 0x33, 0xef]);
        self.rest_of_chunk(&header, u64::from(be_u32(&header[16..])))
    }

    /// One chunk of an extended reply to a request at `offset_bytes`.
    pub fn extended_chunk(&mut self, offset_bytes: u64) -> Chunk {
        let header = self.receive(32);
        assert_eq!(header[..4], [0x6e, 0x8a, 0x27, 0x8c]);
        assert_eq!(be_u64(&header[16..]), offset_bytes, "the offset of the request comes back");
        self.rest_of_chunk(&header, be_u64(&header[24..]))
    }

    fn rest_of_chunk(&mut self, header: &[u8], length_bytes: u64) -> Chunk {
        assert!(header[4..6] == [0, 0] || header[4..6] == [0, 1], "flags {:?}", &header[4..6]);
        let payload = self.receive(usize::try_from(length_bytes).unwrap());
        let kind = u16::from_be_bytes([header[6], header[7]]);
        Chunk { done: header[5] == 1, kind, cookie: be_u64(&header[8..]), payload }
    }

    /// All chunks of the next structured reply.
    pub fn chunks(&mut self) -> Vec<Chunk> {
        let mut chunks = vec![self.chunk()];
        while !chunks[chunks.len() - 1].done {
            chunks.push(self.chunk());
        }
        chunks
    }

    /// Send an extended request.
    pub fn send_extended(&mut self, flags: u16, command: u16, cookie: u64, range: (u64, u64)) {
        let mut bytes = vec![0x21, 0xe4, 0x1c, 0x71];
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(range.0.to_be_bytes());
        bytes.extend(range.1.to_be_bytes());
        self.send(&bytes);
    }

    /// Send an extended request and take the error of its one chunk; 0 where it is done.
    pub fn ask_extended(&mut self, flags: u16, command: u16, range: (u64, u64)) -> u32 {
        self.send_extended(flags, command, 77, range);
        error_of(&self.extended_chunk(range.0))
    }

    /// Choose metadata contexts of `export`. Result: ids and names.
    pub fn set_contexts(&mut self, export: &str, queries: &[&str]) -> Vec<(u32, String)> {
        self.contexts(SET_META_CONTEXT, export, queries)
    }

    /// Ask for metadata contexts by either option. Result: ids and names.
    pub fn contexts(&mut self, option: u32, export: &str, queries: &[&str]) -> Vec<(u32, String)> {
        self.send_option(option, &context_data(export, queries));
        let mut contexts = Vec::new();
        loop {
            let reply = self.option_reply();
            assert_eq!(reply.option, option);
            if reply.reply == ACK {
                return contexts;
            }
            assert_eq!(reply.reply, 4, "{:?}", String::from_utf8_lossy(&reply.data));
            let name = String::from_utf8(reply.data[4..].to_vec()).unwrap();
            contexts.push((be_u32(&reply.data), name));
        }
    }

    /// A reply without payload: its error and its cookie.
    pub fn reply(&mut self) -> (u32, u64) {
        let bytes = self.receive(16);
        assert_eq!(bytes[..4], [0x67, 0x44, 0x66, 0x98]);
        let error = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        (error, u64::from_be_bytes(bytes[8..].try_into().unwrap()))
    }

    /// Ask and take the error of the reply.
    pub fn ask(&mut self, flags: u16, command: u16, range: (u64, u32)) -> u32 {
        self.send_request(flags, command, 0x0123_4567_89ab_cdef, range);
        let (error, cookie) = self.reply();
        assert_eq!(cookie, 0x0123_4567_89ab_cdef);
        error
    }

    pub fn write(&mut self, flags: u16, offset_bytes: u64, payload: &[u8]) -> u32 {
        let length_bytes = u32::try_from(payload.len()).unwrap();
        self.send_request(flags, WRITE, 11, (offset_bytes, length_bytes));
        self.send(payload);
        let (error, cookie) = self.reply();
        assert_eq!(cookie, 11);
        error
    }

    pub fn read(&mut self, offset_bytes: u64, length_bytes: u32) -> Vec<u8> {
        assert_eq!(self.ask(0, READ, (offset_bytes, length_bytes)), 0);
        self.receive(usize::try_from(length_bytes).unwrap())
    }
}

/// The bytes of a request's header.
pub fn request(flags: u16, command: u16, cookie: u64, range: (u64, u32)) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(range.0.to_be_bytes());
    bytes.extend(range.1.to_be_bytes());
    bytes
}

/// The data of INFO and GO.
pub fn info_data(export: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(export.len()).unwrap().to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    for info in infos {
        data.extend(info.to_be_bytes());
    }
    data
}

/// The error that a chunk tells; 0 where it tells that the request is done.
pub fn error_of(chunk: &Chunk) -> u32 {
    assert!(chunk.done);
    match chunk.kind {
        0 => 0,
        ERROR | ERROR_OFFSET => be_u32(&chunk.payload),
        other => panic!("a chunk of type {other}"),
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn context_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = u32::try_from(export.len()).unwrap().to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

pub fn be_u32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

pub fn be_u64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}
