//! The writing stage: a thread that only writes, since standard output may block.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};

use super::emission::Output;

/// Starts the writing stage, which gives back what it has written. Its result comes when all is.
pub(super) fn spawn_writer(
    mut writer: Writer,
    mut outputs: mpsc::Receiver<Output>,
    emptied: mpsc::Sender<Output>,
    stop: Arc<watch::Sender<bool>>,
    unwritten: Arc<AtomicU64>,
) -> anyhow::Result<oneshot::Receiver<anyhow::Result<()>>> {
    let (done, written) = oneshot::channel();
    std::thread::Builder::new()
        .name("portwatch-write".to_owned())
        .spawn(move || {
            let result = loop {
                let Some(mut output) = outputs.blocking_recv() else {
                    break Ok(());
                };
                match writer.write(&output) {
                    Ok(Reader::Reads) => {}
                    Ok(Reader::Gone) => break Ok(()),
                    Err(error) => break Err(error),
                }
                unwritten.fetch_sub(output.events, Ordering::Relaxed);
                output.clear();
                // There is always room.
                let _ = emptied.try_send(output);
            };
            unwritten.store(0, Ordering::Relaxed);
            let _ = stop.send(true);
            let _ = done.send(result);
        })
        .context("starting the writing stage")?;
    Ok(written)
}

/// Whether somebody still reads standard output.
enum Reader {
    Reads,
    Gone,
}

/// The writing stage.
pub(super) struct Writer {
    /// The file for JSON, and how it is called.
    pub(super) file: Option<(PathBuf, File)>,
}

impl Writer {
    fn write(&mut self, output: &Output) -> anyhow::Result<Reader> {
        tell(&output.told);
        if let Some((path, file)) = &mut self.file {
            write_whole(file, &output.file)
                .with_context(|| format!("cannot write to {}", path.display()))?;
        }
        match write_out(&output.screen) {
            Ok(()) => Ok(Reader::Reads),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
            Err(error) => Err(error).context("cannot write to standard output"),
        }
    }
}

fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Writes all of it, or as many whole lines as there is room for: no half a line is left behind on a
/// full disk.
fn write_whole(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let begin = file.stream_position().ok();
    let mut written = 0;
    while written < bytes.len() {
        let error = match file.write(&bytes[written..]) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(count) => {
                written += count;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => error,
        };
        let whole = bytes[..written].iter().rposition(|byte| *byte == b'\n');
        if let Some(begin) = begin {
            // What is not a regular file cannot be shortened.
            let _ = file.set_len(begin + whole.map_or(0, |newline| newline as u64 + 1));
        }
        return Err(error);
    }
    Ok(())
}

/// Tells something on standard error.
fn tell(lines: &str) {
    // Nothing can be told where standard error is closed.
    let _ = io::stderr().lock().write_all(lines.as_bytes());
}
