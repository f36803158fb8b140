//! xenstore from both sides, with Xen's own clients.

use std::process::Command;

use super::{Bench, tool};
use crate::packages::run;
use crate::{Result, check};

/// Xen's clients list the tree and stress it, while the guest goes on; the guest reads its own part.
pub fn xenstore(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let image = bench.disk("a.img", 4 << 20)?;
    let mut guest = bench
        .guest()
        .name("store")
        .disk(image.display())
        .net("xenbr0")
        .with_programs(&[("/bin/xenstore-ls", "xenstore-ls"), ("/bin/xenstore-read", "xenstore-read")])?
        .start()?;
    let domain = bench.domains()?.first().copied().unwrap_or_default();
    let client = |name: &str, words: &[&str]| {
        let socket = bench.run_folder().join(domain.to_string()).join("xenstored.sock");
        let mut command: Command = tool(name);
        command.env("XENSTORED_PATH", socket).args(words);
        run(&mut command)
    };
    let tree = client("xenstore-ls", &["-f", "/"])?;
    for line in [
        format!("/local/domain/{domain}/name = \"store\""),
        format!("/local/domain/{domain}/device/vbd/51712/state = \"4\""),
        format!("/local/domain/{domain}/device/vif/0/state = \"4\""),
        format!("/local/domain/0/backend/vif/{domain}/0/bridge = \"xenbr0\""),
    ] {
        check!(tree.contains(&line), "xenstore-ls does not show {line} but:\n{tree}");
    }
    client("test-xenstore", &["-r", "5"])?;
    let after = client("xenstore-ls", &["-f", "/"])?;
    check!(
        after.contains(&format!("/local/domain/{domain}/device/vif/0/state = \"4\"")),
        "the tree is damaged:\n{after}"
    );

    let inside = guest.sh("LD_LIBRARY_PATH=/lib/xen xenstore-read domid name device/vbd/51712/state")?;
    check!(inside == format!("{domain}\nstore\n4"), "the guest reads {inside}");
    let (status, said) = guest.status("LD_LIBRARY_PATH=/lib/xen xenstore-ls /local/domain/0")?;
    check!(status != 0 || said.contains("backend"), "the guest sees in dom0's part: {said}");
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}
