//! How a connection answers: simple replies, or chunks with holes as holes and errors with a text
//! and an offset.
//!
//! Invariants: no data of a hole is read where chunks can say so; a block that fails its checksum
//! is never sent, what lies before it may be; nothing is allocated per request.
//! Source: NBD protocol, "Simple reply message", "Structured reply chunk message".

use crate::channel::{Channel, Ended};
use crate::codec::{ChunkStyle, Chunks, ReplyStyle, Request, SIMPLE_REPLY_BYTES, SimpleReply};
use crate::contexts::Context;
use crate::errno::{Errno, errno_of};
use ramet_engine::{BlockDevice, EngineError, Kind, Lent};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Chunks of one read; what follows them is sent as data, zeros included.
const READ_CHUNKS_MAX: usize = 128;
/// Extents of one context in a reply: 32 KiB, or 64 KiB with extended headers. Who wants to know
/// more asks again.
const EXTENTS_MAX: usize = 4096;
/// Room for more extents is given back after the reply.
const EXTENTS_KEPT: usize = 2 * READ_CHUNKS_MAX;
/// Where a read failed is looked for in steps of a block.
const BLOCK_BYTES: u64 = 4096;

/// Answers the requests of one connection.
pub(crate) struct Replier {
    style: ReplyStyle,
    /// Extents of the request that is being answered; kept so that none allocates.
    extents: Vec<(u64, bool)>,
}

impl Replier {
    pub(crate) fn new(style: ReplyStyle) -> Self {
        Replier { style, extents: Vec::new() }
    }

    /// Answer that a request without data in its reply is done, or why not.
    pub(crate) fn answer(
        &self,
        channel: &mut Channel,
        request: &Request,
        done: Result<(), (Errno, &str)>,
    ) -> Result<(), Ended> {
        match (self.style, done) {
            // Where both kinds are known a simple reply is shorter.
            (ReplyStyle::Simple, _) | (ReplyStyle::Chunks(ChunkStyle::Structured), Ok(())) => {
                let error = done.err().map_or(0, |(errno, _)| errno.value());
                channel.push_reply(&SimpleReply { error, cookie: request.cookie }.encode())
            }
            (ReplyStyle::Chunks(style), done) => {
                let chunks = chunks(style, request);
                channel.push_with(chunks.error_room(), |room| match done {
                    Ok(()) => chunks.none(room),
                    Err((errno, text)) => chunks.error(room, errno.value(), text, None),
                })
            }
        }
    }

    /// Read and answer with the bytes, in one chunk where `whole`; `lends`: blocks need not be
    /// copied. Result: how long the device took.
    pub(crate) fn read(
        &mut self,
        channel: &mut Channel,
        request: &Request,
        device: &dyn BlockDevice,
        (whole, lends): (bool, bool),
        closing: impl Fn() -> bool,
    ) -> Result<Duration, Ended> {
        let read = if lends { lend } else { copy };
        match self.style {
            ReplyStyle::Simple => read_simple(channel, request, device, read, closing),
            ReplyStyle::Chunks(_) if request.length_bytes == 0 => {
                self.answer(channel, request, Ok(())).map(|()| Duration::ZERO)
            }
            ReplyStyle::Chunks(style) => {
                let chunks = chunks(style, request);
                self.read_chunks(channel, &chunks, request, (device, read), whole, closing)
            }
        }
    }

