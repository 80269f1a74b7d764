//! Numbers as trace headers write them: lower-case hexadecimal of a fixed length.

/// The number that these digits are; at most 32 of them, in lower case.
pub(super) fn read_hex(digits: &[u8]) -> Option<u128> {
    let mut number = 0;
    for digit in digits {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(digit);
    }
    Some(number)
}

/// Writes the last `digits` digits of `number`.
pub(super) fn push_hex(text: &mut Vec<u8>, number: u128, digits: u32) {
    let digit = |place: u32| b"0123456789abcdef"[(number >> (place * 4)) as usize & 15];
    text.extend((0..digits).rev().map(digit));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_all_their_digits_and_read_again() {
        for (number, digits, written) in [
            (0, 2, "00"),
            (0x1f, 2, "1f"),
            (0xabc, 16, "0000000000000abc"),
            (u128::MAX, 32, "ffffffffffffffffffffffffffffffff"),
        ] {
            let mut text = Vec::new();
            push_hex(&mut text, number, digits);
            assert_eq!(String::from_utf8_lossy(&text), written);
            assert_eq!(read_hex(&text), Some(number));
        }
        for wrong in ["A0", "0x", "g0", " 1", "-1"] {
            assert_eq!(read_hex(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
