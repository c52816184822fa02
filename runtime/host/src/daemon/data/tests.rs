//! Mounts and partitions of loop devices: needs root, as all of CI has.

use std::{fs, fs::File, os::unix::fs::FileExt, process::Command};

use rackstick_image::{
    disk::{self, Disk},
    ext4::Data,
    guid,
    sector::SectorSize,
};
use tempfile::TempDir;

use super::*;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// A loop device, until dropped.
struct Loop {
    device: PathBuf,
    partitions: bool,
}

impl Loop {
    fn new(options: &[&str], image: &Path) -> Self {
        let said = run("losetup", &[options, &["--show", "-f", image.to_str().unwrap()]].concat());
        Self { device: said.trim().into(), partitions: false }
    }

    /// With its partitions, which partx reads where the kernel can't.
    fn with_partitions(image: &Path) -> Self {
        let mut device = Self::new(&[], image);
        device.partitions = true;
        run("partx", &["-a", device.device.to_str().unwrap()]);
        device
    }

    fn partition(&self, number: u32) -> PathBuf {
        format!("{}p{number}", self.device.display()).into()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let device = self.device.to_str().unwrap();
        if self.partitions {
            run("partx", &["-d", device]);
        }
        run("losetup", &["-d", device]);
    }
}

/// Something mounted, until dropped.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        run("umount", &[self.0.to_str().unwrap()]);
    }
}

fn file_system(folder: &TempDir) -> PathBuf {
    let image = folder.path().join("data");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    run("mke2fs", &["-q", "-t", "ext4", "-b", "4096", image.to_str().unwrap()]);
    image
}

#[test]
fn a_broken_journal_is_reported_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let image = file_system(&folder);
    let name = image.to_str().unwrap();
    // As after a power cut, but what is to be replayed is damaged: the journal's own superblock, at its first block.
    run("debugfs", &["-w", "-R", "feature needs_recovery", name]);
    let block: u64 = run("debugfs", &["-R", "bmap <8> 0", name]).trim().parse().unwrap();
    File::options().write(true).open(&image).unwrap().write_all_at(&[0xa5; 4096], block * 4096).unwrap();
    let before = fs::read(&image).unwrap();
    let device = Loop::new(&[], &image);
    let target = folder.path().join("mounted");
    let source = mount_at(&device.device, &target).unwrap_err();
    let said = Error::Mount { device: device.device.clone(), source }.to_string();
    assert!(said.contains("untouched") && said.contains(device.device.to_str().unwrap()), "{said}");
    drop(device);
    assert!(fs::read(&image).unwrap() == before, "it was written to");
}

#[test]
fn a_write_protected_disk_is_mounted_for_reading() {
    let folder = tempfile::tempdir().unwrap();
    let image = file_system(&folder);
    let device = Loop::new(&["-r"], &image);
    let target = folder.path().join("mounted");
    mount_at(&device.device, &target).unwrap();
    let _unmount = Unmount(target.clone());
    let flags = rustix::fs::statvfs(&target).unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let error = identity::load_or_make(&target).unwrap_err().to_string();
    assert!(error.contains("Read-only file system"), "{error}");
}

/// A whole image on a loop device with partitions, as a kernel sees a flashed disk.
fn flashed(folder: &TempDir, larger_by: u64) -> (Loop, String) {
    let path = folder.path().join("rack.img");
    let guid = |name: &str| guid::derive(&[name.as_bytes(), folder.path().to_str().unwrap().as_bytes()]);
    let data = Data {
        uuid: guid("file system"),
        label: "data".into(),
        epoch: 0,
        directories: [("state".to_owned(), 0o700)].into(),
        files: [].into(),
    };
    let (sector, esp) = (SectorSize::B512, Vec::new());
    let disk = Disk {
        sector,
        guid: guid("disk"),
        esp_guid: guid("esp"),
        esp_volume_id: 1,
        esp,
        data_guid: guid("data"),
        data,
    };
    let extents = disk::Place::take(&path, || ()).unwrap().write(&disk, |_| ()).unwrap().0.extents;
    File::options().write(true).open(&path).unwrap().set_len(extents.disk + larger_by).unwrap();
    (Loop::with_partitions(&path), disk.data_guid.to_string())
}

