//! Random calls of the class `lock`, by two clients.

use rand::RngExt;
use rand::rngs::StdRng;
use vellum_rados::{Found, ReadStep, WriteOp};
use vellum_rbd::Decode;
use vellum_rbd::lock::{Kind, Lock, ask};

use crate::both::Both;

const CALLS: usize = 250;

pub(crate) fn locks(both: &Both, chance: &mut StdRng, seed: u64) {
    let object = &format!("locked.{seed}");
    for _ in 0..CALLS {
        let client = chance.random_range(0..2);
        let kind =
            [Kind::Exclusive, Kind::Exclusive, Kind::Shared, Kind::None][chance.random_range(0..4)];
        let cookie = ["auto 1", "auto 2"][chance.random_range(0..2)];
        let tag = ["internal", ""][chance.random_range(0..2)];
        let (method, input) = match chance.random_range(0..9) {
            0..4 => ("lock", ask::lock("rbd_lock", kind, cookie, tag)),
            4..6 => ("unlock", ask::unlock("rbd_lock", cookie)),
            6 => ("assert_locked", ask::assert_locked("rbd_lock", kind, cookie, tag)),
            7 => ("set_cookie", ask::set_cookie("rbd_lock", kind, cookie, tag, "auto 2")),
            _ => ("unlock", ask::unlock("other", cookie)),
        };
        let _ = both.write(client, object, &WriteOp::new().call("lock", method, input));
        let input = ask::get_info("rbd_lock");
        let step = ReadStep::Call { class: "lock", method: "get_info", input };
        let (memory, real) = both.look(object, &step);
        // Who holds it has another number, and another address, on each cluster.
        let told = |found| match found {
            Found::Output(output) => {
                let lock = Lock::from_bytes(&output).unwrap();
                let cookies: Vec<_> =
                    lock.holders.keys().map(|holder| holder.cookie.clone()).collect();
                (lock.kind, lock.tag, cookies)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(memory.map(told), real.map(told), "after {method}");
    }
}
