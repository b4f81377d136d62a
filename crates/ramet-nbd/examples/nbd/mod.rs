//! What the measuring clients share: opening an export, and the few messages that they send.

#![allow(dead_code)] // Each of them uses a part.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const HELLO: [u8; 16] = *b"NBDMAGICIHAVEOPT";
const EXPORT_NAME: u32 = 1;
const NO_ZEROES: u32 = 0b11;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
pub const REQUEST_BYTES: usize = 28;
pub const REPLY_BYTES: usize = 16;
/// Requests.
pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;

pub type Failure = Box<dyn std::error::Error>;

/// Open the export. Result: its size.
pub fn open(stream: &mut UnixStream, export: &str) -> Result<u64, Failure> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if greeting[..16] != HELLO {
        return Err("no server of newstyle NBD".into());
    }
    let mut ask = NO_ZEROES.to_be_bytes().to_vec();
    ask.extend_from_slice(&HELLO[8..]);
    ask.extend_from_slice(&EXPORT_NAME.to_be_bytes());
    ask.extend_from_slice(&u32::try_from(export.len())?.to_be_bytes());
    ask.extend_from_slice(export.as_bytes());
    stream.write_all(&ask)?;
    let mut told = [0; 10];
    stream.read_exact(&mut told)?;
    Ok(u64::from_be_bytes(*told.first_chunk().ok_or("short answer")?))
}

pub fn request(command: u16, cookie: u64, offset_bytes: u64, bytes: u32) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    request[6..8].copy_from_slice(&command.to_be_bytes());
    request[8..16].copy_from_slice(&cookie.to_be_bytes());
    request[16..24].copy_from_slice(&offset_bytes.to_be_bytes());
    request[24..].copy_from_slice(&bytes.to_be_bytes());
    request
}

/// The cookie of a reply that says that all went well.
pub fn cookie_of(reply: &[u8]) -> Result<u64, Failure> {
    let (head, cookie) = reply.split_at(8);
    if head[..4] != REPLY_MAGIC.to_be_bytes() || head[4..] != [0; 4] {
        return Err("an error, or no reply".into());
    }
    Ok(u64::from_be_bytes(*cookie.first_chunk().ok_or("short reply")?))
}
