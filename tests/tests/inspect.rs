//! Ring 3: what `rackstick inspect`, `verify` and `diff` say of images that were really built, judged by other people's
//! tools.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path, process::Command};

use rackstick_image::manifest::Blob;
use rackstick_tests::{
    disk::{Partition, flip_bit},
    image::Image,
    place,
    recipe::Recipes,
    tool::{self, Said},
};

fn ask(command: &str, images: &[&Path]) -> Said {
    tool::run(tool::rackstick().arg(command).args(images))
}

/// `name version` of all packages in the highest database of some layers, as dpkg-query finds them in what fsck.erofs
/// unpacks.
fn packages(data: &Partition, layers: &[Blob]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let unpacked = layers.iter().rev().map(|layer| {
        let (file, root) = (folder.path().join("layer"), folder.path().join(layer.digest.to_string()));
        fs::write(&file, data.read_file(&format!("layers/{}", layer.digest))).unwrap();
        tool::ask("fsck.erofs", [format!("--extract={}", root.display()).as_ref(), file.as_os_str()]);
        root
    });
    let root = unpacked.into_iter().find(|root| root.join("var/lib/dpkg/status").exists()).unwrap();
    let admin = format!("--admindir={}", root.join("var/lib/dpkg").display());
    let said = tool::ask("dpkg-query", [admin.as_str(), "--show", "--showformat=${Package} ${Version}\\n"]);
    said.lines().map(str::to_owned).collect()
}

#[test]
fn what_inspect_says_is_what_other_peoples_tools_find() {
    let image = Image::pair();
    let said = ask("inspect", &[&image.path]);
    assert!(said.success, "{said:?}");
    let text = said.stdout;
    for part in ["rack pair 1, domain lab.internal", "192 MiB, 10.20.0.53/24 on servers", "signatures: none yet"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    for number in [1, 2] {
        let guid = tool::ask("sgdisk", [format!("--info={number}").as_ref(), image.path.as_os_str()]);
        let guid = guid.lines().find_map(|line| line.strip_prefix("Partition unique GUID: ")).unwrap().to_lowercase();
        assert!(text.contains(guid.trim()), "{guid} in\n{text}");
    }
    let data = Partition::of(&image.path, 2);
    let layers = data.debugfs("ls -p layers");
    let names: Vec<&str> =
        layers.lines().filter_map(|line| line.split('/').nth(5)).filter(|name| name.len() == 64).collect();
    assert!(names.len() >= 6 && names.iter().all(|name| text.contains(name)), "{names:?} in\n{text}");
    for (name, manifest) in &image.manifest.images {
        let expected = packages(&data, &manifest.layers);
        let count = format!("image {name}: Linux {}", &manifest.layers[1].label["kernel ".len()..]);
        let count = format!("{count}, {} packages", expected.len());
        assert!(text.contains(&count), "{count} in\n{text}");
        assert!(expected.iter().all(|package| text.contains(&format!("  {package}\n"))), "{expected:?} in\n{text}");
    }
}

#[test]
fn a_recipe_is_no_image_and_the_error_says_what_can_be_asked() {
    let recipe = place::clone().join("tests/recipes/pair.toml");
    let said = ask("inspect", &[&recipe]);
    assert!(said.code == Some(1) && said.stderr.contains("--hardware ID or --drivers"), "{said:?}");
    let image = Image::matrix();
    let said = tool::run(tool::rackstick().args(["inspect", "--hardware", "8086:10d3"]).arg(&image.path));
    assert!(said.code == Some(1) && said.stderr.contains("is an image, not a recipe"), "{said:?}");
    let said = ask("verify", &[&recipe]);
    assert!(said.code == Some(1) && said.stderr.contains("it has no partition table"), "{said:?}");
}

#[test]
fn new_images_are_whole() {
    for image in [Image::pair(), Image::matrix(), Image::matrix_4kn(), Image::bare()] {
        let said = ask("verify", &[&image.path]);
        assert!(said.success && said.stdout.contains("is whole"), "{}: {said:?}", image.path.display());
        assert!(ask("inspect", &[&image.path]).success);
    }
}

#[test]
fn each_damage_of_an_image_is_told_with_its_place() {
    let folder = tempfile::tempdir_in(place::rig()).unwrap();
    let image = Image::matrix().copy_to(folder.path());
    let data = Partition::of(&image.path, 2);
    let disk = fs::metadata(&image.path).unwrap().len();
    let mut expected =
        vec!["first partition table", "second partition table"].into_iter().map(str::to_owned).collect::<Vec<_>>();
    flip_bit(&image.path, 1024 + 56);
    flip_bit(&image.path, disk - 512 + 72);
    // Within each blob of the page's image its last block, and a block of its tree behind it.
    let page = &image.manifest.images["page"];
    for (number, blob) in page.layers.iter().chain([&page.kernel]).enumerate() {
        let file = format!("layers/{}", blob.digest);
        let last = (blob.size - 1) / 4096;
        if number % 2 == 0 {
            flip_bit(&image.path, data.place_of_block(&file, last) + 7);
            expected.push(format!("layers/{} ({}): its bytes", blob.digest, blob.label));
            expected.push(format!("damaged: {last}, "));
        } else {
            flip_bit(&image.path, data.place_of_block(&file, blob.size.next_multiple_of(65536) / 4096) + 7);
            expected.push(format!("layers/{} ({}): block 0 of its Merkle tree", blob.digest, blob.label));
        }
    }
    let said = ask("verify", &[&image.path]);
    // One of both tables must be whole.
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("neither the first nor the second is whole"), "{said:?}");
    flip_bit(&image.path, 1024 + 56);
    let said = ask("verify", &[&image.path]);
    expected.remove(0);
    for part in &expected {
        assert!(said.code == Some(1) && said.stderr.contains(part.as_str()), "{part} in\n{}", said.stderr);
    }

    // On the ESP there is nearly nothing but the UKI, of 50 MiB.
    flip_bit(&image.path, Partition::of(&image.path, 1).offset + (30 << 20));
    let said = ask("verify", &[&image.path]);
    assert!(said.stderr.contains("rackstick_1.efi: its bytes have the checksum"), "{}", said.stderr);
}

