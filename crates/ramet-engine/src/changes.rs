//! Changes of a volume's map, live and replayed: the map, and what it lets go of.
//!
//! Invariant: called inside the gate, or while nobody else has the pool.

use crate::EngineError;
use crate::head::InGate;
use crate::map::{LetGo as _, Map, Missing};
use crate::nodes::Nodes;
use crate::object::{Changed, Object, ObjectKind, Table};
use crate::space::{LetGo, Space};
use ramet_log::{Locator, ObjectId, Position};
use std::sync::Arc;

/// Point a volume's map, which was found ready, at blocks; what it lets go of is noted. Result:
/// bytes of the map that are now nowhere else.
pub(crate) fn write_map(
    map: &mut Map,
    object: &Object,
    space: &Space,
    gate: InGate<'_>,
    first: u64,
    count: u64,
    locator: Locator,
) -> u64 {
    let place = object.place();
    object.head.with_parent(gate, |parent| {
        let mut let_go = LetGo::new(space, place, parent, Position::ZERO);
        // A run's newest block says when the newest change was.
        let newest = locator.offset(count - 1).position();
        map.write_ready(first, count, locator, newest, &mut |index, count, old| {
            let_go.run(index, count, old)
        })
    })
}

/// Make a range of a volume's map holes. Result: as `write_map`, or what is missing.
pub(crate) fn clear_map(
    object: &Object,
    space: &Space,
    gate: InGate<'_>,
    first: u64,
    count: u64,
    position: Position,
) -> std::result::Result<u64, Missing> {
    let place = object.place();
    object.head.with_parent(gate, |parent| {
        let mut let_go = LetGo::new(space, place, parent, position);
        object.head.map_mut(gate).remove(first, count, position, &mut let_go)
    })
}

/// What replay changes maps with.
pub(crate) struct Replayer<'a> {
    pub(crate) table: &'a Table,
    pub(crate) space: &'a Space,
    pub(crate) nodes: &'a Nodes,
    pub(crate) changed: &'a Changed,
    /// Told why a node cannot be read; result: the text.
    pub(crate) note: &'a mut dyn FnMut(EngineError) -> String,
}

impl Replayer<'_> {
    fn volume(&self, id: ObjectId) -> std::result::Result<&Arc<Object>, String> {
        let object = self.table.get(id);
        let object =
            object.ok_or_else(|| format!("object {:#x} is written to, and not there", id.0))?;
        if object.kind() != ObjectKind::Volume {
            return Err(format!("snapshot {:#x} is written to", id.0));
        }
        self.changed.note(object);
        Ok(object)
    }

    /// A write, as the log tells it.
    pub(crate) fn write(
        &mut self,
        id: ObjectId,
        first: u64,
        count: u64,
        locator: Locator,
    ) -> std::result::Result<(), String> {
        let object = self.volume(id)?;
        if count == 0 {
            return Err(format!("a write of no blocks to object {:#x}", id.0));
        }
        let gate = InGate::replaying();
        let write = || {
            let map = &mut object.head.map_mut(gate);
            map.ready(first, count, false)?;
            Ok(write_map(map, object, self.space, gate, first, count, locator))
        };
        let bytes = self.nodes.with(write).map_err(&mut *self.note)?;
        self.nodes.dirtied(bytes);
        Ok(())
    }

    /// A trim or zero, as the log tells it.
    pub(crate) fn clear(
        &mut self,
        id: ObjectId,
        first: u64,
        count: u64,
        position: Position,
    ) -> std::result::Result<(), String> {
        let object = self.volume(id)?;
        let gate = InGate::replaying();
        let clear = || clear_map(object, self.space, gate, first, count, position);
        let bytes = self.nodes.with(clear).map_err(&mut *self.note)?;
        self.nodes.dirtied(bytes);
        Ok(())
    }
}
