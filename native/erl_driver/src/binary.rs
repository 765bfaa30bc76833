//! Reference-counted binaries: bytes that the VM and the driver both refer to, with no copy.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use crate::sys::{self, ErlDrvBinary};

/// One counted reference to an `ErlDrvBinary`.
struct Reference(NonNull<ErlDrvBinary>);

// SAFETY: the count is atomic (driver_binary_inc_refc and driver_free_binary may be called from any
// thread, erl_driver documentation), and the bytes are only written through `BinaryBuf`, which is
// their sole owner.
unsafe impl Send for Reference {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for Reference {}

impl Reference {
    fn alloc(capacity: usize) -> Self {
        // SAFETY: any size may be asked for; NULL means there is no memory.
        let binary = unsafe { (sys::vm().driver_alloc_binary)(capacity) };
        match NonNull::new(binary) {
            Some(binary) => Self(binary),
            None => out_of_memory(capacity),
        }
    }

    fn bytes(&self) -> *mut u8 {
        // SAFETY: the pointer is to a live ErlDrvBinary for as long as self exists.
        unsafe { (&raw mut (*self.0.as_ptr()).orig_bytes).cast() }
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // SAFETY: self is one counted reference, given up here.
        unsafe { (sys::vm().driver_free_binary)(self.0.as_ptr()) }
    }
}

/// The VM ends itself when memory runs out; so does its driver, with the same kind of message.
fn out_of_memory(size: usize) -> ! {
    let layout = std::alloc::Layout::from_size_align(size, 8);
    std::alloc::handle_alloc_error(layout.unwrap_or(std::alloc::Layout::new::<u64>()))
}

/// Bytes being gathered for the VM, owned by the driver alone until [`BinaryBuf::freeze`].
///
/// Invariant: `len <= capacity`, the first `len` bytes are initialised, and nobody else refers to
/// the binary.
pub struct BinaryBuf {
    binary: Reference,
    len: usize,
    capacity: usize,
}

impl BinaryBuf {
    /// An empty buffer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            binary: Reference::alloc(capacity),
            len: 0,
            capacity,
        }
    }

    /// How many bytes fit without growing.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The bytes gathered so far.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the first len bytes are initialised (invariant).
        unsafe { std::slice::from_raw_parts(self.binary.bytes(), self.len) }
    }

    /// Makes the room exactly `capacity` bytes, or as many as are filled if that is more.
    pub fn resize(&mut self, capacity: usize) {
        let capacity = capacity.max(self.len);
        // SAFETY: self is the only owner, so the binary may move; the contents move along.
        let moved = unsafe { (sys::vm().driver_realloc_binary)(self.binary.0.as_ptr(), capacity) };
        match NonNull::new(moved) {
            Some(moved) => self.binary.0 = moved,
            None => out_of_memory(capacity),
        }
        self.capacity = capacity;
    }

    /// Appends as much of `bytes` as there is room for and says how much that was.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.capacity - self.len);
        // SAFETY: count bytes after len are inside the binary; source and target cannot overlap,
        // since nobody else refers to the binary.
        unsafe {
            let end = self.binary.bytes().add(self.len);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), end, count);
        }
        self.len += count;
        count
    }

    /// Reads from the socket `fd` once, at most until the buffer is full; never blocks, whatever the
    /// socket is set to. `Ok(0)` is the end of the stream.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `capacity - len` bytes, all inside the binary.
        let count = unsafe {
            let end = self.binary.bytes().add(self.len);
            let space = self.capacity - self.len;
            libc::recv(fd.as_raw_fd(), end.cast(), space, libc::MSG_DONTWAIT)
        };
        // A negative count is an error; errno says which.
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        self.len += count;
        Ok(count)
    }

    /// Ends the writing: from here on the bytes can be shared with the VM.
    pub fn freeze(self) -> Binary {
        Binary {
            offset: 0,
            len: self.len,
            binary: self.binary,
        }
    }
}

impl fmt::Debug for BinaryBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BinaryBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .finish()
    }
}

/// Immutable bytes inside a binary that others may refer to as well.
///
/// Invariant: `offset..offset + len` lies inside the binary and is initialised, and nobody writes
/// there.
pub struct Binary {
    binary: Reference,
    offset: usize,
    len: usize,
}

impl Binary {
    /// A reference to the `len` bytes at `bytes`, which belong to `binary`.
    ///
    /// # Safety
    /// `binary` is live and `bytes..bytes + len` are initialised bytes of it.
    pub(crate) unsafe fn share(
        binary: NonNull<ErlDrvBinary>,
        bytes: *const u8,
        len: usize,
    ) -> Self {
        // SAFETY: binary is live (caller), and the count is atomic.
        unsafe { (sys::vm().driver_binary_inc_refc)(binary.as_ptr()) };
        let binary = Reference(binary);
        let offset = bytes as usize - binary.bytes() as usize;
        Self {
            binary,
            offset,
            len,
        }
    }

    /// A binary of its own with a copy of `bytes`.
    pub fn copy(bytes: &[u8]) -> Self {
        let mut buffer = BinaryBuf::with_capacity(bytes.len());
        buffer.append(bytes);
        buffer.freeze()
    }

    /// Gives this reference up to the VM. The value must be a whole binary, as [`Binary::copy`]
    /// makes.
    pub(crate) fn into_raw(self) -> *mut ErlDrvBinary {
        let raw = self.binary.0.as_ptr();
        std::mem::forget(self.binary);
        raw
    }

    /// The VM's pointer and the place of the `len` bytes at `start`, counted from this value's
    /// first byte.
    pub(crate) fn place(&self, start: usize, len: usize) -> (*mut ErlDrvBinary, usize) {
        assert!(
            start <= self.len && len <= self.len - start,
            "a frame lies inside its buffer"
        );
        (self.binary.0.as_ptr(), self.offset + start)
    }
}

impl AsRef<[u8]> for Binary {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range is initialised, inside the binary and never written to (invariant).
        unsafe { std::slice::from_raw_parts(self.binary.bytes().add(self.offset), self.len) }
    }
}

impl fmt::Debug for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binary").field("len", &self.len).finish()
    }
}
