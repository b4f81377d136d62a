//! One connection, from the greeting to the end, on a thread of its own.
//!
//! Invariant: whatever happens, a panic included, the device is dropped, then the socket closed.

use crate::channel::{Channel, Ended};
use crate::crowd::Crowd;
use crate::negotiation::Negotiation;
use crate::registry::Membership;
use crate::tls::Policy;
use crate::transmission::Transmission;
use crate::transport::Transport;
use ramet_engine::Exports;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Serve a connection until it ends.
pub(crate) fn serve(
    transport: Box<dyn Transport>,
    membership: Membership,
    exports: &dyn Exports,
    policy: Option<&Policy>,
    crowd: &Crowd,
) {
    let membership = Arc::new(membership);
    // A panic is the end of this connection and of nothing else; the panic hook has reported it.
    // What it may have left half done is dropped here, or guarded by the engine's own poisoning.
    let _ended =
        catch_unwind(AssertUnwindSafe(|| converse(transport, &membership, exports, policy, crowd)));
    drop(membership);
}

fn converse(
    transport: Box<dyn Transport>,
    membership: &Arc<Membership>,
    exports: &dyn Exports,
    policy: Option<&Policy>,
    crowd: &Crowd,
) -> Result<(), Ended> {
    let mut channel = Channel::new(transport, membership.large());
    let negotiated = Negotiation::new(&mut channel, membership, exports, policy).run()?;
    membership.settle();
    let habit = crowd.habit();
    let mut transmission =
        Box::new(Transmission::new(channel, Arc::clone(membership), negotiated, habit));
    loop {
        transmission.run()?;
        transmission = crowd.serve(transmission)?;
    }
}
