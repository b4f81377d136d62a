//! What commands return of volumes and snapshots.

use crate::call::raise;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ramet_engine::{EngineError, Kind, LockMode, ObjectInfo, ObjectKind};
use uuid::Uuid;

/// See python/ramet/_core.pyi.
#[pyclass(frozen, module = "ramet._core")]
pub struct Object(pub ObjectInfo);

#[pymethods]
impl Object {
    #[getter]
    fn id(&self) -> u64 {
        self.0.id.0
    }

    #[getter]
    fn uuid(&self) -> String {
        self.0.uuid.to_string()
    }

    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind {
            ObjectKind::Volume => "volume",
            ObjectKind::Snapshot => "snapshot",
        }
    }

    #[getter]
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    #[getter]
    fn mapped_bytes(&self) -> u64 {
        self.0.mapped_bytes
    }

    #[getter]
    fn created_ns(&self) -> u64 {
        self.0.created_ns
    }

    #[getter]
    fn parent(&self) -> Option<String> {
        self.0.parent.map(|uuid| uuid.to_string())
    }

    #[getter]
    fn source(&self) -> Option<String> {
        self.0.source.map(|uuid| uuid.to_string())
    }

    #[getter]
    fn batch(&self) -> String {
        self.0.batch.to_string()
    }

    #[getter]
    fn attributes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.attributes)
    }

    /// The lock that runs: its mode, and nanoseconds for which it runs on, and can be taken back.
    #[getter]
    fn lock(&self) -> Option<(&'static str, u64, u64)> {
        self.0.lock.map(|lock| (mode_text(lock.mode), lock.remaining_ns, lock.cooling_off_ns))
    }

    #[getter]
    fn attached_count(&self) -> u32 {
        self.0.attached_count
    }
}

fn mode_text(mode: Option<LockMode>) -> &'static str {
    match mode {
        Some(LockMode::Governance) => "governance",
        Some(LockMode::Compliance) => "compliance",
        None => "unknown",
    }
}

/// Read the mode of a lock that came from Python.
pub fn parse_mode(py: Python<'_>, text: &str) -> PyResult<LockMode> {
    match text {
        "governance" => Ok(LockMode::Governance),
        "compliance" => Ok(LockMode::Compliance),
        _ => {
            let text = format!("no mode '{text}'; hint: governance or compliance");
            Err(raise(py, &EngineError::new(Kind::Invalid, "lock_mode", text)))
        }
    }
}

/// Read a UUID that came from Python.
pub fn parse_uuid(py: Python<'_>, text: &str) -> PyResult<Uuid> {
    Uuid::try_parse(text).map_err(|_| {
        let text = format!("'{text}' is no UUID; hint: 32 hexadecimal digits in five groups");
        raise(py, &EngineError::new(Kind::Invalid, "uuid_malformed", text))
    })
}

/// Read UUIDs that came from Python.
pub fn parse_uuids(py: Python<'_>, texts: &[String]) -> PyResult<Vec<Uuid>> {
    texts.iter().map(|text| parse_uuid(py, text)).collect()
}

/// Convert a command's result.
pub fn objects(infos: Vec<ObjectInfo>) -> Vec<Object> {
    infos.into_iter().map(Object).collect()
}
