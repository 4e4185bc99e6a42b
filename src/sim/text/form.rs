//! What is uploaded to be transcribed: the form, field by field, and what of it the model takes.
use axum::{
    extract::{FromRequest as _, Multipart, Request, multipart::Field},
    http::StatusCode,
};

use super::{
    super::{rest::No, validate::Refusal},
    visit::{no_model, too_large},
};

/// Longest text field, bytes.
const MAX_FIELD: usize = 64 << 10;
/// File names that the service takes end so.
const EXTENSIONS: [&str; 10] = ["flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm"];
/// Also taken, since so people call Ogg files of Opus (a guess).
const OPUS: &str = "opus";

/// How the transcript is to be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Format {
    #[default]
    Json,
    Text,
    Srt,
    VerboseJson,
    Vtt,
    DiarizedJson,
}

const FORMATS: [(&str, Format); 6] = [
    ("json", Format::Json),
    ("text", Format::Text),
    ("srt", Format::Srt),
    ("verbose_json", Format::VerboseJson),
    ("vtt", Format::Vtt),
    ("diarized_json", Format::DiarizedJson),
];

impl Format {
    fn name(self) -> &'static str {
        FORMATS.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }

    /// What a model can write; what the newest one can beside JSON is a guess.
    fn fits(self, model: &str) -> bool {
        match self {
            Self::Json => true,
            Self::Text => !model.contains("4o") || diarizes(model),
            Self::DiarizedJson => diarizes(model),
            Self::Srt | Self::VerboseJson | Self::Vtt => model.starts_with("whisper"),
        }
    }
}

/// Whether a model tells who speaks.
pub(super) fn diarizes(model: &str) -> bool {
    model.ends_with("-diarize")
}

/// An upload.
#[derive(Debug, Default)]
pub(super) struct Form {
    pub(super) file: Vec<u8>,
    pub(super) name: String,
    pub(super) model: String,
    pub(super) format: Format,
    pub(super) stream: bool,
    pub(super) logprobs: bool,
    /// `timestamp_granularities[]` has these.
    pub(super) words: bool,
    pub(super) segments: bool,
    pub(super) languages: Vec<String>,
    /// `prompt` and `keywords[]`: what is paid for as text.
    pub(super) hints: String,
    pub(super) chunked: bool,
}

impl Form {
    /// Reads an upload; files of more than `most` bytes are too large.
    pub(super) async fn read(request: Request, most: usize) -> Result<Self, No> {
        let broken = || No::bad(Refusal::new("invalid_multipart", "Could not parse multipart form"));
        let mut multipart = Multipart::from_request(request, &()).await.map_err(|_| broken())?;
        let (mut form, mut has_file) = (Self::default(), false);
        while let Some(field) = multipart.next_field().await.map_err(|_| broken())? {
            let name = field.name().unwrap_or_default().to_owned();
            if name == "file" {
                form.name = field.file_name().unwrap_or_default().to_owned();
                form.file = upload(field, most).await?;
                has_file = true;
            } else {
                let value = upload(field, MAX_FIELD).await?;
                let value = String::from_utf8(value).map_err(|_| broken())?;
                form.set(&name, value).map_err(No::bad)?;
            }
        }
        if !has_file {
            return Err(No::bad(Refusal::missing("file")));
        }
        form.check()?;
        Ok(form)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), Refusal> {
        match name {
            "model" => self.model = value,
            "language" | "languages" | "languages[]" => {
                if !(2..=3).contains(&value.split('-').next().unwrap_or_default().len()) {
                    let message = format!(
                        "Invalid language '{}'. Language parameter must be specified in ISO-639-1 format.",
                        super::super::validate::shorten(&value)
                    );
                    return Err(Refusal::new("invalid_language_format", message).at("language"));
                }
                self.languages.push(value);
            }
            "prompt" | "keywords" | "keywords[]" => {
                self.hints.push_str(&value);
                self.hints.push(' ');
            }
            "response_format" => self.format = choice("response_format", &value, &FORMATS)?,
            "temperature" => {
                if !value.parse::<f64>().is_ok_and(|degree| (0.0..=1.0).contains(&degree)) {
                    let message = format!("Invalid 'temperature': expected a decimal from 0 to 1, but got '{value}'.");
                    return Err(Refusal::new("invalid_value", message).at("temperature"));
                }
            }
            "timestamp_granularities" | "timestamp_granularities[]" => {
                let words = choice("timestamp_granularities", &value, &[("word", true), ("segment", false)])?;
                (self.words, self.segments) = (self.words | words, self.segments | !words);
            }
            "chunking_strategy" | "chunking_strategy[type]" => {
                let object = value.trim_start().starts_with('{') && value.contains("server_vad");
                if !object {
                    choice("chunking_strategy", &value, &[("auto", ()), ("server_vad", ())])?;
                }
                self.chunked = true;
            }
            "include" | "include[]" => {
                choice("include", &value, &[("logprobs", ())])?;
                self.logprobs = true;
            }
            "stream" => self.stream = choice("stream", &value, &[("true", true), ("false", false)])?,
            // Details of a strategy or of known speakers change nothing here.
            name if name.starts_with("chunking_strategy[") || name.starts_with("known_speaker") => {}
            other => return Err(Refusal::unknown(&super::super::validate::shorten(other))),
        }
        Ok(())
    }

