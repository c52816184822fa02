//! The index as text. One line a thing; the words of a line are separated by one blank:
//! ```text
//! rackstick-modules 1
//! b virtio_pci                              built in
//! m erofs kernel/fs/erofs/erofs.ko.xz       a module and its file; d, s, t, w, f that follow belong to it
//! d netfs                                   needs these
//! s crc32c                                  soft dependencies before,
//! t xz_dec                                  after,
//! w zstd                                    weak dependencies
//! f rtl_nic/rtl8168h-2.fw                   firmware
//! a 0 fs-erofs                              alias of module 0 (counted from 0); `-` for what is built in
//! ```
//! Lines `b`, `m` and `a` are each sorted, so the same modules always give the same bytes.

use std::fmt::Write;

use super::{Index, Module, Target, pattern};

const HEADER: &str = "rackstick-modules 1";
/// Longest text accepted, in bytes: Debian's whole generic kernel has 1.6 MB. Also keeps offsets within 32 bits.
const MAX_TEXT: usize = 64 << 20;

/// A text that is not an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Written by another version, or something else.
    #[error("this is no module index of format 1: its first line is {0:?}; build the image again with this version")]
    Header(String),
    /// Too long.
    #[error("the module index has {0} bytes, more than {MAX_TEXT}; build the image again")]
    TooLong(usize),
    /// A line that makes no sense.
    #[error("line {line} of the module index is damaged: {text:?}; build the image again")]
    Line {
        /// Counted from 1.
        line: usize,
        /// The beginning of the line.
        text: String,
    },
}

impl Index {
    /// The index as text.
    pub fn to_text(&self) -> String {
        let mut out = String::with_capacity(self.patterns.len() + self.aliases.len() * 8 + self.modules.len() * 128);
        let mut line = |text: std::fmt::Arguments<'_>| {
            // Writing to a String can't fail.
            let _ = out.write_fmt(text);
            out.push('\n');
        };
        line(format_args!("{HEADER}"));
        for name in &self.builtin {
            line(format_args!("b {name}"));
        }
        for module in &self.modules {
            line(format_args!("m {} {}", module.name, module.path));
            let lists = [
                ('d', &module.depends),
                ('s', &module.soft_before),
                ('t', &module.soft_after),
                ('w', &module.weak),
                ('f', &module.firmware),
            ];
            for (tag, list) in lists {
                if !list.is_empty() {
                    line(format_args!("{tag} {}", list.join(" ")));
                }
            }
        }
        for alias in &self.aliases {
            match alias.target {
                Target::Builtin => line(format_args!("a - {}", self.pattern(alias))),
                Target::Module(position) => line(format_args!("a {position} {}", self.pattern(alias))),
            }
        }
        out
    }

    /// Reads what [`Index::to_text`] wrote.
    ///
    /// # Errors
    /// [`ParseError`] with the line that is wrong.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.len() > MAX_TEXT {
            return Err(ParseError::TooLong(text.len()));
        }
        let mut lines = text.lines();
        let header = lines.next().unwrap_or_default();
        if header != HEADER {
            return Err(ParseError::Header(header.chars().take(80).collect()));
        }
        let mut index = Index { patterns: String::with_capacity(text.len()), ..Index::default() };
        for (number, line) in (2..).zip(lines) {
            index.line(line).ok_or_else(|| ParseError::Line { line: number, text: line.chars().take(80).collect() })?;
        }
        Ok(index)
    }

    /// None if the line is damaged.
    fn line(&mut self, line: &str) -> Option<()> {
        let (tag, rest) = line.split_once(' ')?;
        let words = || rest.split(' ').map(str::to_owned).collect::<Vec<_>>();
        match tag {
            "a" => self.alias_line(rest)?,
            "b" => {
                if self.builtin.last().is_some_and(|last| last.as_str() >= rest) {
                    return None;
                }
                self.builtin.push(rest.to_owned());
            }
            "m" => {
                let (name, path) = rest.split_once(' ')?;
                if self.modules.last().is_some_and(|last| last.name.as_str() >= name) {
                    return None;
                }
                self.modules.push(Module {
                    name: name.to_owned(),
                    path: path.to_owned(),
                    depends: Vec::new(),
                    soft_before: Vec::new(),
                    soft_after: Vec::new(),
                    weak: Vec::new(),
                    firmware: Vec::new(),
                });
            }
            "d" => self.modules.last_mut()?.depends = words(),
            "s" => self.modules.last_mut()?.soft_before = words(),
            "t" => self.modules.last_mut()?.soft_after = words(),
            "w" => self.modules.last_mut()?.weak = words(),
            "f" => self.modules.last_mut()?.firmware = words(),
            _ => return None,
        }
        Some(())
    }

    fn alias_line(&mut self, rest: &str) -> Option<()> {
        let (target, pattern) = rest.split_once(' ')?;
        let target = match target {
            "-" => Target::Builtin,
            number => {
                let position: u32 = number.parse().ok()?;
                self.modules.get(position as usize)?;
                Target::Module(position)
            }
        };
        let literal = &pattern[..pattern::literal_len(pattern)];
        if self.aliases.last().is_some_and(|last| self.literal(last) > literal) {
            return None;
        }
        self.push_alias(pattern, target);
        Some(())
    }
}
