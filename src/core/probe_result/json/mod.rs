//! Rules about the JSON in a body, applied to its text.
//!
//! Invariants:
//! - the text is never parsed into a tree: a place is found by reading the levels above it, and its value stays text,
//!   so that numbers are compared by their digits without rounding;
//! - the whole text must be JSON (RFC 8259), at most [`MAX_DEPTH`] deep. A byte order mark is skipped: the RFC allows
//!   it and some servers send it. Of two members with one name the last counts;
//! - the work for one rule is bounded by the size of the text, whatever the text and the rule contain.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::evaluate::shown;
use super::expect::{Decimal, JsonPlace, JsonRule, JsonTest};
use super::json_path;

/// Deeper texts are refused, as serde_json does: walking them takes that much stack.
pub(super) const MAX_DEPTH: usize = 127;

/// The most places that one path may find on its way or at its end; an assertion about more is a query on a database.
pub(super) const MAX_PLACES: usize = 10_000;

/// The most members or elements of one value that a path may walk over; at 40 bytes each, 40 MB for a moment.
const MAX_CHILDREN: usize = 1_000_000;

/// The work allowed for one rule, in bytes read: this, and for each byte of the text [`WORK_PER_BYTE`]. Each level of
/// a place is one reading, so real rules need two to ten; the rest is for paths with filters. About 0.1 s at 1 MiB.
const WORK_FLOOR: usize = 16 << 20;

/// See [`WORK_FLOOR`].
const WORK_PER_BYTE: usize = 16;

/// Applies the rules in their order; the error is the explanation of the first that does not hold.
pub(super) fn check(rules: &[JsonRule], body: &[u8]) -> Result<(), String> {
    if rules.is_empty() {
        return Ok(());
    }
    let doc = JsonDoc::of(body)
        .map_err(|why| format!("the body is not JSON ({why}): {}", shown_bytes(body)))?;
    for rule in rules {
        doc.begin();
        match apply(&doc, rule) {
            Ok(None) => {}
            Ok(Some(explanation)) => return Err(explanation),
            Err(JsonError(why)) => {
                return Err(format!("JSON at {}: {why}", shown(rule.place.text())));
            }
        }
    }
    Ok(())
}

/// Why a rule could not be applied to a text.
#[derive(Debug, PartialEq)]
pub(super) struct JsonError(pub(super) String);

/// The text, once it is known to be JSON and not too deep.
fn valid(body: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str::<&RawValue>(text).map_err(|e| e.to_string())?;
    if depth(text) > MAX_DEPTH {
        return Err(format!("nested more than {MAX_DEPTH} deep"));
    }
    Ok(text.trim_matches([' ', '\t', '\r', '\n']))
}

/// How deep a valid JSON text is nested.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = text.bytes();
    let mut in_string = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if in_string => {
                bytes.next();
            }
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// `None` when the rule holds, else why not.
fn apply(doc: &JsonDoc<'_>, rule: &JsonRule) -> Result<Option<String>, JsonError> {
    let places = match &rule.place {
        JsonPlace::Pointer { parts, .. } => doc.pointer(parts)?.into_iter().collect(),
        JsonPlace::Path { query, .. } => json_path::find(doc, query)?,
    };
    let at = shown(rule.place.text());
    match (&rule.test, places.as_slice()) {
        (JsonTest::Exists(false) | JsonTest::NotEquals(_), []) => return Ok(None),
        (test, []) => {
            return Ok(Some(format!(
                "JSON has nothing at {at}, expected {}",
                wanted(test)
            )));
        }
        (_, [_, ..]) => {}
    }
    for place in &places {
        if !holds(doc, &rule.test, place)? {
            let value = shown(place);
            let wanted = wanted(&rule.test);
            return Ok(Some(format!("JSON at {at} is {value}, expected {wanted}")));
        }
    }
    Ok(None)
}

