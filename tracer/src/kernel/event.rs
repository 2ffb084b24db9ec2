//! Records of the probe's ring buffer.

use std::mem::offset_of;

use leakscope_common::{
    Event, EventKind, FaultRecord, MappingRecord, ProbeCookie, STACK_HEADER_BYTES, StackRecord,
};

/// What the probe says of itself, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeEvent {
    /// A stack seen for the first time.
    Stack {
        /// Thread group id.
        pid: u32,
        /// The process incarnation.
        incarnation: u32,
        /// The site's number.
        site: u32,
        /// `STACK_*` flags.
        flags: u16,
        /// The hit slot of the probe that saw it.
        hit_slot: u8,
        /// Function entry, then return addresses, leaf first.
        frames: Vec<u64>,
    },
    /// A process replaced its program.
    Exec {
        /// Thread group id.
        pid: u32,
        /// The incarnation that begins.
        incarnation: u32,
        /// The incarnation that ended; the same when the exec began the trace.
        ended: u32,
        /// Whether it was stopped and waits for [`Probe::resume`].
        held: bool,
    },
    /// A process mapped a file for execution.
    MappedCode {
        /// Thread group id.
        pid: u32,
        /// The process incarnation.
        incarnation: u32,
        /// Whether it was stopped and waits for [`Probe::resume`].
        held: bool,
    },
    /// The walk met an address in no known mapping.
    UnknownMapping {
        /// Thread group id.
        pid: u32,
        /// The process incarnation.
        incarnation: u32,
    },
    /// A process that is not traced, and meets the selection, started or replaced its program.
    Candidate {
        /// Thread group id.
        pid: u32,
    },
    /// A thread changes its process's mappings.
    Mapping(MappingRecord),
    /// A thread wrote to a page that was not there, or might not be written to.
    PageFault(FaultRecord),
    /// A word that is watched was written to.
    Written(FaultRecord),
    /// Go's runtime handed out a block.
    GoBlock(FaultRecord),
    /// A child of a traced command of ours started, and is traced.
    Fork {
        /// Thread group id.
        pid: u32,
        /// The child's process incarnation.
        incarnation: u32,
    },
    /// A process is about to end.
    Ending {
        /// Thread group id.
        pid: u32,
        /// The process incarnation.
        incarnation: u32,
        /// The thread that ends it.
        thread: u32,
        /// Whether it was stopped and waits for [`Probe::resume`].
        held: bool,
    },
    /// A process was trapped so many times more.
    ManyHits {
        /// Thread group id.
        pid: u32,
        /// The process incarnation.
        incarnation: u32,
        /// How many times.
        hits: u32,
    },
    /// A child of a process works in that one's memory, and no probe has seen it.
    UnseenChild {
        /// Thread group id of the parent.
        pid: u32,
        /// The parent's incarnation.
        incarnation: u32,
    },
}

impl ProbeEvent {
    /// The process that it is of, where the event says.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Stack { pid, .. }
            | Self::Exec { pid, .. }
            | Self::MappedCode { pid, .. }
            | Self::UnknownMapping { pid, .. }
            | Self::Candidate { pid }
            | Self::Fork { pid, .. }
            | Self::Ending { pid, .. }
            | Self::ManyHits { pid, .. }
            | Self::UnseenChild { pid, .. } => Some(*pid),
            Self::Mapping(record) => Some(record.tgid),
            Self::PageFault(record) | Self::Written(record) | Self::GoBlock(record) => {
                Some(record.tgid)
            }
        }
    }
}

/// Reads a number at an offset of a record.
fn number<const N: usize>(record: &[u8], offset: usize) -> Option<[u8; N]> {
    record.get(offset..offset + N)?.try_into().ok()
}

