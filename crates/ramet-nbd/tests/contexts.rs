//! Metadata contexts: listed, chosen, asked about, by raw bytes.

use crate::common::memory::MemoryDevice;
use crate::common::raw::{
    ACK, BLOCK_STATUS, Chunk, Client, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, EXTENDED_HEADERS,
    LIST_META_CONTEXT, SET_META_CONTEXT, STATUS, STATUS_EXT, STRUCTURED_REPLY, be_u32, be_u64,
    context_data, error_of, info_data,
};
use crate::common::{ENGINE_ERRORS, SNAPSHOT, Served, VOLUME_BYTES};

const ALLOCATION: &str = "base:allocation";
const DIRTY: &str = "qemu:dirty-bitmap:snapshot";
const EINVAL: u32 = 22;
const REQ_ONE: u16 = 8;
const PAYLOAD_LEN: u16 = 32;
const HOLE: u64 = 3;
const BLOCK: u64 = 4096;

fn greeted(served: &Served, style: u32) -> Client {
    let mut client = served.connect();
    client.greet(3);
    assert_eq!(client.option(style, b""), ACK);
    client
}

/// What a status chunk says: the context's id, and lengths with flags.
fn extents(chunk: &Chunk) -> (u32, Vec<(u64, u64)>) {
    let pair = |bytes: &[u8]| (u64::from(be_u32(bytes)), u64::from(be_u32(&bytes[4..])));
    let wide = |bytes: &[u8]| (be_u64(bytes), be_u64(&bytes[8..]));
    let found: Vec<(u64, u64)> = match chunk.kind {
        STATUS => chunk.payload[4..].chunks_exact(8).map(pair).collect(),
        STATUS_EXT => {
            let found: Vec<_> = chunk.payload[8..].chunks_exact(16).map(wide).collect();
            assert_eq!(be_u32(&chunk.payload[4..]), u32::try_from(found.len()).unwrap());
            found
        }
        other => panic!("a chunk of type {other}"),
    };
    assert!(!found.is_empty() && found.iter().all(|(length, _)| *length > 0));
    (be_u32(&chunk.payload), found)
}

fn status(client: &mut Client, flags: u16, range: (u64, u32)) -> Vec<(u32, Vec<(u64, u64)>)> {
    client.send_request(flags, BLOCK_STATUS, 2, range);
    client.chunks().iter().map(extents).collect()
}

#[test]
fn allocation_tells_data_and_holes_cut_to_the_request() {
    let served = Served::new();
    let mut client = served.attach_structured("volume", &[ALLOCATION]);
    client.write(0, 2 * BLOCK, &[7; 8192]);
    let told = status(&mut client, 0, (0, 1 << 20));
    assert_eq!(told, [(0, vec![(8192, HOLE), (8192, 0), ((1 << 20) - 16_384, HOLE)])]);
    let told = status(&mut client, 0, (2 * BLOCK + 1, 2));
    assert_eq!(told, [(0, vec![(2, 0)])]);
    let told = status(&mut client, REQ_ONE, (0, 1 << 20));
    assert_eq!(told, [(0, vec![(8192, HOLE)])], "one extent, in one chunk");
}

#[test]
fn a_dirty_bitmap_tells_what_changed_since_its_snapshot() {
    let served = Served::new();
    // The snapshot is 1 MiB of 0x5a; so is the volume's start, with one byte changed.
    let mut client = served.attach_structured("volume", &[ALLOCATION, DIRTY]);
    client.write(0, 0, &vec![0x5a; 1 << 20]);
    client.write(0, 5 * BLOCK + 3, b"x");
    let told = status(&mut client, 0, (0, 1 << 20));
    let dirty = vec![(5 * BLOCK, 0), (BLOCK, 1), ((1 << 20) - 6 * BLOCK, 0)];
    assert_eq!(told, [(0, vec![(1 << 20, 0)]), (1, dirty)]);
    assert_eq!(status(&mut client, REQ_ONE, (5 * BLOCK, 9000))[1], (1, vec![(BLOCK, 1)]));
}

#[test]
fn a_reply_is_bounded_and_goes_on_where_it_ended() {
    let served = Served::new();
    let mut client = served.attach_structured("volume", &[ALLOCATION]);
    for index in 0..3000 {
        client.write(0, index * 2 * BLOCK, &[1; 1]);
    }
    let (mut at, mut requests_count, mut data_bytes) = (0, 0, 0);
    while at < 24 << 20 {
        let told = status(&mut client, 0, (at, (24 << 20) - u32::try_from(at).unwrap()));
        assert!(told[0].1.len() <= 4096);
        at += told[0].1.iter().map(|(length, _)| length).sum::<u64>();
        let data = told[0].1.iter().filter(|(_, flags)| *flags == 0);
        data_bytes += data.map(|(length, _)| length).sum::<u64>();
        requests_count += 1;
    }
    assert_eq!((at, requests_count, data_bytes), (24 << 20, 2, 3000 * BLOCK));
}

