//! The transmission phase: requests in, device calls, replies out, in order of arrival.
//!
//! Invariants: a write reaches the device only when its payload is there whole, straight from the
//! receive buffer; a request that is refused leaves the stream in step; nothing is allocated per
//! request. `replies` says how they are answered.
//! Source: NBD protocol, "Transmission", "Request types".

use crate::ahead::{Ahead, REQUESTS_MAX, medium_blocks};
use crate::channel::{Channel, Ended};
use crate::codec::values::{CMD_BLOCK_STATUS, CMD_FLAG_PAYLOAD_LEN, CMD_READ};
use crate::codec::{EXTENDED_REQUEST_BYTES, REQUEST_BYTES, Request, StatusPayload};
use crate::contexts::{CONTEXTS_MAX, Context};
use crate::errno::{Errno, errno_of};
use crate::habit::Habit;
use crate::judgement::{Action, Agreed, ExportShape, PAYLOAD_BYTES_MAX, judge};
use crate::negotiation::Negotiated;
use crate::pairs::Pairs;
use crate::registry::Membership;
use crate::replies::Replier;
use ramet_engine::{BlockDevice, EngineError};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Longest payload of a refused write that is read and dropped; beyond it the connection ends.
const SKIP_BYTES_MAX: u64 = 128 << 20;
/// What one cache request reads; the rest of a longer one is not read.
const CACHE_BYTES_MAX: u64 = 32 << 20;
/// What may wait while more is received.
const RECEIVED_AHEAD_BYTES_MAX: usize = 64 << 10;
/// Read at once for a cache request, into memory that is then dropped.
const CACHE_STEP_BYTES: u64 = 256 << 10;

/// A connection with an open export. Dropped in the order of its fields: first the device.
pub(crate) struct Transmission {
    pub(crate) negotiated: Negotiated,
    pub(crate) channel: Channel,
    pub(crate) membership: Arc<Membership>,
    pub(crate) shape: ExportShape,
    pub(crate) agreed: Agreed,
    /// Length of a request before its payload.
    pub(crate) header_bytes: usize,
    replier: Replier,
    ahead: Ahead,
    pub(crate) habit: Habit,
    pairs: Pairs,
}

impl Transmission {
    pub(crate) fn new(
        channel: Channel,
        membership: Arc<Membership>,
        negotiated: Negotiated,
        habit: Habit,
    ) -> Self {
        let Negotiated { attachment, replies, contexts } = &negotiated;
        let shape = attachment.shape();
        let agreed = Agreed { replies: *replies, status: !contexts.is_empty() };
        let header_bytes =
            if agreed.is_extended() { EXTENDED_REQUEST_BYTES } else { REQUEST_BYTES };
        let replier = Replier::new(*replies);
        let ahead = Ahead::default();
        Transmission {
            negotiated,
            channel,
            membership,
            shape,
            agreed,
            header_bytes,
            replier,
            ahead,
            habit,
            pairs: Pairs::default(),
        }
    }

    pub(crate) fn device(&self) -> &dyn BlockDevice {
        self.negotiated.attachment.device()
    }

    fn contexts(&self) -> &[Context] {
        &self.negotiated.contexts
    }

    /// Serve requests until the connection had better be served together with others.
    ///
    /// # Errors
    /// `Ended`.
    pub(crate) fn run(&mut self) -> Result<(), Ended> {
        self.pairs.forget();
        while !self.membership.control().is_stopped() {
            let served = self.next_request();
            if served.is_err() {
                // What was answered before a broken or last request still goes out.
                let _ = self.channel.send();
                return served;
            }
            if self.habit.is_crowded() && self.channel.is_shareable() {
                return self.channel.send();
            }
        }
        Err(Ended)
    }

    /// Serve one request, or receive more of it.
    fn next_request(&mut self) -> Result<(), Ended> {
        let Some(request) = self.decode()? else {
            self.channel.receive_more(self.header_bytes)?;
            if self.ahead.is_wanted() {
                self.tell_ahead();
            }
            return Ok(());
        };
        if self.channel.pending().len() as u64 - self.header_bytes as u64 >= request.payload_bytes {
            self.ahead.begin();
        }
        if self.agreed.is_extended()
            && request.command == CMD_BLOCK_STATUS
            && request.flags & CMD_FLAG_PAYLOAD_LEN != 0
        {
            return self.status_of_some(&request);
        }
        match judge(&request, &self.shape, self.agreed) {
            Err(errno) => self.refuse(&request, errno),
            Ok(Action::Write { fua }) => self.write(&request, fua),
            Ok(action) => {
                self.channel.consume(self.header_bytes);
                self.act(&request, action)
            }
        }
    }

    pub(crate) fn decode(&self) -> Result<Option<Request>, Ended> {
        self.decode_at(self.channel.pending())
    }