/// Reads a step of a mapping.
fn parse_mapping(record: &[u8]) -> Option<MappingRecord> {
    let word = |offset| number(record, offset).map(u32::from_ne_bytes);
    let long = |offset| number(record, offset).map(u64::from_ne_bytes);
    Some(MappingRecord {
        kind: word(offset_of!(MappingRecord, kind))?,
        tgid: word(offset_of!(MappingRecord, tgid))?,
        incarnation: word(offset_of!(MappingRecord, incarnation))?,
        thread: word(offset_of!(MappingRecord, thread))?,
        step: word(offset_of!(MappingRecord, step))?,
        site: word(offset_of!(MappingRecord, site))?,
        protection: word(offset_of!(MappingRecord, protection))?,
        flags: word(offset_of!(MappingRecord, flags))?,
        marks: word(offset_of!(MappingRecord, marks))?,
        page_offset: word(offset_of!(MappingRecord, page_offset))?,
        address: long(offset_of!(MappingRecord, address))?,
        length: long(offset_of!(MappingRecord, length))?,
        new_length: long(offset_of!(MappingRecord, new_length))?,
        at_ns: long(offset_of!(MappingRecord, at_ns))?,
    })
}

/// Reads a page fault.
fn parse_fault(record: &[u8]) -> Option<FaultRecord> {
    let word = |offset| number(record, offset).map(u32::from_ne_bytes);
    let long = |offset| number(record, offset).map(u64::from_ne_bytes);
    Some(FaultRecord {
        kind: word(offset_of!(FaultRecord, kind))?,
        tgid: word(offset_of!(FaultRecord, tgid))?,
        incarnation: word(offset_of!(FaultRecord, incarnation))?,
        site: word(offset_of!(FaultRecord, site))?,
        shift: word(offset_of!(FaultRecord, shift))?,
        marks: word(offset_of!(FaultRecord, marks))?,
        address: long(offset_of!(FaultRecord, address))?,
        at_ns: long(offset_of!(FaultRecord, at_ns))?,
    })
}

