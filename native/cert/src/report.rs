//! What a check has found: a line each.

use std::fmt::Write;

use crate::output::printable;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Ok,
    /// It works today, or nothing depends on it.
    Warning,
    /// It keeps the nodes apart.
    Error,
}

#[derive(Debug, Default)]
pub(crate) struct Report(Vec<(Level, String)>);

impl Report {
    /// Says it once, however often it is found.
    pub(crate) fn add(&mut self, level: Level, place: &str, text: &str) {
        let line = (level, format!("{place}: {text}"));
        if !self.0.contains(&line) {
            self.0.push(line);
        }
    }

    pub(crate) fn ok(&mut self, place: &str, text: &str) {
        self.add(Level::Ok, place, text);
    }

    pub(crate) fn warning(&mut self, place: &str, text: &str) {
        self.add(Level::Warning, place, text);
    }

    pub(crate) fn error(&mut self, place: &str, text: &str) {
        self.add(Level::Error, place, text);
    }

    pub(crate) fn errors(&self) -> usize {
        self.0
            .iter()
            .filter(|(level, _)| *level == Level::Error)
            .count()
    }

    pub(crate) fn text(&self) -> String {
        self.0
            .iter()
            .fold(String::new(), |mut text, (level, line)| {
                let level = match level {
                    Level::Ok => "ok",
                    Level::Warning => "warning",
                    Level::Error => "error",
                };
                let _ = writeln!(text, "{level:<8} {}", printable(line)); // a String takes all
                text
            })
    }
}
