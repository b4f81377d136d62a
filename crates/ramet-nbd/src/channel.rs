//! The buffers of one connection: many requests from one receive, many replies in one send.
//!
//! Invariants: what is received stays in place until it is consumed, so a payload is handed on
//! without a copy; memory grows to one request or reply at most and is given back after use.

use crate::buffer::Buffer;
use crate::large::LargeShare;
use crate::slice;
use crate::spin::{LOOK, Looking, Spin};
use crate::transport::{NoTransport, PARTS_WAIT, Received, Transport};
use ramet_engine::Lent;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// Either buffer at the start and after silence.
const SILENT_BYTES: usize = 1 << 10;
/// The receive buffer under load: what a socket holds is taken in one receive.
const RECEIVE_BYTES: usize = 256 << 10;
/// The reply buffer under load: eight reads of 4 KiB with room to spare.
const REPLY_BYTES: usize = 64 << 10;
/// A buffer that had to grow beyond this for one message shrinks right after it.
const KEPT_BYTES_MAX: usize = 4 << 20;
/// A buffer's bytes beyond this are of the memory that connections share.
const OWN_BYTES_MAX: usize = 2 << 20;
/// Sent at once where others may wait for the buffer, so that they see it go on.
const SEND_STEP_BYTES: usize = 256 << 10;
/// How much larger the receive buffer gets at once: a few bytes must not cost many.
const GROWTH: usize = 4;
/// Reads in one send. More would keep the client waiting while the server works: 32 was measured
/// to be a fifth slower.
const READS_MAX: usize = 8;
/// Replies of any kind in one send.
const REPLIES_MAX: usize = 16;
/// Parts in one send, half of them lent,
const PARTS_MAX: usize = 64;
/// and their bytes: the system gives a client anew as long for every few pages.
const PARTS_BYTES_MAX: usize = 128 << 10;
/// Messages up to this never have to wait for memory.
pub(crate) const SMALL_BYTES_MAX: usize = 128 << 10;

/// The connection is over: the peer is gone, broke the protocol, or was told to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended;

/// A connection with its buffers.
pub(crate) struct Channel {
    transport: Box<dyn Transport>,
    large: LargeShare,
    received: Buffer,
    start: usize,
    end: usize,
    filled_last: bool,
    replies: Buffer,
    replies_end: usize,
    /// What is to be sent instead of the bytes at its place in `replies`, in order.
    lent: Vec<Lent>,
    replies_count: usize,
    /// Replies since something was received.
    answered_count: usize,
    reads_count: usize,
    spin: Spin,
}

impl Channel {
    pub(crate) fn new(transport: Box<dyn Transport>, large: LargeShare) -> Self {
        Channel {
            transport,
            large,
            received: Buffer::zeroed(SILENT_BYTES),
            start: 0,
            end: 0,
            filled_last: false,
            replies: Buffer::empty(),
            replies_end: 0,
            lent: Vec::new(),
            replies_count: 0,
            answered_count: 0,
            reads_count: 0,
            spin: Spin::default(),
        }
    }

    /// Put another transport over the one that there is; all that is queued is sent first.
    ///
    /// # Errors
    /// `Ended` where the client sent more before it could know that it may: that came unencrypted.
    pub(crate) fn cover<T>(
        &mut self,
        cover: impl FnOnce(Box<dyn Transport>) -> io::Result<(Box<dyn Transport>, T)>,
    ) -> Result<T, Ended> {
        self.send()?;
        if !self.pending().is_empty() {
            return Err(Ended);
        }
        let bare = std::mem::replace(&mut self.transport, Box::new(NoTransport));
        let (covered, more) = cover(bare).map_err(|_| Ended)?;
        self.transport = covered;
        Ok(more)
    }

    /// Whether no reply waits to be sent.
    pub(crate) fn is_all_sent(&self) -> bool {
        self.replies_end == 0
    }

