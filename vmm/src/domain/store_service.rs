//! xenstore and xenbus of a running domain, on the main thread.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use devices::memory::SharedPages;
use devices::xen::DomId;
use devices::xen::event_channel::BackendChannel;
use devices::xen::xenbus::{
    BackendDevice, DeviceExists, DeviceId, DomainHandle, Overdue, Removed, Store, Xenbus,
};
use devices::xen::xenstore::{Access, ConnId, Perm, SocketServer, XenStore, XenStoreRing};
use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The store as domain 0 uses it.
struct Dom0<'a>(&'a mut XenStore);

impl Store for Dom0<'_> {
    fn read(&self, path: &str) -> Option<String> {
        self.0.read_str(path)
    }

    fn write(&mut self, path: &str, value: &str) {
        if let Err(error) = self.0.write(path, value) {
            tracing::warn!(path, ?error, "xenstore does not take a node");
        }
    }

    fn remove(&mut self, path: &str) {
        // Not there: the guest removed it itself.
        let _ = self.0.rm(path);
    }

    fn make_directory(&mut self, path: &str, owner: DomId, reader: DomId) {
        let perms =
            [Perm { domid: owner, access: Access::None }, Perm { domid: reader, access: Access::Read }];
        if let Err(error) = self.0.mkdir(path).and_then(|()| self.0.set_perms(path, &perms)) {
            tracing::warn!(path, ?error, "xenstore does not take a directory");
        }
    }
}

/// The store, its transports, and the devices that live by it.
pub(super) struct StoreService {
    store: XenStore,
    /// Our own watches: on the frontends' directories.
    own: ConnId,
    ring: XenStoreRing,
    channel: BackendChannel,
    sockets: SocketServer,
    xenbus: Xenbus,
    kick: Arc<EventFd>,
    domid: DomId,
    /// Devices that the guest has no more, for [`StoreService::take_removed`].
    removed: Vec<Removed>,
    removed_event: Rc<EventFd>,
}

