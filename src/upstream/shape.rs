//! The shape of a session's messages on its socket. Everywhere else in the relay they have the GA shape.
use bytes::Bytes;

use crate::{
    beta::BetaService,
    config::{Dialect, UpstreamConfig},
};

/// How one session's messages are written, and what has to be remembered to translate them.
#[derive(Debug, Default)]
pub enum Shape {
    /// As they are.
    #[default]
    Ga,
    /// As they were in the beta of 2024-25: compatible servers, and Azure's preview.
    Beta(Box<BetaService>),
}

impl Shape {
    /// What a service of this configuration speaks.
    pub fn of(config: &UpstreamConfig) -> Self {
        match (config.dialect, &config.api_version) {
            (Dialect::Beta, _) | (Dialect::Azure, Some(_)) => Self::Beta(Box::default()),
            (Dialect::Ga, _) | (Dialect::Azure, None) => Self::Ga,
        }
    }

    /// One message of ours, as the service wants it: none, one or more.
    pub fn outgoing(&mut self, text: Bytes, mut each: impl FnMut(Bytes)) {
        match self {
            Self::Ga => each(text),
            Self::Beta(beta) => beta.down(text).into_iter().for_each(each),
        }
    }

    /// One message of the service in the GA shape: none, one or more.
    pub fn incoming(&mut self, text: Bytes, mut each: impl FnMut(Bytes)) {
        match self {
            Self::Ga => each(text),
            Self::Beta(beta) => beta.up(text).into_iter().for_each(each),
        }
    }
}
