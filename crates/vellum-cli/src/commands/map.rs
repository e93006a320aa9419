//! `vellum map`: which layer defines what.

use serde::Serialize;
use vellum::Vellum;
use vellum_core::{ByteSize, ImageSpec};
use vellum_image::{Mapped, MappedKind};

use crate::failure::Result;
use crate::output::Output;

/// Characters in a line of the picture.
const WIDTH: u64 = 64;
/// Lines of the picture.
const HEIGHT: u64 = 16;

#[derive(Serialize)]
struct Entry {
    offset: u64,
    length: u64,
    kind: &'static str,
    depth: usize,
}

/// Shows an image or a snapshot.
pub async fn run(vellum: &Vellum, spec: &ImageSpec, output: &mut Output) -> Result {
    let located = vellum.locate(spec).await?;
    let map = vellum.map(&located).await?;
    if output.is_json() {
        let entries: Vec<_> = map.iter().map(entry).collect();
        return output.json(&entries);
    }
    draw(&map, output)
}

fn entry(mapped: &Mapped) -> Entry {
    let kind = match mapped.kind {
        MappedKind::Data => "data",
        MappedKind::Zero => "zero",
        MappedKind::Nothing => "nothing",
    };
    Entry { offset: mapped.at.offset(), length: mapped.at.length(), kind, depth: mapped.depth }
}

/// A picture: each character is an equal part of the image, and tells the topmost layer that holds something there.
fn draw(map: &[Mapped], output: &mut Output) -> Result {
    let size = map.last().map_or(0, |entry| entry.at.end());
    let cell = size.div_ceil(WIDTH * HEIGHT).next_power_of_two().max(4096);
    output.line(&format!("each character is {}; 1 to 9: data of the layer at that depth, + deeper, z: zeros, . nothing", ByteSize(cell)))?;
    let mut next = 0;
    for line in 0..size.div_ceil(cell * WIDTH) {
        let start = line * cell * WIDTH;
        let cells = (size - start).div_ceil(cell).min(WIDTH);
        let picture: String = (0..cells)
            .map(|index| {
                let (from, to) = (start + index * cell, start + (index + 1) * cell);
                while map.get(next).is_some_and(|entry| entry.at.end() <= from) {
                    next += 1;
                }
                let inside = map[next..].iter().take_while(|entry| entry.at.offset() < to);
                inside.map(symbol).min_by_key(|symbol| rank(*symbol)).unwrap_or('.')
            })
            .collect();
        output.line(&format!("{start:>16}  {picture}"))?;
    }
    Ok(())
}

fn symbol(entry: &Mapped) -> char {
    match entry.kind {
        MappedKind::Data => u32::try_from(entry.depth)
            .ok()
            .and_then(|depth| char::from_digit(depth, 10))
            .unwrap_or('+'),
        MappedKind::Zero => 'z',
        MappedKind::Nothing => '.',
    }
}

fn rank(symbol: char) -> u32 {
    match symbol {
        '+' => 10,
        'z' => 11,
        '.' => 12,
        digit => digit.to_digit(10).unwrap_or(10),
    }
}
