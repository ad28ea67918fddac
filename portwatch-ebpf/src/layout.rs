//! Offsets of kernel fields, and the only pointer arithmetic on kernel memory.
//!
//! The user side resolves the offsets from BTF before load. They are read-only
//! globals in a frozen map, so the verifier sees constants and drops the code
//! of absent fields.

use core::mem::MaybeUninit;

use aya_ebpf::{
    Global,
    helpers::{bpf_probe_read_user, generated},
};
use portwatch_common::field::{ABSENT, unpack};

macro_rules! globals {
    ($($name:ident: $kind:ident $policy:ident $path:literal,)*) => {$(
        #[doc = $path]
        #[unsafe(no_mangle)]
        pub static $name: Global<u32> = Global::new(ABSENT);
    )*};
}
portwatch_common::for_each_field!(globals);

macro_rules! settings {
    ($($(#[$meta:meta])* $name:ident: $type:ty,)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        pub static $name: Global<$type> = Global::new(0);
    )*};
}
portwatch_common::for_each_setting!(settings);

/// An address in kernel memory, of no type: which fields it has is for the caller to know.
pub type Address = u64;

/// The address of a field, or nothing if this kernel does not have it.
#[inline(always)]
pub fn address(base: Address, field: &Global<u32>) -> Option<Address> {
    let offset = field.load();
    (offset != ABSENT).then(|| base.wrapping_add(u64::from(offset)))
}

/// Reads a `T` at an address; all zero if it cannot be read.
///
/// Whether it could is not looked at, since the helper zeroes what it could
/// not read (`copy_from_kernel_nofault` failing in `bpf_probe_read_kernel_common`,
/// kernel/trace/bpf_trace.c, 5.10 to 7.3): every branch here would double the
/// paths that the verifier follows through all that comes behind.
#[inline(always)]
pub fn read_at<T: Copy + Default>(address: Address) -> T {
    let mut value = T::default();
    // SAFETY: `value` is writable for its length; the helper checks the source.
    unsafe {
        generated::bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
    }
    value
}

/// Reads a field; all zero if it is absent or cannot be read.
#[inline(always)]
pub fn read<T: Copy + Default>(base: Address, field: &Global<u32>) -> T {
    match address(base, field) {
        Some(address) => read_at(address),
        None => T::default(),
    }
}

/// Reads a field into place: a stack of 512 bytes has no room for large values in between.
#[inline(always)]
pub fn read_into<T: Copy>(into: &mut T, base: Address, field: &Global<u32>) {
    if let Some(address) = address(base, field) {
        // SAFETY: `into` is writable for its length; the helper checks the source,
        // and zeroes the destination when it fails.
        unsafe {
            generated::bpf_probe_read_kernel(
                core::ptr::from_mut(into).cast(),
                size_of::<T>() as u32,
                address as *const _,
            );
        }
    }
}

/// Reads a bitfield; 0 if it is absent or cannot be read.
#[inline(always)]
pub fn read_bits(base: Address, field: &Global<u32>) -> u32 {
    let packed = field.load();
    if packed == ABSENT {
        return 0;
    }
    let (offset, shift, width) = unpack(packed);
    let byte: u8 = read_at(base.wrapping_add(u64::from(offset)));
    u32::from(byte) >> shift & ((1 << width) - 1)
}

/// A struct of the kernel's, of which fields can be read.
pub trait Fields {
    /// What a pointer in it leads to.
    type Pointer: Place;

    /// A field; all zero if it is absent or cannot be read.
    fn get<T: Copy + Default>(&self, field: &Global<u32>) -> T;

    /// A bitfield, in the same way.
    fn bits(&self, field: &Global<u32>) -> u32;

    /// Where a pointer leads to, in the same way.
    fn follow(&self, field: &Global<u32>) -> Self::Pointer;
}

/// Where a struct of the kernel's lies.
pub trait Place: Fields<Pointer = Self> + Copy {
    /// Its address. Of a [`Typed`] place the verifier still knows the type: to calculate with it, or to
    /// hand it to a global function, it has to go through a map.
    fn address(self) -> Address;

    /// The beginning of the struct, with `place` on the stack for what has to be copied.
    fn head<'a, const WORDS: usize>(
        self,
        place: &'a mut MaybeUninit<[u64; WORDS]>,
    ) -> impl Fields<Pointer = Self> + 'a;
}

