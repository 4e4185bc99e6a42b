//! Which model answers: `[tiers]`, names that stand for several routes, and `[incidents]`, a service's own word on how it is.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Config;

/// How a tier chooses among its routes that work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoutePolicy {
    /// By chance, as their weights say.
    #[default]
    Weighted,
    /// The first one.
    Ordered,
    /// The one whose typical reply costs least.
    Cheapest,
    /// The one that is heard soonest.
    Fastest,
}

/// `[tiers.NAME]`: a name that agents and clients may ask for in place of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TierConfig {
    /// How one of its routes is chosen.
    pub policy: RoutePolicy,
    /// How soon 95 of 100 replies should be heard, ms; routes that are slower get less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_audio_ms: Option<u64>,
    /// The tier that is taken in its place under quota pressure, in an incident, or when a budget is spent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degrade_to: Option<String>,
    /// A user's next call takes the route of the one before, as long as that one is well.
    pub sticky: bool,
    /// Where its calls go.
    pub routes: Vec<RouteConfig>,
    /// A route that is tried on some of its calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryConfig>,
}

impl Default for TierConfig {
    fn default() -> Self {
        Self {
            policy: RoutePolicy::Weighted,
            first_audio_ms: None,
            degrade_to: None,
            sticky: true,
            routes: Vec::new(),
            canary: None,
        }
    }
}

/// `[[tiers.NAME.routes]]`: an account and a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// One of `[upstreams]`; none: the tenant's own, else `[upstream]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The service's name of the model.
    pub model: String,
    /// Its part, against the others; 0: only when no other will do.
    #[serde(default = "RouteConfig::usual_weight")]
    pub weight: u32,
}

impl RouteConfig {
    fn usual_weight() -> u32 {
        1
    }
}

/// `[tiers.NAME.canary]`: a candidate, and what it must not do worse than the tier's own routes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryConfig {
    /// One of `[upstreams]`; none: the tenant's own, else `[upstream]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The service's name of the model.
    pub model: String,
    /// Of a hundred calls, so many try it.
    #[serde(default = "CanaryConfig::usual_share")]
    pub share_percent: f64,
    /// Of a hundred calls, so many take it once it has been promoted.
    #[serde(default = "CanaryConfig::usual_promoted")]
    pub promoted_percent: f64,
    /// It is judged after so many sessions on it, and as many on the others.
    #[serde(default = "CanaryConfig::usual_calls")]
    pub min_calls: u64,
    /// It is not promoted before so long, seconds.
    #[serde(default = "CanaryConfig::usual_observe")]
    pub observe_s: u64,
    /// Of a hundred sessions, so many more may fail.
    #[serde(default = "CanaryConfig::usual_errors")]
    pub max_error_percent: f64,
    /// So much longer may it take until 95 of 100 replies are heard, per cent.
    #[serde(default = "CanaryConfig::usual_more")]
    pub max_first_audio_percent: f64,
    /// So much more may a reply cost, per cent.
    #[serde(default = "CanaryConfig::usual_more")]
    pub max_cost_percent: f64,
    /// Of a hundred tool calls, so many more may fail.
    #[serde(default = "CanaryConfig::usual_failed_tools")]
    pub max_failed_tools_percent: f64,
}

impl CanaryConfig {
    fn usual_share() -> f64 {
        5.0
    }
    fn usual_promoted() -> f64 {
        100.0
    }
    fn usual_calls() -> u64 {
        50
    }
    fn usual_observe() -> u64 {
        3_600
    }
    fn usual_errors() -> f64 {
        1.0
    }
    fn usual_more() -> f64 {
        20.0
    }
    fn usual_failed_tools() -> f64 {
        2.0
    }
}

/// `[incidents]`: where a service says how it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IncidentsConfig {
    /// A status page's JSON (`https://.../api/v2/summary.json`), or `{"status": "..."}`; none: nobody is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Only this part of the service counts, by the name that the page gives it; none: all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// How often it is asked, seconds.
    pub poll_s: u64,
}