fn holds(doc: &JsonDoc<'_>, test: &JsonTest, place: &str) -> Result<bool, JsonError> {
    Ok(match test {
        JsonTest::Equals(value) => doc.equals(place, value)?,
        JsonTest::NotEquals(value) => !doc.equals(place, value)?,
        JsonTest::OneOf(values) => {
            for value in values {
                if doc.equals(place, value)? {
                    return Ok(true);
                }
            }
            false
        }
        // Strings only: the text of a number is not what its writer chose (1.0 or 1e0).
        JsonTest::Matches(pattern) => string(place).is_some_and(|held| pattern.0.is_match(&held)),
        JsonTest::Compare(comparison, bound) => {
            let number = match string(place) {
                Some(held) => Decimal::parse(&held),
                None => Decimal::parse(place),
            };
            number.is_some_and(|number| comparison.holds(&number, bound))
        }
        JsonTest::Exists(there) => *there,
    })
}

fn wanted(test: &JsonTest) -> String {
    match test {
        JsonTest::Equals(value) => shown(&value.to_string()),
        JsonTest::NotEquals(value) => format!("anything but {}", shown(&value.to_string())),
        JsonTest::OneOf(values) => {
            // As many as fit into an explanation.
            let list: Vec<String> = values.iter().take(5).map(ToString::to_string).collect();
            format!("one of {}", shown(&list.join(", ")))
        }
        JsonTest::Matches(pattern) => {
            format!("a string that matches {}", shown(pattern.0.as_str()))
        }
        JsonTest::Compare(comparison, bound) => format!("a number {comparison} {bound}"),
        JsonTest::Exists(true) => "something".to_owned(),
        JsonTest::Exists(false) => "nothing".to_owned(),
    }
}

fn shown_bytes(body: &[u8]) -> String {
    if body.is_empty() {
        return "it is empty".to_owned();
    }
    // More bytes than are shown, so that a cut character does not matter.
    let head = body.get(..1024).unwrap_or(body);
    shown(&String::from_utf8_lossy(head))
}

/// The string that a JSON text holds; `None` when it is no string, or one that no text can hold (half of a surrogate
/// pair).
pub(super) fn string(place: &str) -> Option<Cow<'_, str>> {
    place
        .starts_with('"')
        .then(|| {
            serde_json::from_str::<JsonText<'_>>(place)
                .ok()
                .map(|text| text.0)
        })
        .flatten()
}

/// A valid JSON text and the work that may still be done on it.
pub(super) struct JsonDoc<'a> {
    /// The whole text, without white space around it.
    pub(super) text: &'a str,
    left: Cell<usize>,
}

impl<'a> JsonDoc<'a> {
    /// The error says why the body is not JSON.
    pub(super) fn of(body: &'a [u8]) -> Result<Self, String> {
        let doc = Self {
            text: valid(body)?,
            left: Cell::new(0),
        };
        doc.begin();
        Ok(doc)
    }

    /// Allows the work for one more rule.
    fn begin(&self) {
        let by_size = self.text.len().saturating_mul(WORK_PER_BYTE);
        self.left.set(by_size.saturating_add(WORK_FLOOR));
    }

