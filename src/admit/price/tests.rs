//! Costs to the last digit, and what a list may say.
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::Config;

fn ours() -> PriceList {
    PriceList::load(None).unwrap()
}

/// The API reference's own example.
fn example() -> Usage {
    Usage {
        total_tokens: 253,
        input_tokens: 132,
        output_tokens: 121,
        input_text_tokens: 119,
        input_audio_tokens: 13,
        cached_tokens: 64,
        cached_text_tokens: 64,
        output_text_tokens: 30,
        output_audio_tokens: 91,
        ..Usage::default()
    }
}

fn total(model: &str, usage: &Usage, seconds: Option<f64>) -> Option<String> {
    ours().cost(model, usage, seconds).map(|cost| cost.total().to_string())
}

#[test]
fn the_references_example_costs_what_it_says() {
    let cost = ours().cost("gpt-realtime-2.1", &example(), None).unwrap();
    assert_eq!(cost.total().to_string(), "0.0072056");
    let parts = [cost.text, cost.audio, cost.image, cost.cached].map(|part| part.to_string());
    // 55 x 4 + 30 x 24; 13 x 32 + 91 x 64; none; 64 x 0.40
    assert_eq!(parts, ["0.00094", "0.00624", "0", "0.0000256"]);
}

#[test]
fn models_cost_what_their_pages_say() {
    let million = 1_000_000;
    let audio = Usage { total_tokens: million, input_tokens: million, input_audio_tokens: million, ..Usage::default() };
    let text = Usage { total_tokens: million, input_tokens: million, input_text_tokens: million, ..Usage::default() };
    let spoken =
        Usage { total_tokens: million, output_tokens: million, output_audio_tokens: million, ..Usage::default() };
    let written = Usage { output_text_tokens: million, output_audio_tokens: 0, ..spoken };
    let image = Usage { input_image_tokens: million, input_audio_tokens: 0, ..audio };
    let cached = |usage: Usage| Usage {
        cached_tokens: million,
        cached_text_tokens: usage.input_text_tokens,
        cached_audio_tokens: usage.input_audio_tokens,
        cached_image_tokens: usage.input_image_tokens,
        ..usage
    };
    for (model, want) in [
        ("gpt-realtime-2.1", ["32", "0.4", "64", "4", "0.4", "24", "5", "0.5"].map(Some)),
        ("gpt-realtime-2", ["32", "0.4", "64", "4", "0.4", "24", "5", "0.5"].map(Some)),
        ("gpt-realtime-2.1-mini", ["10", "0.3", "20", "0.6", "0.06", "2.4", "0.8", "0.08"].map(Some)),
        ("gpt-realtime-1.5", ["32", "0.4", "64", "4", "0.4", "16", "5", "0.5"].map(Some)),
        ("gpt-5.6-luna", [None, None, None, Some("0.2"), Some("0.02"), Some("1.2"), None, None]),
        ("gpt-5.4-mini", [None, None, None, Some("0.75"), Some("0.075"), Some("4.5"), None, None]),
        // No price for cached tokens: no discount.
        ("gpt-4o-transcribe", [Some("2.5"), Some("2.5"), None, Some("2.5"), Some("2.5"), Some("10"), None, None]),
    ] {
        let used = [audio, cached(audio), spoken, text, cached(text), written, image, cached(image)];
        let found = used.map(|usage| total(model, &usage, None));
        assert_eq!(found, want.map(|cost| cost.map(str::to_owned)), "{model}");
    }
}

#[test]
fn time_is_billed_by_the_minute() {
    let none = Usage::default();
    for (model, seconds, want) in [
        ("gpt-transcribe", 60.0, Some("0.0045")),
        ("gpt-transcribe", 1.63, Some("0.00012225")),
        ("gpt-transcribe", 0.0, Some("0")),
        ("gpt-live-transcribe", 60.0, Some("0.017")),
        // A third of a pico-dollar is none.
        ("gpt-live-transcribe", 1.0, Some("0.000283333333")),
        ("gpt-realtime-translate", 2.0, Some("0.001133333333")),
        ("gpt-transcribe", -1.0, None),
        ("gpt-transcribe", f64::NAN, None),
        ("gpt-transcribe", f64::INFINITY, None),
        // It is billed by tokens: what the time costs is not known.
        ("gpt-4o-transcribe", 60.0, None),
        ("gpt-realtime-2.1", 60.0, None),
    ] {
        assert_eq!(total(model, &none, Some(seconds)).as_deref(), want, "{model} {seconds}");
    }
    // A service that tells tokens of a model that is billed by the minute: 100 ms each.
    let tokens = Usage { total_tokens: 700, input_tokens: 600, input_audio_tokens: 600, output_tokens: 100, ..none };
    assert_eq!(total("gpt-transcribe", &tokens, None).as_deref(), Some("0.0045"));
    let untold = Usage { total_tokens: 700, ..none };
    assert_eq!(total("gpt-transcribe", &untold, None), None);
    assert_eq!(total("gpt-4o-transcribe", &tokens, None).as_deref(), Some("0.0025"), "and in tokens: 600 and 100");
}

