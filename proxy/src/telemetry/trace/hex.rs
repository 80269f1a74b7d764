//! Numbers as trace headers write them: lower-case hexadecimal of a fixed length.

/// The number that these digits are; at most 32 of them, in lower case.
pub(super) fn read_hex(digits: &[u8]) -> Option<u128> {
    // By halves: shifting 128 bits for each digit took as long as all the rest of reading a parent.
    let (high, low) = digits.split_at(digits.len().saturating_sub(16));
    Some(u128::from(read_half(high)?) << 64 | u128::from(read_half(low)?))
}

fn read_half(digits: &[u8]) -> Option<u64> {
    let mut number = 0;
    for digit in digits {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u64::from(digit);
    }
    Some(number)
}

/// Writes the last `digits` digits of `number`, an even count of at most 32.
pub(super) fn push_hex(text: &mut Vec<u8>, number: u128, digits: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bytes = number.to_be_bytes();
    let last = &bytes[bytes.len() - digits / 2..];
    text.extend(
        last.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]),
    );
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
            (1 << 64 | 0xdef, 32, "00000000000000010000000000000def"),
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
