//! Locks for what clients wait for: whoever has to wait sleeps, and is woken.
//!
//! parking_lot's locks, which everything else uses, give the processor up a few times before they
//! sleep (`sched_yield`). Linux takes that at its word: on a busy machine each time costs a turn of
//! some milliseconds. The standard library's do not. They are handed over by chance, so what is
//! held for long, and taken again at once, is better off with parking_lot's.
//!
//! A panic of whoever held one changes nothing for the next.

pub use std::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
use std::sync::{PoisonError, TryLockError};

/// One thread at a time.
#[derive(Debug, Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// One that nobody has.
    pub const fn new(value: T) -> Self {
        Mutex(std::sync::Mutex::new(value))
    }

    /// Wait until nobody has it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` where somebody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Many readers, or one writer.
#[derive(Debug, Default)]
pub struct RwLock<T>(std::sync::RwLock<T>);

impl<T> RwLock<T> {
    /// One that nobody has.
    pub const fn new(value: T) -> Self {
        RwLock(std::sync::RwLock::new(value))
    }

    /// Wait until nobody writes.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait until nobody else has it.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for what a `Mutex` protects to change.
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    /// One that nobody waits for.
    pub const fn new() -> Self {
        Condvar(std::sync::Condvar::new())
    }

    /// Let go of the lock, wait for a notice or for nothing, and take it again.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Wake everybody.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_panic_the_next_one_gets_it() {
        let (mutex, rwlock) = (Mutex::new(1), RwLock::new(2));
        let panics = std::thread::scope(|scope| {
            let one = || {
                let _held = (mutex.lock(), rwlock.write());
                panic!("while both are held");
            };
            scope.spawn(one).join().is_err()
        });
        assert!(panics);
        assert_eq!(*mutex.lock(), 1);
        assert_eq!(mutex.try_lock().map(|it| *it), Some(1));
        assert_eq!(*rwlock.read(), 2);
        assert_eq!(*rwlock.write(), 2);
    }

    #[test]
    fn what_somebody_has_is_not_had_at_once() {
        let mutex = Mutex::new(());
        let held = mutex.lock();
        assert!(mutex.try_lock().is_none());
        drop(held);
        assert!(mutex.try_lock().is_some());
    }
}
