//! What has to be looked up for a refusal, and until when it is waited for.
//!
//! Who has a socket open, how a process stands, what a namespace's settings are:
//! none of it is in the records, and finding it out takes a thread of its own
//! (the [`Looker`](super::looker::Looker)). A refusal waits for what was asked on its account,
//! but never longer than the [`Patience`] is, and with it all that comes after. What was asked a
//! moment before is not asked again.
//!
//! Pure: the time is handed in, the questions go out.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use portwatch_common::record::{Socket, Task};

use super::process::Key;
use super::standing::Standing;
use crate::diagnose::facts::PathState;
use crate::kernel::denial::Denials;
use crate::kernel::sysctls::Sysctls;

/// How often it is looked whether something need not be waited for any more, where no batch comes.
pub const LOOK: Duration = Duration::from_millis(40);

/// How long refusals wait for their answers.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the question on. It is looked whether that is over every [`LOOK`].
    answer: Duration,
    /// How long after a refusal something can still be asked for it that was not known to be needed at
    /// once.
    question: Duration,
}

impl Patience {
    /// So that no event is later than `most` for their sake.
    #[must_use]
    pub fn within(most: Duration) -> Self {
        let question = most / 10;
        Self {
            answer: most.saturating_sub(question + LOOK),
            question,
        }
    }
}

/// For how long an answer is one to the same question.
const SHARED: Duration = Duration::from_millis(100);
/// For how long it is better than none.
const KEPT: Duration = Duration::from_secs(1);
/// Questions that wait to be asked, or for an answer.
const OPEN: usize = 256;
/// Answers that are kept until they are used.
const ANSWERS: usize = 1_024;

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Who has a socket open. With its inode, since another may get its address.
    Socket {
        /// Its address in the kernel.
        address: u64,
        /// Inode number of its file.
        inode: u64,
    },
    /// How a process stands among the others.
    Process(Key),
    /// What but a seccomp filter may refuse a process a bind.
    Denials(Key),
    /// The settings of a network namespace in which a process was refused: its number alone may be
    /// another's the moment it is gone, which is when the answer would still be shared.
    Settings {
        /// Number of the namespace.
        netns: u32,
        /// The process.
        by: Key,
    },
    /// The sockets that have a port.
    Port(Place),
    /// Who has how many ports of the ephemeral range; the port does not count.
    Range(Place),
    /// What has a path or an abstract name of AF_UNIX.
    Name {
        /// Inode number of the network namespace.
        netns: u32,
        /// Who asked for it: a path is one of its file system.
        by: Key,
        /// `sun_path`, up to its end.
        name: Vec<u8>,
    },
}

/// A port in a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// The protocol whose table it is in: IPPROTO_TCP also for what is built on it.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// A question.
#[derive(Debug, Clone)]
pub struct Question {
    /// What about.
    pub subject: Subject,
    /// Threads that are, or were, where it is: the process itself, its ancestors. By them its
    /// network namespace and its file system can be reached.
    pub via: Vec<Key>,
    /// The thread that asked, in the first process of those.
    pub tid: u32,
    /// The socket, of a question about one.
    pub socket: Option<Socket>,
}

/// A process that has a socket open.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The process.
    pub task: Task,
    /// How it stands; nothing if it is gone by now.
    pub standing: Option<Standing>,
    /// The socket unit for which it has the socket, if it is a systemd.
    pub unit: Option<String>,
}

/// A socket that was found in user space.
#[derive(Debug, Clone)]
pub struct FoundSocket {
    /// The socket.
    pub socket: Socket,
    /// `sun_path` of one of AF_UNIX.
    pub name: Vec<u8>,
    /// The user who made it.
    pub uid: Option<u32>,
    /// Of one in TIME_WAIT: milliseconds until it is over.
    pub expires_in_ms: Option<u32>,
    /// The processes that have it open; nothing if there may be others, who cannot be looked at.
    pub owners: Option<Vec<Owner>>,
}

/// Who has how many ports of a range.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Ports that somebody has.
    pub used: u32,
    /// Of those, how many wait in TIME_WAIT.
    pub timewait: u32,
    /// The processes that have the most, and how many each.
    pub most: Vec<(Task, u32)>,
}

