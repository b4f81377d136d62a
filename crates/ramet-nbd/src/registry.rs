//! Who is connected to what: the connection limit, refused objects, closing.
//!
//! Invariant: from the moment before `Exports::open` is called until the device is dropped, a
//! connection is visible here as opening or attached; so when `close_connections` returns, no
//! session holds or will get a device of the objects it closed.

use crate::judgement::ExportShape;
use crate::large::{LargeMemory, LargeShare};
use crate::transport::Hangup;
use parking_lot::{Condvar, Mutex};
use ramet_engine::{BlockDevice, Changes, EngineError, Export, Exports};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// All connections of a server.
pub(crate) struct Registry {
    state: Mutex<State>,
    changed: Condvar,
    closing: AtomicBool,
    connections_max: usize,
    large: Arc<LargeMemory>,
}

#[derive(Default)]
struct State {
    /// Counts members and openings; never repeats.
    ticket_next: u64,
    members: HashMap<u64, Member>,
    /// Object id to the number of `refuse` calls that were not allowed again.
    refused: HashMap<u64, usize>,
}

struct Member {
    control: Arc<Control>,
    /// Ticket of the `Exports::open` in progress.
    opening: Option<u64>,
    /// The objects that the session holds something of, as often as it does.
    objects: Vec<u64>,
    /// May have to make way: it came over a network and has not chosen an export.
    uncertain: bool,
    /// Was ended to make way, and counts no more.
    gives_way: bool,
}

/// How others end a session.
pub(crate) struct Control {
    stopped: AtomicBool,
    hangup: Box<dyn Hangup>,
}

impl Control {
    /// True when no further request may be started.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.hangup.hang_up();
    }
}

impl Registry {
    pub(crate) fn new(connections_max: usize, large: LargeMemory) -> Self {
        Registry {
            state: Mutex::default(),
            changed: Condvar::new(),
            closing: AtomicBool::new(false),
            connections_max,
            large: Arc::new(large),
        }
    }

    pub(crate) fn connections_count(&self) -> usize {
        self.state.lock().members.len()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Take in a connection; nothing when the server is full or closing.
    ///
    /// `uncertain`: it may be anybody's. Where the server is full, the oldest of these that have
    /// not chosen an export makes way, so that clients who say nothing lock nobody out.
    pub(crate) fn join(
        self: &Arc<Self>,
        hangup: Box<dyn Hangup>,
        uncertain: bool,
    ) -> Option<Membership> {
        let control = Arc::new(Control { stopped: AtomicBool::new(false), hangup });
        let mut state = self.state.lock();
        if self.is_closing() || !state.has_room(self.connections_max) {
            return None;
        }
        let id = state.ticket();
        let member = Member {
            control: Arc::clone(&control),
            opening: None,
            objects: Vec::new(),
            uncertain,
            gives_way: false,
        };
        state.members.insert(id, member);
        drop(state);
        Some(Membership { registry: Arc::clone(self), id, control })
    }

    /// Refuse `objects`, end their connections, and wait until their devices are dropped.
    ///
    /// Result: how many connections were ended.
    pub(crate) fn refuse(&self, objects: &[u64]) -> usize {
        let concerned: HashSet<u64> = objects.iter().copied().collect();
        let mut state = self.state.lock();
        for object in &concerned {
            *state.refused.entry(*object).or_default() += 1;
        }
        let before = state.ticket();
        let attached =
            |member: &Member| member.objects.iter().any(|object| concerned.contains(object));
        let mut ended_count = 0;
        for member in state.members.values().filter(|member| attached(member)) {
            member.control.stop();
            ended_count += 1;
        }
        // Who waits for a predecessor to end.
        self.changed.notify_all();
        // Who was opening cannot know yet that it is refused; who opens later finds out.
        let in_the_way = |member: &Member| {
            attached(member) || member.opening.is_some_and(|ticket| ticket < before)
        };
        self.changed.wait_while(&mut state, |state| state.members.values().any(in_the_way));
        ended_count
    }

    /// Undo one `refuse` of each of `objects`.
    pub(crate) fn allow(&self, objects: &[u64]) {
        let concerned: HashSet<u64> = objects.iter().copied().collect();
        let mut state = self.state.lock();
        for object in &concerned {
            if let Some(count) = state.refused.get_mut(object) {
                *count -= 1;
                if *count == 0 {
                    state.refused.remove(object);
                }
            }
        }
    }

    /// Take nobody in from now on, and wake who waits for that.
    pub(crate) fn begin_closing(&self) {
        let _state = self.state.lock();
        self.closing.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Wait for `begin_closing`, at most `patience`.
    pub(crate) fn wait_for_closing(&self, patience: Duration) {
        let mut state = self.state.lock();
        if !self.is_closing() {
            self.changed.wait_for(&mut state, patience);
        }
    }

    /// Let every session answer what was received, at most `answer` long; then cut it off, and
    /// wait `cut_off` at most.
    ///
    /// Result: how many sessions are still there.
    pub(crate) fn drain(&self, answer: Duration, cut_off: Duration) -> usize {
        let mut state = self.state.lock();
        for member in state.members.values() {
            member.control.hangup.stop_receiving();
        }
        self.wait_until_empty(&mut state, answer);
        for member in state.members.values() {
            member.control.stop();
        }
        self.changed.notify_all();
        self.wait_until_empty(&mut state, cut_off);
        state.members.len()
    }

    fn wait_until_empty(&self, state: &mut parking_lot::MutexGuard<'_, State>, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !state.members.is_empty() {
            if self.changed.wait_until(state, deadline).timed_out() {
                return;
            }
        }
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Member)) {
        let mut state = self.state.lock();
        if let Some(member) = state.members.get_mut(&id) {
            change(member);
        }
        self.changed.notify_all();
    }
}

