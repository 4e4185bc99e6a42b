//! Who gets a session. The service answers 101 to everybody and then says no with an `error` event and a close code.
use serde_json::{Value, json};

use super::{
    config::{Model, Shape, SimConfig},
    validate::{INVALID_REQUEST, Refusal, shorten},
};

/// What a client brings along to the upgrade.
#[derive(Debug, Clone, Default)]
pub struct Knock {
    /// Its key, from the header or the subprotocol.
    pub key: Option<String>,
    /// The key that made it, where it is a client secret: that one pays.
    pub account: Option<String>,
    /// `?model=`.
    pub model: Option<String>,
    /// `?intent=`.
    pub intent: Option<String>,
    /// It asks for the beta shape, by header or subprotocol.
    pub beta: bool,
    /// It came by the path of Azure's preview, which has that shape.
    pub preview: bool,
    /// Its key is a client secret: the session that was configured with it; or it joins a call that has this one.
    pub session: Option<Value>,
    /// Its key looks like a client secret, and is none or has expired.
    pub unknown_secret: bool,
    /// It joins a call by its id.
    pub joins: bool,
}

impl Knock {
    /// Who pays.
    pub(super) fn account(&self) -> &str {
        self.account.as_deref().or(self.key.as_deref()).unwrap_or_default()
    }
}

/// Why there will be no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejected {
    pub(super) refusal: Refusal,
    pub(super) close_code: u16,
}

impl Rejected {
    fn new(close_code: u16, refusal: Refusal) -> Self {
        Self { refusal, close_code }
    }

    /// The close reason: `type.code`, or the type alone.
    pub(super) fn reason(&self) -> String {
        match &self.refusal.code {
            Some(code) => format!("{}.{code}", self.refusal.kind),
            None => self.refusal.kind.clone().into_owned(),
        }
    }
}

/// What kind of session a client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Admitted {
    /// It speaks with this model.
    Voice(Model),
    /// It writes down what it hears.
    Transcription,
}

/// Decides like the service does.
///
/// # Errors
/// With the error event and the close code, in the order key, shape, model, credit.
pub(super) fn admit(config: &SimConfig, knock: &Knock) -> Result<Admitted, Rejected> {
    let key = key(config, knock)?;
    if knock.beta && !knock.preview && config.shape == Shape::Ga {
        let message = "The Realtime Beta API is no longer supported. Please use the GA API: leave out the OpenAI-Beta \
                       header.";
        return Err(Rejected::new(4_000, Refusal::new("beta_api_shape_disabled", message)));
    }
    let set = |field: &str| knock.session.as_ref().and_then(|session| session.get(field)?.as_str());
    match (knock.intent.as_deref().or(set("type").filter(|_| knock.model.is_none())), knock.model.as_deref()) {
        (None | Some("realtime"), _) => {}
        (Some("transcription"), None) => return Ok(Admitted::Transcription),
        (Some("transcription"), Some(_)) => {
            let message = "You must not provide a model parameter for transcription sessions.";
            return Err(Rejected::new(4_000, Refusal::new("invalid_model", message).at("model")));
        }
        (Some(intent), _) => {
            let refusal = Refusal::choice("intent", intent, &["realtime", "transcription"]);
            return Err(Rejected::new(4_000, refusal));
        }
    }
    let Some(name) = knock.model.as_deref().filter(|model| !model.is_empty()).or(set("model")) else {
        let message = "You must provide a model parameter.";
        return Err(Rejected::new(4_000, Refusal::new("missing_model", message).at("model")));
    };
    if config.retired(name) {
        let message = format!("The model `{}` does not exist or you do not have access to it.", shorten(name));
        return Err(Rejected::new(4_004, Refusal::new("model_not_found", message).at("model")));
    }
    let Some(model) = config.model(name) else {
        let message = format!("Model \"{}\" is not supported in realtime mode.", shorten(name));
        return Err(Rejected::new(4_000, Refusal::new("invalid_model", message).at("model")));
    };
    if config.quota_keys.iter().any(|poor| poor == key) || config.quota_models.iter().any(|poor| poor == name) {
        let message = "You exceeded your current quota, please check your plan and billing details.";
        let mut refusal = Refusal::new("insufficient_quota", message);
        refusal.kind = "insufficient_quota".into();
        return Err(Rejected::new(1_013, refusal));
    }
    Ok(Admitted::Voice(model))
}

/// The key, if it is a good one.
pub(super) fn key<'k>(config: &SimConfig, knock: &'k Knock) -> Result<&'k str, Rejected> {
    let key = knock.key.as_deref().filter(|key| !key.is_empty()).ok_or_else(no_key)?;
    if knock.unknown_secret || key.starts_with("sk-bad") || config.bad_keys.iter().any(|bad| bad == key) {
        return Err(bad_key(key));
    }
    Ok(key)
}

