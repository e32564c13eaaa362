"""A system call that a process of somebody else is made to do, as whoever took it over would: ptrace(2), on x86-64."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Final

_ATTACH, _DETACH, _SINGLESTEP, _GETREGS, _SETREGS, _PEEKTEXT = 16, 17, 9, 12, 13, 1
_SYSCALL: Final = 0x050F
_REGISTERS: Final = 27
"""struct user_regs_struct, 64 bits each."""
_RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP = 10, 12, 13, 14, 15, 16
_ALL: Final = 0x4000_0000
"""__WALL: a thread is waited for like a child."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def system_call(pid: int, number: int, first: int = 0) -> int | None:
    """What the kernel answers the process: a result, or an error below 0; None where it killed for that.

    Only the first thread is made to do it, and a filter may kill that one alone: whoever calls this ends the rest.
    """
    before, registers = (ctypes.c_ulonglong * _REGISTERS)(), (ctypes.c_ulonglong * _REGISTERS)()
    while not _attached_behind_a_call(pid, before):
        time.sleep(0.001)
    ctypes.memmove(registers, before, ctypes.sizeof(before))
    # The call that it waits in is made once more, as another one. Nothing is written where other threads may be.
    registers[_RIP] -= 2
    registers[_RAX], registers[_RDI], registers[_RSI], registers[_RDX] = number, first, 0, 0
    registers[_ORIG_RAX] = (1 << 64) - 1  # it is in no call that would have to be begun again
    _ptrace(_SETREGS, pid, 0, ctypes.addressof(registers))
    _ptrace(_SINGLESTEP, pid)
    while not (stopped := os.waitpid(pid, _ALL | os.WNOHANG))[0]:
        # The first thread of a process is not waited for before its last one has ended.
        if " (zombie)" in Path(f"/proc/{pid}/status").read_text():
            return None
    if not os.WIFSTOPPED(stopped[1]):
        return None
    if os.WSTOPSIG(stopped[1]) == signal.SIGSYS:
        _ptrace(_DETACH, pid, 0, signal.SIGSYS)
        return None
    _ptrace(_GETREGS, pid, 0, ctypes.addressof(registers))
    _ptrace(_SETREGS, pid, 0, ctypes.addressof(before))
    _ptrace(_DETACH, pid)
    return ctypes.c_longlong(registers[_RAX]).value


def _attached_behind_a_call(pid: int, registers: ctypes.Array[ctypes.c_ulonglong]) -> bool:
    """Stop a process where it is in a system call, and read its registers; let it go on where it is in none."""
    _ptrace(_ATTACH, pid)
    os.waitpid(pid, _ALL)
    _ptrace(_GETREGS, pid, 0, ctypes.addressof(registers))
    ctypes.set_errno(0)
    if _libc.ptrace(_PEEKTEXT, pid, registers[_RIP] - 2, None) & 0xFFFF == _SYSCALL:
        return True
    _ptrace(_DETACH, pid)
    return False


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, pid, address or None, data or None) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
