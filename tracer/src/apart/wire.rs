//! What goes over the socket between the tracer and the reader: a question with descriptors, an answer. Knows nothing of what is asked.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};

/// Most descriptors of a question.
pub(super) const MOST_FILES: usize = 2;
/// The longest question, bytes: the blocks that are known of a process.
const LONGEST_QUESTION: usize = 256 << 20;
/// Answers are read in pieces of at most so many bytes, so that a length that is a lie costs nothing.
const PIECE: usize = 1 << 20;

/// Length, descriptors and seconds of a question, each a little-endian word.
const QUESTION_HEAD: usize = 12;
/// The length of an answer. In its highest bit stands that it is none, but something that is asked back, and how long that may be.
const ANSWER_HEAD: usize = 4;
const IS_CALL: u32 = 1 << 31;
const LONGEST_CALL: usize = 64 << 10;
/// The longest reply to that, bytes: the regions of a process.
const LONGEST_REPLY: usize = 256 << 20;

/// What a reader says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Answer(Vec<u8>),
    Call(Vec<u8>),
}

/// A question as it came.
pub(super) struct Asked {
    pub(super) question: Vec<u8>,
    pub(super) files: Vec<OwnedFd>,
    /// The time there is for the answer.
    pub(super) seconds: u32,
}

/// Sends a question.
pub(super) fn ask(
    socket: &UnixStream,
    question: &[u8],
    files: &[BorrowedFd<'_>],
    seconds: u32,
    deadline: Instant,
) -> io::Result<()> {
    let length = u32::try_from(question.len()).map_err(io::Error::other)?;
    let count = u32::try_from(files.len()).map_err(io::Error::other)?;
    let mut head = [0; QUESTION_HEAD];
    for (to, from) in head
        .chunks_exact_mut(4)
        .zip([length, count, seconds].map(u32::to_le_bytes))
    {
        to.copy_from_slice(&from);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    socket.set_write_timeout(Some(left(deadline)?))?;
    // A head is shorter than what a socket takes at once.
    let sent = sendmsg(
        socket.as_fd(),
        &[IoSlice::new(&head)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent != head.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    put(socket, question, Some(deadline))
}

/// Receives an answer of at most so many bytes, or what is asked back.
pub(super) fn hear(socket: &UnixStream, most: usize, deadline: Instant) -> io::Result<Heard> {
    let mut head = [0; ANSWER_HEAD];
    fill(socket, &mut head, Some(deadline))?;
    let word = u32::from_le_bytes(head);
    let is_call = word & IS_CALL != 0;
    let length = (word & !IS_CALL) as usize;
    if length > if is_call { LONGEST_CALL } else { most } {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let bytes = take(socket, length, Some(deadline))?;
    Ok(if is_call {
        Heard::Call(bytes)
    } else {
        Heard::Answer(bytes)
    })
}

/// Replies to what was asked back.
pub(super) fn reply(socket: &UnixStream, reply: &[u8], deadline: Instant) -> io::Result<()> {
    let length = u32::try_from(reply.len()).map_err(io::Error::other)?;
    put(socket, &length.to_le_bytes(), Some(deadline))?;
    put(socket, reply, Some(deadline))
}

/// Asks back, and waits for the reply.
pub(super) fn call(socket: &UnixStream, call: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(call.len()).map_err(io::Error::other)?;
    put(socket, &(length | IS_CALL).to_le_bytes(), None)?;
    put(socket, call, None)?;
    let mut head = [0; ANSWER_HEAD];
    fill(socket, &mut head, None)?;
    let length = u32::from_le_bytes(head) as usize;
    if length > LONGEST_REPLY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    take(socket, length, None)
}

/// Receives a question; `None` where nobody asks any more.
pub(super) fn asked(socket: &UnixStream) -> io::Result<Option<Asked>> {
    let mut head = [0; QUESTION_HEAD];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut head)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let files: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        })
        .flatten()
        .collect();
    let word = |at: usize| -> usize {
        let word = head.get(at..).and_then(<[u8]>::first_chunk);
        word.map_or(0, |word| u32::from_le_bytes(*word) as usize)
    };
    let (length, count, seconds) = (word(0), word(4), word(8));
    if received.bytes != head.len() || length > LONGEST_QUESTION || count != files.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some(Asked {
        question: take(socket, length, None)?,
        files,
        seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
    }))
}

/// Sends an answer.
pub(super) fn answer(socket: &UnixStream, answer: &[u8]) -> io::Result<()> {
    let length = u32::try_from(answer.len()).map_err(io::Error::other)?;
    if length & IS_CALL != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    put(socket, &length.to_le_bytes(), None)?;
    put(socket, answer, None)
}

/// The time until a deadline, if there is any.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

fn take(socket: &UnixStream, length: usize, deadline: Option<Instant>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let from = bytes.len();
        bytes.resize(length.min(from.saturating_add(PIECE)), 0);
        fill(socket, bytes.get_mut(from..).unwrap_or_default(), deadline)?;
    }
    Ok(bytes)
}

fn fill(socket: &UnixStream, bytes: &mut [u8], deadline: Option<Instant>) -> io::Result<()> {
    use io::Read as _;
    let mut socket = socket;
    let mut done = 0;
    while let Some(rest @ [_, ..]) = bytes.get_mut(done..) {
        if let Some(deadline) = deadline {
            socket.set_read_timeout(Some(left(deadline)?))?;
        }
        match socket.read(rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done = done.saturating_add(read),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn put(socket: &UnixStream, mut bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
    while !bytes.is_empty() {
        if let Some(deadline) = deadline {
            socket.set_write_timeout(Some(left(deadline)?))?;
        }
        match send(socket.as_fd(), bytes, SendFlags::NOSIGNAL) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{Heard, answer, ask, asked, call, hear, reply};
    use std::{
        fs::File,
        io::{self, Read as _, Seek as _, Write as _},
        os::{fd::AsFd as _, unix::net::UnixStream},
        time::{Duration, Instant},
    };

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_question_comes_with_its_file() {
        let (one, other) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"text").unwrap();
        let question = vec![7; 3 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let asked = asked(&other).unwrap().unwrap();
                assert_eq!((asked.question.len(), asked.seconds), (3 << 20, 9));
                let mut file = File::from(asked.files.into_iter().next().unwrap());
                let mut text = String::new();
                file.rewind().unwrap();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, "text");
                assert_eq!(call(&other, b"back").unwrap(), b"reply");
                answer(&other, &[1; 2 << 20]).unwrap();
            });
            ask(&one, &question, &[file.as_fd()], 9, soon()).unwrap();
            let heard = hear(&one, 2 << 20, soon()).unwrap();
            assert_eq!(heard, Heard::Call(b"back".to_vec()));
            reply(&one, b"reply", soon()).unwrap();
            let heard = hear(&one, 2 << 20, soon()).unwrap();
            assert_eq!(heard, Heard::Answer(vec![1; 2 << 20]));
        });
        drop(one);
        assert!(asked(&other).unwrap().is_none());
    }

    #[test]
    fn an_answer_that_is_too_long_or_too_late_is_none() {
        let (one, other) = UnixStream::pair().unwrap();
        answer(&other, &[1; 100]).unwrap();
        let kind = |result: io::Result<Heard>| result.unwrap_err().kind();
        assert_eq!(kind(hear(&one, 99, soon())), io::ErrorKind::InvalidData);
        let (one, _other) = UnixStream::pair().unwrap();
        let late = hear(&one, 99, Instant::now() + Duration::from_millis(10));
        assert!(matches!(
            kind(late),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ));
    }
}
