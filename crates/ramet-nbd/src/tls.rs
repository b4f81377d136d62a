//! TLS: what the server shows, whom it trusts, and the transport over another one.
//!
//! Invariants: a connection keeps what was loaded when it began; nothing is resumed, so what a
//! client may do is always asked of its certificate anew.

use crate::allow::{AllowList, Allowance};
use crate::buffer::Buffer;
use crate::certificate;
use crate::error::NbdError;
use crate::transport::{Received, Transport};
use parking_lot::RwLock;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// So many connections later, what the allocator kept of them is given back: some megabytes.
const ENDED_MAX: usize = 64;
/// What is received at once: several records of 16 KiB.
const RECEIVE_BYTES: usize = 64 << 10;

/// Where the certificates are, all of them as PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// The private key of the first.
    pub key: PathBuf,
    /// Authorities of client certificates; with these, every client needs one.
    pub clients: Option<PathBuf>,
    /// What each client may open, see [`AllowList`]; without it, everything.
    pub allow: Option<PathBuf>,
}

/// TLS of a server.
pub struct Tls {
    files: TlsFiles,
    loaded: RwLock<Loaded>,
    memory: Arc<EndedMemory>,
}

/// What one listener does with it.
#[derive(Clone)]
pub(crate) struct Policy {
    pub(crate) tls: Arc<Tls>,
    /// Nothing is done for a client before it asked for TLS.
    pub(crate) required: bool,
    /// How long a handshake may take in all.
    pub(crate) patience: Duration,
}

impl Policy {
    /// Perform the handshake over `inner`, and say what the client may open; nothing: everything.
    pub(crate) fn accept(
        &self,
        inner: Box<dyn Transport>,
    ) -> io::Result<(Box<dyn Transport>, Option<Allowance>)> {
        self.tls.accept(inner, Instant::now() + self.patience)
    }
}

#[derive(Clone)]
struct Loaded {
    config: Arc<ServerConfig>,
    allow: Option<Arc<AllowList>>,
}

impl Tls {
    /// Read the files.
    ///
    /// # Errors
    /// `Tls`, with the file and what is wrong with it.
    pub fn load(files: TlsFiles) -> Result<Self, NbdError> {
        if let (Some(path), None) = (&files.allow, &files.clients) {
            return Err(refuse(path)("it goes by client certificates, and none are asked for"));
        }
        let loaded = RwLock::new(Loaded::read(&files)?);
        Ok(Tls { files, loaded, memory: Arc::default() })
    }

    /// Read the files again; connections that there are keep what they have.
    ///
    /// # Errors
    /// As for `load`; then everything stays as it was.
    pub fn reload(&self) -> Result<(), NbdError> {
        let loaded = Loaded::read(&self.files)?;
        *self.loaded.write() = loaded;
        Ok(())
    }

    fn accept(
        &self,
        inner: Box<dyn Transport>,
        deadline: Instant,
    ) -> io::Result<(Box<dyn Transport>, Option<Allowance>)> {
        let Loaded { config, allow } = self.loaded.read().clone();
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut transport = TlsTransport::new(inner, connection, Arc::clone(&self.memory));
        transport.handshake(deadline)?;
        let allowance = allow.map(|allow| {
            let certificates = transport.connection.peer_certificates().unwrap_or_default();
            allow.of(&certificates.first().map_or_else(Vec::new, certificate::names_of))
        });
        Ok((Box::new(transport), allowance))
    }
}

