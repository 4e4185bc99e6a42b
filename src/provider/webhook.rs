//! The question that a provider asks before it connects a call: a POST in its own form, signed with its own signature.
//!
//! The signature is over the address as the provider knows it, which behind a proxy is not the one that is reached here.
use std::time::Duration;

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
    signature::Ed25519KeyPair,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::setup::{Provider, Setup};

/// How long providers wait for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer, bytes.
const MAX_ANSWER: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The key is no key of this provider's.
    #[error("the signing key of {} must be {wanted}", provider.name())]
    Key {
        /// The provider.
        provider: Provider,
        /// What a key is there.
        wanted: &'static str,
    },
    /// Nobody answered.
    #[error("the voice webhook did not answer")]
    Http(#[from] reqwest::Error),
    /// It answered with a no.
    #[error("the voice webhook answered with HTTP {status}: {body}")]
    Refused {
        /// The status.
        status: u16,
        /// The beginning of what it said.
        body: String,
    },
}

/// A request, ready to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// Headers, the signature among them.
    pub headers: Vec<(&'static str, SecretString)>,
    /// What is said.
    pub body: Body,
}

/// How it is said.
#[derive(Debug, Clone)]
pub enum Body {
    /// Posted, as a form or as JSON.
    Posted(String),
    /// A GET, in the query.
    Query(String),
}

/// The question about this call, for the address `url` as the provider knows it. `key` signs: Twilio's, SignalWire's and
/// Plivo's auth token, Telnyx' private key (Ed25519 seed in base64), Vonage's and jambonz' secret; Asterisk and FreeSWITCH show it as
/// a password.
///
/// # Errors
/// When the key is none of the provider's.
pub fn request(setup: &Setup, url: &str, key: Option<&SecretString>, unix_s: u64) -> Result<Request, WebhookError> {
    let ids = &setup.ids;
    let form: Vec<(&str, &str)> = match setup.provider {
        Provider::Twilio | Provider::SignalWire | Provider::Telnyx => vec![
            ("AccountSid", &ids.account),
            ("ApiVersion", "2010-04-01"),
            ("CallSid", &ids.call),
            ("CallStatus", "ringing"),
            ("Called", &setup.to),
            ("Caller", &setup.from),
            ("Direction", "inbound"),
            ("From", &setup.from),
            ("To", &setup.to),
        ],
        Provider::Plivo => vec![
            ("CallStatus", "ringing"),
            ("CallUUID", &ids.call),
            ("Direction", "inbound"),
            ("Event", "StartApp"),
            ("From", setup.from.trim_start_matches('+')),
            ("To", setup.to.trim_start_matches('+')),
        ],
        Provider::Vonage => {
            let (from, to) = (setup.from.trim_start_matches('+'), setup.to.trim_start_matches('+'));
            let conversation = format!("CON-{}", ids.stream);
            let body = json!({ "from": from, "to": to, "uuid": ids.call, "conversation_uuid": conversation });
            return vonage(setup, body.to_string(), key, unix_s);
        }
        Provider::Jambonz => {
            let body = json!({
                "call_sid": ids.call, "call_id": ids.stream, "account_sid": ids.account, "direction": "inbound",
                "from": setup.from, "to": setup.to, "call_status": "trying", "sip_status": 100,
            });
            return Ok(jambonz(&body.to_string(), key, unix_s));
        }
        Provider::AudioFork | Provider::ChanWebSocket | Provider::AudioSocket => return Ok(dialplan(setup, key)),
    };
    posted(setup, url, &form, key, unix_s)
}

/// A form in the provider's name, for the address `url` as the provider knows it.
///
/// # Errors
/// When the key is none of the provider's.
pub fn posted(
    setup: &Setup,
    url: &str,
    form: &[(&str, &str)],
    key: Option<&SecretString>,
    unix_s: u64,
) -> Result<Request, WebhookError> {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let mut headers = vec![("content-type", SecretString::from("application/x-www-form-urlencoded"))];
    if let Some(key) = key {
        headers.extend(sign_form(setup, url, form, &body, key, unix_s)?);
    }
    Ok(Request { headers, body: Body::Posted(body) })
}

