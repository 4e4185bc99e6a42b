//! SignalWire: Twilio's dialect (cXML) with streams at 16 and 24 kHz and a low-latency mode.
//!
//! Five steps to a working number: an account with `account` (the project), `auth_token`, `signing_key` and `api_url`
//! (`https://SPACE.signalwire.com`); `public_url`; the number handled by a cXML webhook at `PUBLIC_URL/phone/signalwire/voice`, POST;
//! a `[[phone.numbers]]` entry; call it.
//!
//! Webhooks are signed as Twilio's, with the signing key; whether the stream's own request is signed is unverified, so that
//! `stream_password` is sent as its bearer token where one is set. Unverified, too: the header's name, that the key signs in SHA-1, the
//! REST API's root, and its fields.
use aws_lc_rs::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY as SHA1;

use super::{
    account::{Account, Connect, Page},
    markup::Xml,
    proof::{Forged, StreamProof, Verified, password},
    rest::{Act, Ask, Dial, Rest, Target, Unable},
    twilio,
    webhook::Asked,
};
use crate::config::{PhoneCodec, Secret};

/// Root of the compatible REST API.
pub(super) const ROOT: &str = "/api/laml/2010-04-01";

fn signature<'a>(asked: &Asked<'a>) -> Option<&'a str> {
    asked.header("x-signalwire-signature").or_else(|| asked.header("x-twilio-signature"))
}

fn secret(account: &Account) -> Result<&Secret, Forged> {
    let config = account.config();
    config.signing_key.as_ref().or(config.auth_token.as_ref()).ok_or(Forged::new("the account has no signing_key"))
}

pub(super) fn verify(account: &Account, asked: &Asked<'_>, now: u64) -> Result<Verified, Forged> {
    let signature = signature(asked).ok_or(Forged::new("it has no X-SignalWire-Signature"))?;
    twilio::signed(account, asked, signature, SHA1, secret(account)?)?;
    Ok(Verified::of("signalwire", &[signature.as_bytes()], None, now))
}

pub(super) fn verify_stream(account: &Account, asked: &Asked<'_>) -> Result<StreamProof, Forged> {
    let wanted = account.config().stream_password.as_ref();
    if wanted.is_some() {
        return password(asked, None, wanted).map(|()| StreamProof::Proven);
    }
    match signature(asked) {
        None => Ok(StreamProof::TokenOnly),
        Some(signature) => {
            twilio::signed_stream(account, asked, signature, SHA1, secret(account)?).map(|()| StreamProof::Proven)
        }
    }
}

/// `realtime`: played as it comes, instead of being gathered first.
pub(super) fn connect(account: &Account, with: &Connect<'_>) -> String {
    let codec = match account.audio() {
        (PhoneCodec::L16, rate) => format!("L16@{rate}h"),
        _ => "PCMU@8000h".to_owned(),
    };
    let bearer = account.config().stream_password.as_ref().map(Secret::expose).unwrap_or_default();
    let mut xml = Xml::response();
    xml.open("Connect", &[]);
    xml.open(
        "Stream",
        &[
            ("statusCallback", with.status),
            ("url", with.stream),
            ("codec", &codec),
            ("realtime", "true"),
            ("authBearerToken", bearer),
        ],
    );
    xml.empty("Parameter", &[("name", "token"), ("value", with.token)]);
    xml.finish()
}

/// The markup is fetched from [`Page::Transfer`]: whether it may go along with the request is unverified.
pub(super) fn transfer_call(rest: &Rest<'_>, call: &str, to: &Target) -> Result<Ask, Unable> {
    let (calls, credential) = twilio::place(rest, Act::Transfer, ROOT)?;
    let page = transfer_url(rest, to);
    let fields = [("Url", page.as_str()), ("Method", "POST")];
    Ok(Ask::form(Act::Transfer, format!("{calls}/{call}.json"), credential, &fields))
}

/// Where the markup of a transfer is.
pub(super) fn transfer_url(rest: &Rest<'_>, to: &Target) -> String {
    format!("{}?{}", rest.account.url(Page::Transfer), super::rest::query(&[("to", to.as_str())]))
}

/// The voice webhook is asked when the call is answered, with the call's reference.
pub(super) fn dial(rest: &Rest<'_>, dial: &Dial<'_>) -> Result<Ask, Unable> {
    let (calls, credential) = twilio::place(rest, Act::Dial, ROOT)?;
    let (voice, status) = (rest.back(Page::Voice, dial), rest.back(Page::Status, dial));
    let ring = dial.ring_s.to_string();
    let mut fields = twilio::wanted(dial, rest.shown(dial)?, &status);
    fields.extend([("Url", voice.as_str()), ("Method", "POST"), ("Timeout", ring.as_str())]);
    if dial.detect_machine {
        fields.push(("MachineDetection", "Enable"));
    }
    Ok(Ask::form(Act::Dial, format!("{calls}.json"), credential, &fields))
}
