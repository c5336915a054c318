//! Keeps requests abreast: those that a thread has at work at the same time take a step together.
//!
//! A request runs through some 125 KB of code and returns to little of it, four times what the nearest cache of a processor holds: of many that run to
//! their end one after the other each finds the code gone. Of those that take the same step one after the other the first does. And a backend or a
//! caller that is written to is awake from the one before (docs/decisions/0018).

use std::cell::Cell;

/// Steps that are taken at once after one that had no company: whoever is alone would go round by the system for nothing.
const ALONE: u32 = 63;

thread_local! {
    static PACE: Pace = const { Pace::new() };
}

/// Waits until the others that are ready have come as far, if there were any of late.
pub(super) async fn abreast() {
    let Some(wait) = PACE.with(Pace::begin) else { return };
    // Behind all that are ready, and by the scheduler's list for this: one that wakes itself has an idle thread woken to take it away.
    tokio::task::yield_now().await;
    PACE.with(|pace| pace.end(wait));
}

/// Whether the requests of a thread have company: how many begin to wait in a round, which is until the first of them goes on.
struct Pace {
    round: Cell<u32>,
    begun: Cell<u32>,
    /// Steps that are still to be taken at once.
    at_once: Cell<u32>,
}

impl Pace {
    const fn new() -> Self {
        Self { round: Cell::new(0), begun: Cell::new(0), at_once: Cell::new(0) }
    }

    /// The round; `None`: the step is taken at once.
    fn begin(&self) -> Option<u32> {
        if let Some(left) = self.at_once.get().checked_sub(1) {
            self.at_once.set(left);
            return None;
        }
        self.begun.set(self.begun.get() + 1);
        Some(self.round.get())
    }

    /// On a thread to which the request was moved the round may be right by chance, which costs nothing but company.
    fn end(&self, round: u32) {
        if round == self.round.get() {
            self.round.set(round.wrapping_add(1));
            if self.begun.take() == 1 {
                self.at_once.set(ALONE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use futures_util::FutureExt;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    #[tokio::test]
    async fn nobody_goes_on_before_all_that_are_ready_have_come_as_far() {
        let seen = Rc::new(Cell::new(0));
        let local = LocalSet::new();
        for _ in 0..3 * ALONE {
            local
                .run_until(async {
                    seen.set(0);
                    let ready = (0..5).map(|_| {
                        let seen = seen.clone();
                        spawn_local(async move {
                            for came in [5, 10, 15] {
                                seen.set(seen.get() + 1);
                                abreast().await;
                                assert!(seen.get() >= came, "{} of {came}", seen.get());
                            }
                        })
                    });
                    for one in ready.collect::<Vec<_>>() {
                        one.await.unwrap();
                    }
                })
                .await;
        }
    }

    #[tokio::test]
    async fn whoever_is_alone_seldom_waits() {
        let mut waited = 0;
        for _ in 0..10 * (ALONE + 1) {
            let mut step = Box::pin(abreast());
            if (&mut step).now_or_never().is_none() {
                waited += 1;
                step.await;
            }
        }
        assert_eq!(waited, 10);
    }

    #[test]
    fn company_is_whoever_begins_in_the_same_round() {
        let pace = Pace { round: Cell::new(u32::MAX - 3), ..Pace::new() };
        for turn in 0..6 {
            let (first, last) = (pace.begin().unwrap(), pace.begin().unwrap());
            let order = if turn % 2 == 0 { [first, last] } else { [last, first] };
            order.into_iter().for_each(|round| pace.end(round));
        }
        assert!(pace.begin().is_some(), "one that is given up, or ends on another thread");
        let accompanied = pace.begin().unwrap();
        pace.end(accompanied);
        let alone = pace.begin().unwrap();
        pace.end(alone);
        assert!((0..ALONE).all(|_| pace.begin().is_none()));
        assert!(pace.begin().is_some(), "asked anew");
    }
}
