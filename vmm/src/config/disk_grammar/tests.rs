#![allow(clippy::unwrap_used)]
use super::*;
use crate::config::Access;

/// Specifications that Xen's parser takes too, and what libxlutil 4.17 makes of them: format, vdev, access
/// ("cd" for a CD-ROM, which is read-only) and target.
const LIKE_XL: &[(&str, &str, &str, &str, &str)] = &[
    ("/dev/vg/guest-volume,,hda", "raw", "hda", "rw", "/dev/vg/guest-volume"),
    ("/dev/vg/guest-volume,raw,hda,rw", "raw", "hda", "rw", "/dev/vg/guest-volume"),
    (
        "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
        "raw",
        "hda",
        "rw",
        "/dev/vg/guest-volume",
    ),
    ("raw:/dev/vg/guest-volume,hda,w", "raw", "hda", "rw", "/dev/vg/guest-volume"),
    ("/root/image.iso,,hdc,cdrom", "raw", "hdc", "cd", "/root/image.iso"),
    ("/root/image.iso,,hdc,,cdrom", "raw", "hdc", "cd", "/root/image.iso"),
    ("/root/image.iso,raw,hdc,devtype=cdrom", "raw", "hdc", "cd", "/root/image.iso"),
    (
        "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
        "raw",
        "hdc",
        "cd",
        "/root/image.iso",
    ),
    ("raw:/root/image.iso,hdc:cdrom,ro", "raw", "hdc", "cd", "/root/image.iso"),
    ("/a,,hdc,cdrom,", "raw", "hdc", "cd", "/a"),
    ("/a,,hdc,w,devtype=cdrom", "raw", "hdc", "cd", "/a"),
    ("/a,,xvda,,cdrom,cdrom", "raw", "xvda", "cd", "/a"),
    ("cdrom,vdev=hdc,/iso", "raw", "hdc", "cd", "/iso"),
    ("vdev=hdc,cdrom,target=/a", "raw", "hdc", "cd", "/a"),
    ("qcow2:/a,hda:cdrom,w", "qcow2", "hda", "cd", "/a"),
    ("/a,,xvda:disk", "raw", "xvda", "rw", "/a"),
    ("/a,,xvda,,devtype=disk", "raw", "xvda", "rw", "/a"),
    (",hdc:cdrom,r", "empty", "hdc", "cd", ""),
    (",,hdc:cdrom,r", "empty", "hdc", "cd", ""),
    (",empty,hdc,r,cdrom", "empty", "hdc", "cd", ""),
    (",qcow2,hdc,,cdrom", "empty", "hdc", "cd", ""),
    ("vdev=hdc,cdrom", "empty", "hdc", "cd", ""),
    ("vdev=hdc,devtype=cdrom,format=empty", "empty", "hdc", "cd", ""),
    ("vdev=hdc,cdrom,target=", "empty", "hdc", "cd", ""),
    ("phy:/dev/vg/lv,xvda,w", "raw", "xvda", "rw", "/dev/vg/lv"),
    ("file:/srv/a.img,xvda1,r", "raw", "xvda1", "ro", "/srv/a.img"),
    ("tap:aio:/srv/a.img,xvda,w", "raw", "xvda", "rw", "/srv/a.img"),
    ("tap:qcow2:/srv/a.qcow2,xvda,w", "qcow2", "xvda", "rw", "/srv/a.qcow2"),
    ("tap:vhd:/srv/a.vhd,xvda,w", "vhd", "xvda", "rw", "/srv/a.vhd"),
    ("tap2:tapdisk:aio:/srv/a.img,xvda,w", "raw", "xvda", "rw", "/srv/a.img"),
    ("tapdisk:vhd:/a,xvda,w", "vhd", "xvda", "rw", "/a"),
    ("tap:/a,xvda,w", "raw", "xvda", "rw", "/a"),
    ("ioemu:phy:/a,hda,w", "raw", "hda", "rw", "/a"),
    ("ioemu:qcow2:/a,hda,w", "qcow2", "hda", "rw", "/a"),
    ("phy:,xvda,w,target=/dev/x", "raw", "xvda", "rw", "/dev/x"),
    ("/a,qcow2,xvda,w", "qcow2", "xvda", "rw", "/a"),
    ("/a,vhd,vdev=sdb,ro", "vhd", "sdb", "ro", "/a"),
    ("/a,qcow2,,w,vdev=xvda", "qcow2", "xvda", "rw", "/a"),
    ("vdev=xvda,/a,raw,w", "raw", "xvda", "rw", "/a"),
    ("vdev=xvda,format=raw,/a,r", "raw", "xvda", "ro", "/a"),
    ("access=r,/a,raw,xvda", "raw", "xvda", "ro", "/a"),
    ("/a,raw,xvda,access=r", "raw", "xvda", "ro", "/a"),
    ("/a,,sdb3", "raw", "sdb3", "rw", "/a"),
    ("/a,,hdc2", "raw", "hdc2", "rw", "/a"),
    ("/a,,d0p1", "raw", "xvda1", "rw", "/a"),
    ("/a,,d536p37", "raw", "xvdtq37", "rw", "/a"),
    ("/a,,51712", "raw", "xvda", "rw", "/a"),
    ("/a,,0xca00", "raw", "xvda", "rw", "/a"),
    ("/a,,xvda,,discard", "raw", "xvda", "rw", "/a"),
    ("/a,,xvda,,no-discard", "raw", "xvda", "rw", "/a"),
    ("/a,,xvda,,direct-io-safe,direct-io-safe", "raw", "xvda", "rw", "/a"),
    ("/a,,xvda,,backendtype=phy", "raw", "xvda", "rw", "/a"),
    ("/a,,xvda,,backendtype=qdisk", "raw", "xvda", "rw", "/a"),
    ("/a,,xvda,,backend=0", "raw", "xvda", "rw", "/a"),
    ("/a,,xvda,,script=", "raw", "xvda", "rw", "/a"),
    ("/a,,xvda,,specification=xen", "raw", "xvda", "rw", "/a"),
    ("vdev=xvda,direct-io-safe,backendtype=tap,discard,target=/a,b", "raw", "xvda", "rw", "/a,b"),
    ("vdev=xvda,target=/a, b,c  ", "raw", "xvda", "rw", "/a, b,c  "),
    ("vdev=xvda,target= /a,vdev=xvdb", "raw", "xvda", "rw", " /a,vdev=xvdb"),
    ("vdev=xvda,target=\"/a,b\"", "raw", "xvda", "rw", "\"/a,b\""),
    ("vdev=xvda,target=phy:/a", "raw", "xvda", "rw", "phy:/a"),
    (",vdev=xvda,target=/b", "raw", "xvda", "rw", "/b"),
    ("  /a,  raw,  xvda,  ro", "raw", "xvda", "ro", "/a"),
    ("/a,raw,xvda,w,", "raw", "xvda", "rw", "/a"),
    ("/a,raw,xvda,", "raw", "xvda", "rw", "/a"),
    ("/a,,xvda,,", "raw", "xvda", "rw", "/a"),
    ("/a:b,raw,xvda", "raw", "xvda", "rw", "/a:b"),
    ("web:1.img,,xvda", "raw", "xvda", "rw", "web:1.img"),
    ("./a b.img,,xvda", "raw", "xvda", "rw", "./a b.img"),
];

