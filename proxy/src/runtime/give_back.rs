//! Gives memory back to the system that only starting needed.

use std::ffi::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps this process's code: parsing of flags and of the config, setting up of TLS and all else that runs once is
/// more than half of what was mapped. What still runs is mapped again from the page cache as it is touched.
pub(super) fn code_of_starting() {
    let maps = match std::fs::read_to_string("/proc/self/maps") {
        Ok(maps) => maps,
        Err(error) => return tracing::debug!("the code of starting stays in memory: {error}"),
    };
    for (start, length) in maps.lines().filter_map(code) {
        if let Err(error) = unmap(start, length) {
            tracing::debug!("the code at {start:#x} stays in memory: {error}");
        }
    }
}

/// Where code of a file is mapped, if this line of `/proc/self/maps` says so.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp";
    let is_file = fields.nth(3)?.starts_with('/');
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    (is_code && is_file).then_some((start, end - start))
}

#[allow(unsafe_code)]
fn unmap(start: usize, length: usize) -> nix::Result<()> {
    let Some(start) = NonNull::new(start as *mut c_void) else { return Ok(()) };
    // SAFETY: a private mapping of a file that nobody may write to: what is read there afterwards is the file's, as it
    // was before.
    unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_given_back() {
        let code_of_libc = "7f3a10028000-7f3a1017e000 r-xp 00028000 fe:00 1234   /usr/lib/libc.so.6";
        assert_eq!(code(code_of_libc), Some((0x7f3a_1002_8000, 0x15_6000)));
        for other in [
            "55d0c8a00000-55d0c8da4000 r--p 00000000 fe:00 99 /usr/bin/outrigger",
            "55d0c8a00000-55d0c8da4000 rw-p 00000000 fe:00 99 /usr/bin/outrigger",
            "7ffd0f1f0000-7ffd0f1f2000 r-xp 00000000 00:00 0  [vdso]",
            "7f3a10028000-7f3a1017e000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    #[test]
    fn code_that_was_given_back_runs_on() {
        code_of_starting();
        assert_eq!("17".parse(), Ok(17));
    }
}
