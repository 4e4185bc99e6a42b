//! Vectors of the providers' own libraries, and everything that must be refused.
use std::sync::{Arc, OnceLock};

use proptest::prelude::*;

use super::*;
use crate::config::PhoneKind::{Asterisk, Freeswitch, Jambonz, Plivo, Signalwire, Telnyx, Twilio, Vonage};

const SETTINGS: &str = "x-twilio-webhooks-signature-settings";

fn golden() -> Value {
    serde_json::from_str(GOLDEN).unwrap()
}

fn form_of(params: &Value) -> String {
    let mut text = form_urlencoded::Serializer::new(String::new());
    for (name, value) in params.as_object().unwrap() {
        text.append_pair(name, value.as_str().unwrap());
    }
    text.finish()
}

#[test]
fn twilio_signs_as_its_own_library_does() {
    let golden = golden();
    let rows = golden["twilio_signatures"].as_array().unwrap();
    let mut seen = (0, 0);
    for row in rows {
        let (url, token) = (row["url"].as_str().unwrap(), row["auth_token"].as_str().unwrap());
        let signature = row["x_twilio_signature"].as_str().unwrap();
        let sha256 = row["algorithm"] == "HMAC_SHA256";
        let mut config = config(Twilio);
        config.auth_token = Some(Secret::new(if sha256 { "another" } else { token }));
        config.signing_key = Some(Secret::new(if sha256 { token } else { "another" }));
        config.signing_key_name = Some("k1".into());
        let account = open(&config);
        let at = url.find("example.com").unwrap() + "example.com".len();
        let target = &url[at..].trim_start_matches([':', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
        let request = match row["params"].as_object().unwrap().is_empty() {
            true => Request::get(target),
            false => Request::form(target, &form_of(&row["params"])),
        };
        let request = request.with("x-twilio-signature", signature);
        let request = if sha256 { request.with(SETTINGS, "key=k1,algorithm=HMAC_SHA256") } else { request };
        if url.starts_with("wss:") {
            assert_eq!(account.verify_stream(&request.asked()), Ok(StreamProof::Proven), "{row}");
            let elsewhere = Request { target: "/twilio/other".into(), ..request };
            assert!(account.verify_stream(&elsewhere.asked()).is_err(), "{row}");
            seen.0 += 1;
        } else {
            assert!(account.verify(&request.asked(), NOW).is_ok(), "{row}");
            assert!(account.verify_stream(&request.asked()).is_err(), "a webhook's signature opens no stream");
            seen.1 += 1;
        }
    }
    assert_eq!(seen, (5, 2));
}

#[test]
fn plivo_signs_as_its_own_library_does() {
    let golden = golden();
    let rows = golden["plivo_signature_v3"].as_array().unwrap();
    for row in rows {
        let mut config = config(Plivo);
        config.auth_token = Some(Secret::new(row["auth_token"].as_str().unwrap()));
        let target = row["url"].as_str().unwrap().strip_prefix("https://relay.example.com").unwrap();
        let request = match row["method"].as_str().unwrap() {
            "GET" => Request::get(target),
            _ => Request::form(target, &form_of(&row["params"])),
        };
        let signature = row["x_plivo_signature_v3"].as_str().unwrap();
        let request = request.with("x-plivo-signature-v3-nonce", row["nonce"].as_str().unwrap());
        let one = request.clone().with("x-plivo-signature-v3", signature);
        let several = request.clone().with("x-plivo-signature-v3", &format!("AAAA, {signature},????"));
        let account = open(&config);
        for request in [&one, &several] {
            assert!(account.verify(&request.asked(), NOW).is_ok(), "{row}");
        }
        let other = one.with("x-plivo-signature-v3-nonce", "0");
        assert!(account.verify(&other.asked(), NOW).is_err(), "{row}");
    }
    assert_eq!(rows.len(), 2);
}

#[test]
fn plivo_signs_query_and_form_together() {
    let request = Request::form("/phone/plivo/status?dial=b&a=1", "To=1&CallUUID=c");
    let text = "https://relay.example.com/phone/plivo/status?a=1&dial=b.CallUUIDcTo1.n";
    let signature = STANDARD.encode(tag(hmac::HMAC_SHA256, "auth-token-1", text.as_bytes()));
    let request = request.with("x-plivo-signature-v3", &signature).with("x-plivo-signature-v3-nonce", "n");
    assert!(account(Plivo).verify(&request.asked(), NOW).is_ok());
}

#[test]
fn a_signed_call_of_each_kind_is_taken() {
    for kind in PhoneKind::ALL {
        let verified = account(kind).verify(&call(kind).asked(), NOW);
        assert!(verified.is_ok(), "{kind:?}: {verified:?}");
    }
}

type Change = fn(Request) -> Request;

fn body(request: Request, body: &str) -> Request {
    Request { body: body.into(), ..request }
}

fn target(request: Request, target: &str) -> Request {
    Request { target: target.into(), ..request }
}

fn without(mut request: Request, name: &str) -> Request {
    assert!(request.headers.remove(name).is_some());
    request
}

fn twice(mut request: Request, name: &'static str) -> Request {
    let value = request.headers[name].clone();
    request.headers.append(name, value);
    request
}

fn token(header: Value, change: Value, secret: &str) -> Request {
    let request = call(Vonage);
    let mut claims = claims(&request.body);
    for (name, value) in change.as_object().unwrap() {
        if value == "(gone)" {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    request.with("authorization", &format!("Bearer {}", jwt(&header, &claims, secret)))
}

fn said(change: Value) -> Request {
    token(json!({"alg": "HS256", "typ": "JWT"}), change, "signature-secret-0123456789abcdef")
}

fn headed(header: Value) -> Request {
    token(header, json!({}), "signature-secret-0123456789abcdef")
}

fn basic(pair: &str) -> Request {
    call(Asterisk).with("authorization", &format!("Basic {}", STANDARD.encode(pair)))
}

/// Every row starts from a good request.
#[test]
fn forged_requests_are_refused() {
    let rows: &[(&str, PhoneKind, &str, Change)] = &[
        ("no signature", Twilio, "no X-Twilio", |r| without(r, "x-twilio-signature")),
        ("two signatures", Twilio, "or several", |r| twice(r, "x-twilio-signature")),
        ("empty signature", Twilio, "wrong", |r| r.with("x-twilio-signature", "")),
        ("no base64", Twilio, "not base64", |r| r.with("x-twilio-signature", "?")),
        ("another signature", Twilio, "wrong", |r| r.with("x-twilio-signature", "bUFMpWZLq0Wt0x1rGJn1lMqlvP4=")),
        ("half a signature", Twilio, "wrong", |r| r.with("x-twilio-signature", "AAAA")),
        ("another value", Twilio, "wrong", |r| {
            body(r, "CallSid=CA2&From=%2B15550111&To=%2B15550100&Direction=inbound")
        }),
        ("one field more", Twilio, "wrong", |r| {
            body(r, "CallSid=CA1&From=%2B15550111&To=%2B15550100&Direction=inbound&a=b")
        }),
        ("one field less", Twilio, "wrong", |r| body(r, "CallSid=CA1&From=%2B15550111&To=%2B15550100")),
        ("no fields", Twilio, "wrong", |r| body(r, "")),
        ("a second value", Twilio, "wrong", |r| {
            body(r, "CallSid=CA1&CallSid=CA0&From=%2B15550111&To=%2B15550100&Direction=inbound")
        }),
        ("another path", Twilio, "wrong", |r| target(r, "/phone/twilio/status")),
        ("a query", Twilio, "wrong", |r| target(r, "/phone/twilio/voice?dial=x")),
        ("another account's path", Twilio, "wrong", |r| target(r, "/phone/twilio2/voice")),
        ("no path", Twilio, "no path", |r| target(r, "*")),
        ("a whole URL", Twilio, "no path", |r| target(r, "https://relay.example.com/phone/twilio/voice")),
        ("JSON", Twilio, "no bodySHA256", |r| r.with("content-type", "application/json")),
        ("JSON by its looks", Twilio, "no bodySHA256", |r| without(body(r, "{\"CallSid\":\"CA1\"}"), "content-type")),
        ("a digest that is none", Twilio, "no bodySHA256", |r| {
            target(r, "/phone/twilio/voice?bodySHA256=zz").with("content-type", "application/json")
        }),
        ("another digest", Twilio, "another digest", |r| {
            target(r, "/phone/twilio/voice?bodySHA256=00").with("content-type", "application/json")
        }),
        ("SHA-256 without a key", Twilio, "no signing_key", |r| r.with(SETTINGS, "key=k1,algorithm=HMAC_SHA256")),
        ("an unknown algorithm", Twilio, "no known algorithm", |r| r.with(SETTINGS, "key=k1,algorithm=NONE")),
        ("no algorithm", Twilio, "no known algorithm", |r| r.with(SETTINGS, "key=k1")),
        ("SHA-1 by settings", Twilio, "no known algorithm", |r| r.with(SETTINGS, "key=k1,algorithm=HMAC_SHA1")),
        ("settings twice", Twilio, "several", |r| twice(r.with(SETTINGS, "algorithm=HMAC_SHA256"), SETTINGS)),
        ("no signature", Signalwire, "no X-SignalWire", |r| without(r, "x-signalwire-signature")),
        ("Twilio's token", Signalwire, "wrong", |r| {
            let good = sign(Twilio, without(r, "x-signalwire-signature"));
            good.clone().with("x-signalwire-signature", good.headers["x-twilio-signature"].to_str().unwrap())
        }),
        ("another value", Signalwire, "wrong", |r| body(r, "CallSid=CA2")),
        ("another path", Signalwire, "wrong", |r| target(r, "/phone/signalwire/status")),
        ("no signature", Plivo, "no X-Plivo-Signature-V3", |r| without(r, "x-plivo-signature-v3")),
        ("two signature headers", Plivo, "no X-Plivo-Signature-V3", |r| twice(r, "x-plivo-signature-v3")),
        ("no nonce", Plivo, "V3-Nonce", |r| without(r, "x-plivo-signature-v3-nonce")),
        ("an empty nonce", Plivo, "V3-Nonce", |r| r.with("x-plivo-signature-v3-nonce", "")),
        ("another nonce", Plivo, "wrong", |r| r.with("x-plivo-signature-v3-nonce", "n2")),
        ("only commas", Plivo, "wrong", |r| r.with("x-plivo-signature-v3", ",,,")),
        ("another value", Plivo, "wrong", |r| body(r, "CallUUID=c-2")),
        ("another path", Plivo, "wrong", |r| target(r, "/phone/plivo/status")),
        ("a query", Plivo, "wrong", |r| target(r, "/phone/plivo/voice?dial=x")),
        ("JSON", Plivo, "not signed", |r| r.with("content-type", "application/json")),
        ("a GET with a body", Plivo, "not signed", |r| Request { method: Method::GET, ..r }),
        ("a PUT", Plivo, "not signed", |r| Request { method: Method::PUT, ..r }),
        ("the ninth signature", Plivo, "wrong", |r| {
            let good = r.headers["x-plivo-signature-v3"].to_str().unwrap().to_owned();
            r.with("x-plivo-signature-v3", &format!("a,a,a,a,a,a,a,a,{good}"))
        }),
        ("no signature", Telnyx, "no telnyx-signature", |r| without(r, "telnyx-signature-ed25519")),
        ("no time", Telnyx, "no telnyx-timestamp", |r| without(r, "telnyx-timestamp")),
        ("time in words", Telnyx, "no number", |r| r.with("telnyx-timestamp", "now")),
        ("another time", Telnyx, "wrong", |r| r.with("telnyx-timestamp", "1795000001")),
        ("the same time, otherwise written", Telnyx, "wrong", |r| r.with("telnyx-timestamp", "01795000000")),
        ("another body", Telnyx, "wrong", |r| body(r, "{}")),
        ("a GET", Telnyx, "no POST", |r| Request { method: Method::GET, ..r }),
        ("a short signature", Telnyx, "wrong", |r| r.with("telnyx-signature-ed25519", "AAAA")),
        ("no token", Vonage, "no Authorization", |r| without(r, "authorization")),
        ("Basic", Vonage, "no Authorization: Bearer", |r| r.with("authorization", "Basic abc")),
        ("no JWT", Vonage, "not signed", |r| r.with("authorization", "Bearer abc")),
        ("another body", Vonage, "another digest", |r| body(r, "{}")),
        ("another secret", Vonage, "not signed", |_| token(json!({"alg": "HS256"}), json!({}), "guessed")),
        ("alg none", Vonage, "not signed", |_| headed(json!({"alg": "none"}))),
        ("alg HS512", Vonage, "not signed", |_| headed(json!({"alg": "HS512"}))),
        ("alg RS256", Vonage, "not signed", |_| headed(json!({"alg": "RS256"}))),
        ("another issuer", Vonage, "somebody else", |_| said(json!({"iss": "Nexmo"}))),
        ("no issuer", Vonage, "says too little", |_| said(json!({"iss": "(gone)"}))),
        ("no time", Vonage, "says too little", |_| said(json!({"iat": "(gone)"}))),
        ("time as text", Vonage, "says too little", |_| said(json!({"iat": "1795000000"}))),
        ("no id", Vonage, "says too little", |_| said(json!({"jti": "(gone)"}))),
        ("an empty id", Vonage, "no id", |_| said(json!({"jti": ""}))),
        ("too old", Vonage, "too far", |_| said(json!({"iat": NOW - 301}))),
        ("from the future", Vonage, "too far", |_| said(json!({"iat": NOW + 301}))),
        ("expired", Vonage, "expired", |_| said(json!({"exp": NOW}))),
        ("another application", Vonage, "another application", |_| said(json!({"application_id": "account-2"}))),
        ("no digest", Vonage, "does not cover", |_| said(json!({"payload_hash": "(gone)"}))),
        ("a digest that is none", Vonage, "does not cover", |_| said(json!({"payload_hash": "xyz"}))),
        ("no signature", Jambonz, "no Jambonz-Signature", |r| without(r, "jambonz-signature")),
        ("no time", Jambonz, "no time", |r| r.with("jambonz-signature", "v1=00")),
        ("two times", Jambonz, "or several", |r| r.with("jambonz-signature", "t=1,t=1795000000,v1=00")),
        ("time in words", Jambonz, "no number", |r| r.with("jambonz-signature", "t=now,v1=00")),
        ("no tag", Jambonz, "wrong", |r| r.with("jambonz-signature", "t=1795000000")),
        ("a tag that is none", Jambonz, "wrong", |r| r.with("jambonz-signature", "t=1795000000,v1=+f")),
        ("another version", Jambonz, "wrong", |r| {
            let value = r.headers["jambonz-signature"].to_str().unwrap().replace("v1", "v0");
            r.with("jambonz-signature", &value)
        }),
        ("another body", Jambonz, "wrong", |r| body(r, "{}")),
        ("a GET", Jambonz, "no POST", |r| Request { method: Method::GET, ..r }),
        ("no password", Asterisk, "no Authorization", |r| without(r, "authorization")),
        ("another password", Asterisk, "password is wrong", |_| basic("relay:stream-password-2")),
        ("no password but a user", Asterisk, "password is wrong", |_| basic("relay:")),
        ("the password as user", Asterisk, "password is wrong", |_| basic("stream-password-1:")),
        ("no base64", Asterisk, "not base64", |r| r.with("authorization", "Basic ???")),
        ("no scheme", Asterisk, "no known form", |r| r.with("authorization", "stream-password-1")),
        ("Digest", Asterisk, "neither Basic nor Bearer", |r| r.with("authorization", "Digest a=b")),
        ("another bearer", Freeswitch, "password is wrong", |r| r.with("authorization", "Bearer stream-password-")),
        ("two headers", Freeswitch, "no Authorization", |r| twice(r, "authorization")),
    ];
    assert!(rows.len() >= 60, "{}", rows.len());
    for (name, kind, reason, change) in rows {
        let forged = account(*kind).verify(&change(call(*kind)).asked(), NOW).expect_err(name);
        assert!(forged.reason().contains(reason), "{kind:?}, {name}: {}", forged.reason());
        assert_eq!(forged.to_string(), Forged::new("x").to_string(), "all look the same from outside");
    }
}

#[test]
fn what_may_be_written_in_two_ways_is_taken_both_ways() {
    let rows: &[(&str, PhoneKind, Change)] = &[
        ("fields in another order", Twilio, |r| {
            body(r, "To=%2B15550100&Direction=inbound&From=%2B15550111&CallSid=CA1")
        }),
        ("a field twice", Twilio, |r| {
            body(r, "CallSid=CA1&CallSid=CA1&From=%2B15550111&To=%2B15550100&Direction=inbound")
        }),
        ("a slash at the end", Twilio, |r| target(r, "/phone/twilio/voice/")),
        ("no content type", Twilio, |r| without(r, "content-type")),
        ("Twilio's header", Signalwire, |r| {
            let value = r.headers["x-signalwire-signature"].to_str().unwrap().to_owned();
            without(r, "x-signalwire-signature").with("x-twilio-signature", &value)
        }),
        ("large digits", Jambonz, |r| {
            let (t, tag) = r.headers["jambonz-signature"].to_str().unwrap().split_once(",v1=").unwrap();
            let value = format!("{t}, v1={}", tag.to_uppercase());
            r.with("jambonz-signature", &value)
        }),
        ("an old secret besides", Jambonz, |r| {
            let value = format!("{},v1=00", r.headers["jambonz-signature"].to_str().unwrap());
            r.with("jambonz-signature", &value)
        }),
        ("Bearer", Asterisk, |r| r.with("authorization", "bearer stream-password-1")),
        ("any user", Asterisk, |_| basic("somebody:stream-password-1")),
        ("an application's token without its id", Vonage, |_| said(json!({"application_id": "(gone)"}))),
    ];
    for (name, kind, change) in rows {
        let verified = account(*kind).verify(&change(call(*kind)).asked(), NOW);
        assert!(verified.is_ok(), "{kind:?}, {name}: {verified:?}");
    }
}

#[test]
fn json_is_covered_by_its_digest() {
    let text = json!({"CallSid": "CA1"}).to_string();
    let target = format!("/phone/twilio/voice?bodySHA256={}", hex(&sha256(text.as_bytes())));
    let url = format!("https://relay.example.com{target}");
    let signature = STANDARD.encode(tag(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, "auth-token-1", url.as_bytes()));
    let request = Request::post(&target, "application/json", &text).with("x-twilio-signature", &signature);
    assert!(account(Twilio).verify(&request.asked(), NOW).is_ok());
    let forged = body(request, "{\"CallSid\": \"CA2\"}");
    assert!(account(Twilio).verify(&forged.asked(), NOW).is_err());
}

#[test]
fn times_have_a_window_of_five_minutes() {
    for kind in [Telnyx, Vonage, Jambonz] {
        let request = call(kind);
        for (now, good) in [(NOW - 301, false), (NOW - 300, true), (NOW + 300, true), (NOW + 301, false), (0, false)] {
            assert_eq!(account(kind).verify(&request.asked(), now).is_ok(), good, "{kind:?} {now}");
        }
    }
}

#[test]
fn a_request_that_comes_again_has_its_first_answer_and_another_one_has_none() {
    let replays: Replays<Arc<OnceLock<u32>>> = Replays::default();
    let mut answers = 0;
    for kind in PhoneKind::ALL {
        let (account, request) = (account(kind), call(kind));
        let whole = request.asked().digest();
        let mut ask = |now| {
            let verified = account.verify(&request.asked(), now).unwrap();
            *replays.answer(&verified, whole, now).unwrap().get_or_init(|| {
                answers += 1;
                answers
            })
        };
        let first = ask(NOW);
        let by_password = matches!(kind, Asterisk | Freeswitch);
        assert_eq!(ask(NOW + 10) == first, !by_password, "{kind:?}");
        assert_eq!(ask(NOW + 300) == first, !by_password, "{kind:?}: as long as it would be taken");
        let again = account.verify(&request.asked(), NOW).unwrap();
        let other = Asked { target: "/phone/other/voice", ..request.asked() }.digest();
        assert_eq!(replays.answer(&again, other, NOW + 20).is_ok(), by_password, "{kind:?}: with another request");
    }
}

#[test]
fn not_all_answers_are_kept_and_a_request_without_one_is_refused() {
    let replays: Replays<Arc<OnceLock<u32>>> = Replays::default();
    let verified = |n: usize| Verified::of("test", &[&n.to_be_bytes()], None, NOW);
    for n in 0..5_000 {
        replays.answer(&verified(n), [0; 32], NOW).unwrap().set(1).unwrap();
    }
    assert_eq!(replays.answer(&verified(4_999), [0; 32], NOW).unwrap().get(), Some(&1));
    let forgotten = replays.answer(&verified(0), [0; 32], NOW).unwrap_err();
    assert!(forgotten.reason().contains("kept no more"), "{}", forgotten.reason());
}

#[test]
fn a_secret_of_one_account_opens_no_other() {
    for kind in PhoneKind::ALL {
        let mut other = config(kind);
        let secret = Some(Secret::new("another-secret-0123456789abcdef"));
        (other.auth_token, other.signing_key, other.stream_password) = (secret.clone(), secret.clone(), secret);
        other.public_key = Some(STANDARD.encode([9; 32]));
        assert!(open(&other).verify(&call(kind).asked(), NOW).is_err(), "{kind:?}");
        let none = PhoneAccountConfig { kind: Some(kind), ..PhoneAccountConfig::default() };
        assert!(open(&none).verify(&call(kind).asked(), NOW).is_err(), "{kind:?} without secrets");
    }
}

#[test]
fn host_and_forwarding_headers_do_not_count() {
    let request = call(Twilio).with("host", "evil.example").with("x-forwarded-host", "evil.example");
    assert!(account(Twilio).verify(&request.asked(), NOW).is_ok());
    let elsewhere = Account::new("twilio", &config(Twilio), &PublicUrl::new("https://evil.example"), None).unwrap();
    let request = call(Twilio).with("host", "relay.example.com");
    assert!(elsewhere.verify(&request.asked(), NOW).is_err());
}

#[test]
fn ports_and_slashes_may_differ_but_nothing_else() {
    use crate::phone::twilio::variants;
    for (url, wanted) in [
        (
            "wss://a.example/x",
            &[
                "wss://a.example/x",
                "wss://a.example/x/",
                "wss://a.example:443/x",
                "wss://a.example:443/x/",
                "wss://a.example:80/x",
                "wss://a.example:80/x/",
            ][..],
        ),
        (
            "https://a.example/x/?q=/",
            &[
                "https://a.example/x/?q=/",
                "https://a.example/x?q=/",
                "https://a.example:443/x/?q=/",
                "https://a.example:443/x?q=/",
            ],
        ),
        (
            "https://a.example:8443/x",
            &["https://a.example:8443/x", "https://a.example:8443/x/", "https://a.example/x", "https://a.example/x/"],
        ),
        ("http://[::1]/x", &["http://[::1]/x", "http://[::1]/x/", "http://[::1]:80/x", "http://[::1]:80/x/"]),
    ] {
        assert_eq!(variants(url), wanted, "{url}");
    }
}

#[test]
fn streams_show_what_their_provider_can_show() {
    let stream = |kind: PhoneKind| Request::get(&format!("/phone/{}/stream", kind.name()));
    let proof = |account: &Account, request: &Request| account.verify_stream(&request.asked()).ok();
    for kind in [Telnyx, Plivo, Vonage, Signalwire, Jambonz] {
        assert_eq!(proof(&account(kind), &stream(kind)), Some(StreamProof::TokenOnly), "{kind:?}");
    }
    for kind in [Twilio, Asterisk, Freeswitch] {
        assert_eq!(proof(&account(kind), &stream(kind)), None, "{kind:?} has to show something");
    }
    let url = "wss://relay.example.com/phone/signalwire/stream";
    let signature = STANDARD.encode(tag(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, "signing-key-1", url.as_bytes()));
    let signed = stream(Signalwire).with("x-signalwire-signature", &signature);
    assert_eq!(proof(&account(Signalwire), &signed), Some(StreamProof::Proven));
    let wrong = stream(Signalwire).with("x-signalwire-signature", "AAAA");
    assert_eq!(proof(&account(Signalwire), &wrong), None, "a signature that is there must be good");
    for (kind, pair, good) in [
        (Jambonz, "voxrelay:pass-1", true),
        (Jambonz, "other:pass-1", false),
        (Jambonz, "voxrelay:pass-2", false),
        (Signalwire, "any:pass-1", true),
        (Asterisk, "any:pass-1", true),
        (Asterisk, "any:pass-2", false),
        (Freeswitch, "any:pass-1", true),
    ] {
        let account = open(&PhoneAccountConfig { stream_password: Some(Secret::new("pass-1")), ..config(kind) });
        let request = stream(kind).with("authorization", &format!("Basic {}", STANDARD.encode(pair)));
        assert_eq!(proof(&account, &request), good.then_some(StreamProof::Proven), "{kind:?} {pair}");
        assert_eq!(proof(&account, &stream(kind)), None, "{kind:?} without");
    }
}

#[test]
fn tokens_are_found_in_the_upgrade_where_providers_put_them() {
    let token = "a1b2c3d4e5f60718";
    let uuid = "01234567-89ab-4cde-8f01-23456789abcd";
    let found = |kind, request: &Request| account(kind).stream_token(&request.asked());
    let header = Request::get("/phone/telnyx/stream").with("x-telnyx-streaming-auth-token", token);
    assert_eq!(found(Telnyx, &header).as_deref(), Some(token));
    assert_eq!(found(Twilio, &header), None);
    for (kind, shown, good) in [
        (Asterisk, uuid, true),
        (Asterisk, token, false),
        (Freeswitch, token, true),
        (Freeswitch, uuid, false),
        (Vonage, token, false),
    ] {
        let request = Request::get(&format!("/phone/x/stream?token={shown}"));
        assert_eq!(found(kind, &request).is_some(), good, "{kind:?} {shown}");
    }
    assert!(!TokenForm::Uuid.fits("0123456789ab-4cde-8f01-23456789abcd-") && !TokenForm::Alphanumeric.fits("short"));
}

proptest! {
    /// Whatever is changed in a signed body, signature or URL, the request is refused, unless it says the same as before.
    #[test]
    fn any_mutation_is_refused(which in 0usize..6, at in 0usize..1_000, to in any::<u8>(), part in 0u8..3) {
        let kind = [Twilio, Signalwire, Plivo, Telnyx, Vonage, Jambonz][which];
        let good = call(kind);
        let mut bad = good.clone();
        let covers_url = which < 3;
        match part {
            0 => {
                let at = at % bad.body.len();
                bad.body[at] = to;
            }
            1 if covers_url => {
                let mut bytes = bad.target.clone().into_bytes();
                let at = 1 + at % (bytes.len() - 1);
                bytes[at] = to;
                let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
                bad.target = text;
            }
            _ => {
                let name = ["x-twilio-signature", "x-signalwire-signature", "x-plivo-signature-v3", "telnyx-signature-ed25519",
                    "authorization", "jambonz-signature"][which];
                let mut bytes = bad.headers[name].as_bytes().to_vec();
                let at = at % bytes.len();
                bytes[at] = to;
                let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
                // The scheme's word and the digits may be written large or small.
                let same = value.as_bytes().eq_ignore_ascii_case(good.headers[name].as_bytes());
                if same && (kind == Jambonz || kind == Vonage && at < 6) {
                    return Ok(());
                }
                bad.headers.insert(name, value);
            }
        }
        let same_form = covers_url && joined(&bad) == joined(&good) && Fields::parse(&bad.body) == Fields::parse(&good.body);
        let same_body = bad.body == good.body || same_form && bad.asked().body_kind() == good.asked().body_kind();
        let same = same_body && bad.target == good.target && bad.headers == good.headers;
        prop_assert_eq!(account(kind).verify(&bad.asked(), NOW).is_ok(), same, "{:?}", bad);
    }

    /// Nothing that comes makes anything but an answer.
    #[test]
    fn nothing_panics(body in prop::collection::vec(any::<u8>(), 0..200), target in "/[ -~]{0,40}", header in "[ -~]{0,80}",
        json in any::<bool>()) {
        for kind in PhoneKind::ALL {
            let mut request = Request::post(&target, if json { "application/json" } else { "text/plain" }, "");
            request.body.clone_from(&body);
            for name in ["authorization", "x-twilio-signature", "x-plivo-signature-v3", "x-plivo-signature-v3-nonce",
                "telnyx-signature-ed25519", "telnyx-timestamp", "jambonz-signature", SETTINGS] {
                request = request.with(name, &header);
            }
            let account = account(kind);
            prop_assert!(account.verify(&request.asked(), NOW).is_err());
            let _ = account.verify_stream(&request.asked());
            let _ = account.incoming(&request.asked());
            let _ = account.status(&request.asked());
            let _ = account.transfer_page(&request.asked());
            let _ = account.done(crate::phone::rest::Act::Dial, 200, &request.body);
        }
    }
}
