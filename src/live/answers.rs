//! Answers of one remote party about credentials: remembered for their time, asked once for all who wait, behind a circuit breaker.
//!
//! A call runs in a task of its own. No caller can cut it short by going away, neither for the others who wait for its answer nor for the
//! breaker, which would otherwise count callers who hang up as failures of the party. Each caller waits with a deadline of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::breaker::{self, Breaker, Change};
use crate::request::Now;

/// Calls that are under way at one time; more wait for their turn. It keeps a recovery from becoming the next outage.
const CALLS: usize = 64;
/// Questions that are asked or wait for their turn at one time; more are answered "away", so that a flood of new credentials costs no memory.
const FLIGHTS: usize = 4096;
/// An answer up to this many bytes takes one place of the cache; a longer one takes several.
const PLACE: usize = 4096;
/// When it is worth asking again after a crowd or a call that ended without an outcome.
const SOON: Duration = Duration::from_secs(1);

/// SHA-256 of everything that an answer depends on. Whoever hashes less gives one caller the answer of another.
pub type Question = [u8; 32];

/// How a party is asked; what an operator may tune without losing what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long a caller waits, and how long a call may take.
    pub timeout: Duration,
    /// When the breaker opens.
    pub breaker: breaker::Terms,
}

/// What a party said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<V> {
    /// What it said, as facts: what depends on the route or on the time is judged with every request.
    pub value: V,
    /// Whether it speaks for the caller. The two kinds are kept apart, so that a flood of refused credentials displaces no good one.
    pub good: bool,
    /// Until when it is repeated without asking (monotonic).
    pub fresh_until: Duration,
    /// An estimate of its size in memory, in bytes.
    pub size: usize,
}

/// A call that brought no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Why. It goes to the log and to the operator: it must not hold a credential.
    pub why: String,
    /// How long the party asks to be left alone; absent where it does not say.
    pub retry_after: Option<Duration>,
}

impl<T: Into<String>> From<T> for Failure {
    fn from(why: T) -> Self {
        Self { why: why.into(), retry_after: None }
    }
}

/// The party gave no answer: it is away, or too much is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away {
    /// When it is worth asking again.
    pub retry_after: Duration,
}

/// What operators may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What the breaker is.
    pub breaker: breaker::State,
    /// Answers kept that speak for the caller.
    pub good: usize,
    /// Answers kept that do not.
    pub bad: usize,
    /// Questions that were answered from what is kept, since the start.
    pub hits: u64,
    /// Questions that were not.
    pub misses: u64,
    /// Calls, since the start.
    pub calls: u64,
    /// Those that failed.
    pub failures: u64,
    /// Requests that were let in without a fresh answer, since the start.
    pub excused: u64,
    /// Why the last call failed; absent when it did not.
    pub last_error: Option<String>,
}

/// The answers of one party.
pub struct Answers<V> {
    /// Who is asked, for the log.
    party: Arc<str>,
    breaker: Breaker,
    good: Kept<V>,
    bad: Kept<V>,
    flights: Mutex<HashMap<Question, Landing<V>>>,
    turns: Semaphore,
    hits: AtomicU64,
    misses: AtomicU64,
    calls: AtomicU64,
    failures: AtomicU64,
    excused: AtomicU64,
    last_error: Mutex<Option<String>>,
}

type Kept<V> = Cache<Question, Arc<Answer<V>>, BySize>;
type Landing<V> = watch::Receiver<Option<Result<Arc<Answer<V>>, Away>>>;

