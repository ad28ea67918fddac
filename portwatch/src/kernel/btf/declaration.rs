//! Types written out as C, for diagnostics and for checks against documented prototypes.

use super::{Btf, Kind, MAX_DEPTH, Type};

/// How many types one declaration may go through; the longest of a kernel takes some hundred.
const MAX_STEPS: u32 = 4096;

impl Btf {
    /// The type `id` as C, without a name: `const struct cred *`, `char[16]`, `int (struct sock *, int)`.
    ///
    /// What is broken is written `?`, what goes on for too long ends in `…`.
    pub(super) fn declaration(&self, id: u32) -> String {
        self.declare(id, MAX_DEPTH, &mut { MAX_STEPS })
    }

    /// Goes from the name, which is left out, outwards, as one reads C: `inner` is what stands where the name would.
    fn declare(&self, id: u32, depth: u32, steps: &mut u32) -> String {
        let mut inner = String::new();
        let mut qualifiers: Vec<&str> = Vec::new();
        let mut id = id;
        let base = loop {
            if *steps == 0 || depth == 0 {
                break "…".to_owned();
            }
            *steps -= 1;
            if id == 0 {
                break "void".to_owned();
            }
            let Ok(ty) = self.get(id) else {
                break "?".to_owned();
            };
            match ty.kind {
                Kind::Const => qualifiers.push("const"),
                Kind::Volatile => qualifiers.push("volatile"),
                Kind::Restrict => qualifiers.push("restrict"),
                Kind::TypeTag => {}
                Kind::Ptr => {
                    let space = if qualifiers.is_empty() || inner.is_empty() {
                        ""
                    } else {
                        " "
                    };
                    inner = format!("*{}{space}{inner}", qualifiers.join(" "));
                    qualifiers.clear();
                }
                Kind::Array => {
                    let Ok((element, count)) = self.array(ty) else {
                        break "?".to_owned();
                    };
                    inner = format!("{}[{count}]", parenthesized(inner));
                    id = element;
                    continue;
                }
                Kind::FuncProto => {
                    let params = self.parameters(ty, depth, steps);
                    inner = format!("{}({params})", parenthesized(inner));
                }
                _ => break self.base(ty),
            }
            id = ty.word;
        };
        qualifiers.push(&base);
        let mut text = qualifiers.join(" ");
        if !inner.is_empty() && !inner.starts_with('[') {
            text.push(' ');
        }
        text + &inner
    }

    fn parameters(&self, prototype: Type, depth: u32, steps: &mut u32) -> String {
        let Some((params, variadic)) = self.params(prototype) else {
            return "?".to_owned();
        };
        let mut list = Vec::new();
        for id in params {
            if *steps == 0 {
                list.push("…".to_owned());
                break;
            }
            list.push(self.declare(id, depth - 1, steps));
        }
        if variadic {
            list.push("...".to_owned());
        }
        if list.is_empty() {
            list.push("void".to_owned());
        }
        list.join(", ")
    }

    /// A type that is named rather than built: `struct sock`, `u32`.
    fn base(&self, ty: Type) -> String {
        let word = match ty.kind {
            Kind::Struct => "struct ",
            Kind::Union => "union ",
            Kind::Fwd if ty.flag => "union ",
            Kind::Fwd => "struct ",
            Kind::Enum | Kind::Enum64 => "enum ",
            _ => "",
        };
        let name = String::from_utf8_lossy(self.string(ty.name));
        if name.is_empty() {
            format!("{word}{{…}}")
        } else {
            format!("{word}{name}")
        }
    }
}

/// A pointer to an array or function binds less tightly than what follows it.
fn parenthesized(inner: String) -> String {
    if inner.starts_with('*') {
        format!("({inner})")
    } else {
        inner
    }
}
