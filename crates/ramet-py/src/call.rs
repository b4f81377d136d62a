//! The one way from Python into the engine and back.
//!
//! Invariants: the interpreter's lock is given up for the call; a panic becomes an InternalError,
//! never a crash of the interpreter or something that `except Exception` lets through; a pool that
//! came over a fork is refused, because its threads and its lock stayed with the parent.

use pyo3::prelude::*;
use ramet_engine::{EngineError, Kind};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The process that opened something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(u32);

impl Owner {
    /// This process.
    pub fn current() -> Self {
        Owner(std::process::id())
    }

    /// Whether this is still the process that opened it.
    pub fn is_current(self) -> bool {
        self == Self::current()
    }
}

/// Run `work` without the interpreter's lock, and give its result or error to Python.
pub fn call<T: Send>(
    py: Python<'_>,
    owner: Owner,
    work: impl FnOnce() -> Result<T, EngineError> + Send,
) -> PyResult<T> {
    if !owner.is_current() {
        let text = "this pool was opened before a fork and belongs to the parent process; \
                    hint: open it in the process that uses it";
        return Err(raise(py, &EngineError::new(Kind::Unavailable, "pool_forked", text)));
    }
    let result = py.detach(|| {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or(panic.downcast_ref::<&str>().copied());
            let text =
                format!("{}; hint: please report this", said.unwrap_or("a panic without words"));
            Err(EngineError::new(Kind::Internal, "panic", text))
        })
    });
    result.map_err(|error| raise(py, &error))
}

/// The exception of `ramet.errors` for an error.
pub fn raise(py: Python<'_>, error: &EngineError) -> PyErr {
    let kind = match error.kind {
        Kind::Invalid => "invalid",
        Kind::Forbidden => "forbidden",
        Kind::NotFound => "not_found",
        Kind::Conflict => "conflict",
        Kind::Busy => "busy",
        Kind::Unavailable => "unavailable",
        Kind::Full => "full",
        Kind::Corrupt => "corrupt",
        Kind::Internal => "internal",
    };
    let made = py.import("ramet.errors").and_then(|errors| {
        errors.call_method1("from_core", (kind, error.code, error.text.as_str()))
    });
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(failure) => failure,
    }
}
