//! Errors as Erlang sees them: `{Kind :: atom(), Sentence :: binary()}`.

use polydist_transport::Error;
use rustler::{Atom, Encoder, Env, Term};

/// The `{Kind, Sentence}` of an error.
pub(crate) fn term<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    pair(env, error.kind().name(), &error.to_string())
}

/// `kind` is one of our own words, never a peer's.
pub(crate) fn pair<'a>(env: Env<'a>, kind: &'static str, sentence: &str) -> Term<'a> {
    let kind = Atom::from_str(env, kind).unwrap_or_else(|_| crate::atoms::error());
    (kind, sentence).encode(env)
}

/// `{ok, Value}` or `{error, {Kind, Sentence}}`.
pub(crate) fn result<'a, T>(
    env: Env<'a>,
    result: Result<T, Error>,
    encode: impl FnOnce(T) -> Term<'a>,
) -> Term<'a> {
    match result {
        Ok(value) => (crate::atoms::ok(), encode(value)).encode(env),
        Err(error) => env.error_tuple(term(env, &error)),
    }
}

/// `{error, closed}`, the answer of calls that have nothing more to say.
pub(crate) fn closed(env: Env) -> Term {
    env.error_tuple(crate::atoms::closed())
}
