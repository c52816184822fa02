//! JSON schemas of recipes (draft 7), by which editors complete and check them. Made from the same tables of keys as
//! the reader goes by: a key's type is that of its example, its description what `docs/recipes.md` says of it, and
//! [`values`] say more of what stands in it.

mod values;

use serde_json::{Map, Value, json};
use toml::de::{DeTable, DeValue};

use super::{
    names::{NAME_MAX, NETWORK_NAME_MAX},
    reader::{Key, Shape},
    shapes,
};
use crate::volume;

const DRAFT: &str = "http://json-schema.org/draft-07/schema#";
/// What explains every key.
const DOCUMENTATION: &str = include_str!("../../../docs/recipes.md");

/// Names that the user chooses: a pattern, and the most characters.
type Names = (&'static str, usize);
/// Host names of one label.
const LABEL: &str = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$";
const NAMES: Names = (LABEL, NAME_MAX);
const NETWORKS: Names = (LABEL, NETWORK_NAME_MAX);
const VOLUMES: Names = (LABEL, volume::NAME_MAX);
const GROUPS: Names = ("^[a-z_][a-z0-9_-]*$", NAME_MAX);
/// A package's user may have a name that a new one can't have.
const USERS: Names = ("^[A-Za-z_][A-Za-z0-9_.-]*$", NAME_MAX);
const VARIABLES: Names = ("^[A-Za-z_][A-Za-z0-9_]*$", NAME_MAX);
/// Names of variables of a program's environment. Their length has no limit but the recipe's own.
const ENVIRONMENT: Names = ("^[^=]+$", 1 << 20);

/// What stands in a key whose example does not tell it.
enum Inside {
    /// One table.
    Table(&'static Shape),
    /// Tables with names of the user's, each of one of these shapes.
    Named(Names, &'static [&'static Shape]),
    /// Strings with names of the user's.
    Texts(Names),
    /// Values of any type with names of the user's.
    Values(Names),
    /// An array of tables.
    Tables(&'static Shape),
    /// A name or a number.
    NameOrNumber,
    /// An array of strings, or of arrays of strings.
    Commands,
}

/// The keys of which that is said: of which shape, which, and what stands in them.
const INSIDES: &[(&Shape, &str, Inside)] = &[
    (&shapes::RECIPE, "rack", Inside::Table(&shapes::RACK)),
    (&shapes::RECIPE, "repositories", Inside::Named(NAMES, &[&shapes::REPOSITORY])),
    (&shapes::RECIPE, "networks", Inside::Named(NETWORKS, &[&shapes::UPLINK, &shapes::PRIVATE])),
    (&shapes::RECIPE, "guests", Inside::Named(NAMES, &[&shapes::GUEST])),
    (&shapes::RECIPE, "vars", Inside::Values(VARIABLES)),
    (&shapes::GUEST, "address", Inside::Texts(NETWORKS)),
    (&shapes::GUEST, "volumes", Inside::Named(VOLUMES, &[&shapes::VOLUME])),
    (&shapes::GUEST, "health", Inside::Table(&shapes::HEALTH)),
    (&shapes::IMAGE, "files", Inside::Tables(&shapes::FILE)),
    (&shapes::IMAGE, "users", Inside::Named(USERS, &[&shapes::USER])),
    (&shapes::IMAGE, "groups", Inside::Named(GROUPS, &[&shapes::GROUP])),
    (&shapes::IMAGE, "vars", Inside::Values(VARIABLES)),
    (&shapes::IMAGE, "secrets", Inside::Named(NAMES, &[&shapes::SECRET])),
    (&shapes::IMAGE, "commands", Inside::Commands),
    (&shapes::IMAGE, "from", Inside::Table(&shapes::FROM)),
    (&shapes::IMAGE, "env", Inside::Texts(ENVIRONMENT)),
    (&shapes::FILE, "owner", Inside::NameOrNumber),
    (&shapes::FILE, "group", Inside::NameOrNumber),
    (&shapes::SECRET, "owner", Inside::NameOrNumber),
    (&shapes::SECRET, "group", Inside::NameOrNumber),
];

/// The schema of a rack recipe.
pub fn rack() -> Value {
    whole("A rack recipe of Rackstick", &shapes::RECIPE)
}

/// The schema of an image recipe.
pub fn image() -> Value {
    whole("An image recipe of Rackstick", &shapes::IMAGE)
}

fn whole(title: &str, shape: &Shape) -> Value {
    let mut schema = table(shape);
    schema["$schema"] = json!(DRAFT);
    schema["title"] = json!(title);
    schema
}

fn table(shape: &Shape) -> Value {
    let properties: Map<String, Value> =
        shape.keys.iter().map(|key| (key.name.to_owned(), described(value(shape, key), shape, key))).collect();
    let required: Vec<&str> = shape.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn value(shape: &Shape, key: &Key) -> Value {
    let mut schema = typed(shape, key);
    if let Some(form) = values::of(shape, key) {
        form.add_to(&mut schema);
    }
    schema
}

/// A value of the type that the key has, and no more.
fn typed(shape: &Shape, key: &Key) -> Value {
    let named = |(pattern, max): Names, what: Value| {
        let names = json!({ "pattern": pattern, "maxLength": max });
        json!({ "type": "object", "propertyNames": names, "additionalProperties": what })
    };
    match INSIDES.iter().find(|(of, name, _)| of.what == shape.what && *name == key.name) {
        Some((.., Inside::Table(inner))) => table(inner),
        Some((.., Inside::Named(names, [only]))) => named(*names, table(only)),
        Some((.., Inside::Named(names, several))) => {
            let several: Vec<Value> = several.iter().map(|shape| table(shape)).collect();
            named(*names, json!({ "anyOf": several }))
        }
        Some((.., Inside::Texts(names))) => named(*names, json!({ "type": "string" })),
        Some((.., Inside::Values(names))) => named(*names, json!(true)),
        Some((.., Inside::Tables(inner))) => json!({ "type": "array", "items": table(inner) }),
        Some((.., Inside::NameOrNumber)) => {
            let mut schema = json!({ "type": ["string", "integer"] });
            // Each says nothing of values of the other's type.
            let (name, number) = values::OWNER;
            name.add_to(&mut schema);
            number.add_to(&mut schema);
            schema
        }
        Some((.., Inside::Commands)) => {
            let words = json!({ "type": "array", "items": { "type": "string" } });
            json!({ "type": "array", "items": { "anyOf": [{ "type": "string" }, words] } })
        }
        None => of_example(key),
    }
}

/// A value of the type that the key's example has.
fn of_example(key: &Key) -> Value {
    let parsed = DeTable::parse(key.example).ok();
    let example = parsed.as_ref().and_then(|root| root.get_ref().get(key.name)).map(|value| value.get_ref());
    match example {
        Some(DeValue::String(_)) => json!({ "type": "string" }),
        Some(DeValue::Integer(_)) => json!({ "type": "integer" }),
        Some(DeValue::Float(_)) => json!({ "type": "number" }),
        Some(DeValue::Boolean(_)) => json!({ "type": "boolean" }),
        Some(DeValue::Array(_)) => json!({ "type": "array", "items": { "type": "string" } }),
        // A test sees to it that there is no other.
        _ => json!({}),
    }
}

fn described(mut schema: Value, shape: &Shape, key: &Key) -> Value {
    if let Some(meaning) = meaning(shape, key) {
        schema["description"] = json!(meaning);
    }
    schema
}

/// What the documentation says of a key. Two shapes may have the same key with the same example: that table is the
/// right one which has a row for each key of the shape.
fn meaning(shape: &Shape, key: &Key) -> Option<&'static str> {
    let explained = |block: &&'static str| shape.keys.iter().all(|key| is_a_section(key) || row(block, key).is_some());
    DOCUMENTATION.split("\n\n").filter(explained).find_map(|block| row(block, key))
}

/// Whether a key stands in the documentation not in a row but as a section of its own.
fn is_a_section(key: &Key) -> bool {
    key.example.starts_with('[')
}

/// What a table says of a key: in the row that begins with its name and ends with its example, the cell before the
/// last.
fn row(table: &'static str, key: &Key) -> Option<&'static str> {
    let mut rows = table.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
        match cells[..] {
            [name, .., meaning, example] => Some((name, meaning, example)),
            _ => None,
        }
    });
    let of = |text: &str, what: &str| text.trim_matches('`') == what;
    rows.find(|(name, _, example)| of(name, key.name) && of(example, key.example)).map(|(_, meaning, _)| meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every shape that a schema can come to, with its path.
    fn shapes_of(shape: &'static Shape) -> Vec<&'static Shape> {
        let inside = INSIDES.iter().filter(|(of, ..)| of.what == shape.what).flat_map(|(.., inside)| match inside {
            Inside::Table(inner) | Inside::Tables(inner) => vec![*inner],
            Inside::Named(_, inner) => inner.to_vec(),
            Inside::Texts(_) | Inside::Values(_) | Inside::NameOrNumber | Inside::Commands => vec![],
        });
        std::iter::once(shape).chain(inside.flat_map(shapes_of)).collect()
    }

    #[test]
    fn every_key_of_the_reader_is_in_a_schema_with_a_type_and_with_what_the_documentation_says() {
        let reached: Vec<&str> =
            [&shapes::RECIPE, &shapes::IMAGE].into_iter().flat_map(shapes_of).map(|s| s.what).collect();
        for shape in shapes::ALL {
            assert!(reached.contains(&shape.what), "{} is in no schema: add it to INSIDES", shape.what);
            for key in shape.keys {
                let value = described(value(shape, key), shape, key);
                assert!(value.get("type").is_some(), "`{}` of {} has no type: add it to INSIDES", key.name, shape.what);
                assert!(is_a_section(key) || value.get("description").is_some(), "`{}` of {}", key.name, shape.what);
            }
        }
    }
}
