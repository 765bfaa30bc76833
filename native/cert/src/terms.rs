//! Erlang's option file: one plain term and a full stop. What stock nodes evaluate there besides
//! (variables, calls, funs) is told of with its line and not guessed at.

use erl_tokenize::{Symbol, Token, TokenKind, TokenValue, scan_tokens};

/// How deep lists and tuples may be in each other.
const DEEPEST: usize = 64;

/// A term, as far as options have use for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Term {
    Atom(String),
    Integer(i64),
    Float(f64),
    /// A string with something in it; an empty one is an empty list, as in Erlang.
    String(String),
    Binary(Vec<u8>),
    List(Vec<Term>),
    Tuple(Vec<Term>),
    Map(Vec<(Term, Term)>),
}

impl Term {
    pub(crate) fn atom(&self) -> Option<&str> {
        match self {
            Self::Atom(name) => Some(name),
            _ => None,
        }
    }

    pub(crate) fn list(&self) -> Option<&[Term]> {
        match self {
            Self::List(terms) => Some(terms),
            _ => None,
        }
    }

    /// Two terms that belong together, the first one an atom.
    pub(crate) fn pair(&self) -> Option<(&str, &Term)> {
        match self {
            Self::Tuple(terms) => match &terms[..] {
                [Self::Atom(name), value] => Some((name, value)),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The one term that a text consists of.
pub(crate) fn parse(text: &[u8]) -> Result<Term, String> {
    let source = decode(text);
    let tokens = scan_tokens(&source).map_err(|error| {
        let line = error.position.line();
        format!("line {line}: {}", error.kind.message())
    })?;
    let mut parser = Parser {
        source: &source,
        tokens: tokens
            .into_iter()
            .filter(|t| t.kind().is_lexical())
            .collect(),
        next: 0,
    };
    let term = parser.term(0)?;
    parser.expect(Symbol::Dot, "a full stop")?;
    match parser.tokens.get(parser.next) {
        None => Ok(term),
        Some(_) => Err(parser.unexpected("nothing behind the full stop")),
    }
}

/// UTF-8 unless the text says otherwise or is something else.
fn decode(text: &[u8]) -> String {
    match String::from_utf8(text.to_vec()) {
        Ok(source) => source,
        Err(_) => text.iter().copied().map(char::from).collect(),
    }
}

struct Parser<'a> {
    source: &'a str,
    tokens: Vec<Token>,
    next: usize,
}

impl Parser<'_> {
    fn term(&mut self, depth: usize) -> Result<Term, String> {
        if depth > DEEPEST {
            return Err(self.unexpected("no more lists or tuples in each other"));
        }
        let wanted = "a list, tuple, map, atom, string, binary or number";
        let Some(token) = self.tokens.get(self.next).copied() else {
            return Err(self.unexpected(wanted));
        };
        let value = token.value(self.source);
        let symbol = match value {
            TokenValue::Atom(name) => return self.took(Term::Atom(name.into_owned())),
            TokenValue::Char(c) => return self.took(Term::Integer(u32::from(c).into())),
            TokenValue::Float(number) => return self.took(Term::Float(number)),
            TokenValue::Integer(number) => {
                let number = number.and_then(|number| i64::try_from(number).ok());
                let number = number.ok_or_else(|| self.unexpected("a smaller number"))?;
                return self.took(Term::Integer(number));
            }
            TokenValue::String(_) => return Ok(self.string()),
            TokenValue::SigilString { content, .. } => {
                return self.took(Term::Binary(content.into_owned().into_bytes()));
            }
            TokenValue::Symbol(symbol) => symbol,
            _ => return Err(self.unexpected(wanted)),
        };
        self.next += 1;
        match symbol {
            Symbol::OpenSquare => self.several(Symbol::CloseSquare, depth).map(Term::List),
            Symbol::OpenBrace => self.several(Symbol::CloseBrace, depth).map(Term::Tuple),
            Symbol::DoubleLeftAngle => self.binary(),
            Symbol::Sharp => self.map(depth),
            Symbol::Hyphen => match self.term(depth + 1)? {
                Term::Integer(number) => Ok(Term::Integer(-number)),
                Term::Float(number) => Ok(Term::Float(-number)),
                _ => Err(self.unexpected("a number after the -")),
            },
            _ => {
                self.next -= 1;
                Err(self.unexpected(wanted))
            }
        }
    }

    fn took(&mut self, term: Term) -> Result<Term, String> {
        self.next += 1;
        Ok(term)
    }

    /// Strings that follow each other are one.
    fn string(&mut self) -> Term {
        let mut text = String::new();
        while let Some(token) = self.tokens.get(self.next) {
            let TokenValue::String(part) = token.value(self.source) else {
                break;
            };
            text += &part;
            self.next += 1;
        }
        match text.is_empty() {
            true => Term::List(Vec::new()),
            false => Term::String(text),
        }
    }

    fn several(&mut self, close: Symbol, depth: usize) -> Result<Vec<Term>, String> {
        let mut terms = Vec::new();
        if self.accept(close) {
            return Ok(terms);
        }
        loop {
            terms.push(self.term(depth + 1)?);
            if self.accept(close) {
                return Ok(terms);
            }
            self.expect(Symbol::Comma, &format!(", or {}", close.as_str()))?;
        }
    }

    fn map(&mut self, depth: usize) -> Result<Term, String> {
        self.expect(Symbol::OpenBrace, "a map #{")?;
        let mut pairs = Vec::new();
        if self.accept(Symbol::CloseBrace) {
            return Ok(Term::Map(pairs));
        }
        loop {
            let key = self.term(depth + 1)?;
            self.expect(Symbol::DoubleRightArrow, "=>")?;
            pairs.push((key, self.term(depth + 1)?));
            if self.accept(Symbol::CloseBrace) {
                return Ok(Term::Map(pairs));
            }
            self.expect(Symbol::Comma, ", or }")?;
        }
    }

    /// Strings and bytes, such as `<<"text">>`, `<<"text"/utf8>>` or `<<48, 130>>`.
    fn binary(&mut self) -> Result<Term, String> {
        let mut bytes = Vec::new();
        if self.accept(Symbol::DoubleRightAngle) {
            return Ok(Term::Binary(bytes));
        }
        loop {
            let part = self.term(DEEPEST)?;
            let utf8 = self.accept(Symbol::Slash);
            if utf8 {
                let kind = self.term(DEEPEST)?;
                if kind != Term::Atom("utf8".into()) {
                    return Err(self.unexpected("utf8, and no other type, in a binary"));
                }
            }
            match part {
                Term::String(text) if utf8 => bytes.extend(text.bytes()),
                // As in Erlang: of each character what fits into a byte.
                Term::String(text) => bytes.extend(text.chars().map(|c| u32::from(c) as u8)),
                Term::List(empty) if empty.is_empty() => {}
                Term::Integer(byte @ 0..=255) if !utf8 => bytes.push(byte as u8),
                _ => return Err(self.unexpected("strings and bytes in a binary")),
            }
            if self.accept(Symbol::DoubleRightAngle) {
                return Ok(Term::Binary(bytes));
            }
            self.expect(Symbol::Comma, ", or >>")?;
        }
    }

    fn accept(&mut self, symbol: Symbol) -> bool {
        let token = self.tokens.get(self.next);
        let is_it = token.is_some_and(|token| token.kind() == TokenKind::Symbol(symbol));
        self.next += usize::from(is_it);
        is_it
    }

    fn expect(&mut self, symbol: Symbol, wanted: &str) -> Result<(), String> {
        match self.accept(symbol) {
            true => Ok(()),
            false => Err(self.unexpected(wanted)),
        }
    }

    /// Nothing of a string is shown: it may be a password.
    fn unexpected(&self, wanted: &str) -> String {
        match self.tokens.get(self.next) {
            None => format!("the file ends where there should be {wanted}"),
            Some(token) => {
                let line = token.start().line();
                let found = match token.kind() {
                    TokenKind::String | TokenKind::SigilString => "a string",
                    _ => token.text(self.source),
                };
                format!("line {line}: there is {found}, but there should be {wanted}")
            }
        }
    }
}
