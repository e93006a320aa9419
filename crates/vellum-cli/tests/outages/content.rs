//! What the load writes: sectors that tell which request wrote them and where they belong.

use vellum_core::Extent;

/// Bytes that an outage keeps or loses together.
pub const SECTOR: u64 = 512;

/// Bytes of a request: each sector repeats the request's stamp and its own number, so that a sector in a wrong place is found.
pub fn filled(stamp: u64, at: Extent) -> Vec<u8> {
    let numbers = at.offset() / SECTOR..at.end() / SECTOR;
    numbers
        .flat_map(|number| {
            [stamp.to_le_bytes(), number.to_le_bytes()].concat().repeat(SECTOR as usize / 16)
        })
        .collect()
}

/// Which stamp a sector holds, 0 for zeros; `None` if it is nothing that was ever written to this sector.
pub fn stamp_of(number: u64, sector: &[u8]) -> Option<u64> {
    if sector.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let stamp = u64::from_le_bytes(sector[..8].try_into().expect("a sector has 512 bytes"));
    let at = Extent::new(number * SECTOR, SECTOR);
    (stamp != 0 && sector == filled(stamp, at)).then_some(stamp)
}

/// Whether each byte of a sector is of one of these stamps, though not all of the same. The kernel copies bytes, in no steps that
/// anybody promises.
pub fn is_mixture(number: u64, sector: &[u8], stamps: &[u64]) -> bool {
    stamps.len() > 1 && stretches(number, sector, stamps).iter().all(|it| it.stamp.is_some())
}

/// What a sector consists of, for people: from which byte on it is of which of these stamps.
pub fn anatomy(number: u64, sector: &[u8], stamps: &[u64]) -> String {
    let stretches = stretches(number, sector, stamps);
    let told = stretches.iter().map(|Stretch { from, stamp }| match stamp {
        Some(stamp) => format!("from byte {from} of {stamp}"),
        None => {
            let bytes = &sector[*from..sector.len().min(from + 16)];
            format!("from byte {from} of none of {stamps:?}: {bytes:02x?}")
        }
    });
    told.collect::<Vec<_>>().join(", ")
}

/// A part of a sector that is of one stamp, or of none, up to where the next begins.
struct Stretch {
    from: usize,
    stamp: Option<u64>,
}

/// A sector in as few stretches as it takes, as seen from its beginning.
fn stretches(number: u64, sector: &[u8], stamps: &[u64]) -> Vec<Stretch> {
    let at = Extent::new(number * SECTOR, SECTOR);
    let of = |stamp: &u64| match stamp {
        0 => vec![0; SECTOR as usize],
        stamp => filled(*stamp, at),
    };
    let contents: Vec<(u64, Vec<u8>)> = stamps.iter().map(|stamp| (*stamp, of(stamp))).collect();
    let reach = |from: usize, content: &[u8]| {
        sector[from..].iter().zip(&content[from..]).take_while(|(is, was)| is == was).count()
    };
    let (mut found, mut from) = (Vec::<Stretch>::new(), 0);
    while from < sector.len() {
        let reaches = contents.iter().map(|(stamp, content)| (reach(from, content), *stamp));
        let (length, stamp) = match reaches.max() {
            Some((length, stamp)) if length > 0 => (length, Some(stamp)),
            _ => (1, None),
        };
        if stamp.is_some() || found.last().is_none_or(|last| last.stamp.is_some()) {
            found.push(Stretch { from, stamp });
        }
        from += length;
    }
    found
}