    /// Tell the device of reads that were received and wait for their turn, once of each.
    fn tell_ahead(&mut self) {
        let (mut rest, mut count) = (self.channel.pending(), 0);
        while count < REQUESTS_MAX
            && let Ok(Some(request)) = self.decode_at(rest)
        {
            if request.command == CMD_READ && count >= self.ahead.told_count() {
                self.device().will_read(request.offset_bytes, request.length_bytes);
            }
            count += 1;
            let payload_bytes = usize::try_from(request.payload_bytes).unwrap_or(usize::MAX);
            rest = rest.get(self.header_bytes.saturating_add(payload_bytes)..).unwrap_or_default();
        }
        self.ahead.tell(count);
    }

    /// While reads wait for a medium, look what the client sent since it was last answered, so that
    /// the medium never has less to do than the client asked for.
    fn receive_ahead(&mut self) {
        let few = self.channel.pending().len() <= RECEIVED_AHEAD_BYTES_MAX;
        // An end is met again when all that came before it was served.
        if few
            && self.channel.is_shareable()
            && self.channel.receive_now(self.header_bytes).unwrap_or(false)
        {
            self.tell_ahead();
        }
    }

    fn decode_at(&self, pending: &[u8]) -> Result<Option<Request>, Ended> {
        let request = if self.agreed.is_extended() {
            pending.first_chunk().map(Request::decode_extended)
        } else {
            pending.first_chunk().map(Request::decode)
        };
        request.transpose().map_err(|_| Ended)
    }

    /// Drop the payload of a request that is not served, and say why.
    fn refuse(&mut self, request: &Request, errno: Errno) -> Result<(), Ended> {
        // With extended headers the protocol asks to end the connection for what it never allows.
        let most =
            if self.agreed.is_extended() { u64::from(PAYLOAD_BYTES_MAX) } else { SKIP_BYTES_MAX };
        if request.payload_bytes > most {
            return Err(Ended);
        }
        self.break_off();
        self.channel.consume(self.header_bytes);
        self.channel.skip(request.payload_bytes)?;
        self.replier.answer(&mut self.channel, request, Err((errno, errno.text())))
    }

    fn write(&mut self, request: &Request, fua: bool) -> Result<(), Ended> {
        let payload_bytes = usize::try_from(request.payload_bytes).map_err(|_| Ended)?;
        let request_bytes = self.header_bytes + payload_bytes;
        if self.channel.pending().len() < request_bytes {
            return self.channel.receive_more(request_bytes);
        }
        self.send_before_durability(fua)?;
        self.channel.give_lent_back()?;
        let is_last = self.channel.pending().len() == request_bytes;
        let under_way = fua.then(|| self.habit.flush(is_last));
        let payload = &self.channel.pending()[self.header_bytes..request_bytes];
        let written = if payload.is_empty() {
            Ok(())
        } else {
            self.device().write(request.offset_bytes, payload, fua)
        };
        drop(under_way);
        self.channel.consume(request_bytes);
        let is_plain = is_last && !fua && written.is_ok();
        self.answer(request, written)?;
        if !is_plain {
            self.pairs.break_off();
        } else if self.pairs.write() {
            self.flush_expected()?;
        }
        Ok(())
    }

    /// Flush what was just written: the client is about to ask for it, and may do so meanwhile.
    fn flush_expected(&mut self) -> Result<(), Ended> {
        // First, so that the medium works while the write's answer is on its way.
        self.device().will_flush();
        self.channel.send()?;
        let under_way = self.habit.flush(true);
        // Where it fails, so does the flush that the client asks for: nobody else is told.
        let _ = self.device().flush();
        drop(under_way);
        Ok(())
    }

    /// Neither a write nor a flush.
    fn break_off(&mut self) {
        self.habit.break_off();
        self.pairs.break_off();
    }

    fn act(&mut self, request: &Request, action: Action) -> Result<(), Ended> {
        let Request { offset_bytes, length_bytes, .. } = *request;
        if action != Action::Flush {
            self.break_off();
        }
        if !matches!(action, Action::Read { .. } | Action::Flush) {
            self.channel.give_lent_back()?;
        }
        let done = match action {
            Action::Read { whole } => return self.read(request, whole),
            Action::Status { one } => return self.status(request, one, u32::MAX),
            Action::Disconnect => return Err(Ended),
            Action::Flush => return self.flush(request),
            Action::Trim { .. } | Action::WriteZeroes { .. } | Action::Cache
                if length_bytes == 0 =>
            {
                Ok(())
            }
            Action::Trim { fua } => {
                self.send_before_durability(fua)?;
                self.device().trim(offset_bytes, length_bytes, fua)
            }
            Action::WriteZeroes { fua } => {
                self.send_before_durability(fua)?;
                self.device().write_zeroes(offset_bytes, length_bytes, fua)
            }
            Action::Cache => self.cache(offset_bytes, length_bytes),
            Action::Write { .. } => unreachable!("a write has a payload and its own path"),
        };
        self.answer(request, done)
    }

