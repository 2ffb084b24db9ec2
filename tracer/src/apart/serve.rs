//! What runs in the reader: it takes one question after the other and answers. Whatever a parser does is caught, or ends this process,
//! which others are ready for.

use std::{
    cell::RefCell,
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStringExt as _, net::UnixStream},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use serde::Serialize;

use super::{Question, go, walk, wire};
use crate::{
    kernel::{confine, end_after},
    process::{
        discover::Facts,
        elf::{ElfFile, holds_v8},
        open::most_held,
    },
    reader::{holds_rust, rust_functions},
    runtime::cpython,
    session::read_table,
    symbol::{Namer, PerfMap},
};

thread_local! {
    /// Where no process is asked.
    static HERE: RefCell<Namer> = RefCell::default();
}

/// Gives up all but the socket that is the standard input and so much memory, bytes, and answers until nobody asks any more.
///
/// # Errors
/// The standard input is no socket, or what has to be given up could not be: nothing is read then.
pub fn serve(memory: u64) -> io::Result<()> {
    std::panic::set_hook(Box::new(|_| ()));
    // The limit of descriptors cannot be asked for afterwards.
    let _ = most_held();
    confine(memory)?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut namer = Namer::default();
    while let Some(asked) = wire::asked(&socket)? {
        end_after(asked.seconds);
        let files = asked.files.into_iter().map(File::from).collect();
        let answered = match postcard::from_bytes(&asked.question) {
            Ok(question) => answer(&question, files, &mut namer, &mut |call| {
                let reply = wire::call(&socket, call).unwrap_or_default();
                // Another piece of work begins.
                end_after(asked.seconds);
                reply
            }),
            Err(error) => encode(&Err::<(), _>(error.to_string())),
        };
        wire::answer(&socket, &answered)?;
        end_after(0);
    }
    Ok(())
}

/// Asks back.
type Back<'a> = &'a mut dyn FnMut(&[u8]) -> Vec<u8>;

/// Answers in this process.
pub(super) fn answer_here(question: &Question<'_>, files: Vec<File>, back: Back<'_>) -> Vec<u8> {
    // What is asked back may be asked here.
    let mut namer = HERE.take();
    let answer = answer(question, files, &mut namer, back);
    HERE.replace(namer);
    answer
}

/// Answers.
fn answer(question: &Question<'_>, files: Vec<File>, namer: &mut Namer, back: Back<'_>) -> Vec<u8> {
    let answered = catch_unwind(AssertUnwindSafe(|| say(question, files, namer, back)));
    answered.unwrap_or_else(|_| {
        // What it remembers may be half made.
        *namer = Namer::default();
        encode(&Err::<(), _>("it is damaged".to_owned()))
    })
}

fn say(question: &Question<'_>, files: Vec<File>, namer: &mut Namer, back: Back<'_>) -> Vec<u8> {
    let mut files = files.into_iter();
    let Some(file) = files.next() else {
        return encode(&Err::<(), _>("no file".to_owned()));
    };
    let headers = |file: &File| ElfFile::parse(file).map_err(|error| error.to_string());
    match question {
        Question::Headers => encode(&headers(&file).map(ElfFile::abridged)),
        Question::Allocators(path) => {
            let path = OsString::from_vec(path.clone());
            encode(&Ok(Facts::read(&file, Path::new(&path))))
        }
        Question::Unwinding(kept) => encode(&read_table(&file, *kept)),
        Question::HoldsV8 => encode(&headers(&file).map(|elf| holds_v8(&elf, &file))),
        Question::HoldsRust => encode(&headers(&file).map(|elf| holds_rust(&elf, &file))),
        Question::Interpreter => encode(&headers(&file).map(|elf| cpython::find(&elf, &file))),
        Question::RustFunctions => encode(&headers(&file).map(|elf| rust_functions(&elf, &file))),
        Question::Names(identity, addresses) => {
            encode(&Ok(namer.names((*identity, file), files.next(), addresses)))
        }
        Question::Walk(walk) => walk::answer(walk, file, back),
        Question::Go(question) => go::answer(question, file),
        Question::PerfMap(addresses) => encode(&Ok(PerfMap::read(file).at(addresses))),
    }
}

pub(super) fn encode<A: Serialize>(answer: &Result<A, String>) -> Vec<u8> {
    postcard::to_stdvec(answer).unwrap_or_default()
}
