//! An NBD server of a pool.

use crate::call::{Owner, call};
use pyo3::prelude::*;
use ramet_engine::{Engine, EngineError, PoolExports};
use ramet_nbd::{Limits, NbdError};
use std::path::PathBuf;
use std::sync::Arc;

/// See python/ramet/_core.pyi.
#[pyclass(frozen, module = "ramet._core")]
pub struct NbdServer {
    server: ramet_nbd::NbdServer,
    engine: Arc<Engine>,
    path: PathBuf,
    owner: Owner,
}

fn failure(error: &NbdError) -> EngineError {
    EngineError::new(error.kind(), error.code(), error.to_string())
}

impl NbdServer {
    pub fn start(
        py: Python<'_>,
        owner: Owner,
        engine: &Arc<Engine>,
        path: PathBuf,
    ) -> PyResult<Self> {
        let exports = Arc::new(PoolExports(engine.clone()));
        let start = || {
            ramet_nbd::NbdServer::start_unix(&path, exports, Limits::default())
                .map_err(|error| failure(&error))
        };
        let server = call(py, owner, start)?;
        Ok(NbdServer { server, engine: engine.clone(), path, owner })
    }
}

#[pymethods]
impl NbdServer {
    #[getter]
    fn socket_path(&self) -> String {
        self.path.display().to_string()
    }

    #[getter]
    fn connections_count(&self) -> usize {
        self.server.connections_count()
    }

    fn close_connections(&self, py: Python<'_>, objects: Vec<u64>) -> PyResult<usize> {
        call(py, self.owner, || Ok(self.server.close_connections(&objects)))
    }

    fn allow_connections(&self, py: Python<'_>, objects: Vec<u64>) -> PyResult<()> {
        call(py, self.owner, || {
            self.server.allow_connections(&objects);
            Ok(())
        })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        call(py, self.owner, || {
            let closed = self.server.close().map_err(|error| failure(&error));
            // What was answered is flushed even where a session did not end in time; a pool that
            // was closed before is flushed.
            let flushed =
                if self.engine.check_open().is_ok() { self.engine.flush() } else { Ok(()) };
            flushed.and(closed)
        })
    }
}
