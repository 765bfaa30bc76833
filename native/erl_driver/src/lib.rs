//! Linked-in drivers in safe Rust: a thin layer over `erl_driver.h` for OTP 25 and later.
//!
//! A driver is a type that implements [`Driver`]; [`entry`] makes the table that the library's
//! `driver_init` returns. One value of the type exists for each open port, between the VM's calls
//! of `start` and `stop`. What this crate guarantees, so that the trait can be safe:
//!
//! * **One callback at a time.** The port lock (`ERL_DRV_FLAG_USE_PORT_LOCKING`, always set)
//!   serialises the callbacks of one port, so each has `&mut self`. They may come from any
//!   scheduler thread: `Driver: Send`.
//! * **No port outside a callback.** The VM's functions want the port's lock, so a [`Port`] is only
//!   lent to each callback and cannot be kept.
//! * **No callback inside a callback.** The only VM function that can call `stop` before it returns
//!   is `driver_failure_atom`; a callback asks for that by *returning* [`Failure`], and it is
//!   called when the borrow of the driver has ended.
//! * **No panic crosses into the VM.** Each callback is caught; a driver that panicked is not
//!   entered again and its port fails with reason `panic`.
//! * **A file descriptor outlives its polling.** [`Port::release`] hands it to the VM, whose
//!   `stop_select` callback closes it.
//! * **Shared bytes are immutable.** [`BinaryBuf`] has one owner; [`Binary`] has many and cannot be
//!   written to.
//!
//! Facts about the VM are from erts's `erl_driver` and `driver_entry` reference pages and
//! `erts/emulator/beam/io.c`.

mod binary;
mod sys;

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::{fmt, slice};

pub use binary::{Binary, BinaryBuf};
pub use sys::ErlDrvEntry;

/// A port's end: the reason its owner and links see. The queue is emptied first, so nothing holds
/// the port up.
#[derive(Debug)]
pub struct Failure {
    reason: CString,
}

impl Failure {
    /// The port exits with the atom `reason`; a NUL ends it early.
    pub fn new(reason: &str) -> Self {
        let reason = reason.split('\0').next().unwrap_or_default();
        Self {
            reason: CString::new(reason).unwrap_or_default(),
        }
    }
}

/// What a callback answers: go on, or end the port.
pub type Flow = Result<(), Failure>;

/// A driver's behaviour; one value for each open port. All callbacks run under the port's lock.
pub trait Driver: Send + Sized + 'static {
    /// The name in `open_port({spawn_driver, Name}, _)`, which is also the library's name for
    /// `erl_ddll`.
    const NAME: &'static CStr;

    /// A port was opened.
    fn start(port: &Port) -> Self;

    /// The VM sends a message: `erlang:port_command/2`, or a frame of the distribution when the
    /// port is a distribution controller.
    fn output(&mut self, port: &Port, message: Message<'_>) -> Flow;

    /// The descriptor given to [`Port::poll_read`] has something to read.
    fn ready_input(&mut self, port: &Port) -> Flow;

    /// The descriptor given to [`Port::poll_write`] can be written to.
    fn ready_output(&mut self, port: &Port) -> Flow;

    /// `erlang:port_control/3`. What is put in `reply` is its result, as a binary.
    fn control(&mut self, port: &Port, operation: u32, data: &[u8], reply: &mut Vec<u8>) -> Flow;

    /// The time given to [`Port::set_timer`] is over.
    fn timeout(&mut self, port: &Port) -> Flow;

    /// The port is closing with its queue held ([`Port::hold`]); it goes when the queue is let go.
    fn flush(&mut self, port: &Port) -> Flow;

    /// The port is gone. Dropped without this call if the driver panicked before.
    fn stop(self, port: &Port);
}

/// The driver's side of an open port, lent for the length of a callback: only then is its lock held.
pub struct Port(sys::ErlDrvPort);

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({:p})", self.0)
    }
}

impl Port {
    /// Asks for [`Driver::ready_input`] while `fd` is readable, or no longer.
    pub fn poll_read(&self, fd: BorrowedFd<'_>, on: bool) {
        self.select(fd.as_raw_fd(), sys::ERL_DRV_READ, on);
    }

