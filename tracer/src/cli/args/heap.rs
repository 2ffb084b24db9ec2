//! The command line of `leakscope heap`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::super::values::{groups, pid, whole};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  leakscope heap -p 1234                     what the heap is full of, and who holds it
  leakscope heap -p 1234 --unreachable       what nothing points to any more
  leakscope heap -p 1234 --format json -o before.json
  leakscope heap -p 1234 --base before.json  what has grown since then
  leakscope heap -p 1234 --format html -o heap.html
  leakscope heap -p 1234 --format dot | dot -Tsvg -o heap.svg

Memory that was allocated before leakscope was started is seen too. The process is neither stopped nor changed. Heaps of glibc (2.30 to 2.43) and pools of CPython (3.8 to 3.14 with the GIL) can be read.
Exit status: 0 done, 1 could not do it, 2 usage.")]
pub(in crate::cli) struct HeapArguments {
    /// The process to look at.
    #[arg(short, long = "pid", value_name = "PID", value_parser = pid, allow_negative_numbers = true)]
    pub(in crate::cli) pid: u32,
    /// Show only blocks that no pointer in the process leads to, directly or through other blocks.
    #[arg(long, conflicts_with = "base")]
    pub(in crate::cli) unreachable: bool,
    /// Follow who holds the largest groups at most N steps up; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = |text: &str| whole(text, 0..=100), allow_negative_numbers = true)]
    pub(in crate::cli) holders: u32,
    /// What blocks are put together by.
    #[arg(long, value_enum, default_value = "type")]
    pub(in crate::cli) by: HeapBy,
    /// Show what has grown since a report that was saved with --format json.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) base: Option<PathBuf>,
    /// Show at most N groups and a total for the rest; JSON has all.
    #[arg(long, value_name = "N", default_value = "20", value_parser = groups, allow_negative_numbers = true)]
    pub(in crate::cli) top: usize,
    /// How the result is written.
    #[arg(long, value_enum, default_value = "text")]
    pub(in crate::cli) format: HeapFormat,
    /// Write the result to a file instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub(in crate::cli) output: Option<PathBuf>,
}

/// What blocks of a heap are put together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum HeapBy {
    /// Their type; their size where none is known.
    Type,
    /// Their size.
    Size,
}

/// Output formats of a heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum HeapFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
    /// A page with the holders drawn, for a browser.
    Html,
    /// A graph of who holds what, for graphviz.
    Dot,
}

#[cfg(test)]
mod tests {
    use super::super::super::args::Arguments;
    use clap::Parser as _;

    fn said(words: &[&str]) -> String {
        let line = ["leakscope", "heap", "-p", "1"].iter().chain(words);
        let parsed = Arguments::try_parse_from(line);
        parsed.map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn a_base_was_passed_over_in_silence() {
        let text = said(&["--unreachable", "--base", "before.json"]);
        assert!(text.contains("cannot be used with"), "{text}");
        assert_eq!(said(&["--base", "before.json"]), "");
    }

    #[test]
    fn groups_of_a_heap_were_called_call_stacks() {
        assert!(
            said(&["--top", "0"]).contains("groups"),
            "{}",
            said(&["--top", "0"])
        );
    }
}
