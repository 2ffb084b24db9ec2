//! What the probe's layouts hold, on the way between processes: as the numbers that cross to the kernel too.

pub(super) mod function {
    //! A function, as in a cookie.

    use leakscope_common::Function;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    const ALL: [Function; 12] = [
        Function::Malloc,
        Function::Calloc,
        Function::Realloc,
        Function::ReallocArray,
        Function::PosixMemalign,
        Function::AlignedAlloc,
        Function::Valloc,
        Function::Pvalloc,
        Function::Free,
        Function::RustRealloc,
        Function::HeapCalloc,
        Function::HeapRealloc,
    ];

    pub(in crate::process) fn serialize<S: Serializer>(
        function: &Function,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        (*function as u8).serialize(to)
    }

    pub(in crate::process) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Function, D::Error> {
        let number = u8::deserialize(from)?;
        ALL.into_iter()
            .find(|function| *function as u8 == number)
            .ok_or_else(|| D::Error::custom("no function has this number"))
    }
}

pub(super) mod cookie {
    //! A cookie.

    use leakscope_common::ProbeCookie;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(in crate::process) fn serialize<S: Serializer>(
        cookie: &ProbeCookie,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        cookie.to_bits().serialize(to)
    }

    pub(in crate::process) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<ProbeCookie, D::Error> {
        u64::deserialize(from).map(ProbeCookie::from_bits)
    }
}
