//! What the fuzzer found worth keeping, once more: no nightly compiler is needed for that.

use proto_tests::corpus::TARGETS;
use proto_tests::session::{Record, messages, mutate, records, session};

#[test]
fn the_corpus_does_no_harm() {
    for target in TARGETS {
        let corpus = target.corpus();
        assert!(!corpus.is_empty(), "{} has no corpus", target.name);
        for (number, input) in corpus.iter().enumerate() {
            let run = std::panic::catch_unwind(|| (target.run)(input));
            assert!(run.is_ok(), "input {number} of {}, from 0", target.name);
        }
    }
}

#[test]
fn seeds_do_no_harm() {
    for target in TARGETS {
        for input in (target.seeds)() {
            (target.run)(&input);
        }
    }
}

#[test]
fn sessions_and_their_bytes() {
    let check = |bytes: &[u8], expected: &[Record]| assert_eq!(records(bytes), expected, "{bytes:?}");
    let message = |bytes: &'static [u8]| Record::Message(bytes.into());
    check(b"", &[]);
    check(b"\0", &[]);
    check(b"\0\0", &[message(b"")]);
    check(b"\0\x01E\0\x02ab", &[message(b"E"), message(b"ab")]);
    check(b"\0\x09cut", &[message(b"cut")]);
    check(b"\0\x01E\xff\x02", &[message(b"E"), Record::Again(2)]);
    assert_eq!(messages(b"\xff\x02\0\x01E\xff\x02\0\x01S"), ["E", "E", "E", "S"]);

    for target in TARGETS.iter().filter(|target| target.name == "session") {
        for seed in (target.seeds)() {
            assert_eq!(session(&records(&seed)), seed);
            let mut data = seed.clone();
            data.resize(seed.len() + 50, 0);
            for n in 0..200 {
                let size = mutate(&mut data, seed.len(), seed.len() + 50, n, |_, size, _| size);
                assert!(size <= seed.len() + 50);
                data[..seed.len()].copy_from_slice(&seed);
            }
        }
    }
}
