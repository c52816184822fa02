//! How an error reaches a person: the one place that draws. Diagnostics with a place are shown with the lines around
//! it, everything else as its chain of causes.

use std::io::{IsTerminal, Write};

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, SourceCode, ThemeCharacters};
use rackstick_image::{
    full,
    recipe::{Diagnostic, Diagnostics},
};

use crate::output;

/// What a command fails with. Any `thiserror` enum converts with `?`.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Columns when stderr is no terminal: so many that nothing is wrapped, so that logs can be searched.
const UNWRAPPED: usize = 10_000;
/// Columns below which wrapping would leave no text on a line.
const NARROWEST: usize = 40;

/// Tells an error: people on stderr.
pub fn print(error: &(dyn std::error::Error + 'static)) {
    if !output::keep_error(error) {
        write(|look| text(error, look));
    }
}

/// Tells warnings: people on stderr.
pub fn warn(warnings: &[Diagnostic]) {
    if !output::keep_warnings(warnings) && !warnings.is_empty() {
        write(|look| drawn(warnings, Severity::Warning, look));
    }
}

fn write(text: impl FnOnce(Look) -> String) {
    let stderr = std::io::stderr();
    let terminal = stderr.is_terminal();
    // A terminal that does not know its width, as on a serial line, says 0.
    let width =
        rustix::termios::tcgetwinsize(&stderr).ok().map(|size| usize::from(size.ws_col)).filter(|&width| width > 0);
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let look = Look { terminal, colour, width: width.unwrap_or(UNWRAPPED).max(NARROWEST) };
    // Where stderr itself fails there is nobody left to tell; the exit code still says it.
    _ = stderr.lock().write_all(text(look).as_bytes());
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
    if let Some(Diagnostics(all)) = chain(error).find_map(|cause| cause.downcast_ref()) {
        return drawn(all, Severity::Error, look);
    }
    let mut out = format!("error: {error}\n");
    for cause in causes(error) {
        out.push_str(&format!("  caused by: {cause}\n"));
    }
    if let Some(hint) = hint(error) {
        out.push_str(&format!("  help: {hint}\n"));
    }
    // Names in archives and images may be anybody's, and orders to the terminal.
    out.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// What to do about what any command may meet.
pub fn hint(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    full::is_behind(error).then_some(
        "`rackstick store gc` removes from the store what no build has used for 30 days; `--output` puts an image onto another disk, and \
         RACKSTICK_CACHE the store",
    )
}

/// The error and its causes, the nearest first.
pub fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |cause| cause.source())
}

/// What its causes say, the nearest first, as far as nothing before says it already.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut said = error.to_string();
    let mut causes = Vec::new();
    // The places are told apart.
    for cause in chain(error).skip(1).filter(|cause| !cause.is::<Diagnostics>()).map(ToString::to_string) {
        if !said.contains(&cause) {
            causes.push(cause.clone());
            said = cause;
        }
    }
    causes
}

fn drawn(all: &[Diagnostic], severity: Severity, look: Look) -> String {
    let handler = handler(look);
    let drawn: Vec<String> = all.iter().map(|diagnostic| draw(&handler, diagnostic, severity)).collect();
    drawn.join("\n")
}

fn handler(look: Look) -> GraphicalReportHandler {
    let characters = if look.terminal { ThemeCharacters::unicode() } else { ThemeCharacters::ascii() };
    let characters = ThemeCharacters { error: "error:".to_owned(), warning: "warning:".to_owned(), ..characters };
    let styles = if look.colour { GraphicalTheme::unicode().styles } else { GraphicalTheme::none().styles };
    GraphicalReportHandler::new_themed(GraphicalTheme { characters, styles }).with_links(false).with_width(look.width)
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Drawn {
    severity: Severity,
    message: String,
    file: NamedSource<String>,
    mark: LabeledSpan,
    hint: Option<String>,
}

impl miette::Diagnostic for Drawn {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.file)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(self.mark.clone())))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.hint.as_ref().map(|hint| Box::new(hint) as Box<dyn std::fmt::Display>)
    }
}

