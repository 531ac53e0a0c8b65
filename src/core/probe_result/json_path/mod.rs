//! Finds the places that a JSONPath (RFC 9535) names in a JSON text.
//!
//! A library parses the query. It is evaluated here, because the library builds the path of each node as text, which a
//! hostile body can make arbitrarily large, and rounds numbers before comparing them. Invariants: every step pays for
//! the bytes that it reads ([`JsonDoc::pay`]), and no list is longer than [`MAX_PLACES`].

use std::borrow::Cow;
use std::cell::RefCell;

use jsonpath_rust::parser::model::{
    Comparable, Comparison, Filter, FilterAtom, FnArg, JpQuery, Literal, Segment, Selector,
    SingularQuery, SingularQuerySegment, Test, TestFunction,
};
use regex::{Regex, RegexBuilder};

use super::expect::Decimal;
use super::json::{JsonDoc, JsonError, MAX_PLACES, string};

/// What compiling a regular expression of a filter costs, in bytes read; they may stand in the text itself.
const REGEX_COST: usize = 64 << 10;

/// The most memory of a compiled regular expression of a filter.
const REGEX_SIZE: usize = 1 << 20;

/// All places that the query names, in the order of RFC 9535.
pub(super) fn find<'a>(doc: &JsonDoc<'a>, query: &JpQuery) -> Result<Vec<&'a str>, JsonError> {
    let search = PathSearch {
        doc,
        regex: RefCell::new(None),
    };
    search.query(&query.segments, doc.text)
}

struct PathSearch<'d, 'a> {
    doc: &'d JsonDoc<'a>,
    /// The last regular expression, by its text; it is usually the same for all nodes.
    regex: RefCell<Option<(String, Option<Regex>)>>,
}