impl State {
    fn ticket(&mut self) -> u64 {
        self.ticket_next += 1;
        self.ticket_next
    }

    /// Whether one more may come, after somebody made way if need be.
    fn has_room(&mut self, connections_max: usize) -> bool {
        if self.members.len() < connections_max
            || self.members.values().filter(|member| !member.gives_way).count() < connections_max
        {
            return true;
        }
        let idle = |member: &Member| member.opening.is_none() && member.objects.is_empty();
        let waiting = self
            .members
            .iter_mut()
            .filter(|(_, member)| member.uncertain && !member.gives_way && idle(member));
        let Some((_, oldest)) = waiting.min_by_key(|(id, _)| **id) else { return false };
        oldest.gives_way = true;
        oldest.control.stop();
        true
    }
}

/// Why an export could not be opened.
pub(crate) enum Refusal {
    /// The engine says so.
    Engine(EngineError),
    /// Its connections are being closed by force.
    Refused,
    /// The server is closing.
    Closing,
}

/// A connection's place in the registry; leaving it is dropping this.
pub(crate) struct Membership {
    registry: Arc<Registry>,
    id: u64,
    control: Arc<Control>,
}

impl Membership {
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// For the buffers of this connection.
    pub(crate) fn large(&self) -> LargeShare {
        let memory = Arc::clone(&self.registry.large);
        LargeShare::new(memory, self.id, Arc::clone(&self.control))
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Open an export and hold its device.
    ///
    /// # Errors
    /// `Refusal`; then nothing is held.
    pub(crate) fn open(&self, exports: &dyn Exports, name: &str) -> Result<Attachment, Refusal> {
        let (export, device) = self.admit(|| exports.open(name))?;
        let (size_bytes, read_only) = (device.get().size_bytes(), device.get().read_only());
        let shape = ExportShape { size_bytes, read_only };
        Ok(Attachment { export, shape, device })
    }

    /// Before an attachment is used: cancel what sessions of the same object still do whose clients
    /// are gone, and wait for it.
    ///
    /// A client that lost its connection does again what was not answered, and goes on; nothing of
    /// the old connection may land after that.
    ///
    /// # Errors
    /// `Closing`; `Refused` where this connection is ended meanwhile.
    pub(crate) fn succeed(&self, attachment: &Attachment) -> Result<(), Refusal> {
        let object = attachment.export.object;
        let mut state = self.registry.state.lock();
        let mut dead = HashSet::new();
        for (id, member) in &state.members {
            let other = *id != self.id && member.objects.contains(&object);
            if other && member.control.hangup.is_peer_gone() {
                member.control.stop();
                dead.insert(*id);
            }
        }
        if dead.is_empty() {
            return Ok(());
        }
        // Who was waiting itself, and has just been stopped.
        self.registry.changed.notify_all();
        let holds = |state: &State, id| {
            state.members.get(id).is_some_and(|member| member.objects.contains(&object))
        };
        while dead.iter().any(|id| holds(&state, id)) {
            if self.registry.is_closing() {
                return Err(Refusal::Closing);
            }
            if self.control.is_stopped() {
                return Err(Refusal::Refused);
            }
            self.registry.changed.wait(&mut state);
        }
        Ok(())
    }

    /// The client has chosen an export: it makes way for nobody any more.
    pub(crate) fn settle(&self) {
        if let Some(member) = self.registry.state.lock().members.get_mut(&self.id) {
            member.uncertain = false;
        }
    }

    /// Hold what tells the changes of an object since a snapshot.
    ///
    /// # Errors
    /// `Refusal`; then nothing is held.
    pub(crate) fn open_changes(
        &self,
        exports: &dyn Exports,
        object: u64,
        base: &str,
    ) -> Result<(Export, Held<dyn Changes>), Refusal> {
        self.admit(|| exports.open_changes(object, base))
    }

    /// Open something of an object, and hold it unless its object is refused.
    fn admit<T: ?Sized>(
        &self,
        open: impl FnOnce() -> Result<(Export, Arc<T>), EngineError>,
    ) -> Result<(Export, Held<T>), Refusal> {
        let opening = Opening::begin(self);
        // Declared after `opening` and so dropped before it, in a panic too: while a device may
        // exist the registry must show it.
        let (export, thing) = open().map_err(Refusal::Engine)?;
        let mut state = self.registry.state.lock();
        let refusal = if self.registry.is_closing() {
            Some(Refusal::Closing)
        } else if state.refused.contains_key(&export.object) {
            Some(Refusal::Refused)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            drop(state);
            return Err(refusal);
        }
        if let Some(member) = state.members.get_mut(&self.id) {
            member.objects.push(export.object);
        }
        drop(state);
        drop(opening);
        let (registry, object) = (Arc::clone(&self.registry), export.object);
        Ok((export, Held { thing: Some(thing), registry, id: self.id, object }))
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let member = self.registry.state.lock().members.remove(&self.id);
        // The socket may close here: outside the lock.
        drop(member);
        let _state = self.registry.state.lock();
        self.registry.changed.notify_all();
    }
}

/// Marks a connection as opening an export.
struct Opening<'a> {
    membership: &'a Membership,
}

