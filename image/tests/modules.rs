//! The module index: made from modules, written, read, and asked as modprobe(8) would be.
#![allow(clippy::unwrap_used, missing_docs)]

use rackstick_image::modules::{Index, InfoError, ModuleInfo, ParseError, ResolveError};

/// The smallest ELF object with a `.modinfo`: header, contents, three section headers (ELF-64 object file format 1.5).
fn elf(modinfo: &str) -> Vec<u8> {
    const NAMES: &[u8] = b"\0.modinfo\0.shstrtab\0";
    let modinfo_at = 64u64;
    let names_at = modinfo_at + modinfo.len() as u64;
    let table_at = names_at + NAMES.len() as u64;
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend([1u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    out.extend(1u32.to_le_bytes());
    out.extend([0u64, 0, table_at].iter().flat_map(|word| word.to_le_bytes()));
    out.extend(0u32.to_le_bytes());
    out.extend([64u16, 0, 0, 64, 3, 2].iter().flat_map(|half| half.to_le_bytes()));
    out.extend(modinfo.as_bytes());
    out.extend(NAMES);
    for (name, kind, at, size) in
        [(0u32, 0u32, 0, 0), (1, 1, modinfo_at, modinfo.len() as u64), (10, 3, names_at, NAMES.len() as u64)]
    {
        out.extend([name, kind].iter().flat_map(|word| word.to_le_bytes()));
        out.extend([0u64, 0, at, size].iter().flat_map(|word| word.to_le_bytes()));
        out.extend([0u32, 0].iter().flat_map(|word| word.to_le_bytes()));
        out.extend([1u64, 0].iter().flat_map(|word| word.to_le_bytes()));
    }
    out
}

fn module(path: &str, modinfo: &[&str]) -> ModuleInfo {
    let text: String = modinfo.iter().map(|entry| format!("{entry}\0")).collect();
    ModuleInfo::read(path, &elf(&text)).unwrap()
}

/// What matters of Debian's pmem, EROFS and nftables modules.
fn modules() -> Vec<ModuleInfo> {
    vec![
        module("kernel/drivers/nvdimm/nd_pmem.ko.xz", &["alias=nd:t4*", "alias=nd:t5*", "depends=nd_btt,libnvdimm"]),
        module("kernel/drivers/nvdimm/nd_btt.ko.xz", &["depends=libnvdimm"]),
        module("kernel/drivers/nvdimm/libnvdimm.ko.xz", &["depends="]),
        module("kernel/drivers/nvdimm/nd_virtio.ko.xz", &["depends=libnvdimm"]),
        module("kernel/drivers/nvdimm/virtio_pmem.ko.xz", &["alias=virtio:d0000001Bv*", "depends=libnvdimm,nd_virtio"]),
        module(
            "kernel/fs/erofs/erofs.ko.xz",
            &["alias=fs-erofs", "softdep=pre: libcrc32c post: zzz-none", "depends=netfs"],
        ),
        module("kernel/fs/netfs/netfs.ko.xz", &["depends="]),
        module("kernel/lib/libcrc32c.ko.xz", &["softdep=pre: crc32c", "depends="]),
        module(
            "kernel/arch/x86/crypto/crc32c-intel.ko.xz",
            &["alias=crc32c", "alias=cpu:type:x86,ven*fam*mod*:feature:*0094*", "depends="],
        ),
        module("kernel/net/netfilter/nft_ct.ko.xz", &["alias=nft-expr-ct", "depends=nf_tables", "weakdep=nf-log"]),
        module("kernel/net/netfilter/nf_tables.ko", &["depends=", "vermagic=6.12.1 SMP preempt mod_unload"]),
        module("kernel/net/netfilter/nf_log.ko.xz", &["depends=", "firmware=a/b.fw", "firmware=a/c.fw"]),
    ]
}

fn index() -> Index {
    Index::new(
        modules(),
        "kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/ext4/ext4.ko\n",
        b"ext4.alias=fs-ext4\0ext4.license=GPL\0i8042.parm=x\0",
    )
}

fn names<'a>(modules: impl IntoIterator<Item = &'a rackstick_image::modules::Module>) -> Vec<&'a str> {
    modules.into_iter().map(|module| module.name.as_str()).collect()
}

#[test]
fn each_module_comes_after_what_it_needs() {
    let index = index();
    assert_eq!(
        names(index.closure(&["virtio-pmem", "nd_pmem"]).unwrap()),
        ["libnvdimm", "nd_virtio", "virtio_pmem", "nd_btt", "nd_pmem"]
    );
    assert_eq!(names(index.closure(&["fs-erofs"]).unwrap()), ["crc32c_intel", "libcrc32c", "netfs", "erofs"]);
}

#[test]
fn a_device_finds_its_driver() {
    let index = index();
    assert_eq!(names(index.by_alias("virtio:d0000001Bv00001AF4")), ["virtio_pmem"]);
    assert_eq!(names(index.by_alias("nd:t5")), ["nd_pmem"]);
    assert_eq!(names(index.by_alias("nft-expr-ct")), ["nft_ct"]);
    let cpu = "cpu:type:x86,ven0002fam0019mod0021:feature:,0000,0001,0094,00A0\n";
    assert_eq!(names(index.by_alias(cpu.trim())), ["crc32c_intel"]);
    assert!(index.by_alias("virtio:d00000001v00001AF4").is_empty());
    assert!(index.by_alias("fs-ext4").is_empty());
    assert!(index.by_alias("").is_empty());
}

