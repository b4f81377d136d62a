//! Maps, objects, names and lineage: everything between a block device call and the log.

mod device;
mod error;

pub use device::{BlockDevice, Export, Exports};
pub use error::{EngineError, Kind};
