//! Requests that use the screen and the keyboard. Both take their time, on a thread for each of them: a client has one
//! request at a time, and there are few clients.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::reply::Reply;
use crate::display::Display;
use crate::display::keys::KeySequence;
use crate::exit::{ExitStatus, Failure};

/// The body of `vm.sendkey`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendKey {
    /// Keys that are held together, as `ctrl-alt-delete`; one such chord after the other.
    pub keys: Vec<String>,
    /// Milliseconds that each chord is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<u64>,
}

impl SendKey {
    /// The keys.
    pub fn sequence(&self) -> Result<KeySequence, Failure> {
        let sequence = KeySequence::parse(&self.keys, self.hold.map(Duration::from_millis));
        sequence.map_err(|error| Failure::new(ExitStatus::Usage, error))
    }
}

/// Answers with the screen.
pub(super) fn screenshot(display: Option<Arc<Display>>, reply: Reply) {
    with_screen(display, reply, |display, reply| match display.screenshot() {
        Ok(file) => reply.send_png(file),
        Err(sentence) => reply.send(Err(Failure::new(ExitStatus::NoScreen, sentence))),
    });
}

/// Presses keys, and answers then.
pub(super) fn send_keys(display: Option<Arc<Display>>, body: &SendKey, reply: Reply) {
    match body.sequence() {
        Ok(keys) => with_screen(display, reply, move |display, reply| {
            keys.send(display);
            reply.send(Ok(serde_json::Value::Null));
        }),
        Err(failure) => reply.send(Err(failure)),
    }
}

fn with_screen(
    display: Option<Arc<Display>>,
    reply: Reply,
    act: impl FnOnce(&Display, Reply) + Send + 'static,
) {
    let Some(display) = display.filter(|display| display.is_connected()) else {
        let sentence = "the guest has no screen and no keyboard; use its console";
        return reply.send(Err(Failure::new(ExitStatus::NoScreen, sentence)));
    };
    // Where no thread is to be had, the reply is dropped, and says that it was not done.
    let _ = std::thread::Builder::new().name("screen".into()).spawn(move || act(&display, reply));
}
