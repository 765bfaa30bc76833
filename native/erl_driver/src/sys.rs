//! The part of `erl_driver.h` that this crate uses, word for word, and where its functions are
//! found.
//!
//! The functions belong to the VM's executable. They are looked up by `dlsym` when the driver is
//! loaded, not by the linker, so that crates depending on this one link, and run their tests, where
//! there is no VM.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::sync::OnceLock;

/// `ErlDrvPort`: the VM's handle of a port, meaningless to others.
pub(crate) type ErlDrvPort = *mut c_void;
/// `ErlDrvData`: what the driver's `start` gave and every callback gets.
pub(crate) type ErlDrvData = *mut c_void;
/// `ErlDrvEvent`: on Unix a file descriptor widened to a pointer.
pub(crate) type ErlDrvEvent = *mut c_void;

pub(crate) const ERL_DRV_ERROR_GENERAL: ErlDrvData = usize::MAX as ErlDrvData; // (ErlDrvData) -1

pub(crate) const ERL_DRV_READ: c_int = 1;
pub(crate) const ERL_DRV_WRITE: c_int = 2;
pub(crate) const ERL_DRV_USE: c_int = 4;

pub(crate) const ERL_DRV_EXTENDED_MARKER: c_int = 0xfeee_eeed_u32 as c_int;
pub(crate) const ERL_DRV_EXTENDED_MAJOR_VERSION: c_int = 3;
pub(crate) const ERL_DRV_EXTENDED_MINOR_VERSION: c_int = 3;
pub(crate) const ERL_DRV_FLAG_USE_PORT_LOCKING: c_int = 1;
pub(crate) const ERL_DRV_FLAG_SOFT_BUSY: c_int = 2;
pub(crate) const PORT_CONTROL_FLAG_BINARY: c_int = 1;

/// `ErlDrvBinary`: the head of a reference-counted binary; its bytes follow.
#[repr(C)]
pub(crate) struct ErlDrvBinary {
    pub(crate) orig_size: isize,
    pub(crate) orig_bytes: [u8; 1],
}

/// `ErlIOVec`: a message as a vector of buffers, each with the binary that owns it, or none.
#[repr(C)]
pub(crate) struct ErlIOVec {
    pub(crate) vsize: c_int,
    pub(crate) size: usize,
    pub(crate) iov: *mut libc::iovec,
    pub(crate) binv: *mut *mut ErlDrvBinary,
}

/// `ErlDrvEntry`, as of driver ABI 3.3 (OTP 20 and later).
#[repr(C)]
pub struct ErlDrvEntry {
    pub(crate) init: Option<extern "C" fn() -> c_int>,
    pub(crate) start: Option<unsafe extern "C" fn(ErlDrvPort, *mut c_char) -> ErlDrvData>,
    pub(crate) stop: Option<unsafe extern "C" fn(ErlDrvData)>,
    pub(crate) output: Option<unsafe extern "C" fn(ErlDrvData, *mut c_char, usize)>,
    pub(crate) ready_input: Option<unsafe extern "C" fn(ErlDrvData, ErlDrvEvent)>,
    pub(crate) ready_output: Option<unsafe extern "C" fn(ErlDrvData, ErlDrvEvent)>,
    pub(crate) driver_name: *const c_char,
    pub(crate) finish: Option<extern "C" fn()>,
    pub(crate) handle: *mut c_void,
    pub(crate) control: Option<
        unsafe extern "C" fn(
            ErlDrvData,
            c_uint,
            *mut c_char,
            usize,
            *mut *mut c_char,
            usize,
        ) -> isize,
    >,
    pub(crate) timeout: Option<unsafe extern "C" fn(ErlDrvData)>,
    pub(crate) outputv: Option<unsafe extern "C" fn(ErlDrvData, *mut ErlIOVec)>,
    pub(crate) ready_async: Option<unsafe extern "C" fn(ErlDrvData, *mut c_void)>,
    pub(crate) flush: Option<unsafe extern "C" fn(ErlDrvData)>,
    pub(crate) call: Option<extern "C" fn()>,
    pub(crate) unused_event_callback: Option<extern "C" fn()>,
    pub(crate) extended_marker: c_int,
    pub(crate) major_version: c_int,
    pub(crate) minor_version: c_int,
    pub(crate) driver_flags: c_int,
    pub(crate) handle2: *mut c_void,
    pub(crate) process_exit: Option<extern "C" fn()>,
    pub(crate) stop_select: Option<unsafe extern "C" fn(ErlDrvEvent, *mut c_void)>,
    pub(crate) emergency_close: Option<extern "C" fn()>,
}

macro_rules! functions {
    ($(fn $name:ident($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The VM's driver functions.
        #[allow(missing_docs)]
        pub(crate) struct Functions {
            $(pub(crate) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Functions {
            fn find() -> Option<Self> {
                Some(Self {
                    $($name: {
                        let symbol = concat!(stringify!($name), "\0");
                        let symbol = CStr::from_bytes_with_nul(symbol.as_bytes()).ok()?;
                        // SAFETY: dlsym takes any symbol name ending in NUL.
                        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) };
                        if found.is_null() {
                            return None;
                        }
                        // SAFETY: found is the VM's function of that name, whose C signature in
                        // erl_driver.h is the one declared here.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) $(-> $ret)?>(found)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    fn driver_select(ErlDrvPort, ErlDrvEvent, c_int, c_int) -> c_int;
    fn driver_output_binary(ErlDrvPort, *mut c_char, usize, *mut ErlDrvBinary, usize, usize) -> c_int;
    fn driver_alloc_binary(usize) -> *mut ErlDrvBinary;
    fn driver_realloc_binary(*mut ErlDrvBinary, usize) -> *mut ErlDrvBinary;
    fn driver_free_binary(*mut ErlDrvBinary);
    fn driver_binary_inc_refc(*mut ErlDrvBinary) -> isize;
    fn driver_enq(ErlDrvPort, *mut c_char, usize) -> c_int;
    fn driver_deq(ErlDrvPort, usize) -> usize;
    fn driver_sizeq(ErlDrvPort) -> usize;
    fn driver_set_timer(ErlDrvPort, c_ulong) -> c_int;
    fn driver_failure_atom(ErlDrvPort, *mut c_char) -> c_int;
    fn driver_lock_driver(ErlDrvPort) -> c_int;
    fn set_busy_port(ErlDrvPort, c_int);
    fn set_port_control_flags(ErlDrvPort, c_int);
    fn erl_errno_id(c_int) -> *mut c_char;
}

static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();

/// Whether this process is a VM, that is, has all the functions above. Finds them on the first
/// call.
pub(crate) fn found() -> bool {
    FUNCTIONS.get_or_init(Functions::find).is_some()
}

/// The VM's functions. Panics outside a VM; nothing that calls it can be made there, since every
/// type of this crate begins with a callback from the VM.
pub(crate) fn vm() -> &'static Functions {
    FUNCTIONS
        .get_or_init(Functions::find)
        .as_ref()
        .expect("driver functions exist only inside an Erlang VM")
}
