"""The historian: folds the past of one log, and nothing else, until its socket is closed.

`python -m aetherscale.gateways.http.historianmain STATE_DIR TENANT`, with the socket as stdin. It has the lowest
priority, so that neither the node nor a guest waits for it, and a bound on its memory: what takes more is refused.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from aetherscale.components import kinds
from aetherscale.debugger.past import opened
from aetherscale.gateways.http import questions
from aetherscale.gateways.http.answers import Answers
from aetherscale.kernel.errors import Reason, Refused

LOWEST_PRIORITY: Final = 19
"""See setpriority(2)."""
MAX_MEMORY_BYTES: Final = 128 * 1024 * 1024
"""Of its own, without what it shares with others: RLIMIT_DATA, see getrlimit(2)."""
LARGE: Final = Refused(
    Reason.TOO_LARGE,
    f"the answer takes more than the {MAX_MEMORY_BYTES >> 20} MiB that the past may take",
    remedy="ask for less: one kind, a limit, a shorter span",
)


async def serve(state_dir: Path, tenant: str, asking: socket.socket) -> None:
    """Answer questions until there are no more. A mistake of ours ends the process, with its traceback on stderr."""
    reader, writer = await asyncio.open_connection(sock=asking)
    answers: Answers | None = None
    async with AsyncExitStack() as stack:
        while (question := await _next(reader)) is not None:
            try:
                if answers is None:
                    # The node that asks has proved its log, or has it proved: see runtime/audit.py.
                    log = await stack.enter_async_context(opened(state_dir, kinds(), proving=False))
                    answers = Answers(log, tenant)
                answer = await answers.answer(question)
            except Refused as refused:
                answer = questions.refusal_of(refused)
            except MemoryError:
                await questions.write(writer, questions.refusal_of(LARGE))
                return
            await questions.write(writer, answer)


async def _next(reader: asyncio.StreamReader) -> questions.Question | None:
    """The next question; None where the node is gone, or asks no more."""
    try:
        return await questions.read(reader, questions.Question)
    except (asyncio.IncompleteReadError, OSError):
        return None


def main(arguments: list[str]) -> int:
    """Serve on the socket that is stdin."""
    state_dir, tenant = arguments
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST_PRIORITY)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    asyncio.run(serve(Path(state_dir), tenant, socket.socket(fileno=os.dup(0))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
