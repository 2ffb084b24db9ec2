//! The immutable Report and its views.
