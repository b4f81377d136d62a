//! What a pool lost whose log was damaged, told by object; and opening it nonetheless.
//!
//! Calls the log. Invariant: what is told is what batches behind the end say whose headers verify;
//! how many could not be read is told too.

use crate::engine::{Engine, Settings};
use crate::locks::{Now, is_equal};
use crate::nodes::Nodes;
use crate::object::Table;
use crate::record::{Record, Verb};
use crate::unfinished::LostLocks;
use crate::unreadable::{self, Unreadable};
use crate::{EngineError, Kind};
use ramet_log::format::batch::Kind as Entry;
use ramet_log::format::superblock::{Commit, LockTerms};
use ramet_log::{BLOCK_BYTES_U64, Beside, Loss, ObjectId, Sequence};
use ramet_store::{FileStore, Store};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Ranges of an object that the text names; its alternate form has all.
const RANGES_SHOWN_MAX: usize = 8;

/// An object that changed behind the end of the log, or holds blocks that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostObject {
    /// Its id.
    pub id: u64,
    /// Its name at the end; where it was made later, the name it was made with; else empty.
    pub name: String,
    /// Whether it was made behind the end: it is not there any more.
    pub is_gone: bool,
    /// Where writes, zeros and trims were lost: first byte and length, apart and in order.
    pub ranges: Vec<(u64, u64)>,
    /// What it has and cannot be read any more, in the same way.
    pub unreadable: Vec<(u64, u64)>,
}

/// A command behind the end: it did not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostCommand {
    /// What it did, in a word.
    pub verb: &'static str,
    /// The objects it named.
    pub names: Vec<String>,
}

/// What was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LossReport {
    /// What is damaged.
    pub damage: String,
    /// The last batch that is kept.
    pub kept_sequence: u64,
    /// The last batch that is known to have been durable.
    pub durable_sequence: u64,
    /// Batches up to `durable_sequence` that cannot be read: what they did is not known.
    pub unread_count: u64,
    /// Segments without a file: blocks in them cannot be read.
    pub missing_segments: Vec<String>,
    /// Where the rest of the log is kept, in the pool; empty: there is none.
    pub directory: String,
    /// The files in it.
    pub files: Vec<String>,
    /// Objects that changed, or need what cannot be read, by name.
    pub objects: Vec<LostObject>,
    /// Commands, in order.
    pub commands: Vec<LostCommand>,
}

/// What is known of a loss that is being accepted.
#[derive(Default)]
pub(crate) struct Acceptance {
    /// No batch behind this one can be applied.
    pub(crate) limit: Cell<Option<Sequence>>,
    /// Why the one behind it cannot.
    cause: RefCell<Option<String>>,
    /// What was found when it was last decided.
    unreadable: RefCell<Unreadable>,
    /// The hash of the lock secret, where it was given.
    secret: Option<[u8; 32]>,
    /// What holds for locks, and their clock at least.
    terms: Cell<(LockTerms, u64)>,
    refused: RefCell<Option<EngineError>>,
}

impl Acceptance {
    /// The newest checkpoint cannot be read, and the one before it was.
    pub(crate) fn note_older_used(&self, error: &EngineError) {
        let what = error.text.split("; hint: ").next().unwrap_or_default();
        let text = format!("{what}; the checkpoint before it was taken, and the log after that");
        self.cause.replace(Some(text));
    }

    /// What is kept beside what is set aside; `None`: the loss is not to be accepted.
    pub(crate) fn describe(&self, loss: &Loss, table: &Table, nodes: &Nodes) -> Option<Beside> {
        self.look(loss, table, nodes);
        let locks = self.allowed(loss, table)?;
        let report = format!("{:#}", self.report(loss, table));
        Some(Beside { report, unfinished: locks.encode() })
    }

    /// Look which objects need what cannot be read: before the first report.
    fn look(&self, loss: &Loss, table: &Table, nodes: &Nodes) {
        self.unreadable.replace(unreadable::find(table, nodes, &loss.unreadable));
    }

    pub(crate) fn note_terms(&self, newest: &Commit) {
        self.terms.set((newest.lock_terms, newest.lock_clock.ns));
    }