    /// What was received and not consumed.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.received[self.start..self.end]
    }

    /// Done with the first `length_bytes` of `pending`.
    pub(crate) fn consume(&mut self, length_bytes: usize) {
        assert!(length_bytes <= self.end - self.start, "consumed more than was received");
        self.start += length_bytes;
    }

    /// Send all replies, then receive at least a byte more; room for `needed_bytes` is made.
    pub(crate) fn receive_more(&mut self, needed_bytes: usize) -> Result<(), Ended> {
        let answered_count = std::mem::take(&mut self.answered_count);
        slice::answered(answered_count);
        if answered_count > 1 {
            self.spin.break_off();
        }
        self.send()?;
        let is_next = self.pending().is_empty();
        if is_next && self.look(needed_bytes)? {
            return Ok(());
        }
        loop {
            self.make_room(needed_bytes)?;
            self.large.begin_waiting();
            let begun = Instant::now();
            let received = self.transport.receive(&mut self.received[self.end..]);
            if is_next {
                self.spin.waited(begun.elapsed());
            }
            self.large.end_waiting(match received {
                Ok(Received::Bytes(length_bytes)) => length_bytes,
                _ => 0,
            });
            match received {
                Ok(Received::Bytes(length_bytes)) => {
                    self.end += length_bytes;
                    self.filled_last = self.end == self.received.len();
                    return Ok(());
                }
                Ok(Received::Silence) => self.give_back_memory()?,
                Ok(Received::End) | Err(_) => return Err(Ended),
            }
        }
    }

    /// Look for a request for a moment. Result: whether some of it is there.
    fn look(&mut self, needed_bytes: usize) -> Result<bool, Ended> {
        if !self.spin.is_worth_it() || self.transport.socket().is_none() {
            return Ok(false);
        }
        let Some(_looking) = Looking::begin() else { return Ok(false) };
        let begun = Instant::now();
        loop {
            let found = self.receive_now(needed_bytes)?;
            if found || begun.elapsed() >= LOOK {
                self.spin.looked(found);
                return Ok(found);
            }
            // The client may need this very processor.
            std::thread::yield_now();
        }
    }

    /// Whether the calls below work, and no memory has to be waited for.
    pub(crate) fn is_shareable(&self) -> bool {
        !self.large.is_held() && self.transport.socket().is_some()
    }

    pub(crate) fn socket(&self) -> Option<Arc<OwnedFd>> {
        self.transport.socket()
    }

    /// Receive what is there, for a message of `needed_bytes` at most [`SMALL_BYTES_MAX`]; false
    /// where that is nothing.
    pub(crate) fn receive_now(&mut self, needed_bytes: usize) -> Result<bool, Ended> {
        assert!(needed_bytes <= SMALL_BYTES_MAX, "room for this may have to be waited for");
        self.make_room(needed_bytes)?;
        match self.transport.receive_now(&mut self.received[self.end..]) {
            Ok(None) => Ok(false),
            Ok(Some(0)) | Err(_) => Err(Ended),
            Ok(Some(length_bytes)) => {
                self.end += length_bytes;
                self.filled_last = self.end == self.received.len();
                Ok(true)
            }
        }
    }

    /// Send what there is room for; false where something is left, for `send`.
    pub(crate) fn send_now(&mut self) -> Result<bool, Ended> {
        self.copy_lent(0)?;
        let mut sent_bytes = 0;
        let mut sent = Ok(0);
        while sent_bytes < self.replies_end {
            sent = self.transport.send_now(&self.replies[sent_bytes..self.replies_end]);
            match sent {
                Ok(0) | Err(_) => break,
                Ok(length_bytes) => sent_bytes += length_bytes,
            }
        }
        self.replies.copy_within(sent_bytes..self.replies_end, 0);
        self.replies_end -= sent_bytes;
        if self.replies_end == 0 {
            (self.replies_count, self.reads_count) = (0, 0);
        }
        sent.map(|_| self.replies_end == 0).map_err(|_| Ended)
    }

    /// Receive until `length_bytes` are pending.
    pub(crate) fn require(&mut self, length_bytes: usize) -> Result<&[u8], Ended> {
        while self.pending().len() < length_bytes {
            self.receive_more(length_bytes)?;
        }
        Ok(&self.pending()[..length_bytes])
    }

    /// Receive and drop `length_bytes`, in bounded memory.
    pub(crate) fn skip(&mut self, length_bytes: u64) -> Result<(), Ended> {
        let mut rest = length_bytes;
        loop {
            let step = usize::try_from(rest).unwrap_or(usize::MAX).min(self.pending().len());
            self.consume(step);
            rest -= u64::try_from(step).map_err(|_| Ended)?;
            if rest == 0 {
                return Ok(());
            }
            self.receive_more(SILENT_BYTES)?;
        }
    }

    /// Queue bytes to be sent.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.reply_room(bytes.len())?.copy_from_slice(bytes);
        self.replies_end += bytes.len();
        Ok(())
    }

    /// Queue a reply without payload.
    pub(crate) fn push_reply(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.push(bytes)?;
        self.replies_count += 1;
        self.answered_count += 1;
        self.send_if_due()
    }

    /// Queue a reply that `fill` writes to the start of `room_bytes` of room; it says how many
    /// bytes it wrote.
    pub(crate) fn push_with(
        &mut self,
        room_bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<(), Ended> {
        self.push_lent(room_bytes, |room, _| fill(room))
    }

    /// As `push_with`, for a read, which may leave out what it lends.
    pub(crate) fn push_read(
        &mut self,
        room_bytes: usize,
        fill: impl FnOnce(&mut [u8], &mut Vec<Lent>) -> usize,
    ) -> Result<(), Ended> {
        self.reads_count += 1;
        self.push_lent(room_bytes, fill)
    }

    fn push_lent(
        &mut self,
        room_bytes: usize,
        fill: impl FnOnce(&mut [u8], &mut Vec<Lent>) -> usize,
    ) -> Result<(), Ended> {
        self.reply_room(room_bytes)?;
        let (start, before) = (self.replies_end, self.lent.len());
        let room = &mut self.replies[start..start + room_bytes];
        let filled_bytes = fill(room, &mut self.lent);
        assert!(filled_bytes <= room_bytes, "a reply is longer than its room");
        self.lent[before..].iter_mut().for_each(|lent| lent.place += start);
        self.replies_end += filled_bytes;
        self.replies_count += 1;
        self.answered_count += 1;
        self.send_if_due()
    }

    /// Whether what is lent would be sent without a copy.
    pub(crate) fn takes_lent(&self) -> bool {
        self.transport.takes_parts()
    }

    /// Send what is queued.
    pub(crate) fn send(&mut self) -> Result<(), Ended> {
        if self.replies_end > 0 {
            let end = std::mem::take(&mut self.replies_end);
            self.replies_count = 0;
            self.reads_count = 0;
            let start = if self.lent.is_empty() { 0 } else { self.send_lent(end)? };
            let step = if self.large.is_held() { SEND_STEP_BYTES } else { end };
            for piece in self.replies[start..end].chunks(step) {
                self.large.begin_waiting();
                self.transport.send_all(piece).map_err(|_| Ended)?;
                self.large.end_waiting(piece.len());
            }
        }
        if self.replies.len() > KEPT_BYTES_MAX {
            self.replies = Buffer::zeroed(REPLY_BYTES);
            self.hold_large(self.received.len(), self.replies.len())?;
        }
        Ok(())
    }

    /// Send replies up to the last byte that is lent, or copy what the client does not take in
    /// time. Result: how many bytes of replies were sent.
    fn send_lent(&mut self, end: usize) -> Result<usize, Ended> {
        let (mut sent_bytes, mut first, begun) = (0_usize, 0, Instant::now());
        while first < self.lent.len() {
            let mut parts = [IoSlice::new(&[]); PARTS_MAX];
            let (mut count, mut at, limit) = (0, sent_bytes, sent_bytes + PARTS_BYTES_MAX);
            let round = &self.lent[first..self.lent.len().min(first + PARTS_MAX / 2)];
            for lent in round.iter().take_while(|lent| lent.place < limit) {
                let bytes = lent.bytes();
                if at < lent.place {
                    parts[count] = IoSlice::new(&self.replies[at..lent.place]);
                    count += 1;
                }
                let part = at.saturating_sub(lent.place)..bytes.len().min(limit - lent.place);
                at = lent.place + part.end;
                parts[count] = IoSlice::new(&bytes[part]);
                count += 1;
            }
            refuse_failed(round)?;
            self.large.begin_waiting();
            let sent = self.transport.send_parts(&parts[..count]).map_err(|_| Ended)?;
            self.large.end_waiting(sent.unwrap_or(0));
            refuse_failed(round)?;
            sent_bytes += sent.unwrap_or(0);
            let is_sent = |lent: &&Lent| lent.place + lent.bytes().len() <= sent_bytes;
            first += self.lent[first..].iter().take_while(is_sent).count();
            if sent.is_none() || begun.elapsed() >= PARTS_WAIT {
                self.copy_lent(first)?;
            }
        }
        self.lent.clear();
        assert!(sent_bytes <= end, "sent what is not a reply");
        Ok(sent_bytes)
    }

    /// Keep nothing that is lent: what comes next may take long.
    pub(crate) fn give_lent_back(&mut self) -> Result<(), Ended> {
        if self.lent.is_empty() { Ok(()) } else { self.copy_lent(0) }
    }

    /// Put what is lent to its place, from the `first` on, and give all of it back.
    fn copy_lent(&mut self, first: usize) -> Result<(), Ended> {
        for lent in self.lent.drain(..).skip(first) {
            let bytes = lent.bytes();
            self.replies[lent.place..lent.place + bytes.len()].copy_from_slice(bytes);
            refuse_failed(&[lent])?;
        }
        Ok(())
    }

    fn send_if_due(&mut self) -> Result<(), Ended> {
        if self.reads_count >= READS_MAX || self.replies_count >= REPLIES_MAX {
            self.send()?;
        }
        Ok(())
    }

    /// The next `length_bytes` of the reply buffer, after sending what is in the way.
    fn reply_room(&mut self, length_bytes: usize) -> Result<&mut [u8], Ended> {
        if self.replies.len() - self.replies_end < length_bytes {
            if self.replies_end > 0 {
                self.send()?;
            }
            if self.replies.len() < length_bytes {
                let small = self.replies.is_empty() && length_bytes <= SILENT_BYTES;
                let base_bytes = if small { SILENT_BYTES } else { REPLY_BYTES };
                self.replies = Buffer::empty();
                if self.received.len() > OWN_BYTES_MAX && self.pending().len() < SILENT_BYTES {
                    // Not both at once, where it can be helped: two such connections would wait for
                    // each other.
                    self.reallocate(RECEIVE_BYTES)?;
                }
                self.hold_large(self.received.len(), length_bytes)?;
                self.replies = Buffer::zeroed(length_bytes.max(base_bytes));
            }
        }
        Ok(&mut self.replies[self.replies_end..self.replies_end + length_bytes])
    }

    /// Make room behind `pending` for at least one byte, towards `needed_bytes` in all.
    ///
    /// Grows by what the client has sent, not by what it announced: a header costs no memory.
    fn make_room(&mut self, needed_bytes: usize) -> Result<(), Ended> {
        let pending_bytes = self.end - self.start;
        let wanted_bytes = needed_bytes.max(pending_bytes + 1);
        let capacity_bytes = self.received.len();
        let busy = self.filled_last && capacity_bytes < RECEIVE_BYTES;
        let oversized = capacity_bytes > KEPT_BYTES_MAX && wanted_bytes <= RECEIVE_BYTES;
        self.filled_last = false;
        if busy || oversized {
            let grown_bytes = if busy { capacity_bytes * GROWTH } else { RECEIVE_BYTES };
            self.reallocate(grown_bytes.min(RECEIVE_BYTES).max(pending_bytes + 1))?;
        } else if wanted_bytes > capacity_bytes && pending_bytes >= capacity_bytes / GROWTH {
            let grown_bytes = wanted_bytes.min(capacity_bytes * GROWTH);
            if grown_bytes > OWN_BYTES_MAX {
                // All that the message needs: who holds a part and waits for more is in the way.
                self.hold_large(wanted_bytes, self.replies.len())?;
            }
            self.move_to(grown_bytes);
        } else if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if capacity_bytes - self.start < wanted_bytes {
            self.received.copy_within(self.start..self.end, 0);
            self.start = 0;
            self.end = pending_bytes;
        }
        assert!(self.end < self.received.len(), "no room to receive into");
        Ok(())
    }

    fn give_back_memory(&mut self) -> Result<(), Ended> {
        (self.replies, self.lent) = (Buffer::empty(), Vec::new());
        let pending_bytes = self.end - self.start;
        let kept_bytes = (pending_bytes + 1).next_power_of_two().max(SILENT_BYTES);
        if self.received.len() > kept_bytes {
            self.reallocate(kept_bytes)?;
        }
        Ok(())
    }

    /// Hold what buffers of these lengths have beyond their own share.
    fn hold_large(&mut self, received_bytes: usize, replies_bytes: usize) -> Result<(), Ended> {
        let beyond = |bytes: usize| bytes.saturating_sub(OWN_BYTES_MAX);
        self.large.hold(beyond(received_bytes) + beyond(replies_bytes))
    }

    fn reallocate(&mut self, capacity_bytes: usize) -> Result<(), Ended> {
        self.hold_large(capacity_bytes, self.replies.len())?;
        self.move_to(capacity_bytes);
        Ok(())
    }

    /// Put what is pending into a buffer of this length.
    fn move_to(&mut self, capacity_bytes: usize) {
        let mut received = Buffer::zeroed(capacity_bytes);
        let pending_bytes = self.end - self.start;
        received[..pending_bytes].copy_from_slice(self.pending());
        self.received = received;
        self.start = 0;
        self.end = pending_bytes;
    }
}

/// End the connection where a medium failed under what is lent: its header says that all went well.
fn refuse_failed(lent: &[Lent]) -> Result<(), Ended> {
    if lent.iter().any(Lent::has_failed) { Err(Ended) } else { Ok(()) }
}
