//! The class `lock`: who holds a lock on an object, in an attribute of it.

use std::collections::BTreeMap;

use vellum_rados::memory::{Class, ClassObject};
use vellum_rados::{Failure, Result};
use vellum_rbd::Text;
use vellum_rbd::lock::{ATTRIBUTE_PREFIX, Address, Entity, Holder, HolderInfo, Kind, Lock as Held};
use vellum_rbd::wire::{Decode, Encode, Reader, Time};

/// The class.
#[derive(Clone, Copy, Debug)]
pub struct Lock;

/// A client, among all who may hold a lock.
const CLIENT: u8 = 8;
/// Whoever holds it may take it again, or must.
const MAY_RENEW: u8 = 1;
const MUST_RENEW: u8 = 2;

impl Class for Lock {
    fn call(
        &self,
        method: &str,
        client: u64,
        object: &mut Option<ClassObject>,
        input: &[u8],
    ) -> Result<Vec<u8>> {
        let mut input = fields(input)?;
        let name: Text = value(&mut input)?;
        let attribute = format!("{ATTRIBUTE_PREFIX}{name}");
        if method == "lock" {
            return take(object, &attribute, client, &mut input);
        }
        let object = object.as_mut().ok_or(Failure::NOT_FOUND)?;
        match method {
            "get_info" => return Ok(held(object, &attribute)?.to_bytes()),
            "assert_locked" => assert_locked(object, &attribute, client, &mut input)?,
            "set_cookie" => set_cookie(object, &attribute, client, &mut input)?,
            "unlock" => {
                let holder = Holder { entity: entity(client), cookie: value(&mut input)? };
                give_back(object, &attribute, &holder)?;
            }
            "break_lock" => {
                let holder = Holder { entity: value(&mut input)?, cookie: value(&mut input)? };
                give_back(object, &attribute, &holder)?;
            }
            _ => return Err(Failure::UNSUPPORTED),
        }
        Ok(Vec::new())
    }
}

/// What is asked for is one structure.
fn fields(input: &[u8]) -> Result<Reader<'_>> {
    let (_, fields) = Reader::new(input).structure("request", 1).map_err(|_| Failure::INVALID)?;
    Ok(fields)
}

fn value<T: Decode>(input: &mut Reader<'_>) -> Result<T> {
    input.value().map_err(|_| Failure::INVALID)
}

fn entity(client: u64) -> Entity {
    Entity { kind: CLIENT, number: client as i64 }
}

/// The lock as it is; one that nobody ever took is held by nobody.
fn held(object: &ClassObject, attribute: &str) -> Result<Held> {
    match object.xattrs.get(attribute) {
        Some(bytes) => Held::from_bytes(bytes).map_err(|_| Failure::IO),
        None => Ok(Held { holders: BTreeMap::new(), kind: Kind::None, tag: Text::default() }),
    }
}

fn keep(object: &mut ClassObject, attribute: &str, held: &Held) {
    object.xattrs.insert(attribute.to_owned(), held.to_bytes());
}

fn take(
    object: &mut Option<ClassObject>,
    attribute: &str,
    client: u64,
    input: &mut Reader<'_>,
) -> Result<Vec<u8>> {
    let (kind, cookie, tag): (Kind, Text, Text) = (value(input)?, value(input)?, value(input)?);
    let (description, _until, flags): (Text, Time, u8) =
        (value(input)?, value(input)?, value(input)?);
    if kind == Kind::None || attribute == ATTRIBUTE_PREFIX {
        return Err(Failure::INVALID);
    }
    let object = object.get_or_insert_default();
    let mut lock = held(object, attribute)?;
    let holder = Holder { entity: entity(client), cookie };
    if !lock.holders.is_empty() && lock.tag != tag {
        return Err(Failure::BUSY);
    }
    let is_mine = lock.holders.contains_key(&holder);
    if is_mine && flags & (MAY_RENEW | MUST_RENEW) == 0 {
        return Err(Failure::EXISTS);
    }
    if !is_mine && flags & MUST_RENEW != 0 {
        return Err(Failure::NOT_FOUND);
    }
    lock.holders.remove(&holder);
    if !lock.holders.is_empty() && (lock.kind != kind || kind != Kind::Shared) {
        return Err(Failure::BUSY);
    }
    let address = Address { kind: 1, nonce: client as u32, socket: Vec::new() };
    lock.holders.insert(holder, HolderInfo { until: Time::default(), address, description });
    (lock.kind, lock.tag) = (kind, tag);
    keep(object, attribute, &lock);
    Ok(Vec::new())
}

fn give_back(object: &mut ClassObject, attribute: &str, holder: &Holder) -> Result<()> {
    let mut lock = held(object, attribute)?;
    lock.holders.remove(holder).ok_or(Failure::NOT_FOUND)?;
    keep(object, attribute, &lock);
    Ok(())
}

/// Whether a client holds it so, and under which holder.
fn holder_of(lock: &Held, client: u64, input: &mut Reader<'_>) -> Result<Holder> {
    let (kind, cookie, tag): (Kind, Text, Text) = (value(input)?, value(input)?, value(input)?);
    if kind == Kind::None {
        return Err(Failure::INVALID);
    }
    let holder = Holder { entity: entity(client), cookie };
    let is_so = lock.kind == kind && lock.tag == tag && lock.holders.contains_key(&holder);
    if is_so { Ok(holder) } else { Err(Failure::BUSY) }
}

fn assert_locked(
    object: &ClassObject,
    attribute: &str,
    client: u64,
    input: &mut Reader<'_>,
) -> Result<()> {
    holder_of(&held(object, attribute)?, client, input).map(drop)
}

fn set_cookie(
    object: &mut ClassObject,
    attribute: &str,
    client: u64,
    input: &mut Reader<'_>,
) -> Result<()> {
    let mut lock = held(object, attribute)?;
    let holder = holder_of(&lock, client, input)?;
    let renewed = Holder { cookie: value(input)?, ..holder.clone() };
    if lock.holders.contains_key(&renewed) {
        return Err(Failure::BUSY);
    }
    let info = lock.holders.remove(&holder).ok_or(Failure::BUSY)?;
    lock.holders.insert(renewed, info);
    keep(object, attribute, &lock);
    Ok(())
}