#[test]
fn what_a_new_recipe_changes_is_what_diff_shows() {
    let pair = Image::pair();
    assert_eq!(ask("diff", &[&pair.path, &pair.path]).code, Some(0));

    let recipes = Recipes::of_tests();
    recipes.edit("pair.toml", "memory  = \"256 MiB\"", "memory  = \"320 MiB\"");
    recipes.edit("pair.toml", "lan:8080/tcp -> 80", "lan:8081/tcp -> 80");
    recipes.edit("images/web.toml", "path   = \"/var/www/html/index.html\"", "path   = \"/var/www/html/other.html\"");
    let out = tempfile::tempdir_in(place::rig()).unwrap();
    tool::output(tool::rackstick().arg("build").arg(recipes.path("pair.toml")).arg("-o").arg(out.path()));
    let other = Image::only_one_in(out.path());
    let said = ask("diff", &[&pair.path, &other.path]);
    assert_eq!(said.code, Some(1), "{said:?}");
    for part in [
        "guest web\n",
        "  - 256 MiB\n",
        "  + 320 MiB\n",
        "  + lan:8081/tcp leads to its 80\n",
        "  + var/www/html/other.html ",
        "  ~ rackstick/manifest.json",
        "layer web: ",
    ] {
        assert!(said.stdout.contains(part), "{part} in\n{}", said.stdout);
    }
    for same in ["layer base", "layer dns", "packages of"] {
        assert!(!said.stdout.contains(same), "{same} in\n{}", said.stdout);
    }

    let said = ask("diff", &[&pair.path, &Image::matrix().path]);
    assert!(said.code == Some(1) && said.stdout.contains("packages of image dns\n  - "), "{}", said.stdout);
    assert!(said.stdout.contains("guest page\n  + "), "{}", said.stdout);
    let said = ask("diff", &[&pair.path, Path::new("/nowhere.img")]);
    assert!(said.code == Some(2) && said.stderr.contains("/nowhere.img"), "{said:?}");
}

#[test]
fn looking_into_an_image_takes_little_memory() {
    // The largest resident set, as the kernel counts it for the program's end.
    let script = r#"ulimit -v 300000; exec "$@""#;
    let image = Image::pair();
    for arguments in [vec!["inspect"], vec!["verify"], vec!["diff", image.path.to_str().unwrap()]] {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(tool::rackstick().get_program()).args(&arguments).arg(&image.path);
        let said = tool::run(&mut command);
        assert!(said.success, "{arguments:?} in 300 MB of addresses: {said:?}");
    }
}