impl Default for IncidentsConfig {
    fn default() -> Self {
        Self { url: None, component: None, poll_s: 60 }
    }
}

impl IncidentsConfig {
    pub(super) fn check(&self, problem: &mut impl FnMut(&str, String, &str)) {
        if let Some(url) = self.url.as_ref().filter(|url| !is_url(url)) {
            let allowed =
                "the http or https URL of a status page's JSON, such as https://status.example.com/api/v2/summary.json";
            problem("incidents.url", format!("`{url}`"), allowed);
        }
        if self.component.as_ref().is_some_and(String::is_empty) {
            problem("incidents.component", "nothing".to_owned(), "the name that the status page gives to a component");
        }
        if !(5..=3_600).contains(&self.poll_s) {
            problem("incidents.poll_s", self.poll_s.to_string(), "5 to 3600 seconds");
        }
    }
}

fn is_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<axum::http::Uri>() else { return false };
    let host =
        uri.authority().is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
    host && matches!(uri.scheme_str(), Some("http" | "https"))
}

type Tiers = BTreeMap<String, TierConfig>;

/// All tiers, against each other and against everything that has a name.
pub(super) fn check(config: &Config, problem: &mut impl FnMut(&str, String, &str)) {
    for (name, tier) in &config.tiers {
        let tiers = &config.tiers;
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !plain || !(1..=64).contains(&name.len()) {
            problem(&format!("tiers.{name}"), format!("`{name}`"), "1 to 64 letters, digits, `-`, `_`, `.`");
        }
        if let Some(place) = other_use(config, name) {
            let found = format!("`{name}`, which is the name of a model in {place}");
            problem(&format!("tiers.{name}"), found, "a name that no model has");
        }
        tier.check(name, tiers, |upstream| config.upstreams.contains_key(upstream), problem);
        check_rates(config, name, tier, problem);
    }
}

/// A call's audio has one rate from its beginning to its end, wherever its sessions run.
fn check_rates(config: &Config, name: &str, tier: &TierConfig, problem: &mut impl FnMut(&str, String, &str)) {
    let rate = |upstream: Option<&String>| match upstream {
        Some(upstream) => config.upstreams.get(upstream).map(|upstream| upstream.input_rate),
        None => Some(config.upstream.input_rate),
    };
    let Some(first) = tier.routes.first().and_then(|route| rate(route.upstream.as_ref())) else { return };
    let routes = tier.routes.iter().enumerate().map(|(at, route)| (format!("routes[{at}]"), route.upstream.as_ref()));
    let canary = tier.canary.iter().map(|canary| ("canary".to_owned(), canary.upstream.as_ref()));
    let next = tier.degrade_to.as_ref().and_then(|next| config.tiers.get(next)).and_then(|next| next.routes.first());
    let next = next.map(|route| ("degrade_to".to_owned(), route.upstream.as_ref()));
    for (field, upstream) in routes.chain(canary).chain(next) {
        if let Some(found) = rate(upstream).filter(|rate| *rate != first) {
            let account = upstream.map_or("upstream".to_owned(), |upstream| format!("upstreams.{upstream}"));
            let found = format!("{account}, whose input_rate is {found}");
            let allowed = format!("accounts of one input_rate, {first} as that of its first route");
            problem(&format!("tiers.{name}.{field}"), found, &allowed);
        }
    }
}

/// Where else a name stands for a model, so that nobody could tell which is meant. What may ask for a tier is not among these: agents,
/// tenants, and what names of clients mean.
fn other_use(config: &Config, name: &str) -> Option<String> {
    let mut places = config.upstreams.iter().map(|(section, of)| (format!("upstreams.{section}.model"), &of.model));
    let agents = |field: &str| config.agents.iter().find(|(_, agent)| agent.transcription.as_deref() == Some(field));
    if config.upstream.model == name {
        return Some("upstream.model".to_owned());
    }
    if let Some((place, _)) = places.find(|(_, model)| *model == name) {
        return Some(place);
    }
    if let Some((agent, _)) = agents(name) {
        return Some(format!("agents.{agent}.transcription"));
    }
    config.openai.models.contains_key(name).then(|| format!("openai.models.{name}"))
}