impl Loaded {
    fn read(files: &TlsFiles) -> Result<Self, NbdError> {
        let chain = read_certificates(&files.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| refuse(&files.key)(&error.to_string()))?;
        let failed = |error: rustls::Error| refuse(&files.certificate)(&error.to_string());
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(failed)?;
        let builder = if let Some(path) = &files.clients {
            let mut authorities = RootCertStore::empty();
            for authority in read_certificates(path)? {
                authorities.add(authority).map_err(|error| refuse(path)(&error.to_string()))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider)
                    .build()
                    .map_err(|error| refuse(path)(&error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(chain, key).map_err(failed)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let allow = match &files.allow {
            Some(path) => Some(Arc::new(read_allow_list(path)?)),
            None => None,
        };
        Ok(Loaded { config: Arc::new(config), allow })
    }
}

fn refuse(path: &Path) -> impl Fn(&str) -> NbdError {
    move |what| NbdError::Tls { path: path.to_owned(), what: what.to_owned() }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NbdError> {
    let failed = |error: rustls::pki_types::pem::Error| refuse(path)(&error.to_string());
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect())
        .map_err(failed)?;
    if certificates.is_empty() {
        return Err(refuse(path)("there is no certificate in it"));
    }
    Ok(certificates)
}

fn read_allow_list(path: &Path) -> Result<AllowList, NbdError> {
    let text = std::fs::read_to_string(path).map_err(|error| refuse(path)(&error.to_string()))?;
    AllowList::parse(&text).map_err(|what| refuse(path)(&what))
}

/// An encrypted connection over another transport.
struct TlsTransport {
    inner: Box<dyn Transport>,
    connection: ServerConnection,
    /// Received and not decrypted: what is from `start` to `end`.
    incoming: Buffer,
    start: usize,
    end: usize,
    outgoing: Vec<u8>,
    /// Dropped last.
    _memory: EndOfOne,
}

impl TlsTransport {
    fn new(
        inner: Box<dyn Transport>,
        connection: ServerConnection,
        memory: Arc<EndedMemory>,
    ) -> Self {
        let (incoming, outgoing) = (Buffer::empty(), Vec::new());
        let _memory = EndOfOne(memory);
        TlsTransport { inner, connection, incoming, start: 0, end: 0, outgoing, _memory }
    }

    /// Agree on everything; who has not by `deadline` is sent away, however much it says.
    fn handshake(&mut self, deadline: Instant) -> io::Result<()> {
        self.inner.tell_every_silence(true);
        while self.connection.is_handshaking() {
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.send_encrypted()?;
            if !self.connection.wants_read() {
                continue;
            }
            match self.fill()? {
                Received::Bytes(_) => self.decrypt()?,
                Received::Silence => {}
                Received::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        self.inner.tell_every_silence(false);
        self.send_encrypted()
    }

    /// Receive what is encrypted, unless there is some.
    fn fill(&mut self) -> io::Result<Received> {
        if self.start < self.end {
            return Ok(Received::Bytes(self.end - self.start));
        }
        if self.incoming.is_empty() {
            self.incoming = Buffer::zeroed(RECEIVE_BYTES);
        }
        let received = self.inner.receive(&mut self.incoming)?;
        match received {
            Received::Bytes(length_bytes) => (self.start, self.end) = (0, length_bytes),
            Received::Silence => (self.incoming, self.outgoing) = (Buffer::empty(), Vec::new()),
            Received::End => {}
        }
        Ok(received)
    }

    /// Decrypt some of what was received, and answer what TLS itself asks.
    fn decrypt(&mut self) -> io::Result<()> {
        let mut encrypted = &self.incoming[self.start..self.end];
        self.start += self.connection.read_tls(&mut encrypted)?;
        let processed = self.connection.process_new_packets();
        // Where it failed there is an alert, which says why.
        self.send_encrypted()?;
        processed.map_err(io::Error::other)?;
        Ok(())
    }

    fn send_encrypted(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.outgoing)?;
        }
        if !self.outgoing.is_empty() {
            self.inner.send_all(&self.outgoing)?;
            self.outgoing.clear();
        }
        Ok(())
    }
}

impl Transport for TlsTransport {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut filled_bytes = 0;
        while filled_bytes < buffer.len() {
            match self.connection.reader().read(&mut buffer[filled_bytes..]) {
                // The client said that it will send no more.
                Ok(0) if filled_bytes == 0 => return Ok(Received::End),
                Ok(0) => break,
                Ok(length_bytes) => filled_bytes += length_bytes,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if self.start < self.end => self.decrypt()?,
                Err(_) if filled_bytes > 0 => break,
                Err(_) => match self.fill()? {
                    Received::Bytes(_) => self.decrypt()?,
                    // Without a goodbye: what came is whole requests, or is never applied.
                    silence_or_end => return Ok(silence_or_end),
                },
            }
        }
        Ok(Received::Bytes(filled_bytes))
    }

    fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken_bytes = self.connection.writer().write(rest)?;
            rest = &rest[taken_bytes..];
            self.send_encrypted()?;
        }
        Ok(())
    }
}

impl Drop for TlsTransport {
    fn drop(&mut self) {
        // Says that nothing was cut off; who is gone need not hear it.
        self.connection.send_close_notify();
        let _ = self.send_encrypted();
    }
}

/// What connections that ended leave in the allocator.
///
/// TLS itself takes its memory there, tens of kilobytes for each connection, and the allocator
/// keeps what a crowd of them needed, in an arena for each few threads.
#[derive(Default)]
struct EndedMemory {
    ended_count: AtomicUsize,
}

struct EndOfOne(Arc<EndedMemory>);

impl Drop for EndOfOne {
    fn drop(&mut self) {
        let ended_count = self.0.ended_count.fetch_add(1, Ordering::Relaxed) + 1;
        if ended_count.is_multiple_of(ENDED_MAX) {
            give_memory_back();
        }
    }
}

#[cfg(target_env = "gnu")]
fn give_memory_back() {
    // SAFETY: frees what is not allocated; may be called at any time by any thread.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_memory_back() {}
