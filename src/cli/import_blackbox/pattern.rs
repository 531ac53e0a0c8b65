//! Converts regular expressions from Go's notation to ours.
//!
//! The two are nearly one language. Go accepts some characters unescaped that must be escaped here, above all the `{`
//! of a JSON text, and has `\Q…\E`. Classes such as `\d` mean ASCII there and all of Unicode here. They are left
//! unchanged, because the difference matters for no realistic answer, and would make each pattern unreadable.

use regex::RegexBuilder;

/// The same bound on a compiled pattern as that of the configuration.
const PATTERN_LIMIT: usize = 10 * 1024 * 1024;

/// The pattern in our notation.
///
/// # Errors
/// Why there is none.
pub(super) fn ours(go: &str) -> Result<String, String> {
    let pattern = translated(go);
    match RegexBuilder::new(&pattern)
        .size_limit(PATTERN_LIMIT)
        .build()
    {
        Ok(_) => Ok(pattern),
        Err(error) => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or("");
            let why = last.trim_start_matches("error: ");
            Err(format!("the pattern cannot be used: {why}; write it anew"))
        }
    }
}

fn translated(go: &str) -> String {
    let mut out = String::with_capacity(go.len());
    let mut rest = go;
    let mut class = PatternClass::Outside;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or("");
        rest = after;
        match (c, class) {
            ('\\', _) if after.starts_with('Q') => {
                let literal = after.get(1..).unwrap_or("");
                let (literal, next) = literal.split_once("\\E").unwrap_or((literal, ""));
                out.push_str(&regex::escape(literal));
                rest = next;
                class = class.after_character();
            }
            ('\\', _) => {
                out.push('\\');
                if let Some(escaped) = after.chars().next() {
                    out.push(escaped);
                    rest = after.get(escaped.len_utf8()..).unwrap_or("");
                    // What stands in these braces belongs to the escape: \p{Greek}, \x{10FFFF}.
                    if matches!(escaped, 'p' | 'P' | 'x')
                        && let Some(end) = rest.starts_with('{').then(|| rest.find('}')).flatten()
                    {
                        let (braces, next) = rest.split_at(end + 1);
                        out.push_str(braces);
                        rest = next;
                    }
                }
                class = class.after_character();
            }
            ('[', PatternClass::Outside) => {
                out.push('[');
                if let Some(next) = rest.strip_prefix('^') {
                    out.push('^');
                    rest = next;
                }
                class = PatternClass::First;
            }
            // First in a class it is a character.
            (']', PatternClass::First) => {
                out.push_str("\\]");
                class = PatternClass::Inside;
            }
            (']', PatternClass::Inside) => {
                out.push(']');
                class = PatternClass::Outside;
            }
            ('[', PatternClass::First | PatternClass::Inside) => {
                // [:alpha:] is the same in both; any other is a character in Go, and a class within the class here.
                match rest.find(":]").filter(|_| rest.starts_with(':')) {
                    Some(end) => {
                        let (name, next) = rest.split_at(end + 2);
                        out.push('[');
                        out.push_str(name);
                        rest = next;
                    }
                    None => out.push_str("\\["),
                }
                class = PatternClass::Inside;
            }
            // Twice, these are operators on classes here.
            ('&' | '~', PatternClass::First | PatternClass::Inside) => {
                out.push('\\');
                out.push(c);
                class = PatternClass::Inside;
            }
            ('-', PatternClass::First | PatternClass::Inside) => {
                // At either end a dash is a character.
                if class == PatternClass::First || rest.starts_with(']') {
                    out.push('\\');
                }
                out.push('-');
                class = PatternClass::Inside;
            }
            ('{', PatternClass::Outside) if !repeats(rest) => out.push_str("\\{"),
            (c, _) => {
                out.push(c);
                class = class.after_character();
            }
        }
    }
    out
}

/// Where in a pattern we are, as far as classes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PatternClass {
    Outside,
    /// Before its first character.
    First,
    Inside,
}

impl PatternClass {
    const fn after_character(self) -> Self {
        match self {
            Self::Outside => Self::Outside,
            Self::First | Self::Inside => Self::Inside,
        }
    }
}

/// Whether what follows a `{` makes it a repetition: `3}`, `3,}`, `3,5}`.
fn repeats(rest: &str) -> bool {
    let Some((inner, _)) = rest.split_once('}') else {
        return false;
    };
    let (low, high) = inner.split_once(',').unwrap_or((inner, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    #[test]
    fn a_pattern_means_the_same_as_in_go() {
        check(r"^SSH-2\.0-", "SSH-2.0-x", "SSH-2x0-x");
        check(
            r#"{"status": ?"ok"}"#,
            r#"{"status":"ok"}"#,
            r#""status":"ok""#,
        );
        check(r"a{2,3}$", "aa", "a{2,3}");
        check(r"a{,3}", "a{,3}", "aaa");
        check(r"a{x}", "a{x}", "aax");
        check(r"\Qa.b{\E+", "a.b{{", "axb{");
        check(r"\Qa.b", "a.b", "axb");
        check("^[[a]$", "[", "b");
        check("^[]a]+$", "]a", "b");
        check("^[^]a]$", "b", "]");
        check("^[a&&b]+$", "a&b", "c");
        check("^[+--]+$", "+,-", "a");
        check("^[a~~b]+$", "~", "-");
        check("^[-a]+$", "-a", "b");
        check("^[a-]+$", "-a", "b");
        check("^[[:alpha:]]+$", "ab", ":");
        check(r"^\p{Greek}\x{41}$", "αA", "aA");
        check(r"^[\p{Greek}\]]+$", "α]", "a");
        check("(?i)ok", "OK", "no");
    }

    #[test]
    fn a_pattern_that_cannot_be_is_refused_with_the_reason() {
        for bad in ["(", ":[", "*", r"\8", "[b-a]"] {
            let error = ours(bad).unwrap_err();
            assert!(error.contains("cannot be used: "), "{bad}: {error}");
        }
    }

    #[track_caller]
    fn check(go: &str, hit: &str, miss: &str) {
        let pattern = ours(go).unwrap();
        let regex = Regex::new(&pattern).unwrap();
        assert!(regex.is_match(hit), "{pattern} should match {hit}");
        assert!(!regex.is_match(miss), "{pattern} should not match {miss}");
    }
}
