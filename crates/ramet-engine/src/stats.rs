//! How a pool is doing, in figures.

use crate::EngineError;
use crate::engine::Engine;
use crate::object::{ObjectKind, State};
use ramet_log::BLOCK_BYTES_U64;
use std::sync::atomic::Ordering;

/// How a pool is doing.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Volumes and snapshots.
    pub volumes_count: u64,
    /// See `volumes_count`.
    pub snapshots_count: u64,
    /// Snapshots that are being received, or were when a stream was cut.
    pub receiving_count: u64,
    /// Objects in the trash.
    pub trashed_count: u64,
    /// Sum over all objects of what they map: what full copies would take.
    pub mapped_bytes: u64,
    /// Segment files.
    pub segments_count: u64,
    /// Bytes of blocks that somebody holds, each once.
    pub living_bytes: u64,
    /// Bytes of segments that could be given back and were not yet, headers of batches included.
    pub waiting_bytes: u64,
    /// Bytes given back since the pool was opened.
    pub given_back_bytes: u64,
    /// Bytes of files of map nodes.
    pub nodes_stored_bytes: u64,
    /// Bytes of files of kept hashes.
    pub hashes_bytes: u64,
    /// Whether the file system can keep files with holes.
    pub holes_supported: bool,
    /// Places that wait to be walked.
    pub dying_count: u64,
    /// Batches made durable and begun.
    pub durable_sequence: u64,
    /// See `durable_sequence`.
    pub appended_sequence: u64,
    /// Log bytes that wait in memory.
    pub staged_bytes: u64,
    /// Syncs, bytes written, segments sealed since opening; batches replayed by it.
    pub syncs_count: u64,
    /// See `syncs_count`.
    pub written_bytes: u64,
    /// See `syncs_count`.
    pub sealed_count: u64,
    /// See `syncs_count`.
    pub replayed_count: u64,
    /// Segments that were begun in the file of a dead one, since opening.
    pub reused_count: u64,
    /// Bytes of files of dead segments that are kept for those to come.
    pub spare_bytes: u64,
    /// Checkpoints written since opening.
    pub checkpoints_count: u64,
    /// Map nodes loaded, taken out of memory, written since opening.
    pub nodes_loaded_count: u64,
    /// See `nodes_loaded_count`.
    pub nodes_evicted_count: u64,
    /// See `nodes_loaded_count`.
    pub nodes_written_count: u64,
    /// Map nodes looked at since opening, to find out what of deleted objects nobody else holds.
    pub nodes_visited_count: u64,
    /// Memory that nodes take which are on disk too, and those which are not yet.
    pub nodes_clean_bytes: u64,
    /// See `nodes_clean_bytes`.
    pub nodes_dirty_bytes: u64,
    /// How long commands closed the gate: the last, the longest.
    pub gate_closed_ns_last: u64,
    /// See `gate_closed_ns_last`.
    pub gate_closed_ns_max: u64,
    /// Bytes that the pool's files take.
    pub taken_bytes: u64,
    /// Bytes that they may take; 0: no limit.
    pub limit_bytes: u64,
    /// Bytes free on the medium, and in all; below the limit, where that is less.
    pub space_free_bytes: u64,
    /// See `space_free_bytes`.
    pub space_bytes: u64,
    /// Bytes free on the medium, and in all, whatever the limit is.
    pub medium_free_bytes: u64,
    /// See `medium_free_bytes`.
    pub medium_bytes: u64,
    /// The failure after which writes are refused; empty: none.
    pub poisoned: String,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug)]
pub struct Fullness {
    /// Bytes that the pool's files take.
    pub taken_bytes: u64,
    /// Bytes that they may take; 0: no limit.
    pub limit_bytes: u64,
    /// Bytes free on the medium, whatever the limit is.
    pub medium_free_bytes: u64,
    /// All of them.
    pub medium_bytes: u64,
}

