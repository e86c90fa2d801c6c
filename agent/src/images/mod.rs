//! How image bytes reach the engine: through a pull-only registry of our own on 127.0.0.1, one for each pull.
//!
//! In: a signed [`copal_protocol::documents::ImageRef`] and the cloud's registry. Out: the engine's id of an image whose
//! config digest and diff_ids are the signed ones. Never here: an image trusted by its tag, a byte given to the engine that
//! was not planned, a registry credential given to the engine.
//!
//! | file | what it does |
//! |---|---|
//! | `plan` | the manifest we make, and what may be asked for with it (pure) |
//! | `layer` | one layer from the cloud: resumed, hashed, unpacked |
//! | `endpoint` | the registry on 127.0.0.1, with a password of its own, while one pull runs |
//! | `pulls` | `ensure`, `present` and `retain` |
//! | `space` | whether it fits, before any harm |

mod endpoint;
mod layer;
mod plan;
mod pulls;
mod space;

pub use pulls::Pulls;
