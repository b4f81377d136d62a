//! Messages of the handshake: greeting, options and their replies.
//!
//! Source: NBD protocol, "Newstyle negotiation", "Option types", "Option reply types".

use super::CodecError;
use super::chunks::clip;
use super::values::{
    FLAG_C_FIXED_NEWSTYLE, FLAG_C_NO_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INFO_BLOCK_SIZE,
    INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    STRING_BYTES_MAX,
};

/// Length of the server's first message.
pub const GREETING_BYTES: usize = 18;
/// Length of an option before its data.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Length of an option reply before its data.
const OPTION_REPLY_HEADER_BYTES: usize = 20;

/// The server's first message: fixed newstyle, zeros can be left out.
#[must_use]
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    bytes
}

/// The client's answer to the greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFlags {
    /// The client expects replies to its options.
    pub fixed_newstyle: bool,
    /// The 124 zeros after `OPT_EXPORT_NAME` are to be left out.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Decode the 32 flags.
    ///
    /// # Errors
    /// `ClientFlags` for a bit that was not offered.
    pub fn decode(bytes: [u8; 4]) -> Result<Self, CodecError> {
        let found = u32::from_be_bytes(bytes);
        if found & !(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES) != 0 {
            return Err(CodecError::ClientFlags { found });
        }
        Ok(ClientFlags {
            fixed_newstyle: found & FLAG_C_FIXED_NEWSTYLE != 0,
            no_zeroes: found & FLAG_C_NO_ZEROES != 0,
        })
    }

    /// Encode as a client does.
    #[must_use]
    pub fn encode(self) -> [u8; 4] {
        let mut flags = 0;
        if self.fixed_newstyle {
            flags |= FLAG_C_FIXED_NEWSTYLE;
        }
        if self.no_zeroes {
            flags |= FLAG_C_NO_ZEROES;
        }
        flags.to_be_bytes()
    }
}

/// What precedes the data of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option; any number.
    pub option: u32,
    /// Length of the data that follows.
    pub length_bytes: u32,
}

impl OptionHeader {
    /// Decode the header.
    ///
    /// # Errors
    /// `Magic` when the stream is out of step.
    pub fn decode(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<Self, CodecError> {
        let [m0, m1, m2, m3, m4, m5, m6, m7, o0, o1, o2, o3, l0, l1, l2, l3] = *bytes;
        let found = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
        if found != OPTION_MAGIC {
            return Err(CodecError::Magic { found, expected: OPTION_MAGIC });
        }
        Ok(OptionHeader {
            option: u32::from_be_bytes([o0, o1, o2, o3]),
            length_bytes: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// Encode as a client does.
    #[must_use]
    pub fn encode(self) -> [u8; OPTION_HEADER_BYTES] {
        let mut bytes = [0; OPTION_HEADER_BYTES];
        bytes[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..].copy_from_slice(&self.length_bytes.to_be_bytes());
        bytes
    }
}

/// Which optional information a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WantedInfos {
    /// `INFO_NAME`.
    pub name: bool,
    /// `INFO_DESCRIPTION`.
    pub description: bool,
    /// `INFO_BLOCK_SIZE`.
    pub block_size: bool,
}

/// The data of `OPT_INFO` and `OPT_GO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest {
    /// Name of the export; empty for the default one.
    pub name: String,
    /// What else the client asked for; requests that are not known are ignored.
    pub wanted: WantedInfos,
}

impl InfoRequest {
    /// Decode the data of the option.
    ///
    /// # Errors
    /// `OptionData` when lengths disagree or the name is no string of the protocol.
    pub fn decode(data: &[u8]) -> Result<Self, CodecError> {
        let short = CodecError::OptionData { what: "the data is shorter than its lengths say" };
        let (name_length, rest) = data.split_first_chunk::<4>().ok_or(short)?;
        let name_length = usize::try_from(u32::from_be_bytes(*name_length)).map_err(|_| short)?;
        let (name, rest) = rest.split_at_checked(name_length).ok_or(short)?;
        let (wanted_count, rest) = rest.split_first_chunk::<2>().ok_or(short)?;
        if rest.len() != usize::from(u16::from_be_bytes(*wanted_count)) * 2 {
            return Err(CodecError::OptionData {
                what: "the count of information is not its length",
            });
        }
        let mut wanted = WantedInfos::default();
        for pair in rest.chunks_exact(2) {
            match u16::from_be_bytes([pair[0], pair[1]]) {
                INFO_NAME => wanted.name = true,
                INFO_DESCRIPTION => wanted.description = true,
                INFO_BLOCK_SIZE => wanted.block_size = true,
                _ => {} // The protocol says: ignore what is not known. INFO_EXPORT is sent anyway.
            }
        }
        Ok(InfoRequest { name: decode_name(name)?.to_owned(), wanted })
    }
}

/// Decode a string of the protocol.
///
/// # Errors
/// `OptionData` when it is too long, not UTF-8, or holds a NUL.
pub fn decode_name(bytes: &[u8]) -> Result<&str, CodecError> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(CodecError::OptionData { what: "the name is longer than 4096 bytes" });
    }
    let name = std::str::from_utf8(bytes)
        .map_err(|_| CodecError::OptionData { what: "the name is not UTF-8" })?;
    if name.contains('\0') {
        return Err(CodecError::OptionData { what: "the name holds a NUL" });
    }
    Ok(name)
}

