//! Expectations: what counts as a success.

use std::cmp::Ordering;
use std::fmt;
use std::num::IntErrorKind;
use std::time::Duration;

use http::HeaderName;
use jsonpath_rust::parser::model::JpQuery;
use regex::Regex;

use super::HttpVersion;

/// A regular expression that can be compared, for the question whether a setting changed.
#[derive(Debug, Clone)]
pub struct Pattern(pub Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// What an HTTP answer must be like. All that is given must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Expect {
    /// One of these; never empty. By default 200 to 299.
    pub status: Vec<StatusRange>,
    /// Each of these about the JSON in the body.
    pub json: Vec<JsonRule>,
    /// Each must match somewhere in the body.
    pub body_matches: Vec<Pattern>,
    /// None may match anywhere in the body.
    pub body_not_matches: Vec<Pattern>,
    /// Each of these about the headers.
    pub headers: Vec<HeaderRule>,
    /// The longest total duration that is good.
    pub max_latency: Option<Duration>,
    /// `Last-Modified` must be younger than this.
    pub max_age: Option<Duration>,
    /// How long every certificate in the chain must at least remain valid.
    pub certificate_valid_for: Option<Duration>,
    /// One of these; empty: any.
    pub http_versions: Vec<HttpVersion>,
    /// Whether the answer must, or must not, have come over TLS; `None`: either.
    pub tls: Option<bool>,
}

impl Default for Expect {
    fn default() -> Self {
        Self {
            status: vec![StatusRange {
                low: 200,
                high: 299,
            }],
            json: Vec::new(),
            body_matches: Vec::new(),
            body_not_matches: Vec::new(),
            headers: Vec::new(),
            max_latency: None,
            max_age: None,
            certificate_valid_for: None,
            http_versions: Vec::new(),
            tls: None,
        }
    }
}

impl Expect {
    /// Whether the bytes of the body are needed, and not only their number.
    pub fn needs_body(&self) -> bool {
        !(self.json.is_empty() && self.body_matches.is_empty() && self.body_not_matches.is_empty())
    }
}

/// Statuses from `low` to `high`, both included; 100 ≤ low ≤ high ≤ 999.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The first.
    pub low: u16,
    /// The last.
    pub high: u16,
}

/// A rule about one header; names are compared without regard to case.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderRule {
    /// The header.
    pub name: HeaderName,
    /// What must be so.
    pub test: HeaderTest,
}

/// What must be so of a header.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderTest {
    /// At least one value matches.
    Matches(Pattern),
    /// No value matches; an absent header is good.
    NotMatches(Pattern),
    /// The header is there.
    Present,
    /// The header is not there.
    Absent,
}

/// A rule about a place in the JSON of the body.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonRule {
    /// Where to look.
    pub place: JsonPlace,
    /// What must be so there.
    pub test: JsonTest,
}

/// A place in a JSON text.
#[derive(Debug, Clone)]
pub enum JsonPlace {
    /// RFC 6901, as its unescaped parts and as it was written.
    Pointer {
        /// The reference tokens.
        parts: Vec<String>,
        /// As it was written.
        text: String,
    },
    /// RFC 9535. It may find several places: the rule holds when it holds at each, and there is at least one.
    Path {
        /// The parsed query.
        query: Box<JpQuery>,
        /// As it was written.
        text: String,
    },
}

impl JsonPlace {
    /// As it was written.
    pub fn text(&self) -> &str {
        match self {
            Self::Pointer { text, .. } | Self::Path { text, .. } => text,
        }
    }
}

impl PartialEq for JsonPlace {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

/// What must be so at a place.
#[derive(Debug, Clone, PartialEq)]
pub enum JsonTest {
    /// The same value; numbers by their exact decimal value; objects may hold further keys.
    Equals(serde_json::Value),
    /// Another value, or no value.
    NotEquals(serde_json::Value),
    /// One of these values.
    OneOf(Vec<serde_json::Value>),
    /// A string that matches.
    Matches(Pattern),
    /// A number (or a string that holds one) that compares so with this decimal number, exactly.
    Compare(NumberComparison, Decimal),
    /// Whether the place must exist (`true`) or must not (`false`).
    Exists(bool),
}

/// How two numbers compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberComparison {
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
}

impl NumberComparison {
    /// Whether `number` compares so with `bound`.
    pub fn holds(self, number: &Decimal, bound: &Decimal) -> bool {
        let order = number.cmp(bound);
        match self {
            Self::Greater => order == Ordering::Greater,
            Self::GreaterOrEqual => order != Ordering::Less,
            Self::Less => order == Ordering::Less,
            Self::LessOrEqual => order != Ordering::Greater,
        }
    }

    /// The operator as people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
        }
    }
}

impl fmt::Display for NumberComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A decimal number of any size, compared without rounding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decimal {
    negative: bool,
    /// Without zeros at either end; empty for zero.
    digits: Vec<u8>,
    /// The value is 0.DIGITS times ten to this power.
    exponent: i64,
}

