"""The program of an `EngineProcess`: `python -m plumbline.serving.engine_host NUMBER`, of a file that is open: its end of the pipe."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

import transformers.modeling_utils  # noqa: F401  every model needs it; so it is there before the model is known

from plumbline.errors import PlumblineError, one_line
from plumbline.serving.engine_loading import load_engine
from plumbline.serving.engine_loop import Command, EngineLoop

log = logging.getLogger(__name__)


class _Inbox:
    """Commands from a pipe; its end is the command to end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self) -> Command:
        try:
            command: Command = self._connection.recv()
        except (EOFError, OSError):
            return None
        return command

    def empty(self) -> bool:
        return not self._connection.poll()


def _follow(number: int) -> None:
    """In a thread: end with the other end of the pipe, in the middle of whatever it is, so that the next one finds the memory free."""
    pipe = select.poll()
    pipe.register(number, select.POLLRDHUP)
    pipe.poll()
    os._exit(1)


def main() -> None:
    """Load what is asked for, tell what came of it, and run until the pipe ends. What fails is told, and logged."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the other end finishes what is under way, and then ends this one
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_follow, args=[connection.fileno()], daemon=True).start()
    try:
        engine, limits = load_engine(*connection.recv())
        connection.send(limits)
        EngineLoop(engine, _Inbox(connection), connection.send).run()
    except (EOFError, BrokenPipeError):  # nobody is there any more
        return
    except PlumblineError as error:
        _tell(connection, error)
    except Exception as error:
        log.exception("the engine failed")
        _tell(connection, PlumblineError(f"{type(error).__name__}: {one_line(error)}"))


def _tell(connection: Connection, error: PlumblineError) -> None:
    with suppress(OSError):
        connection.send(error)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
