//! An NBD server of a pool.

use crate::call::{Owner, call};
use pyo3::prelude::*;
use ramet_engine::{Engine, EngineError, Kind, PoolExports};
use ramet_nbd::{Address, Limits, Listening, NbdError, Tls, TlsFiles, UnixAddress};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// See python/ramet/_core.pyi.
#[pyclass(frozen, module = "ramet._core")]
pub struct NbdServer {
    server: ramet_nbd::NbdServer,
    tls: Option<Arc<Tls>>,
    engine: Arc<Engine>,
    owner: Owner,
}

/// Where and how to listen, as `NbdListening` of python/ramet/listening.py says it.
#[derive(FromPyObject)]
pub struct Wanted {
    unix: Vec<PathBuf>,
    tcp: Vec<String>,
    given: Vec<i32>,
    socket_mode: u32,
    socket_group: Option<u32>,
    plain_tcp: bool,
    tls: Option<WantedTls>,
}

/// `NbdTls` of the same file.
#[derive(FromPyObject)]
struct WantedTls {
    certificate: PathBuf,
    key: PathBuf,
    clients: Option<PathBuf>,
    allow: Option<PathBuf>,
}

impl Wanted {
    fn addresses(&self) -> Result<Vec<Address>, EngineError> {
        let mut addresses: Vec<Address> = Vec::new();
        for path in &self.unix {
            let (path, mode, group) = (path.clone(), self.socket_mode, self.socket_group);
            addresses.push(Address::Unix(UnixAddress { path, mode, group }));
        }
        for text in &self.tcp {
            let address: SocketAddr = text.parse().map_err(|_| {
                let text = format!("'{text}' is no address; hint: IP:PORT, [IPv6]:PORT");
                EngineError::new(Kind::Invalid, "nbd_address_malformed", text)
            })?;
            addresses.push(Address::Tcp(address));
        }
        for number in &self.given {
            let refuse = || {
                let text = format!("there is no file descriptor {number}; hint: an open socket");
                EngineError::new(Kind::Invalid, "nbd_descriptor_closed", text)
            };
            if *number < 0 {
                return Err(refuse());
            }
            // SAFETY: borrowed for the call only; where the number is not open the call fails.
            let given = unsafe { BorrowedFd::borrow_raw(*number) };
            // Theirs stays theirs.
            addresses.push(Address::Given(given.try_clone_to_owned().map_err(|_| refuse())?));
        }
        Ok(addresses)
    }

    fn tls(&self) -> Result<Option<Arc<Tls>>, EngineError> {
        let Some(WantedTls { certificate, key, clients, allow }) = &self.tls else {
            return Ok(None);
        };
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            clients: clients.clone(),
            allow: allow.clone(),
        };
        let tls = Tls::load(files).map_err(|error| failure(&error))?;
        Ok(Some(Arc::new(tls)))
    }
}

fn failure(error: &NbdError) -> EngineError {
    EngineError::new(error.kind(), error.code(), error.to_string())
}

impl NbdServer {
    pub fn start(
        py: Python<'_>,
        owner: Owner,
        engine: &Arc<Engine>,
        wanted: &Wanted,
    ) -> PyResult<Self> {
        let exports = Arc::new(PoolExports(engine.clone()));
        let start = || {
            let tls = wanted.tls()?;
            let listening = Listening {
                addresses: wanted.addresses()?,
                tls: tls.clone(),
                plain_tcp: wanted.plain_tcp,
            };
            ramet_nbd::NbdServer::start(listening, exports, Limits::default())
                .map(|server| (server, tls))
                .map_err(|error| failure(&error))
        };
        let (server, tls) = call(py, owner, start)?;
        Ok(NbdServer { server, tls, engine: engine.clone(), owner })
    }
}

#[pymethods]
impl NbdServer {
    #[getter]
    fn addresses(&self) -> Vec<String> {
        self.server.addresses()
    }

    #[getter]
    fn connections_count(&self) -> usize {
        self.server.connections_count()
    }

    fn reload_tls(&self, py: Python<'_>) -> PyResult<()> {
        call(py, self.owner, || match &self.tls {
            Some(tls) => tls.reload().map_err(|error| failure(&error)),
            None => Ok(()),
        })
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