impl TierConfig {
    fn check(
        &self,
        name: &str,
        tiers: &Tiers,
        upstreams: impl Fn(&str) -> bool,
        problem: &mut impl FnMut(&str, String, &str),
    ) {
        let key = |field: &str| format!("tiers.{name}.{field}");
        if self.routes.is_empty() {
            problem(&key("routes"), "none".to_owned(), &format!("at least one [[tiers.{name}.routes]]"));
        } else if self.routes.iter().all(|route| route.weight == 0) {
            let found = "0 for each of them".to_owned();
            problem(&key("routes[0].weight"), found, "at least one route with a weight from 1 on");
        }
        let mut goes = |field: &str, upstream: &Option<String>, model: &str| {
            if let Some(upstream) = upstream.as_ref().filter(|name| !upstreams(name)) {
                problem(&key(&format!("{field}.upstream")), format!("`{upstream}`"), "the name of one of [upstreams]");
            }
            if model.is_empty() {
                problem(&key(&format!("{field}.model")), "nothing".to_owned(), "the name of a realtime model");
            }
            if tiers.contains_key(model) {
                let allowed = "a model by the service's name; another tier is reached by degrade_to";
                problem(&key(&format!("{field}.model")), format!("`{model}`, which is a tier"), allowed);
            }
        };
        self.routes
            .iter()
            .enumerate()
            .for_each(|(index, route)| goes(&format!("routes[{index}]"), &route.upstream, &route.model));
        if let Some(canary) = &self.canary {
            goes("canary", &canary.upstream, &canary.model);
        }
        for (index, route) in self.routes.iter().enumerate() {
            let same = |other: &RouteConfig| (&other.upstream, &other.model) == (&route.upstream, &route.model);
            if self.routes.iter().take(index).any(same) {
                problem(&key(&format!("routes[{index}]")), format!("`{}` twice", route.model), "routes that differ");
            }
            if route.weight > 1_000 {
                problem(&key(&format!("routes[{index}].weight")), route.weight.to_string(), "0 to 1000");
            }
        }
        if let Some(found) = self.first_audio_ms.filter(|ms| !(50..=60_000).contains(ms)) {
            problem(&key("first_audio_ms"), found.to_string(), "50 to 60000 ms");
        }
        if let Some((found, allowed)) = self.degrades_wrong(name, tiers) {
            problem(&key("degrade_to"), found, allowed);
        }
        if let Some(canary) = &self.canary {
            canary.check(name, &self.routes, problem);
        }
    }

    /// What is wrong with where it degrades to.
    fn degrades_wrong(&self, name: &str, tiers: &Tiers) -> Option<(String, &'static str)> {
        let mut way = vec![name];
        let mut next = self.degrade_to.as_deref()?;
        loop {
            if next == name {
                way.push(next);
                return Some((way.join(" -> "), "a tier from which no way leads back"));
            }
            // A cycle that this one only leads to is told of those that are in it.
            if way.contains(&next) {
                return None;
            }
            match tiers.get(next) {
                None if way.len() == 1 => return Some((format!("`{next}`"), "the name of one of [tiers]")),
                None => return None,
                Some(tier) => {
                    way.push(next);
                    next = tier.degrade_to.as_deref()?;
                }
            }
        }
    }
}

