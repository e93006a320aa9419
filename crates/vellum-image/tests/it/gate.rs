//! The gate by itself. What threads do to it in every order is in `tests/loom`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vellum_image::gate::Gate;

#[tokio::test]
async fn a_closer_waits_for_those_inside_and_keeps_newcomers_out() {
    let gate = Arc::new(Gate::default());
    let inside = gate.enter().await;
    let mut closing = Box::pin(gate.clone().close());
    assert!(futures::poll!(&mut closing).is_pending());
    assert!(gate.try_enter().is_none());
    drop(inside);
    let closed = closing.await;
    assert!(gate.try_enter().is_none());
    drop(closed);
    assert!(gate.try_enter().is_some());
}

#[tokio::test]
async fn a_closer_that_gives_up_opens_the_gate_again() {
    let gate = Arc::new(Gate::default());
    let inside = gate.enter().await;
    let mut closing = Box::pin(gate.clone().close());
    assert!(futures::poll!(&mut closing).is_pending());
    let mut waiting = Box::pin(gate.enter());
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(closing);
    drop(waiting.await);
    drop(inside);
    assert!(futures::poll!(Box::pin(gate.close())).is_ready(), "nobody is inside");
}

/// The users go on for as long as the gate is closed again and again, and come in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_inside_while_it_is_closed() {
    let gate = Arc::new(Gate::default());
    let inside = Arc::new(AtomicUsize::new(0));
    let (entered, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let users: Vec<_> = (0..8)
        .map(|_| {
            let (gate, inside) = (gate.clone(), inside.clone());
            let (entered, done) = (entered.clone(), done.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    let _pass = gate.enter().await;
                    inside.fetch_add(1, Ordering::SeqCst);
                    entered.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for _ in 0..200 {
        let before = entered.load(Ordering::SeqCst);
        while entered.load(Ordering::SeqCst) < before + 8 {
            tokio::task::yield_now().await;
        }
        let _closed = gate.clone().close().await;
        assert_eq!(inside.load(Ordering::SeqCst), 0);
    }
    done.store(true, Ordering::SeqCst);
    for user in users {
        user.await.unwrap();
    }
}