impl Fields for Address {
    type Pointer = Self;

    #[inline(always)]
    fn get<T: Copy + Default>(&self, field: &Global<u32>) -> T {
        read(*self, field)
    }

    #[inline(always)]
    fn bits(&self, field: &Global<u32>) -> u32 {
        read_bits(*self, field)
    }

    #[inline(always)]
    fn follow(&self, field: &Global<u32>) -> Self {
        read(*self, field)
    }
}

impl Place for Address {
    #[inline(always)]
    fn address(self) -> Address {
        self
    }

    #[inline(always)]
    fn head<'a, const WORDS: usize>(
        self,
        place: &'a mut MaybeUninit<[u64; WORDS]>,
    ) -> impl Fields<Pointer = Self> + 'a {
        Head::read(place, self)
    }
}

/// A place of which the verifier knows what struct it is: the argument of a program at a typed hook, or
/// where its pointers lead to. A field is a checked load, ten times as fast as the helper's read, zero
/// where there is nothing, and refused if it does not lie within that very struct: of a `struct sock`
/// none of a `struct inet_sock` around it. Only for fields that every kernel has: whether it is absent is
/// not looked at.
#[derive(Clone, Copy)]
pub struct Typed(*const u8);

impl Typed {
    /// The place that an argument points to. With one whose type the verifier does not know the program
    /// is refused.
    #[inline(always)]
    pub fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    #[inline(always)]
    fn load<T: Copy>(self, offset: u32) -> T {
        // SAFETY: the verifier has checked the type and the offset.
        unsafe { self.0.add(offset as usize).cast::<T>().read_volatile() }
    }
}

impl Fields for Typed {
    type Pointer = Self;

    #[inline(always)]
    fn get<T: Copy + Default>(&self, field: &Global<u32>) -> T {
        self.load(field.load())
    }

    #[inline(always)]
    fn bits(&self, field: &Global<u32>) -> u32 {
        let (offset, shift, width) = unpack(field.load());
        u32::from(self.load::<u8>(offset)) >> shift & ((1 << width) - 1)
    }

    #[inline(always)]
    fn follow(&self, field: &Global<u32>) -> Self {
        Self(self.load(field.load()))
    }
}

impl Place for Typed {
    #[inline(always)]
    fn address(self) -> Address {
        self.0 as Address
    }

    #[inline(always)]
    fn head<'a, const WORDS: usize>(
        self,
        _place: &'a mut MaybeUninit<[u64; WORDS]>,
    ) -> impl Fields<Pointer = Self> + 'a {
        self
    }
}

/// The beginning of a struct, read at once: the call of the helper is what a read costs.
///
/// Which fields lie in it differs from kernel to kernel. Offsets are constants to the verifier, so
/// that of each field only one way remains.
pub struct Head<'a, const WORDS: usize> {
    base: Address,
    words: &'a [u64; WORDS],
}

impl<'a, const WORDS: usize> Head<'a, WORDS> {
    /// Reads it into a place on the stack; all zero if it cannot be read.
    #[inline(always)]
    pub fn read(place: &'a mut MaybeUninit<[u64; WORDS]>, base: Address) -> Self {
        // SAFETY: the place is writable for its length; the helper checks the source, and zeroes
        // the destination when it fails.
        let words = unsafe {
            generated::bpf_probe_read_kernel(
                place.as_mut_ptr().cast(),
                size_of::<[u64; WORDS]>() as u32,
                base as *const _,
            );
            place.assume_init_ref()
        };
        Self { base, words }
    }

