//! The one tokio runtime, started when it is first needed. It outlives net_kernel:stop/0. And what
//! its threads and the VM's share locks by.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("polydist-io")
            .enable_all()
            .build()
            // Two threads and an epoll descriptor; the VM could not run without those either.
            .expect("the operating system must allow two more threads")
    })
}

/// For calls that need a runtime around them.
pub(crate) fn handle() -> &'static Handle {
    runtime().handle()
}

/// Runs a task on one of our threads, the only ones that may send messages.
pub(crate) fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    runtime().spawn(task)
}

/// A panic elsewhere leaves the values that are locked here whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
