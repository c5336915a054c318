//! A circuit breaker for one dependency, so that one which is away costs its callers an answer at once and not a timeout each.
//!
//! The whole state is one word of memory: while the breaker is closed a call reads it once before and once after. What an operator tunes
//! ([`Terms`]) comes with each call and is no part of the state, and so does the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Failures in a row that open it; 0 counts as 1.
    pub failures: u32,
    /// How long nobody calls before one probe may.
    pub open: Duration,
}

/// What a breaker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Everybody may call.
    Closed,
    /// Nobody calls until its time is over.
    Open,
    /// One call, the probe, is under way, and nobody else calls until it has ended.
    HalfOpen,
}

impl State {
    /// Every state, for tables that are indexed by it.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// The word for logs and metric labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A circuit breaker; a new one is closed.
#[derive(Debug, Default)]
pub struct Breaker(AtomicU64);

impl Breaker {
    /// The leave to call once, or the time until it is worth asking again. Its outcome must be told: a pass that is dropped is a failure.
    ///
    /// # Errors
    /// The breaker is open, or another call is the probe.
    pub fn admit(&self, terms: Terms, now: Duration) -> Result<Pass<'_>, Duration> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let Phase { state, epoch, value } = Phase::read(word);
            match state {
                State::Closed => return Ok(Pass { breaker: self, terms, epoch, admitted: now, probe: false, settled: false }),
                State::HalfOpen => return Err(PROBING),
                State::Open => {}
            }
            let left = (Duration::from_millis(value) + terms.open).saturating_sub(now);
            if !left.is_zero() {
                return Err(left);
            }
            let probing = Phase { state: State::HalfOpen, epoch, value: 0 }.write();
            match self.0.compare_exchange_weak(word, probing, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(Pass { breaker: self, terms, epoch, admitted: now, probe: true, settled: false }),
                Err(other) => word = other,
            }
        }
    }

    /// What [`admit`](Self::admit) would refuse with now; it takes no place, so a later call may still be refused.
    pub fn refuses(&self, terms: Terms, now: Duration) -> Option<Duration> {
        let Phase { state, value, .. } = Phase::read(self.0.load(Ordering::Acquire));
        match state {
            State::Closed => None,
            State::HalfOpen => Some(PROBING),
            State::Open => Some((Duration::from_millis(value) + terms.open).saturating_sub(now)).filter(|left| !left.is_zero()),
        }
    }

    /// What the breaker is; one that is open stays so until somebody calls.
    pub fn state(&self) -> State {
        Phase::read(self.0.load(Ordering::Acquire)).state
    }
}

/// When to ask again while a probe is under way: it ends soon, one way or the other.
const PROBING: Duration = Duration::from_secs(1);

/// What an outcome changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The breaker opened, or opened again after a probe.
    Opened,
    /// The probe succeeded.
    Closed,
}

/// The leave to call once.
#[derive(Debug)]
#[must_use = "a pass that is dropped is a failure"]
pub struct Pass<'b> {
    breaker: &'b Breaker,
    terms: Terms,
    /// The epoch in which it was given: what ends in another one says nothing of it.
    epoch: u64,
    admitted: Duration,
    probe: bool,
    settled: bool,
}

impl Pass<'_> {
    /// Whether this call decides if the breaker closes.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The call succeeded.
    pub fn succeed(mut self) -> Option<Change> {
        self.settle(None)
    }

    /// The call failed, at this monotonic time.
    pub fn fail(mut self, now: Duration) -> Option<Change> {
        self.settle(Some(now))
    }

    fn settle(&mut self, failed: Option<Duration>) -> Option<Change> {
        self.settled = true;
        let (epoch, limit) = (self.epoch, u64::from(self.terms.failures.max(1)));
        let opened = |at: Duration| {
            let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
            Some((Phase { state: State::Open, epoch: epoch + 1, value: at }, Some(Change::Opened)))
        };
        let closed = |failures| Some((Phase { state: State::Closed, epoch, value: failures }, None));
        let next = |phase: Phase| match (phase.state, failed) {
            _ if phase.epoch != epoch => None,
            // Nothing to write when nothing failed: the closed breaker of a sound dependency is only read.
            (State::Closed, None) if !self.probe => (phase.value > 0).then(|| closed(0)).flatten(),
            (State::Closed, Some(at)) if !self.probe => match phase.value + 1 {
                failures if failures >= limit => opened(at),
                failures => closed(failures),
            },
            (State::HalfOpen, None) if self.probe => {
                Some((Phase { state: State::Closed, epoch: epoch + 1, value: 0 }, Some(Change::Closed)))
            }
            (State::HalfOpen, Some(at)) if self.probe => opened(at),
            _ => None,
        };
        let mut word = self.breaker.0.load(Ordering::Acquire);
        loop {
            let (phase, change) = next(Phase::read(word))?;
            match self.breaker.0.compare_exchange_weak(word, phase.write(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return change,
                Err(other) => word = other,
            }
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.settled {
            // Cancelled, or a panic: when it ended is not known here, but it was not before it began.
            self.settle(Some(self.admitted));
        }
    }
}

/// The word taken apart: 2 bits of state, 22 of epoch, 40 of failures in a row (closed) or of milliseconds at which it opened (open).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Phase {
    state: State,
    /// Counts openings and closings.
    epoch: u64,
    value: u64,
}