impl StoreService {
    /// A store with domain `domid` in it, whose ring is page `page` of `special`.
    pub(super) fn new(
        domid: DomId,
        special: &Arc<SharedPages>,
        page: usize,
        channel: BackendChannel,
        socket: &Path,
        domain: DomainHandle,
    ) -> io::Result<Self> {
        let mut store = XenStore::new();
        let own = store.add_connection(DomId::DOM0);
        store.introduce_domain(domid);
        let ring =
            XenStoreRing::new(&mut store, domid, Arc::clone(special), page).map_err(io::Error::other)?;
        let kick = Arc::clone(&domain.kick);
        let sockets = SocketServer::new(UnixListener::bind(socket)?, DomId::DOM0)?;
        Ok(Self {
            store,
            own,
            ring,
            channel,
            sockets,
            xenbus: Xenbus::new(domid, domain),
            kick,
            domid,
            removed: Vec::new(),
            removed_event: Rc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    /// Writes a node of the domain's directory that the guest may read.
    pub(super) fn write(&mut self, path: &str, value: &str) {
        Dom0(&mut self.store).write(&format!("/local/domain/{}/{path}", self.domid), value);
    }

    /// Makes a directory in the domain's directory: the guest's own, or read-only for it.
    pub(super) fn make_directory(&mut self, path: &str, guests_own: bool) {
        let path = format!("/local/domain/{}/{path}", self.domid);
        let (owner, reader) = if guests_own { (self.domid, DomId::DOM0) } else { (DomId::DOM0, self.domid) };
        Dom0(&mut self.store).make_directory(path.trim_end_matches('/'), owner, reader);
    }

    /// The whole store, for what has no short form here.
    pub(super) fn store(&mut self) -> &mut XenStore {
        &mut self.store
    }

    /// The devices.
    pub(super) fn xenbus(&self) -> &Xenbus {
        &self.xenbus
    }

    /// Offers a device to the guest, which may run already.
    pub(super) fn add(&mut self, device: Box<dyn BackendDevice>) -> Result<(), DeviceExists> {
        let frontend = self.xenbus.add(&mut Dom0(&mut self.store), device)?;
        if let Err(error) = self.store.watch(self.own, &frontend, &frontend) {
            tracing::warn!(frontend, ?error, "xenstore does not take a watch");
        }
        Ok(())
    }

    /// Asks the guest to let go of a device, see [`Xenbus::request_removal`].
    pub(super) fn request_removal(&mut self, id: DeviceId) -> bool {
        self.xenbus.request_removal(&mut Dom0(&mut self.store), id)
    }

    /// Takes a device from the guest, see [`Xenbus::force_removal`].
    pub(super) fn force_removal(&mut self, id: DeviceId) -> bool {
        self.xenbus.force_removal(&mut Dom0(&mut self.store), id)
    }

    /// The guest has had its time, see [`Xenbus::removal_overdue`].
    pub(super) fn removal_overdue(&mut self, id: DeviceId) -> Option<Overdue> {
        self.xenbus.removal_overdue(&mut Dom0(&mut self.store), id)
    }

    /// Written when [`StoreService::take_removed`] has something, or the guest has let go of what is gone
    /// ([`Xenbus::is_leaving`]).
    pub(super) fn removed_event(&self) -> &Rc<EventFd> {
        &self.removed_event
    }

    /// The devices that the guest has no more. Dropping one may block.
    pub(super) fn take_removed(&mut self) -> Vec<Removed> {
        let _ = self.removed_event.read();
        std::mem::take(&mut self.removed)
    }

    /// Tells the guest to shut down or the like: `control/shutdown` (xen docs/misc/xenstore-paths).
    pub(super) fn request_shutdown(&mut self, what: &str) {
        self.write("control/shutdown", what);
        self.pump();
    }

    /// Whether the guest has PV drivers that power it off when it is asked to.
    pub(super) fn listens(&self) -> bool {
        let path = format!("/local/domain/{}/control/feature-poweroff", self.domid);
        self.store.read_str(&path).is_some_and(|value| value == "1")
    }

    /// Stops all backends; [`StoreService::all_stopped`] tells when they have.
    pub(super) fn stop_all(&mut self) {
        self.xenbus.stop_all();
    }

    /// True when no backend uses guest memory any more.
    pub(super) fn all_stopped(&mut self) -> bool {
        let _ = self.kick.read();
        self.xenbus.all_stopped()
    }

    /// Asks the backends what is new with them, see [`DomainHandle::kick`].
    pub(super) fn kicked(&mut self) {
        self.xenbus.kicked(&mut Dom0(&mut self.store));
        self.pump();
    }

    /// Written by backends, see [`DomainHandle::kick`].
    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Does all that can be done now: messages, watch events of our own, output.
    pub(super) fn pump(&mut self) {
        loop {
            let status = self.ring.process(&mut self.store);
            if status.notify {
                self.channel.notify();
            }
            if status.again {
                // The rest when the other work of the loop had its turn.
                let _ = self.channel.event().write(1);
            }
            let domid = self.domid;
            let watched = |store: &Dom0, path: &str| store.0.is_watched(domid, path);
            if self.xenbus.sweep(&mut Dom0(&mut self.store), watched) {
                let _ = self.removed_event.write(1);
            }
            if let Err(error) = self.sockets.flush(&mut self.store) {
                tracing::warn!(%error, "a client of xenstore cannot be served");
            }
            let events = self.store.take_watch_events(self.own);
            if events.is_empty() {
                break;
            }
            for (path, _) in events {
                self.xenbus.frontend_changed(&mut Dom0(&mut self.store), &path);
            }
        }
        for removed in self.xenbus.take_removed() {
            let _ = self.store.unwatch(self.own, &removed.frontend, &removed.frontend);
            self.removed.push(removed);
            let _ = self.removed_event.write(1);
        }
    }
}

impl MutEventSubscriber for StoreService {
    fn init(&mut self, ops: &mut EventOps) {
        for fd in [self.channel.event().as_raw_fd(), self.kick.as_raw_fd(), self.sockets.fd()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(?error, "xenstore cannot wait for the guest");
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        let fd = events.fd();
        if fd == self.channel.event().as_raw_fd() {
            let _ = self.channel.event().read();
        } else if fd == self.kick.as_raw_fd() {
            let _ = self.kick.read();
            return self.kicked();
        } else if let Err(error) = self.sockets.process(&mut self.store) {
            tracing::warn!(%error, "the socket of xenstore cannot be served");
        }
        self.pump();
    }
}

/// Shared between the event loop and what acts on the domain.
pub(super) type SharedStore = Rc<RefCell<StoreService>>;
