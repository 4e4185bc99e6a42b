//! Answers to webhooks, to the letter.
use super::*;
use crate::{
    config::{
        PhoneCodec,
        PhoneKind::{Asterisk, Freeswitch, Jambonz, Plivo, Signalwire, Telnyx, Twilio, Vonage},
    },
    phone::{event::Incoming, rest::Target, twilio},
};

const TOKEN: &str = "a1b2c3d4e5f60718";
const UUID: &str = "01234567-89ab-4cde-8f01-23456789abcd";
const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response>";

fn connected(account: &Account) -> Written {
    account.connect(&Incoming { call: "c-1".into(), ..Incoming::default() }, TOKEN).unwrap()
}

fn xml(written: &Written) -> &str {
    assert_eq!(written.content_type, "text/xml");
    written.body.strip_prefix(HEAD).and_then(|rest| rest.strip_suffix("</Response>")).unwrap()
}

#[test]
fn twiml_is_the_librarys() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let with = Connect {
        stream: "wss://relay.example.com/twilio/media",
        status: "https://relay.example.com/twilio/stream-status",
        token: "relay-token-1",
    };
    assert_eq!(twilio::connect(&with), golden["twiml_connect_stream"].as_str().unwrap());
}

#[test]
fn each_provider_is_told_to_open_a_stream() {
    let parameter = format!("<Parameter name=\"token\" value=\"{TOKEN}\" /></Stream></Connect>");
    let of = |name: &str| {
        format!(
            "<Connect><Stream statusCallback=\"https://relay.example.com/phone/{name}/status\" \
             url=\"wss://relay.example.com/phone/{name}/stream\""
        )
    };
    assert_eq!(xml(&connected(&account(Twilio))), format!("{}>{parameter}", of("twilio")));
    let wide = PhoneAccountConfig {
        codec: Some(PhoneCodec::L16),
        stream_password: Some(Secret::new("a&b")),
        ..config(Signalwire)
    };
    assert_eq!(
        xml(&connected(&open(&wide))),
        format!("{} codec=\"L16@24000h\" realtime=\"true\" authBearerToken=\"a&amp;b\">{parameter}", of("signalwire"))
    );
    assert_eq!(
        xml(&connected(&account(Signalwire))),
        format!("{} codec=\"PCMU@8000h\" realtime=\"true\">{parameter}", of("signalwire"))
    );
    assert_eq!(
        xml(&connected(&account(Telnyx))),
        format!("{} bidirectionalMode=\"rtp\" bidirectionalCodec=\"PCMU\">{parameter}", of("telnyx"))
    );
    let wide = PhoneAccountConfig { codec: Some(PhoneCodec::L16), ..config(Telnyx) };
    assert!(xml(&connected(&open(&wide))).contains("bidirectionalCodec=\"L16\" bidirectionalSamplingRate=\"16000\">"));
    assert_eq!(
        xml(&connected(&account(Plivo))),
        format!(
            "<Stream bidirectional=\"true\" keepCallAlive=\"true\" contentType=\"audio/x-mulaw;rate=8000\" \
             audioTrack=\"inbound\" statusCallbackUrl=\"https://relay.example.com/phone/plivo/status\" \
             extraHeaders=\"token={TOKEN}\">wss://relay.example.com/phone/plivo/stream</Stream>"
        )
    );
    let json = |written: &Written| {
        assert_eq!(written.content_type, "application/json");
        serde_json::from_str::<Value>(&written.body).unwrap()
    };
    assert_eq!(
        json(&connected(&account(Vonage))),
        json!([{"action": "connect", "eventType": "synchronous",
            "eventUrl": ["https://relay.example.com/phone/vonage/status"],
            "endpoint": [{"type": "websocket", "uri": "wss://relay.example.com/phone/vonage/stream",
                "content-type": "audio/l16;rate=16000", "headers": {"token": TOKEN}}]}])
    );
    let guarded = PhoneAccountConfig { stream_password: Some(Secret::new("pass-1")), ..config(Jambonz) };
    assert_eq!(
        json(&connected(&open(&guarded))),
        json!([{"verb": "answer"}, {"verb": "listen", "url": "wss://relay.example.com/phone/jambonz/stream",
            "sampleRate": 24000, "mixType": "mono", "passDtmf": true,
            "bidirectionalAudio": {"enabled": true, "streaming": true, "sampleRate": 24000},
            "metadata": {"token": TOKEN}, "wsAuth": {"username": "voxrelay", "password": "pass-1"}}, {"verb": "hangup"}])
    );
    assert_eq!(connected(&account(Freeswitch)).body, TOKEN);
    let written = account(Asterisk).connect(&Incoming::default(), UUID).unwrap();
    assert_eq!((written.content_type, written.body.as_str()), ("text/plain; charset=utf-8", UUID));
}

#[test]
fn call_control_is_answered_over_rest() {
    let call = Incoming { call: "v3:c-1".into(), by_command: true, ..Incoming::default() };
    let written = account(Telnyx).connect(&call, TOKEN).unwrap();
    let ask = written.then.unwrap();
    assert_eq!(
        (written.body.as_str(), ask.url.as_str()),
        ("", "https://api.telnyx.com/v2/calls/v3:c-1/actions/answer")
    );
    let body: Value = serde_json::from_str(&ask.body).unwrap();
    assert_eq!(body["stream_url"], "wss://relay.example.com/phone/telnyx/stream");
    assert_eq!(
        (&body["stream_bidirectional_mode"], &body["stream_bidirectional_codec"]),
        (&json!("rtp"), &json!("PCMU"))
    );
    assert_eq!((&body["stream_auth_token"], &body["custom_parameters"][0]["value"]), (&json!(TOKEN), &json!(TOKEN)));
    let refused = account(Telnyx).refuse(&call, Refusal::Busy).unwrap().then.unwrap();
    assert_eq!((refused.url.ends_with("/actions/reject"), refused.body.as_str()), (true, "{\"cause\":\"USER_BUSY\"}"));
}

