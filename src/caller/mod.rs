//! OUR OWN CLIENT of `voxrelay.v1`: connect, stream, playback clock. Used by `say` and by the tests.
//!
//! Stands outside of the relay and knows of it only what [`crate::client::wire`] and the protocol page say, so a test
//! that passes with it would pass with anybody's client. [`connect()`] gives a [`Call`]: queue messages, wait for
//! [`Event`]s. [`Phone`] puts a [`Microphone`] and a [`Loudspeaker`] on a call and keeps their time: 20 ms frames out at
//! absolute moments, reply audio in, playback positions reported. A connection that drops is had again by the call itself
//! ([`Event::Dropped`], [`Event::Resumed`]): what is kept for that, and when to try, is decided in `resume`. Microphone,
//! loudspeaker and `resume` are pure; only `Call` and `Phone` own a socket and read the clock. Nothing here decodes or
//! encodes samples.
mod call;
mod connect;
mod elsewhere;
mod frames;
mod handshake;
mod microphone;
mod options;
mod phone;
mod playback;
mod resume;
mod socket;
#[cfg(test)]
pub(crate) mod testbed;

pub use call::{Call, CallEnd, Event, Ready, SendError};
pub use connect::{ConnectError, check_url, connect};
pub(crate) use elsewhere::{Knock, websocket};
pub use handshake::Refusal;
pub use microphone::{FRAME, Microphone, cut};
pub use options::{Options, Pace, Turns, UrlError};
pub use phone::{Phone, Step};
pub use playback::Loudspeaker;
pub(crate) use socket::tls_config;

#[cfg(test)]
mod tests {
    use crate::client::wire::{ErrorBody, ServerMsg};

    #[derive(serde::Deserialize)]
    struct Refused {
        error: ErrorBody,
    }

    #[test]
    fn the_examples_of_the_protocol_page_are_what_we_speak() {
        let page = include_str!("../client/thin.md");
        let examples: Vec<&str> =
            page.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect();
        assert_eq!(examples.len(), 3);
        let messages = examples.iter().filter(|json| match serde_json::from_str::<ServerMsg>(json) {
            Ok(ServerMsg::Ready { .. } | ServerMsg::ReplyEnded { usage: Some(_), .. }) => true,
            Ok(other) => panic!("{other:?}"),
            Err(_) => {
                let refused: Refused = serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"));
                assert_eq!(refused.error.field.as_deref(), Some("rate"));
                false
            }
        });
        assert_eq!(messages.count(), 2);
    }
}
