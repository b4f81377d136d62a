//! An open pool.

use crate::background::{self, Stop};
use crate::call::{Owner, call};
use crate::device::{Attached, Device};
use crate::object::{Object, objects, parse_mode, parse_uuid, parse_uuids};
use crate::root::HashedReader;
use crate::scrub::Scrub;
use crate::server::{NbdServer, Wanted};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use ramet_engine::{ChangedRun, Engine, EngineError, Incoming, Settings};
use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// See python/ramet/_core.pyi.
#[pyclass(frozen, module = "ramet._core")]
pub struct Pool {
    engine: ManuallyDrop<Arc<Engine>>,
    path: PathBuf,
    owner: Owner,
    stop: Arc<Stop>,
}

impl Pool {
    /// A call that a closed pool refuses.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Engine) -> Result<T, EngineError> + Send,
    ) -> PyResult<T> {
        call(py, self.owner, || {
            self.engine.check_open()?;
            work(&self.engine)
        })
    }
}

#[pymethods]
impl Pool {
    #[staticmethod]
    #[pyo3(signature = (path, segment_bytes = 0))]
    #[allow(clippy::needless_pass_by_value)] // pyo3 hands arguments over by value, here and below.
    fn create(py: Python<'_>, path: PathBuf, segment_bytes: u64) -> PyResult<()> {
        call(py, Owner::current(), || Engine::create(&path, segment_bytes))
    }

