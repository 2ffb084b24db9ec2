//! The promise that a type may cross the boundary, and the only macro that makes it.

/// A type that may be read from and written to raw memory shared with the kernel.
///
/// # Safety
/// The type must be `repr(C)`, contain no padding, no references, and be valid for every bit pattern. The
/// `layout!` macro asserts the size; implement this trait by no other means.
pub unsafe trait Plain: Copy + 'static {}

/// Declares that types are [`Plain`] and asserts their size in bytes. A size that equals the sum of the fields'
/// sizes means that there is no padding; the sum is what must be written on the right.
macro_rules! layout {
    ($($type:ty = $size:expr;)+) => {
        $(
            const _: () = assert!(core::mem::size_of::<$type>() == $size);
            // SAFETY: the type is `repr(C)` with integer fields (or arrays of them, or of other `Plain` types)
            // only, so that every bit pattern is valid; its size equals the sum of its fields' sizes (asserted
            // above), so that there is no padding.
            unsafe impl $crate::layout::Plain for $type {}
        )+
    };
}

pub(crate) use layout;

layout! {
    u32 = 4;
    u64 = 8;
}
