//! Requests as each provider takes them, and its answers. Pure; written from the providers' references as far as they could be had:
//! what telephony notes and the relay's own comments call unverified is no better known here.
use axum::http::{HeaderMap, Method, Uri};
use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::Rng as _;
use secrecy::SecretString;
use serde_json::{Value, json};
use std::time::Duration;

use super::{CarrierConfig, Order, Plan};
use crate::provider::{Ids, Provider};

/// A request, unread.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

/// A request, read.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) provider: Provider,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Dial(Box<Order>),
    Answer(Box<Order>),
    HangUp(String),
    Reject(String),
    Transfer(String, String),
    Dtmf(String),
}

impl What {
    pub(super) fn act(&self) -> &'static str {
        match self {
            Self::Dial(_) => "dial",
            Self::Answer(_) => "answer",
            Self::HangUp(_) => "hang_up",
            Self::Reject(_) => "reject",
            Self::Transfer(..) => "transfer",
            Self::Dtmf(_) => "send_dtmf",
        }
    }

    pub(super) fn about(&self) -> String {
        match self {
            Self::Dial(order) => order.to.clone(),
            Self::Answer(order) => order.ids.call.clone(),
            Self::HangUp(call) | Self::Reject(call) | Self::Transfer(call, _) | Self::Dtmf(call) => call.clone(),
        }
    }
}

/// A refusal in the provider's form.
#[derive(Debug)]
pub(super) struct No {
    pub(super) status: u16,
    pub(super) body: Value,
}

/// Whose address it is.
pub(super) fn provider(path: &str) -> Option<Provider> {
    let begins = |begin: &str| path.starts_with(begin);
    Some(match () {
        () if begins("/2010-04-01/Accounts/") => Provider::Twilio,
        () if begins("/api/laml/2010-04-01/Accounts/") => Provider::SignalWire,
        () if begins("/v2/calls") => Provider::Telnyx,
        () if begins("/v1/Account/") => Provider::Plivo,
        () if begins("/v1/calls") => Provider::Vonage,
        () if begins("/v1/Accounts/") => Provider::Jambonz,
        () if begins("/ari/channels") => Provider::ChanWebSocket,
        () => return None,
    })
}

/// An error in the provider's form.
pub(super) fn no(provider: Provider, status: u16, message: &str) -> Value {
    let message = match (status, message) {
        (401, "") => "Authenticate",
        (404 | 422, "") => "The requested call is not there, or has ended",
        (409, "") => "Channel not in Stasis application",
        (429, "") => "Too many requests",
        (_, "") => "Something went wrong",
        (_, said) => said,
    };
    let code = match (provider, status) {
        (Provider::Twilio | Provider::SignalWire, 404) => 20_404,
        (Provider::Twilio | Provider::SignalWire, 401) => 20_003,
        (Provider::Twilio | Provider::SignalWire, 429) => 20_429,
        (Provider::Twilio | Provider::SignalWire, _) => 21_211,
        (Provider::Telnyx, 422) => 90_018,
        (Provider::Telnyx, _) => 10_015,
        _ => 0,
    };
    match provider {
        Provider::Telnyx => json!({"errors": [{"code": code.to_string(), "title": message, "detail": message}]}),
        Provider::Plivo => json!({"api_id": "sim", "error": message}),
        Provider::Vonage => json!({"type": "https://developer.vonage.com/api-errors", "title": message}),
        Provider::Jambonz => json!({"msg": message}),
        Provider::ChanWebSocket => json!({"message": message}),
        _ => json!({"code": code, "message": message, "status": status}),
    }
}

/// What a call that was begun is answered with.
pub(super) fn dialled(provider: Provider, ids: &Ids) -> Value {
    match provider {
        Provider::Telnyx => json!({"data": {"record_type": "call", "call_control_id": ids.call,
            "call_leg_id": ids.stream, "call_session_id": ids.account, "is_alive": false}}),
        // Plivo's own id of the call is told later.
        Provider::Plivo => json!({"message": "call fired", "request_uuid": ids.account, "api_id": "sim"}),
        Provider::Vonage => json!({"uuid": ids.call, "status": "started", "direction": "outbound",
            "conversation_uuid": format!("CON-{}", ids.stream)}),
        Provider::Jambonz => json!({"sid": ids.call}),
        Provider::ChanWebSocket => json!({"id": ids.call, "state": "Down", "name": "PJSIP/trunk-00000001"}),
        _ => json!({"sid": ids.call, "status": "queued", "direction": "outbound-api"}),
    }
}

