//! Where a member lies in a struct, and how large a type is.

use super::{Btf, BtfError, Kind, MAX_DEPTH, Type};

/// How many members one question may look at; the largest struct of a kernel has some hundred.
const MAX_STEPS: u32 = 1 << 16;

/// Where a member lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the beginning of the type; of a bitfield, the byte that holds it.
    pub offset: u32,
    /// Of a bitfield: how far up from the lowest bit of its byte it begins, and its width, both in bits.
    pub bits: Option<(u8, u8)>,
    /// Size of its type in bytes; 0 for an array without a length.
    pub size: u32,
    /// Its type as C, for diagnostics.
    pub type_name: String,
}

/// One step of a path.
#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Member(&'a str),
    Element(u32),
}

/// A place within a type, while a path is followed.
#[derive(Clone, Copy)]
struct Place {
    /// From the beginning of the type, in bits.
    bit: u64,
    id: u32,
    /// Width in bits, of a bitfield.
    width: Option<u8>,
}

impl Btf {
    /// Where `path` lies in the struct, union or typedef `type_name`; `None` where the kernel does not have it.
    ///
    /// A path is like `member.member[2]`. It goes through typedefs,
    /// qualifiers, anonymous structs and unions and arrays, never through a
    /// pointer. `[n]` is the n-th element of an array; one past its end does
    /// not exist, unless the array has no length.
    ///
    /// # Errors
    ///
    /// A path that cannot be read; a bitfield that does not lie within one
    /// byte; types of the same name that do not agree, which libbpf's
    /// `bpf_core_calc_relo_insn` refuses too; BTF that is broken.
    pub fn field(&self, type_name: &str, path: &str) -> Result<Option<Field>, BtfError> {
        let steps = steps(path)?;
        let place = self.agreed(
            type_name,
            |ty| self.walk(ty, &steps),
            |a, b| (a.bit, a.width) == (b.bit, b.width),
        )?;
        place
            .map(|place| self.described_field(place, type_name, path))
            .transpose()
    }

    /// Size of a type in bytes, by its name; `None` where the kernel does not have it.
    ///
    /// # Errors
    ///
    /// Types of the same name that do not agree; BTF that is broken.
    pub fn size_of(&self, type_name: &str) -> Result<Option<u32>, BtfError> {
        let size = self.agreed(
            type_name,
            |ty| self.size(ty.id, MAX_DEPTH).map(Some),
            u64::eq,
        )?;
        size.map(|size| u32::try_from(size).map_err(|_| range(type_name)))
            .transpose()
    }

    /// What all types of this name answer, but for those that answer `None`.
    fn agreed<T>(
        &self,
        type_name: &str,
        answer: impl Fn(Type) -> Result<Option<T>, BtfError>,
        same: impl Fn(&T, &T) -> bool,
    ) -> Result<Option<T>, BtfError> {
        let mut agreed = None;
        for ty in self.named(type_name).filter(|ty| ty.kind != Kind::Func) {
            match (&agreed, answer(ty)?) {
                (None, found) => agreed = found,
                (Some(first), Some(found)) if !same(first, &found) => {
                    return Err(BtfError::Ambiguous(type_name.to_owned()));
                }
                _ => {}
            }
        }
        Ok(agreed)
    }

    fn described_field(
        &self,
        place: Place,
        type_name: &str,
        path: &str,
    ) -> Result<Field, BtfError> {
        let Place { bit, id, width } = place;
        let narrow =
            |bytes| u32::try_from(bytes).map_err(|_| range(&format!("{type_name}:{path}")));
        let offset = narrow(bit / 8)?;
        let shift = (bit % 8) as u8;
        let bits = match width {
            None if shift == 0 => None,
            Some(width @ 1..=8) if shift + width <= 8 => Some((shift, width)),
            _ => {
                return Err(BtfError::Bitfield {
                    type_name: type_name.to_owned(),
                    path: path.to_owned(),
                    bit,
                    width: width.unwrap_or_default(),
                });
            }
        };
        Ok(Field {
            offset,
            bits,
            size: narrow(self.size(id, MAX_DEPTH)?)?,
            type_name: self.declaration(id),
        })
    }

