//! A relay that takes no simulated call: what to look at.
//!
//! The relay tells whoever asks as little as it can; the rest stands in its log.
use crate::provider::{Provider, ReachError, markup::MarkupError, webhook::WebhookError};

/// What to check; none: the error says it.
pub(super) fn check(error: &ReachError, provider: Provider, number: &str) -> Option<String> {
    Some(match error {
        ReachError::Markup(MarkupError::NoStream { found }) => {
            let busy = ["busy", "Busy"].iter().any(|word| found.contains(word));
            let full = "all lines are taken (server.max_calls, or the tenant's own limit), or its budget is spent";
            let nobody = format!(
                "nobody answers {number}: check that [[phone.numbers]] has it, or \"*\", that its `account` is the one in --voice-url, \
                 and that its `agent` and `tenant` are there"
            );
            // What says neither may mean both.
            let says_why = busy || found.contains("reject") || found.contains("404");
            match (says_why, busy) {
                (true, true) => format!("{full}; the relay's log says which"),
                (true, false) => format!("{nobody}; the relay's log says which"),
                (false, _) => format!("{nobody}; or {full}; the relay's log says which"),
            }
        }
        ReachError::Webhook(WebhookError::Refused { status: 403, .. }) => {
            let secret = match provider {
                Provider::ChanWebSocket | Provider::AudioSocket | Provider::AudioFork => {
                    return Some(
                        "check --stream-password: it is to be the account's `stream_password`; the relay's log says what was wrong"
                            .to_owned(),
                    );
                }
                Provider::Telnyx => "--auth-token (the private half of the account's `public_key`)",
                Provider::Vonage | Provider::Jambonz => "--auth-token (the account's `signing_key`)",
                // One that has both is signed with the key.
                Provider::SignalWire => {
                    "--auth-token (the account's `signing_key`, or its `auth_token` where it has none)"
                }
                Provider::Twilio | Provider::Plivo => "--auth-token (the account's `auth_token`)",
            };
            format!("check {secret} and --public-url (phone.public_url); the relay's log says what was wrong")
        }
        ReachError::Webhook(WebhookError::Refused { status: 404, .. }) => {
            "check --voice-url: it ends with /phone/NAME/voice, and NAME is one of [phone.accounts] there".to_owned()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_check_fits_what_was_answered() {
        let none = |found: &str| ReachError::Markup(MarkupError::NoStream { found: found.to_owned() });
        let refused = |status| ReachError::Webhook(WebhookError::Refused { status, body: String::new() });
        let check = |error: ReachError, provider| check(&error, provider, "+15550100").unwrap_or_default();
        for (error, provider, has, lacks) in [
            (none("<Reject reason=\"rejected\">"), Provider::Twilio, "nobody answers +15550100", "all lines"),
            (none("<Reject reason=\"busy\">"), Provider::Twilio, "all lines are taken", "nobody"),
            (none("sip:decline 404 Not Found"), Provider::Jambonz, "[[phone.numbers]]", "all lines"),
            (none("sip:decline 486 Busy Here"), Provider::Jambonz, "all lines", "nobody"),
            (none("nothing"), Provider::Vonage, "or all lines are taken", "password"),
            (refused(403), Provider::Telnyx, "private half", "password"),
            (refused(403), Provider::AudioFork, "--stream-password", "--auth-token"),
            (refused(403), Provider::Twilio, "phone.public_url", "password"),
            (refused(404), Provider::Plivo, "/phone/NAME/voice", "log"),
        ] {
            let told = check(error, provider);
            assert!(told.contains(has) && !told.contains(lacks), "{provider:?}: {told}");
        }
        assert_eq!(check(refused(500), Provider::Plivo), "", "its body says it");
    }
}
