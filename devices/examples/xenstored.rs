//! A xenstore server on a unix socket, for running other projects' clients and tests against it:
//! `cargo run -p devices --example xenstored /tmp/xs`, then `XENSTORED_PATH=/tmp/xs xenstore-ls`.

use std::error::Error;
use std::os::unix::net::UnixListener;

use devices::xen::DomId;
use devices::xen::xenstore::{SocketServer, XenStore};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: xenstored SOCKET")?;
    let mut store = XenStore::new();
    let mut server = SocketServer::new(UnixListener::bind(path)?, DomId::DOM0)?;
    let epoll = Epoll::new()?;
    epoll.ctl(ControlOperation::Add, server.fd(), EpollEvent::new(EventSet::IN, 0))?;
    loop {
        epoll.wait(-1, &mut [EpollEvent::default()])?;
        server.process(&mut store)?;
        while !store.take_ready().is_empty() {
            server.flush(&mut store)?;
        }
    }
}
