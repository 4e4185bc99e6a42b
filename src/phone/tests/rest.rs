//! Requests to providers and their answers.
use aws_lc_rs::{encoding::AsDer as _, rsa, signature::KeyPair as _};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};

use super::*;
use crate::{
    config::PhoneKind::{Asterisk, Freeswitch, Jambonz, Plivo, Signalwire, Telnyx, Twilio, Vonage},
    phone::rest::{Act, Ask, Dial, Done, Rest, Stamp, Target, Unable},
};

const STAMP: Stamp<'static> = Stamp { now: NOW, nonce: "n0" };

/// A Vonage account with a new key, and what checks its tokens.
fn vonage() -> (Account, DecodingKey) {
    let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let der = STANDARD.encode(pair.as_der().unwrap().as_ref());
    let lines: Vec<&str> = der.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    let public = PublicUrl::new("https://relay.example.com");
    let account = Account::new("vonage", &config(Vonage), &public, Some(pem.as_bytes())).unwrap();
    (account, DecodingKey::from_rsa_der(pair.public_key().as_ref()))
}

fn any(kind: PhoneKind) -> Account {
    if kind == Vonage { vonage().0 } else { account(kind) }
}

fn dial<'a>(kind: PhoneKind) -> Dial<'a> {
    let token = if kind == Asterisk { "01234567-89ab-4cde-8f01-23456789abcd" } else { "a1b2c3d4e5f60718" };
    let reference = "ref0123456789abc";
    Dial { number: "+15550122", from: None, token, reference, ring_s: 30, detect_machine: true, key: Some("k1") }
}

fn form(ask: &Ask) -> Vec<(String, String)> {
    assert_eq!(ask.content_type, Some("application/x-www-form-urlencoded"));
    form_urlencoded::parse(ask.body.as_bytes()).into_owned().collect()
}

fn body(ask: &Ask) -> Value {
    assert_eq!(ask.content_type, Some("application/json"));
    serde_json::from_str(&ask.body).unwrap()
}

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

#[test]
fn hanging_up() {
    let rows = [
        (Twilio, "POST", "https://api.twilio.com/2010-04-01/Accounts/account-1/Calls/c-1.json", "Status=completed"),
        (
            Signalwire,
            "POST",
            "https://space.signalwire.com/api/laml/2010-04-01/Accounts/account-1/Calls/c-1.json",
            "Status=completed",
        ),
        (Telnyx, "POST", "https://api.telnyx.com/v2/calls/c-1/actions/hangup", "{}"),
        (Plivo, "DELETE", "https://api.plivo.com/v1/Account/account-1/Call/c-1/", ""),
        (Vonage, "PUT", "https://api.nexmo.com/v1/calls/c-1", "{\"action\":\"hangup\"}"),
        (
            Jambonz,
            "PUT",
            "https://jambonz.example.com/api/v1/Accounts/account-1/Calls/c-1",
            "{\"call_status\":\"completed\"}",
        ),
        (Asterisk, "DELETE", "http://127.0.0.1:8088/ari/channels/c-1", ""),
        (Freeswitch, "GET", "http://127.0.0.1:8080/txtapi/uuid_kill?c-1", ""),
    ];
    for (kind, method, url, body) in rows {
        let account = any(kind);
        let ask = account.rest(STAMP).hang_up("c-1").unwrap();
        assert_eq!((ask.method.as_str(), ask.url.as_str(), ask.body.as_str()), (method, url, body));
        let wanted = match kind {
            Twilio | Signalwire | Plivo => basic("account-1:auth-token-1"),
            Telnyx => "Bearer KEY-1".to_owned(),
            Jambonz => "Bearer api-key-1".to_owned(),
            Asterisk => basic("account-1:ari-password-1"),
            Freeswitch => basic("account-1:web-password-1"),
            Vonage => "Bearer ey".to_owned(),
        };
        assert!(ask.authorization.expose().starts_with(&wanted), "{kind:?}");
        let shown = format!("{ask:?} {account:?}");
        assert!(!shown.contains("token-1") && !shown.contains("KEY-1") && !shown.contains("password"), "{shown}");
        for wrong in ["", "..", "a/b", "a?b", "a b", "ä"] {
            assert!(account.rest(STAMP).hang_up(wrong).is_err(), "{kind:?} {wrong}");
        }
    }
}

