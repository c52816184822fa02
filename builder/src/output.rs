//! How a run of the command speaks: in words for people, or with `--json` in one document for programs, on stdout when
//! it ends. What stands in the document is told in `docs/json.md`. Set once, before anything is said.

use std::{
    error::Error,
    fmt::Display,
    io::{self, Write},
    path::PathBuf,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use rackstick_image::recipe::{Diagnostic, Diagnostics};
use serde::Serialize;

use crate::report;

/// What `--json` and `--quiet` say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Manner {
    /// For programs.
    pub json: bool,
    /// Only what was asked for, warnings and errors.
    pub quiet: bool,
}

static MANNER: OnceLock<Manner> = OnceLock::new();
static DOCUMENT: Mutex<Document> = Mutex::new(Document::new());

/// The whole of what a program is told.
#[derive(Debug, Serialize)]
struct Document {
    warnings: Vec<Problem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

/// Something at a place in a file.
#[derive(Debug, Serialize)]
struct Problem {
    file: PathBuf,
    line: usize,
    column: usize,
    message: String,
    hint: Option<String>,
}

/// Why the command failed.
#[derive(Debug, Serialize)]
struct Failure {
    message: String,
    causes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
    problems: Vec<Problem>,
}

impl Document {
    const fn new() -> Self {
        Self { warnings: Vec::new(), result: None, error: None }
    }
}

impl From<&Diagnostic> for Problem {
    fn from(diagnostic: &Diagnostic) -> Self {
        let (line, column) = diagnostic.place.line_column();
        let Diagnostic { place, message, hint, .. } = diagnostic;
        Self { file: place.source.path.clone(), line, column, message: message.clone(), hint: hint.clone() }
    }
}

impl From<&(dyn Error + 'static)> for Failure {
    fn from(error: &(dyn Error + 'static)) -> Self {
        let found = report::chain(error).find_map(|cause| cause.downcast_ref::<Diagnostics>());
        Self {
            message: error.to_string(),
            // The places are told apart below.
            causes: report::causes(error),
            hint: report::hint(error),
            problems: found.map(|Diagnostics(all)| all.iter().map(Problem::from).collect()).unwrap_or_default(),
        }
    }
}

/// Says how to speak from here on. Only the first call counts.
pub fn begin(manner: Manner) {
    MANNER.get_or_init(|| manner);
}

/// How to speak.
pub fn manner() -> Manner {
    MANNER.get().copied().unwrap_or_default()
}

fn document() -> MutexGuard<'static, Document> {
    DOCUMENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to stdout: all of the command does so here. That nobody reads any more, as before `| head`, is no error: what
/// the command did or found stays as it is, and so does its exit status.
pub fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => {
            written.map_err(|error| io::Error::new(error.kind(), format!("can't write to standard output: {error}")))
        }
    }
}

/// Tells people on stderr. Where that can't be written to, there is nobody to tell it.
pub fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Tells people on stdout what happened beside what was asked for.
pub fn say(text: impl Display) -> io::Result<()> {
    match manner() {
        Manner { json: false, quiet: false } => write(format!("{text}\n").as_bytes()),
        _ => Ok(()),
    }
}

/// Tells people on stderr what goes on, unless the command is to be quiet.
pub fn remark(text: &str) {
    if !manner().quiet {
        tell(text);
    }
}

/// Tells what came of the command: its words stand for people, its fields for programs.
pub fn result(result: &(impl Display + Serialize)) -> io::Result<()> {
    say(result)?;
    keep(result)
}

/// As [`result`], for what the command was called to say: `--quiet` does not keep it back.
pub fn answer(answer: &(impl Display + Serialize)) -> io::Result<()> {
    let text = answer.to_string();
    if !manner().json && !text.is_empty() {
        write(format!("{text}\n").as_bytes())?;
    }
    keep(answer)
}

fn keep(result: &impl Serialize) -> io::Result<()> {
    document().result = Some(serde_json::to_value(result)?);
    Ok(())
}

/// Keeps warnings for the document; false if they must be told to people.
pub fn keep_warnings(warnings: &[Diagnostic]) -> bool {
    if manner().json {
        document().warnings.extend(warnings.iter().map(Problem::from));
    }
    manner().json
}

/// Keeps an error for the document; false if it must be told to people.
pub fn keep_error(error: &(dyn Error + 'static)) -> bool {
    if manner().json {
        document().error = Some(error.into());
    }
    manner().json
}

/// Writes the document, if programs are spoken to and there is something to tell them.
pub fn end() -> io::Result<()> {
    let document = document();
    if !manner().json || (document.result.is_none() && document.error.is_none()) {
        return Ok(());
    }
    let mut text = serde_json::to_vec_pretty(&*document)?;
    text.push(b'\n');
    write(&text)
}
