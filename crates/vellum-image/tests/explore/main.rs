//! The orders in which requests and operations on one object can go on, each judged: some order of what was done explains what
//! was read and what is there, a snapshot holds one moment, nobody waits for ever, and no pass of the gate is kept.
//!
//! The code is the real one, on the memory engine; each call of the engine is a place where others come in between. Pairs are
//! tried in every order; triples, and what stands beside a flatten, in every order with few interruptions; and all together
//! in random ones. An order that fails says its choices, and is told again by them:
//!
//! ```text
//! VELLUM_ORDERS=1000000 VELLUM_INTERRUPTIONS=4 cargo test --release -p vellum-image --test explore -- --nocapture
//! VELLUM_ORDER=0,1,1,0,2 cargo test -p vellum-image --test explore -- NAME_OF_THE_TEST
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod acts;
mod judge;
mod world;

use vellum_core::Extent;
use vellum_engine::Layering::{self, CopyUp, Sparse};
use vellum_image::Canary;
use vellum_image::DiscardPolicy;
use vellum_sim::{Explored, Orders};

use acts::{Act, OBJECT, UNIT};
use judge::Judge;
use world::Scene;

const MODES: [Layering; 2] = [Sparse, CopyUp];

/// Two parts of the first unit, so that both need a copy-up, and neither waits for the other.
const WRITE: Act = Act::Write { at: Extent::new(100, 200), byte: 1 };
const OTHER: Act = Act::Write { at: Extent::new(300, 250), byte: 2 };
/// One that overlaps both.
const ACROSS: Act = Act::Write { at: Extent::new(200, 200), byte: 4 };
/// A whole unit and a part of the next.
const WIDE: Act = Act::Write { at: Extent::new(0, UNIT + 100), byte: 3 };
const READ: Act = Act::Read { at: Extent::new(0, OBJECT) };
/// The end of one unit and the beginning of the next.
const ZERO: Act = Act::Zero { at: Extent::new(250, UNIT) };
/// The end of one unit, and the next: two steps.
const ZERO_WIDE: Act = Act::Zero { at: Extent::new(250, OBJECT - 250) };
const WHOLE: Extent = Extent::new(0, OBJECT);
const DISCARD: Act = Act::Discard { at: WHOLE, policy: DiscardPolicy::Zero };
const GIVE_BACK: Act = Act::Discard { at: WHOLE, policy: DiscardPolicy::Inherit };
/// The second unit of the object whose first one is written to.
const NEXT: Extent = Extent::new(UNIT, UNIT);
const ZERO_NEXT: Act = Act::Zero { at: NEXT };
const DISCARD_NEXT: Act = Act::Discard { at: NEXT, policy: DiscardPolicy::Zero };
const GIVE_BACK_NEXT: Act = Act::Discard { at: NEXT, policy: DiscardPolicy::Inherit };

fn explore(scene: &Scene, orders: Orders) -> Explored {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    let mut judge = Judge::default();
    let orders = match std::env::var("VELLUM_ORDER") {
        Ok(choices) => Orders::One(choices.split(',').map(|it| it.parse().unwrap()).collect()),
        Err(_) => orders,
    };
    let explored = orders.explore(|order| scene.play(order, &mut judge));
    println!("{:>8} orders, {:>4} kinds of outcomes: {scene:?}", explored.orders, judge.kinds());
    explored
}

/// How many random orders of each scene are tried.
fn random() -> Orders {
    let asked = std::env::var("VELLUM_ORDERS").ok();
    let seeds = asked.map_or(3_000, |asked| asked.parse().expect("VELLUM_ORDERS is a number"));
    Orders::Random { seeds: 0..seeds }
}

const EVERY: Orders = Orders::All { interruptions: None };

/// Every order with so few interruptions, or with as many as `VELLUM_INTERRUPTIONS` asks for.
fn up_to(usual: u32) -> Orders {
    let asked = std::env::var("VELLUM_INTERRUPTIONS").ok();
    let asked = asked.map(|asked| asked.parse().expect("VELLUM_INTERRUPTIONS is a number"));
    Orders::All { interruptions: Some(asked.unwrap_or(usual)) }
}

#[test]
fn pairs_of_requests_and_operations_in_every_order() {
    for layering in MODES {
        for pair in [
            [WRITE, OTHER],
            [WRITE, ACROSS],
            [WRITE, ZERO],
            [WRITE, ZERO_NEXT],
            [WRITE, DISCARD],
            [WRITE, DISCARD_NEXT],
            [WRITE, GIVE_BACK],
            [WRITE, GIVE_BACK_NEXT],
            [DISCARD, GIVE_BACK],
            [WIDE, ZERO_WIDE],
            [WIDE, DISCARD],
            [WRITE, Act::Snapshot],
            [WRITE, Act::Sync],
            [WIDE, READ],
            [ZERO, READ],
            [ZERO, Act::Snapshot],
            [READ, Act::Snapshot],
            [GIVE_BACK, READ],
        ] {
            let scene = Scene::new(layering, &[&pair[..1], &pair[1..]]);
            explore(&scene, EVERY).unwrap();
        }
    }
}