impl<V: Send + Sync + 'static> Answers<V> {
    /// No answers yet. At most `entries` are kept of each kind, fewer if they are long.
    pub fn new(party: Arc<str>, entries: usize) -> Self {
        let kept = || Cache::with_weighter(entries, entries as u64, BySize);
        Self {
            party,
            breaker: Breaker::default(),
            good: kept(),
            bad: kept(),
            flights: Mutex::default(),
            turns: Semaphore::new(CALLS),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            excused: AtomicU64::new(0),
            last_error: Mutex::default(),
        }
    }

    /// Keeps at most `entries` of each kind from now on.
    pub fn resize(&self, entries: usize) {
        self.good.set_capacity(entries as u64);
        self.bad.set_capacity(entries as u64);
    }

    /// The answer that is still fresh. It neither waits nor allocates.
    pub fn fresh(&self, question: &Question, now: Now) -> Option<Arc<Answer<V>>> {
        let found = self.kept(question, now);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// The last answer, however old: for a party that is away.
    pub fn last(&self, question: &Question) -> Option<Arc<Answer<V>>> {
        self.good.get(question).or_else(|| self.bad.get(question))
    }

    /// Asks, or waits for the answer to the same question that somebody else is waiting for.
    ///
    /// # Errors
    /// There is no answer within the timeout, the call failed, or the breaker is open.
    pub async fn ask<F>(
        self: &Arc<Self>,
        question: Question,
        terms: Terms,
        now: Now,
        call: impl FnOnce() -> F,
    ) -> Result<Arc<Answer<V>>, Away>
    where
        F: Future<Output = Result<Answer<V>, Failure>> + Send + 'static,
    {
        let mut landing = self.board(question, terms, now, call)?;
        match timeout(terms.timeout, landing.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Err(Away { retry_after: SOON })),
            // Too late, or the call panicked.
            _ => Err(Away { retry_after: SOON }),
        }
    }

    /// Counts a request that is let in without a fresh answer, as the operator wants it while the party is away.
    pub fn excuse(&self) {
        self.excused.fetch_add(1, Ordering::Relaxed);
    }

    /// What operators may know.
    pub fn status(&self) -> Status {
        Status {
            breaker: self.breaker.state(),
            good: self.good.len(),
            bad: self.bad.len(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            calls: self.calls.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            excused: self.excused.load(Ordering::Relaxed),
            last_error: lock(&self.last_error).clone(),
        }
    }

    fn kept(&self, question: &Question, now: Now) -> Option<Arc<Answer<V>>> {
        let is_fresh = |answer: &Arc<Answer<V>>| now.monotonic < answer.fresh_until;
        self.good.get(question).filter(is_fresh).or_else(|| self.bad.get(question).filter(is_fresh))
    }

    fn keep(&self, question: Question, answer: &Arc<Answer<V>>) {
        // First out of the one, then into the other: a withdrawn credential is never found among the good.
        let (from, to) = if answer.good { (&self.bad, &self.good) } else { (&self.good, &self.bad) };
        from.remove(&question);
        to.insert(question, Arc::clone(answer));
    }

    /// Joins the flight of this question, or starts it.
    fn board<F>(self: &Arc<Self>, question: Question, terms: Terms, now: Now, call: impl FnOnce() -> F) -> Result<Landing<V>, Away>
    where
        F: Future<Output = Result<Answer<V>, Failure>> + Send + 'static,
    {
        let mut flights = lock(&self.flights);
        if let Some(landing) = flights.get(&question) {
            return Ok(landing.clone());
        }
        // A flight leaves its answer before it leaves the table: whoever missed it by a moment does not ask again.
        if let Some(answer) = self.kept(&question, now) {
            return Ok(watch::channel(Some(Ok(answer))).1);
        }
        if let Some(retry_after) = self.breaker.refuses(terms.breaker, now.monotonic) {
            return Err(Away { retry_after });
        }
        if flights.len() >= FLIGHTS {
            return Err(Away { retry_after: SOON });
        }
        let (tell, landing) = watch::channel(None);
        flights.insert(question, landing.clone());
        drop(flights);
        let flight = Flight { answers: Arc::clone(self), question, tell };
        tokio::spawn(flight.fly(terms, now, call()));
        Ok(landing)
    }
}

impl<V> std::fmt::Debug for Answers<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").field("party", &self.party).field("breaker", &self.breaker.state()).finish_non_exhaustive()
    }
}

/// One question under way. However it ends, its place in the table is free afterwards.
struct Flight<V> {
    answers: Arc<Answers<V>>,
    question: Question,
    tell: watch::Sender<Option<Result<Arc<Answer<V>>, Away>>>,
}

