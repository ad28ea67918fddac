//! What the running kernel's type information (BTF) says about its structs and functions.
//!
//! Rust emits no CO-RE relocations, so the offsets of kernel fields are looked
//! up here and handed to the kernel side as read-only values. The file is some
//! 5 MB with 130,000 types: one pass notes where each type begins and hashes
//! the names that can be asked for; everything else is followed when asked.
//!
//! The format is that of `include/uapi/linux/btf.h` and
//! `Documentation/bpf/btf.rst`. Nothing here loads a program or knows a field
//! by name, and no input makes it panic.

#[cfg(test)]
pub(crate) mod blob;
mod declaration;
mod excerpt;
mod field;
mod index;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use field::Field;
use index::Index;

/// Where a kernel with `CONFIG_DEBUG_INFO_BTF` keeps its type information.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
/// Length of the header up to `str_len`, in bytes. Later kernels append to it.
const HEADER_LEN: usize = 24;
/// Length of `struct btf_type`, in bytes.
const RECORD_LEN: usize = 12;
/// Longest name the kernel takes, in bytes: `KSYM_NAME_LEN`, by `__btf_name_valid` in kernel/bpf/btf.c (6.18).
const MAX_NAME: usize = 512;
/// How many modifiers, typedefs or nested types are followed before the blob is called broken.
const MAX_DEPTH: u32 = 64;

/// Why kernel type information could not be read, or a question to it not be answered.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error(
        "cannot read the kernel's type information from {}: the kernel must be built with CONFIG_DEBUG_INFO_BTF, and /sys be mounted",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file was read, but is not BTF this reader understands.
    #[error("cannot use the type information in {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<BtfError>,
    },
    /// Too short for a header.
    #[error("BTF is {0} bytes long, shorter than its header of {HEADER_LEN}")]
    Short(usize),
    /// Not BTF, or BTF of the other byte order.
    #[error("BTF begins with {0:#06x} instead of {MAGIC:#06x}")]
    Magic(u16),
    /// A version of the format that is not known.
    #[error("BTF has format version {0}, only {VERSION} is known")]
    Version(u8),
    /// The header or a section lies outside of the file.
    #[error("BTF's {section} ends at byte {end}, the file at {len}")]
    Section {
        /// `header`, `types`, `strings` or `layout`.
        section: &'static str,
        /// Where the section ends, in bytes.
        end: u64,
        /// Length of the whole, in bytes.
        len: usize,
    },
    /// The type section ends within a type.
    #[error("BTF type {0} runs past the end of the type section")]
    Truncated(u32),
    /// A kind that is not known, in a file that does not say how long it is.
    #[error(
        "BTF type {id} is of kind {kind}, which is not known: this kernel is newer than this reader"
    )]
    Kind {
        /// The type.
        id: u32,
        /// Number of its kind.
        kind: u8,
    },
    /// A name that lies outside of the string section or does not end.
    #[error(
        "the name at {name} of BTF type {id} does not end within {MAX_NAME} bytes of the string section"
    )]
    Name {
        /// The type.
        id: u32,
        /// Where in the string section the name is, in bytes.
        name: u32,
    },
    /// A reference to a type that is not there.
    #[error("BTF refers to type {0}, which it does not have")]
    Reference(u32),
    /// Types that contain each other, or do so too deeply.
    #[error("BTF type {0} is nested too deeply, or in itself")]
    Nesting(u32),
    /// A type whose size is asked for, but has none (a function).
    #[error("BTF type {0} has no size")]
    Unsized(u32),
    /// A path that cannot be read; its author is at fault, not the kernel.
    #[error("`{0}` is not a path like `member.member[0]`")]
    Path(String),
    /// An offset or a size beyond 32 bits.
    #[error("`{type_name}` reaches beyond 32 bits of bytes")]
    Range {
        /// The type, with the path into it if there is one.
        type_name: String,
    },
    /// A bitfield that does not lie within one byte.
    #[error(
        "the bitfield `{type_name}:{path}` of {width} bits, {bit} bits into the type, does not lie within one byte"
    )]
    Bitfield {
        /// The type.
        type_name: String,
        /// The member.
        path: String,
        /// Its offset, in bits.
        bit: u64,
        /// Its width, in bits.
        width: u8,
    },
    /// Several types have the name, and do not agree on the answer.
    #[error("the kernel has several types `{0}`, which do not agree")]
    Ambiguous(String),
}

