//! One iterator of the kernel side, read without anything else being loaded or attached.
//!
//! aya's loader reads all of the kernel's types for itself, and again to attach
//! by them: most of what a short command would take. Here they are read once.
//! Parsing and relocating the object is left to `aya-obj`; what remains are
//! five commands of bpf(2), with the attributes of include/uapi/linux/bpf.h.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::Context as _;
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_map_type, bpf_prog_type};
use aya_obj::{EbpfSectionKind, Map, Object};

use super::bpf::{self, address, bpf, make, number, zeroed};
use super::btf::{self, Btf};
use super::layout::Layout;
use super::settings::{self, Timers};
use super::side::{OBJECT, unlock_memory};

/// Entries of a map that is only there because the program names it. As bytes of a ring buffer it
/// is a multiple of each architecture's page.
const LEAST_RING: u32 = 64 << 10;

/// Loads the program of this name, an iterator of this kind (`task_file`), and reads what it writes.
///
/// # Errors
///
/// If the kernel's types cannot be read, or the kernel refuses.
pub(super) fn read(program: &str, kind: &str) -> anyhow::Result<Vec<u8>> {
    let types = Btf::from_path(Path::new(btf::VMLINUX))?;
    let target = format!("bpf_iter_{kind}");
    let target = types
        .function(&target)
        .with_context(|| format!("this kernel has no {target}"))?
        .id;
    let mut object = Object::parse(OBJECT)?;
    set_globals(&mut object, &types)?;
    drop(types);
    object.programs.retain(|name, _| name == program);

    unlock_memory();
    let maps = std::mem::take(&mut object.maps);
    let mut made = Vec::with_capacity(maps.len());
    for (name, mut map) in maps {
        let descriptor = create(&mut map).with_context(|| format!("creating the map {name}"))?;
        made.push((name, descriptor, map));
    }
    let sections: HashSet<_> = (object.functions.keys())
        .map(|(section, _)| *section)
        .collect();
    let maps = (made.iter()).map(|(name, descriptor, map)| (&**name, descriptor.as_raw_fd(), map));
    object.relocate_maps(maps, &sections)?;
    object.relocate_calls(&sections)?;
    let code = (object.programs.get(program))
        .and_then(|program| object.functions.get(&program.function_key()))
        .with_context(|| format!("there is no program {program} in the object"))?;

    let program = bpf::load(&code.instructions, &object.license, |program| {
        program.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
        program.expected_attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
        program.attach_btf_id = target;
    })
    .context("loading it")?;
    let link = attach(&program).context("attaching it")?;
    let mut bytes = Vec::new();
    open(&link)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .context("reading it")?;
    Ok(bytes)
}

fn set_globals(object: &mut Object, types: &Btf) -> anyhow::Result<()> {
    let layout = Layout::resolve(types)?;
    let settings = settings::resolve(types);
    let small = settings.iter().map(|(name, value)| (*name, value));
    let small =
        (layout.iter().chain(small)).map(|(name, value)| (name, value.to_ne_bytes().to_vec()));
    // No timer concerns it.
    let timers = Timers::default().settings().into_iter();
    let large = timers.map(|(name, value)| (name, value.to_ne_bytes().to_vec()));
    let values: HashMap<_, _> = small.chain(large).collect();
    let globals = values.iter().map(|(name, value)| (*name, (&**value, true)));
    object.patch_map_data(globals.collect())?;
    Ok(())
}

/// Creates a map: one of data as it is, any other with as little room as may be.
fn create(map: &mut Map) -> io::Result<OwnedFd> {
    let is_data = matches!(
        map.section_kind(),
        EbpfSectionKind::Rodata | EbpfSectionKind::Data | EbpfSectionKind::Bss
    );
    if !is_data {
        let ring = map.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
        map.set_max_entries(if ring { LEAST_RING } else { 1 });
    }
    let mut attributes = zeroed();
    attributes.__bindgen_anon_1.map_type = map.map_type();
    attributes.__bindgen_anon_1.key_size = map.key_size();
    attributes.__bindgen_anon_1.value_size = map.value_size();
    attributes.__bindgen_anon_1.max_entries = map.max_entries();
    attributes.__bindgen_anon_1.map_flags = map.map_flags();
    let descriptor = make(bpf_cmd::BPF_MAP_CREATE, &mut attributes)?;
    if is_data {
        fill(&descriptor, map)?;
    }
    Ok(descriptor)
}

/// Writes data into its map. Read-only data is frozen: only then are its values constants to the
/// verifier.
fn fill(descriptor: &OwnedFd, map: &Map) -> io::Result<()> {
    let key = 0_u32;
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = number(descriptor);
    attributes.__bindgen_anon_2.key = address(&raw const key);
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = address(map.data().as_ptr());
    if map.section_kind() != EbpfSectionKind::Bss {
        bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes)?;
    }
    if map.section_kind() == EbpfSectionKind::Rodata {
        let mut attributes = zeroed();
        attributes.__bindgen_anon_2.map_fd = number(descriptor);
        bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attributes)?;
    }
    Ok(())
}

fn attach(program: &OwnedFd) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.link_create.__bindgen_anon_1.prog_fd = number(program);
    attributes.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    make(bpf_cmd::BPF_LINK_CREATE, &mut attributes)
}

fn open(link: &OwnedFd) -> io::Result<File> {
    let mut attributes = zeroed();
    attributes.iter_create.link_fd = number(link);
    make(bpf_cmd::BPF_ITER_CREATE, &mut attributes).map(File::from)
}
