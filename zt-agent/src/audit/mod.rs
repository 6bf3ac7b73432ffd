//! Decision events become the audit trail.
