//! UKIs judged by binutils and sbsigntool. The stub is that of the package `systemd-boot-efi`.

use std::{fs, io, path::Path};

use super::*;
use crate::testing::run;

const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

fn sample() -> Uki {
    Uki {
        stub: fs::read(STUB).unwrap_or_else(|error| panic!("{STUB}: {error}: run ci/setup")),
        os_release: "ID=rackstick\nVERSION_ID=2026.11.1\n".into(),
        cmdline: "panic=10 oops=panic".into(),
        uname: "6.12.57+deb13-amd64".into(),
        microcode: None,
        initrd: Source::Bytes((0..3_000_001_u32).map(|at| (at >> 3) as u8).collect()).into(),
        linux: Source::Bytes(vec![0x90; 123_457]),
    }
}

fn bytes(pieces: &Pieces) -> Vec<u8> {
    let bytes = pieces.read().unwrap();
    assert_eq!(pieces.size(), bytes.len() as u64);
    bytes
}

fn made(uki: &Uki) -> Vec<u8> {
    bytes(&make(uki).unwrap())
}

fn objcopy(section: &str, uki: &Path, to: &Path) -> Vec<u8> {
    run("objcopy", ["-O", "binary", "--only-section", section, uki.to_str().unwrap(), to.to_str().unwrap()]);
    fs::read(to).unwrap()
}

#[test]
fn binutils_find_every_section_with_its_bytes_and_no_overlap() {
    let folder = tempfile::tempdir().unwrap();
    let (path, part) = (folder.path().join("uki.efi"), folder.path().join("part"));
    let mut uki = sample();
    uki.microcode = Some(Source::Bytes(vec![5; 2048]));
    fs::write(&path, made(&uki)).unwrap();
    let listed = run("objdump", ["-h".as_ref(), path.as_os_str()]);
    let mut sections = Vec::new();
    for line in listed.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, name, size, address, _, offset, _] = fields[..]
            && name.starts_with('.')
        {
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            sections.push((name.to_string(), number(size), number(address), number(offset)));
        }
    }
    let names: Vec<&str> = sections.iter().map(|section| section.0.as_str()).collect();
    assert!(names.ends_with(&[".osrel", ".cmdline", ".uname", ".ucode", ".initrd", ".linux"]), "{names:?}");
    assert!(names.contains(&".sbat"));
    for pair in sections.windows(2) {
        let ((_, size, address, offset), (name, _, next_address, next_offset)) = (&pair[0], &pair[1]);
        assert!(address + size <= *next_address && offset + size <= *next_offset, "{name} overlaps\n{listed}");
    }
    for (name, expected) in [
        (".initrd", bytes(&uki.initrd)),
        (".linux", bytes(&uki.linux.clone().into())),
        (".cmdline", b"panic=10 oops=panic".to_vec()),
    ] {
        assert!(objcopy(name, &path, &part) == expected, "{name}");
        let bytes = fs::read(&path).unwrap();
        let found = read::section(io::Cursor::new(&bytes), name).unwrap();
        assert!(bytes[found.start as usize..found.end as usize] == expected, "{name}");
    }
    assert_eq!(made(&uki), made(&uki));
}

#[test]
fn sbsign_signs_it_and_sbverify_accepts_the_signature() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    fs::write(at("uki.efi"), made(&sample())).unwrap();
    let (key, certificate) = (at("key"), at("certificate"));
    run(
        "openssl",
        [
            "req",
            "-new",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-noenc",
            "-subj",
            "/CN=test",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ],
    );
    let listed = run("sbverify", ["--list", &at("uki.efi")]);
    assert!(listed.contains("No signature table present"), "{listed}");
    let signed = run("sbsign", ["--key", &key, "--cert", &certificate, "--output", &at("signed.efi"), &at("uki.efi")]);
    // It warns of bytes that no section covers: they would be outside of what firmware measures.
    assert!(!signed.contains("warning"), "{signed}");
    assert!(run("sbverify", ["--cert", &certificate, &at("signed.efi")]).contains("Signature verification OK"));
    // This checksum is of sbsign's making.
    let (held, sum) = read::checksums(fs::File::open(at("signed.efi")).unwrap()).unwrap();
    assert!(held == sum && held != 0, "{held:#x} {sum:#x}");
}

#[test]
fn the_checksum_tells_every_flipped_bit() {
    let small = Uki { initrd: Source::Bytes(vec![1; 999]).into(), linux: Source::Bytes(vec![2]), ..sample() };
    let uki = made(&small);
    let sums = |bytes: &[u8]| read::checksums(io::Cursor::new(bytes));
    assert!(matches!(sums(&uki), Ok((held, sum)) if held == sum));
    for at in (0..uki.len()).step_by(61).chain(0..600) {
        let mut bytes = uki.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(!matches!(sums(&bytes), Ok((held, sum)) if held == sum), "byte {at}");
    }
    for length in (0..uki.len()).step_by(997) {
        assert!(!matches!(sums(&uki[..length]), Ok((held, sum)) if held == sum), "{length}");
    }
}

#[test]
fn a_damaged_or_cut_stub_gives_an_error_or_a_uki_but_no_panic() {
    let whole = sample();
    let small = Uki { initrd: Source::Bytes(vec![1]).into(), linux: Source::Bytes(vec![2]), ..whole };
    for length in (0..2048).chain((2048..small.stub.len()).step_by(997)) {
        let stub = small.stub[..length].to_vec();
        let result = make(&Uki { stub, ..small.clone() });
        // The bookworm stub has symbols behind its last section, which are not needed.
        assert!(matches!(result, Err(UkiError::Stub(_))) || length > small.stub.len() / 2, "{length}");
    }
    for at in 0..2048 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut stub = small.stub.clone();
            stub[at] = value;
            let _ = make(&Uki { stub, ..small.clone() });
        }
    }
}

#[test]
fn what_does_not_fit_or_is_there_already_is_refused() {
    let uki = sample();
    let twice = Uki { stub: made(&uki), ..uki.clone() };
    assert!(matches!(make(&twice), Err(UkiError::Stub(_))));
    for size in [u64::from(u32::MAX), u64::MAX] {
        let huge = Source::Path { path: "/nowhere".into(), size };
        let error = make(&Uki { initrd: huge.into(), ..uki.clone() }).unwrap_err();
        assert!(matches!(error, UkiError::Stub(StubError::TooLarge(_))), "{error}");
    }
    let gone = Source::Path { path: "/nowhere".into(), size: 5 };
    assert!(matches!(make(&Uki { linux: gone, ..uki }), Err(UkiError::Source(_))));
}

#[test]
fn a_damaged_or_cut_uki_gives_no_section_outside_of_it_and_no_panic() {
    let uki = made(&Uki { initrd: Source::Bytes(vec![1; 999]).into(), linux: Source::Bytes(vec![2]), ..sample() });
    let find = |bytes: &[u8]| read::section(io::Cursor::new(bytes), ".initrd");
    let found = find(&uki).unwrap();
    for length in 0..uki.len() {
        assert_eq!(find(&uki[..length]).is_ok(), length as u64 >= found.end, "{length}");
    }
    for at in 0..2048 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = uki.clone();
            bytes[at] = value;
            if let Ok(found) = find(&bytes) {
                assert!(found.start <= found.end && found.end <= bytes.len() as u64);
            }
        }
    }
    assert!(matches!(read::section(io::Cursor::new(&uki), ".none"), Err(read::ReadError::NoSection(_))));
}