fn draw(handler: &GraphicalReportHandler, diagnostic: &Diagnostic, severity: Severity) -> String {
    let source = &diagnostic.place.source;
    let start = diagnostic.place.span.start.min(source.text.len());
    let end = diagnostic.place.span.end.clamp(start, source.text.len());
    let label = Some(diagnostic.label.clone()).filter(|label| !label.is_empty());
    let drawn = Drawn {
        severity,
        message: diagnostic.message.clone(),
        file: NamedSource::new(source.path.display().to_string(), source.text.clone()),
        mark: LabeledSpan::new_primary_with_span(label, (start, end - start)),
        hint: diagnostic.hint.clone(),
    };
    let mut out = String::new();
    match handler.render_report(&mut out, &drawn) {
        Ok(()) => out,
        Err(std::fmt::Error) => format!("{severity:?}: {diagnostic}\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use rackstick_image::recipe::{LoadError, Place, Source};

    use super::*;
    use crate::store::StoreError;

    const LOG: Look = Look { terminal: false, colour: false, width: UNWRAPPED };
    const TERMINAL: Look = Look { terminal: true, colour: true, width: 80 };

    fn wrong(file: &str, span: std::ops::Range<usize>) -> LoadError {
        let source = Arc::new(Source { path: PathBuf::from("lab.toml"), text: file.to_owned() });
        LoadError::Invalid(Diagnostic::new(Place { source, span }, "this is wrong").hint("do better").into())
    }

    #[test]
    fn a_diagnostic_is_drawn_with_its_place_wherever_it_stands_in_the_chain() {
        let drawn = text(&wrong("one\ntwo = 2\n", 10..11), LOG);
        assert!(drawn.contains("error: this is wrong\n") && drawn.contains("[lab.toml:2:7]\n"), "{drawn}");
        assert!(drawn.contains("help: do better\n"), "{drawn}");
        assert!(!drawn.contains('\u{1b}') && drawn.is_ascii(), "{drawn}");
        assert!(text(&wrong("one\ntwo = 2\n", 10..11), TERMINAL).contains('\u{1b}'));
    }

    #[test]
    fn of_a_full_disk_it_is_said_what_to_do() {
        let full = StoreError::NoSpace {
            folder: "/cache".into(),
            needed: 7,
            free: 3,
            source: std::io::ErrorKind::StorageFull.into(),
        };
        let told = text(&full, LOG);
        for part in ["in /cache: at least 7 bytes are needed and 3 are free\n", "  help: `rackstick store gc`"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn every_place_can_be_drawn_even_one_outside_the_file() {
        for file in ["", "\n", "a", "a\r\nb", "\t\té = 1\n\n\n", "\u{1F600}\n"] {
            for start in 0..file.len() + 3 {
                for end in start..file.len() + 4 {
                    for look in [LOG, TERMINAL] {
                        let drawn = text(&wrong(file, start..end), look);
                        assert!(
                            drawn.contains("this is wrong") && drawn.contains("lab.toml"),
                            "{file:?} {start}..{end}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn an_error_without_a_place_is_told_with_its_causes() {
        let error = LoadError::Read(PathBuf::from("lab.toml"), std::io::ErrorKind::NotFound.into());
        assert_eq!(text(&error, LOG), "error: can't read the recipe lab.toml\n  caused by: entity not found\n");
        #[derive(Debug, thiserror::Error)]
        #[error("can't do it: {source}")]
        struct Saying {
            source: LoadError,
        }
        let twice = Saying { source: error };
        let told = "error: can't do it: can't read the recipe lab.toml\n  caused by: entity not found\n";
        assert_eq!(text(&twice, LOG), told, "nothing is said twice");
    }
}
