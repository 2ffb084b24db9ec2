//! A program in Rust that leaks through the standard library's own types, in the protocol of victim.h.
//!
//! True leaks (bytes / blocks): rust::leak_box 1920 / 6, rust::leak_vec 8192 / 2, rust::Holder::leak_string 300 / 3,
//! rust::leak_generic 144 / 1, rust::leak_in_thread 770 / 7. Nothing survives of rust::balanced.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{self, BufRead, Write};

#[inline(never)]
fn leak_box() {
    for round in 0..6_u8 {
        Box::leak(black_box(Box::new([round; 320])));
    }
}

#[inline(never)]
fn leak_vec() {
    for round in 0..2_u32 {
        let mut vec: Vec<u32> = Vec::with_capacity(1024);
        vec.push(round);
        black_box(vec).leak();
    }
}

struct Holder {
    text: &'static str,
}

impl Holder {
    #[inline(never)]
    fn leak_string(&self) {
        for _ in 0..3 {
            black_box(self.text.repeat(10)).leak();
        }
    }
}

#[inline(never)]
fn leak_generic<T: Default + Copy + 'static>(count: usize) {
    black_box(vec![T::default(); black_box(count)].into_boxed_slice());
    std::mem::forget(black_box(vec![Some(T::default()); count]));
}

#[inline(never)]
fn leak_in_thread() {
    for _ in 0..7 {
        std::mem::forget(black_box(Vec::<u8>::with_capacity(110)));
    }
}

#[inline(never)]
fn balanced() -> usize {
    let mut map = BTreeMap::new();
    for round in 0..500_usize {
        map.insert(round * 7919 % 503, format!("number {round}"));
    }
    map.values().map(String::len).sum()
}

fn truth(function: &str, bytes: usize, objects: usize) {
    println!("{{\"function\":\"{function}\",\"bytes\":{bytes},\"objects\":{objects}}}");
}

fn expect(word: &str) {
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line).is_err() || line.trim_end() != word {
        std::process::exit(105);
    }
}

fn main() {
    let waits = std::env::args().nth(1).as_deref() != Some("now");
    if waits {
        println!("ready {}", std::process::id());
        let _ = io::stdout().flush();
        expect("go");
    }
    leak_box();
    leak_vec();
    Holder { text: "0123456789" }.leak_string();
    leak_generic::<u64>(9);
    if std::thread::spawn(leak_in_thread).join().is_err() {
        std::process::exit(110);
    }
    black_box(balanced());
    truth("rust::leak_box", 1920, 6);
    truth("rust::leak_vec", 8192, 2);
    truth("rust::Holder::leak_string", 300, 3);
    truth("rust::leak_generic", 144, 1);
    truth("rust::leak_in_thread", 770, 7);
    truth("rust::balanced", 0, 0);
    println!("done");
    let _ = io::stdout().flush();
    if waits {
        expect("quit");
    }
}