#[test]
fn the_partition_is_found_by_its_guid_and_grows_while_it_is_mounted() {
    const MORE: u64 = 300 << 20;
    let folder = tempfile::tempdir().unwrap();
    let (_device, guid) = flashed(&folder, MORE);
    let found = find::candidates(&guid);
    let [found] = &found[..] else { panic!("one partition, not {found:?}") };
    let target = folder.path().join("mounted");
    mount_at(&found.device, &target).unwrap();
    let _unmount = Unmount(target.clone());

    let size =
        || fs::read_to_string(Path::new("/sys/class/block").join(found.device.file_name().unwrap()).join("size"));
    let before: u64 = size().unwrap().trim().parse().unwrap();
    let aims = std::cell::RefCell::new(Vec::new());
    let grown = grow::grow(&found.device, &target, |aim| aims.borrow_mut().push(aim));
    let now: u64 = size().unwrap().trim().parse().unwrap();
    assert_eq!((now - before) * 512, MORE, "the kernel knows the partition's new size");
    assert_eq!(aims.take(), [now * 512]);
    assert_eq!(find::candidates(&guid).len(), 1);
    match grown {
        Ok(outcome) => assert!(outcome.now > outcome.before + MORE / 2, "{outcome:?}"),
        // A container without CAP_SYS_RESOURCE: the rig shows the rest.
        Err(grow::Error::Step { what, source, .. }) => {
            assert_eq!((what, source.kind()), ("make its file system larger", io::ErrorKind::PermissionDenied));
        }
    }
}

#[test]
fn a_partition_that_has_grown_costs_nothing_at_the_next_boot() {
    let folder = tempfile::tempdir().unwrap();
    let (device, guid) = flashed(&folder, 0);
    let found = find::candidates(&guid).remove(0).device;
    let target = folder.path().join("mounted");
    mount_at(&found, &target).unwrap();
    let _unmount = Unmount(target.clone());
    let disk = File::open(&device.device).unwrap();
    let mut table = vec![0; 34 * 512];
    disk.read_exact_at(&mut table, 0).unwrap();
    let started = Instant::now();
    let outcome = grow::grow(&found, &target, |aim| panic!("it begins to grow to {aim}")).unwrap();
    println!("nothing to do: {:?}", started.elapsed());
    assert_eq!(outcome.before, outcome.now);
    let mut again = vec![0; 34 * 512];
    disk.read_exact_at(&mut again, 0).unwrap();
    assert!(again == table, "the table was written");
}

#[test]
fn of_two_disks_with_one_image_the_one_that_was_mounted_before_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (first, guid) = flashed(&folder, 0);
    let copy = folder.path().join("copy.img");
    run("cp", &["--sparse=always", folder.path().join("rack.img").to_str().unwrap(), copy.to_str().unwrap()]);
    let second = Loop::with_partitions(&copy);
    let target = folder.path().join("mounted");
    let taken = |guid: &str| find::candidates(guid).into_iter().map(|found| found.device).collect::<Vec<_>>();
    assert!(find::candidates(&guid).iter().all(find::Candidate::is_fresh));
    for used in [&second, &first, &first] {
        mount_at(&used.partition(2), &target).unwrap();
        drop(Unmount(target.clone()));
        let found = taken(&guid);
        assert_eq!(found.len(), 2, "{found:?}");
    }
    // The first was used twice, the second once.
    assert_eq!(taken(&guid)[0], first.partition(2));
    // A check of the file system makes the count of its mounts 0.
    run("e2fsck", &["-fy", first.partition(2).to_str().unwrap()]);
    assert_eq!(taken(&guid)[0], first.partition(2));
}

#[test]
fn a_disk_on_which_the_kernel_found_no_partition_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let (device, _) = flashed(&folder, 0);
    // As sysfs shows it before the kernel has found its partitions, and then with one.
    let disk = folder.path().join(device.device.file_name().unwrap());
    fs::create_dir_all(disk.join("queue")).unwrap();
    fs::write(disk.join("queue/logical_block_size"), "512\n").unwrap();
    assert!(find::table(&disk).is_none());
    fs::create_dir(disk.join("part1")).unwrap();
    fs::write(disk.join("part1/partition"), "1\n").unwrap();
    assert!(find::table(&disk).is_some());
}