#[test]
fn what_has_no_price_costs_nobody_knows_what() {
    for (model, known) in [
        ("gpt-realtime-2.1", true),
        ("gpt-realtime-2.1-2026-09-30", true),
        ("gpt-realtime-2.1-mini-2026-09-30", true),
        ("gpt-realtime-2.1-2026-9-30", false),
        ("gpt-realtime-2.1-latest", false),
        ("gpt-realtime-9", false),
        ("-2026-09-30", false),
        ("2026-09-30", false),
        ("é2026-09-30", false),
        ("", false),
    ] {
        assert_eq!(ours().cost(model, &example(), None).is_some(), known, "{model}");
    }
    assert_eq!(total("gpt-5.6-terra", &example(), None), None, "a model without a price for audio that has heard some");
    let huge = Usage { input_audio_tokens: u64::MAX, ..example() };
    assert_eq!(total("gpt-realtime-2.1", &huge, None), None, "nobody has used so much");
    let untold = Usage { total_tokens: 254, ..example() };
    assert_eq!(total("gpt-realtime-2.1", &untold, None), None, "in or out?");
}

#[test]
fn what_the_service_leaves_open_is_never_less_than_its_bill() {
    let model = "gpt-realtime-2.1";
    let heard = |usage: Usage| Usage {
        input_tokens: 300,
        total_tokens: 300,
        input_text_tokens: 100,
        input_audio_tokens: 200,
        ..usage
    };
    for (name, usage, want) in [
        // 100 x 4 + 200 x 32 = 6800 millionths; a cached token saves 3.6 of text, and 31.6 of audio.
        ("nothing cached", heard(Usage::default()), "0.0068"),
        ("a split", heard(Usage { cached_tokens: 64, cached_audio_tokens: 64, ..Usage::default() }), "0.0047776"),
        ("no split: text first", heard(Usage { cached_tokens: 64, ..Usage::default() }), "0.0065696"),
        ("no split: then audio", heard(Usage { cached_tokens: 164, ..Usage::default() }), "0.0044176"),
        (
            "half a split: the rest is text",
            heard(Usage { cached_tokens: 64, cached_audio_tokens: 32, ..Usage::default() }),
            "0.0056736",
        ),
        ("more than there is", heard(Usage { cached_tokens: 9_999, ..Usage::default() }), "0.00012"),
        (
            "a split that is more than there is",
            heard(Usage { cached_tokens: 999, cached_text_tokens: 999, ..Usage::default() }),
            "0.00644",
        ),
        ("tokens without a kind", Usage { total_tokens: 10, input_tokens: 10, ..Usage::default() }, "0.00032"),
        ("and out", Usage { total_tokens: 10, output_tokens: 10, ..Usage::default() }, "0.00064"),
    ] {
        assert_eq!(total(model, &usage, None).as_deref(), Some(want), "{name}");
    }
}

proptest! {
    #[test]
    fn what_many_cost_is_the_cost_of_the_many(
        all in prop::collection::vec(prop::array::uniform8(0_u64..200_000), 1..200),
    ) {
        let prices = ours();
        let usages: Vec<Usage> = all.into_iter().map(|[text, audio, image, a, b, c, written, spoken]| {
            let (a, b, c) = (a.min(text), b.min(audio), c.min(image));
            Usage {
                total_tokens: text + audio + image + written + spoken,
                input_tokens: text + audio + image,
                output_tokens: written + spoken,
                input_text_tokens: text,
                input_audio_tokens: audio,
                input_image_tokens: image,
                cached_tokens: a + b + c,
                cached_text_tokens: a,
                cached_audio_tokens: b,
                cached_image_tokens: c,
                cache_write_tokens: (text - a) / 3,
                output_text_tokens: written,
                output_audio_tokens: spoken,
            }
        }).collect();
        for model in ["gpt-realtime-2.1", "gpt-realtime-2.1-mini"] {
            let cost = |usage: &Usage| prices.cost(model, usage, None).unwrap().total();
            let sum = usages.iter().copied().reduce(plus).unwrap();
            prop_assert_eq!(usages.iter().map(cost).sum::<Usd>(), cost(&sum));
            // And a split that is not told never makes it less.
            let blind = |usage: &Usage| Usage { cached_text_tokens: 0, cached_audio_tokens: 0, cached_image_tokens: 0, ..*usage };
            prop_assert!(usages.iter().all(|usage| cost(&blind(usage)) >= cost(usage)));
        }
    }

    #[test]
    fn no_count_whatsoever_panics(counts in prop::array::uniform13(any::<u64>()), seconds in prop::option::of(any::<f64>())) {
        let [total, input, output, it, ia, ii, c, ct, ca, ci, cw, ot, oa] = counts;
        let usage = Usage {
            total_tokens: total, input_tokens: input, output_tokens: output, input_text_tokens: it, input_audio_tokens: ia,
            input_image_tokens: ii, cached_tokens: c, cached_text_tokens: ct, cached_audio_tokens: ca,
            cached_image_tokens: ci, cache_write_tokens: cw, output_text_tokens: ot, output_audio_tokens: oa,
        };
        for model in ["gpt-realtime-2.1", "gpt-transcribe", "gpt-4o-transcribe"] {
            let _ = ours().cost(model, &usage, seconds);
        }
    }
}

