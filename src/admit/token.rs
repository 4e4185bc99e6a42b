//! Call tokens: short-lived, bound to a tenant and to what it says, signed by us (JWT, HS256 and nothing else).
//!
//! Checked without the help of a clock: the time is an argument. Whatever is wrong with a token, the answer is the same.
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Serialize};

use super::{key, principal::Grant};
use crate::{
    audio::Codec,
    config::{KeyHash, Secret},
};

/// Clocks of relays that share their keys may differ by so much, seconds: a token may have been made so far in the future. Its
/// end is its end.
pub const LEEWAY: u64 = 10;
/// Tokens with a number of uses that are remembered.
const REMEMBERED: usize = 1 << 20;

/// What a token says. Every field that is not optional must be there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    /// The tenant.
    sub: String,
    jti: String,
    iat: u64,
    exp: u64,
    /// The key that made it, by the first digits of its hash: revoked, it takes its tokens along.
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    formats: Vec<Codec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_call_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uses: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    direct: bool,
}

/// A token that was found good, before anybody has asked whether its tenant still is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The tenant.
    pub tenant: String,
    /// The key that made it, by [`DIGITS`] of its hash.
    pub key: String,
    /// The end user.
    pub user: Option<String>,
    /// What it grants.
    pub grant: Grant,
}

/// One key that signs.
#[derive(Debug, Clone)]
pub struct SigningKey {
    /// The tokens' `kid`.
    pub id: String,
    /// The secret.
    pub secret: Secret,
}

/// Signs and reads tokens.
pub struct Signer {
    issuer: String,
    /// The first one signs.
    keys: Vec<(String, EncodingKey, DecodingKey)>,
    longest_s: u64,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|(id, ..)| id).collect();
        f.debug_struct("Signer").field("issuer", &self.issuer).field("keys", &ids).finish_non_exhaustive()
    }
}

/// So many digits of a key's hash its tokens name.
pub const DIGITS: usize = 24;

impl Signer {
    /// `longest_s`: longest life of a token. Without keys there is one that ends with this value.
    pub fn new(issuer: &str, keys: &[SigningKey], longest_s: u64) -> Self {
        let made = SigningKey { id: "process".to_owned(), secret: super::key::generate() };
        let keys = if keys.is_empty() { std::slice::from_ref(&made) } else { keys };
        let pair = |key: &SigningKey| {
            let secret = key.secret.expose().as_bytes();
            (key.id.clone(), EncodingKey::from_secret(secret), DecodingKey::from_secret(secret))
        };
        Self { issuer: issuer.to_owned(), keys: keys.iter().map(pair).collect(), longest_s }
    }

    /// Longest life of a token, seconds.
    pub fn longest_s(&self) -> u64 {
        self.longest_s
    }

    fn audience(&self) -> String {
        format!("{}/call", self.issuer)
    }

    /// Whether tokens of this key are taken.
    pub fn knows(&self, kid: &str) -> bool {
        self.keys.iter().any(|(id, ..)| id == kid)
    }

    /// A token for `tenant`, made at `unix` by the key of this hash.
    ///
    /// # Errors
    /// When it cannot be signed: a bug of ours.
    pub fn sign(
        &self,
        unix: u64,
        tenant: &str,
        key: KeyHash,
        user: Option<String>,
        grant: &Grant,
    ) -> Result<Secret, jsonwebtoken::errors::Error> {
        let Grant { jti, kid: _, made_at: _, expires_at, agent, origin, formats, max_call_s, uses, direct } =
            grant.clone();
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience(),
            sub: tenant.to_owned(),
            jti,
            iat: unix,
            exp: expires_at,
            key: key.digits(DIGITS),
            agent,
            user,
            origin,
            formats,
            max_call_s,
            uses,
            direct,
        };
        let missing = || jsonwebtoken::errors::ErrorKind::InvalidKeyFormat;
        let (id, signs, _) = self.keys.first().ok_or_else(missing)?;
        let header = Header { kid: Some(id.clone()), ..Header::new(Algorithm::HS256) };
        encode(&header, &claims, signs).map(Secret::new)
    }

    /// What a token says, if it is one of ours and good at `unix`.
    pub fn read(&self, unix: u64, token: &str) -> Option<Found> {
        if token.len() > key::LONGEST {
            return None;
        }
        let kid = decode_header(token).ok()?.kid?;
        let (_, _, verifies) = self.keys.iter().find(|(id, ..)| *id == kid)?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[self.audience()]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // Time is ours to check: the library asks the machine's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let claims = decode::<Claims>(token, verifies, &validation).ok()?.claims;
        let Claims { sub, jti, iat, exp, key, agent, user, origin, formats, max_call_s, uses, direct, .. } = claims;
        let lives = exp.checked_sub(iat).is_some_and(|life| life <= self.longest_s);
        let now = iat <= unix.saturating_add(LEEWAY) && unix < exp;
        if !lives || !now || jti.is_empty() || uses == Some(0) {
            return None;
        }
        let grant = Grant { jti, kid, made_at: iat, expires_at: exp, agent, origin, formats, max_call_s, uses, direct };
        Some(Found { tenant: sub, key, user, grant })
    }
}

