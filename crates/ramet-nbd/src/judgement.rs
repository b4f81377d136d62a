//! Decide what to do with a request before the device is asked.
//!
//! Pure: a request and the shape of the export in, an action or an error value out.
//! Source: NBD protocol, "Request types", "Command flags", "Error values".

use crate::codec::values::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE, CMD_FLAG_PAYLOAD_LEN, CMD_FLAG_REQ_ONE, CMD_FLUSH, CMD_READ, CMD_TRIM,
    CMD_WRITE, CMD_WRITE_ZEROES, FLAG_BLOCK_STATUS_PAYLOAD, FLAG_CAN_MULTI_CONN, FLAG_HAS_FLAGS,
    FLAG_READ_ONLY, FLAG_SEND_CACHE, FLAG_SEND_DF, FLAG_SEND_FAST_ZERO, FLAG_SEND_FLUSH,
    FLAG_SEND_FUA, FLAG_SEND_TRIM, FLAG_SEND_WRITE_ZEROES,
};
use crate::codec::{ChunkStyle, ReplyStyle, Request};
use crate::errno::Errno;

/// Smallest request that is served; any alignment is.
pub(crate) const BLOCK_BYTES_MIN: u32 = 1;
/// Requests in multiples of this need no read before the write: the size of a block.
pub(crate) const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Longest payload of one read or write; what the protocol asks of a server that says nothing.
pub(crate) const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// What a connection knows about its export; fixed when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportShape {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
}

impl ExportShape {
    /// The transmission flags that say what this export can do on a connection.
    #[must_use]
    pub fn transmission_flags(&self, agreed: Agreed) -> u16 {
        let always = FLAG_HAS_FLAGS
            | FLAG_SEND_FLUSH
            | FLAG_SEND_FUA
            | FLAG_CAN_MULTI_CONN
            | FLAG_SEND_CACHE;
        let own = if self.read_only {
            FLAG_READ_ONLY
        } else {
            FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES | FLAG_SEND_FAST_ZERO
        };
        let fragments = if agreed.replies == ReplyStyle::Simple { 0 } else { FLAG_SEND_DF };
        let payload =
            if agreed.status && agreed.is_extended() { FLAG_BLOCK_STATUS_PAYLOAD } else { 0 };
        always | own | fragments | payload
    }

    /// Whether a request covers a block as a whole: then zeroing it costs less than writing it.
    fn covers_block(&self, request: &Request) -> bool {
        let block_bytes = u64::from(BLOCK_BYTES_PREFERRED);
        let end_bytes = request.offset_bytes.saturating_add(request.length_bytes);
        let first = request.offset_bytes.div_ceil(block_bytes);
        // The last block of an export may be partial.
        let at_end = end_bytes == self.size_bytes;
        let end = if at_end { end_bytes.div_ceil(block_bytes) } else { end_bytes / block_bytes };
        first < end
    }

    fn holds(&self, request: &Request) -> bool {
        request
            .offset_bytes
            .checked_add(request.length_bytes)
            .is_some_and(|end| end <= self.size_bytes)
    }
}

/// What client and server agreed on before transmission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// How requests look and how they are answered.
    pub replies: ReplyStyle,
    /// Metadata contexts were chosen.
    pub status: bool,
}

impl Agreed {
    /// Whether lengths have 64 bits.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.replies == ReplyStyle::Chunks(ChunkStyle::Extended)
    }
}

/// What to do with a request that is in order; offset and length are the request's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read and answer with the bytes.
    Read {
        /// All of them in one chunk.
        whole: bool,
    },
    /// Write the payload.
    Write {
        /// Durable before the answer.
        fua: bool,
    },
    /// Make what is completed durable.
    Flush,
    /// Give the range back.
    Trim {
        /// Durable before the answer.
        fua: bool,
    },
    /// Make the range read as zeros.
    WriteZeroes {
        /// Durable before the answer.
        fua: bool,
    },
    /// Make reads of the range fast.
    Cache,
    /// Say what the metadata contexts say.
    Status {
        /// One extent for each context.
        one: bool,
    },
    /// Answer what is outstanding and end.
    Disconnect,
}

