//! HTTP/1.1 (RFC 9112), as much as the API needs: a checked request out of bytes, an answer into bytes.

/// Bytes of the longest request head. Ours have less than 200.
pub const HEAD_MAX: usize = 8 << 10;
/// Bytes of the longest request body. Ours have less than 50.
pub const BODY_MAX: usize = 16 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 32;

/// A request with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method, as sent.
    pub method: String,
    /// The target, as sent: path and query.
    pub path: String,
    /// The body.
    pub body: Vec<u8>,
    /// The connection stays open for another request.
    pub keep_alive: bool,
}

/// A request that gets no other answer than this. The connection is closed behind it, because nobody knows
/// where the next request would begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRequest {
    /// The status of the answer.
    pub status: u16,
    /// What is wrong with the request.
    pub reason: &'static str,
}

const fn bad<T>(status: u16, reason: &'static str) -> Result<T, BadRequest> {
    Err(BadRequest { status, reason })
}

/// Takes the first request out of `bytes`: the request and its length. `None`: more bytes are needed.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, BadRequest> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_MAX => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(_) => return bad(431, "the head of the request is too long"),
        Err(httparse::Error::TooManyHeaders) => return bad(431, "the request has too many headers"),
        Err(httparse::Error::Version) => return bad(505, "the server speaks HTTP/1.1"),
        Err(_) => return bad(400, "this is not an HTTP request"),
    };
    let mut keep_alive = head.version == Some(1);
    let mut body_len = None;
    for header in head.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("transfer-encoding") {
            return bad(501, "the server takes bodies with a Content-Length alone");
        } else if is("content-length") {
            // The digits themselves: parse() alone would take "+1".
            let text = std::str::from_utf8(header.value).ok().map(str::trim);
            let text = text.filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()));
            let Some(text) = text else { return bad(400, "the Content-Length is not a number") };
            let Some(len) = text.parse::<usize>().ok().filter(|len| *len <= BODY_MAX) else {
                return bad(413, "the body of the request is too long");
            };
            if body_len.is_some_and(|other| other != len) {
                return bad(400, "the request has two different Content-Lengths");
            }
            body_len = Some(len);
        } else if is("connection") {
            let value = String::from_utf8_lossy(header.value).to_ascii_lowercase();
            for token in value.split(',').map(str::trim) {
                keep_alive = if token == "close" { false } else { keep_alive || token == "keep-alive" };
            }
        }
    }
    let end = head_len + body_len.unwrap_or(0);
    let Some(body) = bytes.get(head_len..end) else { return Ok(None) };
    let (method, path) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
    let request =
        Request { method: method.to_owned(), path: path.to_owned(), body: body.to_vec(), keep_alive };
    Ok(Some((request, end)))
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The methods that the target has, for status 405.
    pub allow: Option<&'static str>,
    /// The body.
    pub body: Option<serde_json::Value>,
    /// The bytes of a PNG file in place of the body.
    pub png: Option<Vec<u8>>,
}

impl Response {
    /// An answer with a body.
    pub fn json(status: u16, body: serde_json::Value) -> Response {
        Response { status, allow: None, body: Some(body), png: None }
    }

    /// Done, with nothing to say.
    pub fn no_content() -> Response {
        Response { status: 204, allow: None, body: None, png: None }
    }

    /// A picture.
    pub fn png(file: Vec<u8>) -> Response {
        Response { status: 200, allow: None, body: None, png: Some(file) }
    }

    /// An error with its sentence.
    pub fn error(status: u16, sentence: &str) -> Response {
        Response::json(status, serde_json::json!({ "error": sentence }))
    }

    /// The bytes of the answer.
    pub fn emit(&self, keep_alive: bool) -> Vec<u8> {
        let body = self.body.as_ref().map(|body| ("application/json", format!("{body}\n").into_bytes()));
        let body = self.png.as_ref().map(|png| ("image/png", png.clone())).or(body);
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        if let Some(allow) = self.allow {
            head += &format!("Allow: {allow}\r\n");
        }
        if let Some((kind, body)) = &body {
            head += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        }
        head += if keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" };
        let mut bytes = head.into_bytes();
        bytes.extend(body.map(|(_, body)| body).unwrap_or_default());
        bytes
    }
}

impl From<BadRequest> for Response {
    fn from(bad: BadRequest) -> Response {
        Response::error(bad.status, bad.reason)
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> (Request, usize) {
        parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_request_without_a_body() {
        let text = "GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let (request, used) = parsed(text);
        assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/api/v1/vm.info"));
        assert_eq!((request.body.len(), request.keep_alive, used), (0, true, text.len()));
    }

    #[test]
    fn a_body_ends_where_its_length_says() {
        let text = "PUT / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}GET";
        let (request, used) = parsed(text);
        assert_eq!((request.body.as_slice(), &text[used..]), (b"{}".as_slice(), "GET"));
    }

    #[test]
    fn every_prefix_of_a_request_waits_for_more() {
        let text = "PUT /x HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody";
        for len in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..len]), Ok(None), "{len}");
        }
    }

    #[test]
    fn who_closes_the_connection() {
        for (head, keep_alive) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nConnection: foo, close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ] {
            assert_eq!(parsed(head).0.keep_alive, keep_alive, "{head}");
        }
    }

    #[test]
    fn malformed_requests_and_their_statuses() {
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD_MAX));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        let table = [
            ("\0", 400),
            ("hello\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\n\r\n", 505),
            ("GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
            ("PUT / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
            ("PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("PUT / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            ("PUT / HTTP/1.1\r\nContent-Length:\r\n\r\n", 400),
            ("PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("PUT / HTTP/1.1\r\nContent-Length: 16385\r\n\r\n", 413),
            ("PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
            (&long, 431),
            (&many, 431),
        ];
        for (text, status) in table {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.status, status, "{text:.60}: {}", error.reason);
        }
    }

    #[test]
    fn an_answer_as_bytes() {
        let ok = Response::json(200, serde_json::json!({"a": 1})).emit(true);
        assert_eq!(
            String::from_utf8(ok).unwrap(),
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{\"a\":1}\n"
        );
        assert_eq!(
            Response::no_content().emit(false),
            b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
        );
    }
}
