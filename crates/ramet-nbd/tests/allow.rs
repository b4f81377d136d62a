//! The allow list: what is read of it, and what it allows.

use ramet_nbd::AllowList;

fn allows(list: &str, names: &[&str], export: &str) -> bool {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    AllowList::parse(list).unwrap().of(&names).allows(export)
}

#[test]
fn a_star_stands_for_any_characters_and_everything_else_for_itself() {
    for (pattern, export, expected) in [
        ("vm-1", "vm-1", true),
        ("vm-1", "vm-10", false),
        ("vm-1", "xvm-1", false),
        ("vm-1", "", false),
        ("*", "anything@all", true),
        ("*", "", true),
        ("vm-*", "vm-", true),
        ("vm-*", "vm-7@monday", true),
        ("vm-*", "xvm-7", false),
        ("*@nightly", "vm@nightly", true),
        ("*@nightly", "vm@nightly2", false),
        ("a*b*c", "abc", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("a*a", "a", false),
        ("a*a", "aa", true),
        ("a*ba", "aba", true),
        ("*a*a*", "a", false),
        ("v?-1", "vm-1", false),
        ("[v]m", "vm", false),
        ("VM", "vm", false),
    ] {
        let list = format!("client {pattern}");
        assert_eq!(allows(&list, &["client"], export), expected, "{pattern} and {export}");
    }
}

#[test]
fn a_client_may_open_what_any_line_for_any_of_its_names_says() {
    let list = "\n# hosts\nhost-1 vm-1 vm-2 # two\nhost-* golden@*\n  backup  *@nightly\n";
    assert!(allows(list, &["host-1"], "vm-2"));
    assert!(allows(list, &["host-1"], "golden@3"));
    assert!(!allows(list, &["host-2"], "vm-2"));
    assert!(allows(list, &["host-2"], "golden@3"));
    assert!(allows(list, &["host-2", "backup"], "vm-2@nightly"));
    assert!(!allows(list, &["stranger"], "golden@3"));
    assert!(!allows(list, &[], "golden@3"));
    // A star in a certificate is a character, not a pattern.
    assert!(!allows(list, &["*"], "vm-1"));
    assert!(!allows("", &["host-1"], "vm-1"));
}

#[test]
fn a_line_that_names_no_export_is_refused_with_its_number() {
    let error = AllowList::parse("# one\nhost vm\nhost # vm").unwrap_err();
    assert!(error.starts_with("line 3 "), "{error}");
}