/// JSON in the provider's name.
///
/// # Errors
/// When the key is none of the provider's.
pub fn told(setup: &Setup, body: String, key: Option<&SecretString>, unix_s: u64) -> Result<Request, WebhookError> {
    let mut headers = vec![as_json()];
    match (setup.provider, key) {
        (Provider::Vonage, key) => return vonage(setup, body, key, unix_s),
        (Provider::Telnyx, Some(key)) => headers.extend(telnyx(&body, key, unix_s)?),
        (Provider::Jambonz, key) => return Ok(jambonz(&body, key, unix_s)),
        _ => {}
    }
    Ok(Request { headers, body: Body::Posted(body) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn as_json() -> (&'static str, SecretString) {
    ("content-type", SecretString::from("application/json"))
}

fn sign_form(
    setup: &Setup,
    url: &str,
    form: &[(&str, &str)],
    body: &str,
    key: &SecretString,
    unix_s: u64,
) -> Result<Vec<(&'static str, SecretString)>, WebhookError> {
    let secret = key.expose_secret();
    Ok(match setup.provider {
        Provider::Plivo => {
            let nonce = setup.ids.call.replace('-', "");
            vec![
                ("x-plivo-signature-v3", plivo_signature(secret, url, form, &nonce).into()),
                ("x-plivo-signature-v3-nonce", nonce.into()),
            ]
        }
        Provider::Telnyx => telnyx(body, key, unix_s)?,
        Provider::SignalWire => {
            let signature = twilio_signature(secret, url, form);
            vec![("x-signalwire-signature", signature.clone().into()), ("x-twilio-signature", signature.into())]
        }
        _ => vec![("x-twilio-signature", twilio_signature(secret, url, form).into())],
    })
}

fn telnyx(body: &str, key: &SecretString, unix_s: u64) -> Result<Vec<(&'static str, SecretString)>, WebhookError> {
    let wanted = "an Ed25519 private key: 32 bytes in base64";
    let wrong = || WebhookError::Key { provider: Provider::Telnyx, wanted };
    let seed = STANDARD.decode(key.expose_secret().trim()).map_err(|_| wrong())?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| wrong())?;
    let signature = STANDARD.encode(pair.sign(format!("{unix_s}|{body}").as_bytes()));
    Ok(vec![("telnyx-signature-ed25519", signature.into()), ("telnyx-timestamp", unix_s.to_string().into())])
}

/// Twilio's SHA-1 signature of an address and the parameters that are posted to it.
pub fn twilio_signature(auth_token: &str, url: &str, parameters: &[(&str, &str)]) -> String {
    let mut sorted = parameters.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let signed = sorted.iter().fold(url.to_owned(), |signed, (name, value)| signed + name + value);
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, auth_token.as_bytes());
    STANDARD.encode(hmac::sign(&key, signed.as_bytes()))
}

/// Plivo's third signature of a POST.
pub fn plivo_signature(auth_token: &str, url: &str, parameters: &[(&str, &str)], nonce: &str) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let mut query: Vec<_> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    query.sort_unstable();
    let mut sorted = parameters.to_vec();
    sorted.sort_unstable();
    let posted: String = sorted.iter().flat_map(|(name, value)| [*name, *value]).collect();
    let dot = if query.is_empty() { "" } else { "." };
    let signed = format!("{base}?{}{dot}{posted}.{nonce}", query.join("&"));
    STANDARD.encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, auth_token.as_bytes()), signed.as_bytes()))
}

/// Vonage signs with a JWT that holds the body's hash.
fn vonage(setup: &Setup, body: String, key: Option<&SecretString>, unix_s: u64) -> Result<Request, WebhookError> {
    let mut headers = vec![as_json()];
    if let Some(key) = key {
        let hash = hex(digest(&SHA256, body.as_bytes()).as_ref());
        let claims = json!({
            "iss": "Vonage", "iat": unix_s, "exp": unix_s + 300, "jti": setup.ids.stream, "api_key": setup.ids.account,
            "application_id": setup.ids.account, "payload_hash": hash,
        });
        let secret = jsonwebtoken::EncodingKey::from_secret(key.expose_secret().as_bytes());
        let wrong = |_| WebhookError::Key { provider: setup.provider, wanted: "a signature secret" };
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &secret).map_err(wrong)?;
        headers.push(("authorization", format!("Bearer {token}").into()));
    }
    Ok(Request { headers, body: Body::Posted(body) })
}

/// jambonz signs the time and the body.
fn jambonz(body: &str, key: Option<&SecretString>, unix_s: u64) -> Request {
    let mut headers = vec![as_json()];
    if let Some(key) = key {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret().as_bytes());
        let tag = hex(hmac::sign(&key, format!("{unix_s}.{body}").as_bytes()).as_ref());
        headers.push(("jambonz-signature", format!("t={unix_s},v1={tag}").into()));
    }
    Request { headers, body: Body::Posted(body.to_owned()) }
}

/// A dialplan asks with a library for HTTP: Asterisk's `CURL()` posts a form, FreeSWITCH's `curl` gets a query; both have a
/// user and a password, and nothing else to show.
fn dialplan(setup: &Setup, password: Option<&SecretString>) -> Request {
    let plain = |number: &str| number.trim_start_matches('+').to_owned();
    let (call, from, to) = (setup.ids.call.clone(), plain(&setup.from), plain(&setup.to));
    let pairs = [("call", call), ("from", from), ("name", "A Caller".to_owned()), ("to", to)];
    let said = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let mut headers: Vec<_> =
        password.map(|password| ("authorization", basic("relay", password))).into_iter().collect();
    if setup.provider == Provider::AudioFork {
        return Request { headers, body: Body::Query(said) };
    }
    headers.push(("content-type", SecretString::from("application/x-www-form-urlencoded")));
    Request { headers, body: Body::Posted(said) }
}