/// What a record describes: `BTF_KIND_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    Datasec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
    /// One newer than this reader, whose length the file's layout section gives.
    Other,
}

impl Kind {
    fn new(number: u8) -> Self {
        match number {
            1 => Self::Int,
            2 => Self::Ptr,
            3 => Self::Array,
            4 => Self::Struct,
            5 => Self::Union,
            6 => Self::Enum,
            7 => Self::Fwd,
            8 => Self::Typedef,
            9 => Self::Volatile,
            10 => Self::Const,
            11 => Self::Restrict,
            12 => Self::Func,
            13 => Self::FuncProto,
            14 => Self::Var,
            15 => Self::Datasec,
            16 => Self::Float,
            17 => Self::DeclTag,
            18 => Self::TypeTag,
            19 => Self::Enum64,
            _ => Self::Other,
        }
    }

    /// What follows a record of this kind, in bytes: once, and per element.
    fn body(self) -> Option<(u8, u8)> {
        match self {
            Self::Ptr
            | Self::Fwd
            | Self::Typedef
            | Self::Volatile
            | Self::Const
            | Self::Restrict
            | Self::Func
            | Self::Float
            | Self::TypeTag => Some((0, 0)),
            Self::Int | Self::Var | Self::DeclTag => Some((4, 0)),
            Self::Array => Some((12, 0)),
            Self::Enum | Self::FuncProto => Some((0, 8)),
            Self::Struct | Self::Union | Self::Datasec | Self::Enum64 => Some((0, 12)),
            Self::Other => None,
        }
    }

    fn is_composite(self) -> bool {
        matches!(self, Self::Struct | Self::Union)
    }

    fn is_enum(self) -> bool {
        matches!(self, Self::Enum | Self::Enum64)
    }

    /// Whether the kind is but another name for, or a qualifier of, the type it refers to.
    fn is_transparent(self) -> bool {
        matches!(
            self,
            Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag
        )
    }

    /// Whether a type of this kind can be asked for by its name.
    fn is_indexed(self) -> bool {
        self.is_composite()
            || self.is_enum()
            || matches!(self, Self::Int | Self::Float | Self::Typedef | Self::Func)
    }
}

/// One record, `struct btf_type`.
#[derive(Clone, Copy, Debug)]
struct Type {
    id: u32,
    /// Where its name is in the string section; 0 if it has none.
    name: u32,
    /// The number of its kind.
    number: u8,
    kind: Kind,
    /// `kind_flag`.
    flag: bool,
    /// `vlen`: number of members, enumerators or parameters.
    len: u32,
    /// Size in bytes, or the type referred to: the kind decides.
    word: u32,
    /// Where in the type section its elements begin.
    body: usize,
}

impl Type {
    /// The record at `at`.
    ///
    /// `vlen` was 16 bits and the kind 5 until the bits between them, zero
    /// so far, were given to both in Linux 7.x (`BTF_INFO_VLEN`,
    /// `BTF_INFO_KIND`): the wider reading is right for both.
    fn read(types: &[u8], at: usize, id: u32) -> Option<Self> {
        let [name, info, word] = words(types, at)?;
        let number = (info >> 24 & 0x7f) as u8;
        Some(Self {
            id,
            name,
            number,
            kind: Kind::new(number),
            flag: info >> 31 == 1,
            len: info & 0xff_ffff,
            word,
            body: at + RECORD_LEN,
        })
    }
}

/// A member of a struct or union.
#[derive(Clone, Copy, Debug)]
struct Member {
    name: u32,
    id: u32,
    /// Its place in the struct, in bits.
    bit: u32,
    /// Width in bits of a bitfield that says so (`kind_flag`).
    width: Option<u8>,
}

/// A function of the kernel, `BTF_KIND_FUNC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its id, as `BPF_PROG_LOAD` wants it in `attach_btf_id`.
    pub id: u32,
    /// How many arguments it takes; the `...` of a variadic function is not counted.
    pub args: usize,
    /// Whether more may follow.
    pub variadic: bool,
}

