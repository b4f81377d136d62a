//! The binding: convert, detach, call, convert. No logic, no callbacks from threads.
//!
//! Called by python/ramet/pool.py only; prose for users is there. Invariants: no lock is held while
//! attaching to Python; every call goes through `call::call`, which handles fork, panics and the
//! interpreter's lock in one place.

mod background;
mod call;
mod device;
mod loss;
mod object;
mod pool;
mod root;
mod scrub;
mod server;

use pyo3::prelude::*;
use ramet_store::Heap;

#[global_allocator]
static HEAP: Heap = Heap;

/// The version of the package, from Cargo.toml.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<pool::Pool>()?;
    module.add_class::<device::Device>()?;
    module.add_class::<device::Attached>()?;
    module.add_class::<object::Object>()?;
    module.add_class::<server::NbdServer>()?;
    module.add_class::<root::RootHasher>()?;
    module.add_class::<root::HashedReader>()?;
    module.add_class::<root::StreamHash>()?;
    module.add_class::<scrub::Scrub>()?;
    module.add_function(wrap_pyfunction!(loss::accept_loss, module)?)?;
    module.add_function(wrap_pyfunction!(loss::pool_uuid, module)?)?;
    module.add_function(wrap_pyfunction!(version, module)?)
}