impl Engine {
    /// How full the pool is: asked often, so it costs little.
    ///
    /// # Errors
    /// `Unavailable` where the medium does not say how full it is.
    pub fn fullness(&self) -> Result<Fullness, EngineError> {
        let (medium_free_bytes, medium_bytes) =
            self.limited.medium_bytes().map_err(ramet_log::LogError::from)?;
        let taken_bytes = self.limited.taken_bytes();
        let limit_bytes = self.limited.limit_bytes().unwrap_or(0);
        Ok(Fullness { taken_bytes, limit_bytes, medium_free_bytes, medium_bytes })
    }

    /// How the pool is doing.
    ///
    /// # Errors
    /// `Unavailable` where the medium does not say how full it is.
    pub fn stats(&self) -> Result<Stats, EngineError> {
        let counters = &self.log.counters;
        let (segments, staged_bytes) = self.log.sizes();
        let (space_free_bytes, space_bytes) =
            self.log.store().space_bytes().map_err(ramet_log::LogError::from)?;
        let Fullness { taken_bytes, limit_bytes, medium_free_bytes, medium_bytes } =
            self.fullness()?;
        let (mut volumes_count, mut snapshots_count, mut receiving_count) = (0, 0, 0);
        let (mut trashed_count, mut mapped_bytes) = (0, 0u64);
        let table = self.table.read();
        for object in table.all() {
            *match (object.state(), object.kind()) {
                (State::Live, ObjectKind::Volume) => &mut volumes_count,
                (State::Live, ObjectKind::Snapshot) => &mut snapshots_count,
                (State::Receiving, _) => &mut receiving_count,
                (State::Trashed, _) => &mut trashed_count,
            } += 1;
            mapped_bytes =
                mapped_bytes.saturating_add(object.head.map().mapped() * BLOCK_BYTES_U64);
        }
        let dying_count = self.space.dying_count();
        Ok(Stats {
            volumes_count,
            snapshots_count,
            receiving_count,
            trashed_count,
            mapped_bytes,
            segments_count: segments as u64,
            living_bytes: self.living_bytes(),
            waiting_bytes: self.waiting_bytes(),
            given_back_bytes: self.reclaim.given_back_bytes.load(Ordering::Relaxed),
            nodes_stored_bytes: self.node_file_bytes(),
            hashes_bytes: self.hashes_bytes(),
            holes_supported: self.reclaim.holes_supported(),
            dying_count,
            durable_sequence: self.log.durable().0,
            appended_sequence: self.log.appended().0,
            staged_bytes,
            syncs_count: counters.syncs.load(Ordering::Relaxed),
            written_bytes: counters.written_bytes.load(Ordering::Relaxed),
            sealed_count: counters.sealed.load(Ordering::Relaxed),
            replayed_count: counters.replayed.load(Ordering::Relaxed),
            reused_count: counters.reused.load(Ordering::Relaxed),
            spare_bytes: self.log.spare_bytes(),
            checkpoints_count: self.counters.checkpoints.load(Ordering::Relaxed),
            nodes_loaded_count: self.nodes.counters.loaded.load(Ordering::Relaxed),
            nodes_evicted_count: self.nodes.counters.evicted.load(Ordering::Relaxed),
            nodes_written_count: self.nodes.counters.written.load(Ordering::Relaxed),
            nodes_visited_count: self.space.nodes_visited(),
            nodes_clean_bytes: self.nodes.resident_bytes(),
            nodes_dirty_bytes: self.nodes.dirty_bytes(),
            gate_closed_ns_last: counters.gate_closed_ns_last.load(Ordering::Relaxed),
            gate_closed_ns_max: counters.gate_closed_ns_max.load(Ordering::Relaxed),
            taken_bytes,
            limit_bytes,
            space_free_bytes,
            space_bytes,
            medium_free_bytes,
            medium_bytes,
            poisoned: self.poisoned().to_string(),
        })
    }
}