/// What was found out.
#[derive(Debug, Clone)]
pub enum Finding {
    /// Of a [`Subject::Socket`].
    Owners(Vec<Owner>),
    /// Of a [`Subject::Process`]; nothing if it is no more.
    Standing(Option<Standing>),
    /// Of [`Subject::Denials`], as far as that can be told.
    Denials(Option<Denials>),
    /// Of [`Subject::Settings`].
    Settings(Sysctls),
    /// Of a [`Subject::Port`].
    Sockets(Vec<FoundSocket>),
    /// Of a [`Subject::Range`].
    Range(Usage),
    /// Of a [`Subject::Name`]: the state of a path, if that could be told, and who has the name.
    Name(Option<PathState>, Vec<FoundSocket>),
    /// It could not be found out.
    Unknown,
}

/// An answer.
pub type Answer = (Subject, Finding);

/// Asks. Gives the questions back if nobody takes them now.
pub type Ask = Box<dyn FnMut(Vec<Question>) -> Result<(), Vec<Question>> + Send>;

/// Questions and answers.
pub struct Lookups {
    ask: Ask,
    next: Vec<Question>,
    open: HashMap<Subject, Instant>,
    answers: LruCache<Subject, (Instant, Finding)>,
    limited: u64,
    patience: Patience,
}

impl Lookups {
    /// None yet.
    pub fn new(ask: Ask, patience: Patience) -> Self {
        let capacity = NonZeroUsize::new(ANSWERS).unwrap_or(NonZeroUsize::MIN);
        Self {
            ask,
            next: Vec::new(),
            open: HashMap::new(),
            answers: LruCache::new(capacity),
            limited: 0,
            patience,
        }
    }

    /// This has to be known, unless it was found out a moment before. Gives whether its answer is
    /// still to come.
    pub fn want(&mut self, question: Question, now: Instant) -> bool {
        let subject = &question.subject;
        let known = self.answers.peek(subject);
        if self.open.contains_key(subject) {
            return true;
        }
        let age = known.map(|(when, _)| now.duration_since(*when));
        if age.is_some_and(|age| age < SHARED) {
            return false;
        }
        if self.open.len() >= OPEN {
            self.limited += 1;
            return false;
        }
        if age.is_some_and(|age| age >= KEPT) {
            self.answers.pop(subject);
        }
        self.open.insert(subject.clone(), now);
        self.next.push(question);
        true
    }

    /// Asks what is wanted, if somebody listens.
    pub fn send(&mut self) {
        if !self.next.is_empty()
            && let Err(back) = (self.ask)(std::mem::take(&mut self.next))
        {
            self.next = back;
        }
    }

    /// Answers have come.
    pub fn answered(&mut self, answers: Vec<Answer>, now: Instant) {
        for (subject, finding) in answers {
            self.open.remove(&subject);
            self.answers.put(subject, (now, finding));
        }
        self.send();
    }

    /// Gives up on what was waited for too long.
    pub fn expire(&mut self, now: Instant) {
        let before = self.open.len();
        let patience = self.patience.answer;
        self.open
            .retain(|_, asked| now.duration_since(*asked) < patience);
        let open = &self.open;
        // Nobody waits for it any more.
        self.next
            .retain(|question| open.contains_key(&question.subject));
        self.limited += (before - self.open.len()) as u64;
        self.send();
    }

    /// What is asked for is not waited for.
    pub fn pass_over(&mut self) {
        self.limited += 1;
    }

    /// Whether something can still be asked for a refusal of so long ago.
    pub fn may_ask(&self, since: Duration) -> bool {
        since < self.patience.question
    }

    /// Whether its answer is still to come.
    pub fn is_open(&self, subject: &Subject) -> bool {
        self.open.contains_key(subject)
    }

    /// Whether any answer is still to come.
    pub fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// What was found out about it.
    pub fn get(&self, subject: &Subject) -> Option<&Finding> {
        self.answers.peek(subject).map(|(_, finding)| finding)
    }

    /// How many look-ups were not made, or took too long, since this was asked last.
    pub fn limited(&mut self) -> u64 {
        std::mem::take(&mut self.limited)
    }
}

