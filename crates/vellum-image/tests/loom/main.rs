//! The gate under loom: every order of the steps that threads make in it, and every value that the memory model allows a
//! thread to see.
//!
//! It is the gate's own source, with loom's atomics, and a stand-in for tokio's `Notify` that keeps what tokio promises of it.
//! Compiled once more with every order of memory weakened, it must fail, or loom would see nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::duplicate_mod, reason = "the same gate, of other atomics")]

mod notify;
mod sound;
mod weakened;

/// Requests that pass, each in a thread, beside an operation that closes the gate: what they do inside is done, as far as the
/// operation can see, and what the operation does is seen by whoever passes later.
macro_rules! requests_beside_an_operation {
    ($gate:ident, $requests:expr) => {{
        use std::sync::Arc;

        use loom::future::block_on;
        use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};

        let gate = Arc::new($gate::gate::Gate::default());
        let inside = Arc::new(AtomicUsize::new(0));
        let operating = Arc::new(AtomicUsize::new(0));
        let requests: Vec<_> = (0..$requests)
            .map(|_| {
                let (gate, inside, operating) = (gate.clone(), inside.clone(), operating.clone());
                loom::thread::spawn(move || {
                    let pass = block_on(gate.enter());
                    inside.fetch_add(1, Relaxed);
                    assert_eq!(operating.load(Relaxed), 0, "a request inside a closed gate");
                    inside.fetch_sub(1, Relaxed);
                    drop(pass);
                })
            })
            .collect();
        let closed = block_on(gate.clone().close());
        operating.store(1, Relaxed);
        assert_eq!(inside.load(Relaxed), 0, "an operation beside a request");
        operating.store(0, Relaxed);
        drop(closed);
        requests.into_iter().for_each(|request| request.join().unwrap());
    }};
}

/// With so few preemptions, or as many as `LOOM_MAX_PREEMPTIONS` asks for.
fn model(preemptions: usize) -> loom::model::Builder {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(preemptions));
    model
}

#[test]
fn whatever_order_the_steps_of_two_requests_and_an_operation_take_the_gate_keeps_them_apart() {
    model(2).check(|| requests_beside_an_operation!(sound, 2));
}

#[test]
fn an_operation_that_gives_up_leaves_the_gate_open_for_those_who_wait() {
    model(3).check(|| {
        let gate = std::sync::Arc::new(sound::gate::Gate::default());
        let request = {
            let gate = gate.clone();
            loom::thread::spawn(move || drop(loom::future::block_on(gate.enter())))
        };
        // Polled once, and dropped whether it was done or not.
        let mut closing = Box::pin(gate.clone().close());
        let _ =
            closing.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        drop(closing);
        request.join().unwrap();
        assert!(gate.try_enter().is_some());
    });
}

#[test]
fn a_gate_whose_memory_orders_are_too_weak_is_found() {
    let checked = std::panic::catch_unwind(|| {
        model(2).check(|| requests_beside_an_operation!(weakened, 1));
    });
    assert!(checked.is_err(), "loom sees nothing of memory orders");
}
