//! Locks that the cluster keeps on an object: who holds one, and the words of the object class `lock`.
//!
//! A lock has a name, holders, each by who they are and a cookie, and a tag that all of them share. An image's clients take
//! [`IMAGE`] on its header, exclusively, with the tag [`MANAGED`] and a cookie that names the watch that they have there: who has
//! no such watch any more is dead.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::wire::{Decode, Encode, Malformed, Reader, Result, Text, Time, fields, structure};

/// The name of the lock of an image, and of that of an object map.
pub const IMAGE: &str = "rbd_lock";
/// The tag of a lock that an image's clients take and give by themselves. Another one is a person's.
pub const MANAGED: &str = "internal";
/// Under which attribute of the object a lock is kept.
pub const ATTRIBUTE_PREFIX: &str = "lock.";

/// The cookie of the client that has this watch on the header.
pub fn cookie(watch: u64) -> String {
    format!("auto {watch}")
}

/// The watch that a cookie names.
pub fn watch_of(cookie: &Text) -> Option<u64> {
    let watch = cookie.as_str()?.strip_prefix("auto ")?.parse().ok()?;
    (self::cookie(watch).as_bytes() == cookie.0).then_some(watch)
}

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Kind {
    /// By nobody.
    None = 0,
    /// By one.
    Exclusive = 1,
    /// By any number.
    Shared = 2,
    /// By one, who leaves nothing behind when it gives it up.
    ExclusiveEphemeral = 3,
}

impl Encode for Kind {
    fn encode(&self, out: &mut Vec<u8>) {
        (*self as u8).encode(out);
    }
}

impl Decode for Kind {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        match input.value::<u8>()? {
            0 => Ok(Self::None),
            1 => Ok(Self::Exclusive),
            2 => Ok(Self::Shared),
            3 => Ok(Self::ExclusiveEphemeral),
            other => Err(Malformed::Unknown { what: "kind of lock", value: other.into() }),
        }
    }
}

/// Somebody, as the cluster knows them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Entity {
    /// 8 for a client.
    pub kind: u8,
    /// Their number.
    pub number: i64,
}

impl Encode for Entity {
    fn encode(&self, out: &mut Vec<u8>) {
        self.kind.encode(out);
        self.number.encode(out);
    }
}

impl Decode for Entity {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { kind: input.value()?, number: input.value()? })
    }
}

/// Where somebody is. Two of the same are one process, which has the address for as long as it lives.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Address {
    /// 1 in what locks keep, 2 for the newer protocol.
    pub kind: u32,
    /// Chance, which tells one process at an address from the next.
    pub nonce: u32,
    /// The address of the socket, with the family in two bytes, little endian.
    pub socket: Vec<u8>,
}

/// As the monitors take it to blocklist somebody: the address of the socket, and the nonce.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const V4: u8 = 2;
        const V6: u8 = 10;
        match self.socket[..] {
            [V4, 0, high, low, a, b, c, d, ..] => {
                let (ip, port) = (Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low]));
                write!(f, "{ip}:{port}/{}", self.nonce)
            }
            [V6, 0, high, low, _, _, _, _, ref rest @ ..] if rest.len() >= 16 => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&rest[..16]);
                let (ip, port) = (Ipv6Addr::from(ip), u16::from_be_bytes([high, low]));
                write!(f, "[{ip}]:{port}/{}", self.nonce)
            }
            // Nothing that a monitor would take for somebody.
            _ => write!(f, "-/{}", self.nonce),
        }
    }
}

impl Encode for Address {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(1);
        structure(out, 1, 1, |out| {
            self.kind.encode(out);
            self.nonce.encode(out);
            (self.socket.len() as u32).encode(out);
            out.extend(&self.socket);
        });
    }
}

impl Decode for Address {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let marker: u8 = input.value()?;
        if marker != 1 {
            return Err(Malformed::Unknown { what: "form of an address", value: marker.into() });
        }
        let (_, mut fields) = input.structure("address", 1)?;
        let (kind, nonce) = fields.value()?;
        Ok(Self { kind, nonce, socket: fields.value::<Text>()?.0 })
    }
}

fields! {
    /// A holder: who, and their cookie.
    pub struct Holder, version 1, oldest 1 {
        /// Who.
        pub entity: Entity,
        /// What they said, so that one of them can hold a lock more than once.
        pub cookie: Text,
    }
}

fields! {
    /// What is known of a holder.
    pub struct HolderInfo, version 1, oldest 1 {
        /// Until when; zero for ever.
        pub until: Time,
        /// Where they are.
        pub address: Address,
        /// What they want others to know.
        pub description: Text,
    }
}

fields! {
    /// A lock: as it is kept on the object, and as it is told to who asks.
    pub struct Lock, version 1, oldest 1 {
        /// Who holds it.
        pub holders: BTreeMap<Holder, HolderInfo>,
        /// How.
        pub kind: Kind,
        /// What all holders said alike.
        pub tag: Text,
    }
}

