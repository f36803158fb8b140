//! The discs of a PC's CD-ROM drives, which are changed while the guest runs.
//!
//! A drive is a device that stays, unlike a Xen disk: the guest hears of the change by media events. A drive that the guest
//! has locked keeps its disc; the guest is told that somebody pressed the button, and may open it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use blkback::Disk;
use devices::ide::{ChangeError, Ide, Place, Tray};
use devices::medium::Medium;
use serde_json::{Value, json};

use super::block::{self, FORCE_PATIENCE, PATIENCE};
use super::disks::{self, LimitGroups};
use super::hotplug::{Change, Hotplug, no_such_device};
use crate::api::{BlockDetach, CdInsert};
use crate::config::{DiskConfig, DiskSource, DomainConfig, Vdev};
use crate::exit::{ExitStatus, Failure};

/// While a client waits for the guest to open a drive, the drive is looked at so often.
const POLL: Duration = Duration::from_millis(50);

/// A CD-ROM drive of the IDE controller.
pub(super) struct Drive {
    ide: Arc<Mutex<Ide>>,
    place: Place,
    vdev: Vdev,
}

/// On which terms a disc is taken out of a drive.
struct Terms {
    patience: Duration,
    force: bool,
}

impl Terms {
    fn new(force: bool, timeout: Option<Duration>) -> Terms {
        Terms { patience: timeout.unwrap_or(if force { FORCE_PATIENCE } else { PATIENCE }), force }
    }
}

impl Drive {
    /// The drive that `disk` is, if it is one of the IDE controller.
    pub(super) fn find(hotplug: &Hotplug, disk: &DiskConfig) -> Option<Drive> {
        let drive = Drive { ide: hotplug.ide()?, place: disks::ide_place(disk)?, vdev: disk.vdev };
        drive.tray()?;
        Some(drive)
    }

    fn tray(&self) -> Option<Tray> {
        self.ide.lock().unwrap_or_else(PoisonError::into_inner).tray(self.place)
    }

    /// Puts another disc in. It is opened first: if that fails, the one before stays.
    pub(super) fn insert(
        self,
        groups: &LimitGroups,
        config: &DomainConfig,
        drive: &DiskConfig,
        request: CdInsert,
    ) -> Change {
        let terms = Terms::new(request.force, request.timeout);
        let (groups, config) = (groups.clone(), config.clone());
        let mut disk = DiskConfig { source: DiskSource::Path(request.file), ..drive.clone() };
        let directory = request.directory;
        self.change(move |drive, over| {
            let image = block::open_image(config, &mut disk, directory.as_deref())?;
            let image = Arc::new(Disk::new(&disks::shown(&disk, false, &groups), image));
            let medium = disks::ide_medium(&disk, image)?;
            drive.exchange(Some(&medium), &terms, over)?;
            Ok(block::described(disk))
        })
    }

    /// Takes the disc out. The tray of an empty drive is open afterwards.
    pub(super) fn eject(self, request: &BlockDetach) -> Change {
        let (vdev, terms) = (self.vdev, Terms::new(request.force, request.timeout));
        self.change(move |drive, over| {
            drive.exchange(None, &terms, over)?;
            Ok(block::emptied(vdev))
        })
    }

    fn change(
        self,
        work: impl FnOnce(&Drive, &AtomicBool) -> Result<super::hotplug::Describe, Failure> + Send + 'static,
    ) -> Change {
        let (id, name) = (block::device_id(self.vdev), self.vdev.to_string());
        Change { id, name, work: Box::new(move |over| work(&self, over)) }
    }

    /// Changes the disc when the guest lets go of the one before, or when the time is over and it is forced.
    fn exchange(
        &self,
        medium: Option<&Arc<dyn Medium>>,
        terms: &Terms,
        over: &AtomicBool,
    ) -> Result<(), Failure> {
        // A timeout that no clock reaches is no limit.
        let end = Instant::now().checked_add(terms.patience);
        let mut asked = false;
        loop {
            let late = end.is_some_and(|end| Instant::now() >= end);
            // Asking again would press the button again.
            if !asked || late || !self.tray().is_some_and(Tray::keeps_disc) {
                let mut ide = self.ide.lock().unwrap_or_else(PoisonError::into_inner);
                let changed = ide.change_medium(self.place, medium.cloned(), terms.force && late);
                drop(ide);
                match changed {
                    Ok(before) => {
                        drop(before);
                        return Ok(());
                    }
                    Err(ChangeError::NoDrive) => return Err(no_such_device(&self.vdev.to_string())),
                    Err(ChangeError::Locked) if late => return Err(self.kept(terms)),
                    Err(ChangeError::Locked) => asked = true,
                }
            }
            if over.load(Relaxed) {
                return Err(Failure::new(ExitStatus::HostError, "the guest has ended"));
            }
            std::thread::sleep(POLL);
        }
    }

