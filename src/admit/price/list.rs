//! Reads price lists: the one that comes with the relay, and one of the operator's own, whose rows take its rows' places. And
//! says what to think of one: models without a price, prices that are old.
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{PriceList, Row, Usd};
use crate::config::{Config, Moment};

/// The list that comes with the relay.
const OURS: &str = include_str!("../../../assets/prices.toml");
/// Its name in error texts.
const OURS_NAME: &str = "assets/prices.toml";
/// Prices that are older are doubted, days.
const OLD: u64 = 180;
const DAY: u64 = 86_400;
/// What a million tokens may cost at most, USD.
const MOST: Usd = Usd::from_pico(1_000_000_000_000_000_000);
/// Pico-dollars a token for each dollar a million.
const MILLION: i128 = 1_000_000;
/// What a batch costs where a row does not say: half (OpenAI's Batch guide, read 2026-11-28).
const USUAL_BATCH_PERCENT: u32 = 50;
/// Prices a row may have, for a million tokens.
const PRICES: &str = "text_in, text_cached, text_cache_write, text_out, audio_in, audio_cached, audio_out, image_in, image_cached, or minute";

/// Why a price list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// The file cannot be read.
    #[error("prices.file: cannot read `{}`: {source}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no TOML.
    #[error("price list `{}`: {problem}", file.display())]
    Parse {
        /// Which.
        file: PathBuf,
        /// What the parser says, with line and column.
        problem: String,
    },
    /// A value in it cannot be.
    #[error("price list `{}`: {place}: {problem}", file.display())]
    Row {
        /// Which.
        file: PathBuf,
        /// Row and field.
        place: String,
        /// What was found and what is allowed.
        problem: String,
    },
}

impl PriceList {
    /// The relay's own list, with the rows of `file` in place of its own.
    ///
    /// # Errors
    /// When the file cannot be read, or something in it cannot be: nothing of it counts then.
    pub fn load(file: Option<&Path>) -> Result<Self, PriceError> {
        let mut rows = read(OURS, Path::new(OURS_NAME))?;
        if let Some(file) = file.filter(|file| !file.as_os_str().is_empty()) {
            let text = std::fs::read_to_string(file);
            let text = text.map_err(|source| PriceError::Read { file: file.to_owned(), source })?;
            rows.extend(read(&text, file)?);
        }
        Ok(Self { rows })
    }
}

/// Where something is wrong, and what.
type Wrong = (String, String);

fn read(text: &str, file: &Path) -> Result<BTreeMap<String, Row>, PriceError> {
    let table: Table = toml::from_str(text).map_err(|error| PriceError::Parse {
        file: file.to_owned(),
        problem: error.to_string().trim_end().to_owned(),
    })?;
    rows(table).map_err(|(place, problem)| PriceError::Row { file: file.to_owned(), place, problem })
}

fn rows(mut table: Table) -> Result<BTreeMap<String, Row>, Wrong> {
    let models = match table.remove("models") {
        Some(Value::Table(models)) => models,
        None => Table::new(),
        Some(other) => return Err(("models".to_owned(), found(&other, "tables such as [models.\"gpt-transcribe\"]"))),
    };
    if let Some(other) = table.keys().next() {
        return Err((other.clone(), "unknown; known: models".to_owned()));
    }
    let read = |(name, row): (String, Value)| {
        let place = format!("models.\"{name}\"");
        let row = match row {
            Value::Table(fields) => row_of(&fields),
            other => Err((String::new(), found(&other, "a table"))),
        };
        let row = row.map_err(|(field, problem)| match field.as_str() {
            "" => (place, problem),
            field => (format!("{place}.{field}"), problem),
        })?;
        Ok((name, row))
    };
    models.into_iter().map(read).collect()
}

