//! Where the measurements take place: namespaces of their own, one core for the
//! worker and one for the tool.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns, unshare};
use nix::unistd::{Pid, Uid};
use portwatch_tests::Netns;

/// Where tracefs belongs, and where bpftrace looks for it.
const TRACEFS: &str = "/sys/kernel/tracing";

/// What was found and made.
pub struct Environment {
    /// The cores that may be used.
    allowed: CpuSet,
    /// The core that the worker runs on.
    pub worker: usize,
    /// The core that the tools run on.
    pub tool: usize,
    /// How many cores there are.
    pub cores: usize,
    /// The processor, in its own words.
    pub model: String,
    /// The kernel's release.
    pub kernel: String,
    /// A folder in memory for what the tools print.
    pub outputs: PathBuf,
    /// Keeps the folder's mount point, which outlives the mount.
    _mount_point: tempfile::TempDir,
}

impl Drop for Environment {
    fn drop(&mut self) {
        // Else the folder could not be removed; a failure leaves an empty folder behind.
        let _ = umount2(&self.outputs, MntFlags::MNT_DETACH);
    }
}

/// Leaves the machine's namespaces, so that nothing of it is changed, and takes the tool's core.
pub fn enter() -> anyhow::Result<Environment> {
    ensure!(
        Uid::effective().is_root(),
        "needs root: it traces the whole system"
    );
    let netns = Netns::new();
    setns(netns.file(), CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
    unshare(CloneFlags::CLONE_NEWNS).context("leaving the mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("making the mounts private")?;
    if fs::read_dir(TRACEFS).is_ok_and(|mut entries| entries.next().is_none()) {
        mount(
            Some("tracefs"),
            TRACEFS,
            Some("tracefs"),
            MsFlags::empty(),
            none,
        )
        .context("mounting tracefs")?;
    }
    // In memory, lest a disk be measured.
    let mount_point = tempfile::tempdir()?;
    let outputs = mount_point.path();
    mount(
        Some("tmpfs"),
        outputs,
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .context("mounting a tmpfs")?;

    let allowed = sched_getaffinity(Pid::from_raw(0)).context("which cores are there")?;
    let cores: Vec<usize> = (0..CpuSet::count())
        .filter(|core| allowed.is_set(*core).unwrap_or(false))
        .collect();
    let worker = *cores.first().context("no core to run on")?;
    let tool = *cores.get(1).unwrap_or(&worker);
    // The tools inherit it; a worker takes its own.
    pin(tool)?;
    Ok(Environment {
        allowed,
        worker,
        tool,
        cores: cores.len(),
        model: model(),
        kernel: nix::sys::utsname::uname()?
            .release()
            .to_string_lossy()
            .into_owned(),
        outputs: outputs.to_owned(),
        _mount_point: mount_point,
    })
}

impl Environment {
    /// Does something that may use all cores.
    pub fn on_all_cores<T>(&self, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        sched_setaffinity(Pid::from_raw(0), &self.allowed).context("using all cores")?;
        let result = act();
        pin(self.tool)?;
        result
    }
}

/// Keeps this thread, and what it will start, on a core.
pub fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pinning to core {core}"))
}

/// The processor's name: of x86 the model, of others what there is.
fn model() -> String {
    let text = fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    ["model name", "Model", "CPU part"]
        .into_iter()
        .find_map(|key| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                (name.trim() == key).then(|| value.trim().to_owned())
            })
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
