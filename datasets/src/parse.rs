//! Turning verified content into text.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use serde_json::Value;

use crate::Error;
use crate::catalogue::{Entry, FileEntry, Format};
use crate::locate::Content;

/// Rows are read in batches of this many.
const BATCH: usize = 8192;

/// The whole text of a file.
pub(crate) fn text(entry: &Entry, file: &FileEntry, content: Content) -> Result<String, Error> {
    let (format, parsed) = match &file.format {
        Format::Text => ("UTF-8 text", utf8(content)),
        Format::Gutenberg => ("a Project Gutenberg text", utf8(content).and_then(|text| gutenberg(&text))),
        Format::Parquet { column } => (
            "parquet",
            match content {
                Content::Memory(bytes) => parquet_lines(bytes::Bytes::from(bytes), column),
                Content::File(file) => parquet_lines(file, column),
            },
        ),
        Format::JsonLinesZstd { column, max_text_bytes } => {
            let limit = max_text_bytes.unwrap_or(u64::MAX);
            let parsed = match content {
                Content::Memory(bytes) => json_lines(Cursor::new(bytes), column, limit),
                Content::File(file) => json_lines(BufReader::new(file), column, limit),
            };
            ("zstd-compressed JSON lines", parsed)
        }
        Format::Binary => {
            ("text", Err("the catalogue says that it is binary; load the task that reads it".to_owned()))
        }
        Format::Model => ("text", Err("the catalogue says that it is part of a checkpoint".to_owned())),
    };
    parsed.map_err(|problem| Error::Parse {
        dataset: entry.name.clone(),
        file: file.name.clone(),
        format,
        problem,
    })
}

fn utf8(content: Content) -> Result<String, String> {
    let bytes = bytes(content).map_err(|e| e.to_string())?;
    String::from_utf8(bytes)
        .map_err(|e| format!("byte {} starts no UTF-8 character", e.utf8_error().valid_up_to()))
}

/// All of a file.
pub(crate) fn bytes(content: Content) -> io::Result<Vec<u8>> {
    match content {
        Content::Memory(bytes) => Ok(bytes),
        Content::File(mut file) => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        }
    }
}

/// What stands between the `*** START OF` and the `*** END OF` line.
fn gutenberg(text: &str) -> Result<String, String> {
    let mut body = String::with_capacity(text.len());
    let mut inside = false;
    let mut seen = false;
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with("*** START OF") || line.trim_start().starts_with("***START OF") {
            (inside, seen) = (true, true);
        } else if line.trim_start().starts_with("*** END OF") || line.trim_start().starts_with("***END OF") {
            break;
        } else if inside {
            body.push_str(line);
        }
    }
    match seen {
        true => Ok(body.trim_matches(['\r', '\n']).to_owned() + "\n"),
        false => Err("it has no `*** START OF` line".to_owned()),
    }
}

/// A string column, a row a line. WikiText's rows keep their line ends and lose the blank of an empty
/// line; both are set right, which gives the bytes of the original plain-text release.
fn parquet_lines<R: ChunkReader + 'static>(reader: R, column: &str) -> Result<String, String> {
    let file = SerializedFileReader::new(reader).map_err(|e| e.to_string())?;
    let columns = file.metadata().file_metadata().schema_descr().columns();
    let index = columns.iter().position(|c| c.path().string() == column).ok_or_else(|| {
        let names: Vec<_> = columns.iter().map(|c| c.path().string()).collect();
        format!("it has no column `{column}`, only: {}", names.join(", "))
    })?;
    let mut text = String::new();
    for group in 0..file.num_row_groups() {
        let group = file.get_row_group(group).map_err(|e| e.to_string())?;
        let ColumnReader::ByteArrayColumnReader(mut rows) =
            group.get_column_reader(index).map_err(|e| e.to_string())?
        else {
            return Err(format!("its column `{column}` does not hold strings"));
        };
        let mut values: Vec<ByteArray> = Vec::with_capacity(BATCH);
        let mut present = Vec::with_capacity(BATCH);
        loop {
            values.clear();
            present.clear();
            let (records, ..) =
                rows.read_records(BATCH, Some(&mut present), None, &mut values).map_err(|e| e.to_string())?;
            if records == 0 {
                break;
            }
            if values.len() < records {
                return Err(format!("its column `{column}` has rows without a value"));
            }
            for value in &values {
                let row =
                    std::str::from_utf8(value.data()).map_err(|e| format!("a row is not UTF-8: {e}"))?;
                match row.strip_suffix('\n').unwrap_or(row) {
                    "" => text.push(' '),
                    row => text.push_str(row),
                }
                text.push('\n');
            }
        }
    }
    Ok(text)
}

