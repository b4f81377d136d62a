//! Root hashes, and the hash over a stream.

use crate::call::{Owner, call, raise};
use crate::device::Device;
use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ramet_engine::{ContentHash, EngineError, Kind, SIZE_BYTES_MAX, hash_stored};
use std::fmt::Write;

/// See python/ramet/_core.pyi.
#[pyclass(frozen, module = "ramet._core")]
pub struct RootHasher(Mutex<Option<ramet_engine::RootHasher>>);

fn invalid(py: Python<'_>, text: &str) -> PyErr {
    raise(py, &EngineError::new(Kind::Invalid, "hash_order", text))
}

impl RootHasher {
    fn with<T>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut ramet_engine::RootHasher) -> PyResult<T>,
    ) -> PyResult<T> {
        let mut hasher = self.0.lock();
        let hasher = hasher.as_mut();
        work(hasher.ok_or_else(|| invalid(py, "the root was taken; hint: begin anew"))?)
    }
}

#[pymethods]
impl RootHasher {
    #[new]
    fn new(py: Python<'_>, size_bytes: u64) -> PyResult<Self> {
        if size_bytes > SIZE_BYTES_MAX {
            return Err(invalid(py, "a size over 256 TiB; hint: no snapshot has it"));
        }
        Ok(RootHasher(Mutex::new(Some(ramet_engine::RootHasher::new(size_bytes)))))
    }

    #[allow(clippy::needless_pass_by_value)] // pyo3 hands buffers over by value.
    fn add(&self, py: Python<'_>, first_block: u64, data: PyBuffer<u8>) -> PyResult<()> {
        let bytes = data.to_vec(py)?;
        self.with(py, |hasher| {
            if !hasher.takes(first_block, bytes.len()) {
                let text = "blocks out of order or beyond the size; hint: give each once, in order";
                return Err(invalid(py, text));
            }
            hasher.add(first_block, &bytes);
            Ok(())
        })
    }

    fn add_stored(
        &self,
        py: Python<'_>,
        device: &Device,
        first_block: u64,
        blocks_max: u64,
    ) -> PyResult<u64> {
        // Taken out, so that nothing is locked while the interpreter's lock is given up.
        let mut hasher =
            self.with(py, |it| Ok(std::mem::replace(it, ramet_engine::RootHasher::new(0))))?;
        let next = call(py, device.owner(), || {
            hash_stored(device.inner(), &mut hasher, first_block, blocks_max)
        });
        self.with(py, |it| {
            *it = hasher;
            Ok(())
        })?;
        next
    }

    fn finish(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |_| Ok(()))?;
        let hasher = self.0.lock().take().expect("was there, and the interpreter's lock is held");
        Ok(hex(&hasher.finish()))
    }
}

fn hex(hash: &[u8]) -> String {
    hash.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a text takes all");
        text
    })
}

/// See python/ramet/_core.pyi.
#[pyclass(frozen, module = "ramet._core")]
pub struct HashedReader {
    reader: Mutex<ramet_engine::HashedReader>,
    owner: Owner,
}

impl HashedReader {
    pub fn new(reader: ramet_engine::HashedReader, owner: Owner) -> Self {
        HashedReader { reader: Mutex::new(reader), owner }
    }
}

#[pymethods]
impl HashedReader {
    #[getter]
    fn size_bytes(&self) -> u64 {
        self.reader.lock().size_bytes()
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        first_block: u64,
        length_bytes: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        PyBytes::new_with(py, length_bytes, |buffer| {
            call(py, self.owner, || self.reader.lock().read(first_block, buffer))
        })
    }

    fn step(&self, py: Python<'_>, blocks_max: u64) -> PyResult<Option<String>> {
        let root = call(py, self.owner, || self.reader.lock().step(blocks_max))?;
        Ok(root.map(|root| hex(&root)))
    }
}

/// See python/ramet/_core.pyi.
#[pyclass(frozen, module = "ramet._core")]
#[derive(Default)]
pub struct StreamHash(Mutex<ContentHash>);

#[pymethods]
impl StreamHash {
    #[new]
    fn new() -> Self {
        StreamHash::default()
    }

    #[allow(clippy::needless_pass_by_value)] // pyo3 hands buffers over by value.
    fn update(&self, py: Python<'_>, data: PyBuffer<u8>) -> PyResult<()> {
        let bytes = data.to_vec(py)?;
        let mut hash = std::mem::take(&mut *self.0.lock());
        let hash = call(py, Owner::current(), move || {
            hash.update(&bytes);
            Ok(hash)
        })?;
        *self.0.lock() = hash;
        Ok(())
    }

    fn digest(&self) -> [u8; 32] {
        self.0.lock().digest()
    }
}
