//! Metadata contexts: which there are for an export, and which a connection chose.
//!
//! Two namespaces: `base:allocation` says what is a hole, `qemu:dirty-bitmap:SNAPSHOT` what changed
//! since a snapshot of the export's family. Invariant: a snapshot that a connection chose counts as
//! attached from then on, so that nobody deletes the base of a backup under way.
//! Source: NBD protocol, "Metadata querying"; QEMU, "QEMU NBD protocol support".

use crate::codec::values::{STATE_DIRTY, STATE_HOLE, STATE_ZERO, STRING_BYTES_MAX};
use crate::registry::{Held, Membership, Refusal};
use ramet_engine::{BlockDevice, Changes, EngineError, Export, Exports, ExtentSink};
use std::collections::HashSet;

/// The context that says what is mapped.
const ALLOCATION: &str = "base:allocation";
/// A snapshot's name follows.
const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
/// Contexts of one connection: each is told about in every reply.
pub(crate) const CONTEXTS_MAX: usize = 16;

/// One chosen context; its id is its index.
pub(crate) struct Context {
    pub(crate) name: String,
    source: Source,
}

enum Source {
    Allocation,
    Changes(Held<dyn Changes>),
}

impl Context {
    /// Tell `sink` the extents of a range; see `BlockDevice::extents`.
    pub(crate) fn extents(
        &self,
        device: &dyn BlockDevice,
        offset_bytes: u64,
        length_bytes: u64,
        sink: &mut ExtentSink<'_>,
    ) -> Result<(), EngineError> {
        match &self.source {
            Source::Allocation => device.extents(offset_bytes, length_bytes, sink),
            Source::Changes(changes) => changes.get().extents(offset_bytes, length_bytes, sink),
        }
    }

    /// The flags of an extent that is marked, or is not.
    pub(crate) fn flags(&self, marked: bool) -> u32 {
        match (&self.source, marked) {
            (Source::Allocation, true) | (Source::Changes(_), false) => 0,
            (Source::Allocation, false) => STATE_HOLE | STATE_ZERO,
            (Source::Changes(_), true) => STATE_DIRTY,
        }
    }
}

/// The names that match any of `queries`, of all where there is none.
pub(crate) fn list(exports: &dyn Exports, export: &Export, queries: &[String]) -> Vec<String> {
    let asks = |wanted: &[&str]| queries.iter().any(|query| wanted.contains(&query.as_str()));
    let everything = queries.is_empty();
    let mut names = Vec::new();
    if everything || asks(&["base:", ALLOCATION]) {
        names.push(ALLOCATION.to_owned());
    }
    let every_bitmap = everything || asks(&["qemu:", DIRTY_BITMAP]);
    let wanted: HashSet<&str> =
        queries.iter().filter_map(|query| query.strip_prefix(DIRTY_BITMAP)).collect();
    if every_bitmap || !wanted.is_empty() {
        let bases = exports.bases(export.object).into_iter().map(|base| base.name);
        let matching = bases.filter(|name| every_bitmap || wanted.contains(name.as_str()));
        let full = matching.map(|name| format!("{DIRTY_BITMAP}{name}"));
        // A longer name could not be asked for, so it is not offered.
        names.extend(full.filter(|name| name.len() <= STRING_BYTES_MAX));
    }
    names
}

/// More contexts than one connection may choose.
pub(crate) struct TooMany;

/// Open the contexts that `queries` name; what there is not is left out.
///
/// # Errors
/// `TooMany`.
pub(crate) fn choose(
    membership: &Membership,
    exports: &dyn Exports,
    export: &Export,
    queries: &[String],
) -> Result<Vec<Context>, TooMany> {
    let mut chosen: Vec<Context> = Vec::new();
    for query in queries {
        if chosen.iter().any(|context| context.name == *query) {
            continue;
        }
        let source = if query == ALLOCATION {
            Some(Source::Allocation)
        } else if let Some(base) = query.strip_prefix(DIRTY_BITMAP) {
            match membership.open_changes(exports, export.object, base) {
                Ok((_, changes)) => Some(Source::Changes(changes)),
                // The protocol asks to leave out what cannot be had.
                Err(Refusal::Engine(_) | Refusal::Refused | Refusal::Closing) => None,
            }
        } else {
            None
        };
        if let Some(source) = source {
            if chosen.len() == CONTEXTS_MAX {
                return Err(TooMany);
            }
            chosen.push(Context { name: query.clone(), source });
        }
    }
    Ok(chosen)
}