/// A string field of every line; documents are joined by a blank line.
fn json_lines(packed: impl BufRead, field: &str, limit: u64) -> Result<String, String> {
    let unpacked = zstd::Decoder::with_buffer(packed).map_err(|e| e.to_string())?;
    let mut text = String::new();
    for (number, line) in BufReader::new(unpacked).lines().enumerate() {
        let line = line.map_err(|e| format!("line {}: {e}", number + 1))?;
        let document: Value = serde_json::from_str(&line).map_err(|e| format!("line {}: {e}", number + 1))?;
        let Some(document) = document[field].as_str() else {
            return Err(format!("line {}: no string `{field}`", number + 1));
        };
        if (text.len() + document.len() + 2) as u64 > limit {
            break;
        }
        text.push_str(document);
        text.push_str("\n\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::ByteArrayType;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    fn write_parquet(schema: &str, groups: &[&[&str]], compression: Compression) -> Vec<u8> {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
        for rows in groups {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(*row)).collect();
            let present = vec![1; values.len()];
            column.typed::<ByteArrayType>().write_batch(&values, Some(&present), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
        bytes
    }

    const STRINGS: &str = "message m { optional binary text (UTF8); }";

    #[test]
    fn parquet_rows_become_lines_in_order() {
        for compression in
            [Compression::SNAPPY, Compression::ZSTD(Default::default()), Compression::UNCOMPRESSED]
        {
            let bytes = write_parquet(STRINGS, &[&["", " = A = \n"], &["no line end", "ünï\n"]], compression);
            let text = parquet_lines(bytes::Bytes::from(bytes), "text").unwrap();
            assert_eq!(text, " \n = A = \nno line end\nünï\n");
        }
    }

    #[test]
    fn parquet_problems_are_named() {
        let bytes = write_parquet(STRINGS, &[&["a"]], Compression::UNCOMPRESSED);
        let missing = parquet_lines(bytes::Bytes::from(bytes.clone()), "body").unwrap_err();
        assert!(missing.contains("`body`") && missing.contains("text"), "{missing}");
        assert!(parquet_lines(bytes::Bytes::from(bytes[..bytes.len() - 9].to_vec()), "text").is_err());
    }

    #[test]
    fn parquet_of_many_rows_crosses_batches() {
        let rows: Vec<String> = (0..2 * BATCH + 5).map(|i| i.to_string()).collect();
        let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
        let bytes = write_parquet(STRINGS, &[&rows], Compression::SNAPPY);
        let text = parquet_lines(bytes::Bytes::from(bytes), "text").unwrap();
        assert!(text.lines().eq(rows.iter().copied()));
    }

    #[test]
    fn json_lines_stop_before_the_limit() {
        let lines = "{\"text\":\"one\",\"meta\":{}}\n{\"text\":\"two\\nlines\"}\n";
        let packed = zstd::encode_all(lines.as_bytes(), 1).unwrap();
        assert_eq!(json_lines(Cursor::new(&packed), "text", 1000).unwrap(), "one\n\ntwo\nlines\n\n");
        assert_eq!(json_lines(Cursor::new(&packed), "text", 10).unwrap(), "one\n\n");
        let error = json_lines(Cursor::new(&packed), "body", 1000).unwrap_err();
        assert!(error.contains("line 1") && error.contains("`body`"), "{error}");
        assert!(json_lines(Cursor::new(&packed[..packed.len() - 3]), "text", 1000).is_err());
    }

    #[test]
    fn gutenberg_body_stands_between_its_lines() {
        let text = "Licence\n*** START OF THIS BOOK ***\n\nBody.\nMore.\n\n*** END OF THIS BOOK ***\nTerms\n";
        assert_eq!(gutenberg(text).unwrap(), "Body.\nMore.\n");
        assert!(gutenberg("no marks").is_err());
    }

    #[test]
    fn invalid_utf8_is_located() {
        let error = utf8(Content::Memory(vec![b'a', 0xff])).unwrap_err();
        assert!(error.contains("byte 1"), "{error}");
    }
}
