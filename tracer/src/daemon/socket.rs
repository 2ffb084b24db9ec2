//! The daemon's Unix socket: ours alone, only for our own user, gone with us.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::net::{UnixListener, UnixStream};

/// Who may connect: the owner.
const MODE: u32 = 0o600;

/// How long to wait for another daemon that is just claiming a socket in the same folder.
const CLAIM_WITHIN: Duration = Duration::from_secs(2);

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon listens there.
    #[error(
        "{} is held by {holder}, which answers there; stop it, or name another socket with --socket",
        .path.display()
    )]
    Held {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        holder: String,
    },
    /// Something else is there.
    #[error("{} exists and is no socket; name another with --socket", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused something.
    #[error("cannot {doing} {}: {source}; name another socket with --socket", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

/// A socket that we listen on. Its file is removed when this is dropped, if it still is ours.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for Claim {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
        {
            // It may be gone by now, which is what is wanted.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Begins to listen at a path. A socket that nobody listens on any more is replaced.
///
/// The socket is made in a folder that only its owner can enter and moved into place once it has its mode, so that there is
/// no moment at which others could connect.
pub(super) async fn claim(path: &Path) -> Result<(UnixListener, Claim), SocketError> {
    let failed = |doing| {
        let path = path.to_owned();
        move |source| SocketError::Io {
            doing,
            path,
            source,
        }
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = File::open(parent).map_err(failed("open the folder of"))?;
    // Two daemons that begin at once would both find a stale socket.
    let begun = Instant::now();
    while folder.try_lock().is_err() && begun.elapsed() < CLAIM_WITHIN {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => check_stale(path).await?,
    }
    // Its name is new: a folder that was there before is somebody else's. It is gone with the value.
    let private = tempfile::Builder::new()
        .prefix(".leakscope-")
        .tempdir_in(parent)
        .map_err(failed("make a folder beside"))?;
    let temporary = private.path().join("s");
    let listener = UnixListener::bind(&temporary).map_err(failed("listen on"))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(MODE))
        .map_err(failed("set the mode of"))?;
    let metadata = fs::symlink_metadata(&temporary).map_err(failed("look at"))?;
    fs::rename(&temporary, path).map_err(failed("put in place"))?;
    let claim = Claim {
        path: path.to_owned(),
        identity: (metadata.dev(), metadata.ino()),
    };
    Ok((listener, claim))
}

/// Refuses where somebody answers.
async fn check_stale(path: &Path) -> Result<(), SocketError> {
    let held = |holder| SocketError::Held {
        path: path.to_owned(),
        holder,
    };
    match UnixStream::connect(path).await {
        Ok(stream) => {
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            Err(held(pid.map_or_else(
                || "another process".to_owned(),
                |pid| match fs::read_to_string(format!("/proc/{pid}/comm")) {
                    Ok(comm) => format!("process {pid} ({})", comm.trim_end()),
                    Err(_) => format!("process {pid}"),
                },
            )))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // It listens, and has more waiting connections than it can take.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(held("another process".to_owned()))
        }
        Err(source) => Err(SocketError::Io {
            doing: "find out who holds",
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::{SocketError, claim};

    #[tokio::test]
    async fn a_live_socket_is_left_alone_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, held) = claim(&path).await.unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let error = claim(&path).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        // Killed: the file stays and nobody listens.
        std::mem::forget(held);
        drop(listener);
        let (_listener, claim) = claim(&path).await.unwrap();
        drop(claim);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_no_socket_and_what_is_not_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            claim(&path).await,
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        let (_listener, held) = claim(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(held);
        assert!(path.exists());
        assert!(matches!(
            claim(&folder.path().join("none").join("socket")).await,
            Err(SocketError::Io { .. })
        ));
    }
}
