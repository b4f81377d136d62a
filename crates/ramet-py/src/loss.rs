//! What was lost with a damaged log, as Python sees it.

use crate::call::{Owner, call};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use ramet_engine::{Engine, LossReport, Settings};
use std::path::PathBuf;

/// See python/ramet/_core.pyi.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // pyo3 hands arguments over by value.
#[pyo3(signature = (path, secret = None))]
pub fn accept_loss(
    py: Python<'_>,
    path: PathBuf,
    secret: Option<[u8; 32]>,
) -> PyResult<Option<Bound<'_, PyDict>>> {
    let accept = || Engine::accept_loss(&path, Settings::default(), secret);
    let report = call(py, Owner::current(), accept)?;
    report.map(|report| to_dict(py, report)).transpose()
}

/// See python/ramet/_core.pyi.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // pyo3 hands arguments over by value.
pub fn pool_uuid(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    Ok(call(py, Owner::current(), || Engine::uuid_at(&path))?.to_string())
}

fn to_dict(py: Python<'_>, report: LossReport) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("text", report.to_string())?;
    dict.set_item("damage", report.damage)?;
    dict.set_item("kept_sequence", report.kept_sequence)?;
    dict.set_item("durable_sequence", report.durable_sequence)?;
    dict.set_item("unread_count", report.unread_count)?;
    dict.set_item("missing_segments", report.missing_segments)?;
    dict.set_item("directory", report.directory)?;
    dict.set_item("files", report.files)?;
    let objects = PyList::empty(py);
    for object in report.objects {
        let (name, id, is_gone) = (object.name, object.id, object.is_gone);
        objects.append((name, id, is_gone, object.ranges, object.unreadable))?;
    }
    dict.set_item("objects", objects)?;
    let commands = PyList::empty(py);
    for command in report.commands {
        commands.append((command.verb, command.names))?;
    }
    dict.set_item("commands", commands)?;
    Ok(dict)
}