/// Reads a record of the ring buffer. One that is shorter than it should be is nothing.
pub(super) fn parse_event(record: &[u8]) -> Option<ProbeEvent> {
    let word = |offset| number(record, offset).map(u32::from_ne_bytes);
    let half = |offset| number(record, offset).map(u16::from_ne_bytes);
    let kind = word(offset_of!(Event, kind))?;
    if kind == EventKind::Stack as u32 {
        let depth = usize::from(half(offset_of!(StackRecord, depth))?);
        let frames = record
            .get(STACK_HEADER_BYTES..)?
            .chunks_exact(8)
            .take(depth)
            .filter_map(|bytes| bytes.try_into().ok().map(u64::from_ne_bytes))
            .collect();
        return Some(ProbeEvent::Stack {
            pid: word(offset_of!(StackRecord, tgid))?,
            incarnation: word(offset_of!(StackRecord, incarnation))?,
            site: word(offset_of!(StackRecord, site))?,
            flags: half(offset_of!(StackRecord, flags))?,
            hit_slot: ProbeCookie::from_bits(u64::from(word(offset_of!(StackRecord, cookie))?))
                .hit_slot,
            frames,
        });
    }
    if kind == EventKind::Mapping as u32 {
        return parse_mapping(record).map(ProbeEvent::Mapping);
    }
    if kind == EventKind::PageFault as u32 {
        return parse_fault(record).map(ProbeEvent::PageFault);
    }
    if kind == EventKind::Written as u32 {
        return parse_fault(record).map(ProbeEvent::Written);
    }
    if kind == EventKind::GoBlock as u32 {
        return parse_fault(record).map(ProbeEvent::GoBlock);
    }
    let pid = word(offset_of!(Event, tgid))?;
    let incarnation = word(offset_of!(Event, incarnation))?;
    let held = word(offset_of!(Event, held))? != 0;
    if kind == EventKind::Exec as u32 {
        Some(ProbeEvent::Exec {
            pid,
            incarnation,
            ended: word(offset_of!(Event, value))?,
            held,
        })
    } else if kind == EventKind::MappedCode as u32 {
        Some(ProbeEvent::MappedCode {
            pid,
            incarnation,
            held,
        })
    } else if kind == EventKind::Ending as u32 {
        Some(ProbeEvent::Ending {
            pid,
            incarnation,
            thread: word(offset_of!(Event, value))?,
            held,
        })
    } else if kind == EventKind::UnknownMapping as u32 {
        Some(ProbeEvent::UnknownMapping { pid, incarnation })
    } else if kind == EventKind::Candidate as u32 {
        Some(ProbeEvent::Candidate { pid })
    } else if kind == EventKind::Fork as u32 {
        Some(ProbeEvent::Fork { pid, incarnation })
    } else if kind == EventKind::ManyHits as u32 {
        Some(ProbeEvent::ManyHits {
            pid,
            incarnation,
            hits: word(offset_of!(Event, value))?,
        })
    } else if kind == EventKind::UnseenChild as u32 {
        Some(ProbeEvent::UnseenChild { pid, incarnation })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{ProbeEvent, parse_event};
    use leakscope_common::{EventKind, FaultRecord};

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn a_stack_is_read_as_deep_as_it_is() {
        // kind, tgid, incarnation, site, depth and flags, cookie (function 1, hit slot 3), two of three frames.
        let mut record = words(&[EventKind::Stack as u32, 7, 8, 9, 2 | 1 << 16, 1 | 3 << 8]);
        for frame in [0x10_u64, 0x20, 0x30] {
            record.extend_from_slice(&frame.to_ne_bytes());
        }
        assert_eq!(
            parse_event(&record),
            Some(ProbeEvent::Stack {
                pid: 7,
                incarnation: 8,
                site: 9,
                flags: 1,
                hit_slot: 3,
                frames: vec![0x10, 0x20],
            })
        );
    }

    #[test]
    fn a_page_fault_is_read_whole_or_not_at_all() {
        let fault = FaultRecord {
            kind: EventKind::PageFault as u32,
            tgid: 7,
            incarnation: 8,
            site: 9,
            shift: 4,
            marks: 1,
            address: 0x7fff_0000_1000,
            at_ns: 1 << 40,
        };
        let mut record = words(&[EventKind::PageFault as u32, 7, 8, 9, 4, 1]);
        record.extend_from_slice(&fault.address.to_ne_bytes());
        record.extend_from_slice(&fault.at_ns.to_ne_bytes());
        assert_eq!(parse_event(&record), Some(ProbeEvent::PageFault(fault)));
        for length in 0..record.len() {
            assert_eq!(parse_event(record.get(..length).unwrap_or_default()), None);
        }
    }

    #[test]
    fn records_that_are_too_short_or_unknown_are_nothing() {
        let exec = words(&[EventKind::Exec as u32, 7, 8, 6, 1, 0, 0, 0]);
        assert_eq!(
            parse_event(&exec),
            Some(ProbeEvent::Exec {
                pid: 7,
                incarnation: 8,
                ended: 6,
                held: true,
            })
        );
        for length in 0..20 {
            assert_eq!(parse_event(exec.get(..length).unwrap_or_default()), None);
        }
        assert_eq!(
            parse_event(&words(&[EventKind::ManyHits as u32, 7, 8, 256, 0, 0, 0, 0])),
            Some(ProbeEvent::ManyHits {
                pid: 7,
                incarnation: 8,
                hits: 256,
            })
        );
        assert_eq!(
            parse_event(&words(&[EventKind::Ending as u32, 7, 8, 9, 1, 0, 0, 0])),
            Some(ProbeEvent::Ending {
                pid: 7,
                incarnation: 8,
                thread: 9,
                held: true,
            })
        );
        assert_eq!(parse_event(&words(&[99, 7, 8, 6, 1, 0, 0, 0])), None);
    }
}