impl CanaryConfig {
    fn check(&self, tier: &str, routes: &[RouteConfig], problem: &mut impl FnMut(&str, String, &str)) {
        let key = |field: &str| format!("tiers.{tier}.canary.{field}");
        if routes.iter().any(|route| (&route.upstream, &route.model) == (&self.upstream, &self.model)) {
            let found = format!("`{}`, which is one of the tier's routes", self.model);
            problem(&format!("tiers.{tier}.canary"), found, "another route than those it is compared with");
        }
        for (field, found, least, most) in [
            ("share_percent", self.share_percent, 0.1, 50.0),
            ("promoted_percent", self.promoted_percent, 0.1, 100.0),
            ("max_error_percent", self.max_error_percent, 0.0, 100.0),
            ("max_first_audio_percent", self.max_first_audio_percent, 0.0, 10_000.0),
            ("max_cost_percent", self.max_cost_percent, 0.0, 10_000.0),
            ("max_failed_tools_percent", self.max_failed_tools_percent, 0.0, 100.0),
        ] {
            if !(least..=most).contains(&found) {
                problem(&key(field), found.to_string(), &format!("{least} to {most} per cent"));
            }
        }
        if !(10..=1_000_000).contains(&self.min_calls) {
            problem(&key("min_calls"), self.min_calls.to_string(), "10 to 1000000 sessions");
        }
        if self.observe_s > 2_592_000 {
            problem(&key("observe_s"), self.observe_s.to_string(), "0 to 2592000 seconds");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All problems of a file, a line each.
    fn problems(source: &str) -> Vec<String> {
        let config = match toml::from_str::<Config>(source) {
            Ok(config) => config,
            Err(error) => return vec![error.message().to_owned()],
        };
        let mut found = Vec::new();
        let mut problem = |key: &str, what: String, allowed: &str| found.push(format!("{key}: {what}; {allowed}"));
        check(&config, &mut problem);
        config.incidents.check(&mut problem);
        found
    }

    const GOOD: &str = r#"
        [upstreams.second]
        [openai.models]
        "gpt-4o" = "fast"
        [agents.default]
        model = "fast"
        [tiers.fast]
        degrade_to = "cheap"
        routes = [{ upstream = "second", model = "m-mini", weight = 9 }, { model = "m", weight = 0 }]
        canary = { model = "m-next" }
        [tiers.cheap]
        routes = [{ model = "m-mini" }]
        [incidents]
        url = "https://status.example.com/api/v2/summary.json?x=1"
    "#;

    #[test]
    fn a_tier_may_be_asked_for_by_agents_and_by_what_clients_names_mean() {
        assert_eq!(problems(GOOD), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_is_said_with_its_place_and_what_is_allowed() {
        let tier = |more: &str| format!("[tiers.fast]\nroutes = [{{ model = \"m\" }}]\n{more}");
        let canary = |more: &str| tier(&format!("[tiers.fast.canary]\nmodel = \"n\"\n{more}"));
        for (source, want) in [
            ("[tiers.fast]\n".to_owned(), "tiers.fast.routes: none; at least one [[tiers.fast.routes]]"),
            (
                "[tiers.fast]\nroutes = [{ model = \"m\", weight = 0 }]".to_owned(),
                "routes[0].weight: 0 for each of them",
            ),
            ("[tiers.fast]\nroutes = [{ model = \"m\", weight = -1 }]".to_owned(), "invalid value"),
            ("[tiers.fast]\nroutes = [{ weight = 1 }]".to_owned(), "missing field `model`"),
            ("[tiers.fast]\nroutes = [{ model = \"\" }]".to_owned(), "routes[0].model: nothing"),
            ("[tiers.fast]\nroutes = [{ model = \"m\", weight = 1001 }]".to_owned(), "1001; 0 to 1000"),
            ("[tiers.fast]\nroutes = [{ model = \"m\" }, { model = \"m\" }]".to_owned(), "routes[1]: `m` twice"),
            (
                "[tiers.fast]\nroutes = [{ model = \"m\", upstream = \"no\" }]".to_owned(),
                "tiers.fast.routes[0].upstream: `no`; the name of one of [upstreams]",
            ),
            (tier("policy = \"best\""), "unknown variant `best`"),
            (tier("first_audio_ms = 5"), "tiers.fast.first_audio_ms: 5; 50 to 60000 ms"),
            (tier("degrade_to = \"no\""), "tiers.fast.degrade_to: `no`; the name of one of [tiers]"),
            (tier("degrade_to = \"fast\""), "tiers.fast.degrade_to: fast -> fast; a tier from which no way leads back"),
            (tier("[tiers.\"a b\"]\nroutes = [{ model = \"m\" }]"), "tiers.a b: `a b`; 1 to 64 letters"),
            (tier("[tiers.b]\nroutes = [{ model = \"fast\" }]"), "tiers.b.routes[0].model: `fast`, which is a tier"),
            (tier("[upstream]\nmodel = \"fast\""), "the name of a model in upstream.model"),
            (tier("[upstreams.x]\nmodel = \"fast\""), "the name of a model in upstreams.x.model"),
            (tier("[agents.x]\ntranscription = \"fast\""), "the name of a model in agents.x.transcription"),
            (tier("[openai.models]\nfast = \"m\""), "the name of a model in openai.models.fast"),
            (tier("[tiers.fast.canary]\nmodel = \"m\""), "tiers.fast.canary: `m`, which is one of the tier's routes"),
            (tier("[tiers.fast.canary]\nmodel = \"n\"\nupstream = \"no\""), "tiers.fast.canary.upstream: `no`"),
            (canary("share_percent = 51"), "tiers.fast.canary.share_percent: 51; 0.1 to 50 per cent"),
            (canary("share_percent = nan"), "share_percent: NaN"),
            (canary("promoted_percent = 0"), "promoted_percent: 0; 0.1 to 100 per cent"),
            (canary("max_error_percent = -1"), "max_error_percent: -1; 0 to 100"),
            (canary("min_calls = 1"), "min_calls: 1; 10 to 1000000 sessions"),
            (canary("observe_s = 9999999"), "observe_s: 9999999; 0 to"),
            (canary("speed = 1"), "unknown field `speed`"),
            (
                "[upstreams.old]\ninput_rate = 16000\n[tiers.a]\nroutes = [{ model = \"m\" }, { upstream = \"old\", model = \"m\" }]"
                    .to_owned(),
                "tiers.a.routes[1]: upstreams.old, whose input_rate is 16000; accounts of one input_rate, 24000 as",
            ),
            (
                "[upstreams.old]\ninput_rate = 16000\n[tiers.a]\ndegrade_to = \"b\"\nroutes = [{ model = \"m\" }]\n[tiers.b]\nroutes = [{ upstream = \"old\", model = \"m\" }]"
                    .to_owned(),
                "tiers.a.degrade_to: upstreams.old, whose",
            ),
            ("[incidents]\nurl = \"status.example.com\"".to_owned(), "incidents.url: `status.example.com`; the http"),
            ("[incidents]\nurl = \"https://me@status.example.com\"".to_owned(), "incidents.url"),
            ("[incidents]\nurl = \"ftp://status.example.com\"".to_owned(), "incidents.url"),
            ("[incidents]\ncomponent = \"\"".to_owned(), "incidents.component: nothing"),
            ("[incidents]\npoll_s = 1".to_owned(), "incidents.poll_s: 1; 5 to 3600 seconds"),
        ] {
            let found = problems(&source);
            assert!(found.len() == 1 && found[0].contains(want), "{source}\ngave {found:?}, and not {want:?}");
        }
    }

    #[test]
    fn a_cycle_is_told_of_each_tier_that_is_in_it() {
        let tier =
            |name: &str, to: &str| format!("[tiers.{name}]\ndegrade_to = \"{to}\"\nroutes = [{{ model = \"m\" }}]\n");
        let found = problems(&[tier("a", "b"), tier("b", "c"), tier("c", "b")].concat());
        let want = ["tiers.b.degrade_to: b -> c -> b", "tiers.c.degrade_to: c -> b -> c"];
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().zip(want).all(|(found, want)| found.starts_with(want)), "{found:?}");
    }
}
