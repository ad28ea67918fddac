//! Whom the job runs as: whoever called sudo, not root by surprise.

use std::ffi::{CString, OsString};

use anyhow::Context as _;
use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::command::Usage;

/// The user that the job is started as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Runner {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) groups: Vec<Gid>,
    /// What differs in its environment from portwatch's own: a value, or that there is none.
    pub(super) environment: Vec<(&'static str, Option<OsString>)>,
}

/// What sudo tells of its caller in the environment.
const SUDO: [&str; 4] = ["SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND"];

/// The user to start the job as, if not the one that portwatch runs as: the one asked for, else the
/// one that called sudo.
///
/// # Errors
///
/// If there is no such user, or portwatch may not become it.
pub(super) fn runner(asked: Option<u32>) -> anyhow::Result<Option<Runner>> {
    let own = Uid::effective();
    let invoking = std::env::var("SUDO_UID").ok().filter(|_| own.is_root());
    let uid = match (asked, invoking) {
        (Some(uid), _) => Uid::from_raw(uid),
        (None, Some(uid)) => Uid::from_raw(uid.parse().map_err(|_| {
            Usage(format!(
                "SUDO_UID is {uid:?}, which is no user: give one with --user"
            ))
        })?),
        (None, None) => return Ok(None),
    };
    if uid == own && asked.is_none() {
        return Ok(None);
    }
    if !own.is_root() && uid != own {
        return Err(Usage(format!(
            "cannot run the command as user {uid}: only root can; leave --user out, or run portwatch as root"
        ))
        .into());
    }
    let user = User::from_uid(uid).with_context(|| format!("looking up the user {uid}"))?;
    let Some(user) = user else {
        return Err(Usage(format!("there is no user {uid}: give one with --user")).into());
    };
    let name = CString::new(user.name.as_str()).context("a user's name with a NUL in it")?;
    let groups = getgrouplist(&name, user.gid)
        .with_context(|| format!("looking up the groups of {}", user.name))?;
    let mut environment: Vec<(_, Option<OsString>)> = vec![
        ("HOME", Some(user.dir.into())),
        ("SHELL", Some(user.shell.into())),
        ("USER", Some(user.name.clone().into())),
        ("LOGNAME", Some(user.name.into())),
    ];
    environment.extend(SUDO.map(|name| (name, None)));
    Ok(Some(Runner {
        uid,
        gid: user.gid,
        groups,
        environment,
    }))
}
