//! The addresses of a portal.

use std::net::{SocketAddr, ToSocketAddrs};

use super::IscsiProblem;
use crate::config::portal::{Portal, PortalHost};

impl Portal {
    /// The addresses behind the portal, the best first; at least one.
    pub(super) fn resolve(&self) -> Result<Vec<SocketAddr>, IscsiProblem> {
        let name = match &self.host {
            PortalHost::Address(address) => return Ok(vec![SocketAddr::new(*address, self.port)]),
            PortalHost::Name(name) => name,
        };
        let found = (name.as_str(), self.port).to_socket_addrs();
        let found = found.map_err(|error| IscsiProblem::UnknownHost(error.to_string()))?;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found {
            // Without the scope of a link-local address, which a node record cannot hold.
            let address = SocketAddr::new(address.ip(), self.port);
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(IscsiProblem::UnknownHost("no address".into()));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_needs_no_resolver() {
        for text in ["10.0.0.1:860", "[2001:db8::1]:3261"] {
            let resolved = text.parse::<Portal>().unwrap().resolve().unwrap();
            assert_eq!(resolved, [text.parse().unwrap()]);
        }
    }

    #[test]
    fn the_name_of_a_host_is_resolved() {
        // The resolver knows this one without a file or a server.
        let portal = Portal { host: PortalHost::Name("127.1".into()), port: 3270 };
        let addresses = portal.resolve().unwrap();
        assert!(addresses.iter().all(|a| a.ip().is_loopback() && a.port() == 3270), "{addresses:?}");
        let unknown = "xvmm.invalid".parse::<Portal>().unwrap().resolve();
        assert!(matches!(unknown, Err(IscsiProblem::UnknownHost(_))), "{unknown:?}");
    }
}