impl Lock {
    /// The one who holds the lock of an image as its clients do; `None` if nobody does, or somebody in another way.
    pub fn managed_holder(&self) -> Option<(&Holder, &HolderInfo)> {
        let is_managed = self.kind == Kind::Exclusive && self.tag == MANAGED.into();
        self.holders.first_key_value().filter(|_| is_managed && self.holders.len() == 1)
    }
}

/// What the object class is asked.
pub mod ask {
    use super::{Entity, Kind, Text, Time};
    use crate::wire::{Encode, structure};

    /// All that is asked for is one structure.
    fn asked(fields: &[&dyn Encode]) -> Vec<u8> {
        let mut out = Vec::new();
        structure(&mut out, 1, 1, |out| fields.iter().for_each(|field| field.encode(out)));
        out
    }

    /// To take a lock, for ever: method `lock`.
    pub fn lock(name: &str, kind: Kind, cookie: &str, tag: &str) -> Vec<u8> {
        let (description, until, flags) = (Text::default(), Time::default(), 0_u8);
        let [name, cookie, tag] = [name, cookie, tag].map(Text::from);
        asked(&[&name, &kind, &cookie, &tag, &description, &until, &flags])
    }

    /// To give it back: method `unlock`.
    pub fn unlock(name: &str, cookie: &str) -> Vec<u8> {
        asked(&[&Text::from(name), &Text::from(cookie)])
    }

    /// To take it from who holds it: method `break_lock`.
    pub fn break_lock(name: &str, holder: Entity, cookie: &Text) -> Vec<u8> {
        asked(&[&Text::from(name), &holder, cookie])
    }

    /// Who holds it: method `get_info`.
    pub fn get_info(name: &str) -> Vec<u8> {
        asked(&[&Text::from(name)])
    }

    /// To fail unless it is held so: method `assert_locked`.
    pub fn assert_locked(name: &str, kind: Kind, cookie: &str, tag: &str) -> Vec<u8> {
        asked(&[&Text::from(name), &kind, &Text::from(cookie), &Text::from(tag)])
    }

    /// To hold it by another cookie: method `set_cookie`.
    pub fn set_cookie(name: &str, kind: Kind, cookie: &str, tag: &str, to: &str) -> Vec<u8> {
        let [name, cookie, tag, to] = [name, cookie, tag, to].map(Text::from);
        asked(&[&name, &kind, &cookie, &tag, &to])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::tests::{bytes, is_written_as};

    #[test]
    fn a_lock_is_kept_as_ceph_keeps_it() {
        // From the header of an image that client.4331 at 127.0.0.1:0/505598179 had open, on a Ceph 16.2.15.
        let holder = Holder {
            entity: Entity { kind: 8, number: 4331 },
            cookie: "auto 139777697425632".into(),
        };
        let info = HolderInfo {
            until: Time::default(),
            address: Address {
                kind: 1,
                nonce: 505_598_179,
                socket: bytes("0200 0000 7f000001 0000000000000000"),
            },
            description: "".into(),
        };
        let lock = Lock {
            holders: BTreeMap::from([(holder.clone(), info.clone())]),
            kind: Kind::Exclusive,
            tag: MANAGED.into(),
        };
        is_written_as(
            &lock,
            "0101 6d000000 | 01000000 | 0101 21000000 08 eb10000000000000 14000000 \"auto 139777697425632\" |
             0101 2f000000 0000000000000000 | 01 0101 1c000000 01000000 e3d0221e 10000000 0200 0000 7f000001
             0000000000000000 | 00000000 | 01 | 08000000 \"internal\"",
        );
        assert_eq!(info.address.to_string(), "127.0.0.1:0/505598179");
        assert_eq!(lock.managed_holder(), Some((&holder, &info)));
        assert_eq!(watch_of(&holder.cookie), Some(139_777_697_425_632));
    }

    #[test]
    fn a_lock_that_a_person_took_is_nobodys_of_the_clients() {
        let lock = Lock { holders: BTreeMap::new(), kind: Kind::Exclusive, tag: MANAGED.into() };
        assert_eq!(lock.managed_holder(), None);
        for cookie in ["auto", "auto ", "auto 01", "mine", "auto 1 "] {
            assert_eq!(watch_of(&cookie.into()), None, "{cookie}");
        }
    }

    #[test]
    fn what_is_asked_of_a_lock_is_one_structure() {
        assert_eq!(ask::get_info("x"), bytes("0101 05000000 01000000 \"x\""));
        assert_eq!(ask::unlock("x", "c"), bytes("0101 0a000000 01000000 \"x\" 01000000 \"c\""));
        assert_eq!(
            ask::lock("x", Kind::Exclusive, "c", "t"),
            bytes(
                "0101 1d000000 01000000 \"x\" 01 01000000 \"c\" 01000000 \"t\" 00000000 0000000000000000 00"
            )
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Lock::from_bytes(&bytes);
        }
    }
}