#[test]
fn what_is_built_in_needs_no_loading_and_what_is_nowhere_is_named() {
    let index = index();
    for builtin in ["ext4", "fs-ext4", "virtio-pci", "i8042"] {
        assert!(index.closure(&[builtin]).unwrap().is_empty(), "{builtin}");
    }
    assert_eq!(index.closure(&["xfs"]).unwrap_err(), ResolveError::Unknown { name: "xfs".into() });
    let lonely = Index::new(vec![module("a.ko", &["depends=b"])], "", b"");
    assert_eq!(
        lonely.closure(&["a"]).unwrap_err(),
        ResolveError::MissingDependency { module: "a".into(), dependency: "b".into() }
    );
}

/// `softdep=pre: crc32` of f2fs: the library crc32 is built in, but what is meant are the modules with that alias.
#[test]
fn modules_with_an_alias_come_before_what_is_built_in_under_the_same_name() {
    let modules = vec![
        module("f2fs.ko", &["softdep=pre: crc32"]),
        module("crc32-pclmul.ko", &["alias=crc32"]),
        module("crc32_generic.ko", &["alias=crc32"]),
    ];
    let index = Index::new(modules, "kernel/lib/crc32.ko", b"");
    assert_eq!(names(index.closure(&["f2fs"]).unwrap()), ["crc32_generic", "crc32_pclmul", "f2fs"]);
}

#[test]
fn a_circle_of_soft_dependencies_ends() {
    let circle = Index::new(
        vec![
            module("a.ko", &["softdep=pre: b"]),
            module("b.ko", &["softdep=pre: a"]),
            module("c.ko", &["softdep=post: c"]),
        ],
        "",
        b"",
    );
    assert_eq!(names(circle.closure(&["a", "c"]).unwrap()), ["b", "a", "c"]);
}

#[test]
fn a_part_of_the_index_holds_what_its_modules_need_and_no_more() {
    let part = index().select(&["nft_ct", "ext4", "erofs"]).unwrap();
    assert_eq!(names(part.modules()), ["crc32c_intel", "erofs", "libcrc32c", "netfs", "nf_log", "nf_tables", "nft_ct"]);
    assert_eq!(names(part.by_alias("nft-expr-ct")), ["nft_ct"]);
    assert!(part.by_alias("nd:t4").is_empty());
    assert!(part.closure(&["ext4"]).unwrap().is_empty());
    assert_eq!(part.get("nf-log").unwrap().firmware, ["a/b.fw", "a/c.fw"]);
}

#[test]
fn the_text_says_all_and_does_not_depend_on_the_order_of_the_modules() {
    let index = index();
    let text = index.to_text();
    assert_eq!(Index::parse(&text).unwrap(), index);
    let mut reversed = modules();
    reversed.reverse();
    let again = Index::new(
        reversed,
        "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_pci.ko\n",
        b"i8042.parm=x\0ext4.alias=fs-ext4\0",
    );
    assert_eq!(again.to_text(), text);
    let part = index.select(&["nft_ct", "erofs"]).unwrap();
    assert_eq!(Index::parse(&part.to_text()).unwrap(), part);
}

#[test]
fn a_damaged_text_is_refused_with_its_line() {
    assert!(matches!(Index::parse("rackstick-modules 2\n"), Err(ParseError::Header(_))));
    assert!(matches!(Index::parse(""), Err(ParseError::Header(_))));
    for bad in [
        "x y",
        "m a",
        "m",
        "d libnvdimm",
        "a 0 fs-x",
        "a 7 fs-x",
        "a fs-x",
        "b b\nb a",
        "m b b.ko\nm a a.ko",
        "a - b\na - a",
        "m a a.ko\n\n",
    ] {
        let text = format!("rackstick-modules 1\n{bad}\n");
        assert!(matches!(Index::parse(&text), Err(ParseError::Line { line: 2.., .. })), "{bad:?}");
    }
}

#[test]
fn no_cut_or_flipped_byte_of_a_module_or_an_index_brings_the_reader_down() {
    let file = elf("alias=fs-x\0depends=a,b\0softdep=pre: c\0");
    let text = index().to_text();
    for at in 0..file.len() {
        let _ = ModuleInfo::read("x.ko", &file[..at]);
        let mut flipped = file.clone();
        flipped[at] ^= 0xff;
        let _ = ModuleInfo::read("x.ko", &flipped);
    }
    for at in 0..text.len() {
        let _ = Index::parse(&text[..at]);
    }
}

#[test]
fn what_is_no_module_is_refused_with_its_path() {
    assert!(matches!(ModuleInfo::read("x.ko", b"\xfd7zXZ"), Err(InfoError::NotElf { path, .. }) if path == "x.ko"));
    assert!(matches!(ModuleInfo::read("modules.order", &elf("")), Err(InfoError::BadPath { .. })));
    assert!(matches!(ModuleInfo::read("a b.ko", &elf("")), Err(InfoError::BadPath { .. })));
    assert!(matches!(ModuleInfo::read("a.ko", &elf("alias=fs\n-x\0")), Err(InfoError::NotText { .. })));
    assert_eq!(module("kernel/net/a-b.ko", &["vermagic=6.12.1 SMP"]).release, "6.12.1");
}
