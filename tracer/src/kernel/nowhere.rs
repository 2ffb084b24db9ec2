//! A descriptor for a process that has nothing to read and nothing to say, where `/dev/null` may not be there.

use std::{io, process::Stdio};

/// The end for reading of a pipe that nobody writes to. What is read from it is at its end; a write is refused as one to a descriptor that
/// is not open is, which the standard library takes for written.
///
/// # Errors
/// There are no more descriptors.
pub(crate) fn nowhere() -> io::Result<Stdio> {
    let (end, _) = io::pipe()?;
    Ok(Stdio::from(end))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::nowhere;
    use std::process::Command;

    #[test]
    fn who_writes_nowhere_is_refused_and_who_reads_is_at_the_end() {
        let mut command = Command::new("sh");
        command.args(["-c", "read -r line || ! echo word"]);
        command.stdin(nowhere().unwrap());
        command.stdout(nowhere().unwrap());
        command.stderr(nowhere().unwrap());
        assert!(command.status().unwrap().success());
    }
}