/// Reads a request.
///
/// # Errors
/// The provider's refusal.
pub(super) fn read(asked: &Read<'_>, config: &CarrierConfig) -> Result<Asked, No> {
    let provider = provider(asked.uri.path()).unwrap_or(Provider::Twilio);
    let refuse = |status: u16, message: &str| No { status, body: no(provider, status, message) };
    let segments: Vec<&str> = asked.uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let rest = match provider {
        Provider::Twilio => segments.get(3..),
        Provider::SignalWire => segments.get(5..),
        Provider::Telnyx | Provider::Vonage | Provider::ChanWebSocket => segments.get(2..),
        _ => segments.get(4..),
    };
    let rest: Vec<&str> = rest.unwrap_or_default().iter().map(|part| part.trim_end_matches(".json")).collect();
    let account = match provider {
        Provider::Twilio | Provider::Plivo | Provider::Jambonz => segments.get(2),
        Provider::SignalWire => segments.get(4),
        _ => None,
    };
    let shown = credential(provider, asked.headers, account.copied()).map_err(|why| refuse(401, why))?;
    let (shown, application) = match shown {
        Shown::Key(key) => (Some(key), None),
        Shown::Application(id) => (None, Some(id)),
        Shown::Good => (None, None),
    };
    let fields = Fields::of(asked);
    // Twilio's list of calls stands in the path as one of its parts.
    let place: Vec<&str> = rest.iter().copied().filter(|part| *part != "Calls").collect();
    let (post, call) = (asked.method == Method::POST, |call: &str| call.to_owned());
    let what = match (provider, asked.method.as_str(), place.as_slice()) {
        (_, "POST", []) => {
            let order = order(provider, &fields, asked.uri, config, shown);
            let mut order = order.map_err(|why| refuse(400, &why))?;
            if let Some(id) = application {
                order.ids.account = id;
            }
            What::Dial(Box::new(order))
        }
        (Provider::Twilio | Provider::SignalWire, "POST", [id]) => match fields.get("Status") {
            Some("completed" | "canceled") => What::HangUp(call(id)),
            Some(_) => return Err(refuse(400, "Status is invalid")),
            None => {
                let to = fields.get("Twiml").or(fields.get("Url")).ok_or_else(|| refuse(400, "nothing to do"))?;
                What::Transfer(call(id), to.to_owned())
            }
        },
        (Provider::Telnyx, "POST", [id, "actions", act]) => match *act {
            "hangup" => What::HangUp(call(id)),
            "reject" => What::Reject(call(id)),
            "transfer" => What::Transfer(call(id), fields.need("to").map_err(|why| refuse(422, &why))?),
            "send_dtmf" => {
                fields.need("digits").map_err(|why| refuse(422, &why))?;
                What::Dtmf(call(id))
            }
            "answer" => {
                let order = telnyx(&fields, config).map_err(|why| refuse(422, &why))?;
                let ids = Ids { call: call(id), ..order.ids.clone() };
                What::Answer(Box::new(Order { ids, ring: Duration::ZERO, ..order }))
            }
            _ => return Err(refuse(404, "no such action")),
        },
        (Provider::Plivo, "DELETE", [id]) => What::HangUp(call(id)),
        (Provider::Plivo, "POST", [id, "DTMF"]) => {
            fields.need("digits").map_err(|why| refuse(400, &why))?;
            What::Dtmf(call(id))
        }
        (Provider::Plivo, "POST", [id]) => {
            What::Transfer(call(id), fields.need("aleg_url").map_err(|why| refuse(400, &why))?)
        }
        (Provider::Vonage, "PUT", [id, "dtmf"]) => {
            fields.need("digits").map_err(|why| refuse(400, &why))?;
            What::Dtmf(call(id))
        }
        (Provider::Vonage, "PUT", [id]) => match fields.get("action") {
            Some("hangup") => What::HangUp(call(id)),
            Some("transfer") => What::Transfer(call(id), fields.part("destination").to_string()),
            _ => return Err(refuse(400, "action is invalid")),
        },
        (Provider::Jambonz, "PUT", [id]) => match fields.get("call_status") {
            Some("completed" | "no-answer") => What::HangUp(call(id)),
            Some(_) => return Err(refuse(400, "call_status is invalid")),
            None => What::Transfer(call(id), fields.part("call_hook").to_string()),
        },
        (Provider::ChanWebSocket, "DELETE", [id]) => What::HangUp(call(id)),
        (Provider::ChanWebSocket, _, [_, "continue"]) if post => return Err(refuse(409, "")),
        (Provider::ChanWebSocket, _, [id, "dtmf"]) if post => What::Dtmf(call(id)),
        _ => return Err(refuse(404, "no such resource")),
    };
    Ok(Asked { provider, what })
}