    fn kept(&self, terms: &Terms) -> Failure {
        let sentence = format!(
            "{}: the guest has locked the drive and did not open it in {} s; eject the disc there, give it more time with \
             --timeout, or take the disc out with --force",
            self.vdev,
            terms.patience.as_secs_f64()
        );
        Failure::new(ExitStatus::DeviceKept, sentence)
    }
}

/// The CD-ROM drives of a PC: what is in them, and whether it can be taken out.
pub(super) fn describe(hotplug: &Hotplug, config: &DomainConfig) -> Value {
    let drive = |disk: &DiskConfig| {
        let tray = Drive::find(hotplug, disk)?.tray()?;
        Some(json!({
            "vdev": disk.vdev,
            "medium": disk.has_medium().then(|| disk.source.to_string()),
            "tray": if tray.open { "open" } else { "closed" },
            "locked": tray.locked,
        }))
    };
    config.disks.iter().filter_map(drive).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use devices::bus::Registers;
    use devices::ide::testing::Line;
    use devices::ide::{Attachment, Identity};
    use devices::memory::GuestRam;
    use devices::pci::PciFunction;
    use vm_memory::GuestAddress;

    use super::*;
    use crate::api::DeviceChange;
    use crate::config::HvmConfig;
    use crate::domain::change::change;
    use crate::domain::testing::TestDomain;

    const HDC: Place = Place { channel: 1, unit: 0 };

    /// A PC with an empty drive, whose images folder has two discs.
    fn pc() -> (TestDomain, Arc<Mutex<Ide>>) {
        let mut domain = TestDomain::new();
        for (file, blocks) in [("a.iso", 4), ("b.iso", 8)] {
            fs::write(domain.dir.path().join(file), vec![0; blocks * 2048]).unwrap();
        }
        domain.describe(&[",,hdc,cdrom"]);
        let make_pc = |config: &mut DomainConfig| config.hvm = Some(HvmConfig::default());
        domain.folder.borrow_mut().update(make_pc).unwrap();
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let mut ide = Ide::new(&ram, [Arc::new(Line::default()), Arc::new(Line::default())]);
        // The ports of both channels answer.
        ide.write_config(4, &[1]);
        ide.write_config(0x40, &[0, 0x80, 0, 0x80]);
        let identity = Identity { model: "CD".into(), serial: "1".into(), firmware: "1".into() };
        assert!(ide.attach(HDC, Attachment::Cdrom(None), identity));
        let ide = Arc::new(Mutex::new(ide));
        domain.hotplug.set_ide(Arc::downgrade(&ide));
        (domain, ide)
    }

    /// What the guest sends to the drive.
    fn packet(ide: &Mutex<Ide>, start: &[u8]) {
        let mut ide = ide.lock().unwrap();
        let mut packet = start.to_vec();
        packet.resize(12, 0);
        ide.write(2, 6, &[0xa0]);
        ide.write(2, 7, &[0xa0]);
        packet.chunks(2).for_each(|word| ide.write(2, 0, word));
    }

    /// PREVENT ALLOW MEDIUM REMOVAL; what was to be told before it is told.
    fn lock(ide: &Mutex<Ide>, on: bool) {
        for _ in 0..3 {
            packet(ide, &[0]);
        }
        packet(ide, &[0x1e, 0, 0, 0, on.into()]);
        assert_eq!(ide.lock().unwrap().tray(HDC).unwrap().locked, on);
    }

    fn request(domain: &TestDomain, file: &str, force: bool, timeout: Duration) -> DeviceChange {
        let (vdev, timeout) = ("hdc".to_owned(), Some(timeout));
        if file.is_empty() {
            return DeviceChange::CdEject(BlockDetach { vdev, force, timeout });
        }
        let directory = Some(domain.dir.path().to_owned());
        DeviceChange::CdInsert(CdInsert { vdev, file: file.into(), directory, force, timeout })
    }

    /// Puts a disc in, or takes it out without a file; the status, and what the drive is said to have.
    fn ask(domain: &mut TestDomain, file: &str, force: bool) -> (u16, String, String) {
        let request = request(domain, file, force, Duration::ZERO);
        let reply = domain.outbox.reply();
        change(&mut domain.hotplug, &LimitGroups::default(), request, reply);
        let (status, sentence) = domain.answer();
        (status, sentence, shown(domain))
    }

    fn shown(domain: &TestDomain) -> String {
        let drives = describe(&domain.hotplug, &domain.described());
        let drive = &drives[0];
        let medium = drive["medium"].as_str().unwrap_or("nothing").rsplit('/').next().unwrap().to_owned();
        format!(
            "{medium} {}{}",
            drive["tray"].as_str().unwrap(),
            if drive["locked"] == true { " locked" } else { "" }
        )
    }

    #[test]
    fn a_disc_comes_is_exchanged_and_goes() {
        let (mut domain, ide) = pc();
        assert_eq!(ask(&mut domain, "a.iso", false), (204, "null".into(), "a.iso closed".into()));
        assert_eq!(ask(&mut domain, "b.iso", false).2, "b.iso closed");
        let (status, sentence, drive) = ask(&mut domain, "none.iso", false);
        assert!(status == 409 && sentence.contains("none.iso"), "{sentence}");
        assert_eq!(drive, "b.iso closed");
        assert_eq!(ask(&mut domain, "", false), (204, "null".into(), "nothing open".into()));
        assert!(!ide.lock().unwrap().tray(HDC).unwrap().disc);
        // Nothing is taken out once more.
        assert_eq!(ask(&mut domain, "", false).0, 204);
    }

    #[test]
    fn a_locked_drive_keeps_its_disc_unless_it_is_forced() {
        let (mut domain, ide) = pc();
        ask(&mut domain, "a.iso", false);
        lock(&ide, true);
        for file in ["b.iso", ""] {
            let (status, sentence, drive) = ask(&mut domain, file, false);
            assert_eq!((status, drive.as_str()), (409, "a.iso closed locked"));
            assert!(sentence.starts_with("hdc: the guest has locked the drive"), "{sentence}");
        }
        assert_eq!(ask(&mut domain, "b.iso", true).2, "b.iso closed");
        lock(&ide, true);
        assert_eq!(ask(&mut domain, "", true).2, "nothing open");
    }

    #[test]
    fn the_disc_changes_when_the_guest_opens_the_drive() {
        for opens in [true, false] {
            let (mut domain, ide) = pc();
            ask(&mut domain, "a.iso", false);
            lock(&ide, true);
            let first = request(&domain, "b.iso", false, Duration::from_secs(3600));
            let second = request(&domain, "", false, Duration::ZERO);
            for request in [first, second] {
                let reply = domain.outbox.reply();
                change(&mut domain.hotplug, &LimitGroups::default(), request, reply);
            }
            // One change at a time.
            assert_eq!(domain.answer().0, 409);
            assert_eq!(shown(&domain), "a.iso closed locked");
            packet(&ide, &[0x1e]);
            if opens {
                packet(&ide, &[0x1b, 0, 0, 0, 2]);
            }
            assert_eq!((domain.answer().0, shown(&domain).as_str()), (204, "b.iso closed"));
        }
    }

    #[test]
    fn the_end_of_the_guest_ends_what_waits_for_it() {
        let (mut domain, ide) = pc();
        ask(&mut domain, "a.iso", false);
        lock(&ide, true);
        let request = request(&domain, "b.iso", false, Duration::from_secs(3600));
        let reply = domain.outbox.reply();
        change(&mut domain.hotplug, &LimitGroups::default(), request, reply);
        domain.hotplug.finish(Duration::from_secs(600));
        // The thread is done: nobody else has the controller.
        assert_eq!(Arc::strong_count(&ide), 1);
    }
}
