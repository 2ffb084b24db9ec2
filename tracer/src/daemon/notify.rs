//! Tells the service manager how far the daemon is: sd_notify(3)'s protocol, a datagram to the socket that `NOTIFY_SOCKET`
//! names. Owns the protocol; knows nothing of what is told.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Who started us and wants to know.
#[derive(Debug)]
pub(super) struct Manager {
    address: Option<SocketAddr>,
}

/// What there is to tell (sd_notify(3), "Well-known assignments").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Questions are answered.
    Ready,
    /// The end has begun.
    Stopping,
}

impl State {
    fn message(self) -> &'static [u8] {
        match self {
            Self::Ready => b"READY=1\n",
            Self::Stopping => b"STOPPING=1\n",
        }
    }
}

impl Manager {
    /// The one that the environment names, if there is one.
    ///
    /// # Errors
    /// The name is of no socket.
    pub(super) fn of_environment() -> io::Result<Self> {
        Self::at(std::env::var_os("NOTIFY_SOCKET").as_deref())
    }

    /// The one behind a socket: a path, or after an `@` a name in the abstract namespace (unix(7)).
    fn at(socket: Option<&OsStr>) -> io::Result<Self> {
        let address = match socket.map(OsStr::as_bytes) {
            None | Some(b"") => None,
            Some([b'@', name @ ..]) => Some(SocketAddr::from_abstract_name(name)?),
            Some([b'/', ..]) => socket.map(SocketAddr::from_pathname).transpose()?,
            Some(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it is neither an absolute path nor an @ with a name",
                ));
            }
        };
        Ok(Self { address })
    }

    /// Tells it, if there is anybody to be told.
    ///
    /// # Errors
    /// Nobody listens there, or too much is there unread.
    pub(super) fn tell(&self, state: State) -> io::Result<()> {
        let Some(address) = &self.address else {
            return Ok(());
        };
        let socket = UnixDatagram::unbound()?;
        // Nobody may keep us waiting.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.message(), address).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::{
        ffi::OsStr,
        os::{
            linux::net::SocketAddrExt as _,
            unix::net::{SocketAddr, UnixDatagram},
        },
    };

    use super::{Manager, State};

    fn heard(socket: &UnixDatagram) -> String {
        let mut room = [0; 64];
        let length = socket.recv(&mut room).unwrap();
        String::from_utf8_lossy(room.get(..length).unwrap()).into_owned()
    }

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(Some(path.as_os_str())).unwrap();
        manager.tell(State::Ready).unwrap();
        assert_eq!(heard(&by_path), "READY=1\n");
        let name = format!("leakscope-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let manager = Manager::at(Some(OsStr::new(&format!("@{name}")))).unwrap();
        manager.tell(State::Stopping).unwrap();
        assert_eq!(heard(&by_name), "STOPPING=1\n");
        drop(by_name);
        assert!(manager.tell(State::Stopping).is_err());
    }

    #[test]
    fn without_a_manager_nobody_is_told() {
        for none in [None, Some(OsStr::new(""))] {
            assert!(Manager::at(none).unwrap().tell(State::Ready).is_ok());
        }
        for wrong in ["relative", "vsock:2:1234"] {
            assert!(Manager::at(Some(OsStr::new(wrong))).is_err(), "{wrong}");
        }
    }
}
