//! Providers' requests, signed here as they sign them, and what becomes of them.
mod events;
mod markup;
mod rest;
mod signatures;

use aws_lc_rs::{hmac, signature::Ed25519KeyPair, signature::KeyPair as _};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{account::*, proof::*, webhook::*};
use crate::config::{PhoneAccountConfig, PhoneKind, Secret};

pub(super) const NOW: u64 = 1_795_000_000;
pub(super) const GOLDEN: &str = include_str!("../../../tests/golden/phone/signatures.json");

/// A request that owns its parts.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn post(target: &str, kind: &str, body: &str) -> Self {
        let new = Self { method: Method::POST, target: target.into(), headers: HeaderMap::new(), body: body.into() };
        new.with("content-type", kind)
    }

    pub(super) fn form(target: &str, body: &str) -> Self {
        Self::post(target, "application/x-www-form-urlencoded", body)
    }

    pub(super) fn json(target: &str, body: &Value) -> Self {
        Self::post(target, "application/json; charset=utf-8", &body.to_string())
    }

    pub(super) fn get(target: &str) -> Self {
        Self { method: Method::GET, target: target.into(), headers: HeaderMap::new(), body: Vec::new() }
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers.insert(name, HeaderValue::from_str(value).unwrap());
        self
    }

    pub(super) fn asked(&self) -> Asked<'_> {
        Asked { method: &self.method, target: &self.target, headers: &self.headers, body: &self.body }
    }
}

pub(super) fn telnyx_key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
}

pub(super) fn config(kind: PhoneKind) -> PhoneAccountConfig {
    let secret = |text: &str| Some(Secret::new(text));
    let mut config = PhoneAccountConfig {
        kind: Some(kind),
        account: Some("account-1".into()),
        caller: Some("+15550100".into()),
        context: Some("voxrelay".into()),
        ..PhoneAccountConfig::default()
    };
    match kind {
        PhoneKind::Twilio | PhoneKind::Plivo => config.auth_token = secret("auth-token-1"),
        PhoneKind::Signalwire => {
            config.auth_token = secret("auth-token-1");
            config.signing_key = secret("signing-key-1");
            config.api_url = Some("https://space.signalwire.com".into());
        }
        PhoneKind::Telnyx => {
            config.public_key = Some(STANDARD.encode(telnyx_key().public_key().as_ref()));
            config.api_key = secret("KEY-1");
            config.connection_id = Some("connection-1".into());
        }
        PhoneKind::Vonage => config.signing_key = secret("signature-secret-0123456789abcdef"),
        PhoneKind::Jambonz => {
            config.signing_key = secret("webhook-secret-1");
            config.api_key = secret("api-key-1");
            config.api_url = Some("https://jambonz.example.com/api".into());
        }
        PhoneKind::Asterisk => {
            config.stream_password = secret("stream-password-1");
            config.api_key = secret("ari-password-1");
            config.api_url = Some("http://127.0.0.1:8088/ari".into());
            config.endpoint = Some("PJSIP/{number}@trunk".into());
        }
        PhoneKind::Freeswitch => {
            config.stream_password = secret("stream-password-1");
            config.api_key = secret("web-password-1");
            config.api_url = Some("http://127.0.0.1:8080".into());
            config.endpoint = Some("sofia/gateway/trunk/{number}".into());
        }
    }
    config
}

pub(super) fn open(config: &PhoneAccountConfig) -> Account {
    let name = config.kind.unwrap().name();
    Account::new(name, config, &PublicUrl::new("https://relay.example.com"), None).unwrap()
}

pub(super) fn account(kind: PhoneKind) -> Account {
    open(&config(kind))
}

pub(super) fn tag(algorithm: hmac::Algorithm, secret: &str, text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(algorithm, secret.as_bytes()), text).as_ref().to_vec()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn jwt(header: &Value, claims: &Value, secret: &str) -> String {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let parts = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    format!("{parts}.{}", URL_SAFE_NO_PAD.encode(tag(hmac::HMAC_SHA256, secret, parts.as_bytes())))
}

