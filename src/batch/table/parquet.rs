//! Parquet: a column for each of the table's, every value may be missing. Text, whole numbers, numbers, yes or no and moments
//! have their types; anything else is JSON.
use std::{
    fs::File,
    io::{self, BufWriter},
    sync::Arc,
};

use parquet::{
    basic::{Compression, LogicalType, Repetition, Type as Physical},
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::types::Type,
};
use serde_json::Value;

use super::{Column, Kind, Table, columns::text_of};

/// A group of rows is written when it has so many rows, or so many bytes of text: until then it is held.
const GROUP_ROWS: usize = 10_000;
const GROUP_BYTES: usize = 4 << 20;

/// A table that is being written.
pub(super) struct Parquet {
    file: SerializedFileWriter<BufWriter<File>>,
    columns: Vec<Held>,
    rows: usize,
    bytes: usize,
}

/// A column's values that are not written yet; what is missing has a definition level only.
struct Held {
    kind: Kind,
    levels: Vec<i16>,
    values: Values,
}

enum Values {
    Text(Vec<ByteArray>),
    Int(Vec<i64>),
    Double(Vec<f64>),
    Bool(Vec<bool>),
}

impl Held {
    fn new(kind: Kind) -> Self {
        let values = match kind {
            Kind::Text | Kind::Json => Values::Text(Vec::new()),
            Kind::Int | Kind::Moment => Values::Int(Vec::new()),
            Kind::Double => Values::Double(Vec::new()),
            Kind::Bool => Values::Bool(Vec::new()),
        };
        Self { kind, levels: Vec::new(), values }
    }

    /// How many bytes it takes. A value of another type than its column's is as good as missing; there is none in what was
    /// checked against its schema.
    fn push(&mut self, value: &Value) -> usize {
        let (there, bytes) = match &mut self.values {
            Values::Text(held) => {
                let text = text_of(value, self.kind).map(String::into_bytes);
                let bytes = text.as_ref().map_or(0, Vec::len);
                (put(held, text.map(ByteArray::from)), bytes)
            }
            Values::Int(held) => (put(held, value.as_i64().or_else(|| whole(value.as_f64()))), 8),
            Values::Double(held) => (put(held, value.as_f64()), 8),
            Values::Bool(held) => (put(held, value.as_bool()), 1),
        };
        self.levels.push(i16::from(there));
        bytes
    }
}

fn put<T>(held: &mut Vec<T>, value: Option<T>) -> bool {
    let there = value.is_some();
    held.extend(value);
    there
}

/// JSON Schema takes `3.0` for an integer.
fn whole(number: Option<f64>) -> Option<i64> {
    number.filter(|number| number.fract() == 0.0).and_then(|number| format!("{number:.0}").parse().ok())
}

impl Parquet {
    pub(super) fn new(file: BufWriter<File>, columns: &[Column]) -> io::Result<Self> {
        let field = |column: &Column| {
            let (physical, logical) = match column.kind {
                Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
                Kind::Json => (Physical::BYTE_ARRAY, Some(LogicalType::Json)),
                Kind::Int => (Physical::INT64, None),
                Kind::Moment => (Physical::INT64, Some(LogicalType::timestamp(true, parquet::basic::TimeUnit::MILLIS))),
                Kind::Double => (Physical::DOUBLE, None),
                Kind::Bool => (Physical::BOOLEAN, None),
            };
            let field = Type::primitive_type_builder(&column.name, physical).with_repetition(Repetition::OPTIONAL);
            field.with_logical_type(logical).build().map(Arc::new)
        };
        let fields = columns.iter().map(field).collect::<Result<Vec<_>, _>>().map_err(of_parquet)?;
        let schema = Type::group_type_builder("voxrelay").with_fields(fields).build().map_err(of_parquet)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("voxrelay ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let file = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).map_err(of_parquet)?;
        let columns = columns.iter().map(|column| Held::new(column.kind)).collect();
        Ok(Self { file, columns, rows: 0, bytes: 0 })
    }

    fn group(&mut self) -> Result<(), ParquetError> {
        let mut group = self.file.next_row_group()?;
        for held in &mut self.columns {
            let Some(mut column) = group.next_column()? else { break };
            let levels = Some(held.levels.as_slice());
            match &held.values {
                Values::Text(held) => column.typed::<ByteArrayType>().write_batch(held, levels, None)?,
                Values::Int(held) => column.typed::<Int64Type>().write_batch(held, levels, None)?,
                Values::Double(held) => column.typed::<DoubleType>().write_batch(held, levels, None)?,
                Values::Bool(held) => column.typed::<BoolType>().write_batch(held, levels, None)?,
            };
            column.close()?;
            *held = Held::new(held.kind);
        }
        group.close()?;
        (self.rows, self.bytes) = (0, 0);
        Ok(())
    }
}

impl Table for Parquet {
    fn row(&mut self, values: &[Value]) -> io::Result<()> {
        self.bytes += self.columns.iter_mut().zip(values).map(|(column, value)| column.push(value)).sum::<usize>();
        self.rows += 1;
        if self.rows >= GROUP_ROWS || self.bytes >= GROUP_BYTES {
            self.group().map_err(of_parquet)?;
        }
        Ok(())
    }

    fn end(mut self: Box<Self>) -> io::Result<()> {
        if self.rows > 0 {
            self.group().map_err(of_parquet)?;
        }
        self.file.finish().map(drop).map_err(of_parquet)?;
        io::Write::flush(self.file.inner_mut())
    }
}

fn of_parquet(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}
