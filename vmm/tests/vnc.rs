//! The VNC server and viewers that other people wrote: vncsnapshot, and xtightvncviewer in an X server without a screen.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::display::Input;
use xvmm::config::{VncConfig, VncListen};
use xvmm::display::Display;
use xvmm::display::testing::{Recorder, TestScreen};
use xvmm::display::vnc::VncServer;

/// A server with a screen of bars, which no compression with losses would leave as they are.
struct Guest {
    dir: tempfile::TempDir,
    screen: TestScreen,
    sink: Arc<Recorder>,
    server: VncServer,
}

impl Guest {
    fn new(password: Option<&str>) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let password_file = password.map(|password| {
            let path = dir.path().join("password");
            std::fs::write(&path, password).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path
        });
        let (display, screen, sink) = (Display::new(), TestScreen::new(320, 200), Recorder::new());
        for bar in 0..20 {
            screen.fill(bar * 16, 0, 16, 200, u32::try_from(bar).unwrap() * 0x0c_0905);
        }
        display.connect(Box::new(screen.clone()), Arc::clone(&sink) as _);
        let config = VncConfig {
            listen: "127.0.0.1:3000,unused".parse().unwrap(),
            password_file,
            keymap: "us".into(),
        };
        let server = VncServer::open(&config, display, "web").unwrap();
        Guest { dir, screen, sink, server }
    }

    /// The address as `HOST:DISPLAY`.
    fn address(&self) -> String {
        let VncListen::Tcp { display, .. } = self.server.at() else { panic!("{}", self.server.at()) };
        format!("127.0.0.1:{display}")
    }

    /// What vncsnapshot says when it takes a picture with this encoding into `shot.jpg`.
    fn snapshot(&self, encoding: &str, more: &[&str]) -> (bool, String) {
        let mut command = Command::new("vncsnapshot");
        command.args(["-encodings", encoding, "-quality", "100"]).args(more);
        command.arg(self.address()).arg(self.dir.path().join("shot.jpg")).stdin(Stdio::null());
        let output = command.output().expect("vncsnapshot is installed (apt-get install vncsnapshot)");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Ends a process with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something is so, as long as a slow machine may need.
fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An X server without a screen: its name.
fn x_server(dir: &Path) -> (Ending, String) {
    let mut command = Command::new("Xvfb");
    command.args(["-displayfd", "1", "-screen", "0", "800x600x24", "-nolisten", "tcp", "-fbdir"]).arg(dir);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = command.spawn().expect("Xvfb is installed (apt-get install xvfb)");
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Ending(server), format!(":{}", line.trim()))
}

fn xdotool(x: &str, args: &[&str]) -> String {
    let output = Command::new("xdotool").args(args).env("DISPLAY", x).output();
    let output = output.expect("xdotool is installed (apt-get install xdotool)");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn vncsnapshot_takes_pictures_in_each_encoding() {
    let guest = Guest::new(None);
    for encoding in ["raw", "zlib", "tight"] {
        let (good, said) = guest.snapshot(encoding, &[]);
        assert!(good, "{encoding}: {said}");
        let shot = std::fs::read(guest.dir.path().join("shot.jpg")).unwrap();
        // A JPEG file of this size: the frame header has height and width behind its marker, length and precision.
        let header = shot.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
        assert_eq!(shot[header + 5..header + 9], [0, 200, 1, 64], "{encoding}");
        std::fs::remove_file(guest.dir.path().join("shot.jpg")).unwrap();
    }
    until("all viewers are gone", || guest.server.viewers() == 0);
    let looks = guest.screen.looks();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(guest.screen.looks(), looks, "nobody watches");
}

#[test]
fn xtightvncviewer_shows_the_screen_and_types() {
    let guest = Guest::new(Some("secret"));
    let (_x_server, x) = x_server(guest.dir.path());
    let viewer = |password: &str| {
        let mut command = Command::new("xtightvncviewer");
        command
            .args(["-autopass", "-encodings", "tight zrle", "-nojpeg", "-shared"])
            .arg(guest.server.at().for_viewers());
        command.env("DISPLAY", &x).env("HOME", guest.dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut viewer =
            command.spawn().expect("xtightvncviewer is installed (apt-get install xtightvncviewer)");
        use std::io::Write;
        let mut stdin = viewer.stdin.take().unwrap();
        writeln!(stdin, "{password}").unwrap();
        viewer
    };
    let mut refused = viewer("wrong");
    assert!(!refused.wait().unwrap().success());
    assert_eq!(guest.server.viewers(), 0);

    let _viewer = Ending(viewer("secret"));
    until("the viewer is in", || guest.server.viewers() == 1);
    until("its window is there", || !xdotool(&x, &["search", "--name", "web"]).is_empty());
    let window = xdotool(&x, &["search", "--name", "web"]);
    let window = window.lines().next_back().unwrap();
    // Without a window manager the keyboard follows the pointer.
    xdotool(&x, &["mousemove", "--window", window, "50", "60"]);
    until("what is typed arrives", || {
        xdotool(&x, &["key", "a", "Return", "at"]);
        guest.sink.keys().contains("+1e -1e +1c -1c") && guest.sink.keys().contains("+03")
    });
    until("the pointer moves", || {
        xdotool(&x, &["mousemove_relative", "3", "2"]);
        guest.sink.events().iter().any(|event| matches!(event, Input::Relative { dx: 1.., dy: 1.., .. }))
    });

    // A colour that was not there before comes to the middle of the X server's window.
    guest.screen.fill(0, 0, 320, 200, 0x31_4159);
    until("the change is seen", || seen([0x31, 0x41, 0x59], guest.dir.path()));
}

/// Whether the X server with its memory in this folder shows an area of this colour.
fn seen(colour: [u8; 3], dir: &Path) -> bool {
    let dump = std::fs::read(dir.join("Xvfb_screen0")).unwrap();
    // 32 bits a pixel, blue first, as Xvfb has them; the header is of no interest.
    let pixel = [colour[2], colour[1], colour[0]];
    dump.windows(3).filter(|bytes| *bytes == pixel).count() > 320 * 100
}