#[test]
fn vonage_is_shown_a_token_of_the_application() {
    let (account, key) = vonage();
    let ask = account.rest(STAMP).hang_up("c-1").unwrap();
    let token = ask.authorization.expose().strip_prefix("Bearer ").unwrap();
    let mut how = Validation::new(Algorithm::RS256);
    how.validate_exp = false;
    let claims = decode::<Value>(token, &key, &how).unwrap().claims;
    assert_eq!(claims, json!({"application_id": "account-1", "iat": NOW, "exp": NOW + 300, "jti": "n0"}));
    let without = super::account(Vonage).rest(STAMP).hang_up("c-1").unwrap_err();
    assert_eq!(without.to_string(), "phone.accounts.vonage.private_key: found nothing; allowed: a value, for hang_up");
    let wrong =
        Account::new("vonage", &config(Vonage), &PublicUrl::new("https://a.example"), Some(b"no key")).unwrap_err();
    assert!(wrong.contains("phone.accounts.vonage.private_key") && !wrong.contains("no key"), "{wrong}");
    let absent = PhoneAccountConfig { private_key: Some("/nonexistent/key.pem".into()), ..config(Vonage) };
    let absent = Account::open("vonage", &absent, &PublicUrl::new("https://a.example")).unwrap_err();
    assert!(absent.contains("cannot read `/nonexistent/key.pem`"), "{absent}");
}

#[test]
fn transferring() {
    let to = Target::parse("+15550123").unwrap();
    let of = |kind: PhoneKind| any(kind).rest(STAMP).transfer("c-1", &to).unwrap();
    let twiml = form(&of(Twilio));
    assert_eq!((twiml.len(), twiml[0].0.as_str()), (1, "Twiml"));
    assert!(twiml[0].1.contains("<Number>+15550123</Number>"));
    let page = |name: &str| format!("https://relay.example.com/phone/{name}/transfer?to=%2B15550123");
    assert_eq!(form(&of(Signalwire))[0], ("Url".to_owned(), page("signalwire")));
    let ask = of(Telnyx);
    assert_eq!(body(&ask), json!({"to": "+15550123", "from": "+15550100"}));
    assert!(ask.url.ends_with("/v2/calls/c-1/actions/transfer"));
    assert_eq!(body(&of(Plivo)), json!({"legs": "aleg", "aleg_url": page("plivo"), "aleg_method": "POST"}));
    assert_eq!(body(&of(Vonage))["destination"]["ncco"][0]["endpoint"][0]["number"], "15550123");
    assert_eq!(body(&of(Jambonz)), json!({"call_hook": {"url": page("jambonz"), "method": "POST"}}));
    assert_eq!(
        of(Asterisk).url,
        "http://127.0.0.1:8088/ari/channels/c-1/continue?context=voxrelay&extension=%2B15550123&priority=1"
    );
    assert_eq!(of(Freeswitch).url, "http://127.0.0.1:8080/txtapi/uuid_transfer?c-1%20%2B15550123%20XML%20voxrelay");
    let sip = Target::parse("sip:desk@pbx.example.com").unwrap();
    let error = account(Asterisk).rest(STAMP).transfer("c-1", &sip).unwrap_err();
    assert!(matches!(error, Unable::Unsupported { .. }), "{error}");
}

#[test]
fn pressing_keys() {
    let of = |kind: PhoneKind, keys: &str| any(kind).rest(STAMP).send_dtmf("c-1", keys);
    let ask = of(Telnyx, "12#").unwrap();
    assert_eq!((ask.url.ends_with("/c-1/actions/send_dtmf"), body(&ask)), (true, json!({"digits": "12#"})));
    let ask = of(Plivo, "1").unwrap();
    assert_eq!((ask.url.ends_with("/Call/c-1/DTMF/"), body(&ask)), (true, json!({"digits": "1", "leg": "aleg"})));
    let ask = of(Vonage, "1").unwrap();
    assert_eq!((ask.method.as_str(), ask.url.as_str()), ("PUT", "https://api.nexmo.com/v1/calls/c-1/dtmf"));
    assert!(of(Asterisk, "1#*").unwrap().url.ends_with("/channels/c-1/dtmf?dtmf=1%23*"));
    assert!(of(Freeswitch, "1#").unwrap().url.ends_with("/uuid_send_dtmf?c-1%201%23"));
    for kind in [Twilio, Signalwire, Jambonz] {
        let error = of(kind, "1").unwrap_err().to_string();
        assert!(error.contains("has no send_dtmf over REST: "), "{error}");
    }
    for wrong in ["", "1 2", "x", "1%0a", &"1".repeat(33)] {
        assert!(matches!(of(Telnyx, wrong), Err(Unable::Value { field: "digits", .. })), "{wrong}");
    }
}

