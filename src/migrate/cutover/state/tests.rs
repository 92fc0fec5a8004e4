use super::*;
use crate::config::FenceKind;

mod histories;

fn fence() -> Fence {
    Fence { kind: FenceKind::ReadOnly, previous: None, since: "2026-01-01".to_owned() }
}

fn error() -> CutoverError {
    CutoverError { cause: "it took too long".to_owned(), detail: String::new(), hint: String::new() }
}

/// One of each, in the order of the diagram.
fn states() -> Vec<(&'static str, State)> {
    let drained = Drained { fence: fence(), mark: SourceLsn::new(7) };
    let carried = Carried { drained: drained.clone(), sequences: SequenceValues::default() };
    vec![
        ("checking", State::Checking),
        ("recording", State::Recording(fence())),
        ("raising", State::Raising(fence())),
        ("draining", State::Draining(fence())),
        ("carrying", State::Carrying(drained.clone())),
        ("proving", State::Proving(carried)),
        ("ending", State::Ending(drained)),
        ("concluding", State::Concluding(fence())),
        ("unknown", State::Unknown(fence())),
        ("lowering", State::Lowering { fence: fence(), error: error() }),
        ("answering", State::Answering { error: error(), fenced: true }),
        ("over", State::Over),
        ("done", State::Done),
    ]
}

fn events() -> Vec<Event> {
    vec![
        Event::Checked(fence()),
        Event::Recorded,
        Event::Raised,
        Event::Drained(SourceLsn::new(7)),
        Event::Carried(SequenceValues::default()),
        Event::Proven,
        Event::StreamEnded,
        Event::Answered,
        Event::AnswerLost,
        Event::Lowered,
        Event::Failed(error()),
    ]
}

/// A row for each state, a column for each event in the order of `events`: the state that follows, by its place in the list.
const NEXT: [(&str, [&str; 11]); 13] = [
    ("checking", ["recording", "", "", "", "", "", "", "", "", "", "answering"]),
    ("recording", ["", "raising", "", "", "", "", "", "", "", "", "lowering"]),
    ("raising", ["", "", "draining", "", "", "", "", "", "", "", "lowering"]),
    ("draining", ["", "", "", "carrying", "", "", "", "", "", "", "lowering"]),
    ("carrying", ["", "", "", "", "proving", "", "", "", "", "", "lowering"]),
    ("proving", ["", "", "", "", "", "ending", "", "", "", "", "lowering"]),
    ("ending", ["", "", "", "", "", "", "concluding", "", "", "", "lowering"]),
    ("concluding", ["", "", "", "", "", "", "", "done", "unknown", "", "lowering"]),
    ("unknown", [""; 11]),
    ("lowering", ["", "", "", "", "", "", "", "", "", "answering", ""]),
    ("answering", ["", "", "", "", "", "", "", "over", "", "", ""]),
    ("over", [""; 11]),
    ("done", [""; 11]),
];

fn name(state: &State) -> &'static str {
    let same = |other: &State| std::mem::discriminant(other) == std::mem::discriminant(state);
    states().into_iter().find(|(_, other)| same(other)).map(|(name, _)| name).expect("all are listed")
}

#[test]
fn every_event_in_every_state() {
    for ((name_of, state), (row, nexts)) in states().into_iter().zip(NEXT) {
        assert_eq!(name_of, row);
        for (event, next) in events().into_iter().zip(nexts) {
            let (state, what) = (state.clone(), format!("{event:?} in {name_of}"));
            let became = std::panic::catch_unwind(|| name(&state.on(event)));
            assert_eq!(became.ok(), Some(next).filter(|next| !next.is_empty()), "{what}");
        }
    }
}

#[test]
fn a_fence_that_may_stand_is_never_forgotten() {
    for (name, state) in states() {
        let stands = !["checking", "answering", "over", "done"].contains(&name);
        assert_eq!(state.fence().is_some(), stands, "{name}");
    }
}

#[test]
fn what_was_found_is_undone() {
    assert_eq!(State::found(None, error()).effect(), Effect::Answer(error()));
    assert_eq!(State::found(Some(fence()), error()).effect(), Effect::Lower(fence()));
}