    fn read_chunks(
        &mut self,
        channel: &mut Channel,
        chunks: &Chunks,
        request: &Request,
        (device, read): (&dyn BlockDevice, Read),
        whole: bool,
        closing: impl Fn() -> bool,
    ) -> Result<Duration, Ended> {
        let begun = Instant::now();
        if let Err(error) = self.plan_read(request, device, whole) {
            let errno = errno_of(error.kind, closing());
            let answered = self.answer(channel, request, Err((errno, &error.text)));
            return answered.map(|()| begun.elapsed());
        }
        let data_bytes: u64 =
            self.extents.iter().filter(|(_, mapped)| *mapped).map(|(length, _)| length).sum();
        let data_bytes = usize::try_from(data_bytes).map_err(|_| Ended)?;
        let each = chunks.data_room().max(chunks.hole_room());
        let room_bytes = data_bytes + each * self.extents.len() + chunks.error_room();
        let plan = &self.extents;
        let mut took = begun.elapsed();
        channel.push_read(room_bytes, |room, lent| {
            // Whatever waited for room to be sent is no part of it.
            let begun = Instant::now();
            let (mut written, mut at) = (0, request.offset_bytes);
            for (index, (length_bytes, mapped)) in plan.iter().enumerate() {
                let done = index + 1 == plan.len();
                let room = &mut room[written..];
                if *mapped {
                    let before = lent.len();
                    match put_data(room, chunks, (device, read), (at, *length_bytes), done, lent) {
                        Ok(bytes) => {
                            lent[before..].iter_mut().for_each(|lent| lent.place += written);
                            written += bytes;
                        }
                        Err((good_bytes, error, failed_at)) => {
                            let errno = errno_of(error.kind, closing()).value();
                            let rest = &mut room[good_bytes..];
                            let told = chunks.error(rest, errno, &error.text, failed_at);
                            return written + good_bytes + told;
                        }
                    }
                } else {
                    let length = u32::try_from(*length_bytes).expect("bounded by the payload");
                    written += chunks.hole(room, at, length, done);
                }
                at += length_bytes;
            }
            took += begun.elapsed();
            written
        })?;
        Ok(took)
    }