/// A good credential.
enum Shown {
    /// Webhooks are signed with it, too.
    Key(SecretString),
    /// Vonage's webhooks name the application.
    Application(String),
    Good,
}

/// What the request shows; or why that is no credential.
fn credential(provider: Provider, headers: &HeaderMap, account: Option<&str>) -> Result<Shown, &'static str> {
    let shown = headers.get("authorization").and_then(|value| value.to_str().ok()).ok_or("no Authorization")?;
    let (scheme, value) = shown.split_once(' ').ok_or("Authorization is no scheme and value")?;
    match provider {
        Provider::Vonage => jwt(scheme, value).map(Shown::Application),
        Provider::Telnyx | Provider::Jambonz => {
            let good = scheme.eq_ignore_ascii_case("bearer") && !value.is_empty() && !value.starts_with("bad");
            if good { Ok(Shown::Good) } else { Err("no good API key") }
        }
        _ => {
            let pair = STANDARD.decode(value).ok().and_then(|pair| String::from_utf8(pair).ok()).unwrap_or_default();
            let (user, word) = pair.split_once(':').ok_or("Basic credentials are wanted")?;
            let own = account.is_none_or(|account| account == user);
            let good = scheme.eq_ignore_ascii_case("basic") && own && !word.is_empty() && !word.starts_with("bad");
            if good { Ok(Shown::Key(word.into())) } else { Err("no good credentials for this account") }
        }
    }
}

/// A token of an application's: its shape and its claims; whose key has signed it is not known here.
fn jwt(scheme: &str, token: &str) -> Result<String, &'static str> {
    let parts: Vec<&str> = token.split('.').collect();
    let part = |at: usize| -> Value {
        let bytes = parts.get(at).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    };
    let (head, claims) = (part(0), part(1));
    let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let at = |name: &str| claims.get(name).and_then(Value::as_u64);
    let now = crate::wall::unix_now();
    let good = scheme.eq_ignore_ascii_case("bearer")
        && parts.len() == 3
        && head.get("alg").is_some_and(|alg| alg == "RS256")
        && text("jti").is_some()
        && at("iat").is_some_and(|at| at.abs_diff(now) < 60)
        && at("exp").is_some_and(|at| at > now)
        && parts.get(2).is_some_and(|tag| tag.len() > 100);
    let application = text("application_id").filter(|_| good);
    application.map(str::to_owned).ok_or("no good JWT: RS256 with application_id, iat, exp and jti is wanted")
}

/// A body's fields, or a query's.
struct Fields {
    pairs: Vec<(String, String)>,
    value: Value,
}

