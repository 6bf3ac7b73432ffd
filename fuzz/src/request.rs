//! The first line from a client of the admin socket.

use zt_agent::admin::protocol::Request;

/// Reads `bytes` as a request and checks what comes of it.
///
/// # Panics
/// When a property does not hold.
pub fn check(bytes: &[u8]) {
    let Ok(line) = str::from_utf8(bytes) else {
        return;
    };
    let Ok(request) = serde_json::from_str::<Request>(line) else {
        return;
    };
    if let Request::Enrol(enrol) = &request {
        for port in &enrol.ports {
            assert_ne!(port.port, 0, "there is no port 0");
            assert_eq!(port.to_string().parse(), Ok(*port));
        }
    }
    let text = serde_json::to_string(&request).unwrap_or_else(|error| panic!("{error}"));
    assert!(!text.contains('\n'), "more than a line: {text:?}");
    let again = serde_json::from_str::<Request>(&text);
    let again = again.unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(again, request, "it changed when it was written: {text}");
}