pub(super) fn claims(body: &[u8]) -> Value {
    json!({"iss": "Vonage", "iat": NOW, "jti": "j1", "application_id": "account-1", "payload_hash": hex(&sha256(body))})
}

/// Signs as the provider would at [`NOW`].
pub(super) fn sign(kind: PhoneKind, request: Request) -> Request {
    let url = format!("https://relay.example.com{}", request.target);
    match kind {
        PhoneKind::Twilio => {
            let text = format!("{url}{}", joined(&request));
            let signature = tag(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, "auth-token-1", text.as_bytes());
            request.with("x-twilio-signature", &STANDARD.encode(signature))
        }
        PhoneKind::Signalwire => {
            let text = format!("{url}{}", joined(&request));
            let signature = tag(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, "signing-key-1", text.as_bytes());
            request.with("x-signalwire-signature", &STANDARD.encode(signature))
        }
        PhoneKind::Plivo => {
            let text = format!("{url}?{}.n1", joined(&request));
            let signature = tag(hmac::HMAC_SHA256, "auth-token-1", text.as_bytes());
            let request = request.with("x-plivo-signature-v3", &STANDARD.encode(signature));
            request.with("x-plivo-signature-v3-nonce", "n1")
        }
        PhoneKind::Telnyx => {
            let text = [NOW.to_string().as_bytes(), b"|", &request.body].concat();
            let signature = STANDARD.encode(telnyx_key().sign(&text).as_ref());
            request.with("telnyx-signature-ed25519", &signature).with("telnyx-timestamp", &NOW.to_string())
        }
        PhoneKind::Vonage => {
            let header = json!({"alg": "HS256", "typ": "JWT"});
            let token = jwt(&header, &claims(&request.body), "signature-secret-0123456789abcdef");
            request.with("authorization", &format!("Bearer {token}"))
        }
        PhoneKind::Jambonz => {
            let text = [NOW.to_string().as_bytes(), b".", &request.body].concat();
            let signature = hex(&tag(hmac::HMAC_SHA256, "webhook-secret-1", &text));
            request.with("jambonz-signature", &format!("t={NOW},v1={signature}"))
        }
        PhoneKind::Asterisk | PhoneKind::Freeswitch => {
            request.with("authorization", &format!("Basic {}", STANDARD.encode("relay:stream-password-1")))
        }
    }
}

/// A form's names and values, sorted.
fn joined(request: &Request) -> String {
    let mut pairs: Vec<(String, String)> = form_urlencoded::parse(&request.body).into_owned().collect();
    pairs.sort();
    pairs.dedup();
    pairs.into_iter().map(|(name, value)| name + &value).collect()
}

/// A call that comes in, signed.
pub(super) fn call(kind: PhoneKind) -> Request {
    let target = format!("/phone/{}/voice", kind.name());
    let request = match kind {
        PhoneKind::Twilio | PhoneKind::Signalwire => {
            Request::form(&target, "CallSid=CA1&From=%2B15550111&To=%2B15550100&Direction=inbound")
        }
        PhoneKind::Plivo => Request::form(&target, "CallUUID=c-1&From=15550111&To=15550100&Direction=inbound"),
        PhoneKind::Telnyx => Request::json(
            &target,
            &json!({"data": {"event_type": "call.initiated", "payload": {"call_control_id": "v3:c-1",
                "direction": "incoming", "from": "+15550111", "to": "+15550100"}}}),
        ),
        PhoneKind::Vonage => Request::json(&target, &json!({"uuid": "c-1", "from": "15550111", "to": "15550100"})),
        PhoneKind::Jambonz => {
            Request::json(&target, &json!({"call_sid": "c-1", "from": "+15550111", "to": "+15550100"}))
        }
        PhoneKind::Asterisk | PhoneKind::Freeswitch => {
            Request::form(&target, "call=1795000000.12&from=%2B15550111&to=%2B15550100")
        }
    };
    sign(kind, request)
}
