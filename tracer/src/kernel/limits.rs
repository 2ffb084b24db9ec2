//! What the process that runs us may take of the machine, where too little would end us in the middle of a trace. It knows nothing
//! of what is traced.

use std::fs;

use super::KernelError;

/// The address space below which we do not begin. The usual tables, the program itself, its threads and the symbols of a small target
/// take some 250 MiB, and each heap that glibc begins for a thread 64 MiB more of addresses (`HEAP_MAX_SIZE` of malloc/arena.c). A single
/// small allocation that fails ends a process, with its probes attached.
const LEAST_ADDRESS_SPACE: u64 = 1 << 30;

/// Refuses to go on where the address space is so small (`ulimit -v`) that memory could run out at any moment.
///
/// # Errors
/// Says how much is allowed and how much is needed.
pub fn require_address_space() -> Result<(), KernelError> {
    // Without a mounted /proc the trace ends anyway, with its own message.
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    match address_space(&limits) {
        Some(allowed) if allowed < LEAST_ADDRESS_SPACE => Err(KernelError::AddressSpace {
            allowed_kib: allowed >> 10,
            needed_kib: LEAST_ADDRESS_SPACE >> 10,
        }),
        _ => Ok(()),
    }
}

/// The soft limit of the address space in bytes, from the text of `/proc/PID/limits` (`fs/proc/base.c`, `proc_pid_limits`). `None`
/// where there is no limit.
fn address_space(limits: &str) -> Option<u64> {
    let row = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    row.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{address_space, require_address_space};

    #[test]
    fn the_soft_limit_counts() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max cpu time              unlimited            unlimited            seconds\n\
                      Max address space         56320000             unlimited            bytes\n";
        assert_eq!(address_space(limits), Some(56_320_000));
        assert_eq!(
            address_space(&limits.replace("56320000", "unlimited")),
            None
        );
        assert_eq!(address_space("Max cpu time unlimited"), None);
        assert_eq!(address_space("Max address space"), None);
    }

    #[test]
    fn a_test_has_room_enough() {
        assert_eq!(
            require_address_space().map_err(|error| error.to_string()),
            Ok(())
        );
    }
}
