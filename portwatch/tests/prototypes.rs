//! The prototypes written above the hooks of the kernel side, against those of the running kernel.
//!
//! Where a function differs between versions each form is written out; one of them has to be the
//! kernel's. Where there are several functions the hook is at the first that the kernel has. One
//! that this kernel does not have is for the backends to cope with.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::path::Path;

use portwatch::kernel::btf::{self, Btf};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../portwatch-ebpf/src");

/// What is written above a hook: functions and their forms, as BTF tells them.
type Claim = Vec<(String, String)>;

/// What is written above each hook.
fn claims(sources: &Path) -> BTreeSet<Claim> {
    let mut claims = BTreeSet::new();
    for entry in std::fs::read_dir(sources).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let comments: Vec<_> = text
            .lines()
            .map(|line| line.trim_start().strip_prefix("///").unwrap_or("\n"))
            .collect();
        // A comment ends with the line that is none; what is in code form stands between ticks.
        for comment in comments.join("").split('\n') {
            let code = comment.split('`').skip(1).step_by(2);
            let claim: Claim = code.filter_map(parse).collect();
            if !claim.is_empty() {
                claims.insert(claim);
            }
        }
    }
    claims
}

/// The name and the prototype without names of a declaration like `int f(struct sock *sk)`.
fn parse(code: &str) -> Option<(String, String)> {
    let (head, params) = code.strip_suffix(')')?.split_once('(')?;
    let (result, name) = declared(head)?;
    if result.is_empty() || result == "struct" {
        return None;
    }
    let params: Option<Vec<_>> = match params {
        "" | "void" => Some(vec!["void".to_owned()]),
        params => params
            .split(", ")
            .map(|param| Some(declared(param)?.0))
            .collect(),
    };
    let space = if result.ends_with('*') { "" } else { " " };
    let prototype = format!("{result}{space}({})", params?.join(", "));
    Some((name.to_owned(), prototype))
}

/// The type and the name of `const struct sock *sk`; the type as BTF spells it.
fn declared(text: &str) -> Option<(String, &str)> {
    let letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let name = text.rsplit(|character| !letter(character)).next()?;
    let kind = text.strip_suffix(name)?.trim_end();
    let of_letters = kind
        .chars()
        .all(|character| letter(character) || matches!(character, ' ' | '*'));
    if name.is_empty() || !of_letters {
        return None;
    }
    let spelled = match kind {
        "long" => "long int",
        "unsigned long" => "long unsigned int",
        "short" => "short int",
        "unsigned short" => "short unsigned int",
        other => other,
    };
    Some((spelled.to_owned(), name))
}

/// The kernel's form: of a tracepoint, or else of a function.
fn actual(btf: &Btf, name: &str) -> Option<String> {
    btf.tracepoint(name).map_or_else(
        || btf.prototype(name),
        |tracepoint| Some(format!("void ({})", tracepoint.args.join(", "))),
    )
}

#[test]
fn those_of_this_kernel_are_as_written() {
    let path = Path::new(btf::VMLINUX);
    if !path.exists() {
        println!(
            "SKIP: those_of_this_kernel_are_as_written: there is no {}",
            path.display()
        );
        return;
    }
    let btf = Btf::from_path(path).unwrap();
    let mut wrong = Vec::new();
    let mut right = 0;
    for claim in claims(Path::new(SOURCES)) {
        let hooked = claim
            .iter()
            .find_map(|(name, _)| Some((name, actual(&btf, name)?)));
        match hooked {
            None => println!("not in this kernel: {claim:?}"),
            Some(hooked)
                if claim
                    .iter()
                    .any(|(name, form)| hooked == (name, form.clone())) =>
            {
                right += 1;
            }
            Some((name, actual)) => {
                wrong.push(format!("{name} is {actual}, written is {claim:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(right >= 10, "only {right} were found");
}

#[test]
fn declarations_are_read() {
    let read = |code| parse(code).map(|(name, prototype)| format!("{name}: {prototype}"));
    assert_eq!(
        read("int f(const struct sock *sk, unsigned short num)").unwrap(),
        "f: int (const struct sock *, short unsigned int)"
    );
    assert_eq!(
        read("struct file *f(void)").unwrap(),
        "f: struct file *(void)"
    );
    for other in ["f", "f()", "a.b(c)", "sizeof(int)", "|x| f(x)", "&f(x)"] {
        assert_eq!(read(other), None, "{other}");
    }
}