    #[staticmethod]
    #[pyo3(signature = (
        path, read_only = false, node_budget_bytes = 0, checkpoint_log_bytes = 0,
        checkpoint_batches = 0
    ))]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        read_only: bool,
        node_budget_bytes: u64,
        checkpoint_log_bytes: u64,
        checkpoint_batches: u64,
    ) -> PyResult<Pool> {
        let owner = Owner::current();
        let mut settings = Settings::default();
        for (own, given) in [
            (&mut settings.node_budget_bytes, node_budget_bytes),
            (&mut settings.checkpoint_log_bytes, checkpoint_log_bytes),
            (&mut settings.checkpoint_batches, checkpoint_batches),
        ] {
            *own = if given == 0 { *own } else { given };
        }
        let engine = call(py, owner, || Engine::open(&path, read_only, settings))?;
        let stop = background::start(&engine)?;
        Ok(Pool { engine: ManuallyDrop::new(engine), path, owner, stop })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        call(py, self.owner, || {
            self.stop.stop();
            self.engine.close()
        })
    }

    #[getter]
    fn uuid(&self) -> String {
        self.engine.uuid().to_string()
    }

    #[getter]
    fn path(&self) -> String {
        self.path.display().to_string()
    }

    #[getter]
    fn poisoned_reason(&self) -> String {
        self.engine.poisoned().to_string()
    }

    #[getter]
    fn read_only(&self) -> bool {
        self.engine.read_only()
    }

    fn checkpoint(&self, py: Python<'_>) -> PyResult<bool> {
        self.call(py, Engine::checkpoint)
    }

    fn hashed_reader(&self, py: Python<'_>, name: &str) -> PyResult<HashedReader> {
        let reader = call(py, self.owner, || {
            self.engine.check_open()?;
            self.engine.hashed_reader(name)
        })?;
        Ok(HashedReader::new(reader, self.owner))
    }

    fn forget_hashes(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, |engine| {
            engine.forget_hashes();
            Ok(())
        })
    }

    fn hold_space(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, |engine| Ok(engine.hold_space()))
    }

    fn still_holds(&self, number: u64) -> bool {
        self.engine.still_holds(number)
    }

    fn let_go(&self, number: u64) {
        self.engine.let_go(number);
    }

    fn scrub(&self, py: Python<'_>) -> PyResult<Scrub> {
        let engine = Arc::clone(&self.engine);
        self.call(py, |_| Ok(Scrub::new(engine, self.owner)))
    }

    /// Bytes given back, bytes and places that wait, and whether it is done.
    fn reclaim(
        &self,
        py: Python<'_>,
        everything: bool,
        time_ms: u64,
    ) -> PyResult<(u64, u64, u64, bool)> {
        let end = Instant::now() + Duration::from_millis(time_ms);
        let mut go_on = |_: &ramet_engine::Reclaimed| Instant::now() < end;
        let done = self.call(py, |engine| engine.reclaim(everything, &mut go_on))?;
        Ok((done.given_back_bytes, done.waiting_bytes, done.dying_count, done.is_done))
    }

    fn frees(&self, py: Python<'_>, names: Vec<String>) -> PyResult<u64> {
        self.call(py, |engine| engine.frees(&names))
    }

    fn set_limit(&self, py: Python<'_>, limit_bytes: Option<u64>) -> PyResult<()> {
        self.call(py, |engine| engine.set_limit(limit_bytes))
    }

    /// Bytes that an object maps, those of them that nobody else holds, and the last batch then.
    fn space(&self, py: Python<'_>, name: &str) -> PyResult<(u64, u64, u64)> {
        let told = self.call(py, |engine| engine.object_space(name))?;
        Ok((told.mapped_bytes, told.exclusive_bytes, told.sequence))
    }

    /// The same of all objects, by UUID.
    fn list_space(&self, py: Python<'_>) -> PyResult<HashMap<String, (u64, u64, u64)>> {
        let told = self.call(py, |engine| engine.list_space(Instant::now()))?;
        let figures = told.into_iter().map(|(uuid, it)| {
            (uuid.to_string(), (it.mapped_bytes, it.exclusive_bytes, it.sequence))
        });
        Ok(figures.collect())
    }

    /// Who shares most with an object, in bytes; and how many were compared.
    fn sharers(
        &self,
        py: Python<'_>,
        name: &str,
        count: usize,
    ) -> PyResult<(Vec<(String, u64)>, u64)> {
        let (found, compared) = self.call(py, |engine| engine.sharers(name, count))?;
        Ok((found.into_iter().map(|it| (it.name, it.shared_bytes)).collect(), compared))
    }

    /// Fragments of what was looked at of an object, and its bytes.
    fn scatter(&self, py: Python<'_>, name: &str) -> PyResult<(u64, u64)> {
        let told = self.call(py, |engine| engine.scatter(name))?;
        Ok((told.fragments_count, told.looked_at_bytes))
    }

    /// Bytes taken, limit (0: none), bytes free on the file system, and all of them.
    fn fullness(&self, py: Python<'_>) -> PyResult<(u64, u64, u64, u64)> {
        let told = self.call(py, Engine::fullness)?;
        Ok((told.taken_bytes, told.limit_bytes, told.medium_free_bytes, told.medium_bytes))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let look = |engine: &Engine| Ok((engine.stats()?, engine.pool_scatter(Instant::now())));
        let (stats, scatter) = self.call(py, look)?;
        let dict = PyDict::new(py);
        dict.set_item("poisoned", !stats.poisoned.is_empty())?;
        dict.set_item("poisoned_reason", stats.poisoned)?;
        dict.set_item("holes_supported", stats.holes_supported)?;
        for (name, value) in [
            ("volumes_count", stats.volumes_count),
            ("snapshots_count", stats.snapshots_count),
            ("receiving_count", stats.receiving_count),
            ("trashed_count", stats.trashed_count),
            ("mapped_bytes", stats.mapped_bytes),
            ("living_bytes", stats.living_bytes),
            ("waiting_bytes", stats.waiting_bytes),
            ("given_back_bytes", stats.given_back_bytes),
            ("dying_count", stats.dying_count),
            ("fragments_count", scatter.fragments_count),
            ("fragments_bytes", scatter.looked_at_bytes),
            ("segments_count", stats.segments_count),
            ("sealed_count", stats.sealed_count),
            ("staged_bytes", stats.staged_bytes),
            ("written_bytes", stats.written_bytes),
            ("syncs_count", stats.syncs_count),
            ("replayed_count", stats.replayed_count),
            ("reused_count", stats.reused_count),
            ("spare_bytes", stats.spare_bytes),
            ("durable_sequence", stats.durable_sequence),
            ("appended_sequence", stats.appended_sequence),
            ("checkpoints_count", stats.checkpoints_count),
            ("nodes_loaded_count", stats.nodes_loaded_count),
            ("nodes_evicted_count", stats.nodes_evicted_count),
            ("nodes_written_count", stats.nodes_written_count),
            ("nodes_visited_count", stats.nodes_visited_count),
            ("nodes_stored_bytes", stats.nodes_stored_bytes),
            ("hashes_bytes", stats.hashes_bytes),
            ("nodes_clean_bytes", stats.nodes_clean_bytes),
            ("nodes_dirty_bytes", stats.nodes_dirty_bytes),
            ("gate_closed_ns_last", stats.gate_closed_ns_last),
            ("gate_closed_ns_max", stats.gate_closed_ns_max),
            ("taken_bytes", stats.taken_bytes),
            ("limit_bytes", stats.limit_bytes),
            ("space_free_bytes", stats.space_free_bytes),
            ("space_bytes", stats.space_bytes),
            ("file_system_free_bytes", stats.medium_free_bytes),
            ("file_system_bytes", stats.medium_bytes),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    fn list(&self, py: Python<'_>) -> PyResult<Vec<Object>> {
        self.call(py, |engine| Ok(engine.list())).map(objects)
    }

    fn find(&self, py: Python<'_>, name: &str) -> PyResult<Object> {
        self.call(py, |engine| engine.find(name)).map(Object)
    }

    fn find_many(&self, py: Python<'_>, names: Vec<String>) -> PyResult<Vec<Object>> {
        self.call(py, |engine| engine.find_many(&names)).map(objects)
    }

    fn taken(&self, py: Python<'_>, names: Vec<String>) -> PyResult<Vec<String>> {
        self.call(py, |engine| Ok(engine.taken(&names)))
    }

    #[pyo3(signature = (names, size_bytes, attributes = Vec::new()))]
    fn create_volumes(
        &self,
        py: Python<'_>,
        names: Vec<String>,
        size_bytes: u64,
        attributes: Vec<u8>,
    ) -> PyResult<Vec<Object>> {
        self.call(py, |engine| engine.create_volumes(&names, size_bytes, &attributes)).map(objects)
    }

    #[pyo3(signature = (volumes, names, attributes = Vec::new()))]
    fn snapshot(
        &self,
        py: Python<'_>,
        volumes: Vec<String>,
        names: Vec<String>,
        attributes: Vec<u8>,
    ) -> PyResult<Vec<Object>> {
        self.call(py, |engine| engine.snapshot(&volumes, &names, &attributes)).map(objects)
    }

    #[pyo3(signature = (source, names, size_bytes = None, attributes = Vec::new()))]
    fn clone(
        &self,
        py: Python<'_>,
        source: &str,
        names: Vec<String>,
        size_bytes: Option<u64>,
        attributes: Vec<u8>,
    ) -> PyResult<Vec<Object>> {
        let made = |engine: &Engine| engine.clone_object(source, &names, size_bytes, &attributes);
        self.call(py, made).map(objects)
    }

    #[pyo3(signature = (volumes, snapshots, keep_names = None, take_size = false))]
    fn revert(
        &self,
        py: Python<'_>,
        volumes: Vec<String>,
        snapshots: Vec<String>,
        keep_names: Option<Vec<String>>,
        take_size: bool,
    ) -> PyResult<Vec<Object>> {
        let keep = keep_names.as_deref();
        self.call(py, |engine| engine.revert(&volumes, &snapshots, keep, take_size)).map(objects)
    }

    fn freeze(&self, py: Python<'_>, names: Vec<String>) -> PyResult<Vec<Object>> {
        self.call(py, |engine| engine.freeze(&names)).map(objects)
    }

    #[pyo3(signature = (name, size_bytes, may_shrink = false))]
    fn resize(
        &self,
        py: Python<'_>,
        name: &str,
        size_bytes: u64,
        may_shrink: bool,
    ) -> PyResult<Object> {
        let engine = &*self.engine;
        self.call(py, |_| engine.resize(name, size_bytes, may_shrink)).map(Object)
    }

    fn set_attributes(
        &self,
        py: Python<'_>,
        names: Vec<String>,
        attributes: Vec<Vec<u8>>,
    ) -> PyResult<()> {
        self.call(py, |engine| engine.set_attributes(&names, &attributes))
    }

    fn diff(&self, py: Python<'_>, before: &str, after: &str) -> PyResult<Vec<(u64, u64, bool)>> {
        self.call(py, |engine| engine.diff(before, after))
    }

    fn rename(&self, py: Python<'_>, name: &str, new_name: &str) -> PyResult<Object> {
        self.call(py, |engine| engine.rename(name, new_name)).map(Object)
    }

    fn delete(&self, py: Python<'_>, names: Vec<String>) -> PyResult<Vec<Object>> {
        self.call(py, |engine| engine.delete(&names)).map(objects)
    }

    fn trash(&self, py: Python<'_>, names: Vec<String>) -> PyResult<Vec<Object>> {
        self.call(py, |engine| engine.trash(&names)).map(objects)
    }

    /// Each object in the trash, with the nanoseconds that it stays.
    fn trashed(&self, py: Python<'_>) -> PyResult<Vec<(Object, u64)>> {
        let all = self.call(py, |engine| Ok(engine.trashed()))?;
        Ok(all.into_iter().map(|it| (Object(it.object), it.remaining_ns)).collect())
    }

    #[pyo3(signature = (keys, names = None))]
    fn restore(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        names: Option<Vec<String>>,
    ) -> PyResult<Vec<Object>> {
        self.call(py, |engine| engine.restore(&keys, names.as_deref())).map(objects)
    }

    #[pyo3(signature = (keys = None))]
    fn empty_trash(&self, py: Python<'_>, keys: Option<Vec<String>>) -> PyResult<Vec<Object>> {
        self.call(py, |engine| engine.empty_trash(keys.as_deref())).map(objects)
    }

    #[pyo3(signature = (keys = None))]
    fn trash_frees(&self, py: Python<'_>, keys: Option<Vec<String>>) -> PyResult<u64> {
        self.call(py, |engine| engine.trash_frees(keys.as_deref()))
    }

    fn trash_seconds(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, |engine| Ok(engine.trash_seconds()))
    }

    fn set_trash_seconds(&self, py: Python<'_>, seconds: u64) -> PyResult<()> {
        self.call(py, |engine| engine.set_trash_seconds(seconds))
    }

    fn lock(
        &self,
        py: Python<'_>,
        names: Vec<String>,
        time_ns: u64,
        mode: &str,
    ) -> PyResult<Vec<Object>> {
        let (time, mode) = (Duration::from_nanos(time_ns), parse_mode(py, mode)?);
        self.call(py, |engine| engine.lock(&names, time, mode)).map(objects)
    }

    #[pyo3(signature = (names, secret = None))]
    fn unlock(
        &self,
        py: Python<'_>,
        names: Vec<String>,
        secret: Option<[u8; 32]>,
    ) -> PyResult<Vec<Object>> {
        self.call(py, |engine| engine.unlock(&names, secret)).map(objects)
    }

    fn lock_clock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let clock = self.call(py, |engine| Ok(engine.lock_clock()))?;
        let dict = PyDict::new(py);
        for (name, value) in [
            ("clock_ns", clock.ns),
            ("day_ns", clock.day_ns),
            ("confirmed_day_ns", clock.confirmed_day_ns),
            ("behind_ns", clock.behind_ns),
            ("locked_count", clock.locked_count),
            ("cooling_off_seconds", clock.cooling_off_seconds),
            ("wrong_secrets_count", clock.wrong_secrets_count),
        ] {
            dict.set_item(name, value)?;
        }
        dict.set_item("has_secret", clock.has_secret)?;
        Ok(dict)
    }

    fn confirm_lock_clock(&self, py: Python<'_>, secret: [u8; 32]) -> PyResult<u64> {
        self.call(py, |engine| engine.confirm_lock_clock(secret))
    }

    #[pyo3(signature = (secret, old = None))]
    fn set_lock_secret(
        &self,
        py: Python<'_>,
        secret: [u8; 32],
        old: Option<[u8; 32]>,
    ) -> PyResult<()> {
        self.call(py, |engine| engine.set_lock_secret(secret, old))
    }

    #[pyo3(signature = (seconds, secret = None))]
    fn set_cooling_off(
        &self,
        py: Python<'_>,
        seconds: u64,
        secret: Option<[u8; 32]>,
    ) -> PyResult<()> {
        self.call(py, |engine| engine.set_cooling_off(seconds, secret))
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, |engine| engine.flush())
    }

    fn open_device(&self, py: Python<'_>, name: &str) -> PyResult<Device> {
        let engine = &*self.engine;
        let device = self.call(py, |_| engine.device(name))?;
        Ok(Device::new(device, self.owner))
    }

    fn changed_runs(
        &self,
        py: Python<'_>,
        before: Option<&str>,
        after: &str,
        first_block: u64,
    ) -> PyResult<(Vec<ChangedRun>, u64)> {
        self.call(py, |engine| engine.changed_runs(before, after, first_block))
    }

    fn attach(&self, py: Python<'_>, names: Vec<String>) -> PyResult<Attached> {
        let engine = &*self.engine;
        let attach = |_: &Engine| names.iter().map(|name| engine.attach(name)).collect();
        Ok(Attached::new(self.call(py, attach)?))
    }

    #[pyo3(signature = (uuid, batch, source, created_ns, size_bytes, attributes, base = None))]
    #[allow(clippy::too_many_arguments)] // The fields of `Incoming`.
    fn begin_receiving(
        &self,
        py: Python<'_>,
        uuid: &str,
        batch: &str,
        source: Option<&str>,
        created_ns: u64,
        size_bytes: u64,
        attributes: Vec<u8>,
        base: Option<&str>,
    ) -> PyResult<Object> {
        let source = source.map_or(Ok(Uuid::nil()), |it| parse_uuid(py, it))?;
        let (uuid, batch) = (parse_uuid(py, uuid)?, parse_uuid(py, batch)?);
        let incoming = Incoming { uuid, batch, source, created_ns, size_bytes, attributes };
        let engine = &*self.engine;
        self.call(py, |_| engine.begin_receiving(&incoming, base)).map(Object)
    }

    fn note_receiving(&self, py: Python<'_>, uuid: &str, attributes: Vec<u8>) -> PyResult<()> {
        let uuid = parse_uuid(py, uuid)?;
        self.call(py, |engine| engine.note_receiving(uuid, &attributes))
    }

    fn admit(
        &self,
        py: Python<'_>,
        uuids: Vec<String>,
        names: Vec<String>,
        attributes: Vec<Vec<u8>>,
    ) -> PyResult<Vec<Object>> {
        let uuids = parse_uuids(py, &uuids)?;
        self.call(py, |engine| engine.admit(&uuids, &names, &attributes)).map(objects)
    }

    fn abandon(&self, py: Python<'_>, uuids: Vec<String>) -> PyResult<()> {
        let uuids = parse_uuids(py, &uuids)?;
        self.call(py, |engine| engine.abandon(&uuids))
    }

    fn receiving(&self, py: Python<'_>) -> PyResult<Vec<Object>> {
        self.call(py, |engine| Ok(engine.receiving())).map(objects)
    }

    fn receiving_device(&self, py: Python<'_>, uuid: &str) -> PyResult<Device> {
        let uuid = parse_uuid(py, uuid)?;
        let engine = &*self.engine;
        let device = self.call(py, |_| engine.receiving_device(uuid))?;
        Ok(Device::new(device, self.owner))
    }

    fn serve_nbd(&self, py: Python<'_>, listening: Wanted) -> PyResult<NbdServer> {
        self.call(py, |_| Ok(()))?;
        NbdServer::start(py, self.owner, &self.engine, &listening)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // After a fork the engine belongs to the parent: the child must neither write nor seal
        // anything.
        if !self.owner.is_current() {
            return;
        }
        self.stop.stop();
        // Nobody is left to be told; what failed here is found when the pool is opened.
        let _ = self.engine.close();
        // SAFETY: dropped once, here, and never used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.engine) };
    }
}
