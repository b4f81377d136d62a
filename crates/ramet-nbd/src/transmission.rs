//! The transmission phase: requests in, device calls, replies out, in order of arrival.
//!
//! Invariants: a write reaches the device only when its payload is there whole, straight from the
//! receive buffer; a request that is refused leaves the stream in step; nothing is allocated per
//! request. Replies go through `answer` and `read` only: other reply formats start there.
//! Source: NBD protocol, "Transmission", "Request types".

use crate::channel::{Channel, Ended};
use crate::codec::{REQUEST_BYTES, Request, SimpleReply};
use crate::errno::{Errno, errno_of};
use crate::judgement::{Action, ExportShape, judge};
use crate::registry::{Attachment, Membership};
use ramet_engine::{BlockDevice, EngineError};

/// Longest payload of a refused write that is read and dropped; beyond it the connection ends.
const SKIP_BYTES_MAX: u64 = 128 << 20;

/// A connection with an open export.
pub(crate) struct Transmission<'a> {
    channel: &'a mut Channel,
    membership: &'a Membership,
    device: &'a dyn BlockDevice,
    shape: ExportShape,
}

impl<'a> Transmission<'a> {
    pub(crate) fn new(
        channel: &'a mut Channel,
        membership: &'a Membership,
        attachment: &'a Attachment,
    ) -> Self {
        let (device, shape) = (attachment.device(), attachment.shape());
        Transmission { channel, membership, device, shape }
    }

    /// Serve requests until the connection ends.
    pub(crate) fn run(mut self) -> Result<(), Ended> {
        while !self.membership.control().is_stopped() {
            let served = self.next_request();
            if served.is_err() {
                // What was answered before a broken or last request still goes out.
                let _ = self.channel.send();
                return served;
            }
        }
        Ok(())
    }

    /// Serve one request, or receive more of it.
    fn next_request(&mut self) -> Result<(), Ended> {
        let Some(header) = self.channel.pending().first_chunk::<REQUEST_BYTES>() else {
            return self.channel.receive_more(REQUEST_BYTES);
        };
        let request = Request::decode(header).map_err(|_| Ended)?;
        match judge(&request, &self.shape) {
            Err(errno) => self.refuse(&request, errno),
            Ok(Action::Write { fua }) => self.write(&request, fua),
            Ok(action) => {
                self.channel.consume(REQUEST_BYTES);
                self.act(&request, action)
            }
        }
    }

    /// Drop the payload of a request that is not served, and say why.
    fn refuse(&mut self, request: &Request, errno: Errno) -> Result<(), Ended> {
        let payload_bytes = request.payload_bytes();
        if payload_bytes > SKIP_BYTES_MAX {
            return Err(Ended);
        }
        self.channel.consume(REQUEST_BYTES);
        self.channel.skip(payload_bytes)?;
        self.answer(request, Err(errno))
    }

    fn write(&mut self, request: &Request, fua: bool) -> Result<(), Ended> {
        let payload_bytes = usize::try_from(request.length_bytes).map_err(|_| Ended)?;
        let request_bytes = REQUEST_BYTES + payload_bytes;
        if self.channel.pending().len() < request_bytes {
            return self.channel.receive_more(request_bytes);
        }
        self.send_before_durability(fua)?;
        let payload = &self.channel.pending()[REQUEST_BYTES..request_bytes];
        let written = if payload.is_empty() {
            Ok(())
        } else {
            self.device.write(request.offset_bytes, payload, fua)
        };
        self.channel.consume(request_bytes);
        self.answer_device(request, written)
    }

    fn act(&mut self, request: &Request, action: Action) -> Result<(), Ended> {
        let Request { offset_bytes, length_bytes, .. } = *request;
        let done = match action {
            Action::Read => return self.read(request),
            Action::Disconnect => return Err(Ended),
            Action::Flush => {
                self.send_before_durability(true)?;
                self.device.flush()
            }
            Action::Trim { .. } | Action::WriteZeroes { .. } if length_bytes == 0 => Ok(()),
            Action::Trim { fua } => {
                self.send_before_durability(fua)?;
                self.device.trim(offset_bytes, length_bytes, fua)
            }
            Action::WriteZeroes { fua } => {
                self.send_before_durability(fua)?;
                self.device.write_zeroes(offset_bytes, length_bytes, fua)
            }
            Action::Write { .. } => unreachable!("a write has a payload and its own path"),
        };
        self.answer_device(request, done)
    }

    fn read(&mut self, request: &Request) -> Result<(), Ended> {
        let length_bytes = usize::try_from(request.length_bytes).map_err(|_| Ended)?;
        let device = self.device;
        let membership = self.membership;
        self.channel.push_read(request.cookie, length_bytes, |payload| {
            if payload.is_empty() {
                return Ok(());
            }
            let read = device.read(request.offset_bytes, payload);
            read.map_err(|error| errno_of(error.kind, membership.registry().is_closing()).value())
        })
    }

    /// A sync takes long: who waits for what is done already should not wait for it.
    fn send_before_durability(&mut self, durable: bool) -> Result<(), Ended> {
        if durable { self.channel.send() } else { Ok(()) }
    }

    fn answer_device(
        &mut self,
        request: &Request,
        done: Result<(), EngineError>,
    ) -> Result<(), Ended> {
        let closing = || self.membership.registry().is_closing();
        self.answer(request, done.map_err(|error| errno_of(error.kind, closing())))
    }

    fn answer(&mut self, request: &Request, done: Result<(), Errno>) -> Result<(), Ended> {
        let error = done.err().map_or(0, Errno::value);
        self.channel.push_reply(SimpleReply { error, cookie: request.cookie })
    }
}
