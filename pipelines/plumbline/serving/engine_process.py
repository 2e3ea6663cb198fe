"""An engine in a process of its own: what is written and read for clients does not hold Python's lock while a step is made."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from multiprocessing import Pipe
from typing import TYPE_CHECKING

from plumbline.errors import PlumblineError
from plumbline.serving.engine_loop import Command, EngineLimits
from plumbline.serving.engine_readers import EngineReaders

if TYPE_CHECKING:
    from plumbline.serving.chat import ServedModel

HOST = "plumbline.serving.engine_host"


class HostProcess:
    """A process for an engine to come. It begins at once with what takes seconds and needs no model: its imports.

    It ends with this one, however that ends.
    """

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-m", HOST, str(number)], pass_fds=[number], stdin=subprocess.DEVNULL
            )

    def close(self) -> None:
        """End it, whatever it is in the middle of, and wait until it has ended."""
        self.process.kill()  # the end of the connection would not reach it while a thread of ours reads from that
        self.process.wait()
        self.connection.close()


class EngineProcess(EngineReaders):
    """See `EngineReaders`. That its process has ended is a failure.

    Args:
        served: the model to load there.
        slots: requests to work on at the same time, fewer where memory is short.
        share: part of the memory for keys and values that it may take.
        host: where; whoever gave it ends it if this fails.

    Attributes:
        limits: what the engine takes.

    Raises:
        InvalidInput: the model cannot be loaded.
        PlumblineError: the process ended before it was loaded.
    """

    def __init__(self, served: ServedModel, slots: int, share: float, host: HostProcess) -> None:
        super().__init__(served.name)
        self._host = host
        self.limits = self._loaded(served, slots, share)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        for work in (self._forward, self._listen):
            threading.Thread(target=work, name=f"engine-{served.name}", daemon=True).start()

    def _send(self, command: Command) -> None:
        self._commands.put(command)

    def _loaded(self, served: ServedModel, slots: int, share: float) -> EngineLimits:
        try:
            self._host.connection.send((served, slots, share))
            found: EngineLimits | Exception = self._host.connection.recv()
        except (EOFError, OSError):
            found = PlumblineError(f"the process of model '{self._name}' {self._end()} while it loaded the model")
        if isinstance(found, Exception):
            raise found
        return found

    def _forward(self) -> None:
        """In a thread, as a pipe that is full would hold up the event loop."""
        try:
            while (command := self._commands.get()) is not None:
                self._host.connection.send(command)
            self._host.connection.send(None)
        except OSError:  # `_listen` learns of it
            pass
        except Exception as error:  # else all would wait for ever
            self._fail(error)
            raise

    def _listen(self) -> None:
        try:
            while True:
                news = self._host.connection.recv()
                if isinstance(news, Exception):
                    self._fail(news)
                else:
                    self._tell(news)
        except (EOFError, OSError):
            end = self._end()
            if not self._closed and self.failure is None:
                self._fail(PlumblineError(f"its process {end}"))
        except Exception as error:  # as above
            self._fail(error)
            raise

    def _end(self) -> str:
        code = self._host.process.wait()
        return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
