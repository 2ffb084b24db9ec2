//! Figures on large libraries. Ignored: they say something in a release build only.

use std::path::PathBuf;
use std::time::Instant;

use super::super::{BuildOptions, Kept, build};

/// Prints build time, rows and bytes of files named in `LEAKSCOPE_FIGURES` (separated by colons), or of the largest libraries
/// of the machine:
/// `cargo test --release -p leakscope unwind::tests::figures -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures; run it in a release build"]
fn figures() {
    let files: Vec<PathBuf> = match std::env::var_os("LEAKSCOPE_FIGURES") {
        Some(names) => std::env::split_paths(&names).collect(),
        None => largest(),
    };
    assert!(
        !files.is_empty(),
        "no library found; name some in LEAKSCOPE_FIGURES"
    );
    println!(
        "build ms (all threads / one) | rows kept / full | unsupported, corrupt, outside | MiB per GiB of text: kept, full | file"
    );
    for path in files {
        let file = std::fs::read(&path).unwrap();
        let time = |options: BuildOptions| {
            let start = Instant::now();
            let table = build(&file, &options);
            (start.elapsed().as_secs_f64() * 1e3, table)
        };
        let (many, table) = time(BuildOptions::default());
        let (one, _) = time(BuildOptions {
            threads: std::num::NonZeroUsize::new(1),
            ..BuildOptions::default()
        });
        let (_, full) = time(BuildOptions {
            kept: Kept::All,
            ..BuildOptions::default()
        });
        match (table, full) {
            (Ok(table), Ok(full)) => {
                let share = |bytes: usize| bytes as f64 * 1024.0 / table.stats.text_bytes as f64;
                println!(
                    "{many:.0} / {one:.0} | {} / {} ({:.1} %) | {}, {}, {} | {:.1}, {:.1} | {} ({} MiB, {:.1} MiB of text)",
                    table.rows.len(),
                    full.rows.len(),
                    100.0 * table.rows.len() as f64 / full.rows.len() as f64,
                    table.stats.unsupported,
                    table.stats.corrupt,
                    table.stats.outside,
                    share(table.bytes()),
                    share(full.bytes()),
                    path.display(),
                    file.len() >> 20,
                    table.stats.text_bytes as f64 / 1048576.0,
                );
            }
            (Err(error), _) | (_, Err(error)) => println!("{}: {error}", path.display()),
        }
    }
}

/// The ten largest files in the machine's library directory.
fn largest() -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir("/usr/lib/x86_64-linux-gnu")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .filter(|(metadata, path)| metadata.is_file() && path.to_string_lossy().contains(".so"))
        .map(|(metadata, path)| (std::cmp::Reverse(metadata.len()), path))
        .collect();
    files.sort();
    files.into_iter().take(10).map(|(_, path)| path).collect()
}
