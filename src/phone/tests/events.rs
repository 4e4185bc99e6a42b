//! What providers say, row by row.
use super::*;
use crate::{
    config::PhoneKind::{Asterisk, Freeswitch, Jambonz, Plivo, Signalwire, Telnyx, Twilio, Vonage},
    phone::event::{Direction, Ending, Incoming, Machine, Progress, Said},
};

fn heard(kind: PhoneKind, request: &Request) -> Incoming {
    match account(kind).incoming(&request.asked()) {
        Ok(Said::Call(call)) => call,
        other => panic!("{kind:?}: {other:?}"),
    }
}

#[test]
fn a_call_says_who_calls_whom() {
    for kind in PhoneKind::ALL {
        let call = heard(kind, &call(kind));
        let plus = |text: Option<String>| text.map(|text| text.trim_start_matches('+').to_owned());
        assert_eq!(
            (plus(call.from).as_deref(), plus(call.to).as_deref()),
            (Some("15550111"), Some("15550100")),
            "{kind:?}"
        );
        assert!(!call.call.is_empty() && call.direction == Direction::Inbound && call.machine.is_none(), "{kind:?}");
        assert_eq!(call.by_command, kind == Telnyx);
    }
}

#[test]
fn everything_else_that_a_call_says_is_kept() {
    let form = "CallSid=CA1&Direction=outbound-api&AnsweredBy=machine_end_beep&CallerName=Ada&SipHeader_X-Order=7&ApiVersion=1";
    let call = heard(Twilio, &Request::form("/phone/twilio/voice?dial=ref1&other=x", form));
    assert_eq!((call.name.as_deref(), call.dial.as_deref()), (Some("Ada"), Some("ref1")));
    assert_eq!((call.direction, call.machine), (Direction::Outbound, Some(Machine::Beep)));
    assert_eq!(call.custom, [("X-Order".to_owned(), "7".to_owned())].into());

    let call = heard(Plivo, &Request::get("/phone/plivo/voice?CallUUID=c-1&From=1&X-PH-Order=7&Machine=true"));
    assert_eq!(call.custom, [("Order".to_owned(), "7".to_owned())].into());
    assert_eq!(call.machine, Some(Machine::Machine));

    let event = json!({"data": {"event_type": "call.initiated", "payload": {"call_control_id": "v3:a_b-c",
        "direction": "incoming", "custom_headers": [{"name": "X-Order", "value": "7"}, {"name": 5}, "odd"]}}});
    let call = heard(Telnyx, &Request::json("/phone/telnyx/voice", &event));
    assert_eq!(call.custom, [("X-Order".to_owned(), "7".to_owned())].into());
    let texml = heard(Telnyx, &Request::form("/phone/telnyx/voice", "CallSid=v3%3Aabc&From=%2B1&To=%2B2"));
    assert_eq!((texml.call.as_str(), texml.by_command), ("v3:abc", false));

    let call = heard(Vonage, &Request::get("/phone/vonage/voice?uuid=u-1&from=1&to=2&SipHeader_X-A=b"));
    assert_eq!((call.call.as_str(), call.custom.get("X-A").map(String::as_str)), ("u-1", Some("b")));

    let body = json!({"call_sid": "c", "direction": "outbound", "caller_name": "Ada", "sip": {"headers": {"X-A": "b", "via": "c"}}});
    let call = heard(Jambonz, &Request::json("/phone/jambonz/voice", &body));
    assert_eq!((call.direction, call.name.as_deref(), call.custom.len()), (Direction::Outbound, Some("Ada"), 1));

    let call = heard(Asterisk, &Request::form("/phone/asterisk/voice", "call=1.2&direction=out&x-order=7&name=A%00B"));
    assert_eq!((call.direction, call.name.as_deref()), (Direction::Outbound, Some("AB")));
    assert_eq!(call.custom.get("order").map(String::as_str), Some("7"));
}

