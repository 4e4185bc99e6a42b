//! `GET /v1/usage`: what a tenant has used, and what it cost, summed up from the ledger as `voxrelay usage --json` says it.
//!
//! The file is read by a thread that may wait, a few at once, within a time and up to a number of sums.
use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode, Uri},
    routing::get,
};
use clap::ValueEnum as _;
use serde_json::{Value, json};
use tokio::{
    task::spawn_blocking,
    time::{self, Instant},
};

use super::calls::{admin, answer};
use crate::{
    config::Moment,
    ledger::sums::{Ask, By, Report, report},
    serve::{Shared, fields, refusal::Refusal},
};

/// Readers at once; more wait.
pub(crate) const READERS: usize = 2;
/// Longest wait of whoever asks.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most sums in an answer.
const MOST: usize = 1_000;
/// What is to be waited for, after trouble with the file.
const RETRY: Duration = Duration::from_secs(5);

pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/v1/usage", get(usage))
}

async fn usage(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let uri = request.uri().clone();
    let asked = match admin(&shared, request).await {
        Ok(who) => ask(&shared, &uri, who.tenant_id()).await,
        Err(refusal) => Err(refusal),
    };
    answer(asked)
}

async fn ask(shared: &Shared, uri: &Uri, tenant: &str) -> Result<Value, Refusal> {
    let end = Instant::now() + PATIENCE;
    let ask = Ask { tenant: Some(tenant.to_owned()), patience: Some(end), ..read(uri)? };
    let file = shared.config.ledger.file.clone().filter(|file| !file.as_os_str().is_empty()).ok_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, "no_ledger", "this relay does not write down what is used".to_owned())
    })?;
    let turn = match time::timeout_at(end, shared.readers.clone().acquire_owned()).await {
        Ok(Ok(turn)) => turn,
        _ => return Err(unreadable("others read the ledger; ask again later")),
    };
    let asked = ask.clone();
    // Whoever leaves meanwhile does not make room for another one before the file is read.
    let work = move || {
        let found = report(&file, &asked);
        drop(turn);
        found
    };
    let read = spawn_blocking(work).await;
    let found = read.map_err(|_| unreadable("the ledger cannot be read now"))?.map_err(|error| {
        // Where the file is, is nobody's business outside.
        tracing::warn!(%error, "the ledger cannot be read");
        unreadable("the ledger cannot be read now, or not within 10 s; ask again later, or for a shorter time")
    })?;
    told(&ask, &found)
}

fn unreadable(message: &str) -> Refusal {
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "accounting_unavailable", message.to_owned());
    Refusal { retry_after: Some(RETRY), ..refusal }
}

fn told(ask: &Ask, found: &Report) -> Result<Value, Refusal> {
    if found.sums.len() > MOST {
        let message = format!("these are more than {MOST} sums: ask for a shorter time with `since` and `until`");
        return Err(Refusal { field: Some("since"), ..invalid(message) });
    }
    let total = found.total.as_ref().map(|total| Value::Object(total.record(ask.by)));
    let sums: Vec<Value> = found.sums.iter().map(|sum| Value::Object(sum.record(ask.by))).collect();
    Ok(json!({"by": ask.by.names().last(), "usage": sums, "total": total}))
}

fn invalid(message: String) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", message)
}

/// What is asked for. Unknown fields are refused: a misspelt `since` would be all there ever was.
fn read(uri: &Uri) -> Result<Ask, Refusal> {
    let mut ask = Ask { since: None, until: None, tenant: None, by: By::Tenant, most: Some(MOST + 1), patience: None };
    for (name, value) in fields(uri).map_err(invalid)? {
        let field = |field, message| Err(Refusal { field: Some(field), ..invalid(message) });
        match name.as_str() {
            "by" => match By::from_str(&value, false) {
                Ok(by) => ask.by = by,
                Err(_) => return field("by", format!("`by` must be one of {}", kinds())),
            },
            "since" | "until" => {
                let Ok(Moment(unix)) = Moment::day_or_moment(&value) else {
                    let message =
                        format!("`{name}` must be a day or a moment, such as 2027-01-31 or 2027-01-31T12:00:00Z");
                    return field(if name == "since" { "since" } else { "until" }, message);
                };
                let ms = Some(unix.saturating_mul(1_000));
                if name == "since" { ask.since = ms } else { ask.until = ms }
            }
            _ => {
                let name: String = name.chars().take(64).collect();
                return Err(invalid(format!("unknown field `{name}`; known: by, since, until")));
            }
        }
    }
    match (ask.since, ask.until) {
        (Some(since), Some(until)) if since >= until => {
            Err(Refusal { field: Some("until"), ..invalid("`until` must be later than `since`".to_owned()) })
        }
        _ => Ok(ask),
    }
}

fn kinds() -> String {
    let names = By::value_variants().iter().filter_map(|by| by.to_possible_value());
    names.map(|value| value.get_name().to_owned()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::sums::Sum;

    fn asked(query: &str) -> Result<Ask, Refusal> {
        read(&format!("/v1/usage?{query}").parse().unwrap())
    }

    #[test]
    fn a_question_is_read_and_one_that_makes_no_sense_is_named() {
        let ask = asked("by=day&since=2027-01-31&until=2027-01-31T12:00:00Z").unwrap();
        assert_eq!((ask.by, ask.since, ask.until), (By::Day, Some(1_801_353_600_000), Some(1_801_396_800_000)));
        assert_eq!(asked("").unwrap().by, By::Tenant);
        for (query, name, part) in [
            ("by=colour", Some("by"), "tenant, key, user, agent, model, route, call, day"),
            ("since=soon", Some("since"), "2027-01-31"),
            ("until=", Some("until"), "2027-01-31"),
            ("since=2027-01-31&until=2027-01-31", Some("until"), "later than"),
            ("tenant=other", None, "unknown field `tenant`; known: by, since, until"),
        ] {
            let refusal = asked(query).unwrap_err();
            assert_eq!((refusal.field, refusal.status.as_u16(), refusal.code), (name, 400, "invalid_query"), "{query}");
            assert!(refusal.message.contains(part), "{query}: {}", refusal.message);
        }
    }

    #[test]
    fn too_much_is_refused_and_not_cut() {
        let ask = asked("by=agent").unwrap();
        let sum = Sum { names: vec!["a".to_owned()], ..Sum::default() };
        let found = |count| Report { sums: vec![sum.clone(); count], total: Some(Sum::default()) };
        let told_of = told(&ask, &found(MOST)).unwrap();
        assert_eq!((told_of["usage"].as_array().unwrap().len(), &told_of["by"]), (MOST, &json!("agent")));
        assert_eq!(told_of["usage"][0]["cost_usd"], "0");
        assert_eq!(told(&ask, &found(MOST + 1)).unwrap_err().field, Some("since"));
    }
}