/// What a comparison sees.
enum ComparedValue<'a> {
    Nothing,
    Null,
    Bool(bool),
    Number(Decimal),
    Text(Cow<'a, str>),
    /// The text of an object or array.
    Nested(&'a str),
}

impl<'a> PathSearch<'_, 'a> {
    fn query(&self, segments: &[Segment], start: &'a str) -> Result<Vec<&'a str>, JsonError> {
        let mut nodes = vec![start];
        for segment in segments {
            let mut next = Vec::new();
            for node in nodes {
                self.segment(segment, node, &mut next)?;
            }
            nodes = next;
        }
        Ok(nodes)
    }

    /// The depth of the recursion is that of the text, which is bounded.
    fn segment(
        &self,
        segment: &Segment,
        node: &'a str,
        found: &mut Vec<&'a str>,
    ) -> Result<(), JsonError> {
        match segment {
            Segment::Selector(selector) => self.select(selector, node, found),
            Segment::Selectors(selectors) => selectors
                .iter()
                .try_for_each(|selector| self.select(selector, node, found)),
            Segment::Descendant(inner) => {
                self.segment(inner, node, found)?;
                self.children(node)?
                    .into_iter()
                    .try_for_each(|child| self.segment(segment, child, found))
            }
        }
    }

    fn select(
        &self,
        selector: &Selector,
        node: &'a str,
        found: &mut Vec<&'a str>,
    ) -> Result<(), JsonError> {
        self.doc.pay(1)?;
        match selector {
            Selector::Name(name) => found.extend(self.doc.member(node, name)?),
            Selector::Wildcard => found.extend(self.children(node)?),
            Selector::Index(index) => found.extend(self.index(node, *index)?),
            Selector::Slice(start, end, step) => {
                let elements = self.doc.elements(node)?;
                slice(&elements, *start, *end, step.unwrap_or(1), found);
            }
            Selector::Filter(filter) => {
                for child in self.children(node)? {
                    if self.filter(filter, child)? {
                        found.push(child);
                    }
                }
            }
        }
        if found.len() > MAX_PLACES {
            return Err(JsonError(format!("finds more than {MAX_PLACES} places")));
        }
        Ok(())
    }

    fn children(&self, node: &'a str) -> Result<Vec<&'a str>, JsonError> {
        self.doc.pay(1)?;
        if node.starts_with('{') {
            let members = self.doc.members(node)?;
            return Ok(members.into_iter().map(|(_, value)| value).collect());
        }
        self.doc.elements(node)
    }

    fn index(&self, node: &'a str, index: i64) -> Result<Option<&'a str>, JsonError> {
        if let Ok(index) = usize::try_from(index) {
            return self.doc.element(node, index);
        }
        let elements = self.doc.elements(node)?;
        let from_end = usize::try_from(index.unsigned_abs()).ok();
        Ok(from_end
            .and_then(|back| elements.len().checked_sub(back))
            .and_then(|at| elements.get(at).copied()))
    }

    fn filter(&self, filter: &Filter, node: &'a str) -> Result<bool, JsonError> {
        self.doc.pay(1)?;
        match filter {
            Filter::Or(parts) => {
                for part in parts {
                    if self.filter(part, node)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Filter::And(parts) => {
                for part in parts {
                    if !self.filter(part, node)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Filter::Atom(FilterAtom::Filter { expr, not }) => Ok(self.filter(expr, node)? != *not),
            Filter::Atom(FilterAtom::Test { expr, not }) => Ok(self.test(expr, node)? != *not),
            Filter::Atom(FilterAtom::Comparison(comparison)) => self.compare(comparison, node),
        }
    }

    fn test(&self, test: &Test, node: &'a str) -> Result<bool, JsonError> {
        match test {
            Test::RelQuery(segments) => Ok(!self.query(segments, node)?.is_empty()),
            Test::AbsQuery(query) => Ok(!self.query(&query.segments, self.doc.text)?.is_empty()),
            Test::Function(function) => match function.as_ref() {
                TestFunction::Match(whole, by) => self.matches(whole, by, true, node),
                TestFunction::Search(part, by) => self.matches(part, by, false, node),
                TestFunction::Length(_)
                | TestFunction::Value(_)
                | TestFunction::Count(_)
                | TestFunction::Custom(..) => Err(unsupported(function)),
            },
        }
    }

    fn compare(&self, comparison: &Comparison, node: &'a str) -> Result<bool, JsonError> {
        let (left, right) = comparison.vals();
        let (left, right) = (self.comparable(left, node)?, self.comparable(right, node)?);
        Ok(match comparison {
            Comparison::Eq(..) => self.same(&left, &right)?,
            Comparison::Ne(..) => !self.same(&left, &right)?,
            Comparison::Lt(..) => less(&left, &right),
            Comparison::Gt(..) => less(&right, &left),
            Comparison::Lte(..) => less(&left, &right) || self.same(&left, &right)?,
            Comparison::Gte(..) => less(&right, &left) || self.same(&left, &right)?,
        })
    }

    fn comparable(&self, side: &Comparable, node: &'a str) -> Result<ComparedValue<'a>, JsonError> {
        match side {
            Comparable::Literal(literal) => Ok(seen_literal(literal)),
            Comparable::Function(function) => self.function(function, node),
            Comparable::SingularQuery(query) => {
                let (mut place, segments) = match query {
                    SingularQuery::Current(segments) => (node, segments),
                    SingularQuery::Root(segments) => (self.doc.text, segments),
                };
                for segment in segments {
                    let next = match segment {
                        SingularQuerySegment::Index(index) => self.index(place, *index)?,
                        SingularQuerySegment::Name(name) => self.doc.member(place, name)?,
                    };
                    match next {
                        Some(found) => place = found,
                        None => return Ok(ComparedValue::Nothing),
                    }
                }
                Ok(seen(place))
            }
        }
    }

    fn function(
        &self,
        function: &TestFunction,
        node: &'a str,
    ) -> Result<ComparedValue<'a>, JsonError> {
        match function {
            TestFunction::Length(argument) => {
                let length = match self.argument(argument, node)? {
                    ComparedValue::Text(text) => text.chars().count(),
                    ComparedValue::Nested(place) if place.starts_with('{') => {
                        self.doc.members(place)?.len()
                    }
                    ComparedValue::Nested(place) => self.doc.elements(place)?.len(),
                    ComparedValue::Nothing
                    | ComparedValue::Null
                    | ComparedValue::Bool(_)
                    | ComparedValue::Number(_) => {
                        return Ok(ComparedValue::Nothing);
                    }
                };
                Ok(number(&length.to_string()))
            }
            TestFunction::Count(argument) => {
                let nodes = self.nodes(argument, node)?;
                let count = nodes.ok_or_else(|| unsupported(function))?.len();
                Ok(number(&count.to_string()))
            }
            TestFunction::Value(argument) => self.argument(argument, node),
            TestFunction::Match(..) | TestFunction::Search(..) | TestFunction::Custom(..) => {
                Err(unsupported(function))
            }
        }
    }

    /// The one value of an argument; nothing if it names no value or several.
    fn argument(&self, argument: &FnArg, node: &'a str) -> Result<ComparedValue<'a>, JsonError> {
        match argument {
            FnArg::Literal(literal) => Ok(seen_literal(literal)),
            FnArg::Test(_) | FnArg::Filter(_) => Ok(match self.nodes(argument, node)? {
                Some(nodes) => match nodes.as_slice() {
                    [only] => seen(only),
                    _ => ComparedValue::Nothing,
                },
                None => match argument {
                    FnArg::Test(test) => match test.as_ref() {
                        Test::Function(function) => self.function(function, node)?,
                        Test::RelQuery(_) | Test::AbsQuery(_) => ComparedValue::Nothing,
                    },
                    FnArg::Literal(_) | FnArg::Filter(_) => ComparedValue::Nothing,
                },
            }),
        }
    }

    /// The nodes of an argument that is a query.
    fn nodes(&self, argument: &FnArg, node: &'a str) -> Result<Option<Vec<&'a str>>, JsonError> {
        match argument {
            FnArg::Test(test) => match test.as_ref() {
                Test::RelQuery(segments) => self.query(segments, node).map(Some),
                Test::AbsQuery(query) => self.query(&query.segments, self.doc.text).map(Some),
                Test::Function(_) => Ok(None),
            },
            FnArg::Literal(_) | FnArg::Filter(_) => Ok(None),
        }
    }

    fn matches(
        &self,
        text: &FnArg,
        pattern: &FnArg,
        whole: bool,
        node: &'a str,
    ) -> Result<bool, JsonError> {
        let (ComparedValue::Text(text), ComparedValue::Text(pattern)) =
            (self.argument(text, node)?, self.argument(pattern, node)?)
        else {
            return Ok(false);
        };
        self.doc.pay(text.len())?;
        let pattern = if whole {
            format!("^(?:{pattern})$")
        } else {
            pattern.into_owned()
        };
        let mut cached = self.regex.borrow_mut();
        let (_, regex) = match cached.take() {
            Some(last) if last.0 == pattern => cached.insert(last),
            Some(_) | None => {
                self.doc.pay(REGEX_COST)?;
                let regex = RegexBuilder::new(&pattern).size_limit(REGEX_SIZE).build();
                cached.insert((pattern, regex.ok()))
            }
        };
        Ok(regex.as_ref().is_some_and(|regex| regex.is_match(&text)))
    }

    fn same(&self, a: &ComparedValue<'a>, b: &ComparedValue<'a>) -> Result<bool, JsonError> {
        Ok(match (a, b) {
            (ComparedValue::Nothing, ComparedValue::Nothing)
            | (ComparedValue::Null, ComparedValue::Null) => true,
            (ComparedValue::Bool(a), ComparedValue::Bool(b)) => a == b,
            (ComparedValue::Number(a), ComparedValue::Number(b)) => a == b,
            (ComparedValue::Text(a), ComparedValue::Text(b)) => a == b,
            (ComparedValue::Nested(a), ComparedValue::Nested(b)) => self.same_nested(a, b)?,
            _ => false,
        })
    }

    /// Objects and arrays; the depth of the recursion is that of the text.
    fn same_nested(&self, a: &'a str, b: &'a str) -> Result<bool, JsonError> {
        if a.starts_with('{') != b.starts_with('{') {
            return Ok(false);
        }
        let pairs: Vec<(&str, &str)> = if a.starts_with('{') {
            let (a, b) = (self.doc.members(a)?, self.doc.members(b)?);
            let b: std::collections::HashMap<_, _> = b.into_iter().collect();
            let pairs: Vec<_> = a
                .iter()
                .filter_map(|(name, value)| Some((*value, *b.get(name)?)))
                .collect();
            if a.len() != b.len() || pairs.len() != a.len() {
                return Ok(false);
            }
            pairs
        } else {
            let (a, b) = (self.doc.elements(a)?, self.doc.elements(b)?);
            if a.len() != b.len() {
                return Ok(false);
            }
            a.into_iter().zip(b).collect()
        };
        for (a, b) in pairs {
            if !self.same(&seen(a), &seen(b))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn seen(place: &str) -> ComparedValue<'_> {
    match place.as_bytes().first() {
        Some(b'n') => ComparedValue::Null,
        Some(b't') => ComparedValue::Bool(true),
        Some(b'f') => ComparedValue::Bool(false),
        Some(b'"') => string(place).map_or(ComparedValue::Nothing, ComparedValue::Text),
        Some(b'{' | b'[') => ComparedValue::Nested(place),
        _ => number(place),
    }
}

fn seen_literal<'a>(literal: &Literal) -> ComparedValue<'a> {
    match literal {
        Literal::Int(int) => number(&int.to_string()),
        Literal::Float(float) => number(&float.to_string()),
        Literal::String(text) => ComparedValue::Text(Cow::Owned(text.clone())),
        Literal::Bool(value) => ComparedValue::Bool(*value),
        Literal::Null => ComparedValue::Null,
    }
}

fn number<'a>(text: &str) -> ComparedValue<'a> {
    Decimal::parse(text).map_or(ComparedValue::Nothing, ComparedValue::Number)
}

fn less(a: &ComparedValue<'_>, b: &ComparedValue<'_>) -> bool {
    match (a, b) {
        (ComparedValue::Number(a), ComparedValue::Number(b)) => a < b,
        (ComparedValue::Text(a), ComparedValue::Text(b)) => a < b,
        _ => false,
    }
}

/// RFC 9535, section 2.3.4.2.2.
fn slice<'a>(
    elements: &[&'a str],
    start: Option<i64>,
    end: Option<i64>,
    step: i64,
    found: &mut Vec<&'a str>,
) {
    let len = i64::try_from(elements.len()).unwrap_or(i64::MAX);
    let from_start = |index: i64| if index < 0 { len + index } else { index };
    let mut push = |at: i64| {
        let element = usize::try_from(at).ok().and_then(|at| elements.get(at));
        found.extend(element.copied());
    };
    if step > 0 {
        let mut at = from_start(start.unwrap_or(0)).clamp(0, len);
        let end = from_start(end.unwrap_or(len)).clamp(0, len);
        while at < end {
            push(at);
            at = at.saturating_add(step);
        }
    } else if step < 0 {
        let mut at = from_start(start.unwrap_or(len - 1)).clamp(-1, len - 1);
        let end = end.map_or(-1, |end| from_start(end).clamp(-1, len - 1));
        while at > end {
            push(at);
            at = at.saturating_add(step);
        }
    }
}

fn unsupported(function: &TestFunction) -> JsonError {
    JsonError(format!(
        "uses {function} where RFC 9535 does not allow it; length, count and value are compared, match and search \
         are tests"
    ))
}

#[cfg(test)]
mod tests;
