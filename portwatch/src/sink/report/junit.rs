//! A report as JUnit XML, as the test views of CI services read it: a case for each finding that
//! there can be, and a failure for each that there is.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event as Xml};

use super::{left_container, left_process, left_timewait, name, refused, risk, title};
use crate::report::{Finding, Report};
use crate::sink::escape::escape;

/// A case with its failures: what it is called, and what each one says.
struct Case {
    name: String,
    failures: Vec<(String, String)>,
}

/// The report as a document.
///
/// # Errors
///
/// None: writing to memory cannot fail.
pub fn render(report: &Report) -> io::Result<Vec<u8>> {
    let cases = cases(report);
    let failed = cases
        .iter()
        .filter(|case| !case.failures.is_empty())
        .count();
    let duration = report.job.as_ref().map_or(0, |job| job.duration_ms);
    let seconds = format!("{}.{:03}", duration / 1000, duration % 1000);
    let (tests, failed) = (cases.len().to_string(), failed.to_string());
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Xml::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    writer
        .create_element("testsuites")
        .write_inner_content(|writer| {
            writer
                .create_element("testsuite")
                .with_attributes([
                    ("name", "portwatch"),
                    ("tests", &*tests),
                    ("failures", &*failed),
                    ("errors", "0"),
                    ("skipped", "0"),
                    ("time", &*seconds),
                ])
                .write_inner_content(|writer| {
                    cases.iter().try_for_each(|case| write(writer, case))
                })?;
            Ok(())
        })?;
    let mut document = writer.into_inner();
    document.push(b'\n');
    Ok(document)
}

fn write(writer: &mut Writer<Vec<u8>>, case: &Case) -> io::Result<()> {
    let element = writer
        .create_element("testcase")
        .with_attributes([("classname", "portwatch"), ("name", &*case.name)]);
    if case.failures.is_empty() {
        element.write_empty()?;
        return Ok(());
    }
    element.write_inner_content(|writer| {
        for (message, text) in &case.failures {
            writer
                .create_element("failure")
                .with_attribute(("message", &**message))
                .write_text_content(BytesText::new(text))?;
        }
        Ok(())
    })?;
    Ok(())
}

fn cases(report: &Report) -> Vec<Case> {
    let left = report.left_behind.as_ref();
    let conflicts = report
        .refusals
        .iter()
        .filter(|refusal| refusal.is_conflict());
    let conflicts = conflicts.map(|refusal| {
        let mut lines = vec![refused(refusal)];
        if refusal.count > 1 {
            lines.push(format!("{} times", refusal.count));
        }
        if let Some(conflict) = &refusal.conflict {
            lines.push(format!("{}: {}", conflict.cause.id(), conflict.summary));
            lines.push(conflict.advice.clone());
        }
        (title(refusal), lines)
    });
    let processes = left.map_or(&[][..], |left| &left.processes);
    let processes = processes.iter().map(|left| {
        let message = format!("{}[{}]", left.process.comm, left.process.pid);
        (message, vec![left_process(left)])
    });
    let containers = left.map_or(&[][..], |left| &left.containers);
    let containers = containers.iter().map(|left| {
        let name = left.container.short_name();
        (format!("container {name}"), vec![left_container(left)])
    });
    let timewaits = left.map_or(&[][..], |left| &left.timewaits);
    let timewaits = timewaits.iter().map(|left| {
        let message = format!("TIME_WAIT on port {}", left.port);
        (message, vec![left_timewait(left)])
    });
    let risks = report.risks.iter();
    let risks = risks.map(|one| (format!("port {}", one.port), vec![risk(one)]));
    let shown = |(message, lines): (String, Vec<String>)| {
        // Characters that XML cannot have are escaped on the way.
        let lines: Vec<_> = lines.iter().map(|line| escape(line)).collect();
        (escape(&message).into_owned(), lines.join("\n"))
    };
    let case = |finding, failures| Case {
        name: name(finding).to_owned(),
        failures,
    };
    vec![
        case(Finding::Conflict, conflicts.map(shown).collect()),
        case(
            Finding::Leak,
            processes
                .chain(containers)
                .chain(timewaits)
                .map(shown)
                .collect(),
        ),
        case(Finding::FlakeRisk, risks.map(shown).collect()),
    ]
}
