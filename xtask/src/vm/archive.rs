//! Writes a cpio archive as the kernel unpacks it into its first root: the "newc" format of
//! Documentation/driver-api/early-userspace/buffer-format.rst.

use anyhow::{Context as _, Result};
use std::io::Write;

/// What a member is.
pub(super) enum Member<'content> {
    /// A directory, mode 0755.
    Directory,
    /// A regular file with its permission bits.
    File(&'content [u8], u32),
    /// A symbolic link with its target.
    Link(&'content str),
}

/// An archive being written.
pub(super) struct Archive<W> {
    out: W,
    inode: u32,
    written: u64,
}

/// `S_IFDIR`, `S_IFREG`, `S_IFLNK` of inode(7).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

impl<W: Write> Archive<W> {
    /// An archive that goes to `out`.
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            written: 0,
        }
    }

    /// Adds a member; its parent directories must have been added before. The name has no leading slash.
    ///
    /// # Errors
    /// When it cannot be written, or is 4 GiB or longer: the format's sizes have 32 bits.
    pub(super) fn add(&mut self, name: &str, member: &Member<'_>) -> Result<()> {
        let (mode, content) = match member {
            Member::Directory => (DIRECTORY | 0o755, &[][..]),
            Member::File(content, permissions) => (REGULAR | permissions, *content),
            Member::Link(target) => (LINK | 0o777, target.as_bytes()),
        };
        self.inode += 1;
        self.entry(name, self.inode, mode, content)
    }

    /// Ends the archive and gives back what it was written to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn finish(mut self) -> Result<W> {
        self.entry("TRAILER!!!", 0, 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, inode: u32, mode: u32, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len())
            .with_context(|| format!("{name} is too long for a cpio archive"))?;
        let name_size = u32::try_from(name.len() + 1)?;
        // ino, mode, uid, gid, nlink, mtime, filesize, maj, min, rmaj, rmin, namesize, chksum
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .context("cannot write the initramfs")?;
        self.written += u64::try_from(bytes.len())?;
        Ok(())
    }

    /// Header with name, and content, each end on a multiple of four bytes.
    fn pad(&mut self) -> Result<()> {
        while !self.written.is_multiple_of(4) {
            self.put(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test")]

    use super::{Archive, Member};

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut archive = Archive::new(Vec::new());
        archive.add("d", &Member::Directory).unwrap();
        archive
            .add("d/abc", &Member::File(b"hello", 0o755))
            .unwrap();
        archive.add("l", &Member::Link("d/abc")).unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.len() % 4, 0);
        let header = |inode: &str, mode: &str, size: &str, name_size: &str| {
            let zero = "0".repeat(8);
            format!(
                "070701{inode}{mode}{zero}{zero}00000001{zero}{size}{}{name_size}{zero}",
                zero.repeat(4)
            )
        };
        let expected = [
            header("00000001", "000041ed", "00000000", "00000002") + "d\0",
            header("00000002", "000081ed", "00000005", "00000006") + "d/abc\0" + "hello\0\0\0",
            header("00000003", "0000a1ff", "00000005", "00000002") + "l\0" + "d/abc\0\0\0",
            header("00000000", "00000000", "00000000", "0000000b") + "TRAILER!!!\0",
        ];
        // 110 bytes of header: with the name, each of these ends on a multiple of four or is padded by hand below.
        let padded: String = expected
            .iter()
            .map(|entry| {
                let name_end = 110 + entry.get(110..).unwrap().find('\0').unwrap() + 1;
                let (head, content) = entry.split_at(name_end);
                format!("{head}{}{content}", "\0".repeat((4 - name_end % 4) % 4))
            })
            .collect();
        assert_eq!(text, padded);
    }
}