/// What a raw tracepoint hands over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracepoint {
    /// The types of its arguments, as C. The `void *__data` before them is left out: a program does not see it.
    pub args: Vec<String>,
}

/// The types of a kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    types: Range<usize>,
    strings: Range<usize>,
    /// Where each type begins in the type section, in bytes; type 1 comes first.
    offsets: Vec<u32>,
    /// The types that have a name, or an enumerator of that name.
    index: Index,
}

impl Btf {
    /// Reads the file at `path`, usually [`VMLINUX`].
    ///
    /// # Errors
    ///
    /// Those of [`Btf::parse`], and that the file cannot be read; both name the file.
    pub fn from_path(path: &Path) -> Result<Self, BtfError> {
        let bytes = std::fs::read(path).map_err(|source| BtfError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(bytes).map_err(|error| BtfError::File {
            path: path.to_owned(),
            source: Box::new(error),
        })
    }

    /// Takes BTF of this machine's byte order: checks its header and where each type ends, and indexes the names.
    ///
    /// References between types are checked as they are followed.
    ///
    /// # Errors
    ///
    /// A header that is not BTF's, a section or a type beyond the end, a kind
    /// of unknown length, a name that does not end.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self, BtfError> {
        let bytes = bytes.into();
        let header = Header::read(&bytes)?;
        let types = bytes.get(header.types.clone()).unwrap_or_default();
        let strings = bytes.get(header.strings.clone()).unwrap_or_default();
        let layout = bytes.get(header.layout.clone()).unwrap_or_default();

        let mut offsets = Vec::with_capacity(types.len() / 32);
        let mut names = Vec::with_capacity(types.len() / 40);
        let mut at = 0;
        while at < types.len() {
            let id = offsets.len() as u32 + 1;
            let Some(ty) = Type::read(types, at, id) else {
                return Err(BtfError::Truncated(id));
            };
            let Some((once, each)) = ty.kind.body().or_else(|| described(layout, ty.number)) else {
                return Err(BtfError::Kind {
                    id,
                    kind: ty.number,
                });
            };
            let end = ty.body as u64 + u64::from(once) + u64::from(each) * u64::from(ty.len);
            if end > types.len() as u64 {
                return Err(BtfError::Truncated(id));
            }
            offsets.push(at as u32);

            let mut add = |name: u32| {
                let Some(text) = string(strings, name) else {
                    return Err(BtfError::Name { id, name });
                };
                if !text.is_empty() {
                    names.push(u64::from(hash(text)) << 32 | u64::from(id));
                }
                Ok(())
            };
            if ty.kind.is_indexed() {
                add(ty.name)?;
            }
            if ty.kind.is_enum() {
                let records = types.get(ty.body..end as usize).unwrap_or_default();
                for enumerator in records.chunks_exact(usize::from(each)) {
                    if let Some([name]) = words(enumerator, 0) {
                        add(name)?;
                    }
                }
            }
            at = end as usize;
        }
        Ok(Self {
            types: header.types,
            strings: header.strings,
            offsets,
            index: Index::new(&names),
            bytes,
        })
    }

    /// Whether there is a struct or union of this name, with its members known.
    #[must_use]
    pub fn has_struct(&self, name: &str) -> bool {
        self.named(name).any(|ty| ty.kind.is_composite())
    }

    /// Value of an enumerator, whichever enum it is in, anonymous ones included.
    ///
    /// Values of a 64-bit enum above `i64::MAX` come out negative. Before pahole
    /// 1.24 no 32-bit enum was marked as signed: its -1 comes out as `u32::MAX`.
    #[must_use]
    pub fn enum_value(&self, name: &str) -> Option<i64> {
        self.candidates(name).find_map(|ty| match ty.kind {
            Kind::Enum => self
                .elements::<2>(ty)
                .find(|[spelled, _]| self.is_spelled(*spelled, name))
                .map(|[_, value]| {
                    if ty.flag {
                        i64::from(value.cast_signed())
                    } else {
                        i64::from(value)
                    }
                }),
            Kind::Enum64 => self
                .elements::<3>(ty)
                .find(|[spelled, ..]| self.is_spelled(*spelled, name))
                .map(|[_, low, high]| (u64::from(high) << 32 | u64::from(low)).cast_signed()),
            _ => None,
        })
    }