impl Fields {
    fn of(asked: &Read<'_>) -> Self {
        let value: Value = serde_json::from_slice(asked.body).unwrap_or_default();
        let mut pairs: Vec<(String, String)> = match &value {
            Value::Object(fields) => {
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                fields.iter().map(|(name, value)| (name.clone(), text(value))).collect()
            }
            _ => form_urlencoded::parse(asked.body).into_owned().collect(),
        };
        pairs.extend(form_urlencoded::parse(asked.uri.query().unwrap_or_default().as_bytes()).into_owned());
        Self { pairs, value }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A field of a JSON body, whatever it is.
    fn part(&self, name: &str) -> &Value {
        self.value.get(name).unwrap_or(&Value::Null)
    }

    fn need(&self, name: &str) -> Result<String, String> {
        let found = self.get(name).filter(|value| !value.is_empty());
        found.map(str::to_owned).ok_or_else(|| format!("{name} is missing"))
    }

    fn ring(&self, name: &str) -> Duration {
        Duration::from_secs(self.get(name).and_then(|text| text.parse().ok()).unwrap_or(60))
    }
}

fn is_number(text: &str, plus: bool) -> bool {
    let digits = text.strip_prefix('+').unwrap_or(text);
    text.starts_with('+') == plus && (7..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
}

fn number(name: &str, found: &str, plus: bool) -> Result<String, String> {
    if is_number(found, plus) {
        Ok(format!("+{}", found.trim_start_matches('+')))
    } else {
        Err(format!("The '{name}' number {found} is not a valid phone number"))
    }
}

fn order(
    provider: Provider,
    fields: &Fields,
    uri: &Uri,
    config: &CarrierConfig,
    shown: Option<SecretString>,
) -> Result<Order, String> {
    match provider {
        Provider::Twilio | Provider::SignalWire => twilio(provider, fields, shown),
        Provider::Telnyx => {
            fields.need("connection_id")?;
            let (to, from) = (number("to", &fields.need("to")?, true)?, number("from", &fields.need("from")?, true)?);
            let ring = fields.ring("timeout_secs");
            let machine = fields.get("answering_machine_detection").and(fields.get("webhook_url")).map(str::to_owned);
            Ok(Order { to, from, ring, machine, ..telnyx(fields, config)? })
        }
        Provider::Plivo => {
            let (to, from) = (number("to", &fields.need("to")?, false)?, number("from", &fields.need("from")?, false)?);
            let status = fields.get("hangup_url").map(str::to_owned);
            let machine = fields.get("machine_detection_url").map(str::to_owned);
            let (plan, ring) = (Plan::Page(fields.need("answer_url")?), fields.ring("ring_timeout"));
            Ok(Order { provider, ids: ids(provider), to, from, ring, plan, status, machine, key: shown })
        }
        Provider::Vonage => {
            let end = |pointer: &str| fields.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let (to, from) = (number("to", end("/to/0/number"), false)?, number("from", end("/from/number"), false)?);
            let status = Some(end("/event_url/0").to_owned()).filter(|url| !url.is_empty());
            let machine = fields.get("machine_detection").and(status.clone());
            let plan = match fields.part("ncco") {
                Value::Null => return Err("ncco is missing".to_owned()),
                ncco => Plan::Markup(ncco.to_string()),
            };
            let (ring, key) = (fields.ring("ringing_timer"), Some(config.secret.as_str().into()));
            if ring > Duration::from_secs(120) {
                return Err("ringing_timer is over 120".to_owned());
            }
            Ok(Order { provider, ids: ids(provider), to, from, ring, plan, status, machine, key })
        }
        Provider::Jambonz => {
            let url = |pointer: &str| fields.value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            let end = url("/to/number").unwrap_or_default();
            let (to, from) = (number("to", &end, true)?, number("from", &fields.need("from")?, true)?);
            let plan = Plan::Page(url("/call_hook/url").ok_or("call_hook is missing")?);
            let (status, machine) = (url("/call_status_hook/url"), url("/amd/actionHook"));
            let (ring, key) = (fields.ring("timeout"), Some(config.secret.as_str().into()));
            Ok(Order { provider, ids: ids(provider), to, from, ring, plan, status, machine, key })
        }
        _ => asterisk(fields, uri, config),
    }
}

fn twilio(provider: Provider, fields: &Fields, shown: Option<SecretString>) -> Result<Order, String> {
    let (to, from) = (number("To", &fields.need("To")?, true)?, number("From", &fields.need("From")?, true)?);
    let plan = match (fields.get("Twiml"), fields.get("Url")) {
        (Some(markup), None) => Plan::Markup(markup.to_owned()),
        (None, Some(url)) => Plan::Page(url.to_owned()),
        _ => return Err("one of Url and Twiml is wanted".to_owned()),
    };
    let status = fields.get("StatusCallback").map(str::to_owned);
    let machine = fields.get("AsyncAmdStatusCallback").or(fields.get("MachineDetection").and(status.as_deref()));
    let (machine, ring) = (machine.map(str::to_owned), fields.ring("Timeout"));
    Ok(Order { provider, ids: ids(provider), to, from, ring, plan, status, machine, key: shown })
}

/// The stream of a call that is begun or answered.
fn telnyx(fields: &Fields, config: &CarrierConfig) -> Result<Order, String> {
    if fields.get("stream_bidirectional_mode") != Some("rtp") {
        return Err("without stream_bidirectional_mode=rtp what comes back is taken for MP3".to_owned());
    }
    let token = fields.get("stream_auth_token").unwrap_or_default();
    let own = fields.part("custom_parameters").as_array().into_iter().flatten();
    let own =
        own.filter_map(|one| Some((one.get("name")?.as_str()?.to_owned(), one.get("value")?.as_str()?.to_owned())));
    let headers = vec![("x-telnyx-streaming-auth-token".to_owned(), SecretString::from(token))];
    let plan = Plan::Stream {
        url: fields.need("stream_url")?,
        parameters: own.collect(),
        headers,
        codec: fields.get("stream_bidirectional_codec").map(str::to_owned),
    };
    Ok(Order {
        provider: Provider::Telnyx,
        ids: ids(Provider::Telnyx),
        to: String::new(),
        from: String::new(),
        ring: Duration::ZERO,
        plan,
        status: fields.get("webhook_url").map(str::to_owned),
        machine: None,
        key: Some(config.telnyx_key.as_str().into()),
    })
}

/// The dialplan of the relay's documentation: the answered call opens a WebSocket with the channel's token.
fn asterisk(fields: &Fields, uri: &Uri, config: &CarrierConfig) -> Result<Order, String> {
    let endpoint = fields.need("endpoint")?;
    let digits: String = endpoint.chars().skip_while(|c| *c != '+').take_while(|c| *c != '@').collect();
    let (to, from) = (number("endpoint", &digits, true)?, fields.need("callerId")?);
    for name in ["context", "extension", "priority"] {
        if !uri.query().unwrap_or_default().contains(name) {
            return Err(format!("{name} is missing"));
        }
    }
    let token = fields.value.pointer("/variables/VOXRELAY_TOKEN").and_then(Value::as_str);
    let token = token.ok_or("the dialplan wants VOXRELAY_TOKEN")?;
    let plan = match &config.asterisk_stream {
        None => Plan::Nowhere("carrier.asterisk_stream names no stream"),
        Some(url) => {
            let pair = STANDARD.encode(format!("relay:{}", config.secret));
            Plan::Stream {
                url: format!("{url}?token={token}"),
                parameters: Vec::new(),
                headers: vec![("Authorization".to_owned(), format!("Basic {pair}").into())],
                codec: None,
            }
        }
    };
    let (provider, ring) = (Provider::ChanWebSocket, fields.ring("timeout"));
    Ok(Order { provider, ids: ids(provider), to, from, ring, plan, status: None, machine: None, key: None })
}

fn ids(provider: Provider) -> Ids {
    Ids::invent(provider, rand::rng().random())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, uri: &str, authorization: &str, body: &str) -> Result<Asked, No> {
        let (method, uri): (Method, Uri) = (method.parse().unwrap(), uri.parse().unwrap());
        let mut headers = HeaderMap::new();
        if !authorization.is_empty() {
            headers.insert("authorization", authorization.parse().unwrap());
        }
        let asked = Read { method: &method, uri: &uri, headers: &headers, body: body.as_bytes() };
        read(&asked, &CarrierConfig::default())
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    #[test]
    fn commands_are_read_in_each_providers_words() {
        let (ac, bearer) = (basic("AC1:t"), "Bearer k");
        for (method, uri, authorization, body, act, about) in [
            ("POST", "/2010-04-01/Accounts/AC1/Calls/CA1.json", ac.as_str(), "Status=completed", "hang_up", "CA1"),
            ("POST", "/2010-04-01/Accounts/AC1/Calls/CA1.json", &ac, "Twiml=%3CResponse%2F%3E", "transfer", "CA1"),
            ("POST", "/api/laml/2010-04-01/Accounts/AC1/Calls/u-1.json", &ac, "Status=completed", "hang_up", "u-1"),
            ("POST", "/v2/calls/v3:1/actions/hangup", bearer, "{}", "hang_up", "v3:1"),
            ("POST", "/v2/calls/v3:1/actions/transfer", bearer, r#"{"to":"+15550100"}"#, "transfer", "v3:1"),
            ("POST", "/v2/calls/v3:1/actions/send_dtmf", bearer, r#"{"digits":"1"}"#, "send_dtmf", "v3:1"),
            ("POST", "/v2/calls/v3:1/actions/reject", bearer, r#"{"cause":"USER_BUSY"}"#, "reject", "v3:1"),
            ("DELETE", "/v1/Account/AC1/Call/u-1/", &ac, "", "hang_up", "u-1"),
            ("POST", "/v1/Account/AC1/Call/u-1/", &ac, r#"{"aleg_url":"https://r/t"}"#, "transfer", "u-1"),
            ("POST", "/v1/Account/AC1/Call/u-1/DTMF/", &ac, r#"{"digits":"1"}"#, "send_dtmf", "u-1"),
            ("PUT", "/v1/Accounts/AC1/Calls/u-1", bearer, r#"{"call_status":"completed"}"#, "hang_up", "u-1"),
            ("PUT", "/v1/Accounts/AC1/Calls/u-1", bearer, r#"{"call_hook":{"url":"https://r"}}"#, "transfer", "u-1"),
            ("DELETE", "/ari/channels/1.2", &ac, "", "hang_up", "1.2"),
        ] {
            let asked = ask(method, uri, authorization, body).unwrap();
            assert_eq!((asked.what.act(), asked.what.about().as_str()), (act, about), "{method} {uri}");
        }
        let answer = r#"{"stream_url":"wss://r/s","stream_bidirectional_mode":"rtp","stream_auth_token":"t"}"#;
        let asked = ask("POST", "/v2/calls/v3:9/actions/answer", bearer, answer).unwrap();
        assert_eq!((asked.what.act(), asked.what.about().as_str()), ("answer", "v3:9"));
    }

    #[test]
    fn what_a_provider_would_not_take_is_refused() {
        let ac = basic("AC1:t");
        let calls = "/2010-04-01/Accounts/AC1/Calls.json";
        let good = "To=%2B15550100&From=%2B15550199&Twiml=x";
        assert_eq!(ask("POST", calls, &ac, good).unwrap().what.act(), "dial");
        for (uri, authorization, body, status) in [
            (calls, "", good, 401),
            (calls, "Bearer t", good, 401),
            (calls, basic("AC2:t").as_str(), good, 401),
            (calls, &basic("AC1:bad-token"), good, 401),
            (calls, &ac, "To=15550100&From=%2B15550199&Twiml=x", 400),
            (calls, &ac, "To=%2B15550100&From=%2B15550199", 400),
            (calls, &ac, "To=%2B15550100&From=%2B15550199&Twiml=x&Url=y", 400),
            ("/v2/calls", "Bearer k", r#"{"to":"+15550100","from":"+15550199"}"#, 400),
            ("/v2/calls/v3:1/actions/answer", "Bearer k", r#"{"stream_url":"wss://r"}"#, 422),
            ("/v1/calls", "Bearer a.b.c", "{}", 401),
            ("/v1/Account/AC1/Call/", &ac, r#"{"to":"+15550100","from":"15550199","answer_url":"https://r"}"#, 400),
            ("/ari/channels?endpoint=PJSIP/%2B15550100@trunk&callerId=%2B15550199", &ac, "{}", 400),
            ("/ari/channels/1.2/continue?context=a", &ac, "", 409),
        ] {
            assert_eq!(ask("POST", uri, authorization, body).unwrap_err().status, status, "{uri} {body}");
        }
        assert!(provider("/v1/realtime").is_none() && provider("/v1/models").is_none());
    }
}
