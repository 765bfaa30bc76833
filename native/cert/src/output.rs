//! What the tool prints.

use std::io::{self, ErrorKind, Write};

use crate::error::Error;

/// Prints a text. Who reads it may stop reading.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::Print(error)),
        _ => Ok(()),
    }
}

/// What deserves a look and is no error.
pub(crate) fn say(sentence: Option<String>) {
    if let Some(sentence) = sentence {
        eprintln!("polydist-cert: {sentence}");
    }
}

/// A certificate may come from anybody; what it says is not to command the terminal.
pub(crate) fn printable(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}