const VALUE_BITS: u32 = 40;
const EPOCH_BITS: u32 = 22;

impl Phase {
    fn read(word: u64) -> Self {
        let state = match word >> (VALUE_BITS + EPOCH_BITS) {
            0 => State::Closed,
            1 => State::Open,
            _ => State::HalfOpen,
        };
        Self { state, epoch: (word >> VALUE_BITS) & ((1 << EPOCH_BITS) - 1), value: word & ((1 << VALUE_BITS) - 1) }
    }

    fn write(self) -> u64 {
        let state = match self.state {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
        };
        let value = self.value.min((1 << VALUE_BITS) - 1);
        state << (VALUE_BITS + EPOCH_BITS) | (self.epoch & ((1 << EPOCH_BITS) - 1)) << VALUE_BITS | value
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    const TERMS: Terms = Terms { failures: 3, open: Duration::from_secs(10) };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fail(breaker: &Breaker, seconds: u64) -> Option<Change> {
        breaker.admit(TERMS, at(seconds)).unwrap().fail(at(seconds))
    }

    fn opened_at(seconds: u64) -> Breaker {
        let breaker = Breaker::default();
        for _ in 0..3 {
            fail(&breaker, seconds);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not_let_it() {
        let breaker = Breaker::default();
        assert_eq!([fail(&breaker, 1), fail(&breaker, 2)], [None, None]);
        assert_eq!(breaker.admit(TERMS, at(3)).unwrap().succeed(), None);
        assert_eq!([fail(&breaker, 4), fail(&breaker, 5)], [None, None]);
        assert_eq!(breaker.state(), State::Closed);
        assert_eq!(fail(&breaker, 6), Some(Change::Opened));
        assert_eq!(breaker.state(), State::Open);
    }

    #[test]
    fn while_it_is_open_nobody_calls_and_everybody_is_told_for_how_long() {
        let breaker = opened_at(100);
        for (seconds, left) in [(100, 10), (105, 5), (109, 1), (99, 11)] {
            assert_eq!(breaker.admit(TERMS, at(seconds)).unwrap_err(), at(left));
            assert_eq!(breaker.refuses(TERMS, at(seconds)), Some(at(left)));
        }
        assert_eq!(breaker.refuses(TERMS, at(110)), None);
    }

    #[test]
    fn terms_that_change_are_in_force_at_once() {
        let breaker = opened_at(100);
        let shorter = Terms { open: at(2), ..TERMS };
        assert_eq!(breaker.admit(shorter, at(101)).unwrap_err(), at(1));
        assert!(breaker.admit(shorter, at(102)).is_ok());
        let breaker = Breaker::default();
        fail(&breaker, 1);
        let stricter = Terms { failures: 1, ..TERMS };
        assert_eq!(breaker.admit(stricter, at(1)).unwrap().fail(at(1)), Some(Change::Opened));
        let never = Terms { failures: 0, ..TERMS };
        assert_eq!(Breaker::default().admit(never, at(1)).unwrap().fail(at(1)), Some(Change::Opened), "0 counts as 1");
    }

    #[test]
    fn one_probe_decides() {
        for (succeeds, change, state) in [(true, Change::Closed, State::Closed), (false, Change::Opened, State::Open)] {
            let breaker = opened_at(100);
            let probe = breaker.admit(TERMS, at(110)).unwrap();
            assert!(probe.is_probe());
            assert_eq!(breaker.state(), State::HalfOpen);
            assert_eq!(breaker.admit(TERMS, at(200)).unwrap_err(), PROBING, "the probe is still under way");
            assert_eq!(breaker.refuses(TERMS, at(200)), Some(PROBING));
            assert_eq!(if succeeds { probe.succeed() } else { probe.fail(at(112)) }, Some(change));
            assert_eq!(breaker.state(), state);
        }
    }

    #[test]
    fn a_probe_that_failed_begins_the_wait_anew_and_one_that_succeeded_the_count() {
        let breaker = opened_at(100);
        breaker.admit(TERMS, at(110)).unwrap().fail(at(112));
        assert_eq!(breaker.admit(TERMS, at(113)).unwrap_err(), at(9));
        assert_eq!(breaker.admit(TERMS, at(122)).unwrap().succeed(), Some(Change::Closed));
        assert_eq!([fail(&breaker, 123), fail(&breaker, 123), fail(&breaker, 123)], [None, None, Some(Change::Opened)]);
    }

    #[test]
    fn a_pass_that_is_dropped_is_a_failure() {
        let breaker = Breaker::default();
        for _ in 0..3 {
            drop(breaker.admit(TERMS, at(1)).unwrap());
        }
        assert_eq!(breaker.state(), State::Open);
        drop(breaker.admit(TERMS, at(20)).unwrap());
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.admit(TERMS, at(21)).unwrap_err(), at(9), "the wait began anew when the probe began");
    }

    #[test]
    fn what_ends_in_another_epoch_changes_nothing() {
        let breaker = Breaker::default();
        let mut late: Vec<_> = (0..4).map(|_| breaker.admit(TERMS, at(1)).unwrap()).collect();
        for _ in 0..3 {
            fail(&breaker, 2);
        }
        assert_eq!(late.pop().unwrap().succeed(), None);
        assert_eq!(breaker.state(), State::Open, "a late success does not close it");
        let probe = breaker.admit(TERMS, at(12)).unwrap();
        assert_eq!(late.pop().unwrap().succeed(), None);
        assert_eq!(late.pop().unwrap().fail(at(12)), None);
        assert_eq!(breaker.state(), State::HalfOpen, "only the probe decides");
        assert_eq!(probe.succeed(), Some(Change::Closed));
        drop(late);
        assert_eq!([fail(&breaker, 13), fail(&breaker, 13)], [None, None], "a late failure is not counted");
    }

    #[test]
    fn of_many_threads_one_gets_the_probe() {
        for _ in 0..200 {
            let (breaker, probes) = (opened_at(100), AtomicUsize::new(0));
            let barrier = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        barrier.wait();
                        if let Ok(pass) = breaker.admit(TERMS, at(110)) {
                            probes.fetch_add(1, Ordering::Relaxed);
                            std::mem::forget(pass);
                        }
                    });
                }
            });
            assert_eq!(probes.into_inner(), 1);
        }
    }

    /// A breaker as one would write it without care for speed.
    #[derive(Debug)]
    enum Model {
        Closed { epoch: u64, failures: u32 },
        Open { epoch: u64, since: Duration },
        HalfOpen { epoch: u64 },
    }

    impl Model {
        fn admit(&mut self, now: Duration) -> Option<(u64, bool)> {
            match *self {
                Self::Closed { epoch, .. } => Some((epoch, false)),
                Self::Open { epoch, since } if now >= since + TERMS.open => {
                    *self = Self::HalfOpen { epoch };
                    Some((epoch, true))
                }
                _ => None,
            }
        }

        fn settle(&mut self, (of, probe): (u64, bool), success: bool, now: Duration) {
            *self = match *self {
                Self::Closed { epoch, failures } if epoch == of && !probe => match (success, failures + 1) {
                    (true, _) => Self::Closed { epoch, failures: 0 },
                    (false, 3) => Self::Open { epoch: epoch + 1, since: now },
                    (false, failures) => Self::Closed { epoch, failures },
                },
                Self::HalfOpen { epoch } if epoch == of && probe => match success {
                    true => Self::Closed { epoch: epoch + 1, failures: 0 },
                    false => Self::Open { epoch: epoch + 1, since: now },
                },
                _ => return,
            };
        }

        fn state(&self) -> State {
            match self {
                Self::Closed { .. } => State::Closed,
                Self::Open { .. } => State::Open,
                Self::HalfOpen { .. } => State::HalfOpen,
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Admit,
        Settle { which: usize, success: bool },
        Drop { which: usize },
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Admit),
            4 => (any::<usize>(), any::<bool>()).prop_map(|(which, success)| Step::Settle { which, success }),
            1 => any::<usize>().prop_map(|which| Step::Drop { which }),
            2 => (0..12_000u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn any_order_of_calls_and_outcomes_goes_as_in_the_model(steps in prop::collection::vec(step(), 0..200)) {
            let breaker = Breaker::default();
            let mut model = Model::Closed { epoch: 0, failures: 0 };
            let mut now = at(1000);
            let mut passes = Vec::new();
            for step in steps {
                match step {
                    Step::Admit => {
                        let (real, modelled) = (breaker.admit(TERMS, now), model.admit(now));
                        prop_assert_eq!(real.is_ok(), modelled.is_some());
                        if let (Ok(pass), Some(token)) = (real, modelled) {
                            prop_assert_eq!(pass.is_probe(), token.1);
                            passes.push((pass, token, now));
                        }
                    }
                    Step::Settle { which, success } if !passes.is_empty() => {
                        let (pass, token, _) = passes.swap_remove(which % passes.len());
                        if success { pass.succeed(); } else { pass.fail(now); }
                        model.settle(token, success, now);
                    }
                    Step::Drop { which } if !passes.is_empty() => {
                        let (pass, token, admitted) = passes.swap_remove(which % passes.len());
                        drop(pass);
                        model.settle(token, false, admitted);
                    }
                    Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                    _ => {}
                }
                prop_assert_eq!(breaker.state(), model.state());
                prop_assert!(passes.iter().filter(|(_, token, _)| token.1).count() <= 1, "more than one probe");
            }
        }
    }
}
