//! Where the demo is shown: steps as lines with the time, and one line that changes.

use std::io::Write;
use std::time::Instant;

use crate::limits::DEMO_LINE_EVERY;

/// Standard output, or what stands in for it.
pub struct Stage {
    out: Box<dyn Write + Send>,
    /// Columns of the terminal; none where there is none, and lines cannot be redrawn.
    columns: Option<usize>,
    started: Instant,
    /// When the changing line, or a step instead of it, was last written.
    line_at: Instant,
    /// What it said then.
    line_said: String,
    /// Whether the changing line stands on the terminal.
    line_stands: bool,
}

impl Stage {
    /// A stage whose clock starts now; `columns` where `out` is a terminal.
    pub fn new(out: impl Write + Send + 'static, columns: Option<u16>) -> Self {
        let columns = columns.map(usize::from);
        let now = Instant::now();
        let line_said = String::new();
        Self { out: Box::new(out), columns, started: now, line_at: now, line_said, line_stands: false }
    }

    /// One thing that has happened, with the time since the start.
    pub(super) fn step(&mut self, text: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.say(&format!("{seconds:5.1} s  {text}"));
        self.line_at = Instant::now();
    }

    /// Lines as they are.
    pub(super) fn say(&mut self, text: &str) {
        let clear = self.clear();
        self.write(&format!("{clear}{text}\n"));
    }

    /// The changing line: redrawn on a terminal, elsewhere written now and then.
    pub(super) fn line(&mut self, text: &str) {
        let text = format!("         {text}");
        match self.columns {
            Some(columns) => {
                // A line that wraps could not be redrawn.
                let cut: String = text.chars().take(columns.saturating_sub(1)).collect();
                let clear = self.clear();
                self.write(&format!("{clear}{cut}"));
                self.line_stands = true;
            }
            None if self.line_at.elapsed() >= DEMO_LINE_EVERY && self.line_said != text => {
                self.write(&format!("{text}\n"));
                self.line_at = Instant::now();
                self.line_said = text;
            }
            None => {}
        }
    }

    fn clear(&mut self) -> &'static str {
        if std::mem::take(&mut self.line_stands) { "\r\x1b[K" } else { "" }
    }

    /// Who closes the pipe early has seen enough: the exit code still tells.
    fn write(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("columns", &self.columns).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shown(columns: Option<u16>) -> String {
        let page = Page::default();
        let mut stage = Stage::new(page.clone(), columns);
        stage.line_at = stage.line_at.checked_sub(DEMO_LINE_EVERY).expect("the machine is up for longer");
        stage.line("one, and it is long");
        stage.line("two");
        stage.say("said");
        stage.line("three");
        let bytes = page.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn a_terminal_is_redrawn_within_its_columns() {
        let expected = "         one, \r\x1b[K         two\r\x1b[Ksaid\n         three";
        assert_eq!(shown(Some(15)), expected);
    }

    #[test]
    fn elsewhere_lines_are_few() {
        assert_eq!(shown(None), "         one, and it is long\nsaid\n");
    }
}
