//! The bytes of a layer as pure functions: the header of a map, a page of states, one of the ledger, a live log.
//!
//! An input says which, whether the checksums are set right, and the bytes. What is accepted must have been understood: written
//! again and read again it is the same, and a log is word for word what was there, as far as it is one.

use vellum_local::fuzzing::{
    header_again, ledger_again, log_again, seal_log, seal_map, states_again,
};

use crate::input::Input;

const LAYER: u64 = 0xab;
const PAGE: usize = 4096;
const PAGE_NO: u64 = 1;
const EPOCH: u64 = 7;

/// See the module.
pub fn look_at(data: &[u8]) {
    let mut input = Input::new(data);
    let (which, sealed) = (input.u8(), input.u8() & 1 != 0);
    let bytes = input.rest();
    match which % 4 {
        0 => header(bytes, sealed),
        1 => states(bytes, sealed),
        2 => log(bytes, sealed),
        _ => ledger(bytes, sealed),
    }
}

fn page(bytes: &[u8]) -> Box<[u8; PAGE]> {
    let mut page = Box::new([0; PAGE]);
    let length = bytes.len().min(PAGE);
    page[..length].copy_from_slice(&bytes[..length]);
    page
}

fn header(bytes: &[u8], sealed: bool) {
    let mut page = page(bytes);
    if sealed {
        seal_map(LAYER, &mut page[..]);
    }
    if let Ok(again) = header_again(LAYER, &page) {
        let once = self::page(&again);
        let twice = header_again(LAYER, &once).expect("what was written is read");
        assert_eq!(again, twice);
        assert!(header_again(LAYER + 1, &page).is_err(), "a header of another layer");
    }
}

/// A page whose checksums depend on where it lies: behind the header and one page.
fn second_page(bytes: &[u8], sealed: bool) -> Box<[u8; PAGE]> {
    let mut map = vec![0; 3 * PAGE];
    map[2 * PAGE..].copy_from_slice(&page(bytes)[..]);
    if sealed {
        seal_map(LAYER, &mut map);
    }
    page(&map[2 * PAGE..])
}

fn ledger(bytes: &[u8], sealed: bool) {
    let page = second_page(bytes, sealed);
    // Behind the only page of states.
    if let Ok(again) = ledger_again(LAYER, PAGE_NO, EPOCH, &page) {
        let once = self::page(&again);
        let twice = ledger_again(LAYER, PAGE_NO, EPOCH, &once).expect("what was written is read");
        assert_eq!(again, twice);
        if page.iter().any(|byte| *byte != 0) {
            let elsewhere = ledger_again(LAYER, PAGE_NO + 1, EPOCH, &page);
            assert!(elsewhere.is_err(), "a ledger of a larger map");
        }
    }
}

fn states(bytes: &[u8], sealed: bool) {
    let page = second_page(bytes, sealed);
    if let Ok(again) = states_again(LAYER, PAGE_NO, EPOCH, &page) {
        let once = self::page(&again);
        let twice = states_again(LAYER, PAGE_NO, EPOCH, &once).expect("what was written is read");
        assert_eq!(again, twice);
        if page.iter().any(|byte| *byte != 0) {
            assert!(states_again(LAYER, 0, EPOCH, &page).is_err(), "a page of another place");
        }
    }
}

fn log(bytes: &[u8], sealed: bool) {
    let mut log = bytes.to_vec();
    if sealed {
        seal_log(LAYER, &mut log);
    }
    if let Some(again) = log_again(LAYER, &log) {
        assert_eq!(again[512..], log[512..again.len()], "records are what was there");
        assert_eq!(log_again(LAYER, &again).as_ref(), Some(&again));
        assert_eq!(log_again(LAYER + 1, &log), None, "a log of another layer");
    }
}
