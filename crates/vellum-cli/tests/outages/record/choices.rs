//! What an [`Operator`](crate::operations::Operator) may choose: what surely exists and can be done.

use super::{DEPTH_MAX, FIRST, FIRST_SNAPSHOT, Known, Record};

impl Record {
    /// Images that surely exist.
    pub fn images(&self) -> Vec<String> {
        self.names_of(|_, known| known.certain)
    }

    /// Images that can be sealed once more.
    pub fn sealable(&self) -> Vec<String> {
        self.names_of(|_, known| known.certain && known.depth < DEPTH_MAX)
    }

    /// How many images there may be.
    pub fn count(&self) -> usize {
        self.images.len()
    }

    /// Images that nobody uses and nothing was cloned from. The first one stays.
    pub fn removable(&self) -> Vec<String> {
        self.names_of(|name, known| {
            let idle = known.users == 0 && known.commands == 0;
            known.certain && idle && name != FIRST && !self.has_child(name, None)
        })
    }

    /// Images with a parent.
    pub fn clones(&self) -> Vec<String> {
        self.names_of(|_, known| known.certain && known.parent.is_some() && known.discards == 0)
    }

    /// Clones whose content can be given back to the parent.
    pub fn unflattened(&self) -> Vec<String> {
        self.names_of(|_, known| known.certain && known.parent.is_some() && !known.flattens)
    }

    /// Snapshots with a name, of images that surely exist.
    pub fn snapshots(&self) -> Vec<(String, String)> {
        let images = self.images.iter().filter(|(_, known)| known.certain);
        let all = images.flat_map(|(image, known)| {
            let named = known
                .snapshots
                .iter()
                .filter(|(_, snapshot)| snapshot.certain && snapshot.made_for.is_none());
            named.map(move |(name, _)| (image.clone(), name.clone()))
        });
        all.collect()
    }

    /// Those that a clone can be made of.
    pub fn clonable(&self) -> Vec<(String, String)> {
        let mut found = self.snapshots();
        found.retain(|(image, name)| {
            self.images[image].depth < DEPTH_MAX || (image == FIRST && name == FIRST_SNAPSHOT)
        });
        found
    }

    /// Those without clones. The first one stays.
    pub fn removable_snapshots(&self) -> Vec<(String, String)> {
        let mut found = self.snapshots();
        found.retain(|(image, name)| {
            !self.has_child(image, Some(name)) && (image != FIRST || name != FIRST_SNAPSHOT)
        });
        found
    }

    pub(super) fn names_of(&self, wanted: impl Fn(&str, &Known) -> bool) -> Vec<String> {
        let found = self.images.iter().filter(|(name, known)| wanted(name, known));
        found.map(|(name, _)| name.clone()).collect()
    }

    fn has_child(&self, image: &str, snapshot: Option<&str>) -> bool {
        self.images.values().filter_map(|known| known.parent.as_ref()).any(|link| {
            link.image == image && (snapshot.is_none() || link.snapshot.as_deref() == snapshot)
        })
    }
}