/// The longest start of `text` that the protocol allows as a string.
#[must_use]
pub fn clip_text(text: &str) -> &str {
    clip(text, STRING_BYTES_MAX)
}

/// One reply to `option`.
///
/// # Panics
/// When `data` does not fit a 32-bit length; the server makes it, a client never does.
#[must_use]
pub fn option_reply(option: u32, reply: u32, data: &[u8]) -> Vec<u8> {
    let length_bytes = u32::try_from(data.len()).expect("the server bounds what it replies");
    let mut bytes = Vec::with_capacity(OPTION_REPLY_HEADER_BYTES + data.len());
    bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&reply.to_be_bytes());
    bytes.extend_from_slice(&length_bytes.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Data of `REP_SERVER`: one name of a listing.
///
/// # Panics
/// When `name` does not fit a 32-bit length.
#[must_use]
pub fn server_entry(name: &str) -> Vec<u8> {
    let length_bytes = u32::try_from(name.len()).expect("a name is at most a string's length");
    let mut bytes = length_bytes.to_be_bytes().to_vec();
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

/// Data of `REP_INFO` for `INFO_EXPORT`; after its first two bytes it is what
/// `OPT_EXPORT_NAME` answers.
#[must_use]
pub fn info_export(size_bytes: u64, transmission_flags: u16) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..2].copy_from_slice(&INFO_EXPORT.to_be_bytes());
    bytes[2..10].copy_from_slice(&size_bytes.to_be_bytes());
    bytes[10..].copy_from_slice(&transmission_flags.to_be_bytes());
    bytes
}

/// Data of `REP_INFO` for `INFO_NAME` and `INFO_DESCRIPTION`.
#[must_use]
pub fn info_text(info: u16, text: &str) -> Vec<u8> {
    let mut bytes = info.to_be_bytes().to_vec();
    bytes.extend_from_slice(clip_text(text).as_bytes());
    bytes
}

/// Data of `REP_INFO` for `INFO_BLOCK_SIZE`; all three in bytes.
#[must_use]
pub fn info_block_size(minimum: u32, preferred: u32, maximum: u32) -> [u8; 14] {
    let mut bytes = [0; 14];
    bytes[..2].copy_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    bytes[2..6].copy_from_slice(&minimum.to_be_bytes());
    bytes[6..10].copy_from_slice(&preferred.to_be_bytes());
    bytes[10..].copy_from_slice(&maximum.to_be_bytes());
    bytes
}
