//! How an error reaches a person: the one place that draws. Diagnostics with a place are shown with the lines around
//! it, everything else as its chain of causes.

use std::io::IsTerminal;

use miette::{GraphicalReportHandler, GraphicalTheme, NamedSource, SourceSpan, ThemeCharacters};
use rackstick_image::recipe::{Diagnostic, Diagnostics};

/// What a command fails with. Any `thiserror` enum converts with `?`.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Columns when stderr is no terminal: so many that nothing is wrapped, so that logs can be searched.
const UNWRAPPED: usize = 10_000;

/// Writes the error to stderr.
pub fn print(error: &(dyn std::error::Error + 'static)) {
    let stderr = std::io::stderr();
    let terminal = stderr.is_terminal();
    let width = rustix::termios::tcgetwinsize(&stderr).map_or(UNWRAPPED, |size| usize::from(size.ws_col).max(40));
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    eprint!("{}", text(error, Look { terminal, colour, width: if terminal { width } else { UNWRAPPED } }));
}

/// What the output can show.
#[derive(Clone, Copy)]
struct Look {
    terminal: bool,
    colour: bool,
    width: usize,
}

/// The error as text.
fn text(error: &(dyn std::error::Error + 'static), look: Look) -> String {
    let handler = handler(look);
    if let Some(Diagnostics(all)) = chain(error).find_map(|cause| cause.downcast_ref()) {
        let drawn: Vec<String> = all.iter().map(|diagnostic| draw(&handler, diagnostic)).collect();
        return drawn.join("\n");
    }
    let mut out = format!("error: {error}\n");
    for cause in chain(error).skip(1) {
        out.push_str(&format!("  caused by: {cause}\n"));
    }
    out
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |cause| cause.source())
}

fn handler(look: Look) -> GraphicalReportHandler {
    let characters = if look.terminal { ThemeCharacters::unicode() } else { ThemeCharacters::ascii() };
    let characters = ThemeCharacters { error: "error:".to_owned(), ..characters };
    let styles = if look.colour { GraphicalTheme::unicode().styles } else { GraphicalTheme::none().styles };
    GraphicalReportHandler::new_themed(GraphicalTheme { characters, styles }).with_links(false).with_width(look.width)
}

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("{message}")]
struct Drawn {
    message: String,
    #[source_code]
    file: NamedSource<String>,
    #[label("{label}")]
    span: SourceSpan,
    label: String,
    #[help]
    hint: Option<String>,
}

fn draw(handler: &GraphicalReportHandler, diagnostic: &Diagnostic) -> String {
    let source = &diagnostic.place.source;
    let start = diagnostic.place.span.start.min(source.text.len());
    let end = diagnostic.place.span.end.clamp(start, source.text.len());
    let drawn = Drawn {
        message: diagnostic.message.clone(),
        file: NamedSource::new(source.path.display().to_string(), source.text.clone()),
        span: (start, end - start).into(),
        label: diagnostic.label.clone(),
        hint: diagnostic.hint.clone(),
    };
    let mut out = String::new();
    match handler.render_report(&mut out, &drawn) {
        Ok(()) => out,
        Err(std::fmt::Error) => format!("error: {diagnostic}\n"),
    }
}
