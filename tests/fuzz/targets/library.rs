//! All that is ever asked of a file: headers, allocators, unwind tables, interpreters, names. As the reader answers it, in this process.
#![no_main]

use std::{fs::File, io::Write as _, path::Path};

use leakscope::apart;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    ask(&file);
});

fn ask(file: &File) {
    // Nine questions.
    assert!(apart::ask_all(file, Path::new("/usr/lib/library.so")).len() <= 9);
}
