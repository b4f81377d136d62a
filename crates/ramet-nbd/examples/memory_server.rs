//! Serve one volume in memory, to measure the front end alone: `memory_server SOCKET SIZE_MIB`.
//!
//! Ends when its standard input does. The export is called `memory` and is also the default one.

#[path = "../tests/common/memory.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
mod memory;

use memory::{MemoryDevice, MemoryExports};
use ramet_nbd::{Limits, NbdServer};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, size_mib] = arguments.as_slice() else {
        return Err("usage: memory_server SOCKET SIZE_MIB".into());
    };
    let exports = Arc::new(MemoryExports::default());
    let size_bytes = size_mib.parse::<usize>()? << 20;
    exports.add("memory", 1, MemoryDevice::new(size_bytes));
    exports.add("", 2, MemoryDevice::new(size_bytes));
    let server = NbdServer::start_unix(Path::new(socket), exports, Limits::default())?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.close()?;
    Ok(())
}