impl<'a> Opening<'a> {
    fn begin(membership: &'a Membership) -> Self {
        let mut state = membership.registry.state.lock();
        let ticket = state.ticket();
        if let Some(member) = state.members.get_mut(&membership.id) {
            member.opening = Some(ticket);
        }
        drop(state);
        Opening { membership }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.membership.registry.change(self.membership.id, |member| member.opening = None);
    }
}

/// An open export.
pub(crate) struct Attachment {
    export: Export,
    shape: ExportShape,
    device: Held<dyn BlockDevice>,
}

impl Attachment {
    pub(crate) fn export(&self) -> &Export {
        &self.export
    }

    /// What the connection sees for as long as it lasts; a resize is seen by the next one.
    pub(crate) fn shape(&self) -> ExportShape {
        self.shape
    }

    pub(crate) fn device(&self) -> &dyn BlockDevice {
        self.device.get()
    }
}

/// Something of an object that a session holds. Dropping it drops the thing, and then says so.
pub(crate) struct Held<T: ?Sized> {
    thing: Option<Arc<T>>,
    registry: Arc<Registry>,
    id: u64,
    object: u64,
}

impl<T: ?Sized> Held<T> {
    pub(crate) fn get(&self) -> &T {
        self.thing.as_deref().expect("the thing is there until this is dropped")
    }
}

impl<T: ?Sized> Drop for Held<T> {
    fn drop(&mut self) {
        // Told even if dropping the thing panics: the waiter would never wake.
        let _told = Detached { registry: &self.registry, id: self.id, object: self.object };
        self.thing = None;
    }
}

struct Detached<'a> {
    registry: &'a Registry,
    id: u64,
    object: u64,
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        self.registry.change(self.id, |member| {
            if let Some(at) = member.objects.iter().position(|object| *object == self.object) {
                member.objects.swap_remove(at);
            }
        });
    }
}
