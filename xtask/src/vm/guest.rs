//! A guest: qemu, what it prints, and its end.

use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::lock::Arch;
use crate::process::shown;

/// How long a guest may take. Five minutes are usual when all else is quiet.
pub const LIMIT: Duration = Duration::from_secs(1200);

/// The kernel's parameters: it ends with its first panic, its mitigations against processors' flaws
/// are dear where one is emulated, and the thread that RCU's grace periods wait for has the priority
/// of the tests. Softirqs are not run where an interrupt ends: on top of a program of a kprobe, the kernel
/// skips any other. That the timer ticks is not checked (x86): qemu may be kept waiting for longer than
/// the check is, and then 5.10 never boots.
const PARAMETERS: &str =
    "panic=-1 quiet mitigations=off rcutree.kthread_prio=1 threadirqs no_timer_check";

/// What is started.
pub struct Guest {
    /// Its processor.
    pub arch: Arch,
    /// The kernel's image.
    pub image: PathBuf,
    /// The first file system.
    pub initramfs: PathBuf,
    /// An image of another one, `/dev/nvme0n1`, which stays as it is: what the guest writes is gone
    /// with it.
    pub root: Option<PathBuf>,
    /// Where the kernel's messages go.
    pub console: PathBuf,
    /// What its clock goes by.
    pub clock: Clock,
}

/// What a guest's clock goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// This machine's.
    Real,
    /// A nanosecond for each instruction that the guest has executed.
    Instructions,
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Off,
    /// It was killed when its time was up.
    Killed,
}

impl End {
    /// In words.
    pub fn told(&self) -> &'static str {
        match self {
            Self::Off => "the guest ended",
            Self::Killed => "the guest was killed after its time limit",
        }
    }
}

impl Guest {
    /// Starts it and hands over each line that it prints on its second serial port.
    pub fn run(&self, limit: Duration, mut each: impl FnMut(&str)) -> Result<End> {
        let begin = Instant::now();
        let mut command = self.command();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot start `{}`", shown(&command)))?;
        let lines = lines(&mut child)?;
        let end = loop {
            match lines.recv_timeout(limit.saturating_sub(begin.elapsed())) {
                Ok(line) => each(&line),
                Err(RecvTimeoutError::Disconnected) => break End::Off,
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(error) = child.kill()
                        && error.kind() != ErrorKind::InvalidInput
                    {
                        return Err(error).context("killing qemu");
                    }
                    break End::Killed;
                }
            }
        };
        child.wait().context("waiting for qemu")?;
        Ok(end)
    }

    /// The last lines of the kernel's messages.
    pub fn console_tail(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Memory for several traces at a time, each with some 25 MB of maps, which the kernel gives back
    /// late; with a root file system, for daemons and their containers, whose files lie there. One processor: with two, about one boot in thirty dies under TCG.
    fn command(&self) -> Command {
        let mut command = Command::new(format!("qemu-system-{}", self.arch.name()));
        let port = match self.arch {
            Arch::X86_64 if self.clock == Clock::Real && has_kvm() => {
                command.args(["-accel", "kvm", "-cpu", "host", "-M", "q35"]);
                "ttyS0"
            }
            Arch::X86_64 => {
                // Without fast string instructions, which are emulated byte by byte and then are the
                // slowest way to clear or copy memory there is.
                command.args(["-accel", "tcg,thread=single", "-cpu", "max,-erms,-fsrm"]);
                command.args(["-M", "q35"]);
                "ttyS0"
            }
            Arch::Aarch64 => {
                command.args(["-accel", "tcg,thread=single", "-cpu", "cortex-a57"]);
                command.args(["-M", "virt"]);
                "ttyAMA0"
            }
        };
        command
            .args(["-m", if self.root.is_some() { "3072" } else { "1024" }])
            .args(["-smp", "1", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-monitor", "none", "-no-reboot"])
            .args(match self.clock {
                Clock::Real => &[][..],
                Clock::Instructions => &["-icount", "shift=0,sleep=off"],
            })
            .arg("-kernel")
            .arg(&self.image)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", &format!("console={port} {PARAMETERS}")])
            .arg("-serial")
            .arg(file_port(&self.console));
        if let Some(root) = &self.root {
            let file = root.to_string_lossy().replace(',', ",,");
            let drive = format!("if=none,id=root,format=raw,snapshot=on,file={file}");
            command.args(["-drive", &drive]);
            // Its driver is no module.
            command.args(["-device", "nvme,drive=root,serial=root"]);
        }
        match self.arch {
            Arch::X86_64 => command.args(["-serial", "stdio"]),
            // The machine has one serial port; the driver of another kind would be a module.
            Arch::Aarch64 => command.args([
                "-chardev",
                "stdio,id=results,signal=off",
                "-device",
                "pci-serial,chardev=results",
            ]),
        };
        command
    }
}

/// The second serial port, as the guest calls it.
pub fn result_port(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "/dev/ttyS1",
        Arch::Aarch64 => "/dev/ttyS0",
    }
}

fn file_port(path: &Path) -> String {
    // A comma ends a value in qemu's options, two are one.
    format!("file:{}", path.to_string_lossy().replace(',', ",,"))
}

/// Whether KVM works: where its module is missing, opening it makes qemu hang.
fn has_kvm() -> bool {
    let module = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|name| Path::new("/sys/module").join(name).exists());
    let device = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    module && device.is_ok()
}

/// The lines of a child's output, read beside it.
fn lines(child: &mut Child) -> Result<std::sync::mpsc::Receiver<String>> {
    let output = child.stdout.take().context("qemu has no output")?;
    let (say, said) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if say.send(line.trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    Ok(said)
}