impl std::fmt::Debug for Lookups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookups")
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const MOST: Duration = Duration::from_millis(250);

    fn settings(netns: u32) -> Subject {
        Subject::Settings {
            netns,
            by: Key { tgid: 1, start: 1 },
        }
    }

    fn question(netns: u32) -> Question {
        Question {
            subject: settings(netns),
            via: Vec::new(),
            tid: 0,
            socket: None,
        }
    }

    /// Look-ups, and the numbers of the namespaces asked for so far, a round each.
    fn lookups(takes: bool) -> (Lookups, Arc<Mutex<Vec<Vec<u32>>>>) {
        let rounds = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&rounds);
        let ask = move |questions: Vec<Question>| {
            if !takes {
                return Err(questions);
            }
            let numbers = questions.iter().map(|question| match question.subject {
                Subject::Settings { netns, .. } => netns,
                _ => 0,
            });
            asked.lock().unwrap().push(numbers.collect());
            Ok(())
        };
        (Lookups::new(Box::new(ask), Patience::within(MOST)), rounds)
    }

    fn answer(netns: u32) -> Answer {
        (settings(netns), Finding::Unknown)
    }

    #[test]
    fn what_was_asked_a_moment_before_is_not_asked_again() {
        let (mut lookups, rounds) = lookups(true);
        let now = Instant::now();
        lookups.want(question(1), now);
        lookups.want(question(1), now);
        lookups.send();
        lookups.want(question(1), now);
        lookups.send();
        assert!(lookups.is_open(&settings(1)));
        lookups.answered(vec![answer(1)], now);
        assert!(!lookups.are_open());
        lookups.want(question(1), now + SHARED / 2);
        assert!(!lookups.are_open(), "the answer is shared");
        lookups.want(question(1), now + SHARED);
        lookups.send();
        assert_eq!(*rounds.lock().unwrap(), [[1], [1]]);
        assert_eq!(lookups.limited(), 0);
    }

    /// No event is later than was said.
    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for() {
        let patience = Patience::within(MOST);
        assert_eq!(patience.question + patience.answer + LOOK, MOST);
        for takes in [true, false] {
            let (mut lookups, _) = lookups(takes);
            let now = Instant::now();
            lookups.want(question(1), now);
            lookups.send();
            lookups.expire(now + patience.answer / 2);
            assert!(lookups.is_open(&settings(1)));
            lookups.expire(now + patience.answer);
            assert!(!lookups.are_open());
            assert_eq!((lookups.limited(), lookups.limited()), (1, 0));
        }
    }

    /// In a storm the same is asked again and again: the answer before counts where a later one fails
    /// to come.
    #[test]
    fn an_answer_is_kept_for_a_while() {
        let (mut lookups, _) = lookups(true);
        let now = Instant::now();
        let subject = settings(1);
        lookups.answered(vec![answer(1)], now);
        lookups.want(question(1), now + SHARED);
        lookups.expire(now + SHARED + MOST);
        assert!(lookups.get(&subject).is_some());
        lookups.want(question(1), now + KEPT);
        assert!(lookups.get(&subject).is_none());
    }

    #[test]
    fn a_storm_of_questions_is_cut_short_and_counted() {
        let (mut lookups, rounds) = lookups(true);
        let now = Instant::now();
        for netns in 0..1_000 {
            lookups.want(question(netns), now);
        }
        lookups.send();
        assert_eq!(rounds.lock().unwrap()[0].len(), OPEN);
        assert_eq!(lookups.limited(), 1_000 - OPEN as u64);
    }

    #[test]
    fn what_nobody_takes_is_asked_once_somebody_does() {
        let ready = Arc::new(Mutex::new(false));
        let is_ready = Arc::clone(&ready);
        let ask = move |questions: Vec<Question>| {
            if *is_ready.lock().unwrap() {
                assert_eq!(questions.len(), 2);
                Ok(())
            } else {
                Err(questions)
            }
        };
        let mut lookups = Lookups::new(Box::new(ask), Patience::within(MOST));
        let now = Instant::now();
        lookups.want(question(1), now);
        lookups.send();
        lookups.want(question(2), now);
        *ready.lock().unwrap() = true;
        lookups.answered(Vec::new(), now);
        assert!(lookups.next.is_empty());
        assert!(lookups.is_open(&settings(2)));
    }

    /// A namespace's number is given to another as soon as it is gone.
    #[test]
    fn settings_are_not_shared_between_processes() {
        let (mut lookups, _) = lookups(true);
        let now = Instant::now();
        lookups.answered(vec![answer(1)], now);
        let other = Question {
            subject: Subject::Settings {
                netns: 1,
                by: Key { tgid: 2, start: 1 },
            },
            ..question(1)
        };
        assert!(!lookups.want(question(1), now));
        assert!(lookups.want(other, now));
    }
}