fn no_key() -> Rejected {
    let message = "Missing bearer or basic authentication in header.";
    Rejected::new(3_000, Refusal { kind: INVALID_REQUEST.into(), code: None, message: message.into(), param: None })
}

fn bad_key(key: &str) -> Rejected {
    // The service shows the key's two ends; so must we, for clients to prove that they redact it.
    let head: String = key.chars().take(6).collect();
    let tail: String = key.chars().rev().take(4).collect::<Vec<_>>().into_iter().rev().collect();
    let message = format!("Incorrect API key provided: {head}***{tail}.");
    Rejected::new(3_000, Refusal::new("invalid_api_key", message))
}

/// What Azure says at the upgrade, where OpenAI says it after (learn.microsoft.com Q&A 12820829; the misspelling is theirs).
pub(super) fn azure_error(rejected: &Rejected) -> (u16, Value) {
    match rejected.close_code {
        3_000 => {
            let message = "Access denied due to invalid subscription key or wrong API endpoint.";
            (401, json!({ "error": { "code": "401", "message": message } }))
        }
        _ => {
            let message = "The realtime operation does not work with the specified model.";
            (400, json!({ "error": { "code": "OpperationNotSupported", "message": message } }))
        }
    }
}

/// The body of an HTTP error, as the service's REST side writes it.
pub(super) fn http_error(status: u16) -> Value {
    let (kind, code, message) = match status {
        401 => (INVALID_REQUEST, json!("invalid_api_key"), "Incorrect API key provided."),
        403 => (INVALID_REQUEST, json!("unsupported_country_region_territory"), "Access is not allowed."),
        404 => (INVALID_REQUEST, Value::Null, "Unknown request URL. Simulated: GET /v1/realtime."),
        405 => (INVALID_REQUEST, Value::Null, "Invalid method for this URL: see the header Allow."),
        429 => ("requests", json!("rate_limit_exceeded"), "Rate limit reached for requests."),
        400..=499 => (INVALID_REQUEST, Value::Null, "The request cannot be served."),
        503 => ("server_error", Value::Null, "The server is overloaded or not ready yet."),
        _ => ("server_error", Value::Null, "The server had an error while processing your request."),
    };
    json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knock(key: &str, model: &str) -> Knock {
        Knock { key: Some(key.into()), model: Some(model.into()), ..Knock::default() }
    }

    #[test]
    fn admission_table() {
        let config = SimConfig { bad_keys: vec!["stolen".into()], ..SimConfig::default() };
        let good = "gpt-realtime";
        for (name, knock, code, reason) in [
            ("no key", Knock { key: None, ..knock("", good) }, 3_000, "invalid_request_error"),
            ("empty key", knock("", good), 3_000, "invalid_request_error"),
            ("bad key", knock("sk-bad-1234567", good), 3_000, "invalid_request_error.invalid_api_key"),
            ("listed key", knock("stolen", good), 3_000, "invalid_request_error.invalid_api_key"),
            ("beta", Knock { beta: true, ..knock("k", good) }, 4_000, "invalid_request_error.beta_api_shape_disabled"),
            ("no model", Knock { model: None, ..knock("k", "") }, 4_000, "invalid_request_error.missing_model"),
            ("text model", knock("k", "gpt-4o-transcribe"), 4_000, "invalid_request_error.invalid_model"),
            ("retired", knock("k", "gpt-4o-realtime-preview"), 4_004, "invalid_request_error.model_not_found"),
            ("no credit", knock("sk-no-credit", good), 1_013, "insufficient_quota.insufficient_quota"),
            (
                "transcription with a model",
                Knock { intent: Some("transcription".into()), ..knock("k", "gpt-4o-transcribe") },
                4_000,
                "invalid_request_error.invalid_model",
            ),
            (
                "another intent",
                Knock { intent: Some("singing".into()), ..knock("k", "") },
                4_000,
                "invalid_request_error.invalid_value",
            ),
        ] {
            let rejected = admit(&config, &knock).unwrap_err();
            assert_eq!((rejected.close_code, rejected.reason().as_str()), (code, reason), "{name}");
        }
        let Ok(Admitted::Voice(model)) = admit(&config, &knock("ek_123", "gpt-realtime-2.1")) else { panic!() };
        assert_eq!(model.context_tokens, 128_000);
        let transcription = Knock { intent: Some("transcription".into()), model: None, ..knock("k", "") };
        assert_eq!(admit(&config, &transcription), Ok(Admitted::Transcription));
    }

    #[test]
    fn a_bad_key_is_shown_masked() {
        let rejected = admit(&SimConfig::default(), &knock("sk-bad-1234567", "gpt-realtime")).unwrap_err();
        assert_eq!(rejected.refusal.message, "Incorrect API key provided: sk-bad***4567.");
    }
}
