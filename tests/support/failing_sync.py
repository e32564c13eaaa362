"""A disk that fails to sync, for this process: fsync(2) and fdatasync(2) answer EIO from a moment on.

Done by the kernel (seccomp(2)), so that what is tested is the whole way from SQLite to the caller, with nothing
replaced. There is no way back but the end of the process.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000
BPF_LOAD_NUMBER = 0x20
BPF_JUMP_IF_EQUAL = 0x15
BPF_RETURN = 0x06

# seccomp, fsync, fdatasync
SYSCALLS = {"x86_64": (317, 74, 75), "aarch64": (277, 82, 83)}


def fail_to_sync() -> None:
    """From now on, in every thread of this process. Raises OSError where the kernel does not let us."""
    seccomp, fsync, fdatasync = SYSCALLS[platform.machine()]
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in [
            (BPF_LOAD_NUMBER, 0, 0, 0),
            (BPF_JUMP_IF_EQUAL, 2, 0, fsync),
            (BPF_JUMP_IF_EQUAL, 1, 0, fdatasync),
            (BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW),
            (BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EIO),
        ]
    )
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, header
    ):
        raise OSError(ctypes.get_errno(), "seccomp")