fn plus(one: Usage, other: Usage) -> Usage {
    Usage {
        total_tokens: one.total_tokens + other.total_tokens,
        input_tokens: one.input_tokens + other.input_tokens,
        output_tokens: one.output_tokens + other.output_tokens,
        input_text_tokens: one.input_text_tokens + other.input_text_tokens,
        input_audio_tokens: one.input_audio_tokens + other.input_audio_tokens,
        input_image_tokens: one.input_image_tokens + other.input_image_tokens,
        cached_tokens: one.cached_tokens + other.cached_tokens,
        cached_text_tokens: one.cached_text_tokens + other.cached_text_tokens,
        cached_audio_tokens: one.cached_audio_tokens + other.cached_audio_tokens,
        cached_image_tokens: one.cached_image_tokens + other.cached_image_tokens,
        cache_write_tokens: one.cache_write_tokens + other.cache_write_tokens,
        output_text_tokens: one.output_text_tokens + other.output_text_tokens,
        output_audio_tokens: one.output_audio_tokens + other.output_audio_tokens,
    }
}

/// A list with this in a file of the operator's own.
fn own(text: &str) -> Result<PriceList, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my-prices.toml");
    std::fs::write(&file, text).unwrap();
    PriceList::load(Some(&file)).map_err(|error| error.to_string())
}

const DAY: &str = "as_of = \"2026-11-01\"\nsource = \"our contract\"\n";

#[test]
fn what_is_written_into_the_cache_has_its_own_price_where_the_list_has_one() {
    let list = |more: &str| {
        own(&format!("[models.m]\n{DAY}text_in = \"2\"\ntext_cached = \"0.20\"\ntext_out = \"8\"\n{more}")).unwrap()
    };
    let (plain, dear) = (list(""), list("text_cache_write = \"2.50\"\n"));
    let read = |cached, written| Usage {
        total_tokens: 1_000,
        input_tokens: 1_000,
        input_text_tokens: 1_000,
        cached_tokens: cached,
        cached_text_tokens: cached,
        cache_write_tokens: written,
        ..Usage::default()
    };
    for (name, list, usage, want) in [
        ("none", &dear, read(400, 0), "0.00128"),
        ("without a price of its own", &plain, read(400, 500), "0.00128"),
        ("500 at 2.50, 100 at 2, 400 at 0.20", &dear, read(400, 500), "0.00153"),
        ("more than there is", &dear, read(400, 9_999), "0.00158"),
    ] {
        assert_eq!(list.cost("m", &usage, None).unwrap().total().to_string(), want, "{name}");
    }
}

#[test]
fn an_own_row_takes_the_place_of_ours_and_others_stay() {
    let mine = format!(
        "[models.\"gpt-realtime-2.1\"]\n{DAY}text_in = \"1\"\n[models.my-deployment]\n{DAY}minute = \"0.01\"\n"
    );
    let list = own(&mine).unwrap();
    assert_eq!(list.row("gpt-realtime-2.1").map(|row| row.source.as_str()), Some("our contract"));
    assert_eq!(
        list.cost("gpt-realtime-2.1", &example(), None),
        None,
        "the whole row: there is no price for audio in it"
    );
    assert_eq!(list.cost("my-deployment", &Usage::default(), Some(30.0)).unwrap().total().to_string(), "0.005");
    assert_eq!(list.row("gpt-realtime-2.1-mini"), ours().row("gpt-realtime-2.1-mini"));
    assert_eq!(own(""), Ok(ours()));
    assert_eq!(PriceList::load(Some(Path::new(""))).unwrap(), ours());
}

