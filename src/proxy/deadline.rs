//! A deadline that moves with every wait and is hardly ever reached. Its timer is set anew only where it would come too late: setting one is
//! a lock of all cores, and was as dear as parsing a head.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug, Default)]
pub(super) struct Deadline {
    patience: Duration,
    until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Begins a wait, which lasts so long from when it is first asked for.
    pub(super) fn begin(&mut self, patience: Duration) {
        self.patience = patience;
        self.until = None;
    }

    /// Ready once the wait has lasted long enough.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience;
        let until = *self.until.get_or_insert_with(|| Instant::now() + patience);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            // It was set for a wait before this one.
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn each_wait_lasts_as_long_as_it_says_whatever_the_timer_was_set_for() {
        let mut deadline = Deadline::default();
        for seconds in [10, 20, 5, 5, 60, 1, 30] {
            let began = Instant::now();
            deadline.begin(Duration::from_secs(seconds));
            poll_fn(|cx| deadline.poll(cx)).await;
            let lasted = began.elapsed();
            assert!(
                lasted >= Duration::from_secs(seconds) && lasted < Duration::from_secs(seconds) + Duration::from_millis(10),
                "{lasted:?}"
            );
            // One that is not waited for to its end.
            deadline.begin(Duration::from_secs(2));
            assert!(poll_fn(|cx| Poll::Ready(deadline.poll(cx))).await.is_pending());
        }
    }
}
