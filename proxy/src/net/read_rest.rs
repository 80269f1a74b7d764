//! Reading what nobody wants to know, so that its connection can be used again.

use std::pin::pin;
use std::time::Duration;

use http_body::Body as _;
use http_body_util::BodyExt;

use super::Body;

/// What is read of a body at most: more costs more than a new connection.
const MOST_BYTES: u64 = 64 << 10;
/// Time for that.
const WITHIN: Duration = Duration::from_secs(1);

/// Reads what is left of a body, up to 64 KiB within a second, and drops it; whether it came to its end.
pub async fn read_rest(body: Body) -> bool {
    if body.is_end() {
        return true;
    }
    if body.size_hint().lower() > MOST_BYTES {
        return false;
    }
    let reading = async {
        let mut body = pin!(body);
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            read += match frame {
                Ok(frame) => frame.data_ref().map_or(0, |data| data.len() as u64),
                Err(_) => return false,
            };
            if read > MOST_BYTES {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(WITHIN, reading).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_read_to_its_end_unless_it_is_large() {
        for (length, is_read) in [(0, true), (1, true), (MOST_BYTES, true), (MOST_BYTES + 1, false)] {
            let content = vec![0; length as usize];
            assert_eq!(read_rest(Body::full(content)).await, is_read, "{length} bytes");
        }
    }
}