fn row_of(fields: &Table) -> Result<Row, Wrong> {
    let as_of = text(fields, "as_of").map_err(at("as_of"))?;
    let day = format!("{as_of}T00:00:00Z").parse::<Moment>();
    let day = day.map_err(|_| at("as_of")(format!("found `{as_of}`; allowed: a day such as 2026-11-21")))?;
    let source = text(fields, "source").map_err(at("source"))?;
    let mut row = Row {
        as_of,
        as_of_unix: day.0,
        source,
        text: Default::default(),
        audio: Default::default(),
        image: Default::default(),
        minute: None,
        batch_percent: USUAL_BATCH_PERCENT,
    };
    let (mut tokens, mut minute) = (false, false);
    for (field, value) in fields {
        let rate = match field.as_str() {
            "as_of" | "source" => continue,
            "minute" => {
                row.minute = Some(price(value).map_err(at(field))?);
                minute = true;
                continue;
            }
            "batch_percent" => {
                let percent = value.as_integer().and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=100).contains(n));
                row.batch_percent =
                    percent.ok_or_else(|| at(field)(found(value, "a whole number of percent, 1 to 100")))?;
                continue;
            }
            "text_in" => &mut row.text.fresh,
            "text_cached" => &mut row.text.cached,
            "text_cache_write" => &mut row.text.written,
            "text_out" => &mut row.text.out,
            "audio_in" => &mut row.audio.fresh,
            "audio_cached" => &mut row.audio.cached,
            "audio_out" => &mut row.audio.out,
            "image_in" => &mut row.image.fresh,
            "image_cached" => &mut row.image.cached,
            _ => return Err(at(field)(format!("unknown; known: as_of, source, batch_percent, {PRICES}"))),
        };
        *rate = Some(price(value).and_then(a_token).map_err(at(field))?);
        tokens = true;
    }
    match (tokens, minute) {
        (false, false) => Err(at("")(format!("no price; wanted at least one of {PRICES}"))),
        (true, true) => Err(at("minute")("allowed: prices for tokens, or one for a minute, not both".to_owned())),
        _ => Ok(row),
    }
}

/// Names the field of a problem.
fn at(field: &str) -> impl Fn(String) -> Wrong {
    move |problem| (field.to_owned(), problem)
}

fn text(fields: &Table, field: &str) -> Result<String, String> {
    match fields.get(field) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
        Some(other) => Err(found(other, "a text in quotes")),
        None => Err("missing".to_owned()),
    }
}

fn price(value: &Value) -> Result<Usd, String> {
    let Value::String(text) = value else {
        return Err(found(value, "an amount in USD in quotes, such as \"0.40\", so that no digit is lost"));
    };
    let usd: Usd = text.parse()?;
    if usd > MOST { Err(format!("found `{text}`; allowed: up to {MOST} USD")) } else { Ok(usd) }
}

/// Pico-dollars a token, of what a million of them cost.
fn a_token(million: Usd) -> Result<u64, String> {
    let exact = (million.pico() % MILLION == 0).then_some(million.pico() / MILLION);
    exact
        .and_then(|rate| u64::try_from(rate).ok())
        .ok_or_else(|| format!("found `{million}`; allowed: at most six digits after the point"))
}

fn found(value: &Value, allowed: &str) -> String {
    format!("found {value}; allowed: {allowed}")
}

/// What an operator should know of the prices for what is configured, at `unix` seconds: models without one, and old ones.
pub fn doubts(config: &Config, prices: &PriceList, unix: u64) -> Vec<String> {
    let (mut none, mut old) = (Vec::new(), BTreeMap::<(&str, &str), Vec<String>>::new());
    for model in models(config) {
        match prices.row(model) {
            None => none.push(format!("`{model}`")),
            Some(row) if unix.saturating_sub(row.as_of_unix) > OLD * DAY => {
                old.entry((&row.as_of, &row.source)).or_default().push(format!("`{model}`"));
            }
            Some(_) => {}
        }
    }
    let mut doubts = Vec::new();
    if !none.is_empty() {
        let models = none.join(", ");
        doubts.push(format!(
            "no price is known for {models}: what they cost is unknown in the ledger; prices.file may name it"
        ));
    }
    doubts.extend(old.into_iter().map(|((as_of, source), models)| {
        let models = models.join(", ");
        format!("the prices for {models} are of {as_of}, older than {OLD} days (source: {source}); prices.file may name newer ones")
    }));
    doubts
}

/// Every model that the configuration names, and that may be used.
fn models(config: &Config) -> BTreeSet<&str> {
    let upstreams = std::iter::once(&config.upstream).chain(config.upstreams.values());
    let agents = config.agents.values().flat_map(|agent| agent.model.iter().chain(&agent.transcription));
    let tenants = config.tenants.values().flat_map(|tenant| &tenant.models);
    let routes = config.tiers.values().flat_map(|tier| tier.routes.iter().map(|route| &route.model));
    let canaries = config.tiers.values().filter_map(|tier| tier.canary.as_ref().map(|canary| &canary.model));
    let named = agents.chain(tenants).chain(config.openai.models.values()).chain(routes).chain(canaries);
    let named = named.map(String::as_str).filter(|name| !config.tiers.contains_key(*name));
    upstreams.map(|upstream| upstream.model.as_str()).chain(named).collect()
}