    /// Asks for [`Driver::ready_output`] while `fd` is writable, or no longer.
    pub fn poll_write(&self, fd: BorrowedFd<'_>, on: bool) {
        self.select(fd.as_raw_fd(), sys::ERL_DRV_WRITE, on);
    }

    /// Ends all polling of `fd` and closes it when no scheduler refers to it any more.
    pub fn release(&self, fd: OwnedFd) {
        // ERL_DRV_USE with on = 0 calls stop_select now or later, whether or not it was ever
        // polled.
        let raw = fd.into_raw_fd();
        // SAFETY: self is a live port; the VM takes raw over and gives it to stop_select, which
        // closes it.
        let result = unsafe { (sys::vm().driver_select)(self.0, event(raw), sys::ERL_DRV_USE, 0) };
        if result < 0 {
            // SAFETY: the VM refused the descriptor, so it is still ours alone.
            drop(unsafe { OwnedFd::from_raw_fd(raw) });
        }
    }

    fn select(&self, fd: RawFd, mode: c_int, on: bool) {
        let mode = if on { mode | sys::ERL_DRV_USE } else { mode };
        // SAFETY: self is a live port, and fd an open descriptor that only `release` closes.
        unsafe { (sys::vm().driver_select)(self.0, event(fd), mode, on.into()) };
    }

    /// Gives the VM `len` bytes of `binary` as input: a message to the port's owner, or, when the
    /// port is a distribution controller, a frame of the distribution. The bytes are not copied.
    pub fn input(&self, binary: &Binary, start: usize, len: usize) {
        let (binary, offset) = binary.place(start, len);
        // SAFETY: the range lies inside the binary (place), which the VM counts a reference to. The
        // result says only that the port is closing, which its callbacks will see.
        unsafe {
            (sys::vm().driver_output_binary)(self.0, std::ptr::null_mut(), 0, binary, offset, len)
        };
    }

    /// Marks the port busy: the VM holds back further messages, and in the end suspends their
    /// senders.
    pub fn set_busy(&self, busy: bool) {
        // SAFETY: self is a live port.
        unsafe { (sys::vm().set_busy_port)(self.0, busy.into()) }
    }

    /// Tells the VM that the driver has, or has no longer, output that closing the port must wait
    /// for. It learns it from the port's own queue being empty or not, so that queue holds one byte
    /// that stands for the rest.
    pub fn hold(&self, held: bool) {
        let vm = sys::vm();
        // SAFETY: self is a live port; the byte is copied into the queue.
        unsafe {
            let size = (vm.driver_sizeq)(self.0);
            match held {
                true if size == 0 => {
                    let mut byte: c_char = 0;
                    (vm.driver_enq)(self.0, &raw mut byte, 1);
                }
                false if size > 0 => {
                    (vm.driver_deq)(self.0, size);
                }
                _ => {}
            }
        }
    }

    /// Asks for [`Driver::timeout`] once, in `milliseconds`.
    pub fn set_timer(&self, milliseconds: u32) {
        // SAFETY: self is a live port.
        unsafe { (sys::vm().driver_set_timer)(self.0, milliseconds.into()) };
    }

    /// Keeps the driver's library in memory for the VM's life, whatever `erl_ddll` is told.
    pub fn lock_driver(&self) {
        // SAFETY: self is a live port of this driver.
        unsafe { (sys::vm().driver_lock_driver)(self.0) };
    }

    fn fail(&self, failure: &Failure) {
        self.hold(false);
        // SAFETY: self is a live port; the VM copies the name. May call `stop`: no borrow of the
        // driver exists here.
        unsafe {
            (sys::vm().driver_failure_atom)(self.0, failure.reason.as_ptr().cast_mut());
        }
    }
}

/// The name that the VM gives an error number, as in `inet:posix()`: `"econnreset"`.
pub fn errno_name(errno: i32) -> String {
    // SAFETY: takes any number; returns a static string.
    let name = unsafe { CStr::from_ptr((sys::vm().erl_errno_id)(errno)) };
    name.to_string_lossy().into_owned()
}

/// An outgoing message: buffers that belong to the VM, valid during the callback.
#[derive(Clone, Copy)]
pub struct Message<'a>(&'a sys::ErlIOVec);

