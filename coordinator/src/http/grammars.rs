//! What answers of a request are held to: its grammar, written here and compiled once before anything is submitted.
//!
//! Compilation is bounded in size, work and time, runs on threads of its own, and says what is wrong with which field.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tramontane_model::grammar::{Cancel, Compiler, Grammar, GrammarError, Pool};

use super::error::{ApiError, ErrorKind};
use super::structured::Structured;
use super::tool_choice::{ToolChoice, parameters_field};
use crate::text::Tokenizer;
use crate::text::chat::Tool;
use crate::text::constraint::{Callable, Constraint, Content, Reasoning};

/// Threads that compile grammars.
const THREADS: usize = 2;
/// Grammars that may wait to be compiled.
const PLACES: usize = 64;
/// Longest that the compilation of a grammar may take, its first mask included.
const DEADLINE: Duration = Duration::from_secs(5);

/// A part of a grammar that can be at fault on its own.
struct Part {
    field: String,
    alone: Grammar,
}

/// What the answers of a request are held to.
pub(super) struct Held {
    constraint: Constraint,
    parts: Vec<Part>,
    /// To blame where no part alone is.
    field: String,
}

impl Held {
    /// For a text that continues a prompt.
    pub(super) fn text(structured: Option<Structured>) -> Result<Self, ApiError> {
        Self::new(structured, Vec::new(), Content::Free, true)
    }

    /// For the answer to a conversation.
    pub(super) fn chat(
        structured: Option<Structured>,
        tools: &[Tool],
        choice: &ToolChoice,
        one_call: bool,
    ) -> Result<Self, ApiError> {
        let callables = choice.callables(tools)?;
        let content = if choice.is_forced() {
            Content::None
        } else {
            Content::Free
        };
        let is_named = match choice {
            ToolChoice::Function(_) => true,
            ToolChoice::Auto | ToolChoice::None | ToolChoice::Required => false,
        };
        Self::new(structured, callables, content, !one_call && !is_named)
    }

    fn new(
        structured: Option<Structured>,
        callables: Vec<(usize, Callable)>,
        content: Content,
        parallel: bool,
    ) -> Result<Self, ApiError> {
        let mut parts = Vec::new();
        for (index, callable) in &callables {
            if let Some(schema) = &callable.arguments {
                let field = parameters_field(*index);
                let alone = schema
                    .alone()
                    .map_err(|error| ApiError::invalid(field.clone(), error))?;
                parts.push(Part { field, alone });
            }
        }
        let mut field = "tools".to_owned();
        let mut content = content;
        if let Some(Structured { field: name, shape }) = structured {
            let alone = shape.alone().map_err(|error| ApiError::invalid(name, error))?;
            field = name.to_owned();
            parts.push(Part {
                field: field.clone(),
                alone,
            });
            if content == Content::Free {
                content = Content::Shaped(shape);
            }
        }
        let constraint = Constraint {
            content,
            calls: callables.into_iter().map(|(_, callable)| callable).collect(),
            parallel,
            reasoning: Reasoning::None,
        };
        Ok(Self {
            constraint,
            parts,
            field,
        })
    }

    /// The grammar of the answers to this prompt; none if they may be anything.
    pub(super) fn grammar(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
    ) -> Result<Option<Grammar>, ApiError> {
        self.constraint.reasoning = if tokenizer.leaves_reasoning_open(prompt) {
            Reasoning::Open
        } else if tokenizer.shows_reasoning(prompt) {
            Reasoning::May
        } else {
            Reasoning::None
        };
        let written = self.constraint.grammar(tokenizer);
        written.map_err(|error| ApiError::invalid(self.field.clone(), error))
    }
}

/// Compiles grammars to see whether they can be used.
pub(super) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Started when the first grammar comes.
    pool: OnceLock<Result<Pool, String>>,
    compiler: Arc<OnceLock<Result<Compiler, GrammarError>>>,
}

impl Grammars {
    pub(super) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            pool: OnceLock::new(),
            compiler: Arc::default(),
        }
    }

    /// Refuses a grammar that replicas could not hold answers to; names the field that is to blame.
    pub(super) async fn check(&self, grammar: &Grammar, held: &Held) -> Result<(), ApiError> {
        let Err(error) = self.compile(grammar.clone()).await? else {
            return Ok(());
        };
        let blame = |field: &str, error: &GrammarError| Err(ApiError::invalid(field, problem(error)));
        match held.parts.as_slice() {
            [only] => return blame(&only.field, &error),
            // What took too long is not tried again.
            parts if error != GrammarError::Cancelled => {
                for part in parts {
                    if let Err(error) = self.compile(part.alone.clone()).await? {
                        return blame(&part.field, &error);
                    }
                }
            }
            _ => {}
        }
        blame(&held.field, &error)
    }

    async fn compile(&self, grammar: Grammar) -> Result<Result<(), GrammarError>, ApiError> {
        let start = || Pool::start("grammars", THREADS, PLACES).map_err(|error| error.to_string());
        let pool = self.pool.get_or_init(start).as_ref();
        let failed = |problem: &dyn std::fmt::Display| {
            ApiError::new(
                ErrorKind::Failed,
                format!("no grammar can be compiled: {problem}"),
            )
        };
        let pool = pool.map_err(|problem| failed(problem))?;
        let (tokenizer, compiler) = (Arc::clone(&self.tokenizer), Arc::clone(&self.compiler));
        let work = Arc::new(Work::default());
        let (sender, receiver) = oneshot::channel();
        let job = Arc::clone(&work);
        let full = || ApiError::new(ErrorKind::Overloaded, "too many grammars wait to be compiled");
        pool.try_run(move || {
            // Nobody waits for what had no turn in time.
            if !sender.is_closed() {
                job.has_begun.store(true, Ordering::Relaxed);
                let _ = sender.send(job.run(&tokenizer, &compiler, &grammar));
            }
        })
        .map_err(|_| full())?;
        match timeout(DEADLINE, receiver).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Ok(Err(GrammarError::Invalid("it cannot be compiled".to_owned()))),
            Err(_) if work.has_begun.load(Ordering::Relaxed) => {
                if let Some(cancel) = work.cancel.get() {
                    cancel.cancel();
                }
                Ok(Err(GrammarError::Cancelled))
            }
            Err(_) => Err(full()),
        }
    }
}

/// A compilation on its way.
#[derive(Default)]
struct Work {
    has_begun: AtomicBool,
    cancel: OnceLock<Cancel>,
}

impl Work {
    fn run(
        &self,
        tokenizer: &Tokenizer,
        compiler: &OnceLock<Result<Compiler, GrammarError>>,
        grammar: &Grammar,
    ) -> Result<(), GrammarError> {
        let compiler = compiler
            .get_or_init(|| Compiler::new(&tokenizer.words()))
            .as_ref();
        let mut matcher = compiler.map_err(Clone::clone)?.matcher(grammar)?;
        let _ = self.cancel.set(matcher.cancel());
        matcher.mask().map(drop)
    }
}

/// What is wrong, for the one who wrote the field.
fn problem(error: &GrammarError) -> String {
    match error {
        GrammarError::Cancelled => format!("takes longer than {} s to compile", DEADLINE.as_secs()),
        GrammarError::Stuck(problem) => format!("allows no answer, or is too complex: {problem}"),
        GrammarError::Invalid(_) | GrammarError::TooLong { .. } | GrammarError::Vocabulary(_) => {
            format!("cannot be used: {error}")
        }
    }
}
