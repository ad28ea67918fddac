//! By what a container is known to be of the job that is watched, though its processes descend from a
//! daemon's.
//!
//! Pure: what is known of the job and of the container is handed in.

use std::path::{Path, PathBuf};

use super::container::Named;
use crate::event::{Membership, Time};

/// Labels that name the job of a CI service, and the variables that do. GitLab Runner gives its containers
/// the first two; GitHub's gives none that tells of a job, so that the others are for whoever starts one.
const LABELS: [(&str, &str); 4] = [
    // The number alone may be another job's, of another GitLab.
    ("com.gitlab.gitlab-runner.job.url", "CI_JOB_URL"),
    ("com.gitlab.gitlab-runner.job.id", "CI_JOB_ID"),
    ("CI_JOB_ID", "CI_JOB_ID"),
    ("GITHUB_RUN_ID", "GITHUB_RUN_ID"),
];

/// The label with the folder of a project of Compose.
const FOLDER: &str = "com.docker.compose.project.working_dir";

/// What is known of a job.
#[derive(Debug)]
pub struct Marks {
    begin: Time,
    folder: Option<PathBuf>,
    /// The values of the variables, in the order of [`LABELS`].
    values: [Option<String>; LABELS.len()],
}

impl Marks {
    /// Those of a job that begins at a time, in a folder and with an environment.
    pub fn new(
        begin: Time,
        folder: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Self {
        Self {
            begin,
            folder: folder.map(Path::to_owned),
            values: LABELS
                .map(|(_, variable)| environment(variable).filter(|value| !value.is_empty())),
        }
    }

    /// Whether a container is of the job, and how.
    ///
    /// A label that names a job decides. A container of the Compose project in the job's folder is of it unless
    /// it ran before; any other one if it was created since the job began. What Kubernetes runs
    /// nobody but it has started.
    #[must_use]
    pub fn membership(&self, named: &Named) -> Option<Membership> {
        let pod = named.pod.as_ref();
        if pod.is_some_and(|pod| pod.namespace.is_some()) {
            return None;
        }
        if let Some(names_it) = self.is_named_by_labels(named) {
            return names_it.then_some(Membership::Label);
        }
        let ran_before = (named.life.running_since).is_some_and(|since| since < self.begin);
        if self.is_in_folder(named) && !ran_before {
            return Some(Membership::Label);
        }
        self.is_new(named).then_some(Membership::Container)
    }

    /// Whether a container that runs has not run since before the job, so that the job leaves it behind.
    #[must_use]
    pub fn left(&self, named: &Named) -> Option<Membership> {
        let since = named.life.running_since;
        let is_new = self.is_new(named) || since.is_some_and(|since| since >= self.begin);
        self.membership(named).filter(|_| is_new)
    }

    fn is_new(&self, named: &Named) -> bool {
        (named.life.created).is_some_and(|created| created >= self.begin)
    }

    /// Whether the first label that tells of a job tells of this one.
    fn is_named_by_labels(&self, named: &Named) -> Option<bool> {
        LABELS
            .iter()
            .zip(&self.values)
            .find_map(|((label, _), value)| {
                let label = named.container.labels.get(*label)?;
                Some(label == value.as_ref()?)
            })
    }

    fn is_in_folder(&self, named: &Named) -> bool {
        let folder = named.container.labels.get(FOLDER);
        self.folder.is_some() && folder.map(Path::new) == self.folder.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::container::Life;
    use crate::event::{Container, Pod};

    const BEGIN: i64 = 1000;

    fn named(labels: &[(&str, &str)], created: Option<i64>, running_since: Option<i64>) -> Named {
        let labels = labels.iter();
        Named {
            container: Container {
                runtime: "docker".into(),
                id: "3f4e".into(),
                name: None,
                image: None,
                labels: labels
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            },
            pod: None,
            life: Life {
                created: created.map(Time),
                running_since: running_since.map(Time),
            },
        }
    }

    /// Variables and their values.
    type Environment = &'static [(&'static str, &'static str)];

    fn marks(environment: Environment) -> Marks {
        Marks::new(Time(BEGIN), Some(Path::new("/srv/shop")), |name| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const NEW: Option<i64> = Some(BEGIN);
    const OLD: Option<i64> = Some(BEGIN - 1);

    #[test]
    fn containers_by_when_they_were_created_and_by_their_labels() {
        use Membership::{Container, Label};
        const GITLAB: Environment = &[
            ("CI_JOB_ID", "7"),
            ("CI_JOB_URL", "https://git.example/shop/-/jobs/7"),
        ];
        const ID: &str = "com.gitlab.gitlab-runner.job.id";
        const URL: &str = "com.gitlab.gitlab-runner.job.url";
        const NOTHING: Environment = &[];
        type Case = (&'static str, Environment, Named, Option<Membership>);
        let cases: &[Case] = &[
            (
                "created at the very start",
                NOTHING,
                named(&[], NEW, None),
                Some(Container),
            ),
            ("created before", NOTHING, named(&[], OLD, None), None),
            ("started meanwhile", NOTHING, named(&[], OLD, NEW), None),
            ("without a record", NOTHING, named(&[], None, None), None),
            (
                "the job's label",
                GITLAB,
                named(&[(ID, "7")], OLD, OLD),
                Some(Label),
            ),
            ("another job's", GITLAB, named(&[(ID, "8")], NEW, NEW), None),
            (
                "another GitLab's job of that number",
                GITLAB,
                named(
                    &[(ID, "7"), (URL, "https://other.example/-/jobs/7")],
                    NEW,
                    NEW,
                ),
                None,
            ),
            (
                "a label, and nothing to hold it against",
                NOTHING,
                named(&[(ID, "7")], NEW, NEW),
                Some(Container),
            ),
            (
                "a variable that is empty",
                &[("CI_JOB_ID", "")],
                named(&[(ID, "")], OLD, OLD),
                None,
            ),
            (
                "a value of another label",
                GITLAB,
                named(&[("number", "7")], OLD, OLD),
                None,
            ),
            (
                "a label that somebody gave",
                &[("GITHUB_RUN_ID", "99")],
                named(&[("GITHUB_RUN_ID", "99")], OLD, OLD),
                Some(Label),
            ),
            (
                "compose",
                NOTHING,
                named(&[(FOLDER, "/srv/shop")], NEW, NEW),
                Some(Label),
            ),
            (
                "compose, started again",
                NOTHING,
                named(&[(FOLDER, "/srv/shop")], OLD, NEW),
                Some(Label),
            ),
            (
                "compose, not started",
                NOTHING,
                named(&[(FOLDER, "/srv/shop")], OLD, None),
                Some(Label),
            ),
            (
                "compose, running before",
                NOTHING,
                named(&[(FOLDER, "/srv/shop")], OLD, OLD),
                None,
            ),
            (
                "compose elsewhere",
                NOTHING,
                named(&[(FOLDER, "/srv")], OLD, NEW),
                None,
            ),
            (
                "compose elsewhere, new",
                NOTHING,
                named(&[(FOLDER, "/srv")], NEW, NEW),
                Some(Container),
            ),
        ];
        for (what, environment, named, expected) in cases {
            assert_eq!(marks(environment).membership(named), *expected, "{what}");
        }
    }

    #[test]
    fn what_kubernetes_runs_is_not_the_jobs() {
        let pod = |namespace: Option<&str>| Named {
            pod: Some(Pod {
                namespace: namespace.map(Into::into),
                name: "web".into(),
                uid: None,
                container: None,
            }),
            ..named(&[], NEW, NEW)
        };
        assert_eq!(marks(&[]).membership(&pod(Some("shop"))), None);
        // Of podman's a job may have made it.
        let of_podman = marks(&[]).membership(&pod(None));
        assert_eq!(of_podman, Some(Membership::Container));
    }

    #[test]
    fn what_ran_before_is_not_left_behind() {
        let marks = marks(&[("CI_JOB_ID", "7")]);
        let label = [("CI_JOB_ID", "7")];
        let cases = [
            (named(&label, OLD, OLD), None),
            (named(&label, OLD, NEW), Some(Membership::Label)),
            (named(&label, NEW, NEW), Some(Membership::Label)),
            (named(&[], NEW, None), Some(Membership::Container)),
            (named(&[], OLD, NEW), None),
        ];
        for (named, expected) in cases {
            assert_eq!(marks.left(&named), expected, "{named:?}");
        }
    }

    /// Without a folder, one that has no label is in none.
    #[test]
    fn no_folder_is_no_container_without_one() {
        let marks = Marks::new(Time(BEGIN), None, |_| None);
        assert_eq!(marks.membership(&named(&[], OLD, None)), None);
    }
}