    fn walk(&self, ty: Type, steps: &[Step]) -> Result<Option<Place>, BtfError> {
        let mut place = Place {
            bit: 0,
            id: ty.id,
            width: None,
        };
        for step in steps {
            let Some(ty) = self.stripped(place.id)? else {
                return Ok(None);
            };
            let bit = place.bit;
            let next = match *step {
                Step::Member(name) if ty.kind.is_composite() => {
                    self.member(ty, name, MAX_DEPTH, &mut { MAX_STEPS })?
                }
                Step::Element(index) if ty.kind == Kind::Array => self.element(ty, index)?,
                _ => None,
            };
            let Some(next) = next else { return Ok(None) };
            place = Place {
                bit: bit.saturating_add(next.bit),
                ..next
            };
        }
        Ok(Some(place))
    }

    fn element(&self, array: Type, index: u32) -> Result<Option<Place>, BtfError> {
        let (id, count) = self.array(array)?;
        if count != 0 && index >= count {
            return Ok(None);
        }
        let size = self.size(id, MAX_DEPTH)?;
        Ok(Some(Place {
            bit: size.saturating_mul(8).saturating_mul(u64::from(index)),
            id,
            width: None,
        }))
    }

    /// A member of a struct or union, or of an anonymous one within it.
    fn member(
        &self,
        outer: Type,
        name: &str,
        depth: u32,
        steps: &mut u32,
    ) -> Result<Option<Place>, BtfError> {
        for member in self.members(outer) {
            *steps = steps.checked_sub(1).ok_or(BtfError::Nesting(outer.id))?;
            if self.is_spelled(member.name, name) {
                return self.bits_of(outer, member).map(Some);
            }
            if !self.string(member.name).is_empty() {
                continue;
            }
            let Some(ty) = self
                .stripped(member.id)?
                .filter(|ty| ty.kind.is_composite())
            else {
                continue;
            };
            if depth == 0 {
                return Err(BtfError::Nesting(outer.id));
            }
            if let Some(found) = self.member(ty, name, depth - 1, steps)? {
                return Ok(Some(Place {
                    bit: found.bit.saturating_add(u64::from(member.bit)),
                    ..found
                }));
            }
        }
        Ok(None)
    }

    /// The bits a member takes up.
    ///
    /// A struct with `kind_flag` says itself which members are bitfields. In
    /// one without, a bitfield's type is an integer that does not fill its
    /// bytes, or a whole one that does not begin at a byte
    /// (`btf_int_check_member` in kernel/bpf/btf.c, 6.18).
    fn bits_of(&self, outer: Type, member: super::Member) -> Result<Place, BtfError> {
        let mut place = Place {
            bit: u64::from(member.bit),
            id: member.id,
            width: member.width,
        };
        if outer.flag {
            return Ok(place);
        }
        if let Some(ty) = self.stripped(member.id)?.filter(|ty| ty.kind == Kind::Int) {
            let (offset, width) = self.integer(ty)?;
            place.bit += u64::from(offset);
            let whole = u64::from(width) == u64::from(ty.word) * 8;
            if !whole || !place.bit.is_multiple_of(8) {
                place.width = Some(width);
            }
        }
        Ok(place)
    }

    /// Size of the type `id` in bytes. A pointer's is this machine's: BTF does not tell.
    pub(super) fn size(&self, id: u32, depth: u32) -> Result<u64, BtfError> {
        let Some(ty) = self.stripped(id)? else {
            return Ok(0);
        };
        match ty.kind {
            Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Float => {
                Ok(u64::from(ty.word))
            }
            Kind::Ptr => Ok(size_of::<usize>() as u64),
            Kind::Array => {
                if depth == 0 {
                    return Err(BtfError::Nesting(id));
                }
                let (element, count) = self.array(ty)?;
                Ok(self
                    .size(element, depth - 1)?
                    .saturating_mul(u64::from(count)))
            }
            _ => Err(BtfError::Unsized(id)),
        }
    }
}

fn range(type_name: &str) -> BtfError {
    BtfError::Range {
        type_name: type_name.to_owned(),
    }
}

/// Takes a path like `a.b[2].c` apart.
fn steps(path: &str) -> Result<Vec<Step<'_>>, BtfError> {
    let broken = || BtfError::Path(path.to_owned());
    let mut steps = Vec::new();
    for part in path.split('.') {
        let mut pieces = part.split('[');
        let name = pieces.next().unwrap_or_default();
        if name.is_empty() || name.contains(']') {
            return Err(broken());
        }
        steps.push(Step::Member(name));
        for piece in pieces {
            let index = piece.strip_suffix(']').ok_or_else(broken)?;
            steps.push(Step::Element(index.parse().map_err(|_| broken())?));
        }
    }
    Ok(steps)
}
