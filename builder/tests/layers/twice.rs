//! A layer may be made a second time, at another time of day and with other process ids: what then is different is told
//! with the package that owns or wrote it.

use std::path::Path;

use super::{Bench, EPOCH, PROGRAM};
use rackstick::layers::{
    Additions, Error, Layers, Package,
    stage::{
        self,
        protocol::{Changes, Marked},
    },
};

#[test]
fn what_differs_when_a_layer_is_made_again_is_told_with_its_package() {
    let bench = Bench::new();
    let layers = Layers::new(&bench.dir.path().join("cache"), Path::new(PROGRAM), EPOCH, 2).unwrap().twice().unwrap();
    let base = layers.base(&[bench.workshop.base()], &|_| ()).unwrap();
    let image = |packages: &[Package]| {
        let additions = Additions { packages: packages.to_vec(), ..Additions::default() };
        layers.image("test", &base, &additions, &|_| ()).map(|mut layers| layers.remove(0).1)
    };
    let steady = bench.workshop.draft("steady");
    steady.script(
        "postinst",
        // Another user's programs have the clock, too, which shares memory among all of them.
        "echo $SOURCE_DATE_EPOCH > /etc/steady; cp /bin/true /usr/bin/capable; setcap cap_net_raw+ep /usr/bin/capable\n\
         start-stop-daemon --start --quiet --chuid daemon --exec /bin/touch -- /dev/shm/mine /run/lock/mine /tmp/mine",
    );
    let steady = steady.build();
    let fine = image(std::slice::from_ref(&steady)).unwrap();
    assert_eq!(bench.image(&base, std::slice::from_ref(&steady)).unwrap(), fine);

    let mut dated = bench.workshop.draft("dated");
    dated.file("/usr/share/dated/shipped", b"", 0o644).file("/usr/share/dated/steady", b"", 0o644);
    dated.control("Depends: steady");
    // The hour and the day would be the same in a second build that only follows the first.
    dated.script("postinst", "date +%F > /usr/share/dated/shipped; date +%H > /etc/hour; echo x > /etc/fine");
    let numbered = bench.workshop.draft("numbered");
    numbered.script("postinst", "echo $$ > /etc/pid; test $$ -lt 20000 || touch /etc/only-later");
    let packages = [dated.build(), numbered.build(), steady];
    let error = image(&packages).unwrap_err();
    let Error::Stage { label, source: stage::Error::Differs(lines) } = &error else { panic!("{error:?}") };
    let expected = [
        ("/etc/hour: other content (3 bytes), last changed by `", "`configure dated`"),
        ("/etc/only-later: only the second time, last changed by `", "`configure numbered`"),
        ("/etc/pid: other content (", "`configure numbered`"),
        (
            "/usr/share/dated/shipped: other content (11 bytes), of package dated, last changed by `",
            "`configure dated`",
        ),
    ];
    assert_eq!((label.as_str(), lines.len()), ("test", expected.len()), "{lines:#?}");
    for (line, (expected, step)) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected) && line.contains(step), "{lines:#?}");
    }
    assert_eq!(bench.leftovers(), [""; 0]);
    // Asked for once, the same packages are no error; and a layer of the cache is looked at, too.
    bench.image(&base, &packages).unwrap();
    assert!(matches!(image(&packages), Err(Error::Stage { source: stage::Error::Differs(_), .. })));

    // The layer of what the recipe itself does is made above that of the packages, both times.
    let command = |script: &str| Marked { value: ["sh", "-ec", script].map(str::to_owned).to_vec(), mark: 0 };
    let own = |script: &str| {
        let changes = Changes { commands: vec![command(script)], ..Changes::default() };
        layers.image(
            "test",
            &base,
            &Additions { packages: packages[2..].to_vec(), files: Vec::new(), changes },
            &|_| (),
        )
    };
    assert_eq!(own("cat /etc/steady > /etc/copy").unwrap()[0].1, fine);
    let error = own("date +%F > /etc/steady").unwrap_err();
    let Error::Stage { source: stage::Error::Differs(lines), .. } = &error else { panic!("{error:?}") };
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    let expected = "/etc/steady: other content (11 bytes), last changed by `";
    assert!(line.starts_with(expected) && line.contains("`a command of the recipe`"), "{line}");
    assert_eq!(bench.leftovers(), [""; 0]);
}
