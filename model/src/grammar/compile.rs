//! Compilation of grammars over one vocabulary.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::matcher::Matcher;
use super::{Grammar, GrammarError};

/// Longest token that grammars may use, in bytes: what the trie can hold.
const MAX_TRIE_BYTES: usize = 512;
/// Most states of a grammar's lexer, each of 1 to 2 kB.
const MAX_LEXER_STATES: usize = 20_000;
/// Most symbols in a grammar's productions.
const MAX_GRAMMAR_SYMBOLS: usize = 200_000;

/// What ids stand for, as grammars see it: special tokens first, which stand for no text.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a, T> {
    /// How many special tokens there are.
    pub special: usize,
    /// The bytes of the text tokens, by rank.
    pub tokens: &'a [T],
    /// The token that ends an answer.
    pub end: u32,
}

/// Compiles grammars over one vocabulary.
pub struct Compiler {
    factory: ParserFactory,
    vocab_size: usize,
    end: u32,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler")
            .field("vocab_size", &self.vocab_size)
            .finish_non_exhaustive()
    }
}

impl Compiler {
    /// A compiler for a vocabulary; a second of work for 131072 tokens.
    pub fn new<T: AsRef<[u8]>>(words: &Words<'_, T>) -> Result<Self, GrammarError> {
        let vocab_size = words.special + words.tokens.len();
        let error = GrammarError::Vocabulary;
        let size = u32::try_from(vocab_size).map_err(|_| error(format!("{vocab_size} tokens")))?;
        if words.end >= size {
            return Err(error(format!("its end token is {} of {size}", words.end)));
        }
        // The names of special tokens mean nothing to grammars, which name their ids.
        let special = (0..words.special).map(|id| {
            let mut name = vec![TokTrie::SPECIAL_TOKEN_MARKER];
            name.extend(format!("<{id}>").bytes());
            name
        });
        let texts = words.tokens.iter().map(|token| match token.as_ref() {
            // A token without bytes is never allowed.
            long if long.len() > MAX_TRIE_BYTES => Vec::new(),
            token => token.to_vec(),
        });
        let all: Vec<Vec<u8>> = special.chain(texts).collect();
        let made = catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&TokRxInfo::new(size, words.end), &all);
            // Not canonical: nothing is forced, whatever tokens spell the same text are allowed.
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&env)
        }));
        let mut factory = made
            .map_err(|_| error("its trie cannot be built".to_owned()))?
            .map_err(|problem| error(problem.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: MAX_LEXER_STATES,
            max_grammar_size: MAX_GRAMMAR_SYMBOLS,
            precompute_large_lexemes: false,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self {
            factory,
            vocab_size,
            end: words.end,
        })
    }

    /// The token that ends an answer.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// A matcher at the beginning of an answer. Recurses with the nesting of the grammar: call it on a thread of a
    /// [`super::Pool`].
    pub fn matcher(&self, grammar: &Grammar) -> Result<Matcher, GrammarError> {
        let text = TopLevelGrammar::from_lark(grammar.text().to_owned());
        let parser = catch_unwind(AssertUnwindSafe(|| self.factory.create_parser(text)))
            .map_err(|_| GrammarError::Invalid("it cannot be compiled".to_owned()))?
            .map_err(|error| GrammarError::Invalid(problem(&format!("{error:#}"))))?;
        let matcher = llguidance::Matcher::new(Ok(parser)).into_cancellable();
        Ok(Matcher::new(matcher, self.vocab_size))
    }
}

/// What llguidance says in one line, without the places and quotes of a text that no client wrote.
fn problem(message: &str) -> String {
    // `at 1(8): failed to compile JSON schema: ..`, then lines that show the place.
    let told = match message
        .strip_prefix("at ")
        .and_then(|rest| rest.split_once("): "))
    {
        Some((_, told)) => told,
        None => message,
    };
    let told = told
        .strip_prefix("failed to compile JSON schema: ")
        .unwrap_or(told);
    // Of expressions the last line says what is wrong, after lines that show where.
    if let Some((_, fault)) = told.split_once("\nerror: ") {
        let fault = fault.lines().next().unwrap_or_default();
        return format!("invalid regular expression: {fault}");
    }
    let line = told.lines().next().unwrap_or_default();
    // What other programs could set.
    let line = line.split(". Enable '").next().unwrap_or_default();
    line.chars().take(300).collect()
}
