//! What an object of the kernel side consists of, by name: sections, programs,
//! maps and globals.
//!
//! Only what the sources name: which functions are left after inlining (in
//! `.text`), and so which relocations, is for each compiler to choose.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// The parts of an object, a line for each.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape(BTreeSet<String>);

impl Shape {
    /// Reads it from an object's bytes.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let file = object::File::parse(bytes).context("the object is no ELF file")?;
        let mut parts = BTreeSet::new();
        for section in file.sections() {
            let name = section.name()?;
            if !is_compilers_own(name) {
                parts.insert(format!("section {name}"));
            }
        }
        for symbol in file.symbols().filter(ObjectSymbol::is_global) {
            let Some(index) = symbol.section_index() else {
                continue;
            };
            let section = file.section_by_index(index)?;
            let section = section.name()?;
            if is_compilers_own(section) {
                continue;
            }
            let word = match (symbol.kind(), section) {
                (SymbolKind::Text, _) => "program",
                (_, "maps" | ".maps") => "map",
                _ => "global",
            };
            parts.insert(format!("{word} {} in {section}", symbol.name()?));
        }
        Ok(Self(parts))
    }

    /// Whether it has a section of this name.
    pub fn has_section(&self, name: &str) -> bool {
        self.0.contains(&format!("section {name}"))
    }

    /// How many programs it has that the kernel could load, functions called
    /// by them aside.
    pub fn programs(&self) -> usize {
        self.0
            .iter()
            .filter(|part| part.starts_with("program ") && !part.ends_with(" in .text"))
            .count()
    }

    /// How many maps it has.
    pub fn maps(&self) -> usize {
        self.0
            .iter()
            .filter(|part| part.starts_with("map "))
            .count()
    }

    /// What only one of the two has, a line for each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let gone = self.0.difference(&other.0).map(|part| format!("- {part}"));
        let new = other.0.difference(&self.0).map(|part| format!("+ {part}"));
        gone.chain(new).collect()
    }
}

fn is_compilers_own(section: &str) -> bool {
    section.is_empty()
        || section == ".text"
        || [".rel", ".rodata.", ".str", ".symtab"]
            .iter()
            .any(|start| section.starts_with(start))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Shape, is_compilers_own};

    fn shape(parts: &[&str]) -> Shape {
        Shape(
            parts
                .iter()
                .map(|part| (*part).to_owned())
                .collect::<BTreeSet<_>>(),
        )
    }

    #[test]
    fn parts_are_counted_by_kind() {
        let shape = shape(&[
            "section .BTF",
            "program bind in tp_btf/x",
            "map EVENTS in .maps",
        ]);
        assert_eq!((shape.programs(), shape.maps()), (1, 1));
        assert!(shape.has_section(".BTF") && !shape.has_section(".BTF.ext"));
    }

    #[test]
    fn differences_name_both_sides() {
        let (old, new) = (
            shape(&["map A in .maps", "map B in .maps"]),
            shape(&["map B in .maps", "section x"]),
        );
        assert_eq!(old.differences(&new), ["- map A in .maps", "+ section x"]);
        assert!(old.differences(&old).is_empty());
    }

    #[test]
    fn what_the_sources_name_counts() {
        for section in [
            "",
            ".text",
            ".relkprobe/x",
            ".rel.BTF",
            ".rodata.cst16",
            ".strtab",
        ] {
            assert!(is_compilers_own(section), "{section}");
        }
        for section in [".rodata", ".BTF", ".maps", "tp_btf/x", "license", ".bss"] {
            assert!(!is_compilers_own(section), "{section}");
        }
    }

    #[test]
    fn something_else_than_elf_is_refused() {
        assert_eq!(
            Shape::read(b"not an object").unwrap_err().to_string(),
            "the object is no ELF file"
        );
    }
}