    /// The locks that are lost, where the loss may be accepted as far as locks go: whoever has the
    /// secret may let snapshots go that a lock holds. Where there is no secret nobody could.
    fn allowed(&self, loss: &Loss, table: &Table) -> Option<LostLocks> {
        let mut locks = LostLocks::default();
        let records = loss.batches.iter().filter_map(|batch| batch.record.as_ref());
        let records: Vec<Record> = records.filter_map(|it| Record::decode(it).ok()).collect();
        records.iter().for_each(|record| locks.note(record));
        let (terms, clock_ns) = self.terms.get();
        let gone = locks.gone(table, &Now { ns: clock_ns, terms });
        let has_secret = terms.secret_hash != [0; 32];
        let given = self.secret.is_some_and(|secret| is_equal(&secret, &terms.secret_hash));
        if gone.is_empty() || !has_secret || given {
            return Some(locks);
        }
        let made = records.iter().flat_map(|record| &record.items);
        let mut names = made.map(|item| (item.object.id, &item.object.name));
        let name = names.rfind(|(id, name)| gone.contains(id) && !name.is_empty());
        let name = name.map_or("", |(_, name)| name);
        let text = format!(
            "{} locked snapshots would be gone, '{name}' is one: nothing was changed; \
             hint: --secret-file, with the pool's lock secret",
            gone.len()
        );
        self.refused.replace(Some(EngineError::new(Kind::Forbidden, "loss_of_locked", text)));
        None
    }

    /// Why it was not allowed.
    pub(crate) fn refused(&self) -> Option<EngineError> {
        self.refused.borrow_mut().take()
    }

    pub(crate) fn report(&self, loss: &Loss, table: &Table) -> LossReport {
        let report = LossReport::new(loss, table, &self.unreadable.borrow());
        let damage = self.cause.borrow().clone().unwrap_or(report.damage);
        LossReport { damage, ..report }
    }
}

fn word(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "create",
        Verb::Snapshot => "snapshot",
        Verb::Clone => "clone",
        Verb::Revert => "revert",
        Verb::Rename => "rename",
        Verb::Delete => "delete",
        Verb::Freeze => "freeze",
        Verb::Resize => "resize",
        Verb::Attributes => "tag",
        Verb::Admit => "receive",
        Verb::Lock => "lock",
        Verb::Unlock => "unlock",
        Verb::Trash => "delete",
        Verb::Restore => "restore",
    }
}

/// Ranges put together where they touch.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (first, count) in ranges {
        let end = first.saturating_add(count);
        match out.last_mut() {
            Some(last) if first <= last.0.saturating_add(last.1) => {
                last.1 = last.1.max(end - last.0);
            }
            _ => out.push((first, count)),
        }
    }
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES_U64);
    out.into_iter().map(|(first, count)| (bytes(first), bytes(count))).collect()
}

impl LossReport {
    /// Tell a loss by object; `table`: the objects at the end; `unreadable`: blocks of them.
    fn new(loss: &Loss, table: &Table, unreadable: &Unreadable) -> Self {
        let mut ranges: BTreeMap<ObjectId, Vec<(u64, u64)>> = BTreeMap::new();
        let mut made: HashMap<ObjectId, String> = HashMap::new();
        let mut commands = Vec::new();
        for batch in &loss.batches {
            for entry in &batch.entries {
                match entry.kind {
                    Entry::Write | Entry::Zero | Entry::Trim => {
                        ranges.entry(entry.object).or_default().push((entry.first, entry.count));
                    }
                    Entry::Record | Entry::Mark => {}
                }
            }
            let record = batch.record.as_ref().and_then(|bytes| Record::decode(bytes).ok());
            if let Some(record) = record {
                commands.push(command(&record, table, &mut made));
            }
        }
        for id in made.keys().chain(unreadable.keys()) {
            ranges.entry(*id).or_default();
        }
        let object = |(id, ranges): (ObjectId, Vec<(u64, u64)>)| LostObject {
            id: id.0,
            name: name_of(id, table, &made),
            is_gone: table.get(id).is_none(),
            ranges: joined(ranges),
            unreadable: joined(unreadable.get(&id).cloned().unwrap_or_default()),
        };
        let mut objects: Vec<LostObject> = ranges.into_iter().map(object).collect();
        objects.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        let read: u64 = loss.batches.chunk_by(|a, b| a.sequence == b.sequence).count() as u64;
        LossReport {
            damage: loss.damage.clone(),
            kept_sequence: loss.end.sequence.0,
            durable_sequence: loss.durable.0,
            unread_count: loss.durable.0.saturating_sub(loss.end.sequence.0).saturating_sub(read),
            missing_segments: loss.missing.iter().map(ToString::to_string).collect(),
            directory: loss.directory.clone(),
            files: loss.files.clone(),
            objects,
            commands,
        }
    }
}

fn name_of(id: ObjectId, table: &Table, made: &HashMap<ObjectId, String>) -> String {
    let own = table.get(id).map(|object| object.name());
    own.or_else(|| made.get(&id).cloned()).unwrap_or_default()
}

