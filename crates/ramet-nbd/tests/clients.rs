//! Standard clients against the server; each is skipped by name where it is not installed.

use crate::common::{Served, VOLUME_BYTES};
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::Ordering::SeqCst;

/// False, with a line that says so, when `tool` is not installed.
fn has(tool: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|path| path.join(tool).is_file());
    if !found {
        println!("skipped: {tool} is not installed");
    }
    found
}

fn run<Argument: AsRef<OsStr>>(tool: &str, arguments: &[Argument]) -> Output {
    Command::new(tool).args(arguments).output().unwrap()
}

fn text<Argument: AsRef<OsStr>>(tool: &str, arguments: &[Argument]) -> String {
    let output = run(tool, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn uri(served: &Served, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", served.socket.display())
}

fn pattern_file(path: &Path, length_bytes: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..length_bytes).map(|index| u8::try_from(index * 7 % 253).unwrap()).collect();
    // A hole for clients that look for zeros.
    bytes[1 << 20..3 << 20].fill(0);
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn nbdinfo_sees_size_flags_and_block_sizes() {
    if !has("nbdinfo") {
        return;
    }
    let served = Served::new();
    assert_eq!(text("nbdinfo", &["--size", &uri(&served, "volume")]).trim(), "67108864");
    let facts = text("nbdinfo", &["--json", &uri(&served, "volume")]);
    for fact in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"is_read_only\": false",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"block_size_minimum\": 1",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(facts.contains(fact), "no {fact} in {facts}");
    }
    let facts = text("nbdinfo", &["--json", &uri(&served, "snapshot")]);
    for fact in ["\"is_read_only\": true", "\"can_trim\": false", "\"can_multi_conn\": true"] {
        assert!(facts.contains(fact), "no {fact} in {facts}");
    }
}

#[test]
fn nbdinfo_lists_every_export_and_reports_an_unknown_one() {
    if !has("nbdinfo") {
        return;
    }
    let served = Served::new();
    let listing = text("nbdinfo", &["--list", &uri(&served, "")]);
    assert!(listing.contains("export=\"snapshot\"") && listing.contains("export=\"volume\""));
    assert!(!run("nbdinfo", &[uri(&served, "nobody")]).status.success());
}

#[test]
fn nbdcopy_copies_there_and_back_over_many_connections() {
    if !has("nbdcopy") {
        return;
    }
    let served = Served::new();
    let file = served.directory.path("there");
    let bytes = pattern_file(&file, VOLUME_BYTES);
    let uri = uri(&served, "volume");
    text("nbdcopy", &["--flush", "--connections=4", file.to_str().unwrap(), &uri]);
    assert!(served.volume.bytes() == bytes);
    assert!(served.volume.syncs_count.load(SeqCst) > 0, "a flush arrives");
    let back = served.directory.path("back");
    text("nbdcopy", &["--request-size=4194304", &uri, back.to_str().unwrap()]);
    assert!(std::fs::read(back).unwrap() == bytes);
}

#[test]
fn qemu_io_writes_reads_zeroes_and_discards() {
    if !has("qemu-io") {
        return;
    }
    let served = Served::new();
    let uri = uri(&served, "volume");
    let script = [
        "-f",
        "raw",
        "-d",
        "unmap",
        "-c",
        "write -P 0xab 1000 70001",
        "-c",
        "read -P 0xab 1000 70001",
        "-c",
        "write -f -P 7 8M 4M",
        "-c",
        "write -z 9M 1M",
        "-c",
        "write -z -u 10M 64k",
        "-c",
        "discard 8M 64k",
        "-c",
        "flush",
        "-c",
        "read -P 0 9M 1M",
        "-c",
        "read -P 7 11M 1M",
    ];
    let mut arguments = script.to_vec();
    arguments.push(&uri);
    let output = text("qemu-io", &arguments);
    assert!(!output.contains("fail") && !output.contains("rror"), "{output}");
    let bytes = served.volume.bytes();
    assert!(bytes[1000..71_001].iter().all(|byte| *byte == 0xab));
    assert!(bytes[9 << 20..10 << 20].iter().all(|byte| *byte == 0));
    assert!(served.volume.syncs_count.load(SeqCst) > 0);
}

#[test]
fn qemu_io_cannot_write_a_snapshot_and_hears_of_errors() {
    if !has("qemu-io") {
        return;
    }
    let served = Served::new();
    let snapshot = uri(&served, "snapshot");
    let written = run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &snapshot]);
    assert!(!written.status.success());
    let read = text("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0x5a 0 1M", &snapshot]);
    assert!(!read.contains("fail"), "{read}");
    served.volume.fail_with(Some(ramet_engine::Kind::Full));
    let full = run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &uri(&served, "volume")]);
    let said = String::from_utf8_lossy(&full.stdout) + String::from_utf8_lossy(&full.stderr);
    assert!(said.contains("No space left on device"), "{said}");
}

#[test]
fn qemu_img_converts_compares_and_describes() {
    if !has("qemu-img") {
        return;
    }
    let served = Served::new();
    let file = served.directory.path("image");
    let file = file.to_str().unwrap();
    let bytes = pattern_file(Path::new(file), VOLUME_BYTES);
    let uri = uri(&served, "volume");
    text("qemu-img", &["convert", "-n", "-W", "-f", "raw", "-O", "raw", file, &uri]);
    assert!(served.volume.bytes() == bytes);
    let compared = text("qemu-img", &["compare", "-f", "raw", "-F", "raw", file, &uri]);
    assert!(compared.contains("identical"), "{compared}");
    let described = text("qemu-img", &["info", "--output=json", "-f", "raw", &uri]);
    assert!(described.contains("\"virtual-size\": 67108864"), "{described}");
    let back = served.directory.path("back.qcow2");
    let back = back.to_str().unwrap();
    text("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, back]);
    let compared = text("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", back, file]);
    assert!(compared.contains("identical"), "{compared}");
}
