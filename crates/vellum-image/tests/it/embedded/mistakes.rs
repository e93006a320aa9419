//! Mistakes of the engine that the tests of rules must find.

use vellum_local::Canary;

use super::fixture::Fixture;
use super::others::a_clone_asked_for_too_early_keeps_its_parent;

#[tokio::test]
async fn a_child_that_counts_as_gone_before_it_is_made_is_found() {
    let fixture = Fixture::new().await;
    fixture.leaves_disorder();
    let base = fixture.place.open_that_makes("another", Some(Canary::GoneTooEarly)).await;
    let another = fixture.add_pool(base);
    assert!(!a_clone_asked_for_too_early_keeps_its_parent(&fixture, another).await);
}