    fn flush(&mut self, request: &Request) -> Result<(), Ended> {
        self.send_before_durability(true)?;
        let was_expected = self.pairs.flush(self.device().is_durable());
        let is_last = self.channel.pending().is_empty();
        // One that was expected has counted before.
        let under_way = (!was_expected).then(|| self.habit.flush(is_last));
        // Called all the same: it covers what other connections wrote since.
        let done = self.device().flush();
        drop(under_way);
        self.answer(request, done)
    }

    fn read(&mut self, request: &Request, whole: bool) -> Result<(), Ended> {
        let registry = self.membership.registry();
        let closing = || registry.is_closing();
        let device = self.negotiated.attachment.device();
        // Where a medium is waited for, it is asked for many reads at once, which are then copied.
        let lends = !self.ahead.is_wanted() && self.channel.takes_lent();
        let how = (whole, lends);
        let took = self.replier.read(&mut self.channel, request, device, how, closing)?;
        if self.ahead.note(took, request.length_bytes, medium_blocks) {
            self.tell_ahead();
        } else if self.ahead.is_wanted() && self.channel.is_all_sent() {
            self.receive_ahead();
        }
        Ok(())
    }

    /// Read what is mapped, so that the next read finds it in memory.
    fn cache(&self, offset_bytes: u64, length_bytes: u64) -> Result<(), EngineError> {
        let end = offset_bytes + length_bytes.min(CACHE_BYTES_MAX);
        let mut buffer = Vec::new();
        let mut at = offset_bytes;
        while at < end {
            let (mut step, mut mapped) = (0, false);
            self.device().extents(at, (end - at).min(CACHE_STEP_BYTES), &mut |length, is| {
                (step, mapped) = (length, is);
                ControlFlow::Break(())
            })?;
            if mapped {
                buffer.resize(usize::try_from(step).expect("bounded by the step"), 0);
                self.device().read(at, &mut buffer)?;
            }
            at += step;
        }
        Ok(())
    }

    /// The status of those contexts that the payload names.
    fn status_of_some(&mut self, request: &Request) -> Result<(), Ended> {
        self.break_off();
        let contexts_max = u64::try_from(CONTEXTS_MAX).map_err(|_| Ended)?;
        if request.payload_bytes > StatusPayload::bytes(contexts_max) {
            return self.refuse(request, Errno::Invalid);
        }
        let payload_bytes = usize::try_from(request.payload_bytes).map_err(|_| Ended)?;
        let request_bytes = self.header_bytes + payload_bytes;
        if self.channel.pending().len() < request_bytes {
            return self.channel.receive_more(request_bytes);
        }
        let payload =
            StatusPayload::decode(&self.channel.pending()[self.header_bytes..request_bytes]);
        let Some((payload, wanted)) = payload.and_then(|payload| {
            let wanted = self.wanted(&payload.contexts)?;
            Some((payload, wanted))
        }) else {
            return self.refuse(request, Errno::Invalid);
        };
        let effect = Request {
            flags: request.flags & !CMD_FLAG_PAYLOAD_LEN,
            length_bytes: payload.length_bytes,
            payload_bytes: 0,
            ..*request
        };
        match judge(&effect, &self.shape, self.agreed) {
            Ok(Action::Status { one }) => {
                self.channel.consume(request_bytes);
                self.status(&effect, one, wanted)
            }
            Ok(_) => unreachable!("the command is that of the request"),
            Err(errno) => self.refuse(request, errno),
        }
    }

    /// The ids as bits; nothing where one is unknown or comes twice, or there is none.
    fn wanted(&self, ids: &[u32]) -> Option<u32> {
        let mut wanted = 0_u32;
        for id in ids {
            let known = usize::try_from(*id).is_ok_and(|id| id < self.contexts().len());
            let bit = if known { 1_u32 << id } else { 0 };
            if bit == 0 || wanted & bit != 0 {
                return None;
            }
            wanted |= bit;
        }
        (wanted != 0).then_some(wanted)
    }

    fn status(&mut self, request: &Request, one: bool, wanted: u32) -> Result<(), Ended> {
        let Negotiated { attachment, contexts, .. } = &self.negotiated;
        let every = u32::MAX >> (32 - contexts.len());
        let contexts = (&contexts[..], wanted & every);
        let device = attachment.device();
        let told = self.replier.status(&mut self.channel, request, device, contexts, one)?;
        match told {
            Ok(()) => Ok(()),
            Err(error) => self.answer(request, Err(error)),
        }
    }

    /// A sync takes long: who waits for what is done already should not wait for it.
    fn send_before_durability(&mut self, durable: bool) -> Result<(), Ended> {
        if durable { self.channel.send() } else { Ok(()) }
    }

    pub(crate) fn answer(
        &mut self,
        request: &Request,
        done: Result<(), EngineError>,
    ) -> Result<(), Ended> {
        let closing = self.membership.registry().is_closing();
        let done = match &done {
            Ok(()) => Ok(()),
            Err(error) => Err((errno_of(error.kind, closing), error.text.as_str())),
        };
        self.replier.answer(&mut self.channel, request, done)
    }
}