    /// Whether the parts fit each other and the model.
    fn check(&mut self) -> Result<(), No> {
        if self.model.is_empty() {
            return Err(No::bad(Refusal::missing("model")));
        }
        if !["transcribe", "whisper"].iter().any(|kind| self.model.contains(kind)) {
            return Err(no_model(&self.model));
        }
        if ["live", "realtime"].iter().any(|kind| self.model.contains(kind)) {
            let message = format!("The model `{}` is not supported with this endpoint.", self.model);
            return Err(No::bad(Refusal::new("invalid_value", message).at("model")));
        }
        if !self.format.fits(&self.model) {
            let message = format!(
                "response_format '{}' is not compatible with model '{}'. Use 'json' instead.",
                self.format.name(),
                self.model
            );
            return Err(No::bad(Refusal::new("unsupported_value", message).at("response_format")));
        }
        if (self.words || self.segments) && self.format != Format::VerboseJson {
            let message = "timestamp_granularities are only supported with response_format 'verbose_json'.";
            return Err(No::bad(Refusal::new("invalid_value", message).at("timestamp_granularities")));
        }
        if self.model.starts_with("whisper") {
            self.stream = false; // the service ignores it there, and answers at once
        }
        let extension = self.name.rsplit_once('.').map(|(_, end)| end.to_ascii_lowercase()).unwrap_or_default();
        if extension != OPUS && !EXTENSIONS.contains(&extension.as_str()) {
            let message = format!("Invalid file format. Supported formats: {EXTENSIONS:?}").replace('"', "'");
            return Err(No::bad(Refusal { code: None, ..Refusal::new("", message) }));
        }
        Ok(())
    }
}

fn choice<T: Copy>(field: &str, found: &str, allowed: &[(&str, T)]) -> Result<T, Refusal> {
    let names: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
    let known = allowed.iter().find(|(name, _)| *name == found).map(|(_, meaning)| *meaning);
    known.ok_or_else(|| Refusal::choice(field, found, &names))
}

/// A field's bytes. One that is too long is read to its end, so that the client hears why.
pub(super) async fn upload(mut field: Field<'_>, most: usize) -> Result<Vec<u8>, No> {
    let (mut bytes, mut length) = (Vec::new(), 0_u64);
    let broken =
        |_| No::new(StatusCode::BAD_REQUEST, Refusal::new("invalid_multipart", "Could not parse multipart form"));
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        length += chunk.len() as u64;
        match length <= most as u64 {
            true => bytes.extend_from_slice(&chunk),
            false => bytes = Vec::new(),
        }
    }
    if length > most as u64 {
        return Err(too_large(most, Some(length)));
    }
    Ok(bytes)
}
