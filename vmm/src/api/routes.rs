//! From a request to the domain and back.

use std::time::Duration;

use serde::Deserialize;

use super::http::{Request, Response};
use super::{ApiHandler, Shutdown, ShutdownKind};

/// The longest timeout, in seconds: a year.
const TIMEOUT_MAX: f64 = 365.0 * 86400.0;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShutdownBody {
    timeout: Option<f64>,
}

/// Does what the request says.
pub(super) fn answer(request: &Request, handler: &mut dyn ApiHandler) -> Response {
    let (allow, act): (_, fn(&Request, &mut dyn ApiHandler) -> Response) = match request.path.as_str() {
        "/api/v1/vm.info" => ("GET", |_, handler| Response::json(200, handler.info())),
        "/api/v1/vm.shutdown" => {
            ("PUT", |request, handler| shutdown(request, ShutdownKind::Poweroff, handler))
        }
        "/api/v1/vm.reboot" => ("PUT", |request, handler| shutdown(request, ShutdownKind::Reboot, handler)),
        "/api/v1/vm.destroy" => ("PUT", |_, handler| done(handler.destroy())),
        _ => {
            return Response::error(
                404,
                "there is no such path; the API is /api/v1/vm.{info,shutdown,reboot,destroy}",
            );
        }
    };
    if request.method != allow {
        let error = Response::error(405, &format!("the method of this path is {allow}"));
        return Response { allow: Some(allow), ..error };
    }
    act(request, handler)
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

fn done(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Response::no_content(),
        Err(sentence) => Response::error(409, &sentence),
    }
}
