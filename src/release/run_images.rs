//! The stored form of images that pods ran.

use serde::{Deserialize, Serialize};

use crate::core::units::Revision;

/// Entries that are stored, one per container and revision: running ones first, and of each container the newest. Each
/// takes some hundred bytes.
pub const MAX_RUN_IMAGES: usize = 100;

/// Longer names and IDs are not stored. A reference has at most 255 characters before its tag or digest.
const MAX_IMAGE_TEXT: usize = 512;

/// What a container of a revision's pods ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunImage {
    /// The revision of the pods.
    pub revision: Revision,
    /// The kind of their workload, as `Deployment`.
    pub kind: Box<str>,
    /// The name of their workload.
    pub workload: Box<str>,
    /// The name of the container.
    pub container: Box<str>,
    /// The image as the template names it.
    pub image: Box<str>,
    /// The IDs of the images that ran under that name, the newest at the end.
    pub ids: Vec<Box<str>>,
}

impl RunImage {
    /// Whether it is short enough to be stored.
    pub fn is_bounded(&self) -> bool {
        let texts = [&self.kind, &self.workload, &self.container, &self.image];
        let mut texts = texts.into_iter().chain(&self.ids);
        texts.all(|text| text.len() <= MAX_IMAGE_TEXT)
    }
}