#[test]
fn dialling() {
    let of = |kind: PhoneKind| any(kind).rest(STAMP).dial(&dial(kind)).unwrap();
    let back = |name: &str, page: &str| format!("https://relay.example.com/phone/{name}/{page}?dial=ref0123456789abc");
    let field = |fields: &[(String, String)], name: &str| {
        fields.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect::<Vec<_>>().join(",")
    };
    let ask = of(Twilio);
    let fields = form(&ask);
    assert_eq!(ask.url, "https://api.twilio.com/2010-04-01/Accounts/account-1/Calls.json");
    for (name, value) in [
        ("To", "+15550122"),
        ("From", "+15550100"),
        ("Timeout", "30"),
        ("StatusCallback", &back("twilio", "status")),
        ("StatusCallbackEvent", "initiated,ringing,answered,completed"),
        ("AsyncAmdStatusCallback", &back("twilio", "status")),
    ] {
        assert_eq!(field(&fields, name), value, "{name}");
    }
    assert!(field(&fields, "Twiml").contains("<Parameter name=\"token\" value=\"a1b2c3d4e5f60718\" />"));
    let fields = form(&of(Signalwire));
    assert_eq!((field(&fields, "Url"), field(&fields, "Method")), (back("signalwire", "voice"), "POST".to_owned()));

    let telnyx = body(&of(Telnyx));
    for (name, value) in [
        ("connection_id", json!("connection-1")),
        ("to", json!("+15550122")),
        ("from", json!("+15550100")),
        ("stream_url", json!("wss://relay.example.com/phone/telnyx/stream")),
        ("stream_bidirectional_mode", json!("rtp")),
        ("stream_auth_token", json!("a1b2c3d4e5f60718")),
        ("webhook_url", json!(back("telnyx", "status"))),
        ("command_id", json!("k1")),
    ] {
        assert_eq!(telnyx[name], value, "{name}");
    }
    let plivo = body(&of(Plivo));
    assert_eq!((&plivo["to"], &plivo["from"]), (&json!("15550122"), &json!("15550100")));
    assert_eq!(plivo["answer_url"], back("plivo", "voice"));
    let vonage = body(&of(Vonage));
    assert_eq!(vonage["to"], json!([{"type": "phone", "number": "15550122"}]));
    assert_eq!(vonage["ncco"][0]["endpoint"][0]["headers"]["token"], "a1b2c3d4e5f60718");
    assert_eq!(vonage["event_url"], json!([back("vonage", "status")]));
    let jambonz = body(&of(Jambonz));
    assert_eq!(jambonz["call_hook"]["url"], back("jambonz", "voice"));
    let asterisk = of(Asterisk);
    assert_eq!(
        asterisk.url,
        "http://127.0.0.1:8088/ari/channels?endpoint=PJSIP%2F%2B15550122%40trunk&context=voxrelay&extension=voxrelay&\
         priority=1&callerId=%2B15550100&timeout=30"
    );
    assert_eq!(body(&asterisk)["variables"]["VOXRELAY_TOKEN"], "01234567-89ab-4cde-8f01-23456789abcd");
    let freeswitch = of(Freeswitch).url;
    assert!(
        freeswitch.contains("voxrelay_token%3Da1b2c3d4e5f60718")
            && freeswitch.ends_with("%20voxrelay%20XML%20voxrelay")
    );
}

#[test]
fn what_cannot_be_dialled_is_named() {
    let account = account(Twilio);
    let rest: Rest<'_> = account.rest(STAMP);
    let good = dial(Twilio);
    for (wrong, field) in [
        (Dial { number: "15550122", ..good }, "number"),
        (Dial { number: "+1555\r\n", ..good }, "number"),
        (Dial { from: Some("me"), ..good }, "from"),
        (Dial { token: "x", ..good }, "token"),
        (Dial { reference: "a&b=c0123456789abc", ..good }, "reference"),
        (Dial { ring_s: 1, ..good }, "ring_s"),
    ] {
        assert!(rest.dial(&wrong).unwrap_err().to_string().starts_with(&format!("{field}: found")), "{wrong:?}");
    }
    for (kind, field) in [(Twilio, "caller"), (Telnyx, "connection_id"), (Jambonz, "api_key"), (Asterisk, "endpoint")] {
        let mut less = config(kind);
        match field {
            "caller" => less.caller = None,
            "connection_id" => less.connection_id = None,
            "api_key" => less.api_key = None,
            _ => less.endpoint = None,
        }
        let error = open(&less).rest(STAMP).dial(&dial(kind)).unwrap_err().to_string();
        assert_eq!(error, format!("phone.accounts.{}.{field}: found nothing; allowed: a value, for dial", kind.name()));
    }
}

