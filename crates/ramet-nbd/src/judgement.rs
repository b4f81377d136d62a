//! Decide what to do with a request before the device is asked.
//!
//! Pure: a request and the shape of the export in, an action or an error value out.
//! Source: NBD protocol, "Request types", "Command flags", "Error values".

use crate::codec::Request;
use crate::codec::values::{
    CMD_DISC, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES, FLAG_CAN_MULTI_CONN, FLAG_HAS_FLAGS, FLAG_READ_ONLY, FLAG_SEND_FLUSH,
    FLAG_SEND_FUA, FLAG_SEND_TRIM, FLAG_SEND_WRITE_ZEROES,
};
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
    /// The transmission flags that say what this export can do.
    #[must_use]
    pub fn transmission_flags(&self) -> u16 {
        let always = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_CAN_MULTI_CONN;
        if self.read_only {
            always | FLAG_READ_ONLY
        } else {
            always | FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES
        }
    }

    fn holds(&self, request: &Request) -> bool {
        request
            .offset_bytes
            .checked_add(request.length_bytes)
            .is_some_and(|end| end <= self.size_bytes)
    }
}

/// What to do with a request that is in order; offset and length are the request's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read and answer with the bytes.
    Read,
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
    /// Answer what is outstanding and end.
    Disconnect,
}

/// Judge one request.
///
/// # Errors
/// The error value to answer with; a payload is to be dropped first.
pub fn judge(request: &Request, shape: &ExportShape) -> Result<Action, Errno> {
    // FUA is legal on every command once it is advertised; it means something on writes only.
    let fua = request.flags & CMD_FLAG_FUA != 0;
    let action = match request.command {
        CMD_READ => Action::Read,
        CMD_WRITE => Action::Write { fua },
        CMD_DISC => return Ok(Action::Disconnect),
        CMD_FLUSH => Action::Flush,
        CMD_TRIM => Action::Trim { fua },
        CMD_WRITE_ZEROES => Action::WriteZeroes { fua },
        _ => return Err(Errno::Invalid),
    };
    // NO_HOLE is accepted and changes nothing: where nothing is overwritten in place,
    // zeros that take space now would not keep a later write from running out of it.
    let allowed = match action {
        Action::WriteZeroes { .. } => CMD_FLAG_FUA | CMD_FLAG_NO_HOLE,
        _ => CMD_FLAG_FUA,
    };
    if request.flags & !allowed != 0 {
        return Err(Errno::Invalid);
    }
    match action {
        Action::Read => judge_read(request, shape)?,
        Action::Write { .. } => judge_write(request, shape)?,
        // A write without payload: past the end it answers what a write does.
        Action::WriteZeroes { .. } => judge_change(request, shape, Errno::NoSpace)?,
        Action::Trim { .. } => judge_change(request, shape, Errno::Invalid)?,
        Action::Flush if request.offset_bytes != 0 || request.length_bytes != 0 => {
            return Err(Errno::Invalid);
        }
        Action::Flush | Action::Disconnect => {}
    }
    Ok(action)
}

fn judge_read(request: &Request, shape: &ExportShape) -> Result<(), Errno> {
    if request.length_bytes > u64::from(PAYLOAD_BYTES_MAX) || !shape.holds(request) {
        return Err(Errno::Invalid);
    }
    Ok(())
}

fn judge_write(request: &Request, shape: &ExportShape) -> Result<(), Errno> {
    // The protocol keeps EOVERFLOW for requests without a payload.
    if !shape.read_only && request.length_bytes > u64::from(PAYLOAD_BYTES_MAX) {
        return Err(Errno::Invalid);
    }
    judge_change(request, shape, Errno::NoSpace)
}

fn judge_change(request: &Request, shape: &ExportShape, past_end: Errno) -> Result<(), Errno> {
    if shape.read_only {
        return Err(Errno::NotPermitted);
    }
    if shape.holds(request) { Ok(()) } else { Err(past_end) }
}
