//! Option haggling: from the greeting to an open export.
//!
//! Invariants: every option but `EXPORT_NAME` gets its final reply; whatever an option's data is,
//! the stream stays in step or the connection ends. State that options leave behind (structured
//! replies, metadata contexts) belongs into `Negotiation` and goes out with the attachment.
//! Source: NBD protocol, "Fixed newstyle negotiation", "Option types".

use crate::channel::{Channel, Ended};
use crate::codec::values::{
    EXPORT_NAME_ZEROES_BYTES, INFO_DESCRIPTION, INFO_NAME, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO,
    OPT_INFO, OPT_LIST, REP_ACK, REP_ERR_INVALID, REP_ERR_POLICY, REP_ERR_SHUTDOWN,
    REP_ERR_TOO_BIG, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_SERVER, STRING_BYTES_MAX,
};
use crate::codec::{
    ClientFlags, InfoRequest, OPTION_HEADER_BYTES, OptionHeader, clip_text, decode_name, greeting,
    info_block_size, info_export, info_text, option_reply, server_entry,
};
use crate::judgement::{BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX};
use crate::registry::{Attachment, Membership, Refusal};
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

/// A connection that has not chosen its export.
pub(crate) struct Negotiation<'a> {
    channel: &'a mut Channel,
    membership: &'a Membership,
    exports: &'a dyn Exports,
    no_zeroes: bool,
}

impl<'a> Negotiation<'a> {
    pub(crate) fn new(
        channel: &'a mut Channel,
        membership: &'a Membership,
        exports: &'a dyn Exports,
    ) -> Self {
        Negotiation { channel, membership, exports, no_zeroes: false }
    }

    /// Haggle until the client has an export.
    pub(crate) fn run(mut self) -> Result<Attachment, Ended> {
        self.channel.push(&greeting())?;
        let flags = self.channel.require(4)?;
        let flags = [flags[0], flags[1], flags[2], flags[3]];
        self.channel.consume(4);
        self.no_zeroes = ClientFlags::decode(flags).map_err(|_| Ended)?.no_zeroes;
        for _ in 0..OPTIONS_MAX {
            if let Step::Transmit(attachment) = self.option()? {
                return Ok(attachment);
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
            OPT_EXPORT_NAME => self.export_name(&data),
            OPT_ABORT => self.abort(),
            _ if self.membership.registry().is_closing() => {
                self.refuse(option, REP_ERR_SHUTDOWN, "the server is closing")
            }
            OPT_LIST => self.list(&data),
            OPT_INFO | OPT_GO => self.info(option, &data),
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

    fn export_name(&mut self, data: &[u8]) -> Result<Step, Ended> {
        let name = decode_name(data).map_err(|_| Ended)?;
        let attachment = self.membership.open(self.exports, name).map_err(|_| Ended)?;
        let shape = attachment.shape();
        let info = info_export(shape.size_bytes, shape.transmission_flags());
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
        let attachment = match self.membership.open(self.exports, &request.name) {
            Ok(attachment) => attachment,
            Err(refusal) => {
                let (reply, text) = explain(&refusal, self.membership.registry().is_closing());
                return self.refuse(option, reply, &text);
            }
        };
        let shape = attachment.shape();
        let export = info_export(shape.size_bytes, shape.transmission_flags());
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
            self.reply(option, REP_ACK, &[])?;
            return Ok(Step::Transmit(attachment));
        }
        // Detach before the answer: who has it may delete the object at once.
        drop(attachment);
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