    /// A function the kernel has type information for, and so one that fentry and fexit may attach to.
    ///
    /// The first of several of the same name; `None` too where its prototype is broken.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<Function> {
        let function = self.function_type(name)?;
        let (args, variadic) = self.params(self.get(function.word).ok()?)?;
        Some(Function {
            id: function.id,
            args: args.len(),
            variadic,
        })
    }

    /// Prototype of a function as C, without names: `int (struct sock *, int)`.
    #[must_use]
    pub fn prototype(&self, name: &str) -> Option<String> {
        Some(self.declaration(self.function_type(name)?.word))
    }

    /// What the raw tracepoint `name` hands over, from the typedef `btf_trace_<name>` of `include/trace/bpf_probe.h`.
    #[must_use]
    pub fn tracepoint(&self, name: &str) -> Option<Tracepoint> {
        let typedef = self
            .named(&format!("btf_trace_{name}"))
            .find(|ty| ty.kind == Kind::Typedef)?;
        let pointer = self.stripped(typedef.word).ok()??;
        if pointer.kind != Kind::Ptr {
            return None;
        }
        let (args, _) = self.params(self.stripped(pointer.word).ok()??)?;
        Some(Tracepoint {
            args: args
                .iter()
                .skip(1)
                .map(|id| self.declaration(*id))
                .collect(),
        })
    }

    fn function_type(&self, name: &str) -> Option<Type> {
        self.named(name).find(|ty| ty.kind == Kind::Func)
    }

    /// The types of a prototype's parameters, and whether `...` follows them: a last one without name and type.
    fn params(&self, prototype: Type) -> Option<(Vec<u32>, bool)> {
        if prototype.kind != Kind::FuncProto {
            return None;
        }
        let mut params: Vec<[u32; 2]> = self.elements(prototype).collect();
        let variadic = params.pop_if(|last| *last == [0, 0]).is_some();
        Some((params.iter().map(|[_, id]| *id).collect(), variadic))
    }

    /// The type `id`, but for 0, which is `void`.
    fn get(&self, id: u32) -> Result<Type, BtfError> {
        (id as usize)
            .checked_sub(1)
            .and_then(|index| self.offsets.get(index))
            .and_then(|at| Type::read(self.types(), *at as usize, id))
            .ok_or(BtfError::Reference(id))
    }

    /// What is behind the typedefs and qualifiers of `id`; `None` for `void`.
    fn stripped(&self, id: u32) -> Result<Option<Type>, BtfError> {
        let mut at = id;
        for _ in 0..MAX_DEPTH {
            if at == 0 {
                return Ok(None);
            }
            let ty = self.get(at)?;
            if !ty.kind.is_transparent() {
                return Ok(Some(ty));
            }
            at = ty.word;
        }
        Err(BtfError::Nesting(id))
    }

    /// The types that have this name, or an enumerator of this name, and some more perhaps; by id.
    fn candidates(&self, name: &str) -> impl Iterator<Item = Type> {
        let ids = self.index.ids(hash(name.as_bytes()));
        ids.filter_map(|id| self.get(id).ok())
    }

    /// The types of this name, by id.
    fn named(&self, name: &str) -> impl Iterator<Item = Type> {
        self.candidates(name)
            .filter(move |ty| self.is_spelled(ty.name, name))
    }

    /// A type's elements, each of `N` words.
    fn elements<const N: usize>(&self, ty: Type) -> impl Iterator<Item = [u32; N]> {
        (0..ty.len as usize).map_while(move |index| words(self.types(), ty.body + index * 4 * N))
    }

    fn members(&self, ty: Type) -> impl Iterator<Item = Member> {
        self.elements(ty).map(move |[name, id, offset]| {
            let (bit, width) = if ty.flag {
                (offset & 0xff_ffff, (offset >> 24) as u8)
            } else {
                (offset, 0)
            };
            Member {
                name,
                id,
                bit,
                width: (width != 0).then_some(width),
            }
        })
    }

    /// Element type and number of elements of an array.
    fn array(&self, ty: Type) -> Result<(u32, u32), BtfError> {
        let [element, _, count] = words(self.types(), ty.body).ok_or(BtfError::Truncated(ty.id))?;
        Ok((element, count))
    }

    /// The data of an integer: its offset and its width, in bits.
    fn integer(&self, ty: Type) -> Result<(u8, u8), BtfError> {
        let [data] = words(self.types(), ty.body).ok_or(BtfError::Truncated(ty.id))?;
        Ok(((data >> 16) as u8, data as u8))
    }

    fn types(&self) -> &[u8] {
        self.bytes.get(self.types.clone()).unwrap_or_default()
    }

    /// The name at `name` of the string section; empty where there is none.
    fn string(&self, name: u32) -> &[u8] {
        let strings = self.bytes.get(self.strings.clone()).unwrap_or_default();
        string(strings, name).unwrap_or_default()
    }

    fn is_spelled(&self, name: u32, text: &str) -> bool {
        self.string(name) == text.as_bytes()
    }
}

