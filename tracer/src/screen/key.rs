//! What a user does, as the state takes it: keys and the mouse. Knows the terminal's events, and nothing of what they lead to.

use ratatui::crossterm::event::{
    Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};

/// A key, or what stands for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A character.
    Char(char),
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    /// A letter with Ctrl.
    Ctrl(char),
    /// The button of the mouse on a line of the screen, from 0.
    Click(u16),
    WheelUp,
    WheelDown,
}

/// Something that a terminal tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Key(Key),
    /// Columns and lines.
    Resize(u16, u16),
}

/// What an event of the terminal means here; `None` for what means nothing.
pub(super) fn input(event: &Event) -> Option<Input> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => of_key(key).map(Input::Key),
        Event::Mouse(mouse) => of_mouse(mouse).map(Input::Key),
        Event::Resize(columns, lines) => Some(Input::Resize(*columns, *lines)),
        _ => None,
    }
}

fn of_key(key: &KeyEvent) -> Option<Key> {
    Some(match key.code {
        KeyCode::Char(letter) if key.modifiers.contains(KeyModifiers::CONTROL) => {
            Key::Ctrl(letter.to_ascii_lowercase())
        }
        KeyCode::Char(letter) => Key::Char(letter),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}

fn of_mouse(mouse: &MouseEvent) -> Option<Key> {
    Some(match mouse.kind {
        MouseEventKind::Down(MouseButton::Left) => Key::Click(mouse.row),
        MouseEventKind::ScrollUp => Key::WheelUp,
        MouseEventKind::ScrollDown => Key::WheelDown,
        _ => return None,
    })
}