#[test]
fn a_token_of_another_form_goes_nowhere() {
    for kind in PhoneKind::ALL {
        for token in ["", "short", "with space in it 0123", "a-dash-0123456789", "<b>0123456789012", &"x".repeat(65)] {
            assert!(account(kind).connect(&Incoming::default(), token).is_err(), "{kind:?} {token}");
        }
        let (good, bad) = if kind == Asterisk { (UUID, TOKEN) } else { (TOKEN, UUID) };
        assert!(account(kind).connect(&Incoming::default(), good).is_ok(), "{kind:?}");
        assert!(account(kind).connect(&Incoming::default(), bad).is_err(), "{kind:?}");
    }
}

#[test]
fn a_call_for_nobody_is_turned_away() {
    let refused = |kind, why| account(kind).refuse(&Incoming::default(), why).unwrap();
    assert_eq!(xml(&refused(Twilio, Refusal::Nobody)), "<Reject reason=\"rejected\" />");
    assert_eq!(xml(&refused(Telnyx, Refusal::Busy)), "<Reject reason=\"busy\" />");
    assert_eq!(xml(&refused(Signalwire, Refusal::Busy)), "<Reject reason=\"busy\" />");
    assert_eq!(xml(&refused(Plivo, Refusal::Nobody)), "<Hangup reason=\"rejected\" />");
    assert_eq!(refused(Vonage, Refusal::Nobody).body, "[]");
    assert_eq!(
        refused(Jambonz, Refusal::Busy).body,
        "[{\"verb\":\"sip:decline\",\"status\":486,\"reason\":\"Busy Here\"}]"
    );
    assert_eq!(refused(Asterisk, Refusal::Nobody).body, "");
    assert_eq!(refused(Freeswitch, Refusal::Busy).body, "");
}

#[test]
fn a_transfer_is_written_in_each_markup() {
    let phone = Target::parse("+1 (555) 010-0123").unwrap();
    let sip = Target::parse("sip:desk@pbx.example.com").unwrap();
    let of = |kind, to: &Target| account(kind).transfer(to).map(|written| written.body).unwrap_or_default();
    let dial = "<Dial callerId=\"+15550100\">";
    for kind in [Twilio, Signalwire, Telnyx] {
        assert_eq!(of(kind, &phone), format!("{HEAD}{dial}<Number>+15550100123</Number></Dial></Response>"));
        assert_eq!(of(kind, &sip), format!("{HEAD}{dial}<Sip>sip:desk@pbx.example.com</Sip></Dial></Response>"));
    }
    assert_eq!(
        of(Plivo, &phone),
        format!("{HEAD}<Dial callerId=\"15550100\"><Number>15550100123</Number></Dial></Response>")
    );
    assert!(of(Plivo, &sip).contains("<User>sip:desk@pbx.example.com</User>"));
    assert_eq!(
        of(Vonage, &phone),
        json!([{"action": "connect", "endpoint": [{"type": "phone", "number": "15550100123"}], "from": "15550100"}])
            .to_string()
    );
    assert!(of(Vonage, &sip).contains("{\"type\":\"sip\",\"uri\":\"sip:desk@pbx.example.com\"}"));
    assert!(
        of(Jambonz, &phone)
            .starts_with("[{\"verb\":\"dial\",\"target\":[{\"type\":\"phone\",\"number\":\"+15550100123\"}]")
    );
    assert!(of(Jambonz, &sip).contains("sipUri"));
    assert_eq!(of(Asterisk, &phone), "");
    for wrong in ["", "555", "+1555<x>", "sip:a b@c", "sip:@", "sip:a@b@c", "http://x", "+05550100", "sip:a@b\"><Play>"]
    {
        assert!(Target::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_transfer_page_says_the_same() {
    let page = Request::post("/phone/plivo/transfer?to=%2B15550100123", "application/x-www-form-urlencoded", "");
    let to = Target::parse("+15550100123").unwrap();
    assert_eq!(account(Plivo).transfer_page(&page.asked()).ok(), account(Plivo).transfer(&to));
    let none = Request::get("/phone/plivo/transfer?to=nobody");
    assert!(account(Plivo).transfer_page(&none.asked()).unwrap_err().to_string().contains("sip:user@host"));
    assert!(account(Asterisk).transfer_page(&page.asked()).is_err());
}

#[test]
fn urls_are_made_of_the_public_one() {
    for (public, web, socket) in [
        (
            "https://relay.example.com",
            "https://relay.example.com/phone/mine/voice",
            "wss://relay.example.com/phone/mine/stream",
        ),
        (
            "https://a.example:8443/relay/",
            "https://a.example:8443/relay/phone/mine/voice",
            "wss://a.example:8443/relay/phone/mine/stream",
        ),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/phone/mine/voice", "ws://127.0.0.1:8080/phone/mine/stream"),
    ] {
        let account = Account::new("mine", &config(Twilio), &PublicUrl::new(public), None).unwrap();
        assert_eq!((account.url(Page::Voice).as_str(), account.url(Page::Stream).as_str()), (web, socket));
    }
}
