//! Messages about metadata contexts: the options that list and choose them, and the payload that
//! names some of them in a request.
//!
//! Source: NBD protocol, "Metadata querying", `NBD_OPT_LIST_META_CONTEXT`; its extension
//! `EXTENDED_HEADERS`.

use super::{CodecError, decode_name};

/// The data of `OPT_LIST_META_CONTEXT` and `OPT_SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRequest {
    /// Name of the export; empty for the default one.
    pub export: String,
    /// What is asked for; each has a namespace, a colon, and a rest that may be empty.
    pub queries: Vec<String>,
}

impl ContextRequest {
    /// Decode the data of the option.
    ///
    /// # Errors
    /// `OptionData` when lengths disagree, a string is no string of the protocol, or a query has
    /// no namespace.
    pub fn decode(data: &[u8]) -> Result<Self, CodecError> {
        let (export, rest) = take_string(data)?;
        let (count, mut rest) = take_u32(rest)?;
        let mut queries = Vec::new();
        for _ in 0..count {
            let (query, after) = take_string(rest)?;
            if query.find(':').is_none_or(|at| at == 0) {
                return Err(CodecError::OptionData { what: "a query has no namespace" });
            }
            queries.push(query.to_owned());
            rest = after;
        }
        if !rest.is_empty() {
            return Err(CodecError::OptionData { what: "there is data behind the last query" });
        }
        Ok(ContextRequest { export: export.to_owned(), queries })
    }
}

fn take_u32(data: &[u8]) -> Result<(u32, &[u8]), CodecError> {
    let (number, rest) = data.split_first_chunk::<4>().ok_or(SHORT)?;
    Ok((u32::from_be_bytes(*number), rest))
}

fn take_string(data: &[u8]) -> Result<(&str, &[u8]), CodecError> {
    let (length, rest) = take_u32(data)?;
    let length = usize::try_from(length).map_err(|_| SHORT)?;
    let (text, rest) = rest.split_at_checked(length).ok_or(SHORT)?;
    Ok((decode_name(text)?, rest))
}

const SHORT: CodecError =
    CodecError::OptionData { what: "the data is shorter than its lengths say" };

/// Data of `REP_META_CONTEXT`.
#[must_use]
pub fn meta_context(id: u32, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

/// The payload of `CMD_BLOCK_STATUS`: the length concerned, and which contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPayload {
    /// Bytes concerned.
    pub length_bytes: u64,
    /// Ids of contexts.
    pub contexts: Vec<u32>,
}

impl StatusPayload {
    /// Length of a payload that names so many contexts.
    #[must_use]
    pub const fn bytes(contexts_count: u64) -> u64 {
        8 + 4 * contexts_count
    }

    /// Decode the payload; nothing where it is too short or has a part of an id.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (length_bytes, ids) = payload.split_first_chunk::<8>()?;
        if !ids.len().is_multiple_of(4) {
            return None;
        }
        let id = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let contexts = ids.chunks_exact(4).map(id).collect();
        Some(StatusPayload { length_bytes: u64::from_be_bytes(*length_bytes), contexts })
    }
}