    #[inline(always)]
    fn at<T: Copy>(&self, offset: u32) -> Option<T> {
        let words = core::ptr::from_ref(self.words).cast::<u8>();
        // SAFETY: all of it lies within the words; fields are aligned in a struct, and the struct's
        // beginning is here.
        (offset as usize <= size_of::<[u64; WORDS]>() - size_of::<T>())
            .then(|| unsafe { words.add(offset as usize).cast::<T>().read_volatile() })
    }
}

/// What lies behind is read from the kernel by itself.
impl<const WORDS: usize> Fields for Head<'_, WORDS> {
    type Pointer = Address;

    #[inline(always)]
    fn get<T: Copy + Default>(&self, field: &Global<u32>) -> T {
        match self.at(field.load()) {
            Some(value) => value,
            None => read(self.base, field),
        }
    }

    #[inline(always)]
    fn bits(&self, field: &Global<u32>) -> u32 {
        let packed = field.load();
        let (offset, shift, width) = unpack(packed);
        match self.at::<u8>(offset) {
            Some(byte) if packed != ABSENT => u32::from(byte) >> shift & ((1 << width) - 1),
            _ => read_bits(self.base, field),
        }
    }

    #[inline(always)]
    fn follow(&self, field: &Global<u32>) -> Address {
        self.get(field)
    }
}

/// Reads a `T` at an address of the current task's memory.
#[inline(always)]
pub fn read_user<T: Copy>(address: Address) -> Option<T> {
    // SAFETY: bpf_probe_read_user checks the address and fails on a bad one.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// A type of plain integers, for which all zeros is a value.
///
/// # Safety
///
/// Every bit pattern is valid, and the size is a multiple of eight bytes.
pub unsafe trait Zeroed: Copy {}

// SAFETY: a struct of integers without padding.
unsafe impl Zeroed for portwatch_common::record::Socket {}
// SAFETY: a struct of integers without padding.
unsafe impl Zeroed for portwatch_common::record::Task {}
// SAFETY: a struct of integers without padding.
unsafe impl Zeroed for portwatch_common::record::Requested {}
// SAFETY: a struct of integers without padding.
unsafe impl Zeroed for portwatch_common::record::SnapshotEntry {}
// SAFETY: a struct of integers without padding.
unsafe impl Zeroed for portwatch_common::record::Timewait {}
// SAFETY: a struct of integers without padding.
unsafe impl Zeroed for portwatch_common::record::Holder {}
// SAFETY: a struct of integers without padding.
unsafe impl Zeroed for portwatch_common::map::Bound {}
// SAFETY: a struct of integers without padding.
unsafe impl Zeroed for portwatch_common::map::Call {}
// SAFETY: a struct of integers without padding.
unsafe impl Zeroed for portwatch_common::map::Walk {}
// SAFETY: a struct of integers without padding.
unsafe impl Zeroed for portwatch_common::record::Rewritten {}
// SAFETY: bytes.
unsafe impl<const N: usize> Zeroed for [u8; N] {}

/// Zeros in a place on the stack, to be filled in.
#[inline(always)]
pub fn zeroed<T: Zeroed>(place: &mut MaybeUninit<T>) -> &mut T {
    zero(place.as_mut_ptr());
    // SAFETY: all of it is zero, which is valid.
    unsafe { place.assume_init_mut() }
}

/// Writes zeros over a place, word by word: left to itself the compiler writes
/// bytes in a loop, which is slow to run and slow to verify. For the same
/// reason places are filled in and not returned.
///
/// `place` must be writable and aligned to eight bytes.
#[inline(always)]
pub fn zero<T: Zeroed>(place: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: promised by the caller; `word` is within the place.
        unsafe { place.cast::<u64>().add(word).write_volatile(0) };
    }
}
