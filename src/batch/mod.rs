//! WHOLE FILES: recordings to texts, and texts to facts, thousands of them. A client of a relay, which alone knows quotas, routes and prices.
//!
//! [`source`] finds what is to be done and [`store`] keeps it, with everything that was paid for, in one file that outlives the process.
//! [`work`] takes items out of it: [`cut`] makes of a recording what can be uploaded, [`gate`] says how many requests may be under way,
//! [`relay`] or [`realtime`] sends them, [`join`] makes of the pieces' transcripts the file's, [`extract`] asks for facts. [`table`] writes what people take
//! away, and [`show`] says how far it is.
//!
//! | file | what it is |
//! |---|---|
//! | [`source`] | files, folders, patterns, manifests, lists, URLs |
//! | [`store`] | the job's file |
//! | [`work`] | the run |
//! | [`cut`], [`join`] | long recordings: pieces, and one text again |
//! | [`gate`], [`width`] | how many at once: found, not set |
//! | [`outage`] | whose fault it is that no answer comes: the service's, or one file's |
//! | [`engine`] | who writes recordings down, what is asked and what comes of it |
//! | [`relay`] | one request, and what a refusal means |
//! | [`realtime`] | one recording in a session, where there is no address for files |
//! | [`extract`], [`facts`] | facts from texts, in the shape of a schema: what to ask, and asking it |
//! | [`rounds`] | what is not urgent, in batches |
//! | [`table`] | csv, jsonl, parquet, folders of texts and subtitles |
//! | [`show`] | progress and summary |
pub mod cut;
pub mod engine;
pub mod extract;
pub mod facts;
pub mod gate;
pub mod join;
pub mod outage;
pub mod realtime;
pub mod relay;
pub mod rounds;
pub mod show;
pub mod source;
pub mod store;
pub mod table;
pub mod width;
pub mod work;
