//! `portwatch explain`, and `docs/causes/`, which has its pages.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use portwatch::diagnose::page::{list, render};
use portwatch::event::Cause;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/causes");

/// The files, by their names.
fn files() -> BTreeMap<String, String> {
    let mut index = "# Why a bind or a listen fails\n\n\
        `portwatch explain CAUSE` prints these pages. They are made from \
        `portwatch/src/diagnose/pages/`:\nafter a change there run \
        `UPDATE_CAUSES=1 cargo test -p portwatch --test causes`.\n\n\
        | cause | what happened |\n|---|---|\n"
        .to_owned();
    for cause in Cause::ALL {
        let (id, gist) = (cause.id(), cause.gist());
        writeln!(index, "| [{id}]({id}.md) | {gist} |").unwrap();
    }
    let pages = Cause::ALL
        .iter()
        .map(|cause| (format!("{}.md", cause.id()), cause.page().to_owned()));
    pages.chain([("README.md".to_owned(), index)]).collect()
}

#[test]
fn the_folder_has_the_pages() {
    let wanted = files();
    if std::env::var_os("UPDATE_CAUSES").is_some_and(|value| value == "1") {
        let _ = std::fs::remove_dir_all(FOLDER);
        std::fs::create_dir_all(FOLDER).unwrap();
        for (name, text) in &wanted {
            std::fs::write(Path::new(FOLDER).join(name), text).unwrap();
        }
    }
    let entries = std::fs::read_dir(FOLDER).unwrap();
    let found: BTreeMap<_, _> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            let text = std::fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), text)
        })
        .collect();
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>()
    );
    for (name, text) in wanted {
        assert!(
            found[&name] == text,
            "{name} is not what its source says; write it anew with UPDATE_CAUSES=1"
        );
    }
}

/// Exit status, standard output and standard error of `portwatch explain` with these arguments.
fn explain(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_portwatch"))
        .arg("explain")
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn a_page_is_printed_as_wide_as_80_columns() {
    let (status, page, told) = explain(&["time-wait"]);
    assert_eq!((status, told.as_str()), (Some(0), ""));
    assert_eq!(page, render(Cause::TimeWait.page(), 80));
}

#[test]
fn without_a_cause_all_are_listed() {
    let (status, all, told) = explain(&[]);
    assert_eq!((status, told.as_str()), (Some(0), ""));
    assert_eq!(all, list(80));
}

#[test]
fn an_unknown_cause_is_answered_with_the_nearest() {
    let (status, page, told) = explain(&["dualstack"]);
    assert_eq!((status, page.as_str()), (Some(2), ""));
    assert!(
        told.starts_with("error: invalid value 'dualstack'"),
        "{told}"
    );
    assert!(
        told.contains("a similar value exists: 'dual-stack'"),
        "{told}"
    );
}
