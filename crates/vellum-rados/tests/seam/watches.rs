//! What is said about an object.

use std::time::Duration;

use vellum_rados::{Event, Failure, Objects, Watch, WriteOp};

use crate::{Place, write};

crate::cases! {
    whoever_watches_hears_what_is_said_and_answers,
    whoever_does_not_answer_is_named_when_the_time_is_over,
    nobody_hears_anything_after_a_watch_was_closed,
    an_object_that_is_not_there_cannot_be_watched,
}

const SOON: Duration = Duration::from_secs(10);

/// The answers of so many and the numbers of those who said nothing, of what a notify answers.
fn counts(answers: &[u8]) -> (u32, u32) {
    let number = |at: usize| u32::from_le_bytes(answers[at..at + 4].try_into().unwrap());
    let answered = number(0);
    let mut at = 4;
    for _ in 0..answered {
        at += 20 + number(at + 16) as usize;
    }
    (answered, number(at))
}

async fn whoever_watches_hears_what_is_said_and_answers<P: Place>(place: P) {
    let (here, there) = (place.client().await, place.client().await);
    write(&here, "heard", WriteOp::new().create(true)).await.unwrap();
    let mut watch = there.watch("heard").await.unwrap();
    let speaker = here.clone();
    let said = tokio::spawn(async move { speaker.notify("heard", b"hello".to_vec(), SOON).await });
    let Some(Event::Said { said: number, client, bytes }) = watch.next().await else {
        panic!("something is said");
    };
    assert_eq!((client, &bytes[..]), (here.client(), &b"hello"[..]));
    watch.answer(number, b"fine".to_vec()).await.unwrap();
    let answers = said.await.unwrap().unwrap();
    assert_eq!(counts(&answers), (1, 0));
    let expected = [&there.client().to_le_bytes()[..], &watch.id().to_le_bytes()].concat();
    assert_eq!(answers[4..20], expected, "who answered");
    assert!(answers[20..].starts_with(b"\x04\0\0\0fine"), "{answers:?}");
    watch.close().await.unwrap();
}

async fn whoever_does_not_answer_is_named_when_the_time_is_over<P: Place>(place: P) {
    let (here, there) = (place.client().await, place.client().await);
    write(&here, "silent", WriteOp::new().create(true)).await.unwrap();
    let watch = there.watch("silent").await.unwrap();
    let answers = here.notify("silent", Vec::new(), Duration::from_secs(1)).await.unwrap();
    assert_eq!(counts(&answers), (0, 1));
    watch.close().await.unwrap();
}

async fn nobody_hears_anything_after_a_watch_was_closed<P: Place>(place: P) {
    let pool = place.client().await;
    write(&pool, "closed", WriteOp::new().create(true)).await.unwrap();
    for _ in 0..20 {
        pool.watch("closed").await.unwrap().close().await.unwrap();
    }
    drop(pool.watch("closed").await.unwrap());
    // One that was only dropped is closed a little later.
    loop {
        let answers = pool.notify("closed", Vec::new(), Duration::from_secs(1)).await.unwrap();
        if counts(&answers) == (0, 0) {
            break;
        }
    }
}

async fn an_object_that_is_not_there_cannot_be_watched<P: Place>(place: P) {
    let pool = place.client().await;
    assert_eq!(pool.watch("absent").await.unwrap_err(), Failure::NOT_FOUND);
    let said = pool.notify("absent", Vec::new(), SOON).await;
    assert_eq!(said.unwrap_err(), Failure::NOT_FOUND);
}
