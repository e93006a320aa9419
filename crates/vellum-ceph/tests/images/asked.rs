//! What clients ask of who owns an image, and what they hear of it.

use std::time::Duration;

use vellum_core::SnapshotName;
use vellum_engine::{
    Catalog, Error, ErrorKind, Head, Heeded, ImageId, Reply, Request, Requests, Result, Wanted,
    Wants,
};
use vellum_image::{CreateOptions, admin};
use vellum_rados::{Event, Objects, Watch};
use vellum_rbd::notify::{Answer, Ask, ClientId, Heard, Message, RequestId};
use vellum_rbd::records::Purpose;
use vellum_rbd::{Decode, Encode, names};

/// More than what is asked and not heeded is asked again for.
const LONG: Duration = Duration::from_secs(20);

async fn image<C: Catalog>(catalog: &C, name: &str) -> ImageId {
    let options = CreateOptions::default();
    admin::create(catalog, name.parse().unwrap(), 1 << 20, options).await.unwrap().id
}

fn snapshot(name: &str) -> Wanted {
    Wanted::Snapshot { name: SnapshotName::new(name).unwrap(), auto: false }
}

async fn ask<C: Catalog>(catalog: &C, id: &ImageId, wanted: Wanted) -> Result<Heeded> {
    let asked = catalog.ask_owner(id, wanted, &|_, _| {});
    tokio::time::timeout(LONG, asked).await.expect("it does not hang")
}

async fn heard(requests: &mut Requests) -> Request {
    tokio::time::timeout(LONG, requests.next()).await.expect("something is asked")
}

fn failure(kind: ErrorKind) -> Error {
    Error::new(kind, "for a test")
}

pub(crate) async fn what_is_asked_is_decided_and_told<C: Catalog>(here: C, there: C) {
    let id = image(&here, "asked").await;
    assert_eq!(ask(&there, &id, Wanted::Flatten).await.unwrap(), Heeded::ByNobody);
    let head = here.own(&id).await.unwrap();
    assert_eq!(ask(&there, &id, Wanted::Flatten).await.unwrap(), Heeded::ByNobody);
    let mut requests = head.requests();
    let owner = async {
        for answer in [Ok(()), Err(ErrorKind::NoSpace), Err(ErrorKind::Exists)] {
            let Request { wanted, mut reply } = heard(&mut requests).await;
            assert_eq!(wanted, snapshot("s"));
            assert!(reply.accept() && reply.accept());
            reply.finish(answer.map_err(failure));
        }
        let Request { reply, .. } = heard(&mut requests).await;
        reply.refuse(&failure(ErrorKind::Unsupported));
        // One that is forgotten is asked again.
        drop(heard(&mut requests).await);
        let Request { mut reply, .. } = heard(&mut requests).await;
        assert!(reply.accept());
        reply.finish(Ok(()));
    };
    let asker = async {
        assert_eq!(ask(&there, &id, snapshot("s")).await.unwrap(), Heeded::Done);
        for kind in [ErrorKind::NoSpace, ErrorKind::Exists, ErrorKind::Unsupported] {
            assert_eq!(ask(&there, &id, snapshot("s")).await.unwrap_err().kind(), kind);
        }
        assert_eq!(ask(&there, &id, Wanted::Flatten).await.unwrap(), Heeded::Done);
    };
    futures::join!(owner, asker);
    head.close().await.unwrap();
    assert_eq!(ask(&there, &id, Wanted::Flatten).await.unwrap(), Heeded::ByNobody);
}

pub(crate) async fn an_owner_gives_the_image_to_whom_it_likes<C: Catalog>(here: C, there: C) {
    let id = image(&here, "turns").await;
    let head = here.own(&id).await.unwrap();
    let mut requests = head.requests();
    let owner = async {
        let Request { wanted, reply } = heard(&mut requests).await;
        assert_eq!(wanted, Wanted::Ownership(Wants::ToBegin));
        reply.refuse(&failure(ErrorKind::InUse));
        let Request { mut reply, .. } = heard(&mut requests).await;
        assert!(reply.accept());
        head.clone().close().await.unwrap();
        reply.finish(Ok(()));
    };
    let taker = async {
        assert_eq!(there.own(&id).await.unwrap_err().kind(), ErrorKind::InUse);
        there.own(&id).await.unwrap()
    };
    let ((), taken) = futures::join!(owner, taker);
    // Whoever gave it away, and has it open, asks for it as one who had it.
    let mut requests = taken.requests();
    let owner = async {
        let Request { wanted, mut reply } = heard(&mut requests).await;
        assert_eq!(wanted, Wanted::Ownership(Wants::ATurn));
        assert!(reply.accept());
        taken.close().await.unwrap();
    };
    let (back, ()) = futures::join!(here.own(&id), owner);
    back.unwrap().close().await.unwrap();
}

