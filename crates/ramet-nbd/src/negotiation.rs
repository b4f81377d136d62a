//! Option haggling: from the greeting to an open export.
//!
//! Invariants: every option but `EXPORT_NAME` gets its final reply; whatever an option's data is,
//! the stream stays in step or the connection ends; where TLS is required, nothing is told before
//! it. What options leave behind (the style of replies, metadata contexts) goes out with the
//! attachment as `Negotiated`.
//! Source: NBD protocol, "Fixed newstyle negotiation", "Option types".

use crate::allow::Allowed;
use crate::channel::{Channel, Ended};
use crate::codec::values::{
    EXPORT_NAME_ZEROES_BYTES, INFO_DESCRIPTION, INFO_NAME, OPT_ABORT, OPT_EXPORT_NAME,
    OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT,
    OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_EXT_HEADER_REQD, REP_ERR_INVALID,
    REP_ERR_POLICY, REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_TOO_BIG, REP_ERR_UNKNOWN,
    REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT, REP_SERVER, STRING_BYTES_MAX,
};
use crate::codec::{
    ChunkStyle, ClientFlags, ContextRequest, InfoRequest, OPTION_HEADER_BYTES, OptionHeader,
    ReplyStyle, clip_text, decode_name, greeting, info_block_size, info_export, info_text,
    meta_context, option_reply, server_entry,
};
use crate::contexts::{self, CONTEXTS_MAX, Context};
use crate::judgement::{Agreed, BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX};
use crate::registry::{Attachment, Membership, Refusal};
use crate::tls::Policy;
use ramet_engine::{Exports, Kind};

/// Longest option data that is looked at: the longest name and thousands of requests.
const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Longest option data that is read and dropped; beyond it the client means harm.
const OPTION_SKIP_BYTES_MAX: u32 = 32 << 20;
/// Options of one connection; a client that has not decided by then never will.
const OPTIONS_MAX: usize = 65_536;

/// What to do after an option.
enum Step {
    Continue,
    Transmit(Attachment),
}

/// What a connection goes into transmission with.
pub(crate) struct Negotiated {
    pub(crate) attachment: Attachment,
    pub(crate) replies: ReplyStyle,
    pub(crate) contexts: Vec<Context>,
}

/// The metadata contexts that were chosen, and for which export.
struct Chosen {
    /// As the client called it: it has to use the same name again.
    name: String,
    object: u64,
    contexts: Vec<Context>,
}

/// A connection that has not chosen its export.
pub(crate) struct Negotiation<'a> {
    channel: &'a mut Channel,
    membership: &'a Membership,
    /// What the client may see.
    exports: Allowed<'a>,
    everything: &'a dyn Exports,
    policy: Option<&'a Policy>,
    encrypted: bool,
    no_zeroes: bool,
    replies: ReplyStyle,
    chosen: Option<Chosen>,
}

impl<'a> Negotiation<'a> {
    pub(crate) fn new(
        channel: &'a mut Channel,
        membership: &'a Membership,
        exports: &'a dyn Exports,
        policy: Option<&'a Policy>,
    ) -> Self {
        Negotiation {
            channel,
            membership,
            exports: Allowed::new(exports, None),
            everything: exports,
            policy,
            encrypted: false,
            no_zeroes: false,
            replies: ReplyStyle::Simple,
            chosen: None,
        }
    }

    /// Haggle until the client has an export.
    pub(crate) fn run(mut self) -> Result<Negotiated, Ended> {
        self.channel.push(&greeting())?;
        let flags = self.channel.require(4)?;
        let flags = [flags[0], flags[1], flags[2], flags[3]];
        self.channel.consume(4);
        let flags = ClientFlags::decode(flags).map_err(|_| Ended)?;
        self.no_zeroes = flags.no_zeroes;
        if self.needs_tls() && !flags.fixed_newstyle {
            // Such a client cannot ask for TLS.
            return Err(Ended);
        }
        for _ in 0..OPTIONS_MAX {
            if let Step::Transmit(attachment) = self.option()? {
                let contexts = self.chosen.take().map_or_else(Vec::new, |chosen| chosen.contexts);
                return Ok(Negotiated { attachment, replies: self.replies, contexts });
            }
        }
        Err(Ended)
    }

