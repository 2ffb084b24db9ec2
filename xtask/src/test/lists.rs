//! The lists of tests in tests/*.txt: a line names a test binary and a test in it, or a binary alone for all its tests.

use super::suite::Test;
use crate::shell::{self, root};
use anyhow::{Result, bail};

/// One of the lists.
pub(crate) struct List {
    name: String,
    entries: Vec<(String, Option<String>)>,
}

impl List {
    /// Reads `tests/NAME.txt`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read(name: &str) -> Result<Self> {
        let path = root().join("tests").join(name).with_extension("txt");
        let text = String::from_utf8(shell::read(&path)?)?;
        Ok(Self::parse(name, &text))
    }

    fn parse(name: &str, text: &str) -> Self {
        let entries = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| match line.split_once(' ') {
                Some((binary, test)) => (binary.to_owned(), Some(test.trim().to_owned())),
                None => (line.to_owned(), None),
            })
            .collect();
        Self {
            name: name.to_owned(),
            entries,
        }
    }

    /// Whether it names this test.
    pub(crate) fn has(&self, test: &Test) -> bool {
        self.entries.iter().any(|entry| names(entry, test))
    }

    /// That each line names a test that there is.
    ///
    /// # Errors
    /// The first line that does not: the test has another name now, or is gone.
    pub(crate) fn check(&self, all: &[Test]) -> Result<()> {
        for entry in &self.entries {
            if !all.iter().any(|test| names(entry, test)) {
                let (binary, test) = entry;
                bail!(
                    "tests/{}.txt names a test that is not there: {binary} {}",
                    self.name,
                    test.as_deref().unwrap_or_default()
                );
            }
        }
        Ok(())
    }
}

fn names((binary, name): &(String, Option<String>), test: &Test) -> bool {
    *binary == test.binary && name.as_ref().is_none_or(|name| *name == test.name)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{List, Test};

    fn test(binary: &str, name: &str) -> Test {
        Test {
            binary: binary.to_owned(),
            name: name.to_owned(),
            path: "/nowhere".into(),
            dir: "/".into(),
        }
    }

    #[test]
    fn a_line_names_a_test_or_a_binary() {
        let list = List::parse("some", "# why\none\n\ntwo a\n");
        assert!(list.has(&test("one", "any")));
        assert!(list.has(&test("two", "a")));
        assert!(!list.has(&test("two", "b")));
        assert!(!list.has(&test("# why", "")));
    }

    #[test]
    fn a_test_that_is_gone_is_noticed() {
        let list = List::parse("some", "one a\ntwo\n");
        let all = [test("one", "a"), test("two", "b")];
        list.check(&all).unwrap();
        let said = format!("{:#}", list.check(&all[..1]).unwrap_err());
        assert!(
            said.contains("tests/some.txt") && said.contains("two"),
            "{said}"
        );
        assert!(list.check(&[test("one", "b"), test("two", "b")]).is_err());
    }
}