/// What those who hold a lock answer to somebody with this number, who has this watch.
async fn say<O: Objects>(
    pool: &O,
    id: &ImageId,
    ask: Ask,
    (watch, number): (u64, u64),
) -> Option<i32> {
    let from = ClientId { client: pool.client(), watch };
    let message = Message::Asked(ask, RequestId { from, number });
    let header = names::header(id.as_str());
    let said = pool.notify(&header, message.to_bytes(), Duration::from_secs(5)).await.unwrap();
    let answer = Heard::from_bytes(&said).unwrap().answer().unwrap();
    answer.map(|Answer(code)| code)
}

/// Accepts what is asked next.
async fn accepted(requests: &mut Requests) -> Box<dyn Reply> {
    let Request { mut reply, .. } = heard(requests).await;
    assert!(reply.accept());
    reply
}

pub(crate) async fn what_is_asked_twice_is_done_once<C: Catalog, O: Objects>(here: C, pool: O) {
    let id = image(&here, "twice").await;
    let ask = |watch, number| say(&pool, &id, Ask::Flatten, (watch, number));
    assert_eq!(ask(77, 1).await, None);
    let head = here.own(&id).await.unwrap();
    let mut requests = head.requests();
    // One who does not hear what comes of it asks again, and is told again.
    let deaf = pool.watch(&names::header(id.as_str())).await.unwrap();
    let (first, reply) = futures::join!(ask(deaf.id(), 1), accepted(&mut requests));
    assert_eq!((first, ask(deaf.id(), 1).await), (Some(0), Some(0)));
    reply.finish(Err(failure(ErrorKind::NoSpace)));
    assert_eq!(ask(deaf.id(), 1).await, Some(0));
    let nothing = tokio::time::timeout(Duration::from_millis(100), requests.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    deaf.close().await.unwrap();
    // Once it has heard, the same number is something else.
    let mut hears = pool.watch(&names::header(id.as_str())).await.unwrap();
    let watch = hears.id();
    let listener = tokio::spawn(async move {
        while let Some(event) = hears.next().await {
            if let Event::Said { said, .. } = event {
                hears.answer(said, Vec::new()).await.unwrap();
            }
        }
    });
    for _ in 0..2 {
        let (answer, reply) = futures::join!(ask(watch, 1), accepted(&mut requests));
        assert_eq!(answer, Some(0));
        reply.finish(Ok(()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // What was accepted and given up is asked for again, and done.
    let (answer, reply) = futures::join!(ask(watch, 2), accepted(&mut requests));
    drop(reply);
    assert_eq!(answer, Some(0));
    let (answer, reply) = futures::join!(ask(watch, 2), accepted(&mut requests));
    assert_eq!(answer, Some(0));
    reply.finish(Ok(()));
    listener.abort();
}

pub(crate) async fn what_cannot_be_done_is_told_at_once<C: Catalog, O: Objects>(here: C, pool: O) {
    let id = image(&here, "cannot").await;
    let head = here.own(&id).await.unwrap();
    let mut requests = head.requests();
    let gone = Ask::RemoveSnapshot("none".into(), Purpose::User);
    let nameless = Ask::Rename("".into());
    let asks = [(Ask::Migrate, -95), (Ask::RebuildObjectMap, -95), (gone, -2), (nameless, -22)];
    for (number, (ask, code)) in (2..).zip(asks) {
        assert_eq!(say(&pool, &id, ask, (77, number)).await, Some(code));
    }
    // Who listens too late is told so, and does nothing.
    let late = async {
        let Request { mut reply, .. } = heard(&mut requests).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(!reply.accept(), "nobody waits for it");
    };
    let answer = say(&pool, &id, Ask::Flatten, (77, 10));
    assert_eq!(futures::join!(answer, late).0, Some(-85));
    let again = say(&pool, &id, Ask::Flatten, (77, 10));
    let (answer, reply) = futures::join!(again, accepted(&mut requests));
    assert_eq!(answer, Some(0), "what was not done is asked for again");
    reply.finish(Ok(()));
    head.close().await.unwrap();
}
