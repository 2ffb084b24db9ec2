//! Arguments to a validated plan, and what each subcommand does with it.