#[test]
fn what_a_stranger_sends_stays_small() {
    let mut form = "CallSid=CA1&CallerName=".to_owned() + &"n".repeat(10_000);
    (0..200).for_each(|n| form += &format!("&SipHeader_X-{n}={}", "v".repeat(5_000)));
    let call = heard(Twilio, &Request::form("/phone/twilio/voice", &form));
    assert_eq!((call.custom.len(), call.name.map(|n| n.len())), (50, Some(256)));
    assert!(call.custom.values().all(|value| value.len() == 1_024));
}

#[test]
fn bad_calls_are_described() {
    for (kind, request, part) in [
        (Twilio, Request::form("/v", "From=1"), "`CallSid`: found nothing"),
        (Twilio, Request::form("/v", "CallSid=../x"), "`CallSid`: found something that is no id"),
        (Signalwire, Request::form("/v", "CallSid=.."), "no id of a call"),
        (Plivo, Request::get("/v?From=1"), "`CallUUID`"),
        (Telnyx, Request::json("/v", &json!({"data": {"event_type": "call.initiated"}})), "call_control_id"),
        (Telnyx, Request::post("/v", "application/json", "{"), "not JSON"),
        (Telnyx, Request::json("/v", &json!([])), "a JSON object"),
        (Vonage, Request::json("/v", &json!({"from": "1"})), "`uuid`"),
        (Jambonz, Request::json("/v", &json!({"call_sid": ["x"]})), "`call_sid`"),
        (Asterisk, Request::form("/v", "call=a%20b"), "`call`"),
        (Freeswitch, Request::get("/v?call="), "`call`: found nothing"),
    ] {
        let unclear = account(kind).incoming(&request.asked()).unwrap_err().to_string();
        assert!(unclear.contains(part) && unclear.contains("allowed: "), "{kind:?}: {unclear}");
    }
}