/// Judge one request.
///
/// # Errors
/// The error value to answer with; a payload is to be dropped first.
pub fn judge(request: &Request, shape: &ExportShape, agreed: Agreed) -> Result<Action, Errno> {
    let (action, mut allowed) = name_action(request, agreed)?;
    // FUA is legal on every command once it is advertised; it means something on writes only.
    allowed |= CMD_FLAG_FUA;
    if agreed.is_extended() && request.command == CMD_WRITE {
        allowed |= CMD_FLAG_PAYLOAD_LEN;
        // What is to be written would be missing.
        if request.flags & CMD_FLAG_PAYLOAD_LEN == 0 {
            return Err(Errno::Invalid);
        }
    }
    if request.flags & !allowed != 0 {
        return Err(Errno::Invalid);
    }
    match action {
        Action::Read { .. } => judge_read(request, shape, agreed)?,
        Action::Write { .. } => judge_write(request, shape)?,
        Action::WriteZeroes { .. } => judge_zeroes(request, shape)?,
        Action::Trim { .. } => judge_change(request, shape, Errno::Invalid)?,
        Action::Cache if !shape.holds(request) => return Err(Errno::Invalid),
        // Of no bytes there is no extent to tell.
        Action::Status { .. } if !shape.holds(request) || request.length_bytes == 0 => {
            return Err(Errno::Invalid);
        }
        Action::Flush if request.offset_bytes != 0 || request.length_bytes != 0 => {
            return Err(Errno::Invalid);
        }
        Action::Cache | Action::Status { .. } | Action::Flush | Action::Disconnect => {}
    }
    Ok(action)
}

/// What a request asks for, and the flags that it may have besides FUA.
fn name_action(request: &Request, agreed: Agreed) -> Result<(Action, u16), Errno> {
    let has = |flag| request.flags & flag != 0;
    let fua = has(CMD_FLAG_FUA);
    let fragments = if agreed.replies == ReplyStyle::Simple { 0 } else { CMD_FLAG_DF };
    Ok(match request.command {
        CMD_READ => (Action::Read { whole: has(CMD_FLAG_DF) }, fragments),
        CMD_WRITE => (Action::Write { fua }, 0),
        // Whatever its flags: nothing would be answered.
        CMD_DISC => (Action::Disconnect, !0),
        CMD_FLUSH => (Action::Flush, 0),
        CMD_TRIM => (Action::Trim { fua }, 0),
        CMD_CACHE => (Action::Cache, 0),
        // NO_HOLE is accepted and changes nothing: where nothing is overwritten in place,
        // zeros that take space now would not keep a later write from running out of it.
        CMD_WRITE_ZEROES => (Action::WriteZeroes { fua }, CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO),
        CMD_BLOCK_STATUS if agreed.status => {
            (Action::Status { one: has(CMD_FLAG_REQ_ONE) }, CMD_FLAG_REQ_ONE)
        }
        _ => return Err(Errno::Invalid),
    })
}

fn judge_read(request: &Request, shape: &ExportShape, agreed: Agreed) -> Result<(), Errno> {
    if !shape.holds(request) {
        return Err(Errno::Invalid);
    }
    if request.length_bytes <= u64::from(PAYLOAD_BYTES_MAX) {
        return Ok(());
    }
    // The protocol keeps EOVERFLOW for clients that know chunks.
    Err(if agreed.replies == ReplyStyle::Simple { Errno::Invalid } else { Errno::Overflow })
}

fn judge_write(request: &Request, shape: &ExportShape) -> Result<(), Errno> {
    // The protocol keeps EOVERFLOW for requests without a payload.
    if !shape.read_only && request.length_bytes > u64::from(PAYLOAD_BYTES_MAX) {
        return Err(Errno::Invalid);
    }
    judge_change(request, shape, Errno::NoSpace)
}

fn judge_zeroes(request: &Request, shape: &ExportShape) -> Result<(), Errno> {
    // A write without payload: past the end it answers what a write does.
    judge_change(request, shape, Errno::NoSpace)?;
    let fast = request.flags & CMD_FLAG_FAST_ZERO == 0
        || request.length_bytes == 0
        || shape.covers_block(request);
    if fast { Ok(()) } else { Err(Errno::NotSupported) }
}

fn judge_change(request: &Request, shape: &ExportShape, past_end: Errno) -> Result<(), Errno> {
    if shape.read_only {
        return Err(Errno::NotPermitted);
    }
    if shape.holds(request) { Ok(()) } else { Err(past_end) }
}