#[test]
fn specifications_mean_what_xl_makes_of_them() {
    for &(text, format, vdev, access, target) in LIKE_XL {
        let spec = DiskSpec::parse(text).unwrap();
        let source = match format {
            "empty" => DiskSource::Empty {},
            _ => DiskSource::Path(target.into()),
        };
        assert_eq!(spec.source, source, "{text}");
        assert_eq!(spec.format.name(), if format == "empty" { "raw" } else { format }, "{text}");
        assert_eq!(spec.vdev.unwrap().to_string(), vdev, "{text}");
        assert_eq!(spec.access().name(), if access == "cd" { "ro" } else { access }, "{text}");
        assert_eq!((spec.cdrom, spec.removable), (access == "cd", access == "cd"), "{text}");
        assert_eq!(spec.discard, !text.contains("no-discard"), "{text}");
    }
}

fn image(path: &str) -> DiskSpec {
    DiskSpec::new(DiskSource::Path(path.into()))
}

fn readonly(path: &str) -> DiskSpec {
    DiskSpec { readonly: true, ..image(path) }
}

fn vdev(name: &str) -> Option<Vdev> {
    Some(name.parse().unwrap())
}

fn iscsi(lun: Option<u64>, multipath: bool, chap: Option<&str>) -> DiskSpec {
    DiskSpec::new(DiskSource::Iscsi(IscsiTarget {
        iqn: "iqn.2001-05.com.example:storage".into(),
        portal: "192.168.0.1:3260".into(),
        lun,
        multipath,
        chap: chap.map(PathBuf::from),
    }))
}

