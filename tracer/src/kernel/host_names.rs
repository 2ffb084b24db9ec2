//! How names of hosts are looked up where the C library is linked in. It is here for its unsafe code alone.

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
use std::ffi::{CStr, c_char, c_int};

/// The database, and what is asked for it: only what is in the C library itself (nsswitch.conf(5)).
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
const HOSTS: (&CStr, &CStr) = (c"hosts", c"files dns");

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
unsafe extern "C" {
    /// `nss.h`.
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// Names of hosts come from `/etc/hosts` and the name server, whatever `/etc/nsswitch.conf` says. For everything else it names, the C
/// library would load a module of the machine, with a second C library of another version, and die. For the start of the program.
pub fn look_up_hosts_by_ourselves() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    {
        let (database, services) = HOSTS;
        // SAFETY: both are strings with an end that live for ever; the function copies what it keeps.
        let refused = unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
        debug_assert_eq!(refused, 0, "names of hosts cannot be configured");
    }
}
