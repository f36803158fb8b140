//! From a request to the domain and back.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::devices::{DeviceChange, TIMEOUT_MAX};
use super::http::{Request, Response};
use super::reply::{Outbox, Ticket};
use super::screen::{self, SendKey};
use super::{ApiHandler, Shutdown, ShutdownKind};

/// What a request comes to.
#[derive(Debug)]
pub(super) enum Answer {
    /// The answer.
    Now(Response),
    /// The outbox will have the answer.
    Later(Ticket),
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer::Now(response)
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShutdownBody {
    timeout: Option<f64>,
}

type Action = fn(&Request, &mut dyn ApiHandler, &Arc<Outbox>) -> Answer;

/// Does what the request says.
pub(super) fn answer(request: &Request, handler: &mut dyn ApiHandler, outbox: &Arc<Outbox>) -> Answer {
    let (allow, act): (_, Action) = match request.path.as_str() {
        "/api/v1/vm.info" => ("GET", |_, handler, _| Response::json(200, handler.info()).into()),
        "/api/v1/vm.shutdown" => {
            ("PUT", |request, handler, _| shutdown(request, ShutdownKind::Poweroff, handler).into())
        }
        "/api/v1/vm.reboot" => {
            ("PUT", |request, handler, _| shutdown(request, ShutdownKind::Reboot, handler).into())
        }
        "/api/v1/vm.destroy" => ("PUT", |_, handler, _| done(handler.destroy()).into()),
        "/api/v1/vm.block-attach" => {
            ("PUT", |r, handler, o| change(r, DeviceChange::BlockAttach, handler, o))
        }
        "/api/v1/vm.block-detach" => {
            ("PUT", |r, handler, o| change(r, DeviceChange::BlockDetach, handler, o))
        }
        "/api/v1/vm.cd-insert" => ("PUT", |r, handler, o| change(r, DeviceChange::CdInsert, handler, o)),
        "/api/v1/vm.cd-eject" => ("PUT", |r, handler, o| change(r, DeviceChange::CdEject, handler, o)),
        "/api/v1/vm.network-attach" => {
            ("PUT", |r, handler, o| change(r, DeviceChange::NetworkAttach, handler, o))
        }
        "/api/v1/vm.network-detach" => {
            ("PUT", |r, handler, o| change(r, DeviceChange::NetworkDetach, handler, o))
        }
        "/api/v1/vm.screenshot" => ("GET", |_, handler, outbox| {
            let reply = outbox.reply();
            let ticket = reply.ticket();
            screen::screenshot(handler.display(), reply);
            Answer::Later(ticket)
        }),
        "/api/v1/vm.sendkey" => ("PUT", send_keys),
        _ => {
            let sentence = "there is no such path; the API is \
                            /api/v1/vm.{info,shutdown,reboot,destroy,block-attach,block-detach,cd-insert,cd-eject,\
                            network-attach,network-detach,screenshot,sendkey}";
            return Response::error(404, sentence).into();
        }
    };
    if request.method != allow {
        let error = Response::error(405, &format!("the method of this path is {allow}"));
        return Response { allow: Some(allow), ..error }.into();
    }
    act(request, handler, outbox)
}

fn shutdown(request: &Request, kind: ShutdownKind, handler: &mut dyn ApiHandler) -> Response {
    let body = match request.body.trim_ascii() {
        [] => Ok(ShutdownBody::default()),
        body => serde_json::from_slice(body),
    };
    let timeout = match body {
        Ok(ShutdownBody { timeout: None }) => None,
        Ok(ShutdownBody { timeout: Some(seconds) }) if (0.0..=TIMEOUT_MAX).contains(&seconds) => {
            Some(Duration::from_secs_f64(seconds))
        }
        Ok(_) => return Response::error(400, "the timeout is not a number of seconds from 0 to a year"),
        Err(error) => {
            return Response::error(400, &format!("the body is not {{\"timeout\": SECONDS}}: {error}"));
        }
    };
    done(handler.shutdown(Shutdown { kind, timeout }))
}

fn change<T: DeserializeOwned>(
    request: &Request,
    kind: fn(T) -> DeviceChange,
    handler: &mut dyn ApiHandler,
    outbox: &Arc<Outbox>,
) -> Answer {
    match serde_json::from_slice(&request.body) {
        Ok(body) => {
            let reply = outbox.reply();
            let ticket = reply.ticket();
            handler.change_devices(kind(body), reply);
            Answer::Later(ticket)
        }
        Err(error) => Response::error(400, &format!("the body is not one of this request: {error}")).into(),
    }
}

fn send_keys(request: &Request, handler: &mut dyn ApiHandler, outbox: &Arc<Outbox>) -> Answer {
    match serde_json::from_slice::<SendKey>(&request.body) {
        Ok(body) => {
            let reply = outbox.reply();
            let ticket = reply.ticket();
            screen::send_keys(handler.display(), &body, reply);
            Answer::Later(ticket)
        }
        Err(error) => Response::error(400, &format!("the body is not one of this request: {error}")).into(),
    }
}

fn done(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Response::no_content(),
        Err(sentence) => Response::error(409, &sentence),
    }
}
