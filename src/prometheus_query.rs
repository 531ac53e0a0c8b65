//! Users' requests, counted by Prometheus (`/api/v1/query` of its HTTP API).
//!
//! Invariant: a missing, stale or non-numeric value, or more than one, is unknown. No count is ever made up: a
//! monitoring system in trouble must look neither like an application without errors nor like one without users.

use std::time::Duration;

use serde_json::Value;

use crate::config::settings::RequestCountsConfig;
use crate::platform::http_client::{authorized, cause, client, excerpt, whole};

/// The largest answer that is read: of a query that gives one number.
const MAX_ANSWER: usize = 64 * 1024;

/// Failed requests and all of them, in the span that ends now.
///
/// # Errors
/// When nothing can be said, with the reason.
pub async fn count(settings: &RequestCountsConfig, span: Duration) -> Result<(u64, u64), String> {
    let failed = ask(settings, &settings.errors, span);
    let total = ask(settings, &settings.total, span);
    let (failed, total) = tokio::join!(failed, total);
    let failed = failed.map_err(|why| format!("errors: {why}"))?;
    let total = total.map_err(|why| format!("total: {why}"))?;
    // Both are extrapolated by Prometheus, each for itself.
    Ok((failed.min(total), total))
}

async fn ask(settings: &RequestCountsConfig, query: &str, span: Duration) -> Result<u64, String> {
    let mut url = settings.prometheus.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["api", "v1", "query"]);
    }
    let query = query.replace("$interval", &format!("{}s", span.as_secs()));
    url.query_pairs_mut().append_pair("query", &query);
    let http = client(&settings.tls, settings.timeout, None)?;
    let request = authorized(http.get(url), settings.auth.as_ref())?;
    let response = request.send().await.map_err(|error| cause(&error))?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!(
            "Prometheus says {status}: {}",
            excerpt(response).await
        ));
    }
    let answer: Value = serde_json::from_slice(&whole(response, MAX_ANSWER).await?)
        .map_err(|error| format!("the answer is not Prometheus': {error}"))?;
    number(&answer)
}

/// The one number of an answer.
fn number(answer: &Value) -> Result<u64, String> {
    if answer["status"] != "success" {
        return Err("the answer is not Prometheus'".into());
    }
    let data = &answer["data"];
    let value = match data["resultType"].as_str() {
        Some("scalar") => &data["result"],
        Some("vector") => {
            let rows = data["result"].as_array().map_or(0, Vec::len);
            match rows {
                0 => return Err("there are no such series, or none that is fresh".into()),
                1 => &data["result"][0]["value"],
                _ => return Err(format!("it gives {rows} numbers; sum them")),
            }
        }
        _ => return Err("it gives no single number".into()),
    };
    let number: Option<f64> = value[1].as_str().and_then(|text| text.parse().ok());
    match number {
        // Far below 2^53, so that it is exact.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Some(number) if (0.0..1e15).contains(&number) => Ok(number.round() as u64),
        Some(number) => Err(format!("{number} is no count")),
        None => Err("it gives no number".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::number;

    fn vector(values: &[&str]) -> serde_json::Value {
        let rows: Vec<_> = values
            .iter()
            .map(|value| json!({"metric": {}, "value": [1, value]}))
            .collect();
        json!({"status": "success", "data": {"resultType": "vector", "result": rows}})
    }

    #[test]
    fn only_a_single_count_counts() {
        assert_eq!(number(&vector(&["12.4"])), Ok(12));
        assert_eq!(number(&vector(&["0"])), Ok(0));
        let scalar =
            json!({"status": "success", "data": {"resultType": "scalar", "result": [1, "7"]}});
        assert_eq!(number(&scalar), Ok(7));
        for wrong in [
            vector(&[]),
            vector(&["1", "2"]),
            vector(&["NaN"]),
            vector(&["-1"]),
            vector(&["+Inf"]),
            vector(&["x"]),
            json!({}),
            json!({"status": "error"}),
            json!([]),
        ] {
            assert!(number(&wrong).is_err(), "{wrong}");
        }
    }
}
