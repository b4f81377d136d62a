//! The codec: no bytes make it panic, and what it encodes it decodes.

use proptest::prelude::*;
use ramet_nbd::codec::{
    ClientFlags, InfoRequest, OptionHeader, Request, SimpleReply, clip_text, decode_name,
};
use ramet_nbd::{Agreed, ExportShape, judge};

proptest! {
    #[test]
    fn no_bytes_make_the_codec_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        size_bytes in any::<u64>(),
        read_only in any::<bool>(),
    ) {
        let _ = InfoRequest::decode(&bytes);
        let _ = decode_name(&bytes);
        if let Some(bytes) = bytes.first_chunk() {
            let _ = ClientFlags::decode(*bytes);
        }
        if let Some(bytes) = bytes.first_chunk() {
            let _ = OptionHeader::decode(bytes);
        }
        if let Some(bytes) = bytes.first_chunk() {
            let _ = SimpleReply::decode(bytes);
        }
        if let Some(bytes) = bytes.first_chunk::<28>() {
            let mut request = *bytes;
            let _ = Request::decode(&request);
            request[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
            let request = Request::decode(&request).unwrap();
            let _ = judge(&request, &ExportShape { size_bytes, read_only }, Agreed::default());
        }
    }

    #[test]
    fn info_data_with_any_lengths_does_not_panic(
        name_length in prop_oneof![any::<u32>(), 0_u32..40],
        rest in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut data = name_length.to_be_bytes().to_vec();
        data.extend(rest);
        let _ = InfoRequest::decode(&data);
    }

    #[test]
    fn a_request_decodes_to_what_was_encoded(
        flags in any::<u16>(),
        command in any::<u16>(),
        cookie in any::<u64>(),
        offset_bytes in any::<u64>(),
        length_bytes in any::<u32>(),
    ) {
        let length_bytes = u64::from(length_bytes);
        let payload_bytes = if command == 1 { length_bytes } else { 0 };
        let request =
            Request { flags, command, cookie, offset_bytes, length_bytes, payload_bytes };
        prop_assert_eq!(Request::decode(&request.encode().unwrap()), Ok(request));
        let payload_bytes = if flags & 32 == 0 { 0 } else { length_bytes << 32 };
        let extended = Request { length_bytes: length_bytes << 32, payload_bytes, ..request };
        prop_assert_eq!(Request::decode_extended(&extended.encode_extended()), Ok(extended));
    }

    #[test]
    fn a_reply_decodes_to_what_was_encoded(error in any::<u32>(), cookie in any::<u64>()) {
        let reply = SimpleReply { error, cookie };
        prop_assert_eq!(SimpleReply::decode(&reply.encode()), Ok(reply));
    }

    #[test]
    fn an_option_header_decodes_to_what_was_encoded(
        option in any::<u32>(),
        length_bytes in any::<u32>(),
    ) {
        let header = OptionHeader { option, length_bytes };
        prop_assert_eq!(OptionHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn info_data_decodes_to_name_and_wanted_information(
        name in "[^\u{0}]{0,300}",
        wanted in proptest::collection::vec(0_u16..6, 0..6),
    ) {
        let data = crate::common::raw::info_data(&name, &wanted);
        let request = InfoRequest::decode(&data).unwrap();
        prop_assert_eq!(request.name, name);
        prop_assert_eq!(request.wanted.name, wanted.contains(&1));
        prop_assert_eq!(request.wanted.description, wanted.contains(&2));
        prop_assert_eq!(request.wanted.block_size, wanted.contains(&3));
    }

    #[test]
    fn clipped_text_is_a_start_of_at_most_4096_bytes(text in "\\PC{0,5000}") {
        let clipped = clip_text(&text);
        prop_assert!(clipped.len() <= 4096 && text.starts_with(clipped));
        prop_assert!(text.len() > 4096 || clipped == text);
        prop_assert!(clipped.len() > 4092 || clipped == text);
    }
}

#[test]
fn a_length_beyond_32_bits_is_not_encoded_as_something_else() {
    let request = Request {
        flags: 0,
        command: 0,
        cookie: 0,
        offset_bytes: 0,
        length_bytes: 1 << 32,
        payload_bytes: 0,
    };
    assert!(request.encode().is_err());
}

#[test]
fn client_flags_decode_to_what_was_encoded_and_no_others_pass() {
    for bits in 0_u32..4 {
        let flags = ClientFlags::decode(bits.to_be_bytes()).unwrap();
        assert_eq!(flags.encode(), bits.to_be_bytes());
    }
    for bit in 2..32 {
        assert!(ClientFlags::decode((1_u32 << bit).to_be_bytes()).is_err());
    }
}