fn command(record: &Record, table: &Table, made: &mut HashMap<ObjectId, String>) -> LostCommand {
    let mut names = Vec::with_capacity(record.items.len());
    for item in &record.items {
        let fields = &item.object;
        if fields.kind.is_some() {
            made.insert(fields.id, fields.name.clone());
        }
        let own = name_of(fields.id, table, made);
        names.push(match record.verb {
            Verb::Rename => format!("{own} to {}", fields.name),
            _ if own.is_empty() => format!("object {:#x}", fields.id.0),
            _ => own,
        });
    }
    LostCommand { verb: word(record.verb), names }
}

impl fmt::Display for LossReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "damage: {}", self.damage)?;
        let (kept, durable) = (self.kept_sequence, self.durable_sequence);
        writeln!(out, "the log is kept up to batch {kept}; batch {durable} was there")?;
        if self.unread_count > 0 {
            let count = self.unread_count;
            writeln!(out, "{count} batches cannot be read: what they did is not known")?;
        }
        for id in &self.missing_segments {
            writeln!(out, "segment {id} is missing: reads of blocks in it give an error")?;
        }
        for command in &self.commands {
            writeln!(out, "did not happen: {} {}", command.verb, command.names.join(", "))?;
        }
        for object in &self.objects {
            if out.alternate() {
                writeln!(out, "{object:#}")?;
            } else {
                writeln!(out, "{object}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for LostObject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => write!(out, "object {:#x}, name not known", self.id)?,
            name => write!(out, "'{name}'")?,
        }
        if self.is_gone {
            write!(out, " is gone: it was made later")?;
        }
        if !self.ranges.is_empty() {
            write!(out, " lost writes to")?;
            write_ranges(out, &self.ranges)?;
        }
        if !self.unreadable.is_empty() {
            let and = if self.is_gone || !self.ranges.is_empty() { ", and" } else { "" };
            write!(out, "{and} gives an error for")?;
            write_ranges(out, &self.unreadable)?;
        }
        Ok(())
    }
}

fn write_ranges(out: &mut fmt::Formatter<'_>, ranges: &[(u64, u64)]) -> fmt::Result {
    let bytes: u64 = ranges.iter().map(|range| range.1).sum();
    write!(out, " {bytes} bytes:")?;
    let shown = if out.alternate() { usize::MAX } else { RANGES_SHOWN_MAX };
    for (first, length) in ranges.iter().take(shown) {
        write!(out, " {first}+{length}")?;
    }
    match ranges.len().saturating_sub(shown) {
        0 => Ok(()),
        more => write!(out, " and {more} more ranges"),
    }
}

impl Engine {
    /// Make a pool usable again whose log is damaged: it goes back to the last batch that can be
    /// followed. `None`: the log is whole, and nothing was lost. `secret`: the hash of the lock
    /// secret, where locked snapshots may be gone then. Locks of those that are not are kept.
    ///
    /// # Errors
    /// As `open`; `Corrupt` where it is not the log that is damaged; `Forbidden` where locked
    /// snapshots would be gone.
    ///
    /// # Durability
    /// On return the pool opens as it is told here. After a crash before that it is refused as
    /// before, or opens at the same place.
    pub fn accept_loss(
        path: &Path,
        settings: Settings,
        secret: Option<[u8; 32]>,
    ) -> Result<Option<LossReport>, EngineError> {
        Self::accept_loss_in(Arc::new(FileStore::new(path)), settings, secret)
    }

    /// `accept_loss` in any store.
    ///
    /// # Errors
    /// As `accept_loss`.
    pub fn accept_loss_in(
        store: Arc<dyn Store>,
        settings: Settings,
        secret: Option<[u8; 32]>,
    ) -> Result<Option<LossReport>, EngineError> {
        // What is read wrong once is no loss: two readings have to agree that there is one.
        match Self::open_in(store.clone(), true, settings.clone()) {
            Ok(_) => return Ok(None),
            Err(error) if error.kind == Kind::Corrupt => {}
            Err(error) => return Err(error),
        }
        let acceptance = Acceptance { secret, ..Acceptance::default() };
        let mut failed_at = None;
        let (engine, report) = loop {
            let before = acceptance.limit.get();
            let opened = Self::open_how(store.clone(), false, settings.clone(), Some(&acceptance));
            match opened {
                // Every time the limit is lower. It is taken where the same batch fails twice: what
                // was read wrong once is no loss to accept.
                Err(error) if error.kind == Kind::Corrupt && acceptance.limit.get() != before => {
                    if failed_at == acceptance.limit.get() {
                        acceptance.cause.borrow_mut().get_or_insert(error.text);
                    } else {
                        failed_at = acceptance.limit.replace(before);
                    }
                }
                other => break other?,
            }
        };
        // Segments that could not be followed are known by the checkpoint from here on.
        let shown = report.as_ref().map_or(Ok(false), |_| engine.checkpoint());
        let closed = engine.close();
        shown.and(closed)?;
        Ok(report)
    }
}
