//! The rules of `portwatch::diagnose::rules` against the running kernel: random
//! pairs of sockets are bound for real, and what the kernel says is held
//! against what the rules say.
//!
//! They need root. `cargo xtask test differential` runs them. Each run takes
//! other pairs: the seed it prints makes it take the same ones again with
//! `PORTWATCH_SEED`, and `PORTWATCH_CASES` is how many pairs it takes, and of
//! crowds in proportion. A case over which the two disagree is made as small as
//! possible and kept in `regressions.txt`, from where every later run takes it
//! first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod crowd;
mod kernel;
mod pair;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Read as _;

use portwatch_tests::Netns;
use proptest::strategy::Strategy;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner,
};

use kernel::Kernel;

const REGRESSIONS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/differential/regressions.txt"
);

/// How many there are, if nobody says another number.
const PAIRS: u32 = 10_000;
const CROWDS: u32 = 300;

/// 32 bytes in hexadecimal: those asked for, or any.
fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    match std::env::var("PORTWATCH_SEED") {
        Ok(text) => {
            assert_eq!(text.len(), 64, "PORTWATCH_SEED is 64 hexadecimal digits");
            for (byte, at) in seed.iter_mut().zip((0..64).step_by(2)) {
                *byte = u8::from_str_radix(&text[at..at + 2], 16).unwrap();
            }
        }
        Err(_) => {
            let mut random = std::fs::File::open("/dev/urandom").unwrap();
            random.read_exact(&mut seed).unwrap();
        }
    }
    seed
}

/// How many there are of what there usually is so many times.
fn cases(usual: u32) -> u32 {
    let pairs = std::env::var("PORTWATCH_CASES");
    pairs.map_or(usual, |text| {
        (text.parse::<u32>().unwrap() * usual).div_ceil(PAIRS)
    })
}

/// What the kernel said in how many cases of a kind: granted, refused.
type Counts = BTreeMap<String, (u32, u32)>;

/// Takes cases until the kernel and the rules disagree over one, and tells how many there were of
/// each kind.
fn run<C: Debug>(
    name: &'static str,
    usual: u32,
    strategy: &impl Strategy<Value = C>,
    agree: impl Fn(&mut Kernel, &C) -> Result<kernel::Said, String>,
    kind: impl Fn(&C) -> String,
) -> Counts {
    let (seed, cases) = (seed(), cases(usual));
    let digits: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{name}: {cases} cases, PORTWATCH_SEED={digits}");
    let config = Config {
        cases,
        source_file: Some(file!()),
        test_name: Some(name),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        max_shrink_iters: 2000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let counts = RefCell::new(Counts::new());
    let state = RefCell::new(Kernel::new());
    let result = runner.run(strategy, |case| {
        let said = agree(&mut state.borrow_mut(), &case).map_err(TestCaseError::fail)?;
        let mut counts = counts.borrow_mut();
        let (granted, refused) = counts.entry(kind(&case)).or_default();
        match said {
            kernel::Said::Granted => *granted += 1,
            kernel::Said::Refused => *refused += 1,
        }
        Ok(())
    });
    let counts = counts.into_inner();
    for (kind, (granted, refused)) in &counts {
        println!("{name}: {kind}: {granted} granted, {refused} refused");
    }
    if let Err(error) = result {
        panic!("{name}: the kernel and the rules disagree (PORTWATCH_SEED={digits}): {error}");
    }
    counts
}

/// Both answers must come in every kind, or the agreement says little.
fn assert_telling(counts: &Counts) {
    for (kind, (granted, refused)) in counts {
        assert!(
            *granted > 0 && *refused > 0,
            "{kind}: always the same answer"
        );
    }
}

#[test]
fn a_newcomer_beside_one_holder() {
    let netns = Netns::new();
    kernel::prepare(&netns);
    let counts = netns.run_while_forking(|| {
        let flaws = pair::Flaws::find(&mut Kernel::new());
        print!("{flaws}");
        let agree = |kernel: &mut Kernel, pair: &pair::Pair| pair::agree(kernel, pair, &flaws);
        run("pair", PAIRS, &pair::pair(), agree, pair::kind)
    });
    if cases(PAIRS) >= PAIRS {
        assert_telling(&counts);
        assert_eq!(counts.len(), pair::KINDS, "{counts:?}");
    }
}

#[test]
fn a_newcomer_beside_many_holders() {
    let netns = Netns::new();
    kernel::prepare(&netns);
    let counts = netns.run_while_forking(|| {
        let flaw = crowd::wildcard_overlooks_many(&mut Kernel::new());
        if flaw {
            println!("crowd: this kernel overlooks more than ten sockets; excepted");
        }
        let agree = |kernel: &mut Kernel, crowd: &crowd::Crowd| crowd::agree(kernel, crowd, flaw);
        run("crowd", CROWDS, &crowd::crowd(), agree, crowd::kind)
    });
    if cases(CROWDS) >= CROWDS {
        assert_telling(&counts);
    }
}
