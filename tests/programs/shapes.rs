//! A heap of Rust of which the truth is known: trait objects that a static holds, alone, in an `Rc` and in an `Arc`; values that were
//! forgotten; cycles of `Rc` that nobody can free. Some types share the code of their functions. Prints the truth and waits to be killed.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::{thread, time::Duration};

trait Shape: Send + Sync {
    fn area(&self) -> f64;
    fn name(&self) -> &str;
}

struct Circle {
    radius: f64,
    label: String,
}

/// Its name, and what drops it, are the same code as a circle's.
struct Square {
    side: f64,
    label: String,
}

/// Nothing has to be done to drop it.
struct Dot(f64);

impl Shape for Circle {
    fn area(&self) -> f64 {
        self.radius * self.radius * 3.14
    }
    fn name(&self) -> &str {
        &self.label
    }
}

impl Shape for Square {
    fn area(&self) -> f64 {
        self.side * self.side
    }
    fn name(&self) -> &str {
        &self.label
    }
}

impl Shape for Dot {
    fn area(&self) -> f64 {
        self.0
    }
    fn name(&self) -> &str {
        "dot"
    }
}

/// A ring of two, 104 bytes each with the counts.
struct Node {
    other: RefCell<Option<Rc<Node>>>,
    words: [u64; 9],
}

static SHAPES: Mutex<Vec<Box<dyn Shape>>> = Mutex::new(Vec::new());
static SHARED: Mutex<Vec<Arc<dyn Shape>>> = Mutex::new(Vec::new());

#[inline(never)]
fn hold(count: u64) {
    let mut shapes = SHAPES.lock().unwrap();
    let mut shared = SHARED.lock().unwrap();
    for number in 0..count {
        let value = black_box(number as f64);
        shapes.push(Box::new(Circle { radius: value, label: format!("circle {number}") }));
        shapes.push(Box::new(Square { side: value, label: format!("square {number}") }));
        shared.push(Arc::new(Dot(value)));
    }
}

#[inline(never)]
fn lose_rings(count: u64) {
    for number in 0..count {
        let node = || Rc::new(Node { other: RefCell::new(None), words: [number; 9] });
        let (one, other) = (node(), node());
        *one.other.borrow_mut() = Some(other.clone());
        *other.other.borrow_mut() = Some(one.clone());
        black_box(one.words[0] + other.words[0]);
    }
}

#[inline(never)]
fn lose_bytes(count: u64) {
    for number in 0..count {
        let bytes = vec![number as u8 | 0x80; 200];
        black_box(bytes.as_ptr());
        std::mem::forget(bytes);
    }
}

/// Lost trait objects, in lists that are lost as well.
#[inline(never)]
fn lose_lists(count: u64) {
    for _ in 0..count {
        let list: Vec<Box<dyn Shape>> = (0..10)
            .map(|value| Box::new(Dot(black_box(f64::from(value)))) as Box<dyn Shape>)
            .collect();
        black_box(list.len());
        std::mem::forget(list);
    }
}

/// Leaves nothing on the stack that looks like a pointer to what was lost.
#[inline(never)]
fn overwrite_stack() {
    black_box([0_u8; 65536]);
}

fn main() {
    let count: u64 = 4000;
    hold(count);
    let worker = thread::spawn(move || {
        lose_rings(count);
        lose_bytes(count);
        lose_lists(count / 10);
        overwrite_stack();
    });
    worker.join().unwrap();
    let sum: f64 = SHAPES.lock().unwrap().iter().map(|shape| shape.area() + shape.name().len() as f64).sum();
    black_box(sum);
    println!("held {count} rings {} bytes {count} lists {} dots {count}", 2 * count, count / 10);
    thread::sleep(Duration::from_secs(1000));
}
