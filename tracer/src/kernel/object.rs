//! The BPF object inside the binary and where it came from.

use object::{Object as _, ObjectSection as _};

/// The object's bytes, aligned as the ELF reader wants them.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LEAKSCOPE_BPF_OBJECT_PATH"));

/// Where the object came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// `committed`, or `environment` where a build variable named it.
    pub source: &'static str,
    /// The object's SHA-256.
    pub sha256: &'static str,
    /// The toolchain that made it, one line.
    pub toolchain: &'static str,
}

/// Where the object came from.
#[must_use]
pub const fn provenance() -> Provenance {
    Provenance {
        source: env!("LEAKSCOPE_BPF_OBJECT_SOURCE"),
        sha256: env!("LEAKSCOPE_BPF_OBJECT_SHA256"),
        toolchain: env!("LEAKSCOPE_BPF_OBJECT_TOOLCHAIN"),
    }
}

/// The section in which an object says for which processor it was made, in the words of [`std::env::consts::ARCH`].
const ARCHITECTURE: &str = "architecture";

/// Whether an object was made for this machine's processor: with another's registers its programs would load, and read wrong values.
///
/// # Errors
/// It was not, or does not say; a sentence for people.
pub(crate) fn is_for_this_machine(object: &[u8]) -> Result<(), String> {
    let wanted = std::env::consts::ARCH;
    let file = object::File::parse(object).map_err(|error| error.to_string())?;
    let section = file
        .section_by_name(ARCHITECTURE)
        .and_then(|section| section.data().ok())
        .ok_or_else(|| {
            format!("it does not say for which processor it was made; this is {wanted}")
        })?;
    if section == wanted.as_bytes() {
        Ok(())
    } else {
        let made_for = String::from_utf8_lossy(section);
        Err(format!("it was made for {made_for}, and this is {wanted}"))
    }
}

#[cfg(test)]
mod tests {
    use super::{OBJECT, is_for_this_machine};

    #[test]
    fn an_object_of_another_processor_was_taken_for_ours() {
        assert_eq!(is_for_this_machine(OBJECT), Ok(()));
        let name = std::env::consts::ARCH.as_bytes();
        let mut other = OBJECT.to_vec();
        let places: Vec<usize> = other
            .windows(name.len())
            .enumerate()
            .filter(|(_, window)| *window == name)
            .map(|(place, _)| place)
            .collect();
        assert!(!places.is_empty());
        for place in places {
            other.splice(place..place + name.len(), vec![b'z'; name.len()]);
        }
        let refused = is_for_this_machine(&other);
        assert!(refused.is_err_and(|why| why.contains("made for zz")));
    }
}