    /// Pays for reading this many bytes.
    pub(super) fn pay(&self, bytes: usize) -> Result<(), JsonError> {
        match self.left.get().checked_sub(bytes.max(1)) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(JsonError(
                "needs too much work for a text of this size".into(),
            )),
        }
    }

    /// The value at a JSON pointer (RFC 6901).
    fn pointer(&self, parts: &[String]) -> Result<Option<&'a str>, JsonError> {
        let mut place = self.text;
        for part in parts {
            let next = if place.starts_with('{') {
                self.member(place, part)?
            } else {
                match index(part) {
                    Some(index) => self.element(place, index)?,
                    None => None,
                }
            };
            match next {
                Some(found) => place = found,
                None => return Ok(None),
            }
        }
        Ok(Some(place))
    }

    /// The member of an object with this name; `None` if there is none, or this is not an object.
    pub(super) fn member(&self, place: &'a str, name: &str) -> Result<Option<&'a str>, JsonError> {
        if !place.starts_with('{') {
            return Ok(None);
        }
        self.read(place, FindMember(name))
    }

    /// The element of an array at this index; `None` if there is none, or this is not an array.
    pub(super) fn element(
        &self,
        place: &'a str,
        index: usize,
    ) -> Result<Option<&'a str>, JsonError> {
        if !place.starts_with('[') {
            return Ok(None);
        }
        self.read(place, FindElement(index))
    }

    /// The members of an object in their order, each name once; empty if this is not an object.
    pub(super) fn members(
        &self,
        place: &'a str,
    ) -> Result<Vec<(Cow<'a, str>, &'a str)>, JsonError> {
        if !place.starts_with('{') {
            return Ok(Vec::new());
        }
        self.read(place, ListMembers)
    }

    /// The elements of an array; empty if this is not an array.
    pub(super) fn elements(&self, place: &'a str) -> Result<Vec<&'a str>, JsonError> {
        if !place.starts_with('[') {
            return Ok(Vec::new());
        }
        self.read(place, ListElements)
    }

    fn read<V: Visitor<'a>>(&self, place: &'a str, visitor: V) -> Result<V::Value, JsonError> {
        self.pay(place.len())?;
        let mut reader = serde_json::Deserializer::from_str(place);
        reader
            .deserialize_any(visitor)
            .map_err(|e| JsonError(e.to_string()))
    }

    /// Whether a value is the expected one: numbers by their exact value, arrays element by element, and of objects
    /// the members that are expected, whatever else there is.
    fn equals(&self, place: &'a str, expected: &Value) -> Result<bool, JsonError> {
        Ok(match expected {
            Value::Null => place == "null",
            Value::Bool(true) => place == "true",
            Value::Bool(false) => place == "false",
            Value::Number(number) => Decimal::parse(place)
                .is_some_and(|seen| Some(seen) == Decimal::parse(&number.to_string())),
            Value::String(text) => string(place).is_some_and(|seen| seen == *text),
            Value::Array(items) => {
                if !place.starts_with('[') {
                    return Ok(false);
                }
                let elements = self.elements(place)?;
                if elements.len() != items.len() {
                    return Ok(false);
                }
                for (element, item) in elements.into_iter().zip(items) {
                    if !self.equals(element, item)? {
                        return Ok(false);
                    }
                }
                true
            }
            Value::Object(members) => {
                for (name, value) in members {
                    match self.member(place, name)? {
                        Some(member) if self.equals(member, value)? => {}
                        Some(_) | None => return Ok(false),
                    }
                }
                place.starts_with('{')
            }
        })
    }
}

/// An index as a pointer may write it: digits without a leading zero.
fn index(part: &str) -> Option<usize> {
    let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let plain = part == "0" || !part.starts_with('0');
    (digits && plain).then(|| part.parse().ok()).flatten()
}

/// A string that is borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct JsonText<'a>(#[serde(borrow)] Cow<'a, str>);

/// Finds the last member with a name.
struct FindMember<'n>(&'n str);

impl<'de> Visitor<'de> for FindMember<'_> {
    type Value = Option<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(JsonText(name)) = map.next_key()? {
            if name == self.0 {
                found = Some(map.next_value::<&RawValue>()?.get());
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Finds the element at an index.
struct FindElement(usize);

impl<'de> Visitor<'de> for FindElement {
    type Value = Option<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        for _ in 0..self.0 {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(None);
            }
        }
        let found = seq.next_element::<&RawValue>()?.map(RawValue::get);
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(found)
    }
}

/// Lists the members of an object.
struct ListMembers;

impl<'de> Visitor<'de> for ListMembers {
    type Value = Vec<(Cow<'de, str>, &'de str)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Self::Value = Vec::new();
        let mut places = std::collections::HashMap::new();
        while let Some(JsonText(name)) = map.next_key::<JsonText<'de>>()? {
            let value = map.next_value::<&RawValue>()?.get();
            let next = members.len();
            match members.get_mut(*places.entry(name.clone()).or_insert(next)) {
                Some(earlier) => earlier.1 = value,
                None => members.push((name, value)),
            }
            bounded(members.len())?;
        }
        Ok(members)
    }
}

/// Lists the elements of an array.
struct ListElements;

impl<'de> Visitor<'de> for ListElements {
    type Value = Vec<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(value) = seq.next_element::<&RawValue>()? {
            elements.push(value.get());
            bounded(elements.len())?;
        }
        Ok(elements)
    }
}

fn bounded<E: serde::de::Error>(children: usize) -> Result<(), E> {
    if children > MAX_CHILDREN {
        return Err(E::custom(format_args!(
            "more than {MAX_CHILDREN} members or elements"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(super) mod tests;
