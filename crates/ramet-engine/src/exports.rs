//! The pool as front ends see it: what there is, opened by name.
//!
//! Invariant: what is open counts as attached, so that a command that ends or replaces it is
//! refused or closes it first.

use crate::engine::Engine;
use crate::extents::ChangesSince;
use crate::object::{Object, ObjectKind};
use crate::volume::VolumeDevice;
use crate::{BlockDevice, Changes, EngineError, Export, Exports, Kind};
use ramet_log::ObjectId;
use std::sync::Arc;

/// A pool as front ends see it.
pub struct PoolExports(pub Arc<Engine>);

impl Exports for PoolExports {
    fn list(&self) -> Vec<Export> {
        self.0.table.read().by_name().into_iter().map(export_of).collect()
    }

    fn open(&self, name: &str) -> Result<(Export, Arc<dyn BlockDevice>), EngineError> {
        let device = self.0.attach_object(name)?;
        Ok((export_of(device.object()), Arc::new(device)))
    }

    fn bases(&self, object: u64) -> Vec<Export> {
        let table = self.0.table.read();
        let Some(object) = table.get(ObjectId(object)) else { return Vec::new() };
        let snapshots = || {
            let snapshot = |other: &&Arc<Object>| other.kind() == ObjectKind::Snapshot;
            table.by_name().into_iter().filter(snapshot)
        };
        let related =
            self.0.space.in_family(object.place(), snapshots().map(|other| other.place()));
        let others = snapshots().zip(related).filter(|(_, related)| *related);
        others.map(|(other, _)| export_of(other)).filter(|it| it.object != object.id().0).collect()
    }

    fn open_changes(
        &self,
        object: u64,
        base: &str,
    ) -> Result<(Export, Arc<dyn Changes>), EngineError> {
        let _attaching = self.0.attaching.read();
        let base = self.0.find_object(base)?;
        let object = self.0.table.read().get(ObjectId(object)).cloned();
        let object = object.filter(|object| {
            let mut related = self.0.space.in_family(object.place(), [base.place()].into_iter());
            base.kind() == ObjectKind::Snapshot
                && !base.is_deleted()
                && base.id() != object.id()
                && related.pop() == Some(true)
        });
        let Some(object) = object else {
            let text = format!(
                "'{}' is no snapshot of this family; hint: `ramet tree` shows who is related",
                base.name()
            );
            return Err(EngineError::new(Kind::NotFound, "base_not_related", text));
        };
        let export = export_of(&base);
        let device = |object, attached| VolumeDevice::new(self.0.clone(), object, attached);
        let changes = ChangesSince { base: device(base, true), after: device(object, false) };
        Ok((export, Arc::new(changes)))
    }
}

impl Engine {
    /// Open an object so that it counts as attached until the device is dropped.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while it is being deleted.
    pub fn attach(self: &Arc<Self>, name: &str) -> Result<Arc<dyn BlockDevice>, EngineError> {
        Ok(Arc::new(self.attach_object(name)?))
    }

    fn attach_object(self: &Arc<Self>, name: &str) -> Result<VolumeDevice, EngineError> {
        let _attaching = self.attaching.read();
        let object = self.find_object(name)?;
        if object.is_deleted() {
            return Err(EngineError::new(
                Kind::Busy,
                "object_ending",
                format!("'{name}' is being deleted; hint: choose another"),
            ));
        }
        Ok(VolumeDevice::new(self.clone(), object, true))
    }
}

fn export_of(object: &Arc<Object>) -> Export {
    Export { name: object.name(), object: object.id().0 }
}