/// Where the sections are, from the beginning of the file.
struct Header {
    types: Range<usize>,
    strings: Range<usize>,
    /// Lengths of the kinds (`struct btf_layout`); empty before Linux 7.x.
    layout: Range<usize>,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, BtfError> {
        let short = || BtfError::Short(bytes.len());
        let &[m0, m1, version, _flags] = bytes.first_chunk().ok_or_else(short)?;
        let magic = u16::from_ne_bytes([m0, m1]);
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        if version != VERSION {
            return Err(BtfError::Version(version));
        }
        let [header, type_off, type_len, str_off, str_len] = words(bytes, 4).ok_or_else(short)?;
        if (header as usize) < HEADER_LEN {
            return Err(BtfError::Short(header as usize));
        }
        let section = |section, offset: u32, length: u32| {
            let start = u64::from(header) + u64::from(offset);
            let end = start + u64::from(length);
            if end > bytes.len() as u64 {
                return Err(BtfError::Section {
                    section,
                    end,
                    len: bytes.len(),
                });
            }
            Ok(start as usize..end as usize)
        };
        section("header", 0, 0)?;
        let layout = if header as usize >= HEADER_LEN + 8 {
            let [offset, length] = words(bytes, HEADER_LEN).ok_or_else(short)?;
            section("layout", offset, length)?
        } else {
            0..0
        };
        Ok(Self {
            types: section("types", type_off, type_len)?,
            strings: section("strings", str_off, str_len)?,
            layout,
        })
    }
}

/// What the layout section says follows a record of kind `number`, in bytes: once, and per element.
fn described(layout: &[u8], number: u8) -> Option<(u8, u8)> {
    if number == 0 {
        return None;
    }
    let entry = layout.get(usize::from(number) * 4..)?;
    let [once, each, ..] = *entry.first_chunk::<4>()?;
    Some((once, each))
}

/// The `N` words at `at`, in this machine's byte order.
fn words<const N: usize>(bytes: &[u8], at: usize) -> Option<[u32; N]> {
    let mut found = [0; N];
    let bytes = bytes.get(at..)?.get(..4 * N)?;
    for (word, chunk) in found.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*chunk);
    }
    Some(found)
}

/// The string at `at`, without its NUL.
fn string(strings: &[u8], at: u32) -> Option<&[u8]> {
    let rest = strings.get(at as usize..)?;
    let rest = rest.get(..=MAX_NAME).unwrap_or(rest);
    Some(CStr::from_bytes_until_nul(rest).ok()?.to_bytes())
}

/// A quick hash of a name; whoever finds one compares the names too.
fn hash(name: &[u8]) -> u32 {
    let (chunks, rest) = name.as_chunks::<8>();
    let mut tail = [0; 8];
    for (to, from) in tail.iter_mut().zip(rest) {
        *to = *from;
    }
    let hash = chunks.iter().chain([&tail]).fold(0u64, |hash, chunk| {
        (hash.rotate_left(5) ^ u64::from_ne_bytes(*chunk)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    (hash >> 32) as u32
}