#[test]
fn a_status_says_what_has_become_of_a_call() {
    use Progress::{Answered, Ended, Queued, Ringing, StreamEnded, StreamStarted};
    let machine = Progress::Machine;
    let other = |word: &str| Progress::Other(word.to_owned());
    let failed = |word: &str| StreamEnded(Some(word.to_owned()));
    let form = |text: &str| Request::form("/phone/x/status", text);
    let telnyx = |name: &str, more: Value| {
        let mut payload = json!({"call_control_id": "c"});
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Request::json("/s", &json!({"data": {"event_type": name, "payload": payload}}))
    };
    let hangup = |cause: &str| telnyx("call.hangup", json!({"hangup_cause": cause}));
    let json = |body: Value| Request::json("/s", &body);
    let rows = [
        (Twilio, form("CallSid=c&CallStatus=initiated"), Queued),
        (Twilio, form("CallSid=c&CallStatus=queued"), Queued),
        (Twilio, form("CallSid=c&CallStatus=ringing"), Ringing),
        (Twilio, form("CallSid=c&CallStatus=in-progress"), Answered),
        (Twilio, form("CallSid=c&CallStatus=completed&CallDuration=12"), Ended(Ending::Completed)),
        (Twilio, form("CallSid=c&CallStatus=busy"), Ended(Ending::Busy)),
        (Twilio, form("CallSid=c&CallStatus=no-answer"), Ended(Ending::NoAnswer)),
        (Twilio, form("CallSid=c&CallStatus=canceled"), Ended(Ending::Canceled)),
        (Twilio, form("CallSid=c&CallStatus=failed"), Ended(Ending::Failed)),
        (Twilio, form("CallSid=c&CallStatus=completed&AnsweredBy=human"), Ended(Ending::Completed)),
        (Twilio, form("CallSid=c&AnsweredBy=human"), machine(Machine::Human)),
        (Twilio, form("CallSid=c&AnsweredBy=machine_start"), machine(Machine::Machine)),
        (Twilio, form("CallSid=c&AnsweredBy=machine_end_silence"), machine(Machine::Beep)),
        (Twilio, form("CallSid=c&AnsweredBy=fax"), machine(Machine::Fax)),
        (Twilio, form("CallSid=c&AnsweredBy=unknown"), machine(Machine::Unknown)),
        (Twilio, form("CallSid=c&CallStatus=dreaming"), other("dreaming")),
        (Twilio, form("CallSid=c"), other("nothing")),
        (Signalwire, form("CallSid=c&StreamEvent=stream-started"), StreamStarted),
        (Signalwire, form("CallSid=c&StreamEvent=stream-stopped"), StreamEnded(None)),
        (Signalwire, form("CallSid=c&StreamEvent=stream-error&StreamError=handshake"), failed("handshake")),
        (Plivo, form("CallUUID=c&CallStatus=ringing"), Ringing),
        (Plivo, form("CallUUID=c&CallStatus=timeout"), Ended(Ending::NoAnswer)),
        (Plivo, form("CallUUID=c&CallStatus=cancel"), Ended(Ending::Canceled)),
        (Plivo, form("CallUUID=c&Event=Hangup&CallStatus=completed&Duration=12"), Ended(Ending::Completed)),
        (Plivo, form("CallUUID=c&Event=MachineDetection&Machine=true"), machine(Machine::Machine)),
        (Plivo, form("CallUUID=c&Event=StartStream&CallStatus=in-progress"), StreamStarted),
        (Plivo, form("CallUUID=c&Event=StopStream"), StreamEnded(None)),
        (Plivo, form("CallUUID=c&Event=DroppedStream"), failed("DroppedStream")),
        (Telnyx, telnyx("call.initiated", json!({"direction": "outgoing"})), Queued),
        (Telnyx, telnyx("call.answered", json!({})), Answered),
        (Telnyx, telnyx("streaming.started", json!({})), StreamStarted),
        (Telnyx, telnyx("streaming.stopped", json!({})), StreamEnded(None)),
        (
            Telnyx,
            telnyx("streaming.failed", json!({"failure_reason": "connection_failed"})),
            failed("connection_failed"),
        ),
        (Telnyx, telnyx("call.machine.detection.ended", json!({"result": "machine"})), machine(Machine::Machine)),
        (Telnyx, telnyx("call.machine.detection.ended", json!({"result": "not_sure"})), machine(Machine::Unknown)),
        (Telnyx, telnyx("call.machine.greeting.ended", json!({"result": "beep_detected"})), machine(Machine::Beep)),
        (Telnyx, telnyx("call.dtmf.received", json!({})), other("call.dtmf.received")),
        (Telnyx, hangup("normal_clearing"), Ended(Ending::Completed)),
        (Telnyx, hangup("user_busy"), Ended(Ending::Busy)),
        (Telnyx, hangup("timeout"), Ended(Ending::NoAnswer)),
        (Telnyx, hangup("originator_cancel"), Ended(Ending::Canceled)),
        (Telnyx, hangup("call_rejected"), Ended(Ending::Rejected)),
        (Telnyx, hangup("not_found"), Ended(Ending::Failed)),
        (Telnyx, form("CallSid=c&CallStatus=completed"), Ended(Ending::Completed)),
        (Vonage, json(json!({"uuid": "c", "status": "started"})), Queued),
        (Vonage, json(json!({"uuid": "c", "status": "answered"})), Answered),
        (Vonage, json(json!({"uuid": "c", "status": "completed", "duration": "12"})), Ended(Ending::Completed)),
        (Vonage, json(json!({"uuid": "c", "status": "unanswered"})), Ended(Ending::NoAnswer)),
        (Vonage, json(json!({"uuid": "c", "status": "cancelled"})), Ended(Ending::Canceled)),
        (Vonage, json(json!({"uuid": "c", "status": "rejected"})), Ended(Ending::Rejected)),
        (Vonage, json(json!({"uuid": "c", "status": "human"})), machine(Machine::Human)),
        (Vonage, json(json!({"uuid": "c", "status": "machine"})), machine(Machine::Machine)),
        (Vonage, json(json!({"uuid": "c", "status": "machine", "sub_state": "beep_start"})), machine(Machine::Beep)),
        (Vonage, json(json!({"uuid": "c", "status": "answered", "to": "wss://relay.example.com/x"})), StreamStarted),
        (
            Vonage,
            json(json!({"uuid": "c", "status": "completed", "to": "wss://relay.example.com/x"})),
            other("completed"),
        ),
        (Vonage, json(json!({"uuid": "c", "status": "disconnected"})), StreamEnded(None)),
        (Vonage, Request::get("/s?uuid=c&status=busy"), Ended(Ending::Busy)),
        (Jambonz, json(json!({"call_sid": "c", "call_status": "trying"})), Queued),
        (Jambonz, json(json!({"call_sid": "c", "call_status": "early-media"})), Ringing),
        (Jambonz, json(json!({"call_sid": "c", "call_status": "completed", "duration": 12})), Ended(Ending::Completed)),
        (Jambonz, json(json!({"call_sid": "c", "type": "amd_human_detected"})), machine(Machine::Human)),
        (Jambonz, json(json!({"call_sid": "c", "type": "amd_tone_detected"})), machine(Machine::Beep)),
        (Asterisk, form("call=c&status=ANSWER"), Answered),
        (Asterisk, form("call=c&status=NOANSWER"), Ended(Ending::NoAnswer)),
        (Asterisk, form("call=c&status=CONGESTION"), Ended(Ending::Failed)),
        (Asterisk, form("call=c&status=hangup&duration=12"), Ended(Ending::Completed)),
        (Freeswitch, Request::get("/s?call=c&status=busy"), Ended(Ending::Busy)),
    ];
    for (kind, request, wanted) in rows {
        let status = account(kind).status(&request.asked()).unwrap();
        let text = String::from_utf8_lossy(&request.body).into_owned();
        assert_eq!((status.call.as_str(), &status.progress), ("c", &wanted), "{kind:?} {text}");
        let tells = text.contains("uration") && matches!(wanted, Ended(_));
        assert_eq!(status.duration_s, tells.then_some(12), "{kind:?} {text}");
    }
}

