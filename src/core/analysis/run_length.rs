//! Run-length encoding of stored lists: `[entry, times]`, because most ticks and pods are alike. A single entry is read
//! as well, as the first version wrote all of them.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest list that is read: an hour at ten a second, and more than any rule needs.
const MAX_ENTRIES: usize = 65_536;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RunLength<T> {
    Many(T, usize),
    One(T),
}

pub(super) fn serialize<T, S>(list: &[T], writer: S) -> Result<S::Ok, S::Error>
where
    T: Copy + PartialEq + Serialize,
    S: Serializer,
{
    let runs = list.chunk_by(|a, b| a == b).filter_map(|run| {
        let entry = *run.first()?;
        Some(match run.len() {
            1 => RunLength::One(entry),
            times => RunLength::Many(entry, times),
        })
    });
    writer.collect_seq(runs)
}

pub(super) fn deserialize<'de, T, D>(reader: D) -> Result<Vec<T>, D::Error>
where
    T: Copy + Deserialize<'de>,
    D: Deserializer<'de>,
{
    let mut list = Vec::new();
    for run in Vec::<RunLength<T>>::deserialize(reader)? {
        let (entry, times) = match run {
            RunLength::One(entry) => (entry, 1),
            RunLength::Many(entry, times) => (entry, times),
        };
        if times > MAX_ENTRIES - list.len() {
            return Err(D::Error::custom(format!(
                "a list has more than {MAX_ENTRIES} entries"
            )));
        }
        list.resize(list.len() + times, entry);
    }
    list.shrink_to_fit();
    Ok(list)
}