impl Decimal {
    /// Reads a number in JSON's notation; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = text
            .strip_prefix('-')
            .map_or((false, text), |rest| (true, rest));
        let (mantissa, power) = match rest.split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, power_of_ten(power)?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa
            .split_once('.')
            .map_or((mantissa, None), |(w, f)| (w, Some(f)));
        let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !all_digits(whole) || fraction.is_some_and(|f| !all_digits(f)) {
            return None;
        }
        let all: Vec<u8> = whole
            .bytes()
            .chain(fraction.unwrap_or("").bytes())
            .collect();
        let leading = all.iter().take_while(|&&b| b == b'0').count();
        let trailing = all
            .iter()
            .skip(leading)
            .rev()
            .take_while(|&&b| b == b'0')
            .count();
        let digits: Vec<u8> = all
            .get(leading..all.len() - trailing)
            .unwrap_or(&[])
            .to_vec();
        let exponent = if digits.is_empty() {
            0
        } else {
            i64::try_from(whole.len()).ok()? - i64::try_from(leading).ok()? + power
        };
        Some(Self {
            negative: negative && !digits.is_empty(),
            digits,
            exponent,
        })
    }
}

/// Powers beyond 2^40 are taken for 2^40: no text is long enough to tell the difference.
fn power_of_ten(text: &str) -> Option<i64> {
    const MOST: i64 = 1 << 40;
    match text.parse::<i64>() {
        Ok(power) => Some(power.clamp(-MOST, MOST)),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => Some(MOST),
        Err(error) if *error.kind() == IntErrorKind::NegOverflow => Some(-MOST),
        Err(_) => None,
    }
}

impl fmt::Display for Decimal {
    /// Plain digits where they are few, otherwise `0.DIGITSePOWER`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More places than this before or behind the point are shown as a power.
        const PLAIN: i64 = 25;
        let digits: String = self.digits.iter().map(|&b| char::from(b)).collect();
        let sign = if self.negative { "-" } else { "" };
        let len = i64::try_from(digits.len()).unwrap_or(i64::MAX);
        if digits.is_empty() {
            return f.write_str("0");
        }
        if !(-PLAIN..=PLAIN).contains(&self.exponent) {
            return write!(f, "{sign}0.{digits}e{}", self.exponent);
        }
        let zeros = |n: i64| "0".repeat(usize::try_from(n).unwrap_or(0));
        if self.exponent <= 0 {
            write!(f, "{sign}0.{}{digits}", zeros(-self.exponent))
        } else if self.exponent >= len {
            write!(f, "{sign}{digits}{}", zeros(self.exponent - len))
        } else {
            let (whole, fraction) =
                digits.split_at(usize::try_from(self.exponent).unwrap_or(digits.len()));
            write!(f, "{sign}{whole}.{fraction}")
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = |d: &Self| i8::from(!d.digits.is_empty()) * if d.negative { -1 } else { 1 };
        sign(self).cmp(&sign(other)).then_with(|| {
            let by_size = self
                .exponent
                .cmp(&other.exponent)
                .then_with(|| self.digits.cmp(&other.digits));
            if self.negative {
                by_size.reverse()
            } else {
                by_size
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Ordering::{Equal, Greater, Less};

    #[test]
    fn decimals_compare_without_rounding() {
        check("9007199254740993", "9007199254740992", Greater);
        check("0.1", "0.10", Equal);
        check("0.1", "0.1000000000000000000000001", Less);
        check("1e2", "100", Equal);
        check("1e999999999999", "1", Greater);
        check("1e99999999999999999999", "5", Greater);
        check("1e-99999999999999999999", "5e-9", Less);
        check("-0", "0", Equal);
        check("-2", "-1", Less);
        check("-1", "1", Less);
        check("120", "12.0e1", Equal);
        check("0.012", "0.0119", Greater);
    }

    #[test]
    fn decimals_show_what_was_read() {
        for (text, shown) in [
            ("0", "0"),
            ("-0.0", "0"),
            ("120", "120"),
            ("-12.50", "-12.5"),
            ("0.0119", "0.0119"),
            ("9007199254740993", "9007199254740993"),
            ("1e30", "0.1e31"),
            ("-2.5e-40", "-0.25e-39"),
        ] {
            assert_eq!(Decimal::parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_json_does_not_call_a_number_is_none() {
        for text in ["", "-", "1.", ".5", "0x10", "1e", "NaN", "1 ", "--1", "é"] {
            assert_eq!(Decimal::parse(text), None, "{text:?}");
        }
    }

    #[track_caller]
    fn check(a: &str, b: &str, expected: std::cmp::Ordering) {
        let (a, b) = (Decimal::parse(a).unwrap(), Decimal::parse(b).unwrap());
        assert_eq!(a.cmp(&b), expected);
    }
}
