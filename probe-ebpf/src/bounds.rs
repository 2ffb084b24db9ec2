//! What the compiler may not know, so that the verifier can see it.

use core::arch::asm;

/// Keeps the compiler from knowing a value, so that it neither turns arithmetic back into branches nor drops a
/// mask that the verifier needs.
#[inline(always)]
pub(crate) fn hide(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the empty statement changes nothing.
    unsafe { asm!("/* {0} */", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
