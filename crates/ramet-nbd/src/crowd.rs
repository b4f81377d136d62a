//! Connections that write little and flush often, served by one thread together.
//!
//! Owns two threads, both started when there is a crowd: one serves the guests' requests, the other
//! flushes for all that wait. Each guest has a session of its own, whose thread lends its
//! connection and waits until it gets it back.
//! Invariants: nothing here waits for a client; a connection is in one place at a time, and comes
//! back or is dropped, a panic included; while its flush is under way nothing of it is served.

use crate::channel::Ended;
use crate::codec::Request;
use crate::gathering::{Gathering, PAUSE};
use crate::habit::{Flushes, Habit, UnderWay};
use crate::transmission::Transmission;
use crate::turn::Turn;
use parking_lot::{Condvar, Mutex};
use ramet_engine::EngineError;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use std::collections::HashMap;
use std::io;
use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Further connections keep their own threads.
const GUESTS_MAX: usize = 1024;
/// A guest that is silent for so long, or twice that, goes back to its thread.
const SILENCE: Duration = Duration::from_secs(1);
/// Flushes in a row, with few others under way, before a guest goes back to its thread.
const LONELY_MAX: u32 = 64;
/// Events taken at once.
const EVENTS_MAX: usize = 128;
/// What the eventfd is known by; guests count from 1.
const WAKE: u64 = 0;

/// The crowd of one server.
pub(crate) struct Crowd {
    flushes: Arc<Flushes>,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    wake: OwnedFd,
    guests_count: AtomicUsize,
    /// Of the guest that came last.
    id_last: AtomicU64,
}

#[derive(Default)]
struct State {
    arrivals: Vec<Guest>,
    flushed: Vec<Guest>,
    /// The threads are there, and will look at the two above.
    running: bool,
    /// Nobody is taken in.
    ended: bool,
}

impl Crowd {
    /// `flushes_min`: so many flushes under way at once are a crowd.
    ///
    /// # Errors
    /// What the system says where it has no descriptor left.
    pub(crate) fn new(flushes_min: usize) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (guests_count, id_last) = (AtomicUsize::new(0), AtomicU64::new(WAKE));
        let shared = Arc::new(Shared { state: Mutex::default(), wake, guests_count, id_last });
        Ok(Crowd { flushes: Arc::new(Flushes::new(flushes_min)), shared })
    }

    pub(crate) fn guests_count(&self) -> usize {
        self.shared.guests_count.load(Ordering::Relaxed)
    }

    /// For a new connection.
    pub(crate) fn habit(&self) -> Habit {
        Habit::new(Arc::clone(&self.flushes))
    }

    /// Take nobody in from now on; the threads end with the last guest.
    pub(crate) fn end(&self) {
        self.shared.state.lock().ended = true;
        self.shared.wake();
    }

    /// Have a connection served with others, until something comes up that is not for a crowd.
    ///
    /// # Errors
    /// `Ended`; then the connection is dropped.
    pub(crate) fn serve(
        &self,
        mut transmission: Box<Transmission>,
    ) -> Result<Box<Transmission>, Ended> {
        let place = Arc::new(Place::default());
        {
            let mut state = self.shared.state.lock();
            if state.ended || self.guests_count() >= GUESTS_MAX || !self.run(&mut state) {
                transmission.habit.leave();
                return Ok(transmission);
            }
            self.shared.guests_count.fetch_add(1, Ordering::Relaxed);
            state.arrivals.push(Guest::new(transmission, &place, &self.shared));
        }
        self.shared.wake();
        place.wait()
    }

    /// See that the threads are there. False where they cannot be.
    fn run(&self, state: &mut State) -> bool {
        if state.running {
            return true;
        }
        let (batches, to_flush) = channel();
        let shared = Arc::clone(&self.shared);
        let Ok(host) = Host::new(Arc::clone(&self.shared), Arc::clone(&self.flushes), batches)
        else {
            return false;
        };
        let spawned = Builder::new()
            .name("nbd-crowd-sync".to_owned())
            .spawn(move || flush_batches(&to_flush, &shared))
            .and_then(|_| Builder::new().name("nbd-crowd".to_owned()).spawn(move || host.run()));
        state.running = spawned.is_ok();
        state.running
    }
}

