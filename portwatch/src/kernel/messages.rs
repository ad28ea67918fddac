//! Development only: prints what the kernel side logs.

use std::thread;
use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{LevelFilter, Log, Metadata, Record};

/// Prints on standard error.
struct Print;

impl Log for Print {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        eprintln!(
            "portwatch: kernel side: {}: {}",
            record.level(),
            record.args()
        );
    }

    fn flush(&self) {}
}

/// Begins to print, in a thread of its own, for as long as the process lives.
///
/// # Errors
///
/// If the kernel side has no messages.
pub(super) fn print(ebpf: &mut Ebpf) -> Result<(), aya_log::Error> {
    log::set_max_level(LevelFilter::Debug);
    let mut messages = EbpfLogger::init_with_logger(ebpf, Print)?;
    thread::spawn(move || {
        loop {
            messages.flush();
            // Messages are looked for ten times a second: they have no reader to wake.
            thread::park_timeout(Duration::from_millis(100));
        }
    });
    Ok(())
}
