//! Tables of lines: jsonl and csv.
use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
};

use csv::{Terminator, Writer, WriterBuilder};
use serde_json::{Map, Value};

use super::{
    Column, Kind, Table,
    columns::{moment, text_of},
};

/// One object a line; lists and objects are what they are.
pub(super) struct Jsonl {
    file: BufWriter<File>,
    columns: Vec<(String, Kind)>,
}

impl Jsonl {
    pub(super) fn new(file: BufWriter<File>, columns: &[Column]) -> Self {
        Self { file, columns: columns.iter().map(|column| (column.name.clone(), column.kind)).collect() }
    }
}

impl Table for Jsonl {
    fn row(&mut self, values: &[Value]) -> io::Result<()> {
        let fields = self.columns.iter().zip(values).map(|((name, kind), value)| {
            let value = match (value, kind) {
                (value @ Value::Number(_), Kind::Moment) => Value::String(moment(value)),
                (value, _) => value.clone(),
            };
            (name.clone(), value)
        });
        serde_json::to_writer(&mut self.file, &fields.collect::<Map<String, Value>>())?;
        self.file.write_all(b"\n")
    }

    fn end(mut self: Box<Self>) -> io::Result<()> {
        self.file.flush()
    }
}

/// RFC 4180: quotes where they are needed, CRLF. What is missing is an empty field.
pub(super) struct Csv {
    file: Writer<BufWriter<File>>,
    kinds: Vec<Kind>,
}

impl Csv {
    pub(super) fn new(file: BufWriter<File>, columns: &[Column]) -> io::Result<Self> {
        let mut file = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(file);
        file.write_record(columns.iter().map(|column| &column.name)).map_err(io::Error::other)?;
        Ok(Self { file, kinds: columns.iter().map(|column| column.kind).collect() })
    }
}

impl Table for Csv {
    fn row(&mut self, values: &[Value]) -> io::Result<()> {
        let fields = values.iter().zip(&self.kinds).map(|(value, kind)| text_of(value, *kind).unwrap_or_default());
        self.file.write_record(fields).map_err(io::Error::from)
    }

    fn end(mut self: Box<Self>) -> io::Result<()> {
        self.file.flush()
    }
}
