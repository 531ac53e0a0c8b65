//! The prober against a server that does as it is told.
//!
//! Tests are named after the scenarios that every good prober is held to. Those about an answer that has come (A…, and
//! parts of S… and G…) are beside `result::judge` and `result::json`. Refused on purpose, so without a test:
//!
//! | row | why |
//! |---|---|
//! | T04, T05: a target that is percent-encoded once more | a URL is decoded once; [`addresses`] shows that it is an error and no guess |
//! | M09: DNS and gRPC | other probers do that; ours speaks HTTP and TCP |
//! | B12: a body above the limit is good and cut | a body that was not read cannot be judged: too_large |
//! | S21: a redirect that may not be followed is a warning | there is no third outcome: bad, with the reason redirect |
//! | S22: 308 without a usable Location is a warning | the same |
//! | T13: a proxy from the environment | a prober that follows the environment measures another thing on each machine; [`addresses`] shows that ours does not |
//! | X11: HTTP/3 | not spoken; `http_versions` takes none, so the configuration refuses it |
//! | R07, G21: OAuth2 | tokens are fetched by those whose work that is, and read from a file that is re-read when it changes |
//! | R08: a unique id per request in a header | headers are fixed; the target's own access log has the time and the User-Agent |
//! | G22, G23: reminders and thresholds of alerts | Alertmanager's work |
//!
//! T08 and T09 use an address of one family in the place of a name that has only such addresses: no test may depend on
//! the names that a machine knows.

mod addresses;
mod assertions;
mod bodies;
mod families;
mod floods;
mod garbage;
mod goodbye;
mod hostile;
mod kept;
mod proxies;
mod redirects;
mod requests;
mod status;
mod tcp;
mod timeouts;
mod tls;
