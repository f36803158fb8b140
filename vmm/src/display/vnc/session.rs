//! The protocol of one connection, without its socket: bytes come in, and bytes go out.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::auth::Challenge;
use super::peers::Peers;
use super::protocol::{self, Message, Refusal, VERSION, Version};
use super::viewer::Viewer;
use super::{Password, Setup};

const NONE: u8 = 1;
const VNC_AUTHENTICATION: u8 = 2;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Version,
    /// The choice of a security type.
    Security(Version),
    /// The answer to the challenge.
    Answer(Version),
    ClientInit,
    Running,
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    setup: Arc<Setup>,
    peers: Arc<Peers>,
    id: u64,
    challenge: Challenge,
    wake: Arc<EventFd>,
    state: State,
    version: Option<Version>,
    viewer: Option<Box<Viewer>>,
    /// What has come and is not a whole message. Less than 5 KiB, and what came last.
    input: Vec<u8>,
    /// Bytes of cut text that are still to come.
    skip: usize,
    /// What the other end has not taken.
    out: Vec<u8>,
}

impl Session {
    /// Begins to speak. `id` is the connection's among its `peers`; the challenge has to be random; the event is
    /// signalled when [`Session::produce`] should be called.
    pub fn new(
        setup: Arc<Setup>,
        peers: Arc<Peers>,
        id: u64,
        challenge: [u8; 16],
        wake: Arc<EventFd>,
    ) -> Session {
        Session {
            setup,
            peers,
            id,
            challenge,
            wake,
            state: State::Version,
            version: None,
            viewer: None,
            input: Vec::new(),
            skip: 0,
            out: VERSION.to_vec(),
        }
    }

    /// Whether the viewer has been let in.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// The version of the protocol, once it is agreed.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// What is to be sent. What has been sent is to be taken from its front.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Takes what came.
    ///
    /// # Errors
    /// The connection has to end, after the output if possible.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.input.extend_from_slice(bytes);
        let mut input = std::mem::take(&mut self.input);
        let mut used = 0;
        let result = loop {
            let rest = input.get(used..).unwrap_or_default();
            let skipped = self.skip.min(rest.len());
            self.skip -= skipped;
            used += skipped;
            match self.step(rest.get(skipped..).unwrap_or_default()) {
                Ok(0) => break Ok(()),
                Ok(len) => used += len,
                Err(refusal) => break Err(refusal),
            }
        };
        input.drain(..used);
        self.input = input;
        result
    }

    /// Adds to the output what there is to say now, if all before has been sent.
    pub fn produce(&mut self) {
        if let Some(viewer) = &mut self.viewer {
            viewer.produce(&mut self.out);
        }
    }

    /// Takes one message from the front of what has come: its length; 0: not all of it is there.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        match self.state {
            State::Version => {
                let Some(text) = bytes.first_chunk() else {
                    // Nobody has to wait for the rest of something else.
                    let same = b"RFB ".iter().zip(bytes).all(|(a, b)| a == b);
                    return if same { Ok(0) } else { Err(Refusal::Version) };
                };
                let version = Version::parse(text).ok_or(Refusal::Version)?;
                self.version = Some(version);
                self.offer(version);
                Ok(text.len())
            }
            State::Security(version) => {
                let Some(chosen) = bytes.first() else { return Ok(0) };
                match (*chosen, &self.setup.password) {
                    (NONE, None) => {
                        if version == Version::V3_8 {
                            self.out.extend_from_slice(&0_u32.to_be_bytes());
                        }
                        self.state = State::ClientInit;
                    }
                    (VNC_AUTHENTICATION, Some(_)) => self.ask(version),
                    (other, _) => {
                        self.refuse(version, "this security type was not offered");
                        return Err(Refusal::Security(other));
                    }
                }
                Ok(1)
            }
            State::Answer(version) => {
                let Some(answer) = bytes.first_chunk() else { return Ok(0) };
                let password: Option<&Password> = self.setup.password.as_ref();
                if !password.is_some_and(|password| password.accepts(&self.challenge, answer)) {
                    self.refuse(version, "the password is wrong");
                    return Err(Refusal::Password);
                }
                self.out.extend_from_slice(&0_u32.to_be_bytes());
                self.state = State::ClientInit;
                Ok(answer.len())
            }
            State::ClientInit => {
                let Some(shared) = bytes.first() else { return Ok(0) };
                self.peers.admit(self.id, *shared != 0)?;
                let Setup { display, keymap, name, .. } = &*self.setup;
                let viewer =
                    Viewer::new(display, Arc::clone(keymap), name, Arc::clone(&self.wake), &mut self.out);
                self.viewer = Some(Box::new(viewer));
                self.state = State::Running;
                Ok(1)
            }
            State::Running => {
                let Some((message, len)) = protocol::parse(bytes)? else { return Ok(0) };
                if let Message::CutText(text) = message {
                    self.skip = text;
                }
                if let Some(viewer) = &mut self.viewer {
                    viewer.message(message);
                }
                Ok(len)
            }
        }
    }

    /// Offers the security types: one, as either a password is needed or not. Version 3.3 leaves no choice.
    fn offer(&mut self, version: Version) {
        let kind = if self.setup.password.is_some() { VNC_AUTHENTICATION } else { NONE };
        if version > Version::V3_3 {
            self.out.extend_from_slice(&[1, kind]);
            self.state = State::Security(version);
            return;
        }
        self.out.extend_from_slice(&u32::from(kind).to_be_bytes());
        if kind == NONE {
            self.state = State::ClientInit;
        } else {
            self.ask(version);
        }
    }

    fn ask(&mut self, version: Version) {
        self.out.extend_from_slice(&self.challenge);
        self.state = State::Answer(version);
    }

    /// A SecurityResult that says no, and why where the version has a place for that.
    fn refuse(&mut self, version: Version, reason: &str) {
        self.out.extend_from_slice(&1_u32.to_be_bytes());
        if version == Version::V3_8 {
            self.out.extend_from_slice(&u32::try_from(reason.len()).unwrap_or_default().to_be_bytes());
            self.out.extend_from_slice(reason.as_bytes());
        }
    }
}
