//! A connection's turn in a crowd: small writes and flushes, and nothing that waits for a client.
//!
//! Invariants: what is not served here is left as it was received, for the connection's own thread;
//! requests take effect in their order, and none before a flush ahead of it is answered.

use crate::channel::{Ended, SMALL_BYTES_MAX};
use crate::codec::Request;
use crate::judgement::{Action, BLOCK_BYTES_PREFERRED, judge};
use crate::transmission::Transmission;
use ramet_engine::EngineError;

/// Longest payload of a write that is served here: a longer one would keep the others waiting.
const WRITE_BYTES_MAX: u64 = 64 << 10;
/// Requests in one turn; who has more at once is better off alone.
const REQUESTS_MAX: usize = 8;

/// What comes after a turn.
pub(crate) enum Turn {
    /// The client's next request.
    Receive,
    /// A flush, and then the answer to this request.
    Flush(Request),
    /// The connection's own thread.
    Leave,
}

impl Transmission {
    /// Serve what was received, receiving once where that is nothing whole.
    pub(crate) fn take_turn(&mut self) -> Turn {
        // Whatever went wrong, the connection's own thread meets it again.
        self.try_turn().unwrap_or(Turn::Leave)
    }

    /// Answer the flush of a turn. False where the rest is for the connection's own thread.
    pub(crate) fn answer_flush(
        &mut self,
        request: &Request,
        flushed: Result<(), EngineError>,
    ) -> bool {
        self.answer(request, flushed).is_ok() && self.channel.send_now().is_ok_and(|all| all)
    }

    fn try_turn(&mut self) -> Result<Turn, Ended> {
        let mut received = false;
        for _ in 0..REQUESTS_MAX {
            if self.membership.control().is_stopped() {
                return Ok(Turn::Leave);
            }
            let request = loop {
                let request = self.decode()?;
                let needed_bytes = match &request {
                    None => self.header_bytes,
                    Some(request) if self.is_small(request) => self.bytes_of(request)?,
                    Some(_) => return Ok(Turn::Leave),
                };
                if let Some(request) = request
                    && self.channel.pending().len() >= needed_bytes
                {
                    break request;
                }
                if received || !self.channel.receive_now(needed_bytes)? {
                    let all = self.channel.send_now()?;
                    return Ok(if all { Turn::Receive } else { Turn::Leave });
                }
                received = true;
            };
            if let Some(turn) = self.serve(&request)? {
                return Ok(turn);
            }
        }
        Ok(Turn::Leave)
    }

    /// Serve a request that is there whole. Result: whether the turn ends with it.
    fn serve(&mut self, request: &Request) -> Result<Option<Turn>, Ended> {
        // Before anything is taken of it: who is to be answered first may not be listening.
        if !self.channel.send_now()? {
            return Ok(Some(Turn::Leave));
        }
        let request_bytes = self.bytes_of(request)?;
        match judge(request, &self.shape, self.agreed) {
            Ok(Action::Flush) => {
                self.channel.consume(request_bytes);
                Ok(Some(Turn::Flush(*request)))
            }
            Ok(Action::Write { fua }) => {
                let payload = &self.channel.pending()[self.header_bytes..request_bytes];
                let written = self.device().write(request.offset_bytes, payload, false);
                self.channel.consume(request_bytes);
                if fua && written.is_ok() {
                    return Ok(Some(Turn::Flush(*request)));
                }
                self.answer(request, written)?;
                Ok(None)
            }
            Ok(_) | Err(_) => unreachable!("only small requests get here"),
        }
    }

    /// Whether a request is a flush, or a write that takes little and reads nothing.
    fn is_small(&self, request: &Request) -> bool {
        let blocks = u64::from(BLOCK_BYTES_PREFERRED);
        let Request { offset_bytes, length_bytes, .. } = *request;
        match judge(request, &self.shape, self.agreed) {
            Ok(Action::Flush) => true,
            Ok(Action::Write { .. }) => {
                (1..=WRITE_BYTES_MAX).contains(&length_bytes)
                    && offset_bytes.is_multiple_of(blocks)
                    && length_bytes.is_multiple_of(blocks)
            }
            Ok(_) | Err(_) => false,
        }
    }

    fn bytes_of(&self, request: &Request) -> Result<usize, Ended> {
        let payload_bytes = usize::try_from(request.payload_bytes).map_err(|_| Ended)?;
        let bytes = self.header_bytes + payload_bytes;
        assert!(bytes <= SMALL_BYTES_MAX, "a small request has a small payload");
        Ok(bytes)
    }
}
