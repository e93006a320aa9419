//! [`Harness`]: what the suite must be able to do with an engine from outside.

use std::fmt;
use std::future::Future;

use vellum_engine::Catalog;

use crate::Result;

/// Storage of an engine under test. Each case gets one of its own, empty, and drops it at its end.
///
/// What a harness cannot do it leaves out; the cases that need it are then ignored. It can also find out when it is asked,
/// and return a [`Skip`].
pub trait Harness: Send + Sync + 'static {
    /// The engine's catalog.
    type Catalog: Catalog;

    /// Opens the storage. Called again, also while earlier catalogs are still open, it stands for another process; called
    /// after they were dropped, for a new one after their death.
    fn open(&self) -> impl Future<Output = Result<Self::Catalog>> + Send;

    /// Opens a second pool, whose images can be parents and children of those in the first.
    fn open_second_pool(&self) -> impl Future<Output = Result<Self::Catalog>> + Send {
        async { Err(Skip::because("the harness has one pool only")) }
    }

    /// Cuts the power of the first pool: what is not durable is lost. What was opened before is dropped right afterwards
    /// without being closed, and nothing that it still does may reach the storage.
    fn power_cut(&self) -> impl Future<Output = Result<()>> + Send {
        async { Err(Skip::because("the harness cannot cut the power")) }
    }

    /// Leaves no space for data in the first pool, so that no write of a mebibyte of new data can succeed.
    fn exhaust_space(&self) -> impl Future<Output = Result<()>> + Send {
        async { Err(Skip::because("the harness cannot exhaust the space")) }
    }

    /// Gives back what [`exhaust_space`](Self::exhaust_space) took.
    fn free_space(&self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

/// Why a case does not apply. Returned as an error, it makes the case ignored instead of failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skip(String);

impl Skip {
    /// The error to return.
    pub fn because(reason: impl Into<String>) -> anyhow::Error {
        Self(reason.into()).into()
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}