/// What Xen's parser refuses, or gives to a script as it is.
#[test]
fn specifications_of_our_own() {
    let table = [
        ("img", image("img")),
        ("./a b.img", image("./a b.img")),
        ("/srv/a=b.img", image("/srv/a=b.img")),
        ("/dev/vg/lv,ro", readonly("/dev/vg/lv")),
        ("img,rw", image("img")),
        ("img,r", readonly("img")),
        ("img,qcow2,ro", DiskSpec { format: DiskFormat::Qcow2, ..readonly("img") }),
        ("img,,ro,", readonly("img")),
        ("img,vdev=xvdb,rw", DiskSpec { vdev: vdev("xvdb"), ..image("img") }),
        ("path=img,vdev=xvda", DiskSpec { vdev: vdev("xvda"), ..image("img") }),
        ("vdev=sda,ro,path=img", DiskSpec { vdev: vdev("sda"), ..readonly("img") }),
        ("path=ro", image("ro")),
        ("path=a=b.img", image("a=b.img")),
        ("path=phy:a", image("phy:a")),
        ("target=a,b", image("a,b")),
        (r#""a,b.img",ro"#, readonly("a,b.img")),
        (r#""phy:a",,xvda"#, DiskSpec { vdev: vdev("xvda"), ..image("phy:a") }),
        (r#"path="a,b.img",vdev=hda"#, DiskSpec { vdev: vdev("hda"), ..image("a,b.img") }),
        (r#"path="a""b",vdev="hda""#, DiskSpec { vdev: vdev("hda"), ..image("a\"b") }),
        ("img,vdev=,format=,access=", image("img")),
        ("img,vdev= xvda ,access=r ", DiskSpec { vdev: vdev("xvda"), ..readonly("img") }),
        ("phy:vg0/web,xvda,w", DiskSpec { vdev: vdev("xvda"), ..image("/dev/vg0/web") }),
        ("phy:sda1,xvda1,w", DiskSpec { vdev: vdev("xvda1"), ..image("/dev/sda1") }),
        (
            "cdrom",
            DiskSpec { cdrom: true, readonly: true, removable: true, ..DiskSpec::new(DiskSource::Empty {}) },
        ),
        ("img,raw,xvda,w!", DiskSpec { shared: true, vdev: vdev("xvda"), ..image("img") }),
        ("img,raw,xvda,!", DiskSpec { shared: true, vdev: vdev("xvda"), ..image("img") }),
        ("img,access=w!", DiskSpec { shared: true, ..image("img") }),
        ("img,removable", DiskSpec { removable: true, ..image("img") }),
        ("img,,,,no-discard", DiskSpec { discard: false, ..image("img") }),
        ("img,cache=none", image("img")),
        ("img,cache=writeback", DiskSpec { cache: CacheMode::Writeback, ..image("img") }),
        ("img,cache=unsafe", DiskSpec { cache: CacheMode::Unsafe, ..image("img") }),
        ("img,queues=4", DiskSpec { queues: Some(4), ..image("img") }),
        ("img,iops=500,bps=10M", DiskSpec { iops: Some(500), bps: Some(10 << 20), ..image("img") }),
        ("img,bps=4096", DiskSpec { bps: Some(4096), ..image("img") }),
        ("img,bps=64k,group=a", DiskSpec { bps: Some(65536), group: Some("a".into()), ..image("img") }),
        ("img,bps=2G", DiskSpec { bps: Some(2 << 30), ..image("img") }),
        ("img,group=web.1_a-b", DiskSpec { group: Some("web.1_a-b".into()), ..image("img") }),
        ("img,enospc=pause", DiskSpec { enospc_pause: true, ..image("img") }),
        ("img,enospc=error", image("img")),
        ("img,backend=Domain-0", image("img")),
        (
            "script=block-iscsi,vdev=xvda,target=iqn=iqn.2001-05.com.example:storage,portal=192.168.0.1:3260",
            DiskSpec { vdev: vdev("xvda"), ..iscsi(None, false, None) },
        ),
        (
            "script=block-iscsi,target=portal=192.168.0.1:3260, iqn=iqn.2001-05.com.example:storage,multipath=y",
            iscsi(None, true, None),
        ),
        (
            "script=/etc/xen/scripts/block-iscsi,ro,target=iqn=iqn.2001-05.com.example:storage,\
             portal=192.168.0.1:3260,multipath=n,lun=7,chap=/etc/xvmm/chap",
            DiskSpec { readonly: true, ..iscsi(Some(7), false, Some("/etc/xvmm/chap")) },
        ),
        (
            "iscsi:,xvda,w,lun=1,chap=\"/a,b\",target=iqn=iqn.2001-05.com.example:storage,portal=192.168.0.1:3260",
            DiskSpec { vdev: vdev("xvda"), ..iscsi(Some(1), false, Some("/a,b")) },
        ),
        (
            "script=block-iscsi,format=qcow2,path=\"iqn=iqn.2001-05.com.example:storage,portal=192.168.0.1:3260\",ro",
            DiskSpec { format: DiskFormat::Qcow2, readonly: true, ..iscsi(None, false, None) },
        ),
    ];
    for (text, expected) in table {
        assert_eq!(DiskSpec::parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn wrong_specifications_and_their_sentences() {
    const VDEV: &str =
        "not a virtual disk; use xvda, xvdb, ... (or sda-sdp, hda-hdd), with a partition number if need be";
    const TOO_MANY: &str =
        "one item too many; target, format, vdev and access have no key, the others need theirs";
    const NO_IMAGE: &str = "no image is named; add target=FILE, or cdrom for an empty drive";
    const TARGET: &str = "write target=iqn=NAME,portal=ADDRESS";
    const BPS: &str = "is not a number of bytes per second; write one, with K, M or G if need be";
    let iqn = "script=block-iscsi,target=iqn=iqn.x:a";
    let iscsi = format!("{iqn},portal=h");
    let table: &[(&str, &str)] = &[
        ("", NO_IMAGE),
        (",", NO_IMAGE),
        ("ro", NO_IMAGE),
        ("path=", NO_IMAGE),
        ("target=", NO_IMAGE),
        (",,xvda", NO_IMAGE),
        ("vdev=xvda", NO_IMAGE),
        ("vdev=xvda,target=", NO_IMAGE),
        ("phy:,xvda,w", NO_IMAGE),
        ("\"\"", NO_IMAGE),
        ("a\0b", "the path has a zero byte; name an image file"),
        (
            "format=empty,vdev=xvda",
            "only a CD-ROM drive can be empty; add cdrom, or name an image with target=FILE",
        ),
        (",xvda:disk,w", NO_IMAGE),
        ("/a,empty,hdc,,cdrom", "an empty drive has no image; leave out format=empty or the image"),
        ("img,size=4", &format!("there is no key `size`; the keys are {KEYS}")),
        ("VDEV=xvda,img", &format!("there is no key `VDEV`; the keys are {KEYS}")),
        ("a=b.img", &format!("there is no key `a`; the keys are {KEYS}")),
        ("img,discard=1", &format!("there is no key `discard`; the keys are {KEYS}")),
        ("img,removable=1", &format!("there is no key `removable`; the keys are {KEYS}")),
        ("img,transport=mmio", &format!("there is no key `transport`; the keys are {KEYS}")),
        (
            "img,xvda",
            "`xvda` stands where the format is expected; put an empty item before it, or write vdev=xvda",
        ),
        (
            "/a,hdc,cdrom",
            "`hdc` stands where the format is expected; put an empty item before it, or write vdev=hdc",
        ),
        (
            "img,foo",
            "there is no format `foo`; the formats are raw, qcow2 and vhd, and raw is meant without one",
        ),
        (
            "img,RAW",
            "there is no format `RAW`; the formats are raw, qcow2 and vhd, and raw is meant without one",
        ),
        ("img,qed", "format qed is not served; convert the image with `qemu-img convert -O qcow2 OLD NEW`"),
        (
            "img,format=qcow",
            "format qcow is not served; convert the image with `qemu-img convert -O qcow2 OLD NEW`",
        ),
        (
            "tap:qcow:/a",
            "format qcow is not served; convert the image with `qemu-img convert -O qcow2 OLD NEW`",
        ),
        (
            "img,vhdx,xvda",
            "format vhdx is not served; convert the image with `qemu-img convert -O qcow2 OLD NEW`",
        ),
        ("img,vdev=vda", &format!("`vda` is {VDEV}")),
        ("img,raw,badvdev!", &format!("`badvdev!` is {VDEV}")),
        ("img,raw,XVDA", &format!("`XVDA` is {VDEV}")),
        ("img,,sdq", &format!("`sdq` is {VDEV}")),
        ("img,,hda64", &format!("`hda64` is {VDEV}")),
        ("img,,1", &format!("`1` is {VDEV}")),
        ("img,,0xffffffff", &format!("`0xffffffff` is {VDEV}")),
        ("img,,/dev/xvda", &format!("`/dev/xvda` is {VDEV}")),
        ("file:/a,b,xvda,w", &format!("`b` is {VDEV}")),
        (
            "phy:/dev/vg/lv,raw,xvda,w",
            "behind a target with `phy:` comes the vdev at once; leave out the prefix, or `raw`",
        ),
        (
            "raw:/a,vhd,xvda",
            "behind a target with `raw:` comes the vdev at once; leave out the prefix, or `vhd`",
        ),
        ("img,,hdc:floppy", "there is no devtype `floppy`; it is disk or cdrom"),
        ("img,devtype=floppy", "there is no devtype `floppy`; it is disk or cdrom"),
        ("img,devtype=", "there is no devtype ``; it is disk or cdrom"),
        ("img,devtype=disk,cdrom", "devtype=disk and cdrom contradict each other; give one of them"),
        ("img,discard,no-discard", "discard and no-discard contradict each other; give one of them"),
        ("img,raw,xvda,x", "there is no access `x`; use ro, rw, or w! where several write"),
        ("img,raw,xvda,R", "there is no access `R`; use ro, rw, or w! where several write"),
        ("img,raw,xvda,r!", "there is no access `r!`; use ro, rw, or w! where several write"),
        ("img,,,xvda", "there is no access `xvda`; use ro, rw, or w! where several write"),
        ("img,raw,xvda,w,extra", &format!("`extra` is {TOO_MANY}")),
        ("img,raw,xvda,w,,cdrom", TOO_MANY),
        ("img,path=b", "`path` is given twice; once is enough"),
        ("/a,vdev=xvda,target=/b", "`target` is given twice; once is enough"),
        ("img,ro,rw", "`access` is given twice; once is enough"),
        ("img,access=r,access=r", "`access` is given twice; once is enough"),
        ("img,,xvda,vdev=xvdb", "`vdev` is given twice; once is enough"),
        ("img,raw,format=raw", "`format` is given twice; once is enough"),
        ("format=vhd,raw:/a,xvda", "`format` is given twice; once is enough"),
        ("img,cache=none,cache=none", "`cache` is given twice; once is enough"),
        (
            "qed:/a,hda,w",
            "there is no prefix `qed:`; the prefixes are phy:, file:, tap:, raw:, qcow2:, vhd: and iscsi:, and a path with a colon goes behind target=",
        ),
        (
            "http://x/a",
            "there is no prefix `http:`; the prefixes are phy:, file:, tap:, raw:, qcow2:, vhd: and iscsi:, and a path with a colon goes behind target=",
        ),
        ("\"img", "a double quote is not closed"),
        ("path=\"img", "a double quote is not closed"),
        ("path=\"a\"b", "text follows a closing double quote; quote the whole value"),
        ("img,cache=fast", "there is no cache mode `fast`; use none, writeback or unsafe"),
        ("img,queues=0", "a disk has 1 to 16 queues; write queues=N so"),
        ("img,queues=17", "a disk has 1 to 16 queues; write queues=N so"),
        ("img,queues=", "queues= is not a number; write a whole number from 1"),
        ("img,queues=-1", "queues=-1 is not a number; write a whole number from 1"),
        ("img,queues=4294967296", "queues=4294967296 is not a number; write a whole number from 1"),
        ("img,iops=0", "iops=0 lets no request through; write a number from 1, or leave it out"),
        ("img,iops=1.5", "iops=1.5 is not a number; write a whole number from 1"),
        ("img,iops=1k", "iops=1k is not a number; write a whole number from 1"),
        ("img,bps=", &format!("bps= {BPS}")),
        ("img,bps=M", &format!("bps=M {BPS}")),
        ("img,bps=5MM", &format!("bps=5MM {BPS}")),
        ("img,bps=1MB", &format!("bps=1MB {BPS}")),
        ("img,bps=五", &format!("bps=五 {BPS}")),
        ("img,bps=16777216T", &format!("bps=16777216T {BPS}")),
        ("img,bps=99999999999999999999", &format!("bps=99999999999999999999 {BPS}")),
        ("img,bps=4095", "bps= is too small; the smallest limit is 4096 bytes"),
        (
            "img,group=",
            "the name of a group is 1 to 64 letters, digits, dots, `-` and `_`; choose such a one",
        ),
        (
            "img,group=a b",
            "the name of a group is 1 to 64 letters, digits, dots, `-` and `_`; choose such a one",
        ),
        ("img,enospc=wait", "`wait` says nothing about a full disk; use enospc=error or enospc=pause"),
        ("img,colo", NO_COLO),
        ("img,colo-host=192.0.2.1", NO_COLO),
        ("img,hidden-disk=/b", NO_COLO),
        (
            "img,backend=store",
            "backend=store: there are no driver domains, each guest's disks are served by its own process; leave out \
             backend=",
        ),
        ("img,backendtype=x", "there is no backendtype `x`; leave it out, all disks are served alike"),
        ("img,specification=virtio", "specification=virtio: disks are Xen's; leave out specification="),
        (
            "img,script=block-x",
            "script=block-x is not run, only block-iscsi is known; set the device up before, and name it",
        ),
        ("drbd:res,xvda,w", "script=block-drbd is not run; name the device, /dev/drbd/by-res/NAME/0"),
        ("nbd:host:10809,xvda", "script=block-nbd is not run; connect with nbd-client, and name /dev/nbdN"),
        ("img,script=a,script=b", "`script` is given twice; once is enough"),
        ("img,lun=0", "lun= and chap= are for iSCSI; add script=block-iscsi, or leave them out"),
        ("img,chap=/a", "lun= and chap= are for iSCSI; add script=block-iscsi, or leave them out"),
        (
            "iscsi:iqn.x:a,xvda,w",
            &format!(
                "`iqn.x:a` is not a part of an iSCSI target; {TARGET}[,multipath=y][,lun=N][,chap=FILE]"
            ),
        ),
        (iqn, &format!("the iSCSI target has no portal=; {TARGET}")),
        ("script=block-iscsi,target=portal=h", &format!("the iSCSI target has no iqn=; {TARGET}")),
        (
            &format!("{iscsi},cache=none"),
            "an iSCSI target has no `cache=`; it has iqn=, portal=, multipath=, lun= and chap=, and the keys of a \
             disk stand before target=",
        ),
        (&format!("{iscsi},multipath=yes"), "multipath=yes is neither y nor n; write one of these"),
        (&format!("{iscsi},lun=x"), "lun=x is not the number of a logical unit; write a whole number from 0"),
        (&format!("{iscsi},iqn=iqn.b"), "`iqn` is given twice; once is enough"),
        (&format!("lun=1,{iscsi},lun=1"), "`lun` is given twice; once is enough"),
        (
            &format!("{iscsi},chap="),
            "chap= names no file; give the path of a file with the user and the secret",
        ),
        (
            "script=block-iscsi,target=iqn=-p,portal=h",
            "`-p` is not the name of an iSCSI target; write iqn=iqn.YYYY-MM.DOMAIN:NAME",
        ),
        (
            "script=block-iscsi,target=iqn=iqn.x/../a,portal=h",
            "`iqn.x/../a` is not the name of an iSCSI target; write iqn=iqn.YYYY-MM.DOMAIN:NAME",
        ),
        (
            "script=block-iscsi,target=iqn=iqn.x,portal=--help",
            "`--help` is not the address of an iSCSI target; write portal=ADDRESS or portal=ADDRESS:PORT, with an \
             IPv6 address in brackets",
        ),
    ];
    for (text, why) in table {
        let error = DiskSpec::parse(text).map(|spec| spec.to_string()).unwrap_err();
        assert_eq!(error.to_string(), format!("--disk {text}: {why}"));
    }
}

#[test]
fn a_disk_written_out_is_read_back() {
    let ours = [
        "img",
        "./a b.img,ro",
        r#""a,b""c",qcow2,,w!"#,
        "img,,xvda16,removable,no-discard,cache=unsafe,queues=16,iops=1,bps=1T,group=g,enospc=pause",
        "iscsi:,xvda,w,lun=1,chap=\"/a,\"\"b\",target=iqn=iqn.x:a,portal=[::1]:860,multipath=y",
        "cdrom",
        "target= a,b=c ",
    ];
    for text in LIKE_XL.iter().map(|row| row.0).chain(ours) {
        let spec = DiskSpec::parse(text).unwrap();
        assert_eq!(DiskSpec::parse(&spec.to_string()), Ok(spec.clone()), "{text}: {spec}");
    }
    let written = DiskSpec::parse("img,qcow2,d1,ro,cache=writeback,bps=1M").unwrap().to_string();
    assert_eq!(written, "format=qcow2,vdev=xvdb,access=ro,cache=writeback,bps=1048576,target=img");
}

#[test]
fn a_cdrom_is_only_read() {
    let access = |text: &str| DiskSpec::parse(text).unwrap().access();
    assert_eq!(access("/a,,hdc,w!,cdrom"), Access::ReadOnly);
    assert_eq!(access("/a,,hdc,w!"), Access::Shared);
}