#[test]
fn a_broken_list_is_refused_by_row_and_field() {
    let row = |fields: &str| format!("[models.\"m 1\"]\n{DAY}{fields}\n");
    for (text, part) in [
        (row("text_in = 4.0"), "models.\"m 1\".text_in: found 4.0; allowed: an amount in USD in quotes"),
        (row("text_in = \"four\""), "models.\"m 1\".text_in: found `four`; allowed: an amount in USD such as 0.40"),
        (row("audio_out = \"-1\""), "models.\"m 1\".audio_out: found `-1`"),
        (row("audio_in = \"0.0000001\""), "models.\"m 1\".audio_in: found `0.0000001`; allowed: at most six digits"),
        (row("audio_in = \"2000000\""), "models.\"m 1\".audio_in: found `2000000`; allowed: up to 1000000 USD"),
        (row("audio = \"1\""), "models.\"m 1\".audio: unknown; known: as_of, source, batch_percent, text_in"),
        (row(""), "models.\"m 1\": no price"),
        (
            row("minute = \"1\"\ntext_in = \"1\""),
            "models.\"m 1\".minute: allowed: prices for tokens, or one for a minute",
        ),
        ("[models.x]\nsource = \"s\"\ntext_in = \"1\"".to_owned(), "models.\"x\".as_of: missing"),
        (
            "[models.x]\nas_of = \"2026-02-30\"\nsource = \"s\"".to_owned(),
            "models.\"x\".as_of: found `2026-02-30`; allowed: a day",
        ),
        ("[models.x]\nas_of = \"2026-02-03\"\ntext_in = \"1\"".to_owned(), "models.\"x\".source: missing"),
        ("[models.x]\nas_of = \"2026-02-03\"\nsource = \" \"".to_owned(), "models.\"x\".source: found"),
        ("[models]\nx = 1".to_owned(), "models.\"x\": found 1; allowed: a table"),
        ("models = 1".to_owned(), "models: found 1"),
        ("[model.x]\n".to_owned(), "model: unknown; known: models"),
        ("[models.x\n".to_owned(), "line 1"),
    ] {
        let error = own(&text).unwrap_err();
        assert!(error.contains(part) && error.contains("my-prices.toml"), "{text:?}: {error}");
    }
    let absent = PriceList::load(Some(Path::new("/nowhere/prices.toml"))).unwrap_err().to_string();
    assert!(absent.contains("prices.file: cannot read `/nowhere/prices.toml`"), "{absent}");
}

#[test]
fn models_without_a_price_and_old_prices_are_doubted() {
    let mut config = Config::load(None, |_| None).unwrap();
    let new = ours().row("gpt-realtime-2.1").unwrap().as_of_unix;
    assert_eq!(doubts(&config, &ours(), new + 180 * 86_400), [""; 0]);
    let old = doubts(&config, &ours(), new + 181 * 86_400);
    assert_eq!(old.len(), 1, "{old:?}");
    for part in [
        "`gpt-realtime-2.1`",
        "`gpt-realtime-2.1-mini`",
        "`gpt-transcribe`",
        "of 2026-11-21",
        "180 days",
        "prices.file",
    ] {
        assert!(old[0].contains(part), "{old:?}");
    }
    config.upstream.model = "house-model".to_owned();
    config.agents.get_mut("default").unwrap().transcription = Some("house-ears".to_owned());
    let none = doubts(&config, &ours(), new);
    assert_eq!(none.len(), 1, "{none:?}");
    assert!(none[0].contains("no price is known for `house-ears`, `house-model`:"), "{none:?}");
}

#[test]
fn a_batch_costs_a_part_of_it() {
    let usage = Usage {
        total_tokens: 3,
        input_tokens: 2,
        output_tokens: 1,
        input_text_tokens: 2,
        output_text_tokens: 1,
        ..Usage::default()
    };
    for (percent, want) in [
        ("", Some("0.000006")),
        ("batch_percent = 25\n", Some("0.000003")),
        ("batch_percent = 100\n", Some("0.000012")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("prices.toml");
        let row = format!(
            "[models.m]\nas_of = \"2026-11-28\"\nsource = \"test\"\ntext_in = \"1\"\ntext_out = \"10\"\n{percent}"
        );
        std::fs::write(&file, row).unwrap();
        let cost = PriceList::load(Some(&file)).unwrap().batch_cost("m", &usage);
        assert_eq!(cost.map(|cost| cost.total().to_string()).as_deref(), want, "{percent}");
    }
    assert_eq!(ours().batch_cost("no-such-model", &usage), None);
    let wrong = "[models.m]\nas_of = \"2026-11-28\"\nsource = \"test\"\ntext_in = \"1\"\nbatch_percent = 0\n";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.toml"), wrong).unwrap();
    let error = PriceList::load(Some(&dir.path().join("p.toml"))).unwrap_err().to_string();
    assert!(error.contains("batch_percent: found 0; allowed: a whole number of percent, 1 to 100"), "{error}");
}