/// RFC 7617.
pub(super) fn basic(user: &str, password: &SecretString) -> SecretString {
    format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.expose_secret()))).into()
}

/// Asks `url`; the answer's text.
///
/// # Errors
/// When there is no answer, or it is a no.
pub async fn ask(url: &str, request: Request, tls: ClientConfig) -> Result<String, WebhookError> {
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(PATIENCE)
        .build()?;
    let mut asked = match request.body {
        Body::Posted(body) => http.post(url).body(body),
        Body::Query(query) => http.get(format!("{url}{}{query}", if url.contains('?') { '&' } else { '?' })),
    };
    for (name, value) in &request.headers {
        asked = asked.header(*name, value.expose_secret());
    }
    let mut answer = asked.send().await?;
    let status = answer.status();
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            let body = format!("an answer of more than {MAX_ANSWER} bytes");
            return Err(WebhookError::Refused { status: status.as_u16(), body });
        }
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() {
        return Ok(body);
    }
    let body = body.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
    Err(WebhookError::Refused { status: status.as_u16(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: &str = include_str!("../../tests/golden/phone/signatures.json");

    #[test]
    fn signatures_are_those_of_the_vendors_own_libraries() {
        let vectors: serde_json::Value = serde_json::from_str(VECTORS).unwrap();
        let parameters = |case: &serde_json::Value| -> Vec<(String, String)> {
            let map = case["params"].as_object().unwrap();
            map.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
        };
        let text = |case: &serde_json::Value, key: &str| case[key].as_str().unwrap_or_default().to_owned();
        let mut checked = 0;
        for case in vectors["twilio_signatures"].as_array().unwrap() {
            if case["algorithm"] == "HMAC_SHA1" {
                let owned = parameters(case);
                let pairs: Vec<_> = owned.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                let ours = twilio_signature(&text(case, "auth_token"), &text(case, "url"), &pairs);
                assert_eq!(ours, text(case, "x_twilio_signature"));
                checked += 1;
            }
        }
        for case in vectors["plivo_signature_v3"].as_array().unwrap().iter().filter(|case| case["method"] == "POST") {
            let owned = parameters(case);
            let pairs: Vec<_> = owned.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let ours = plivo_signature(&text(case, "auth_token"), &text(case, "url"), &pairs, &text(case, "nonce"));
            assert_eq!(ours, text(case, "x_plivo_signature_v3"));
            checked += 1;
        }
        assert_eq!(checked, 6);
    }

    #[test]
    fn each_provider_asks_in_its_own_form() {
        let key = SecretString::from(STANDARD.encode([7; 32]));
        for (provider, want, signature) in [
            (Provider::Twilio, "From=%2B15005550006&To=%2B13125550101", "x-twilio-signature"),
            (Provider::SignalWire, "CallStatus=ringing", "x-signalwire-signature"),
            (Provider::Telnyx, "CallSid=v3%3A", "telnyx-signature-ed25519"),
            (Provider::Plivo, "From=15005550006", "x-plivo-signature-v3"),
            (Provider::Vonage, r#""to":"13125550101""#, "authorization"),
            (Provider::Jambonz, r#""to":"+13125550101""#, "jambonz-signature"),
            (Provider::ChanWebSocket, "&to=13125550101", "authorization"),
            (Provider::AudioSocket, "&name=A+Caller", "authorization"),
            (Provider::AudioFork, "call=", "authorization"),
        ] {
            let setup = Setup::new(provider, 1);
            let request = request(&setup, "https://r.example/voice", Some(&key), 1_767_225_600).unwrap();
            let (Body::Posted(said) | Body::Query(said)) = &request.body;
            assert!(said.contains(want), "{said}");
            assert_eq!(matches!(request.body, Body::Query(_)), provider == Provider::AudioFork);
            assert!(request.headers.iter().any(|(name, _)| *name == signature), "{provider:?}");
        }
        let setup = Setup::new(Provider::Telnyx, 1);
        let error = request(&setup, "https://r.example/voice", Some(&"short".into()), 0).unwrap_err();
        assert_eq!(error.to_string(), "the signing key of telnyx must be an Ed25519 private key: 32 bytes in base64");
        let unsigned = request(&Setup::new(Provider::Jambonz, 1), "https://r.example/voice", None, 0).unwrap();
        assert_eq!(unsigned.headers.len(), 1, "without a key nothing is signed");
    }
}