#[test]
fn extended_status_has_64_bits_and_tells_of_the_contexts_that_were_named() {
    let served = Served::new();
    let mut client = served.attach_extended("volume", &[ALLOCATION, DIRTY]);
    let size_bytes = u64::try_from(VOLUME_BYTES).unwrap();
    client.send_extended(0, BLOCK_STATUS, 2, (0, size_bytes));
    let told = [extents(&client.extended_chunk(0)), extents(&client.extended_chunk(0))];
    assert_eq!(told[0], (0, vec![(size_bytes, HOLE)]));
    assert_eq!(told[1], (1, vec![(1 << 20, 1), (size_bytes - (1 << 20), 0)]));
    let mut payload = 8192_u64.to_be_bytes().to_vec();
    payload.extend(1_u32.to_be_bytes());
    client.send_extended(PAYLOAD_LEN, BLOCK_STATUS, 3, (BLOCK, 12));
    client.send(&payload);
    let chunk = client.extended_chunk(BLOCK);
    assert!(chunk.done);
    assert_eq!(extents(&chunk), (1, vec![(8192, 1)]));
}

#[test]
fn payloads_that_name_no_context_are_refused_and_the_connection_goes_on() {
    let served = Served::new();
    let mut client = served.attach_extended("volume", &[ALLOCATION, DIRTY]);
    let payload = |length: u64, ids: &[u32]| {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        bytes
    };
    let mut torn = payload(512, &[0]);
    torn.pop();
    for bad in [
        payload(512, &[]),
        payload(512, &[2]),
        payload(512, &[0, 0]),
        payload(512, &[u32::MAX]),
        payload(0, &[0]),
        payload(u64::MAX, &[0]),
        payload(512, &[0; 1000]),
        vec![1; 7],
        torn,
    ] {
        let length_bytes = u64::try_from(bad.len()).unwrap();
        client.send_extended(PAYLOAD_LEN, BLOCK_STATUS, 3, (0, length_bytes));
        client.send(&bad);
        assert_eq!(error_of(&client.extended_chunk(0)), EINVAL, "{bad:?}");
    }
    client.send_extended(PAYLOAD_LEN, BLOCK_STATUS, 3, (0, 16));
    client.send(&payload(512, &[1, 0]));
    assert_eq!(extents(&client.extended_chunk(0)).0, 0);
    assert_eq!(extents(&client.extended_chunk(0)).0, 1);
}

#[test]
fn contexts_are_listed_by_query() {
    let served = Served::new();
    served.exports.add("older", 9, MemoryDevice::snapshot_of(vec![0; 4096]));
    let mut client = greeted(&served, STRUCTURED_REPLY);
    let older = "qemu:dirty-bitmap:older";
    let table: [(&[&str], &[&str]); 9] = [
        (&[], &[ALLOCATION, older, DIRTY]),
        (&["base:"], &[ALLOCATION]),
        (&[ALLOCATION, ALLOCATION, "base:other"], &[ALLOCATION]),
        (&["qemu:"], &[older, DIRTY]),
        (&["qemu:dirty-bitmap:"], &[older, DIRTY]),
        (&[DIRTY], &[DIRTY]),
        (&["qemu:dirty-bitmap:nobody"], &[]),
        (&["qemu:allocation-depth", "x-other:", "x-other:thing"], &[]),
        (&["x:y", ALLOCATION, older], &[ALLOCATION, older]),
    ];
    for (queries, expected) in table {
        let listed = client.contexts(LIST_META_CONTEXT, "volume", queries);
        let names: Vec<&str> = listed.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, expected, "{queries:?}");
        assert!(listed.iter().all(|(id, _)| *id == 0));
    }
    assert_eq!(served.exports.attached_count(), 0, "looking is not attaching");
}

#[test]
fn what_there_is_not_is_left_out_of_a_choice() {
    let served = Served::new();
    let mut client = greeted(&served, EXTENDED_HEADERS);
    let queries = ["base:", "qemu:", "qemu:dirty-bitmap:", DIRTY, "x:y", DIRTY, ALLOCATION];
    let chosen = client.set_contexts("volume", &queries);
    assert_eq!(chosen, [(0, DIRTY.to_owned()), (1, ALLOCATION.to_owned())]);
    let none = client.set_contexts("snapshot", &[DIRTY, "qemu:dirty-bitmap:volume"]);
    assert_eq!(none, [], "a snapshot is no base of itself, and a volume of nothing");
    client.go("snapshot");
    assert_eq!(client.ask_extended(0, BLOCK_STATUS, (0, 512)), EINVAL);
}

#[test]
fn contexts_are_void_for_another_export_and_after_a_failed_choice() {
    let served = Served::new();
    for spoil in [
        |client: &mut Client| assert_eq!(client.set_contexts("snapshot", &[ALLOCATION]).len(), 1),
        |client: &mut Client| assert_eq!(client.option(SET_META_CONTEXT, b""), ERR_INVALID),
        |client: &mut Client| {
            let data = context_data("nobody", &[ALLOCATION]);
            assert_eq!(client.option(SET_META_CONTEXT, &data), ERR_UNKNOWN);
        },
        |client: &mut Client| assert_eq!(client.set_contexts("volume", &[]), []),
    ] {
        let mut client = greeted(&served, STRUCTURED_REPLY);
        client.set_contexts("volume", &[ALLOCATION]);
        spoil(&mut client);
        client.go("volume");
        client.send_request(0, BLOCK_STATUS, 1, (0, 512));
        assert_eq!(error_of(&client.chunk()), EINVAL);
    }
}