impl Shared {
    fn wake(&self) {
        // Fails only where it is full of wakes already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// Where a connection is put when it comes back.
#[derive(Default)]
struct Place {
    back: Mutex<Option<Result<Box<Transmission>, Ended>>>,
    changed: Condvar,
}

impl Place {
    fn put(&self, back: Result<Box<Transmission>, Ended>) {
        *self.back.lock() = Some(back);
        self.changed.notify_one();
    }

    fn wait(&self) -> Result<Box<Transmission>, Ended> {
        let mut back = self.back.lock();
        loop {
            if let Some(back) = back.take() {
                return back;
            }
            self.changed.wait(&mut back);
        }
    }
}

/// A connection that is here. Dropping it ends the connection.
struct Guest {
    transmission: Option<Box<Transmission>>,
    place: Arc<Place>,
    shared: Arc<Shared>,
    /// Of no other guest.
    id: u64,
    flush: Option<Flush>,
    lonely_count: u32,
}

/// A flush that is under way.
struct Flush {
    request: Request,
    /// What was completed when it was asked for: it need not wait for what the others write since.
    completed: u64,
    /// Nothing before it was done, and where it panicked.
    flushed: Option<Result<(), EngineError>>,
    _under_way: UnderWay,
}

impl Guest {
    fn new(transmission: Box<Transmission>, place: &Arc<Place>, shared: &Arc<Shared>) -> Self {
        let (place, shared) = (Arc::clone(place), Arc::clone(shared));
        let transmission = Some(transmission);
        let id = shared.id_last.fetch_add(1, Ordering::Relaxed) + 1;
        Guest { transmission, place, shared, id, flush: None, lonely_count: 0 }
    }

    fn transmission(&mut self) -> &mut Transmission {
        self.transmission.as_mut().expect("it is taken at the end only")
    }

    /// Back to its own thread.
    fn leave(mut self) {
        if let Some(mut transmission) = self.transmission.take() {
            transmission.habit.leave();
            self.shared.guests_count.fetch_sub(1, Ordering::Relaxed);
            self.place.put(Ok(transmission));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.transmission.is_some() {
            // The device first, then its session is told.
            let dropped = catch_unwind(AssertUnwindSafe(|| self.transmission = None));
            self.shared.guests_count.fetch_sub(1, Ordering::Relaxed);
            self.place.put(Err(Ended));
            drop(dropped);
        }
    }
}

/// Flush for all that wait, batch by batch: the first flush of a batch syncs for the others too.
fn flush_batches(batches: &Receiver<Vec<Guest>>, shared: &Shared) {
    while let Ok(mut batch) = batches.recv() {
        for guest in &mut batch {
            let Guest { transmission: Some(transmission), flush: Some(flush), .. } = guest else {
                continue;
            };
            let device = transmission.device();
            let flushed = catch_unwind(AssertUnwindSafe(|| device.flush_up_to(flush.completed)));
            flush.flushed = flushed.ok();
        }
        let mut state = shared.state.lock();
        if state.running {
            state.flushed.append(&mut batch);
            shared.wake();
        }
        // Else nobody would take them: dropped, outside the lock.
        drop(state);
    }
}

/// What the serving thread knows.
struct Host {
    shared: Arc<Shared>,
    flushes: Arc<Flushes>,
    epoll: OwnedFd,
    batches: Sender<Vec<Guest>>,
    seats: HashMap<u64, Seat>,
    /// Whose flush waits for the one that runs.
    waiting: Vec<Guest>,
    gathering: Gathering,
    flushing: bool,
}

struct Seat {
    socket: Arc<OwnedFd>,
    /// Nothing while its flush waits or runs.
    guest: Option<Guest>,
    heard: bool,
    /// Whether its socket is watched.
    watched: bool,
}

impl Host {
    fn new(
        shared: Arc<Shared>,
        flushes: Arc<Flushes>,
        batches: Sender<Vec<Guest>>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, &shared.wake, data, epoll::EventFlags::IN)?;
        let (seats, waiting) = (HashMap::new(), Vec::new());
        let gathering = Gathering::default();
        Ok(Host { shared, flushes, epoll, batches, seats, waiting, gathering, flushing: false })
    }

    fn run(mut self) {
        let _running = Running(Arc::clone(&self.shared));
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut look_at = Instant::now() + SILENCE;
        loop {
            if !self.wait(&mut events, look_at) {
                return;
            }
            for event in &events {
                match event.data.u64() {
                    WAKE => self.take_wake(),
                    id => self.take_event(id),
                }
            }
            if Instant::now() >= look_at {
                look_at = Instant::now() + SILENCE;
                self.look_for_silence();
            }
            let over = {
                let mut state = self.shared.state.lock();
                let over = self.seats.is_empty() && state.arrivals.is_empty() && state.ended;
                state.running &= !over;
                over
            };
            if over {
                return;
            }
            if self.gathers() {
                self.flush_what_waits(events.is_empty());
            }
        }
    }

    /// Wait for events. False where the system has none to tell.
    fn wait(&self, events: &mut Vec<epoll::Event>, look_at: Instant) -> bool {
        events.clear();
        let left = look_at.saturating_duration_since(Instant::now());
        let left = if self.gathers() { left.min(PAUSE) } else { left };
        let timeout = Timespec::try_from(left).ok().filter(|_| !self.seats.is_empty());
        let room = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.epoll, room, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => true,
            Err(_) => false,
        }
    }

    fn take_wake(&mut self) {
        let mut count = [0; 8];
        // Fails only where another wake was taken with an earlier one.
        let _ = rustix::io::read(&self.shared.wake, &mut count);
        let (arrivals, flushed) = {
            let mut state = self.shared.state.lock();
            (take(&mut state.arrivals), take(&mut state.flushed))
        };
        if !flushed.is_empty() {
            self.flushing = false;
        }
        let few = self.flushes.are_few();
        for guest in flushed {
            self.answer(guest, few);
        }
        for guest in arrivals {
            self.seat(guest);
        }
    }

    fn seat(&mut self, mut guest: Guest) {
        let Some(socket) = guest.transmission().channel.socket() else {
            return guest.leave();
        };
        let data = epoll::EventData::new_u64(guest.id);
        if epoll::add(&self.epoll, socket.as_fd(), data, epoll::EventFlags::IN).is_err() {
            return guest.leave();
        }
        self.seats.insert(guest.id, Seat { socket, guest: None, heard: true, watched: true });
        self.take_turn(guest);
    }

    fn take_event(&mut self, id: u64) {
        let Some(seat) = self.seats.get_mut(&id) else { return };
        match seat.guest.take() {
            Some(guest) => {
                seat.heard = true;
                self.take_turn(guest);
            }
            // Who sends more before its flush is answered is not for a crowd.
            None => {
                seat.watched = false;
                let _ = epoll::delete(&self.epoll, seat.socket.as_fd());
            }
        }
    }

    fn take_turn(&mut self, mut guest: Guest) {
        // A panic ends this connection and nothing else; the panic hook has reported it.
        let turn = catch_unwind(AssertUnwindSafe(|| guest.transmission().take_turn()));
        match turn {
            Ok(Turn::Receive) => self.sit_down(guest),
            Ok(Turn::Flush(request)) => {
                let (_, under_way) = self.flushes.begin();
                let completed = guest.transmission().device().completed();
                guest.flush =
                    Some(Flush { request, completed, flushed: None, _under_way: under_way });
                self.waiting.push(guest);
            }
            Ok(Turn::Leave) => {
                self.clear_seat(guest.id);
                guest.leave();
            }
            Err(_) => {
                self.clear_seat(guest.id);
                drop(guest);
            }
        }
    }

    fn answer(&mut self, mut guest: Guest, few: bool) {
        let Some(Flush { request, flushed: Some(flushed), .. }) = guest.flush.take() else {
            return self.clear_seat(guest.id);
        };
        let answered =
            catch_unwind(AssertUnwindSafe(|| guest.transmission().answer_flush(&request, flushed)));
        let watched = self.seats.get(&guest.id).is_some_and(|seat| seat.watched);
        guest.lonely_count = if few { guest.lonely_count + 1 } else { 0 };
        match answered {
            Ok(all) if !all || !watched || guest.lonely_count >= LONELY_MAX => {
                self.clear_seat(guest.id);
                guest.leave();
            }
            Ok(_) if guest.transmission().channel.pending().is_empty() => self.sit_down(guest),
            Ok(_) => self.take_turn(guest),
            Err(_) => self.clear_seat(guest.id),
        }
    }

    fn sit_down(&mut self, guest: Guest) {
        if let Some(seat) = self.seats.get_mut(&guest.id) {
            seat.guest = Some(guest);
        }
    }

    fn clear_seat(&mut self, id: u64) {
        if let Some(seat) = self.seats.remove(&id)
            && seat.watched
        {
            let _ = epoll::delete(&self.epoll, seat.socket.as_fd());
        }
    }

    /// Whether somebody waits for a sync, and none is under way.
    fn gathers(&self) -> bool {
        !self.flushing && !self.waiting.is_empty()
    }

    fn flush_what_waits(&mut self, nothing_came: bool) {
        if self.gathering.is_over(self.waiting.len(), self.seats.len(), nothing_came) {
            // Where the other thread is gone its guests are dropped, and so are these.
            self.flushing = self.batches.send(take(&mut self.waiting)).is_ok();
        }
    }

    fn look_for_silence(&mut self) {
        let silent: Vec<u64> = self
            .seats
            .iter_mut()
            .filter_map(|(id, seat)| {
                let silent = seat.guest.is_some() && !std::mem::take(&mut seat.heard);
                silent.then_some(*id)
            })
            .collect();
        for id in silent {
            let guest = self.seats.get_mut(&id).and_then(|seat| seat.guest.take());
            self.clear_seat(id);
            if let Some(guest) = guest {
                guest.leave();
            }
        }
    }
}

/// Held by the serving thread: whoever comes after its end finds nobody, or has just missed it.
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.state.lock();
            state.running = false;
            (take(&mut state.arrivals), take(&mut state.flushed))
        };
        // Their connections end here, outside the lock.
        drop(left);
    }
}