    fn option(&mut self) -> Result<Step, Ended> {
        let header = self.channel.require(OPTION_HEADER_BYTES)?;
        let header = header.first_chunk().ok_or(Ended)?;
        let OptionHeader { option, length_bytes } =
            OptionHeader::decode(header).map_err(|_| Ended)?;
        self.channel.consume(OPTION_HEADER_BYTES);
        if length_bytes > OPTION_BYTES_MAX {
            return self.refuse_long_option(option, length_bytes);
        }
        let length_bytes = usize::try_from(length_bytes).map_err(|_| Ended)?;
        let data = self.channel.require(length_bytes)?.to_vec();
        self.channel.consume(length_bytes);
        match option {
            OPT_STARTTLS => self.start_tls(&data),
            OPT_ABORT => self.abort(),
            // It has no error reply.
            OPT_EXPORT_NAME if self.needs_tls() => Err(Ended),
            OPT_EXPORT_NAME => self.export_name(&data),
            _ if self.needs_tls() => {
                self.refuse(option, REP_ERR_TLS_REQD, "this server is to be asked for TLS first")
            }
            _ if self.membership.registry().is_closing() => {
                self.refuse(option, REP_ERR_SHUTDOWN, "the server is closing")
            }
            OPT_LIST => self.list(&data),
            OPT_INFO | OPT_GO => self.info(option, &data),
            OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS => self.choose_replies(option, &data),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.contexts(option, &data),
            _ => self.refuse(option, REP_ERR_UNSUP, "the server does not know this option"),
        }
    }

    fn refuse_long_option(&mut self, option: u32, length_bytes: u32) -> Result<Step, Ended> {
        // EXPORT_NAME has no error reply.
        if option == OPT_EXPORT_NAME || length_bytes > OPTION_SKIP_BYTES_MAX {
            return Err(Ended);
        }
        self.channel.skip(u64::from(length_bytes))?;
        self.refuse(option, REP_ERR_TOO_BIG, "the data of the option is too long")
    }

    fn needs_tls(&self) -> bool {
        !self.encrypted && self.policy.is_some_and(|policy| policy.required)
    }

    fn start_tls(&mut self, data: &[u8]) -> Result<Step, Ended> {
        let Some(policy) = self.policy else {
            return self.refuse(OPT_STARTTLS, REP_ERR_UNSUP, "there is no TLS here");
        };
        if self.encrypted {
            return self.refuse(OPT_STARTTLS, REP_ERR_INVALID, "there is TLS already");
        }
        if !data.is_empty() {
            return self.refuse(OPT_STARTTLS, REP_ERR_INVALID, "this option takes no data");
        }
        self.reply(OPT_STARTTLS, REP_ACK, &[])?;
        let allowance = self.channel.cover(|bare| policy.accept(bare))?;
        self.encrypted = true;
        self.exports = Allowed::new(self.everything, allowance);
        // What was agreed on so far anybody on the way may have asked for.
        self.replies = ReplyStyle::Simple;
        self.chosen = None;
        Ok(Step::Continue)
    }

    fn export_name(&mut self, data: &[u8]) -> Result<Step, Ended> {
        let name = decode_name(data).map_err(|_| Ended)?;
        // The protocol forbids it with extended headers, and it has no error reply.
        if self.replies == ReplyStyle::Chunks(ChunkStyle::Extended) {
            return Err(Ended);
        }
        let attachment = self.membership.open(&self.exports, name).map_err(|_| Ended)?;
        self.membership.succeed(&attachment).map_err(|_| Ended)?;
        let info = self.info_export(name, &attachment);
        self.keep_contexts_of(name, &attachment);
        // The same size and flags as INFO_EXPORT, which starts with its own number.
        self.channel.push(&info[2..])?;
        if !self.no_zeroes {
            self.channel.push(&[0; EXPORT_NAME_ZEROES_BYTES])?;
        }
        Ok(Step::Transmit(attachment))
    }