#[test]
fn contexts_need_replies_in_chunks_and_well_formed_data() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    let good = context_data("volume", &[ALLOCATION]);
    for option in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        assert_eq!(client.option(option, &good), ERR_INVALID, "before structured replies");
    }
    client.option(STRUCTURED_REPLY, b"");
    let mut trailing = good.clone();
    trailing.push(0);
    let mut many = good.clone();
    many[13] = 2;
    let malformed = [
        vec![0, 0, 0],
        good[..good.len() - 1].to_vec(),
        vec![0xff; 8],
        trailing,
        many,
        context_data("volume", &["no colon"]),
        context_data("volume", &[":no-namespace"]),
        context_data("volume", &["base:nul\0"]),
        context_data(&"v".repeat(4097), &[]),
    ];
    for option in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        for data in &malformed {
            assert_eq!(client.option(option, data), ERR_INVALID, "{data:?}");
        }
        assert_eq!(client.option(option, &context_data("nobody", &[])), ERR_UNKNOWN);
    }
    client.go("volume");
}

#[test]
fn more_contexts_than_the_limit_are_too_big() {
    let served = Served::new();
    let names: Vec<String> = (0..17).map(|number| format!("old-{number}")).collect();
    for (number, name) in (100..).zip(&names) {
        served.exports.add(name, number, MemoryDevice::snapshot_of(vec![0; 4096]));
    }
    let queries: Vec<String> =
        names.iter().map(|name| format!("qemu:dirty-bitmap:{name}")).collect();
    let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
    let mut client = greeted(&served, STRUCTURED_REPLY);
    let data = context_data("volume", &queries);
    client.send_option(SET_META_CONTEXT, &data);
    assert_eq!(client.option_reply().reply, ERR_TOO_BIG);
    assert_eq!(served.exports.attached_count(), 0, "nothing of a refused choice is held");
    assert_eq!(client.set_contexts("volume", &queries[..16]).len(), 16);
    assert_eq!(served.exports.attached_count(), 16);
    client.go("volume");
    assert_eq!(status(&mut client, 0, (0, 512)).len(), 16);
}

#[test]
fn the_base_of_a_chosen_bitmap_counts_as_attached_and_force_ends_the_connection() {
    let served = Served::new();
    let mut client = served.attach_structured("volume", &[DIRTY]);
    assert_eq!(served.exports.attached_count(), 2, "the volume and the snapshot");
    assert_eq!(served.server.close_connections(&[SNAPSHOT]), 1);
    assert_eq!(served.exports.attached_count(), 0);
    client.expect_end();
    let mut client = greeted(&served, STRUCTURED_REPLY);
    assert_eq!(client.set_contexts("volume", &[DIRTY]), [], "it is being detached by force");
    served.server.allow_connections(&[SNAPSHOT]);
    assert_eq!(client.set_contexts("volume", &[DIRTY]).len(), 1);
}

#[test]
fn the_payload_of_status_is_offered_with_extended_headers_and_contexts_only() {
    let served = Served::new();
    let payload = 1_u16 << 12;
    for (style, contexts, offered) in [
        (STRUCTURED_REPLY, &[ALLOCATION][..], false),
        (EXTENDED_HEADERS, &[], false),
        (EXTENDED_HEADERS, &[ALLOCATION], true),
    ] {
        let mut client = greeted(&served, style);
        client.set_contexts("volume", contexts);
        client.send_option(6, &info_data("volume", &[]));
        let info = client.option_reply().data;
        client.option_reply();
        let flags = u16::from_be_bytes([info[10], info[11]]);
        assert_eq!(flags & payload != 0, offered);
        assert!(flags & (1 << 7) != 0, "SEND_DF");
    }
}

#[test]
fn every_kind_of_engine_error_is_told_instead_of_a_status() {
    let served = Served::new();
    for context in [ALLOCATION, DIRTY] {
        let mut client = served.attach_structured("volume", &[context]);
        let mut extended = served.attach_extended("volume", &[context]);
        let before = status(&mut client, 0, (0, 512));
        for (kind, errno) in ENGINE_ERRORS {
            served.volume.fail_with(Some(kind));
            client.send_request(0, BLOCK_STATUS, 1, (0, 512));
            assert_eq!(error_of(&client.chunk()), errno, "{kind:?}");
            assert_eq!(extended.ask_extended(0, BLOCK_STATUS, (0, 512)), errno, "{kind:?}");
        }
        served.volume.fail_with(None);
        assert_eq!(status(&mut client, 0, (0, 512)), before);
    }
}
