//! The terminal: how it is taken and, whatever happens, given back as it was.

use std::{
    io::{self, Stdout, Write as _},
    sync::atomic::{AtomicBool, Ordering},
    thread::ThreadId,
};

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::{Hide, Show},
        event::{DisableMouseCapture, EnableMouseCapture},
        execute,
        terminal::{
            Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
            enable_raw_mode,
        },
    },
};

/// Whether the terminal is ours. One process has one terminal: what gives it back in a panic has nothing else to ask.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is ours. Given back when dropped.
pub(super) struct Taken {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    is_mouse: bool,
}

impl Taken {
    /// Takes it: no lines, no echo, another screen than the one that holds what was there.
    pub(super) fn take() -> io::Result<Self> {
        let mut taken = Self {
            terminal: Terminal::new(CrosstermBackend::new(io::stdout()))?,
            is_mouse: false,
        };
        taken.again()?;
        Ok(taken)
    }

    /// Takes it again after [`Self::give_back`].
    pub(super) fn again(&mut self) -> io::Result<()> {
        // Before the first change: what fails half way is undone, too.
        IS_TAKEN.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        if self.is_mouse {
            execute!(io::stdout(), EnableMouseCapture)?;
        }
        self.clear()
    }

    /// Gives it back for a while.
    pub(super) fn give_back(&self) {
        give_back();
    }

    /// Columns and lines.
    pub(super) fn size(&self) -> io::Result<(u16, u16)> {
        let size = self.terminal.size()?;
        Ok((size.width, size.height))
    }

    /// Whether the mouse is listened to. The terminal cannot select text with it meanwhile.
    pub(super) fn listen_to_mouse(&mut self, is_mouse: bool) -> io::Result<()> {
        self.is_mouse = is_mouse;
        if is_mouse {
            execute!(io::stdout(), EnableMouseCapture)
        } else {
            execute!(io::stdout(), DisableMouseCapture)
        }
    }

    /// The next drawing is of everything. Ratatui's own way asks the terminal where its cursor is, and the thread that reads keys
    /// would get the answer.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        execute!(io::stdout(), Clear(ClearType::All))?;
        self.terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(())
    }

    /// Draws.
    pub(super) fn draw(
        &mut self,
        draw: impl FnOnce(ratatui::layout::Rect, &mut ratatui::buffer::Buffer),
    ) -> io::Result<()> {
        self.terminal.draw(|frame| {
            let area = frame.area();
            draw(area, frame.buffer_mut());
        })?;
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back, if it is ours. What cannot be written is for nobody any more.
fn give_back() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        let mut out = io::stdout();
        let _ = execute!(out, DisableMouseCapture, LeaveAlternateScreen, Show);
        let _ = out.flush();
        let _ = disable_raw_mode();
    }
}

/// From now on a panic of the thread that draws gives the terminal back before it is said. Of other threads it is said by
/// `others`: the screen goes on.
pub(super) fn give_back_in_panics(
    drawing: ThreadId,
    others: impl Fn(&str) + Send + Sync + 'static,
) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() == drawing || !IS_TAKEN.load(Ordering::SeqCst) {
            give_back();
            before(panic);
        } else {
            others(&panic.to_string());
        }
    }));
}