/// How often tokens with a number of uses were used, where no store remembers it.
#[derive(Debug)]
pub struct Uses {
    /// Tokens that were made before are refused: nobody knows how often they were used.
    since: u64,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    by_token: HashMap<String, (u32, u64)>,
    /// When those that have ended were last looked for.
    tidied: u64,
}

impl Uses {
    /// Remembers from `unix` on.
    pub fn new(unix: u64) -> Self {
        Self { since: unix, used: Mutex::default() }
    }

    /// Takes one use of a token; `false`: there is none left.
    pub fn take(&self, unix: u64, grant: &Grant) -> bool {
        let Some(uses) = grant.uses else { return true };
        if grant.made_at < self.since {
            return false;
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.by_token.len() >= REMEMBERED && used.tidied != unix {
            used.tidied = unix;
            used.by_token.retain(|_, (_, end)| unix < end.saturating_add(LEEWAY));
        }
        if used.by_token.len() >= REMEMBERED && !used.by_token.contains_key(&grant.jti) {
            return false; // what cannot be counted cannot be allowed
        }
        let (count, _) = used.by_token.entry(grant.jti.clone()).or_insert((0, grant.expires_at));
        let left = *count < uses;
        *count += u32::from(left);
        left
    }

    /// Gives one back.
    pub fn give_back(&self, grant: &Grant) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, _)) = used.by_token.get_mut(&grant.jti) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_795_000_000;

    fn key(id: &str) -> SigningKey {
        SigningKey { id: id.into(), secret: Secret::new(format!("{id}-0123456789abcdef0123456789abcdef")) }
    }

    fn signer() -> Signer {
        Signer::new("voxrelay", &[key("new"), key("old")], 86_400)
    }

    fn grant() -> Grant {
        Grant { jti: "t1".into(), made_at: NOW, expires_at: NOW + 600, uses: Some(2), ..Grant::default() }
    }

    fn good() -> Value {
        json!({"iss": "voxrelay", "aud": "voxrelay/call", "sub": "acme", "jti": "t1", "iat": NOW, "exp": NOW + 600,
            "key": "00", "agent": "default", "uses": 2})
    }

    /// A token with these parts, signed with the secret of `by`, whatever its header says.
    fn forged(header: &Value, claims: &str, by: &SigningKey) -> String {
        let parts = [header.to_string(), claims.to_owned()].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, by.secret.expose().as_bytes());
        let tag = aws_lc_rs::hmac::sign(&secret, parts.as_bytes());
        format!("{parts}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
    }

    #[test]
    fn a_token_says_what_was_put_into_it() {
        let grant = Grant {
            agent: Some("support".into()),
            origin: Some("https://app.example".into()),
            formats: vec![Codec::Opus],
            max_call_s: Some(60),
            ..grant()
        };
        let token = signer().sign(NOW, "acme", KeyHash([7; 32]), Some("u1".into()), &grant).unwrap();
        let found = signer().read(NOW, token.expose()).unwrap();
        let grant = Grant { kid: "new".into(), ..grant };
        assert_eq!((found.tenant.as_str(), found.user.as_deref(), &found.grant), ("acme", Some("u1"), &grant));
        assert_eq!(found.key, "070707070707070707070707");
        let retired = Signer::new("voxrelay", &[key("other")], 86_400);
        assert_eq!(retired.read(NOW, token.expose()), None, "its key is gone");
        let rotated = Signer::new("voxrelay", &[key("newest"), key("new")], 86_400);
        assert!(rotated.read(NOW, token.expose()).is_some(), "its key only verifies by now");
    }

    /// Fault matrix M3: whatever is wrong, there is nothing to be had.
    #[test]
    fn bad_tokens_are_refused() {
        let header = json!({"alg": "HS256", "kid": "new", "typ": "JWT"});
        let with = |change: Value| {
            let mut claims = good();
            for (field, value) in change.as_object().unwrap() {
                match value {
                    Value::String(gone) if gone == "(gone)" => drop(claims.as_object_mut().unwrap().remove(field)),
                    value => claims[field.as_str()] = value.clone(),
                }
            }
            claims.to_string()
        };
        let signed = |change: Value| forged(&header, &with(change), &key("new"));
        let headed = |header: Value| forged(&header, &good().to_string(), &key("new"));
        assert!(signer().read(NOW, &signed(json!({}))).is_some(), "the table below starts from a good one");
        let good_one = signed(json!({}));
        let (head, rest) = good_one.split_once('.').unwrap();
        let (body, tag) = rest.split_once('.').unwrap();
        let b64 = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let none = b64(&json!({"alg": "none", "kid": "new"}).to_string());
        let mut table: Vec<(&str, String)> = vec![
            // Algorithms and keys.
            ("alg none, no signature", format!("{none}.{body}.")),
            ("alg none, a signature", format!("{none}.{body}.{tag}")),
            ("alg None", format!("{}.{body}.", b64(&json!({"alg": "None", "kid": "new"}).to_string()))),
            ("alg NONE", format!("{}.{body}.", b64(&json!({"alg": "NONE", "kid": "new"}).to_string()))),
            ("alg HS384", headed(json!({"alg": "HS384", "kid": "new"}))),
            ("alg HS512", headed(json!({"alg": "HS512", "kid": "new"}))),
            ("alg RS256", headed(json!({"alg": "RS256", "kid": "new"}))),
            ("alg ES256", headed(json!({"alg": "ES256", "kid": "new"}))),
            ("alg EdDSA", headed(json!({"alg": "EdDSA", "kid": "new"}))),
            ("alg hs256", headed(json!({"alg": "hs256", "kid": "new"}))),
            ("alg missing", headed(json!({"kid": "new"}))),
            ("alg a number", headed(json!({"alg": 256, "kid": "new"}))),
            ("kid unknown", headed(json!({"alg": "HS256", "kid": "newer"}))),
            ("kid missing", headed(json!({"alg": "HS256"}))),
            ("kid null", headed(json!({"alg": "HS256", "kid": null}))),
            ("kid empty", headed(json!({"alg": "HS256", "kid": ""}))),
            ("kid a path", headed(json!({"alg": "HS256", "kid": "../../dev/null"}))),
            ("kid of another key", headed(json!({"alg": "HS256", "kid": "old"}))),
            ("header not JSON", format!("{}.{body}.{tag}", b64("HS256"))),
            ("header empty", format!(".{body}.{tag}")),
            ("header a list", format!("{}.{body}.{tag}", b64("[]"))),
            ("signed with another secret", forged(&header, &good().to_string(), &key("mallory"))),
            ("signed with an empty secret", {
                forged(&header, &good().to_string(), &SigningKey { id: "new".into(), secret: Secret::new("") })
            }),
            // Who made it, and for whom.
            ("iss wrong", signed(json!({"iss": "other"}))),
            ("iss missing", signed(json!({"iss": "(gone)"}))),
            ("iss null", signed(json!({"iss": null}))),
            ("iss empty", signed(json!({"iss": ""}))),
            ("iss a list", signed(json!({"iss": ["voxrelay"]}))),
            ("aud wrong", signed(json!({"aud": "voxrelay"}))),
            ("aud of another use", signed(json!({"aud": "voxrelay/admin"}))),
            ("aud missing", signed(json!({"aud": "(gone)"}))),
            ("aud null", signed(json!({"aud": null}))),
            ("aud a list", signed(json!({"aud": ["voxrelay/call"]}))),
            ("sub missing", signed(json!({"sub": "(gone)"}))),
            ("sub a number", signed(json!({"sub": 7}))),
            ("jti missing", signed(json!({"jti": "(gone)"}))),
            ("jti empty", signed(json!({"jti": ""}))),
            ("jti a number", signed(json!({"jti": 1}))),
            ("key missing", signed(json!({"key": "(gone)"}))),
            // Time.
            ("exp missing", signed(json!({"exp": "(gone)"}))),
            ("exp a string", signed(json!({"exp": (NOW + 600).to_string()}))),
            ("exp null", signed(json!({"exp": null}))),
            ("exp a float", signed(json!({"exp": NOW as f64 + 600.5}))),
            ("exp negative", signed(json!({"exp": -1}))),
            ("exp a list", signed(json!({"exp": [NOW + 600]}))),
            ("exp just past", signed(json!({"exp": NOW, "iat": NOW - 600}))),
            ("exp long past", signed(json!({"exp": 1, "iat": 0}))),
            ("exp far away", signed(json!({"exp": NOW + 86_401}))),
            ("exp absurd", signed(json!({"exp": u64::MAX}))),
            ("exp in milliseconds", signed(json!({"exp": (NOW + 600) * 1_000}))),
            ("iat missing", signed(json!({"iat": "(gone)"}))),
            ("iat in the future", signed(json!({"iat": NOW + LEEWAY + 1}))),
            ("iat a string", signed(json!({"iat": NOW.to_string()}))),
            ("iat after exp", signed(json!({"iat": NOW + 5, "exp": NOW + 1}))),
            ("iat long ago", signed(json!({"iat": NOW - 86_400}))),
            // What it grants.
            ("uses none at all", signed(json!({"uses": 0}))),
            ("uses negative", signed(json!({"uses": -1}))),
            ("direct a string", signed(json!({"direct": "yes"}))),
            ("uses a string", signed(json!({"uses": "2"}))),
            ("formats unknown", signed(json!({"formats": ["mp3"]}))),
            ("formats no list", signed(json!({"formats": "opus"}))),
            ("agent a number", signed(json!({"agent": 1}))),
            ("max_call_s negative", signed(json!({"max_call_s": -1}))),
            ("claims twice", forged(&header, &good().to_string().replacen('{', "{\"sub\":\"other\",", 1), &key("new"))),
            ("claims a list", forged(&header, "[]", &key("new"))),
            ("claims not JSON", forged(&header, "sub=acme", &key("new"))),
            ("claims empty", forged(&header, "", &key("new"))),
            // Form.
            ("no signature", format!("{head}.{body}")),
            ("empty signature", format!("{head}.{body}.")),
            ("two parts more", format!("{good_one}.x.y")),
            ("truncated", good_one.chars().take(good_one.len() - 4).collect()),
            ("another body", format!("{head}.{}.{tag}", b64(&with(json!({"sub": "other"}))))),
            ("padded", format!("{good_one}=")),
            ("a space in front", format!(" {good_one}")),
            ("a line behind", format!("{good_one}\n")),
            ("unicode", good_one.replace('.', "．")),
            ("a null byte", format!("{good_one}\0")),
            ("oversize", signed(json!({"user": "x".repeat(5_000)}))),
            ("empty", String::new()),
            ("dots", "..".into()),
            ("a tenant key", key::generate().expose().to_owned()),
        ];
        // One bit anywhere in the signature.
        for (index, bit) in [(0, 1u8), (5, 8), (30, 2)] {
            let mut bytes = good_one.clone().into_bytes();
            let at = good_one.len() - 43 + index;
            bytes[at] = if bytes[at] ^ bit == b'.' { b'A' } else { bytes[at] ^ bit };
            table.push(("a flipped bit", String::from_utf8_lossy(&bytes).into_owned()));
        }
        assert!(table.len() >= 60, "{}", table.len());
        for (name, token) in table {
            assert_eq!(signer().read(NOW, &token), None, "{name}: {token}");
        }
    }

    #[test]
    fn clocks_may_jump_a_little_and_no_more() {
        let token = signer().sign(NOW, "acme", KeyHash([0; 32]), None, &grant()).unwrap();
        for (now, good) in [
            (NOW - LEEWAY, true),
            (NOW - LEEWAY - 1, false),
            (0, false),
            (NOW + 599, true),
            (NOW + 600, false),
            (u64::MAX, false),
        ] {
            assert_eq!(signer().read(now, token.expose()).is_some(), good, "{now}");
        }
    }

    #[test]
    fn a_token_is_used_as_often_as_it_says() {
        let uses = Uses::new(NOW);
        let taken = |grant: &Grant| uses.take(NOW, grant);
        assert_eq!([taken(&grant()), taken(&grant()), taken(&grant())], [true, true, false]);
        let other = Grant { jti: "t2".into(), uses: Some(1), ..grant() };
        assert_eq!([taken(&other), taken(&other)], [true, false]);
        uses.give_back(&other);
        assert_eq!([taken(&other), taken(&other)], [true, false]);
        let free = Grant { uses: None, ..grant() };
        assert!((0..10).all(|_| taken(&free)));
        let before = Grant { jti: "t3".into(), made_at: NOW - 1, ..grant() };
        assert!(!uses.take(NOW, &before), "nobody knows how often it was used");
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_comes_in_panics_or_passes(token in ".{0,200}") {
            proptest::prop_assert_eq!(signer().read(NOW, &token), None);
        }
    }
}