impl<V: Send + Sync + 'static> Flight<V> {
    async fn fly(self, terms: Terms, now: Now, call: impl Future<Output = Result<Answer<V>, Failure>>) {
        let started = Instant::now();
        let outcome = self.outcome(terms, || now.monotonic + started.elapsed(), call).await;
        self.leave_table();
        self.tell.send_replace(Some(outcome));
    }

    async fn outcome(
        &self,
        terms: Terms,
        now: impl Fn() -> Duration,
        call: impl Future<Output = Result<Answer<V>, Failure>>,
    ) -> Result<Arc<Answer<V>>, Away> {
        let answers = &*self.answers;
        let Ok(Ok(_turn)) = timeout(terms.timeout, answers.turns.acquire()).await else {
            return Err(Away { retry_after: SOON });
        };
        // Those who asked may have given up while it waited: a call for nobody would keep others waiting.
        if self.tell.receiver_count() <= 1 {
            return Err(Away { retry_after: SOON });
        }
        let pass = answers.breaker.admit(terms.breaker, now()).map_err(|retry_after| Away { retry_after })?;
        answers.calls.fetch_add(1, Ordering::Relaxed);
        let answered = timeout(terms.timeout, call).await;
        match answered.unwrap_or_else(|_| Err(format!("no complete answer within {:?}", terms.timeout).into())) {
            Ok(answer) => {
                let answer = Arc::new(answer);
                answers.keep(self.question, &answer);
                lock(&answers.last_error).take();
                if pass.succeed() == Some(Change::Closed) {
                    tracing::info!(party = %answers.party, "it answers again; the breaker is closed");
                }
                Ok(answer)
            }
            Err(Failure { why: error, retry_after }) => {
                answers.failures.fetch_add(1, Ordering::Relaxed);
                let probe = pass.is_probe();
                if pass.fail(now()) == Some(Change::Opened) && !probe {
                    tracing::warn!(party = %answers.party, error, "it does not answer; the breaker is open");
                }
                *lock(&answers.last_error) = Some(error);
                let ours = answers.breaker.refuses(terms.breaker, now()).unwrap_or(SOON);
                // What it asks for is passed on and not obeyed: said for one caller's sake it would silence all.
                Err(Away { retry_after: retry_after.map_or(ours, |asked| asked.max(ours)) })
            }
        }
    }
}

impl<V> Flight<V> {
    fn leave_table(&self) {
        let mut flights = lock(&self.answers.flights);
        // Another flight of the same question may have begun since this one left.
        if flights.get(&self.question).is_some_and(|landing| landing.same_channel(&self.tell.subscribe())) {
            flights.remove(&self.question);
        }
    }
}

impl<V> Drop for Flight<V> {
    fn drop(&mut self) {
        self.leave_table();
    }
}

#[derive(Debug, Clone)]
struct BySize;