impl<'a> Message<'a> {
    /// The length of all buffers together.
    pub fn len(&self) -> usize {
        self.0.size
    }

    /// Whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.size == 0
    }

    /// The buffers in order. The first element of the VM's vector is left free for the driver and
    /// has no bytes.
    pub fn segments(self) -> impl Iterator<Item = Segment<'a>> + Clone {
        let count = usize::try_from(self.0.vsize).unwrap_or(0);
        (0..count).filter_map(move |index| {
            // SAFETY: the VM's vectors have vsize elements, valid and unchanged during the
            // callback, that is, for 'a. An empty element may have a null base.
            unsafe {
                let iov = &*self.0.iov.add(index);
                let bytes = match iov.iov_len {
                    0 => return None,
                    len => slice::from_raw_parts(iov.iov_base.cast::<u8>().cast_const(), len),
                };
                let binary = match self.0.binv.is_null() {
                    true => None,
                    false => NonNull::new(*self.0.binv.add(index)),
                };
                Some(Segment { bytes, binary })
            }
        })
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} bytes)", self.len())
    }
}

/// One buffer of a [`Message`].
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    bytes: &'a [u8],
    binary: Option<NonNull<sys::ErlDrvBinary>>,
}

impl<'a> Segment<'a> {
    /// Its bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes after the first `skip`, to keep beyond the callback: a reference where a binary
    /// owns them, else a copy.
    pub fn share(&self, skip: usize) -> Binary {
        let rest = &self.bytes[skip..];
        match self.binary {
            // SAFETY: the VM gave this binary as the owner of these bytes and holds it during the
            // callback.
            Some(binary) => unsafe { Binary::share(binary, rest.as_ptr(), rest.len()) },
            None => Binary::copy(rest),
        }
    }
}

/// Makes the table that `driver_init` returns to the VM, or NULL where there is no VM. It lives for
/// ever.
pub fn entry<D: Driver>() -> *const ErlDrvEntry {
    if !sys::found() {
        return std::ptr::null();
    }
    Box::leak(Box::new(ErlDrvEntry {
        init: None,
        start: Some(start::<D>),
        stop: Some(stop::<D>),
        output: None,
        ready_input: Some(ready_input::<D>),
        ready_output: Some(ready_output::<D>),
        driver_name: D::NAME.as_ptr(),
        finish: None,
        handle: std::ptr::null_mut(),
        control: Some(control::<D>),
        timeout: Some(timeout::<D>),
        outputv: Some(outputv::<D>),
        ready_async: None,
        flush: Some(flush::<D>),
        call: None,
        unused_event_callback: None,
        extended_marker: sys::ERL_DRV_EXTENDED_MARKER,
        major_version: sys::ERL_DRV_EXTENDED_MAJOR_VERSION,
        minor_version: sys::ERL_DRV_EXTENDED_MINOR_VERSION,
        // Soft busy: without it the VM refuses the port as a distribution controller (setnode/3,
        // badarg).
        driver_flags: sys::ERL_DRV_FLAG_USE_PORT_LOCKING | sys::ERL_DRV_FLAG_SOFT_BUSY,
        handle2: std::ptr::null_mut(),
        process_exit: None,
        stop_select: Some(stop_select),
        emergency_close: None,
    }))
}

/// What the VM's `ErlDrvData` points to. `driver` is `None` once it has panicked.
struct Instance<D> {
    port: Port,
    driver: Option<D>,
}

/// Runs one callback: `call` on the driver, and then, the borrow ended, the failure it asked for.
///
/// # Safety
/// `data` is what `start` returned for a port that `stop` has not been called for, and the port's
/// lock is held.
unsafe fn enter<D: Driver>(data: sys::ErlDrvData, call: impl FnOnce(&mut D, &Port) -> Flow) {
    let (port, flow) = {
        // SAFETY: data points to a live Instance<D>; the port's lock makes this the only reference.
        let Instance { port, driver } = unsafe { &mut *data.cast::<Instance<D>>() };
        let Some(entered) = driver.as_mut() else {
            return;
        };
        let flow = catch_unwind(AssertUnwindSafe(|| call(entered, port))).unwrap_or_else(|_| {
            // Its state cannot be trusted: leak it rather than run its code again.
            std::mem::forget(driver.take());
            Err(Failure::new("panic"))
        });
        (Port(port.0), flow)
    };
    if let Err(failure) = flow {
        port.fail(&failure);
    }
}

