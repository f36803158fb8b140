//! xenstore: the store, its wire protocol and its transports.
