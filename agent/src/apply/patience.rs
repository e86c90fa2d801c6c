//! Waits out what the engine is in the middle of by itself: a removal that somebody else began, a container that ends just
//! while it is renamed. Such an answer says nothing of the release, so it must not count as a failed start.

use std::time::Duration;

use crate::engine::EngineError;

/// How often a call is made again.
const TRIES: u32 = 50;
/// The wait before each.
const WAIT: Duration = Duration::from_millis(200);

/// Makes a call, and again for about ten seconds while its answer is of passing nature.
///
/// # Errors
/// The call's last.
pub(super) async fn patiently<F>(mut call: impl FnMut() -> F) -> Result<(), EngineError>
where
    F: Future<Output = Result<(), EngineError>>,
{
    for _ in 0..TRIES {
        match call().await {
            Err(error) if error.is_passing() => tokio::time::sleep(WAIT).await,
            other => return other,
        }
    }
    call().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removing() -> EngineError {
        let message = "removal of container 0123 is already in progress".into();
        EngineError::Conflict { what: "removing container 0123".into(), message }
    }

    fn other() -> EngineError {
        EngineError::Conflict { what: "renaming container 0123".into(), message: "name in use".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_waited_out_and_what_stays_is_told() {
        let mut answers = vec![Ok(()), Err(removing()), Err(removing())];
        assert_eq!(patiently(|| std::future::ready(answers.pop().unwrap())).await, Ok(()));
        assert!(answers.is_empty());

        let mut calls = 0;
        let mut count = |answer: EngineError| {
            calls += 1;
            std::future::ready(Err(answer))
        };
        assert_eq!(patiently(|| count(other())).await, Err(other()));
        assert_eq!(patiently(|| count(removing())).await, Err(removing()));
        assert_eq!(calls, 1 + TRIES + 1, "another answer at once, this one in the end");
    }
}