    fn abort(&mut self) -> Result<Step, Ended> {
        self.reply(OPT_ABORT, REP_ACK, &[])?;
        self.channel.send()?;
        Err(Ended)
    }

    fn list(&mut self, data: &[u8]) -> Result<Step, Ended> {
        if !data.is_empty() {
            return self.refuse(OPT_LIST, REP_ERR_INVALID, "a listing takes no data");
        }
        for export in self.exports.list() {
            // A longer name could not be asked for, so it is not offered.
            if export.name.len() <= STRING_BYTES_MAX {
                self.reply(OPT_LIST, REP_SERVER, &server_entry(&export.name))?;
            }
        }
        self.reply(OPT_LIST, REP_ACK, &[])?;
        Ok(Step::Continue)
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Result<Step, Ended> {
        let request = match InfoRequest::decode(data) {
            Ok(request) => request,
            Err(error) => return self.refuse(option, REP_ERR_INVALID, &error.to_string()),
        };
        let opened = self.membership.open(&self.exports, &request.name).and_then(|attachment| {
            if option == OPT_GO {
                self.membership.succeed(&attachment)?;
            }
            Ok(attachment)
        });
        let attachment = match opened {
            Ok(attachment) => attachment,
            Err(refusal) => {
                let (reply, text) = explain(&refusal, self.membership.registry().is_closing());
                return self.refuse(option, reply, &text);
            }
        };
        let shape = attachment.shape();
        let export = self.info_export(&request.name, &attachment);
        self.reply(option, REP_INFO, &export)?;
        if request.wanted.name {
            self.reply(option, REP_INFO, &info_text(INFO_NAME, &attachment.export().name))?;
        }
        if request.wanted.description {
            let text = if shape.read_only { "snapshot" } else { "volume" };
            self.reply(option, REP_INFO, &info_text(INFO_DESCRIPTION, text))?;
        }
        if request.wanted.block_size {
            let sizes = info_block_size(BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX);
            self.reply(option, REP_INFO, &sizes)?;
        }
        if option == OPT_GO {
            self.keep_contexts_of(&request.name, &attachment);
            self.reply(option, REP_ACK, &[])?;
            return Ok(Step::Transmit(attachment));
        }
        // Detach before the answer: who has it may delete the object at once.
        drop(attachment);
        self.reply(option, REP_ACK, &[])?;
        Ok(Step::Continue)
    }

    fn has_contexts_of(&self, name: &str, attachment: &Attachment) -> bool {
        self.chosen.as_ref().is_some_and(|chosen| {
            chosen.name == name
                && chosen.object == attachment.export().object
                && !chosen.contexts.is_empty()
        })
    }

    /// Contexts that were chosen for another export are void.
    fn keep_contexts_of(&mut self, name: &str, attachment: &Attachment) {
        if !self.has_contexts_of(name, attachment) {
            self.chosen = None;
        }
    }

    fn info_export(&self, name: &str, attachment: &Attachment) -> [u8; 12] {
        let status = self.has_contexts_of(name, attachment);
        let shape = attachment.shape();
        let agreed = Agreed { replies: self.replies, status };
        info_export(shape.size_bytes, shape.transmission_flags(agreed))
    }

    fn choose_replies(&mut self, option: u32, data: &[u8]) -> Result<Step, Ended> {
        if !data.is_empty() {
            return self.refuse(option, REP_ERR_INVALID, "this option takes no data");
        }
        let wanted = match option {
            OPT_STRUCTURED_REPLY => ChunkStyle::Structured,
            _ => ChunkStyle::Extended,
        };
        match self.replies {
            ReplyStyle::Chunks(agreed) if agreed == wanted => {
                return self.refuse(option, REP_ERR_INVALID, "this was agreed on already");
            }
            ReplyStyle::Chunks(ChunkStyle::Extended) => {
                let text = "extended headers were agreed on, and take precedence";
                return self.refuse(option, REP_ERR_EXT_HEADER_REQD, text);
            }
            ReplyStyle::Chunks(ChunkStyle::Structured) | ReplyStyle::Simple => {}
        }
        self.replies = ReplyStyle::Chunks(wanted);
        self.reply(option, REP_ACK, &[])?;
        Ok(Step::Continue)
    }

    fn contexts(&mut self, option: u32, data: &[u8]) -> Result<Step, Ended> {
        if option == OPT_SET_META_CONTEXT {
            // Whatever comes of it, what was chosen before is void.
            self.chosen = None;
        }
        if self.replies == ReplyStyle::Simple {
            let text = "structured replies or extended headers come first";
            return self.refuse(option, REP_ERR_INVALID, text);
        }
        let request = match ContextRequest::decode(data) {
            Ok(request) => request,
            Err(error) => return self.refuse(option, REP_ERR_INVALID, &error.to_string()),
        };
        let attachment = match self.membership.open(&self.exports, &request.export) {
            Ok(attachment) => attachment,
            Err(refusal) => {
                let (reply, text) = explain(&refusal, self.membership.registry().is_closing());
                return self.refuse(option, reply, &text);
            }
        };
        let export = attachment.export().clone();
        if option == OPT_LIST_META_CONTEXT {
            // Detach before the answer, as for `OPT_INFO`.
            drop(attachment);
            for name in contexts::list(&self.exports, &export, &request.queries) {
                self.reply(option, REP_META_CONTEXT, &meta_context(0, &name))?;
            }
        } else {
            let chosen =
                contexts::choose(self.membership, &self.exports, &export, &request.queries);
            drop(attachment);
            let Ok(contexts) = chosen else {
                let text = format!("at most {CONTEXTS_MAX} contexts for a connection");
                return self.refuse(option, REP_ERR_TOO_BIG, &text);
            };
            for (id, context) in (0..).zip(&contexts) {
                self.reply(option, REP_META_CONTEXT, &meta_context(id, &context.name))?;
            }
            let (name, object) = (request.export, export.object);
            self.chosen = Some(Chosen { name, object, contexts });
        }
        self.reply(option, REP_ACK, &[])?;
        Ok(Step::Continue)
    }

    fn refuse(&mut self, option: u32, reply: u32, text: &str) -> Result<Step, Ended> {
        self.reply(option, reply, clip_text(text).as_bytes())?;
        Ok(Step::Continue)
    }

    fn reply(&mut self, option: u32, reply: u32, data: &[u8]) -> Result<(), Ended> {
        self.channel.push(&option_reply(option, reply, data))
    }
}

/// The reply type and text for an export that cannot be had.
fn explain(refusal: &Refusal, closing: bool) -> (u32, String) {
    let error = match refusal {
        Refusal::Closing => return (REP_ERR_SHUTDOWN, "the server is closing".to_owned()),
        Refusal::Refused => {
            return (REP_ERR_UNKNOWN, "the export is being detached by force".to_owned());
        }
        Refusal::Engine(error) => error,
    };
    let reply = match error.kind {
        Kind::Forbidden => REP_ERR_POLICY,
        Kind::Unavailable if closing => REP_ERR_SHUTDOWN,
        // "The requested export is not available" is all the protocol has for these.
        Kind::NotFound
        | Kind::Invalid
        | Kind::Busy
        | Kind::Conflict
        | Kind::Unavailable
        | Kind::Full
        | Kind::Corrupt
        | Kind::Internal => REP_ERR_UNKNOWN,
    };
    (reply, error.to_string())
}
