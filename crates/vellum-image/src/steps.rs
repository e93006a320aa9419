//! Steps on a view: what is done on one view of an image, and again on the next where that one is not the image's any more.

use std::sync::Arc;

use vellum_engine::{Catalog, Error, ErrorKind, ImageRecord, Layer, Result};

use crate::Image;
use crate::chain::{Attempts, Chain, open_below};
use crate::image::View;

/// What became of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step<T = ()> {
    /// It was done.
    Done(T),
    /// The image changed meanwhile, or somebody was faster: take it again.
    Again,
}

impl<C: Catalog> Image<C> {
    /// Takes a step on the image's view, and again on the view it has then, until it is done or fails for good.
    pub(crate) async fn on_a_view<T, F>(&self, step: impl Fn(Arc<View<C>>) -> F) -> Result<T>
    where
        F: Future<Output = Result<Step<T>>>,
    {
        loop {
            let view = self.present().await?;
            let result = step(view.clone()).await;
            if let Some(result) = self.settled(&view, result).await {
                return result;
            }
        }
    }

    /// What a step on this view has come to; `None` if it is to be taken again, on the view that the image has now.
    pub(crate) async fn settled<T>(
        &self,
        view: &Arc<View<C>>,
        result: Result<Step<T>>,
    ) -> Option<Result<T>> {
        match result {
            Ok(Step::Done(done)) => Some(Ok(done)),
            Ok(Step::Again) => None,
            Err(error) if Box::pin(self.has_another_chain(view, &error)).await => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// After something failed on this view: whether the image has another chain by now. A layer may be gone because what lay
    /// below it was cut off by another process, which its own record tells.
    async fn has_another_chain(&self, view: &Arc<View<C>>, error: &Error) -> bool {
        if error.kind() != ErrorKind::NotFound {
            return false;
        }
        match self.reload_chain(view).await {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!(image = %view.record.name, error = %error.chain(), "a layer is gone, and the image's chain cannot be read anew");
                false
            }
        }
    }

    /// Opens anew what lies below the top of a view, if it still is the image's. Says whether the image has another chain then.
    async fn reload_chain(&self, view: &Arc<View<C>>) -> Result<bool> {
        let _alone = self.0.operations.lock().await;
        if self.view().epoch != view.epoch {
            return Ok(true);
        }
        let mut attempts = Attempts::default();
        let (record, chain) = loop {
            match self.chain_now(view).await {
                Err(error) if attempts.again(&error) => {}
                now => break now?,
            }
        };
        if chain.is_alike(&view.chain) {
            return Ok(false);
        }
        let (epoch, head, is_away) = (view.epoch + 1, view.head.clone(), view.is_away);
        self.0.view.store(Arc::new(View { epoch, record, head, chain, is_away }));
        Ok(true)
    }

    /// What the image's chain is now, from the top of a view on.
    async fn chain_now(&self, view: &View<C>) -> Result<(ImageRecord, Chain<C::Layer>)> {
        let record = self.0.catalog.get(&self.0.id).await?;
        let top = self.top_of(view, &record).await?;
        let (below, own) =
            open_below(&self.0.pools, &self.0.catalog, &record, top.revision()).await?;
        Ok((record, Chain::new(top, &below, own + 1, view.chain.cache())))
    }

    /// The top of a view as it is now. A snapshot's may have been filled by another process, and then says of what was inherited
    /// that nothing defines it; a head belongs to whoever has it open.
    async fn top_of(&self, view: &View<C>, record: &ImageRecord) -> Result<C::Layer> {
        let top = view.chain.top();
        match record.revision(top.revision()) {
            Some(revision) if revision.sealed && view.head.is_none() => {
                self.0.catalog.layer(&self.0.id, top.revision()).await
            }
            _ => Ok(top.clone()),
        }
    }
}
