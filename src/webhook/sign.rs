//! Signatures of what is sent to a webhook: those of Standard Webhooks 1.0.0 (standard-webhooks/standard-webhooks,
//! `spec/standard-webhooks.md`), so that its receivers have a library in their language.
use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_STANDARD};

/// The value of `Webhook-Signature`: of a message with this id, sent at this moment in Unix seconds.
pub(super) fn sign(key: &[u8], id: &str, timestamp: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let tag = hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(tag.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_signs_as_the_libraries_of_standard_webhooks_do() {
        // The vector of their own tests.
        let key = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
