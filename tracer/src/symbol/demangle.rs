//! Names as compilers mangle them, and as people write them. A name is what a traced process pleases: both forms are bounded, and so is
//! the work between them.

use std::fmt::{self, Write as _};

/// The longest mangled name that is demangled, bytes: the work grows with it. Names of templates have some thousands.
const LONGEST_MANGLED: usize = 8 * 1024;
/// The longest mangled name of which parts are tried, bytes: the work grows with its square, and is some 10 ms then.
const LONGEST_IN_PART: usize = 1024;
/// The longest demangled name that is shown, bytes. A few dozen bytes can stand for gigabytes.
const LONGEST_SHOWN: usize = 16 * 1024;
/// How deep a C++ name may be nested: that of the library's own default for parsing, which takes less of the stack than printing.
const DEEPEST: u32 = 96;

/// What a mangled name stands for; the name itself where it is none, or stands for too much.
pub(crate) fn demangled(name: &str) -> String {
    let is_mangled = ["_Z", "_R", "__Z", "__R"]
        .iter()
        .any(|start| name.starts_with(start));
    if !is_mangled || name.len() > LONGEST_MANGLED {
        return name.to_owned();
    }
    rust(name)
        .or_else(|| cpp(name))
        .or_else(|| cpp_in_part(name))
        .unwrap_or_else(|| name.to_owned())
}

fn rust(name: &str) -> Option<String> {
    let symbol = rustc_demangle::try_demangle(name).ok()?;
    let mut shown = Bounded::default();
    write!(shown, "{symbol:#}").ok()?;
    Some(shown.0)
}

fn cpp(name: &str) -> Option<String> {
    // Linkers of other systems put one more underscore before it.
    let name = name
        .strip_prefix('_')
        .filter(|rest| rest.starts_with("_Z"))
        .unwrap_or(name);
    let options = cpp_demangle::DemangleOptions::default().recursion_limit(2 * DEEPEST);
    cpp_with(name, &options)
}

/// The function's name alone, without its type, of a name that is not understood to its end: a parameter or the result may be an
/// expression that is none of the library's (`sr` and a type of a namespace, as GCC writes `std::is_array<T>::value` of
/// `std::make_shared`).
fn cpp_in_part(name: &str) -> Option<String> {
    // Of what is no function, the beginning is another thing: `_ZTV` and a class.
    let is_special = ["_ZT", "_ZG"].iter().any(|start| name.starts_with(start));
    if is_special || name.len() > LONGEST_IN_PART || parsed(name).is_some() {
        return None;
    }
    let options = cpp_demangle::DemangleOptions::default()
        .no_params()
        .no_return_type()
        .recursion_limit(2 * DEEPEST);
    // The longest beginning: a shorter one has fewer of the template's arguments.
    (4..name.len())
        .rev()
        .filter_map(|end| name.get(..end))
        .find_map(|begin| cpp_with(begin, &options))
}

fn parsed(name: &str) -> Option<cpp_demangle::Symbol<&str>> {
    let options = cpp_demangle::ParseOptions::default().recursion_limit(DEEPEST);
    cpp_demangle::Symbol::new_with_options(name, &options).ok()
}

fn cpp_with(name: &str, options: &cpp_demangle::DemangleOptions) -> Option<String> {
    let mut shown = Bounded::default();
    parsed(name)?
        .structured_demangle(&mut shown, options)
        .ok()?;
    // So the library writes a pack of nothing.
    Some(shown.0.replace(", >", ">"))
}

/// Takes text until there is too much of it.
#[derive(Default)]
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len().saturating_add(text.len()) > LONGEST_SHOWN {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_SHOWN, demangled};

    /// A pair of a pair of a pair: each step doubles the name.
    fn explosive(steps: usize) -> String {
        const DIGITS: &[u8; 36] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let mut name = "_Z1fSt4pairIiiE".to_owned();
        for step in 1..steps {
            let back = match step.checked_sub(1).and_then(|place| DIGITS.get(place)) {
                Some(digit) => format!("S{}_", char::from(*digit)),
                None => "S_".to_owned(),
            };
            name.push_str(&format!("S_I{back}{back}E"));
        }
        name
    }

    #[test]
    fn a_name_that_explodes_is_shown_as_it_stands() {
        assert!(demangled(&explosive(4)).starts_with("f(std::pair<int, int>"));
        for steps in [22, 24, 36] {
            assert_eq!(demangled(&explosive(steps)), explosive(steps), "{steps}");
        }
    }

    #[test]
    fn names_that_are_not_mangled_are_left_alone() {
        for plain in ["w", "i", "main", "St", "Z1fv", "_", "_start", ""] {
            assert_eq!(demangled(plain), plain);
        }
    }

    #[test]
    fn both_languages_are_read() {
        for (mangled, shown) in [
            (
                "_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE",
                "core::fmt::Write::write_fmt",
            ),
            ("_RNvC6_123foo3bar", "123foo::bar"),
            (
                "_ZNSt6vectorIiSaIiEE9push_backEOi",
                "std::vector<int, std::allocator<int> >::push_back(int&&)",
            ),
            ("__Z3foov", "foo()"),
        ] {
            assert_eq!(demangled(mangled), shown);
        }
    }

    #[test]
    fn make_shared_stayed_mangled_for_the_condition_in_its_result() {
        assert_eq!(
            demangled(
                "_ZSt11make_sharedI5ChildJEESt10shared_ptrINSt9enable_ifIXntsrSt8is_arrayIT_E5valueES4_E4typeEEDpOT0_"
            ),
            "std::make_shared<Child>"
        );
        assert_eq!(
            demangled(
                "_ZN3app4makeI5ChildJRiEEESt10shared_ptrINSt9enable_ifIXntsrSt8is_arrayIT_E5valueES5_E4typeEEDpOT0_"
            ),
            "app::make<Child, int&>"
        );
        // Nothing of it is a name.
        assert_eq!(demangled("_ZXsr"), "_ZXsr");
        let table = "_ZTV1aIXntsrSt8is_arrayIiE5valueEE";
        assert_eq!(demangled(table), table);
    }

    #[test]
    fn nesting_ends_before_the_stack_does() {
        for deep in [
            format!("_Z1f{}i", "P".repeat(7_000)),
            format!("_Z1f{}i{}", "SaI".repeat(2_000), "E".repeat(2_000)),
            format!("_R{}", "NvNv".repeat(2_000)),
            format!("_RMC0{}e", "R".repeat(7_000)),
        ] {
            assert!(demangled(&deep).len() <= LONGEST_SHOWN);
        }
    }
}
