//! Fills in templates: files of an image recipe that name values of the recipes. Their syntax is Jinja's, by minijinja;
//! what is not known is an error with its place. An image is made once for all guests that boot it, so nothing in it
//! can be one guest's.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    ops::Range,
    path::Path,
    sync::Arc,
};

use ipnet::Ipv4Net;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig};

use super::{
    error::{Diagnostic, Place, Source},
    image::{Content, File, Image},
    names::{self, shown},
    networks,
    rack::{Guest, Network, Rack},
    reader::{Report, Table},
    vars::Var,
};
use crate::manifest::UplinkAddress;

/// Largest template in bytes: a file named by mistake is refused before it fills the memory.
const TEMPLATE_MAX: u64 = 1 << 20;
/// Largest file that a template may become, in bytes: a loop in a loop is stopped before it fills the memory.
const FILLED_MAX: usize = 16 << 20;
/// Steps that filling in one template may take: a loop in a loop ends within a second or two.
const STEPS_MAX: u64 = 5_000_000;

/// A template whose text is still to be filled in.
pub(super) struct Template {
    /// Which of the image's files it is.
    file: usize,
    /// The template.
    text: String,
    /// Where it stands: a file of its own, or a string of the recipe.
    whole: Place,
}

impl Template {
    /// The template that a file's entry in the recipe names.
    pub fn read(report: &mut Report, table: &Table<'_>, file: usize, entry: &File) -> Option<Self> {
        match &entry.content {
            Content::Inline(text) => {
                let content = table.text(report, "content")?;
                Some(Self { file, text: text.clone(), whole: report.place(content.span) })
            }
            Content::Directory(_) => {
                let at = table.key_span("template")?;
                report.wrong(at, "a directory can't be a template", "name each of its files that is one by itself");
                None
            }
            Content::File(path) => match text(path) {
                Ok(text) => {
                    let whole = 0..text.len();
                    let source = Arc::new(Source { path: path.clone(), text: text.clone() });
                    Some(Self { file, text, whole: Place { source, span: whole } })
                }
                Err(error) => {
                    let at = table.text(report, "source")?;
                    let message = format!("`{}` can't be a template: {error}", shown(at.value));
                    report.wrong(at.span, message, "leave `template` out to put it into the image as it is");
                    None
                }
            },
        }
    }

    /// Where a piece of it stands. In a string with escapes, that is the whole string.
    fn place(&self, piece: Option<Range<usize>>) -> Place {
        let Place { source, span } = &self.whole;
        let begin = source.text.get(span.clone()).and_then(|raw| raw.find(&self.text));
        let fits = |piece: &Range<usize>| piece.start <= piece.end && piece.end <= self.text.len();
        match (begin, piece.filter(fits)) {
            (Some(begin), Some(piece)) => {
                let begin = span.start + begin;
                Place { source: Arc::clone(source), span: begin + piece.start..begin + piece.end }
            }
            _ => self.whole.clone(),
        }
    }
}

fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(TEMPLATE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > TEMPLATE_MAX {
        let message = format!("it is larger than {TEMPLATE_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

/// Fills in all templates of a rack, by the names of its images; what is wrong with them.
pub(super) fn fill_in(rack: &mut Rack, templates: &BTreeMap<String, Vec<Template>>) -> Vec<Diagnostic> {
    let mut wrong = Vec::new();
    let (shared, vars) = (shared(rack), rack.vars.clone());
    for (name, image) in &mut rack.images {
        let templates = templates.get(name).map_or(&[][..], Vec::as_slice);
        if templates.is_empty() {
            continue;
        }
        let values = values(&shared, &vars, image);
        for template in templates {
            match filled(template, &values) {
                Err(diagnostic) => wrong.push(diagnostic),
                Ok(text) => {
                    if let Some(file) = image.files.get_mut(template.file) {
                        file.content = Content::Inline(text);
                    }
                }
            }
        }
    }
    wrong
}

fn filled(template: &Template, values: &Value) -> Result<String, Diagnostic> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_debug(true);
    environment.set_fuel(Some(STEPS_MAX));
    // Shows what the engine holds, in a form that its next version may change.
    environment.remove_global("debug");
    let render = |environment: &mut Environment<'_>| -> Result<Vec<u8>, minijinja::Error> {
        // A line that is only a tag leaves no line behind, as in most programs with such templates.
        let syntax =
            SyntaxConfig::builder().keep_trailing_newline(true).trim_blocks(true).lstrip_blocks(true).build()?;
        environment.set_syntax(syntax);
        let mut out = Bounded(Vec::new());
        environment.template_from_str(&template.text)?.render_captured_to(values.clone(), &mut out)?;
        Ok(out.0)
    };
    let bytes = render(&mut environment).map_err(|error| explained(template, values, &error))?;
    let not_text = || Diagnostic::new(template.whole.clone(), "the template does not become UTF-8 text");
    String::from_utf8(bytes).map_err(|_| not_text().hint("cut strings between characters"))
}

/// Takes no more than [`FILLED_MAX`] bytes.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > FILLED_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn explained(template: &Template, values: &Value, error: &minijinja::Error) -> Diagnostic {
    let detail = error.detail().unwrap_or_default();
    let (message, hint) = match error.kind() {
        ErrorKind::UndefinedError => {
            // `rack.nme` is undefined
            let path = detail.split('`').nth(1).unwrap_or_default();
            (format!("the template names `{}`, which is not known", shown(path)), unknown(values, path))
        }
        ErrorKind::OutOfFuel => {
            ("the template takes too long".to_owned(), format!("{STEPS_MAX} steps are the most that one may take"))
        }
        ErrorKind::WriteFailure => {
            ("the template becomes too big".to_owned(), format!("{FILLED_MAX} bytes are the most"))
        }
        kind => {
            let message = if detail.is_empty() { kind.to_string() } else { format!("{kind}: {detail}") };
            (shown_whole(&message), "templates are written in Jinja's syntax: {{ rack.name }}, {% for … %}".to_owned())
        }
    };
    Diagnostic::new(template.place(error.range()), message).hint(hint)
}

