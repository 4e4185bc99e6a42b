//! `[[fault]]` tables, read key by key, so that each mistake is told with its line and with what is allowed.
use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Spanned, Value};

use super::Nth;

/// Reads a script: its `seed`, and each `[[fault]]` as `fault` understands it, which is given the keys and the `kind`.
///
/// # Errors
/// What is wrong, with the line and what is allowed.
pub(crate) fn read<F>(
    text: &str,
    fault: impl Fn(&mut Keys<'_>, &str) -> Result<F, String>,
) -> Result<(u64, Vec<F>), String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        seed: u64,
        #[serde(default)]
        fault: Vec<Spanned<BTreeMap<String, Spanned<Value>>>>,
    }
    let file: File = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    let list = file.fault.into_iter().map(|table| {
        let line = line_of(text, table.span().start);
        let mut keys = Keys { text, line, keys: table.into_inner(), asked: Vec::new() };
        let kind = keys.text("kind")?.ok_or_else(|| format!("line {line}: a fault needs a `kind`"))?;
        let read = fault(&mut keys, &kind)?;
        keys.finish(&kind)?;
        Ok(read)
    });
    Ok((file.seed, list.collect::<Result<_, String>>()?))
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|b| *b == b'\n').count() + 1
}

/// One `[[fault]]` table that is being read.
#[derive(Debug)]
pub(crate) struct Keys<'t> {
    text: &'t str,
    /// Where it begins.
    line: usize,
    keys: BTreeMap<String, Spanned<Value>>,
    asked: Vec<&'static str>,
}

impl Keys<'_> {
    fn finish(&self, kind: &str) -> Result<(), String> {
        match self.keys.first_key_value() {
            None => Ok(()),
            Some((key, value)) => Err(format!(
                "line {}: fault `{kind}` has no key `{key}` here; it has: {}",
                line_of(self.text, value.span().start),
                self.asked.join(", ")
            )),
        }
    }

    /// A mistake of the table as a whole.
    pub(crate) fn mistake<T>(&self, what: impl std::fmt::Display) -> Result<T, String> {
        Err(format!("line {}: {what}", self.line))
    }

    /// A `kind` that nobody knows.
    pub(crate) fn unknown_kind<T>(&self, found: &str, allowed: &[&str]) -> Result<T, String> {
        self.mistake(format_args!("fault kind `{found}` is not known; allowed: {}", allowed.join(", ")))
    }

    /// One of several words.
    pub(crate) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Result<Option<T>, String> {
        let Some((line, value)) = self.take(key) else { return Ok(None) };
        match words.iter().find(|(word, _)| value.as_str() == Some(word)) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let allowed: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                Self::wrong(line, key, &value, &allowed.join(", "))
            }
        }
    }

    /// A whole number with a sign.
    pub(crate) fn signed(&mut self, key: &'static str) -> Result<Option<i64>, String> {
        match self.take(key) {
            None => Ok(None),
            Some((_, Value::Integer(number))) => Ok(Some(number)),
            Some((line, other)) => Self::wrong(line, key, &other, "a whole number"),
        }
    }

    fn take(&mut self, key: &'static str) -> Option<(usize, Value)> {
        self.asked.push(key);
        let value = self.keys.remove(key)?;
        Some((line_of(self.text, value.span().start), value.into_inner()))
    }

    fn wrong<T>(line: usize, key: &str, found: &Value, allowed: &str) -> Result<T, String> {
        Err(format!("line {line}: `{key}` is {found}; allowed: {allowed}"))
    }

    /// A text.
    pub(crate) fn text(&mut self, key: &'static str) -> Result<Option<String>, String> {
        match self.take(key) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((line, other)) => Self::wrong(line, key, &other, "a text in quotes"),
        }
    }

    /// True or false.
    pub(crate) fn flag(&mut self, key: &'static str) -> Result<Option<bool>, String> {
        match self.take(key) {
            None => Ok(None),
            Some((_, Value::Boolean(flag))) => Ok(Some(flag)),
            Some((line, other)) => Self::wrong(line, key, &other, "true or false"),
        }
    }

    /// A whole number, both ends included.
    pub(crate) fn integer(&mut self, key: &'static str, min: u64, max: u64) -> Result<Option<u64>, String> {
        let Some((line, value)) = self.take(key) else { return Ok(None) };
        match value.as_integer().and_then(|n| u64::try_from(n).ok()) {
            Some(n) if (min..=max).contains(&n) => Ok(Some(n)),
            _ if max > 1 << 40 => Self::wrong(line, key, &value, &format!("a whole number from {min}")),
            _ => Self::wrong(line, key, &value, &format!("a whole number from {min} to {max}")),
        }
    }

    /// A small one.
    pub(crate) fn small(&mut self, key: &'static str, min: u16, max: u16) -> Result<Option<u16>, String> {
        Ok(self.integer(key, min.into(), max.into())?.and_then(|n| u16::try_from(n).ok()))
    }

    /// How often (`count`), and how often it usually is.
    pub(crate) fn count(&mut self, usual: u64, max: u64) -> Result<u64, String> {
        Ok(self.integer("count", 1, max)?.unwrap_or(usual))
    }

    /// How long (`for_ms`), ms.
    pub(crate) fn span(&mut self) -> Result<Option<u64>, String> {
        self.integer("for_ms", 1, 86_400_000)
    }

    /// A share of one.
    pub(crate) fn share(&mut self, key: &'static str) -> Result<Option<f64>, String> {
        let Some((line, value)) = self.take(key) else { return Ok(None) };
        let found = match &value {
            Value::Float(share) => Some(*share),
            Value::Integer(1) => Some(1.0),
            _ => None,
        };
        match found {
            Some(share) if (0.0..=1.0).contains(&share) => Ok(Some(share)),
            _ => Self::wrong(line, key, &value, "a number from 0.0 to 1.0"),
        }
    }

    /// Which of several.
    pub(crate) fn nth(&mut self, key: &'static str) -> Result<Option<Nth>, String> {
        match self.take(key) {
            None => Ok(None),
            Some((_, Value::Integer(n))) if n >= 1 => Ok(Some(Nth::At(n.unsigned_abs()))),
            Some((_, Value::String(text))) if text == "each" => Ok(Some(Nth::Each)),
            Some((line, other)) => Self::wrong(line, key, &other, "a number from 1, or \"each\""),
        }
    }
}
