//! Tracing events as messages to the process that asked for them.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

use rustler::{Atom, Error, LocalPid, NifResult};
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::runtime::lock;
use crate::{atoms, message, runtime};

/// Events that wait to be sent; beyond that they are dropped, since logging must not hold anybody up.
const QUEUE: usize = 1024;

/// 0 is nothing, 1 errors, up to 4 everything.
static LEVEL: AtomicU8 = AtomicU8::new(0);
static RECEIVER: Mutex<Option<LocalPid>> = Mutex::new(None);
static SENDER: OnceLock<mpsc::Sender<Entry>> = OnceLock::new();

struct Entry {
    rank: u8,
    message: String,
    fields: BTreeMap<&'static str, String>,
}

/// Events at or above a level go to `pid` from now on. Levels are logger's.
#[rustler::nif]
fn log_to(pid: LocalPid, level: Atom) -> NifResult<Atom> {
    let rank = match level {
        level if level == atoms::none() => 0,
        level if level == atoms::error() => 1,
        level if level == atoms::warning() => 2,
        level if level == atoms::notice() || level == atoms::info() => 3,
        level if level == atoms::debug() => 4,
        _ => return Err(Error::BadArg),
    };
    SENDER.get_or_init(start);
    *lock(&RECEIVER) = Some(pid);
    LEVEL.store(rank, Relaxed);
    Ok(atoms::ok())
}

/// Events come from any thread, the VM's included, and only ours may send.
fn start() -> mpsc::Sender<Entry> {
    let (sender, mut entries) = mpsc::channel::<Entry>(QUEUE);
    runtime::spawn(async move {
        while let Some(entry) = entries.recv().await {
            let receiver = *lock(&RECEIVER);
            if let Some(pid) = receiver {
                let level = match entry.rank {
                    1 => atoms::error(),
                    2 => atoms::warning(),
                    3 => atoms::info(),
                    _ => atoms::debug(),
                };
                message::log(&pid, level, &entry.message, &entry.fields);
            }
        }
    });
    // This library's own copy of tracing; a second time it is in place already.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(ToErlang));
    sender
}

struct ToErlang;

impl<S: Subscriber> Layer<S> for ToErlang {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes() // the level may change
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        rank(metadata.level()) <= LEVEL.load(Relaxed) && metadata.target().starts_with("polydist")
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry {
            rank: rank(event.metadata().level()),
            message: String::new(),
            fields: BTreeMap::new(),
        };
        event.record(&mut entry);
        if let Some(sender) = SENDER.get() {
            let _ = sender.try_send(entry);
        }
    }
}

fn rank(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        _ => 4,
    }
}

impl Visit for Entry {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = match field.name() {
            "message" => &mut self.message,
            name => self.fields.entry(name).or_default(),
        };
        let _ = write!(text, "{value:?}");
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}
