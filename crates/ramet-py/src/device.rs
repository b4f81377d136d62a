//! Block I/O on one object.

use crate::call::{Owner, call, raise};
use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ramet_engine::{BlockDevice, EngineError, Kind};
use std::sync::Arc;

/// Bytes moved between two looks for an interrupt.
const PIECE_BYTES: usize = 8 << 20;

/// See python/ramet/_core.pyi.
#[pyclass(frozen, module = "ramet._core")]
pub struct Device {
    device: Arc<dyn BlockDevice>,
    owner: Owner,
}

/// See python/ramet/_core.pyi.
#[pyclass(frozen, module = "ramet._core")]
pub struct Attached(Mutex<Vec<Arc<dyn BlockDevice>>>);

impl Attached {
    pub fn new(devices: Vec<Arc<dyn BlockDevice>>) -> Self {
        Attached(Mutex::new(devices))
    }
}

#[pymethods]
impl Attached {
    fn detach(&self) {
        self.0.lock().clear();
    }
}

impl Device {
    pub fn new(device: Arc<dyn BlockDevice>, owner: Owner) -> Self {
        Device { device, owner }
    }

    pub fn inner(&self) -> &dyn BlockDevice {
        &*self.device
    }

    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Read in pieces, so that a signal is noticed between them.
    fn read_pieces(&self, py: Python<'_>, offset_bytes: u64, buffer: &mut [u8]) -> PyResult<()> {
        let mut at = offset_bytes;
        for piece in buffer.chunks_mut(PIECE_BYTES) {
            let length = piece.len() as u64;
            call(py, self.owner, || self.device.read(at, piece))?;
            at += length;
            py.check_signals()?;
        }
        Ok(())
    }

    fn check_range(&self, py: Python<'_>, offset_bytes: u64, length: usize) -> PyResult<()> {
        let size_bytes = self.device.size_bytes();
        if offset_bytes.checked_add(length as u64).is_some_and(|end| end <= size_bytes) {
            return Ok(());
        }
        let text = format!(
            "{length} bytes at {offset_bytes} go past the end at {size_bytes}; hint: stay inside"
        );
        Err(raise(py, &EngineError::new(Kind::Invalid, "range_past_end", text)))
    }
}

#[pymethods]
impl Device {
    #[getter]
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    #[getter]
    fn read_only(&self) -> bool {
        self.device.read_only()
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        offset_bytes: u64,
        length_bytes: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        // Before the memory is asked for: a length from a mistake may be anything.
        self.check_range(py, offset_bytes, length_bytes)?;
        PyBytes::new_with(py, length_bytes, |buffer| self.read_pieces(py, offset_bytes, buffer))
    }

    #[allow(clippy::needless_pass_by_value)] // pyo3 hands buffers over by value.
    fn read_into(&self, py: Python<'_>, offset_bytes: u64, buffer: PyBuffer<u8>) -> PyResult<()> {
        let mut bytes = vec![0; buffer.len_bytes()];
        self.check_range(py, offset_bytes, bytes.len())?;
        self.read_pieces(py, offset_bytes, &mut bytes)?;
        buffer.copy_from_slice(py, &bytes)
    }

    #[pyo3(signature = (offset_bytes, data, fua = false))]
    #[allow(clippy::needless_pass_by_value)] // pyo3 hands buffers over by value.
    fn write(
        &self,
        py: Python<'_>,
        offset_bytes: u64,
        data: PyBuffer<u8>,
        fua: bool,
    ) -> PyResult<()> {
        // A copy: another thread may change the buffer while the interpreter's lock is given up,
        // and its checksum with it.
        let bytes = data.to_vec(py)?;
        self.check_range(py, offset_bytes, bytes.len())?;
        let mut at = offset_bytes;
        let pieces = bytes.len().div_ceil(PIECE_BYTES);
        for (index, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            call(py, self.owner, || self.device.write(at, piece, fua && index + 1 == pieces))?;
            at += piece.len() as u64;
            py.check_signals()?;
        }
        if bytes.is_empty() {
            call(py, self.owner, || self.device.write(at, &[], fua))?;
        }
        Ok(())
    }

    fn trim(&self, py: Python<'_>, offset_bytes: u64, length_bytes: u64) -> PyResult<()> {
        call(py, self.owner, || self.device.trim(offset_bytes, length_bytes, false))
    }

    fn write_zeroes(&self, py: Python<'_>, offset_bytes: u64, length_bytes: u64) -> PyResult<()> {
        call(py, self.owner, || self.device.write_zeroes(offset_bytes, length_bytes, false))
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        call(py, self.owner, || self.device.flush())
    }
}
