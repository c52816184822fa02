//! Debian binary packages: an `ar` archive of `debian-binary`, `control.tar*` and `data.tar*`. Follows deb(5) and
//! deb-control(5). The bytes were checked against the lock before; what stands in them is not trusted all the same.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read, Seek},
};

use deb822_fast::Deb822;
use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

/// Bytes of an unpacked `control.tar` at most: stops an archive that unpacks into memory without end.
const MAX_CONTROL_BYTES: u64 = 64 << 20;
/// Members of an unpacked `control.tar` at most, for the same reason.
const MAX_CONTROL_MEMBERS: usize = 256;
/// Bytes of an unpacked part at most: its size has ten digits where it stands plain in an archive (ar(5)), as in the
/// store. Stops a package that fills the disk with zeros.
const MAX_PART_BYTES: u64 = 9_999_999_999;
/// zstd window accepted: dpkg-deb's largest level uses 128 MiB, and the decoder allocates what the archive asks for.
const MAX_ZSTD_WINDOW: u64 = 128 << 20;
/// Bytes behind the end of a packed part at most. dpkg-deb ignores what one pipe (pipe(7)) holds of them and fails at
/// more: a part cut into several streams would lose files in silence.
const MAX_BEHIND: u64 = 64 << 10;
/// How each of gzip's members begins (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Why a package can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// {0}
    #[error("can't be read: {0}")]
    Read(#[from] io::Error),
    /// A member is missing.
    #[error("is no Debian package: it has no `{0}` (download it again)")]
    NoMember(&'static str),
    /// The format is another than 2.x.
    #[error("has format `{0}`, only 2.x is known")]
    Format(String),
    /// A member is compressed in a way that is not known.
    #[error("has a member `{0}`: only .tar, .tar.gz, .tar.xz and .tar.zst are known")]
    Compression(String),
    /// zstd refused.
    #[error("has a damaged member: {0}")]
    Zstd(String),
    /// Larger than allowed.
    #[error("has a control part of more than {MAX_CONTROL_BYTES} bytes or {MAX_CONTROL_MEMBERS} members")]
    ControlTooLarge,
    /// A path that no system call takes.
    #[error("has an entry whose path is longer than 4096 bytes")]
    NameTooLong,
    /// The control file does not say what it must.
    #[error("has a control file without a valid `{0}`")]
    Field(&'static str),
    /// A control member whose name would lead out of the database's folder.
    #[error("has a control member with the name `{0}`")]
    MemberName(String),
}

/// The control part.
#[derive(Debug, Clone)]
pub struct Control {
    /// Package name.
    pub package: String,
    /// `amd64`, `all`.
    pub architecture: String,
    /// The control file's one paragraph as it stands there, without empty lines, ending in a newline.
    pub paragraph: String,
    /// What must be configured before its preinst runs, as it stands there; empty if nothing.
    pub pre_depends: String,
    /// What must be configured before itself.
    pub depends: String,
    /// Other names it goes by.
    pub provides: String,
    /// Whether packages of the same name but other architectures may be installed beside it.
    pub multi_arch_same: bool,
    /// All members but `control`: maintainer scripts, conffiles, triggers, checksums. By name: mode and content.
    pub members: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Control {
    /// A member as text lines, without comments and empty ones; none if there is no such member.
    pub fn lines(&self, member: &str) -> Vec<String> {
        let bytes = self.members.get(member).map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        String::from_utf8_lossy(bytes)
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect()
    }

    /// The name under which dpkg's database keeps its files: `libc6:amd64`, `bash`.
    pub fn database_name(&self) -> String {
        if self.multi_arch_same { format!("{}:{}", self.package, self.architecture) } else { self.package.clone() }
    }
}

/// Reads the control part.
pub fn control(deb: &File) -> Result<Control, Error> {
    with_member(deb, "control.tar", |member| {
        let mut members = BTreeMap::new();
        let mut limited = tar::Archive::new(member.take(MAX_CONTROL_BYTES));
        for entry in limited.entries()? {
            let mut entry = entry?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path()?.into_owned();
            let name = path.strip_prefix(".").unwrap_or(&path).to_string_lossy().into_owned();
            if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
                return Err(Error::MemberName(name));
            }
            if entry.size() > MAX_CONTROL_BYTES || members.len() >= MAX_CONTROL_MEMBERS {
                return Err(Error::ControlTooLarge);
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            let mode = entry.header().mode()? & 0o777;
            members.insert(name, (mode, bytes));
        }
        let (_, text) = members.remove("control").ok_or(Error::NoMember("control"))?;
        let text = String::from_utf8(text).map_err(|_| Error::Field("Package"))?;
        parse(&text, members)
    })
}

fn parse(text: &str, members: BTreeMap<String, (u32, Vec<u8>)>) -> Result<Control, Error> {
    let document: Deb822 = text.parse().map_err(|_| Error::Field("Package"))?;
    let fields = document.iter().next().ok_or(Error::Field("Package"))?;
    let field = |name: &'static str| {
        let value = fields.get(name).unwrap_or_default();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        let starts_well = value.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts_well && value.chars().all(plain) { Ok(value.to_owned()) } else { Err(Error::Field(name)) }
    };
    let paragraph: String =
        text.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{line}\n")).collect();
    Ok(Control {
        package: field("Package")?,
        architecture: field("Architecture")?,
        pre_depends: fields.get("Pre-Depends").unwrap_or_default().to_owned(),
        depends: fields.get("Depends").unwrap_or_default().to_owned(),
        provides: fields.get("Provides").unwrap_or_default().to_owned(),
        multi_arch_same: fields.get("Multi-Arch").is_some_and(|value| value.trim() == "same"),
        paragraph,
        members,
    })
}

/// Hands the data part to `visit`, as a tar archive.
pub fn data<T, E: From<Error>>(
    deb: &File,
    visit: impl FnOnce(&mut tar::Archive<&mut dyn Read>) -> Result<T, E>,
) -> Result<T, E> {
    with_member(deb, "data.tar", |member| visit(&mut tar::Archive::new(member)))
}

/// Hands out both parts plain, with the names of members that are not packed, in their order.
pub fn parts<E: From<Error>>(
    deb: &File,
    mut visit: impl FnMut(&'static str, &mut dyn Read) -> Result<(), E>,
) -> Result<(), E> {
    ["control.tar", "data.tar"].into_iter().try_for_each(|name| with_member(deb, name, |part| visit(name, part)))
}

fn with_member<T, E: From<Error>>(
    mut deb: &File,
    stem: &'static str,
    visit: impl FnOnce(&mut dyn Read) -> Result<T, E>,
) -> Result<T, E> {
    deb.rewind().map_err(Error::Read)?;
    let packed = deb.metadata().map_err(Error::Read)?.len();
    let visit = |part: &mut dyn Read| visit(&mut Limited { part, stem, packed, left: MAX_PART_BYTES });
    let mut archive = ar::Archive::new(BufReader::with_capacity(1 << 16, deb));
    let mut first = true;
    while let Some(entry) = archive.next_entry() {
        let mut entry = entry.map_err(Error::Read)?;
        let name = String::from_utf8_lossy(entry.header().identifier()).trim_end_matches('/').to_owned();
        if first {
            check_version(&name, &mut entry)?;
            first = false;
        } else if let Some(suffix) = name.strip_prefix(stem) {
            return match suffix {
                "" => visit(&mut entry),
                ".gz" => visit(&mut Members(Some(GzDecoder::new(Cursor::default().chain(BufReader::new(entry)))))),
                ".xz" => visit(&mut OneStream { decoder: XzReader::new(entry, false), source: XzReader::inner_mut }),
                ".zst" => {
                    let decoder = StreamingDecoder::new_with_max_window_size(entry, MAX_ZSTD_WINDOW);
                    let decoder = decoder.map_err(|error| Error::Zstd(error.to_string()))?;
                    visit(&mut OneStream { decoder, source: StreamingDecoder::get_mut })
                }
                _ => Err(Error::Compression(name).into()),
            };
        }
    }
    Err(Error::NoMember(stem).into())
}

/// A part as it unpacks, as far as it may.
struct Limited<'a> {
    part: &'a mut dyn Read,
    stem: &'static str,
    /// Size of the package.
    packed: u64,
    /// Bytes that may still come.
    left: u64,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.part.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            let message = format!(
                "its {} bytes hold a `{}` of more than {MAX_PART_BYTES}, the most that is unpacked: split it into several \
                 packages, or leave it out",
                self.packed, self.stem
            );
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        Ok(read)
    }
}

/// A packed part, which is one stream; what is behind that is ignored.
struct OneStream<D, R> {
    decoder: D,
    source: fn(&mut D) -> &mut R,
}

impl<D: Read, R: Read> Read for OneStream<D, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            ignore((self.source)(&mut self.decoder))?;
        }
        Ok(read)
    }
}