    /// Find out which chunks a read needs: length, and whether data or a hole.
    fn plan_read(
        &mut self,
        request: &Request,
        device: &dyn BlockDevice,
        whole: bool,
    ) -> Result<(), EngineError> {
        let Request { offset_bytes, length_bytes, .. } = *request;
        let extents = &mut self.extents;
        extents.clear();
        let most = if whole { 1 } else { READ_CHUNKS_MAX };
        let mut covered_bytes = 0;
        device.extents(offset_bytes, length_bytes, &mut |length_bytes, mapped| {
            extents.push((length_bytes, mapped));
            covered_bytes += length_bytes;
            if extents.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let rest_bytes = length_bytes - covered_bytes;
        match extents.last_mut() {
            _ if rest_bytes == 0 => {}
            // One chunk for all, or the last chunk goes on: zeros are sent where there are any.
            Some((last_bytes, mapped)) if whole || *mapped => {
                *mapped = true;
                *last_bytes += rest_bytes;
            }
            Some(_) | None => extents.push((rest_bytes, true)),
        }
        Ok(())
    }

    /// Answer with what `contexts` say, ids as indexes, of those whose bit is set in `wanted`.
    pub(crate) fn status(
        &mut self,
        channel: &mut Channel,
        request: &Request,
        device: &dyn BlockDevice,
        (contexts, wanted): (&[Context], u32),
        one: bool,
    ) -> Result<Result<(), EngineError>, Ended> {
        let ReplyStyle::Chunks(style) = self.style else {
            unreachable!("contexts are chosen after the style")
        };
        let chunks = chunks(style, request);
        let extents_max = if one { 1 } else { EXTENTS_MAX };
        let extents = &mut self.extents;
        let mut failed = None;
        let count = usize::try_from(wanted.count_ones()).map_err(|_| Ended)?;
        let room_bytes = count * chunks.status_room(extents_max);
        channel.push_with(room_bytes, |room| {
            let (mut written, mut left) = (0, count);
            for (id, context) in (0..).zip(contexts).filter(|(id, _)| wanted & (1 << id) != 0) {
                let Request { offset_bytes, length_bytes, .. } = *request;
                extents.clear();
                let told =
                    context.extents(device, offset_bytes, length_bytes, &mut |length, is| {
                        extents.push((length, is));
                        let more = extents.len() < extents_max;
                        if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                    });
                if let Err(error) = told {
                    failed = Some(error);
                    return 0;
                }
                left -= 1;
                let flagged = extents.iter().map(|(length, is)| (*length, context.flags(*is)));
                written += chunks.status(&mut room[written..], id, flagged, left == 0);
            }
            written
        })?;
        if self.extents.capacity() > EXTENTS_KEPT {
            self.extents = Vec::new();
        }
        Ok(failed.map_or(Ok(()), Err))
    }
}

fn chunks(style: ChunkStyle, request: &Request) -> Chunks {
    Chunks { style, cookie: request.cookie, offset_bytes: request.offset_bytes }
}

/// How the blocks of a reply are read.
type Read = fn(&dyn BlockDevice, u64, &mut [u8], &mut Vec<Lent>) -> Result<(), EngineError>;

fn lend(
    device: &dyn BlockDevice,
    at: u64,
    bytes: &mut [u8],
    lent: &mut Vec<Lent>,
) -> Result<(), EngineError> {
    device.read_lent(at, bytes, lent)
}

fn copy(
    device: &dyn BlockDevice,
    at: u64,
    bytes: &mut [u8],
    _lent: &mut Vec<Lent>,
) -> Result<(), EngineError> {
    device.read(at, bytes)
}

fn read_simple(
    channel: &mut Channel,
    request: &Request,
    device: &dyn BlockDevice,
    read: Read,
    closing: impl Fn() -> bool,
) -> Result<Duration, Ended> {
    let length_bytes = usize::try_from(request.length_bytes).map_err(|_| Ended)?;
    let mut took = Duration::ZERO;
    channel.push_read(SIMPLE_REPLY_BYTES + length_bytes, |room, lent| {
        let begun = Instant::now();
        let (header, payload) = room.split_at_mut(SIMPLE_REPLY_BYTES);
        let before = lent.len();
        let done = if payload.is_empty() {
            Ok(())
        } else {
            read(device, request.offset_bytes, payload, lent)
        };
        took = begun.elapsed();
        lent[before..].iter_mut().for_each(|lent| lent.place += SIMPLE_REPLY_BYTES);
        let error = done.err().map_or(0, |error| errno_of(error.kind, closing()).value());
        header.copy_from_slice(&SimpleReply { error, cookie: request.cookie }.encode());
        if error == 0 { SIMPLE_REPLY_BYTES + length_bytes } else { SIMPLE_REPLY_BYTES }
    })?;
    Ok(took)
}

/// Read into a data chunk. Result: bytes written; or on an error the bytes of a chunk with what is
/// good before it, the error, and where that is.
fn put_data(
    room: &mut [u8],
    chunks: &Chunks,
    (device, read): (&dyn BlockDevice, Read),
    (at, length_bytes): (u64, u64),
    done: bool,
    lent: &mut Vec<Lent>,
) -> Result<usize, (usize, EngineError, Option<u64>)> {
    let length = usize::try_from(length_bytes).expect("bounded by the payload");
    let prefix = chunks.data_room();
    let before = lent.len();
    let Err(error) = read(device, at, &mut room[prefix..prefix + length], lent) else {
        lent[before..].iter_mut().for_each(|lent| lent.place += prefix);
        let header = chunks.data(room, at, length, done);
        return Ok(header + length);
    };
    if error.kind != Kind::Corrupt {
        return Err((0, error, None));
    }
    let bytes = &mut room[prefix..prefix + length];
    match first_failure(device, at, bytes) {
        // It was overwritten in between: that healed it.
        None => Ok(chunks.data(room, at, length, done) + length),
        Some((0, error)) => Err((0, error, Some(at))),
        Some((good, error)) => {
            let header = chunks.data(room, at, good, false);
            Err((header + good, error, Some(at + good as u64)))
        }
    }
}

/// Read block by block, up to the first that fails. Result: how many bytes before it are good.
fn first_failure(
    device: &dyn BlockDevice,
    at: u64,
    bytes: &mut [u8],
) -> Option<(usize, EngineError)> {
    let mut good = 0;
    while good < bytes.len() {
        let from = at + good as u64;
        let to_end = usize::try_from(BLOCK_BYTES - from % BLOCK_BYTES).expect("below a block");
        let step = to_end.min(bytes.len() - good);
        if let Err(error) = device.read(from, &mut bytes[good..good + step]) {
            return Some((good, error));
        }
        good += step;
    }
    None
}