#[test]
fn triples_of_requests_and_operations_in_every_order_with_few_interruptions() {
    for layering in MODES {
        for triple in [
            [WRITE, OTHER, ACROSS],
            [WRITE, OTHER, DISCARD],
            [WRITE, OTHER, ZERO_NEXT],
            [WRITE, OTHER, GIVE_BACK_NEXT],
            [WRITE, OTHER, Act::Snapshot],
            [WRITE, ZERO_NEXT, Act::Snapshot],
            [WRITE, DISCARD, Act::Snapshot],
            [WRITE, GIVE_BACK, Act::Snapshot],
            [WRITE, READ, GIVE_BACK],
            [WRITE, OTHER, Act::Flatten],
            [WRITE, ZERO_NEXT, Act::Flatten],
            [WRITE, DISCARD_NEXT, Act::Flatten],
            [WRITE, DISCARD, Act::Flatten],
            [WRITE, GIVE_BACK, Act::Flatten],
            [WRITE, Act::Snapshot, Act::Flatten],
        ] {
            let scene = Scene::new(layering, &[&triple[..1], &triple[1..2], &triple[2..]]);
            explore(&scene, up_to(2)).unwrap();
        }
    }
}

#[test]
fn a_flatten_beside_each_request_with_few_interruptions() {
    for layering in MODES {
        for act in [WRITE, WIDE, READ, ZERO, DISCARD, GIVE_BACK, Act::Snapshot, Act::Flatten] {
            for scene in [
                Scene::new(layering, &[&[act], &[Act::Flatten]]),
                Scene::new(layering, &[&[act], &[Act::Flatten]]).with_history(),
            ] {
                explore(&scene, up_to(3)).unwrap();
            }
        }
    }
}

#[test]
fn two_writers_a_discard_a_snapshot_and_a_flatten_on_one_object() {
    for layering in MODES {
        for discard in [DISCARD, GIVE_BACK] {
            let tasks: [&[Act]; 5] =
                [&[WRITE, READ], &[OTHER, READ], &[discard], &[Act::Snapshot], &[Act::Flatten]];
            let scene = Scene::new(layering, &tasks);
            let old = scene.clone().with_history();
            for scene in [scene.clone(), old.clone(), scene.by_object(), old.sharing_objects()] {
                explore(&scene, random()).unwrap();
            }
        }
    }
}

#[test]
fn what_is_filled_first_where_snapshots_share_objects_in_every_order() {
    for layering in MODES {
        for pair in [
            [WRITE, OTHER],
            [WRITE, ZERO],
            [WRITE, ZERO_NEXT],
            [WRITE, DISCARD],
            [WRITE, DISCARD_NEXT],
            [DISCARD, READ],
            [WRITE, Act::Snapshot],
        ] {
            // A snapshot of nothing but the parent's content, through which it must show for ever.
            let scene = Scene::new(layering, &[&pair[..1], &pair[1..]]).frozen().sharing_objects();
            explore(&scene, up_to(4)).unwrap();
        }
    }
}

/// Explores a scene with a mistake, in the way that finds the sound code right.
fn finds(canary: Canary, scene: Scene, orders: Orders, message: &str) {
    let sound = explore(&scene, orders.clone());
    assert!(sound.failed.is_none(), "{sound:?}");
    let explored = explore(&Scene { canary: Some(canary), ..scene }, orders);
    let failed = explored.failed.unwrap_or_else(|| panic!("no order finds {canary:?}"));
    println!("{canary:?} is found by order {}", explored.orders);
    assert!(failed.message().contains(message), "{canary:?} is found, but as {failed:?}");
}

#[test]
fn a_copy_up_that_overwrites_what_came_meanwhile_is_found() {
    for layering in MODES {
        let scene = Scene::new(layering, &[&[WRITE], &[OTHER]]);
        finds(Canary::CopyUpOverwrites, scene, EVERY, "explains");
    }
}

#[test]
fn an_operation_that_does_not_wait_for_requests_inside_the_gate_is_found() {
    let scene = Scene::new(Sparse, &[&[WRITE], &[Act::Snapshot]]);
    finds(Canary::OperationBesideRequests, scene, EVERY, "a mutation beside a commit");
    // Space that is freed under a read.
    let scene = Scene::new(Sparse, &[&[WRITE, GIVE_BACK], &[READ]]);
    finds(Canary::OperationBesideRequests, scene, EVERY, "a read beside a reclaim");
}

#[test]
fn what_is_given_back_to_the_parent_beside_a_flatten_is_found() {
    // Written before, so that there is something to give back; and read, so that it is known to have shown the parent.
    let scene = Scene::new(Sparse, &[&[WRITE, GIVE_BACK, READ], &[Act::Flatten]]);
    finds(Canary::GiveBackBesideFlatten, scene, up_to(3), "explains");
}

#[test]
fn requests_that_overlap_and_are_carried_out_side_by_side_are_found() {
    let scene = Scene::new(Sparse, &[&[WIDE], &[ZERO_WIDE]]);
    finds(Canary::RequestsSideBySide, scene, EVERY, "explains");
}