#[test]
fn a_status_leads_back_to_the_call_that_was_asked_for() {
    let request = Request::form("/phone/plivo/status?dial=ref1", "CallUUID=c&RequestUUID=r-1&CallStatus=ringing");
    let status = account(Plivo).status(&request.asked()).unwrap();
    assert_eq!((status.dial.as_deref(), status.asked_as.as_deref()), (Some("ref1"), Some("r-1")));
    assert!(account(Plivo).status(&Request::form("/s", "CallStatus=ringing").asked()).is_err());
}

#[test]
fn events_at_the_voice_page_are_no_calls() {
    let rows = [
        (Telnyx, json!({"data": {"event_type": "call.answered", "payload": {"call_control_id": "c"}}})),
        (
            Telnyx,
            json!({"data": {"event_type": "call.initiated", "payload": {"call_control_id": "c", "direction": "outgoing"}}}),
        ),
        (Vonage, json!({"uuid": "c", "status": "ringing"})),
        (Twilio, json!({"CallSid": "c", "CallStatus": "completed"})),
        (Telnyx, json!({"data": {"event_type": "call.hangup", "payload": {"call_control_id": "c"}}})),
        (Plivo, json!({"CallUUID": "c", "CallStatus": "no-answer"})),
        (Plivo, json!({"CallUUID": "c", "Event": "Hangup"})),
        (Jambonz, json!({"call_sid": "c", "call_status": "failed"})),
        (Jambonz, json!({"call_sid": "c", "type": "amd_human_detected"})),
    ];
    for (kind, body) in rows {
        let said = account(kind).incoming(&Request::json("/v?dial=ref1", &body).asked()).unwrap();
        assert!(matches!(&said, Said::Status(status) if status.dial.as_deref() == Some("ref1")), "{kind:?} {said:?}");
    }
}
