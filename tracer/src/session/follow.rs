//! How a process comes to be followed: what is looked up, attached and granted before the first of its calls is recorded.

use super::{Session, TraceError, process::Traced};
use crate::{
    budget::{Beginning, Limits},
    kernel::KernelError,
    process::procfs::ProcessError,
};

impl Session {
    /// Begins to trace a running process.
    ///
    /// # Errors
    /// There is no such process, it cannot be read, or has no allocator that is known.
    pub fn follow(&mut self, pid: u32) -> Result<(), TraceError> {
        self.note_named(pid);
        let is_followed = |traced: &Traced| traced.ended.is_none();
        if self.processes.get(&pid).is_some_and(is_followed) {
            // The selection wants it, too.
            return Ok(());
        }
        let traced = self.prepare(pid)?;
        let go = self.begin_go(&traced);
        if !self.options.mappings_only && traced.sites.is_empty() && go != Some(Ok(())) {
            self.tables.remove(&mut self.probe, traced.incarnation);
            let why = go.and_then(Result::err).or(traced.why_empty);
            return Err(TraceError::NoAllocator {
                pid,
                comm: traced.comm,
                why: why.unwrap_or_else(|| "nothing could be attached".to_owned()),
            });
        }
        self.growth.begin(&self.proc_root, pid, traced.incarnation);
        self.probe.follow(pid, traced.incarnation)?;
        self.processes.insert(pid, traced);
        Ok(())
    }

    /// Makes a running process ready to be recorded: its tables and its probes are there, and the filter does not know it yet. In this
    /// order a target is trapped for nothing as briefly as can be, and recording begins for all functions at the same instant.
    pub(super) fn prepare(&mut self, pid: u32) -> Result<Traced, TraceError> {
        let mut traced = Traced::open(
            &self.probe,
            &self.proc_root,
            pid,
            self.limits(self.beginning()),
        )?;
        traced
            .space
            .refresh(&self.proc_root, pid, &mut self.modules)
            .map_err(TraceError::from)?;
        traced.incarnation = self.probe.new_incarnation();
        self.install_tables(&mut traced)?;
        traced.measure_exactly(&self.proc_root);
        if let Err(error) = self.attach(&mut traced) {
            self.tables.remove(&mut self.probe, traced.incarnation);
            // That it is gone says more than what could not be done because of it.
            return Err(if traced.is_over() {
                ProcessError::Gone { pid }.into()
            } else {
                error
            });
        }
        // Attaching takes as long as a window: what the process did meanwhile, nobody saw.
        self.begin_first_window(&mut traced);
        Ok(traced)
    }

    /// Begins to trace a child that has not called exec yet; with `children`, also its children and theirs.
    ///
    /// # Errors
    /// The child is gone, or children are to be seen and cannot be.
    pub fn follow_command(&mut self, pid: u32, children: bool) -> Result<(), TraceError> {
        let mut traced = Traced::open(
            &self.probe,
            &self.proc_root,
            pid,
            self.limits(Beginning::Command),
        )?;
        traced.incarnation = self.probe.new_incarnation();
        self.probe
            .follow_command(pid, traced.incarnation, children)?;
        self.processes.insert(pid, traced);
        Ok(())
    }

    /// Attaches to what discovery finds in a process and is not attached yet.
    pub(super) fn attach(&mut self, traced: &mut Traced) -> Result<(), TraceError> {
        if self.options.mappings_only {
            return Ok(());
        }
        traced.attach(
            &self.probe,
            &mut self.links,
            &self.files,
            &self.proc_root,
            self.options.at_exit,
        )
    }

    pub(super) fn install_tables(&mut self, traced: &mut Traced) -> Result<(), KernelError> {
        if self.options.probe.frame_pointers_only {
            return Ok(());
        }
        let marks = self.find_python(traced);
        let problems =
            self.tables
                .install(&mut self.probe, traced.incarnation, &traced.space, &marks)?;
        for problem in problems {
            traced.note(problem);
        }
        Ok(())
    }

    /// What a process is granted that is not a command of ours.
    pub(super) fn beginning(&self) -> Beginning {
        if self.is_of_machine() {
            Beginning::OfMany
        } else {
            Beginning::Named
        }
    }

    /// How a process is to be kept within the budget.
    pub(super) fn limits(&self, beginning: Beginning) -> Limits {
        Limits {
            choice: self.options.tier,
            budget: self.options.budget,
            window: self.options.window,
            beginning,
        }
    }
}
