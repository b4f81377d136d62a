//! The names in a client's certificate.
//!
//! Only certificates that were verified come here: what is odd in them is left out, not trusted.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// The attribute type `commonName`, 2.5.4.3, as DER has it.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
/// UTF8String, PrintableString and IA5String: all of them are UTF-8.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];

/// The DNS names and URIs of the subject's alternative names, and its common names.
pub(crate) fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    let mut names = common_names(certificate.subject());
    names.extend(certificate.valid_dns_names().map(str::to_owned));
    names.extend(certificate.valid_uri_names().map(str::to_owned));
    names
}

/// The common names in the content of a distinguished name: sets of pairs of type and value.
fn common_names(mut subject: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((SET, mut set, rest)) = take(subject) {
        subject = rest;
        while let Some((SEQUENCE, pair, rest)) = take(set) {
            set = rest;
            let Some((OBJECT_ID, kind, value)) = take(pair) else { continue };
            let Some((tag, text, _)) = take(value) else { continue };
            if kind == COMMON_NAME
                && TEXTS.contains(&tag)
                && let Ok(text) = std::str::from_utf8(text)
            {
                names.push(text.to_owned());
            }
        }
    }
    names
}

/// The first element of DER: its tag, its content, and what follows.
fn take(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, first, rest @ ..] = bytes else { return None };
    // Short: the length itself; long: so many bytes of length follow.
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let add = |length: usize, digit: &u8| {
            length.checked_mul(256).and_then(|length| length.checked_add(usize::from(*digit)))
        };
        (digits.iter().try_fold(0, add)?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}