#[test]
fn answers_are_understood() {
    let done = |call: &str| Ok(Some(call.to_owned()));
    let gone = || Ok(None);
    type Wanted = Result<Option<String>, &'static str>;
    let rows: &[(PhoneKind, Act, u16, &str, Wanted)] = &[
        (Twilio, Act::Dial, 201, r#"{"sid":"CA1"}"#, done("CA1")),
        (Telnyx, Act::Dial, 200, r#"{"data":{"call_control_id":"v3:c"}}"#, done("v3:c")),
        (Plivo, Act::Dial, 201, r#"{"message":"call fired","request_uuid":"r-1"}"#, done("r-1")),
        (Vonage, Act::Dial, 201, r#"{"uuid":"u-1","status":"started"}"#, done("u-1")),
        (Jambonz, Act::Dial, 201, r#"{"sid":"s-1"}"#, done("s-1")),
        (Asterisk, Act::Dial, 200, r#"{"id":"1795000000.1"}"#, done("1795000000.1")),
        (Freeswitch, Act::Dial, 200, "+OK u-1\n", done("u-1")),
        (Twilio, Act::Dial, 201, "{}", Err("names no call")),
        (Twilio, Act::Dial, 201, r#"{"sid":"../x"}"#, Err("names no call")),
        (Freeswitch, Act::Dial, 200, "+OK", Err("names no call")),
        (Twilio, Act::HangUp, 404, r#"{"code":20404,"message":"not found"}"#, gone()),
        (Signalwire, Act::HangUp, 404, "", gone()),
        (Twilio, Act::HangUp, 400, r#"{"code":21220,"message":"not in-progress"}"#, gone()),
        (Telnyx, Act::HangUp, 422, r#"{"errors":[{"code":"90018","title":"Call has already ended"}]}"#, gone()),
        (Plivo, Act::HangUp, 404, r#"{"error":"call not found"}"#, gone()),
        (Vonage, Act::HangUp, 404, "", gone()),
        (Jambonz, Act::HangUp, 404, "", gone()),
        (Asterisk, Act::HangUp, 404, r#"{"message":"Channel not found"}"#, gone()),
        (Freeswitch, Act::HangUp, 200, "-ERR No such channel!\n", gone()),
        (
            Twilio,
            Act::Transfer,
            404,
            r#"{"code":20404,"message":"not found"}"#,
            Err("twilio refused to transfer: status 404, code 20404: not found"),
        ),
        (
            Telnyx,
            Act::Transfer,
            422,
            r#"{"errors":[{"code":"90018","detail":"ended"}]}"#,
            Err("telnyx refused to transfer: status 422, code 90018: ended"),
        ),
        (Telnyx, Act::HangUp, 422, r#"{"errors":[{"code":"90015"}]}"#, Err("status 422, code 90015")),
        (
            Asterisk,
            Act::SendDtmf,
            409,
            r#"{"message":"Channel not in Stasis"}"#,
            Err("asterisk refused to send_dtmf: status 409: Channel not in Stasis"),
        ),
        (Freeswitch, Act::Dial, 200, "-ERR NO_ANSWER", Err("freeswitch refused to dial: status 200: NO_ANSWER")),
        (Freeswitch, Act::HangUp, 401, "Unauthorized", Err("freeswitch refused to hang_up: status 401")),
        (
            Vonage,
            Act::Dial,
            401,
            r#"{"title":"Unauthorized","detail":"bad jwt"}"#,
            Err("vonage refused to dial: status 401: bad jwt"),
        ),
        (Plivo, Act::Dial, 503, "<html>", Err("plivo refused to dial: status 503")),
        (Jambonz, Act::Dial, 400, r#"{"msg":"no carrier"}"#, Err("jambonz refused to dial: status 400: no carrier")),
    ];
    for (kind, act, status, body, wanted) in rows {
        let found = account(*kind).done(*act, *status, body.as_bytes());
        match wanted {
            Ok(call) => assert_eq!(found, Ok(Done { call: call.clone(), gone: call.is_none() }), "{kind:?} {body}"),
            Err(part) => {
                let failure = found.expect_err(body);
                assert!(failure.to_string().contains(part), "{failure}");
                assert_eq!(failure.is_passing(), *status == 503);
            }
        }
    }
    for kind in PhoneKind::ALL {
        let body: &[u8] = if kind == Freeswitch { b"+OK" } else { b"" };
        assert_eq!(account(kind).done(Act::HangUp, 204, body), Ok(Done { call: None, gone: false }), "{kind:?}");
    }
}

#[test]
fn a_refusal_is_short_and_holds_no_secret() {
    let body = json!({"message": format!("bad token auth-token-1\r\n{}", "x".repeat(1_000)), "code": "auth-token-1"});
    let failure = account(Twilio).done(Act::Dial, 401, body.to_string().as_bytes()).unwrap_err();
    let text = format!("{failure} {failure:?}");
    assert!(failure.message.chars().count() <= 202 && !text.contains("auth-token-1") && !text.contains('\n'), "{text}");
    assert!(failure.to_string().contains("bad token (redacted)"), "{failure}");
}