impl<V> Weighter<Question, Arc<Answer<V>>> for BySize {
    fn weight(&self, _: &Question, answer: &Arc<Answer<V>>) -> u64 {
        answer.size.div_ceil(PLACE).max(1) as u64
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const TERMS: Terms = Terms { timeout: Duration::from_secs(2), breaker: breaker::Terms { failures: 3, open: Duration::from_secs(10) } };

    /// A party with a clock that follows tokio's paused time.
    struct Party {
        answers: Arc<Answers<u32>>,
        started: Instant,
        asked: Arc<AtomicUsize>,
    }

    impl Party {
        fn new() -> Self {
            let answers = Arc::new(Answers::new("party".into(), 1000));
            Self { answers, started: Instant::now(), asked: Arc::default() }
        }

        fn now(&self) -> Now {
            let passed = self.started.elapsed();
            Now { monotonic: Duration::from_secs(100) + passed, unix: Duration::from_secs(1_800_000_000) + passed }
        }

        /// Asks; the party answers with `answer` after `pause`, for a minute.
        async fn ask(&self, question: u8, pause: Duration, answer: Result<u32, &'static str>) -> Result<u32, Away> {
            let (asked, now) = (Arc::clone(&self.asked), self.now());
            let call = move || async move {
                asked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(pause).await;
                let fresh_until = now.monotonic + Duration::from_secs(60);
                answer.map(|value| Answer { value, good: value > 0, fresh_until, size: 100 }).map_err(Failure::from)
            };
            self.answers.ask([question; 32], TERMS, now, call).await.map(|answer| answer.value)
        }

        fn fresh(&self, question: u8) -> Option<u32> {
            self.answers.fresh(&[question; 32], self.now()).map(|answer| answer.value)
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    const AT_ONCE: Duration = Duration::ZERO;
    const TOO_LATE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_repeated_for_its_time_and_to_nobody_else() {
        let party = Party::new();
        assert_eq!(party.ask(1, AT_ONCE, Ok(7)).await, Ok(7));
        assert_eq!((party.fresh(1), party.fresh(2)), (Some(7), None));
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!(party.fresh(1), Some(7));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(party.fresh(1), None);
        assert_eq!(party.answers.last(&[1; 32]).unwrap().value, 7, "for a party that is away");
        let status = party.answers.status();
        assert_eq!((status.hits, status.misses, status.calls, status.failures), (2, 2, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_the_same_wait_for_one_call() {
        let party = Party::new();
        let all = futures_util::future::join_all((0..500).map(|_| party.ask(1, Duration::from_millis(500), Ok(7)))).await;
        assert!(all.iter().all(|answer| *answer == Ok(7)));
        assert_eq!(party.asked(), 1);
        // The failure of one call is everybody's, and costs the breaker one failure.
        let all = futures_util::future::join_all((0..500).map(|_| party.ask(2, Duration::from_millis(500), Err("away")))).await;
        assert!(all.iter().all(|answer| answer.is_err()));
        assert_eq!((party.asked(), party.answers.status().breaker), (2, breaker::State::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_hangs_up_neither_ends_the_call_nor_counts_as_a_failure() {
        let party = Party::new();
        for question in 0..10 {
            let hasty = timeout(Duration::from_millis(10), party.ask(question, Duration::from_millis(500), Ok(7)));
            let patient = party.ask(question, AT_ONCE, Ok(8));
            let (hasty, patient) = tokio::join!(hasty, patient);
            assert!(hasty.is_err());
            assert_eq!(patient, Ok(7), "the call that the other one began");
        }
        for question in 10..20 {
            let _ = timeout(Duration::from_millis(10), party.ask(question, Duration::from_millis(500), Ok(7))).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(party.fresh(19), Some(7));
        let status = party.answers.status();
        assert_eq!((status.failures, status.breaker), (0, breaker::State::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_waits_for_the_timeout_and_no_longer() {
        let party = Party::new();
        let started = Instant::now();
        assert!(party.ask(1, TOO_LATE, Ok(7)).await.is_err());
        assert_eq!(started.elapsed().as_secs(), 2);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(party.answers.status().failures, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_party_that_fails_is_left_alone_until_one_probe_succeeds() {
        let party = Party::new();
        for question in 0..3 {
            assert!(party.ask(question, AT_ONCE, Err("status 500")).await.is_err());
        }
        assert_eq!(party.answers.status().last_error.as_deref(), Some("status 500"));
        assert_eq!(party.ask(4, AT_ONCE, Ok(7)).await, Err(Away { retry_after: Duration::from_secs(10) }));
        assert_eq!(party.asked(), 3, "nobody asked");

        tokio::time::sleep(Duration::from_secs(10)).await;
        let probe = futures_util::future::join_all((10..100).map(|question| party.ask(question, Duration::from_millis(500), Err("x"))));
        assert!(probe.await.iter().all(Result::is_err));
        assert_eq!(party.asked(), 4, "one probe among ninety");
        assert_eq!(party.ask(4, AT_ONCE, Ok(7)).await.unwrap_err().retry_after.as_secs(), 10);

        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(party.ask(4, AT_ONCE, Ok(7)).await, Ok(7));
        assert_eq!(party.ask(5, AT_ONCE, Ok(8)).await, Ok(8));
        let status = party.answers.status();
        assert_eq!((status.breaker, status.last_error), (breaker::State::Closed, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_is_repeated_while_the_breaker_is_open() {
        let party = Party::new();
        assert_eq!(party.ask(1, AT_ONCE, Ok(7)).await, Ok(7));
        for question in 2..5 {
            assert!(party.ask(question, AT_ONCE, Err("away")).await.is_err());
        }
        assert_eq!(party.answers.status().breaker, breaker::State::Open);
        assert_eq!(party.fresh(1), Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_panics_is_a_failure_and_answers_nobody() {
        let party = Party::new();
        for question in 0..3 {
            let call = || async { panic!("a bug") };
            let (answers, now) = (&party.answers, party.now());
            let pair = tokio::join!(answers.ask([question; 32], TERMS, now, call), answers.ask([question; 32], TERMS, now, call));
            assert_eq!((pair.0.is_err(), pair.1.is_err()), (true, true));
        }
        assert_eq!(party.answers.status().breaker, breaker::State::Open);
        assert!(lock(&party.answers.flights).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_withdrawn_credential_is_not_among_the_good_any_more() {
        let party = Party::new();
        assert_eq!(party.ask(1, AT_ONCE, Ok(7)).await, Ok(7));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(party.ask(1, AT_ONCE, Ok(0)).await, Ok(0));
        assert_eq!(party.answers.last(&[1; 32]).unwrap().value, 0);
        let status = party.answers.status();
        assert_eq!((status.good, status.bad), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_questions_is_asked_a_few_at_a_time_and_refused_beyond_a_bound() {
        let party = Party::new();
        let under_way = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let ask = |question: usize| {
            let (under_way, most, now) = (Arc::clone(&under_way), Arc::clone(&most), party.now());
            let call = move || async move {
                most.fetch_max(under_way.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
                under_way.fetch_sub(1, Ordering::Relaxed);
                Ok(Answer { value: 1, good: true, fresh_until: now.monotonic, size: 1 })
            };
            let mut key = [0; 32];
            key[..8].copy_from_slice(&question.to_le_bytes());
            let answers = Arc::clone(&party.answers);
            async move { answers.ask(key, TERMS, now, call).await }
        };
        let all = futures_util::future::join_all((0..FLIGHTS + 100).map(ask)).await;
        assert_eq!(all.iter().filter(|answer| answer.is_err()).count(), 100);
        assert_eq!(most.load(Ordering::Relaxed), CALLS);
        assert!(lock(&party.answers.flights).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_gave_up_waiting_for_their_turn_cost_no_call() {
        let party = Party::new();
        let slow = Duration::from_millis(1900);
        let crowd = (0..=200).map(|question| party.ask(question, slow, Ok(7)));
        let answered = futures_util::future::join_all(crowd).await.into_iter().filter(Result::is_ok).count();
        assert_eq!(answered, CALLS);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(party.asked() <= 2 * CALLS, "{}", party.asked());
        assert_eq!(party.answers.status().breaker, breaker::State::Closed, "a crowd is no failure of the party");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_bounded_by_number_and_by_size_and_displaces_no_good_answer() {
        let answers = Answers::new("party".into(), 1000);
        let keep = |question: usize, good: bool, size: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&question.to_le_bytes());
            answers.keep(key, &Arc::new(Answer { value: question, good, fresh_until: Duration::MAX, size }));
            key
        };
        let good = keep(0, true, 100);
        for question in 1..100_000 {
            keep(question, false, 100);
        }
        assert!(answers.last(&good).is_some());
        assert!(answers.status().bad <= 1000);
        for question in 1..10_000 {
            keep(question, true, 10 * PLACE);
        }
        assert!(answers.status().good <= 101, "{}", answers.status().good);
        answers.resize(10);
        assert!(answers.status().bad <= 10 + 64, "{}", answers.status().bad);
    }
}
