"""A firmware of 358 bytes that finds out whether a virtual CPU does what a guest's kernel needs, and at speed.

It goes through the modes that a boot goes through: real, protected, long with paging; a page fault that its handler
gets over; ring 3 by `sysret`, and back by `syscall`. Between them it counts down from 2²⁴ twice, which takes a CPU 10
ms and an emulator of instructions some 20 s. There are hosts whose KVM executes all of this correctly, one instruction
at a time in the kernel, so that an ordinary guest never gets anywhere: the time limit is as much of the proof as the
result. It ends by writing 0x10 to the port of `isa-debug-exit`, whereupon QEMU exits with 33.
"""

from __future__ import annotations

from typing import Final

EXIT_PORT: Final = 0xF4
EXIT_CODE: Final = (0x10 << 1) | 1

_SIZE_BYTES: Final = 0x10000
_RESET_VECTOR: Final = 0xFFF0
_HALT: Final = b"\xf4"

_CODE: Final = bytes.fromhex(
    # The ROM is at 0xffff0000. Real mode: cli; mov $gdtr,%bx; lgdtl %cs:(%bx); set CR0.PE; ljmpl to `protected`.
    "fabb60012e660f01170f20c00c010f22c066ea1900ffff0800"
    # protected: flat segments, stack at 0x7000.
    "66b810008ed88ec08ed0bc00700000"
    # mov $0x1000000,%ecx; 1: dec %ecx; jnz 1b
    "b9000000014975fd"
    # Clear 0x1000-0x5fff: four page tables and an interrupt table.
    "bf0010000031c0b900140000f3ab"
    # PML4 at 0x1000, PDPT at 0x2000, page directories at 0x3000 (first 2 MiB) and 0x4000 (last 2 MiB, the ROM); all
    # of it is open to ring 3.
    "c7050010000007200000c7050020000007300000c7051820000007400000c7050030000087000000c705f84f00008700e0ff"
    # CR4.PAE; CR3 = PML4; EFER.LME and SCE; CR0.PG; ljmpl to `long`.
    "0f20e00c200f22e0b8001000000f22d8b9800000c00f32660d01010f300f20c00d000000800f22c0ea9f00ffff1800"
    # long: mov $0x1000000,%ecx; 1: dec %ecx; jnz 1b
    "b900000001ffc975fc"
    # Interrupt gate 14 to `fault`, in the table at 0x5000; lidt.
    "b81b01ffff66890425e050000066c70425e2500000180066c70425e4500000008ec1e81066890425e6500000"
    "68005000006668ff0f0f011c24"
    # mov (0x40000000),%al, which nothing maps: `fault` goes on behind it.
    "bb000000408a03"
    # LSTAR = called; STAR = the segments; sysretq to `user`.
    "b9820000c0b81101ffff31d20f30ffc931c0ba180020000f30b90f01ffff41bb02000000480f07"
    # user, in ring 3: syscall
    "0f05"
    # called: mov $0x10,%al; out %al,$0xf4; 2: hlt; jmp 2b
    "b01066baf400eef4ebfd"
    # fault: drop the error code, step over the two bytes of the instruction, iretq; padding
    "4883c408488304240248cf6690"
    # gdt: null; code 32, data 32, code 64, data, data ring 3, code 64 ring 3
    "0000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf00ffff00000093cf00ffff000000f3cf00ffff000000fbaf00"
    # gdtr
    "37002801ffff"
)


def proof_rom() -> bytes:
    """The firmware's 64 KiB: the code at the beginning, a jump to it at the reset vector."""
    jump = b"\xe9" + ((-_RESET_VECTOR - 3) & 0xFFFF).to_bytes(2, "little")
    return (_CODE.ljust(_RESET_VECTOR, _HALT) + jump).ljust(_SIZE_BYTES, _HALT)
