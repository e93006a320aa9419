//! Metadata contexts: what block status can be asked about.

/// A context that this server knows. Its number on the wire is the same on every connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum Context {
    /// `base:allocation`: bit 0 a hole, bit 1 reads as zeros.
    Allocation = 1,
    /// `qemu:allocation-depth`: 0 where nothing is allocated, else which layer of the chain holds it, from 1.
    Depth = 2,
}

/// `base:allocation`: nothing is allocated.
pub const STATE_HOLE: u64 = 1;
/// `base:allocation`: reads as zeros.
pub const STATE_ZERO: u64 = 2;

impl Context {
    /// All of them.
    pub const ALL: [Context; 2] = [Context::Allocation, Context::Depth];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::Depth => "qemu:allocation-depth",
        }
    }

    /// The context of this name.
    pub fn named(name: &str) -> Option<Context> {
        Self::ALL.into_iter().find(|context| context.name() == name)
    }

    /// The contexts that a query of a listing matches: one by its name, or all of a namespace.
    pub fn listed(query: &str) -> impl Iterator<Item = Context> {
        Self::ALL.into_iter().filter(move |context| {
            context.name() == query || query.ends_with(':') && context.name().starts_with(query)
        })
    }
}

/// The contexts of a connection, few and in order.
pub type Contexts = smallvec::SmallVec<[Context; 2]>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_match_names_and_namespaces() {
        let listed = |query: &str| Context::listed(query).collect::<Vec<_>>();
        assert_eq!(listed("base:allocation"), [Context::Allocation]);
        assert_eq!(listed("base:"), [Context::Allocation]);
        assert_eq!(listed("qemu:"), [Context::Depth]);
        assert_eq!(listed("qemu:allocation"), []);
        assert_eq!(listed(""), []);
        assert_eq!(Context::named("base:"), None);
    }
}