/// What the engine says, without control characters of the template.
fn shown_whole(message: &str) -> String {
    message.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// What could have been meant by a path like `rack.nme`, of which all but the last name is known.
fn unknown(values: &Value, path: &str) -> String {
    let mut names: Vec<&str> =
        path.split(['.', '[', ']', '\'', '"']).map(str::trim).filter(|name| !name.is_empty()).collect();
    let last = names.pop().unwrap_or_default();
    if names.is_empty() && last == "guest" {
        return "an image is made once for all the guests that boot it, so it can't hold what belongs to one of them; what \
                guests know of themselves they ask at boot (`hostname`), and `guests.NAME` is a certain one"
            .to_owned();
    }
    let above = names.iter().try_fold(values.clone(), |value, name| value.get_attr(name).ok());
    let known: Vec<String> = above
        .and_then(|above| Some(above.try_iter().ok()?.filter_map(|key| key.as_str().map(str::to_owned)).collect()))
        .unwrap_or_default();
    let known = || known.iter().map(String::as_str);
    let within = if names.is_empty() { "templates".to_owned() } else { format!("`{}`", shown(&names.join("."))) };
    match names::closest(last, known()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known().next().is_none() => format!("{within} has nothing in it"),
        None => format!("{within} can name {}", names::list(known())),
    }
}

type Values = BTreeMap<String, Value>;

/// What all images of a rack may name.
fn shared(rack: &Rack) -> Values {
    let head = [("name", &rack.name), ("version", &rack.version), ("domain", &rack.domain)];
    let networks = rack.networks.iter().map(|(name, network)| (name.clone(), Value::from(network_of(network))));
    let guests =
        rack.guests.iter().map(|(name, guest)| (name.clone(), Value::from(guest_of(name, guest, &rack.domain))));
    BTreeMap::from([
        ("rack".to_owned(), Value::from(texts(head))),
        ("networks".to_owned(), Value::from(networks.collect::<Values>())),
        ("guests".to_owned(), Value::from(guests.collect::<Values>())),
    ])
}

/// What one image may name: its own variables come before the rack's.
fn values(shared: &Values, vars: &BTreeMap<String, Var>, image: &Image) -> Value {
    let mut values = shared.clone();
    values.insert("image".to_owned(), Value::from(texts([("name", &image.name)])));
    values.insert("vars".to_owned(), table(vars.iter().chain(&image.vars)));
    Value::from(values)
}

fn texts<const N: usize>(texts: [(&str, &String); N]) -> Values {
    texts.map(|(name, text)| (name.to_owned(), Value::from(text.as_str()))).into()
}

fn network_of(network: &Network) -> Values {
    let mut values = Values::new();
    let mut insert = |name: &str, value: String| values.insert(name.to_owned(), Value::from(value));
    let mut subnet_of = |net: Ipv4Net| {
        insert("subnet", net.trunc().to_string());
        insert("prefix", net.prefix_len().to_string());
        insert("netmask", net.netmask().to_string());
        insert("address", net.addr().to_string());
    };
    match network {
        Network::Private { subnet, .. } => {
            let rack = networks::gateway(subnet);
            if let Ok(net) = Ipv4Net::new(rack, subnet.prefix_len()) {
                subnet_of(net);
            }
            insert("gateway", rack.to_string());
            insert("resolver", rack.to_string());
        }
        Network::Uplink { address, gateway, resolver, .. } => {
            if let UplinkAddress::Static { address, prefix } = address
                && let Ok(net) = Ipv4Net::new(*address, *prefix)
            {
                subnet_of(net);
            }
            for (name, known) in [("gateway", gateway), ("resolver", resolver)] {
                known.iter().for_each(|known| _ = insert(name, known.to_string()));
            }
        }
    }
    values
}

fn guest_of(name: &str, guest: &Guest, domain: &str) -> Values {
    // Those that DHCP gives are known to nobody yet.
    let known = guest.addresses.iter().filter_map(|(network, address)| Some((network, address.known()?)));
    let addresses: Values = known.map(|(network, known)| (network.clone(), Value::from(known.to_string()))).collect();
    let mut values =
        texts([("name", &name.to_owned()), ("fqdn", &format!("{name}.{domain}")), ("image", &guest.image)]);
    values.insert("addresses".to_owned(), Value::from(addresses));
    values
}

/// Of two with the same name, the second.
fn table<'a>(vars: impl Iterator<Item = (&'a String, &'a Var)>) -> Value {
    Value::from(vars.map(|(name, var)| (name.clone(), value(var))).collect::<Values>())
}

fn value(var: &Var) -> Value {
    match var {
        Var::Text(text) => Value::from(text.as_str()),
        Var::Number(number) => Value::from(*number),
        Var::Flag(flag) => Value::from(*flag),
        Var::List(items) => Value::from_iter(items.iter().map(value)),
        Var::Table(vars) => table(vars.iter()),
    }
}
