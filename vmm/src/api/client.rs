//! A small client: one request, one answer, one connection.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::{DeviceChange, SendKey, ShutdownKind};

/// Bytes of the longest answer that is read.
const ANSWER_MAX: u64 = 1 << 20;

/// How long the server may be silent. Its answers need no work: a silent one hangs.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the host may take to open and close images: iSCSI targets are looked for, logged in to and out of.
const STORAGE_TIMEOUT: Duration = Duration::from_secs(180);

/// Bytes of the largest screenshot: 16 million pixels, not compressed.
const SCREENSHOT_MAX: u64 = 64 << 20;
/// How long keys may take to be pressed, or a picture to be made.
const SCREEN_TIMEOUT: Duration = Duration::from_secs(75);

/// Speaks to the API of one domain.
#[derive(Clone, Debug)]
pub struct ApiClient {
    socket: PathBuf,
    timeout: Duration,
}

/// Why a request came to nothing. One sentence.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody answers.
    #[error("{}: the domain does not answer: {source}; `xvmm destroy` stops it all the same", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The answer makes no sense.
    #[error("{}: the answer is not one of the API; is it a socket of xvmm?", .0.display())]
    Answer(PathBuf),
    /// The domain answered that it cannot.
    #[error("{sentence}")]
    Refused {
        /// The answer.
        sentence: String,
        /// The exit status that it names.
        status: Option<u8>,
    },
}

impl ApiClient {
    /// A client of the domain behind this socket.
    pub fn new(socket: &Path) -> ApiClient {
        ApiClient { socket: socket.to_owned(), timeout: TIMEOUT }
    }

    /// The same client with less patience.
    pub fn with_timeout(self, timeout: Duration) -> ApiClient {
        ApiClient { timeout, ..self }
    }

    /// A description of the domain.
    pub fn info(&self) -> Result<Value, ApiError> {
        self.request("GET", "vm.info", None)
    }

    /// Asks the guest to end its run; it is stopped when that takes longer than `timeout`.
    pub fn shutdown(&self, kind: ShutdownKind, timeout: Option<Duration>) -> Result<(), ApiError> {
        let verb = match kind {
            ShutdownKind::Poweroff => "vm.shutdown",
            ShutdownKind::Reboot => "vm.reboot",
        };
        let body = timeout.map(|timeout| json!({ "timeout": timeout.as_secs_f64() }));
        self.request("PUT", verb, body).map(drop)
    }

    /// Stops the guest at once.
    pub fn destroy(&self) -> Result<(), ApiError> {
        self.request("PUT", "vm.destroy", None).map(drop)
    }

    /// Adds or takes away a device; returns when that is done. The answer depends on the change.
    pub fn change_devices(&self, change: &DeviceChange) -> Result<Value, ApiError> {
        let (body, timeout) = match change {
            DeviceChange::BlockAttach(body) => (json!(body), None),
            DeviceChange::BlockDetach(body) | DeviceChange::CdEject(body) => (json!(body), body.timeout),
            DeviceChange::CdInsert(body) => (json!(body), body.timeout),
            DeviceChange::NetworkAttach(body) => (json!(body), None),
            DeviceChange::NetworkDetach(body) => (json!(body), body.timeout),
        };
        let patient = self.clone().with_timeout(STORAGE_TIMEOUT.saturating_add(timeout.unwrap_or_default()));
        patient.request("PUT", change.verb(), Some(body))
    }

    /// The screen, as the bytes of a PNG file.
    pub fn screenshot(&self) -> Result<Vec<u8>, ApiError> {
        let patient = self.clone().with_timeout(SCREEN_TIMEOUT);
        let answer = patient.exchange_at_most(&head("GET", "vm.screenshot", ""), SCREENSHOT_MAX);
        let answer = answer.map_err(|source| ApiError::Silent { path: self.socket.clone(), source })?;
        let (status, body) = split(&answer).ok_or_else(|| ApiError::Answer(self.socket.clone()))?;
        if status == 200 { Ok(body.to_vec()) } else { self.outcome(&answer).map(|_| Vec::new()) }
    }

    /// Presses keys; returns when they are released.
    pub fn send_keys(&self, keys: &SendKey) -> Result<(), ApiError> {
        self.clone().with_timeout(SCREEN_TIMEOUT).request("PUT", "vm.sendkey", Some(json!(keys))).map(drop)
    }

    fn request(&self, method: &str, verb: &str, body: Option<Value>) -> Result<Value, ApiError> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let answer = self
            .exchange_at_most(&head(method, verb, &body), ANSWER_MAX)
            .map_err(|source| ApiError::Silent { path: self.socket.clone(), source })?;
        self.outcome(&answer)
    }

    /// What an answer with a JSON body, or none, says.
    fn outcome(&self, answer: &[u8]) -> Result<Value, ApiError> {
        let (status, body) = parse(answer).ok_or_else(|| ApiError::Answer(self.socket.clone()))?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let sentence = body.get("error").and_then(Value::as_str);
        let sentence = sentence.map_or_else(|| format!("the API answers {status}"), str::to_owned);
        let status = body.get("status").and_then(Value::as_u64).and_then(|status| status.try_into().ok());
        Err(ApiError::Refused { sentence, status })
    }

    fn exchange_at_most(&self, request: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        stream.write_all(request)?;
        let mut answer = Vec::new();
        stream.take(limit).read_to_end(&mut answer).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })?;
        Ok(answer)
    }
}

/// The bytes of a request.
fn head(method: &str, verb: &str, body: &str) -> Vec<u8> {
    let len = body.len();
    let head = format!(
        "{method} /api/v1/{verb} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
    );
    head.into_bytes()
}

/// Status and JSON body of an answer.
fn parse(answer: &[u8]) -> Option<(u16, Value)> {
    let (status, body) = split(answer)?;
    let body = body.trim_ascii();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).ok()? };
    Some((status, body))
}

/// Status and body of an answer that ends with its connection.
fn split(answer: &[u8]) -> Option<(u16, &[u8])> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_len) = head.parse(answer).ok()? else { return None };
    Some((head.code?, answer.get(head_len..)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A server that sends `answer` to whoever comes.
    fn answered(answer: &'static [u8]) -> Result<Value, ApiError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(answer).unwrap();
        });
        let result = ApiClient::new(&path).info();
        server.join().unwrap();
        result
    }

    #[test]
    fn answers_of_other_servers_are_told() {
        for answer in [b"".as_slice(), b"hello", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\nnot json"] {
            assert!(matches!(answered(answer), Err(ApiError::Answer(_))), "{answer:?}");
        }
    }

    #[test]
    fn an_error_without_a_sentence_is_told_by_its_number() {
        let error = answered(b"HTTP/1.1 500 Oops\r\n\r\n").unwrap_err();
        assert_eq!(error.to_string(), "the API answers 500");
    }

    #[test]
    fn a_socket_without_a_server_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = ApiClient::new(&dir.path().join("api.sock")).info().unwrap_err();
        assert!(matches!(error, ApiError::Silent { .. }), "{error}");
    }
}