/// A part packed by gzip, whose members follow each other (RFC 1952, section 2.2); what begins in another way behind
/// one is ignored.
struct Members<R>(Option<GzDecoder<io::Chain<Cursor<Vec<u8>>, R>>>);

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(mut source) = self.0.take().map(GzDecoder::into_inner) else { break };
            let mut start = Vec::new();
            source.by_ref().take(GZIP.len() as u64).read_to_end(&mut start)?;
            let (_, source) = source.into_inner();
            if start == GZIP {
                self.0 = Some(GzDecoder::new(Cursor::new(start).chain(source)));
            } else {
                ignore(source)?;
            }
        }
        Ok(0)
    }
}

/// Ignores the rest of a member, as far as dpkg-deb does.
fn ignore(rest: impl Read) -> io::Result<()> {
    if io::copy(&mut rest.take(MAX_BEHIND + 1), &mut io::sink())? > MAX_BEHIND {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("more than {MAX_BEHIND} bytes stand behind the end of a packed part"),
        ));
    }
    Ok(())
}

fn check_version(name: &str, member: &mut impl Read) -> Result<(), Error> {
    if name != "debian-binary" {
        return Err(Error::NoMember("debian-binary"));
    }
    let mut version = String::new();
    member.take(16).read_to_string(&mut version)?;
    if version.starts_with("2.") { Ok(()) } else { Err(Error::Format(version.trim().to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_becomes_too_large_is_told_with_size_limit_and_what_to_do() {
        let read = |left| {
            let mut content: &[u8] = &[0; 1000];
            let mut part = Limited { part: &mut content, stem: "data.tar", packed: 77, left };
            part.read_to_end(&mut Vec::new())
        };
        assert_eq!(read(1000).unwrap(), 1000);
        let said = Error::from(read(999).unwrap_err()).to_string();
        for part in ["can't be read: its 77 bytes hold a `data.tar`", "9999999999", "split it into several packages"] {
            assert!(said.contains(part), "{said}");
        }
    }
}