unsafe extern "C" fn start<D: Driver>(port: sys::ErlDrvPort, _: *mut c_char) -> sys::ErlDrvData {
    let started = catch_unwind(|| {
        // SAFETY: port was just opened; its control results are binaries from here on.
        unsafe { (sys::vm().set_port_control_flags)(port, sys::PORT_CONTROL_FLAG_BINARY) };
        Box::new(Instance {
            port: Port(port),
            driver: Some(D::start(&Port(port))),
        })
    });
    match started {
        Ok(instance) => Box::into_raw(instance).cast(),
        Err(_) => sys::ERL_DRV_ERROR_GENERAL,
    }
}

unsafe extern "C" fn stop<D: Driver>(data: sys::ErlDrvData) {
    // SAFETY: data came from Box::into_raw in start, and the VM calls stop once, last.
    let instance = unsafe { Box::from_raw(data.cast::<Instance<D>>()) };
    // A panic while stopping has nothing left to fail.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        instance.driver.map(|driver| driver.stop(&instance.port))
    }));
}

unsafe extern "C" fn outputv<D: Driver>(data: sys::ErlDrvData, message: *mut sys::ErlIOVec) {
    // SAFETY: the VM passes its data and a vector that is valid during the call.
    unsafe { enter::<D>(data, |driver, port| driver.output(port, Message(&*message))) }
}

unsafe extern "C" fn ready_input<D: Driver>(data: sys::ErlDrvData, _: sys::ErlDrvEvent) {
    // SAFETY: called by the VM with what start returned.
    unsafe { enter::<D>(data, D::ready_input) }
}

unsafe extern "C" fn ready_output<D: Driver>(data: sys::ErlDrvData, _: sys::ErlDrvEvent) {
    // SAFETY: called by the VM with what start returned.
    unsafe { enter::<D>(data, D::ready_output) }
}

unsafe extern "C" fn timeout<D: Driver>(data: sys::ErlDrvData) {
    // SAFETY: called by the VM with what start returned.
    unsafe { enter::<D>(data, D::timeout) }
}

unsafe extern "C" fn flush<D: Driver>(data: sys::ErlDrvData) {
    // SAFETY: called by the VM with what start returned.
    unsafe { enter::<D>(data, D::flush) }
}

unsafe extern "C" fn control<D: Driver>(
    data: sys::ErlDrvData,
    operation: c_uint,
    bytes: *mut c_char,
    len: usize,
    reply: *mut *mut c_char,
    _: usize,
) -> isize {
    let request = match len {
        0 => &[][..],
        // SAFETY: the VM passes len bytes at bytes, valid during the call.
        _ => unsafe { slice::from_raw_parts(bytes.cast::<u8>().cast_const(), len) },
    };
    let mut answer = Vec::new();
    // SAFETY: called by the VM with what start returned.
    unsafe {
        enter::<D>(data, |driver, port| {
            driver.control(port, operation, request, &mut answer)
        })
    };
    // With PORT_CONTROL_FLAG_BINARY the answer is a driver binary, whose reference passes to the
    // VM. NULL stands for an empty one.
    let binary = match answer.is_empty() {
        true => std::ptr::null_mut(),
        false => Binary::copy(&answer).into_raw(),
    };
    // SAFETY: reply points to where the VM wants the binary.
    unsafe { *reply = binary.cast() };
    answer.len().cast_signed()
}

unsafe extern "C" fn stop_select(event: sys::ErlDrvEvent, _: *mut c_void) {
    // SAFETY: event is the descriptor that Port::release gave up, and the VM is done with it.
    drop(unsafe { OwnedFd::from_raw_fd(event as usize as RawFd) });
}

/// A descriptor as the VM's event: widened to a pointer, as C does.
fn event(fd: RawFd) -> sys::ErlDrvEvent {
    fd as usize as sys::ErlDrvEvent
}
