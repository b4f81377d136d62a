//! The numbers of the protocol, by the names of its document without the prefix `NBD_`.

/// First eight bytes of a server: `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: newstyle negotiation, and the start of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every request with a 32-bit length.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of every chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Start of every request with a 64-bit length.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of every chunk of an extended reply.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Longest string that the protocol allows, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;
/// Zeros after the reply to `OPT_EXPORT_NAME`, unless the client asked to leave them out.
pub const EXPORT_NAME_ZEROES_BYTES: usize = 124;

/// Handshake flag: the server speaks fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag: the server can leave out the 124 zeros.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;
/// Client flag: the client speaks fixed newstyle.
pub const FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// Client flag: leave out the 124 zeros.
pub const FLAG_C_NO_ZEROES: u32 = 1 << 1;

/// Transmission flag: always set.
pub const FLAG_HAS_FLAGS: u16 = 1 << 0;
/// Transmission flag: every write fails.
pub const FLAG_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: `CMD_FLUSH` is understood.
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: `CMD_FLAG_FUA` is understood.
pub const FLAG_SEND_FUA: u16 = 1 << 3;
/// Transmission flag: `CMD_TRIM` is understood.
pub const FLAG_SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: `CMD_WRITE_ZEROES` is understood.
pub const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: `CMD_FLAG_DF` is understood.
pub const FLAG_SEND_DF: u16 = 1 << 7;
/// Transmission flag: a flush on one connection covers all.
pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: `CMD_CACHE` is understood.
pub const FLAG_SEND_CACHE: u16 = 1 << 10;
/// Transmission flag: `CMD_FLAG_FAST_ZERO` is understood.
pub const FLAG_SEND_FAST_ZERO: u16 = 1 << 11;
/// Transmission flag: `CMD_BLOCK_STATUS` takes a payload that names contexts.
pub const FLAG_BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

/// Option: choose an export, no errors possible.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Option: end politely.
pub const OPT_ABORT: u32 = 2;
/// Option: list the exports.
pub const OPT_LIST: u32 = 3;
/// Option: encrypt from here on.
pub const OPT_STARTTLS: u32 = 5;
/// Option: describe an export.
pub const OPT_INFO: u32 = 6;
/// Option: describe an export and start transmission.
pub const OPT_GO: u32 = 7;
/// Option: structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: list metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Option: choose metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// Option: 64-bit lengths.
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// Reply: done.
pub const REP_ACK: u32 = 1;
/// Reply: one export of a listing.
pub const REP_SERVER: u32 = 2;
/// Reply: one fact about an export.
pub const REP_INFO: u32 = 3;
/// Reply: one metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// Set in every reply type that is an error.
pub const REP_ERROR_BIT: u32 = 1 << 31;
/// Error reply: unknown option.
pub const REP_ERR_UNSUP: u32 = REP_ERROR_BIT | 1;
/// Error reply: known, but not allowed here.
pub const REP_ERR_POLICY: u32 = REP_ERROR_BIT | 2;
/// Error reply: malformed.
pub const REP_ERR_INVALID: u32 = REP_ERROR_BIT | 3;
/// Error reply: not without TLS.
pub const REP_ERR_TLS_REQD: u32 = REP_ERROR_BIT | 5;
/// Error reply: the export is not available.
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR_BIT | 6;
/// Error reply: the server is closing.
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR_BIT | 7;
/// Error reply: more option data than the server takes.
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR_BIT | 9;
/// Error reply: extended headers are agreed on, or needed.
pub const REP_ERR_EXT_HEADER_REQD: u32 = REP_ERROR_BIT | 10;

/// Information: size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Information: the canonical name.
pub const INFO_NAME: u16 = 1;
/// Information: a text for people.
pub const INFO_DESCRIPTION: u16 = 2;
/// Information: minimum, preferred and maximum sizes.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Command: read.
pub const CMD_READ: u16 = 0;
/// Command: write; the only one with a payload.
pub const CMD_WRITE: u16 = 1;
/// Command: disconnect; never answered.
pub const CMD_DISC: u16 = 2;
/// Command: make completed writes durable.
pub const CMD_FLUSH: u16 = 3;
/// Command: a range is no longer needed.
pub const CMD_TRIM: u16 = 4;
/// Command: a range will be read soon.
pub const CMD_CACHE: u16 = 5;
/// Command: a range is to read as zeros.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Command: what the metadata contexts say of a range.
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Command flag: durable before the reply.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
/// Command flag of `CMD_WRITE_ZEROES`: do not make a hole.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag of `CMD_READ`: one chunk.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// Command flag of `CMD_BLOCK_STATUS`: one extent.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Command flag of `CMD_WRITE_ZEROES`: fail rather than be slow.
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;
/// Command flag with extended headers: the length is that of a payload.
pub const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// Flag of a chunk: the last one of its reply.
pub const REPLY_FLAG_DONE: u16 = 1 << 0;
/// Chunk: nothing more.
pub const REPLY_NONE: u16 = 0;
/// Chunk: bytes at an offset.
pub const REPLY_OFFSET_DATA: u16 = 1;
/// Chunk: zeros at an offset.
pub const REPLY_OFFSET_HOLE: u16 = 2;
/// Chunk: extents of one metadata context, 32 bits each.
pub const REPLY_BLOCK_STATUS: u16 = 5;
/// Chunk: extents of one metadata context, 64 bits each.
pub const REPLY_BLOCK_STATUS_EXT: u16 = 6;
/// Set in every chunk type that is an error.
pub const REPLY_ERROR_BIT: u16 = 1 << 15;
/// Chunk: the request failed.
pub const REPLY_ERROR: u16 = REPLY_ERROR_BIT | 1;
/// Chunk: the request failed at an offset.
pub const REPLY_ERROR_OFFSET: u16 = REPLY_ERROR_BIT | 2;

/// Flag of `base:allocation`: takes no space.
pub const STATE_HOLE: u32 = 1 << 0;
/// Flag of `base:allocation`: reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;
/// Flag of `qemu:dirty-bitmap:`: changed.
pub const STATE_DIRTY: u32 = 1 << 0;
