"""The talk between an answer's process and the process that tests it: calls and values, one line of JSON each. Standard library
only; its text is put before the program of either side.

Numbers, texts, bytes, lists, tuples, sets and dicts travel by value and arrive as exactly those types. Anything else stays where
it is and arrives as a `Remote`, which can be called, indexed, iterated, printed and asked for attributes. It equals only itself,
is ordered with nothing and turns into no number: otherwise an answer passed with an object that says it equals everything.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import operator
import os
import sys
import types
from typing import Any

LINE = 1 << 25  # bytes of the longest message
SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
TEXTS: dict[str, Any] = {"str": str, "decimal": int, "float": float}
SPOKEN = ["decimal.Decimal", "fractions.Fraction"]  # stated by their text
OPERATIONS: dict[str, Any] = {
    "__call__": lambda function, *args, **named: function(*args, **named),
    "__getattr__": getattr,
    "__setattr__": setattr,
    "__instancecheck__": lambda kind, value: isinstance(value, kind),
    "__iter__": iter,
    "__next__": next,
    "__str__": str,
    "__repr__": repr,
    "__bool__": bool,
    "__len__": len,
    "__enter__": lambda value: type(value).__enter__(value),
    "__exit__": lambda value, *raised: type(value).__exit__(value, None, None, None),
    **{
        f"__{name.strip('_')}__": getattr(operator, name)
        for name in ("getitem", "setitem", "delitem", "add", "sub", "mul", "truediv", "mod", "neg", "and_", "or_")
    },
}
"""What can be asked of a remote object. No comparison and no conversion to a number."""


class Remote:
    """An object of the other process."""

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)


def _asking(name: str) -> Any:
    def ask(self: Remote, *args: Any, **named: Any) -> Any:
        if name == "__getattr__" and args[0].startswith("__") and args[0] not in ("__name__", "__doc__"):
            raise AttributeError(args[0])
        return object.__getattribute__(self, "_peer").ask(name, self, *args, **named)

    return ask


for _name in OPERATIONS:
    setattr(Remote, _name, _asking(_name))


class Peer:
    """One end of the talk.

    Args:
        reader, writer: file descriptors.
        answers: operations that the other side may ask of our objects.
    """

    def __init__(self, reader: int, writer: int, answers: set[str]) -> None:
        self._reader, self._writer, self._answers = os.fdopen(reader, "rb"), os.fdopen(writer, "wb"), answers
        self._ours: list[Any] = []
        self._numbers: dict[int, int] = {}  # by id; an object in the list keeps its id
        self._remotes: dict[int, Remote] = {}
        self.errors: dict[str, type[Exception]] = {}

    def send(self, *message: Any) -> None:
        """Send one message."""
        self._writer.write(json.dumps(message).encode() + b"\n")
        self._writer.flush()

    def receive(self) -> list[Any]:
        """The next message.

        Raises:
            RuntimeError: there is none any more, or it is longer than any may be.
        """
        line = self._reader.readline(LINE)
        if not line.endswith(b"\n"):
            raise RuntimeError("the answer's process ended" if len(line) < LINE else "the answer's value is too large")
        message: list[Any] = json.loads(line)
        return message

    def ask(self, operation: str, *args: Any, **named: Any) -> Any:
        """What an operation on remote objects gives. Lists, sets and dicts among the arguments change as they did there."""
        self.send("ask", operation, [self.encode(a) for a in args], {k: self.encode(v) for k, v in named.items()})
        while True:
            kind, *content = self.receive()
            if kind == "value":
                for ours, theirs in zip(args, content[1], strict=True):
                    if theirs is not None:
                        _become(ours, self.decode(theirs))
                return self.decode(content[0])
            if kind == "raised":
                raise self.error(*content)
            self.answer(*content)

    def answer(self, operation: str, args: list[Any], named: dict[str, Any]) -> None:
        """Do what the other side asked."""
        try:
            if operation not in self._answers:
                raise TypeError(f"{operation} is not to be had here")
            values = [self.decode(a) for a in args]
            result = OPERATIONS[operation](*values, **{k: self.decode(v) for k, v in named.items()})
            changed = [self.encode(v) if isinstance(v, list | set | dict | bytearray) else None for v in values]
            reply = ["value", self.encode(result), changed]
            json.dumps(reply)
        except BaseException as error:
            reply = self.raised(error)
        self.send(*reply)

    def raised(self, error: BaseException) -> list[Any]:
        """The message that tells of an error."""
        try:
            return ["raised", [kind.__name__ for kind in type(error).__mro__], str(error)]
        except BaseException:
            return ["raised", ["Exception"], ""]

    def error(self, names: list[str], text: str) -> Exception:
        """An error of the other side, as the nearest kind that exists here; never one that ends the process."""
        for name in names:
            kind = self.errors.get(name) or getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                try:
                    return kind(text)
                except TypeError:  # UnicodeDecodeError and its like want more
                    continue
        return RuntimeError(f"{names[0]}: {text}")

    def encode(self, value: Any) -> Any:
        """A value as JSON."""
        if value is None or isinstance(value, bool):
            return value
        for name, kind in TEXTS.items():
            if isinstance(value, kind):
                return ["text", name, kind.__repr__(value) if kind is not str else str.__str__(value)]
        if isinstance(value, bytes | bytearray):
            return ["bytes", isinstance(value, bytearray), value.hex()]
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        for name, kind in SEQUENCES.items():
            if isinstance(value, kind):
                return [name, [self.encode(v) for v in value]]
        if isinstance(value, dict):
            return ["dict", [[self.encode(k), self.encode(v)] for k, v in value.items()]]
        if f"{type(value).__module__}.{type(value).__qualname__}" in SPOKEN:
            return ["spoken", f"{type(value).__module__}.{type(value).__qualname__}", str(value)]
        if type(value) is Remote:
            return ["yours", object.__getattribute__(value, "_number")]
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._ours)
            self._ours.append(value)
        return ["mine", self._numbers[id(value)]]

    def decode(self, value: Any) -> Any:
        """A value from JSON: of exactly one of the types that travel, or a `Remote`."""
        if not isinstance(value, list):
            return bool(value) if value is not None else None
        kind, *content = value
        if kind == "text":
            return TEXTS[content[0]](content[1])
        if kind == "bytes":
            return (bytearray if content[0] else bytes).fromhex(content[1])
        if kind == "complex":
            return complex(*content)
        if kind in SEQUENCES:
            return SEQUENCES[kind](self.decode(v) for v in content[0])
        if kind == "dict":
            return {self.decode(k): self.decode(v) for k, v in content[0]}
        if kind == "spoken" and content[0] in SPOKEN:
            module, name = content[0].split(".")
            return getattr(importlib.import_module(module), name)(content[1])
        if kind == "yours":
            return self._ours[content[0]]
        return self._remotes.setdefault(int(content[0]), Remote(self, int(content[0])))

    def tell_names(self, scope: dict[str, Any]) -> None:
        """Tell the global names of a module."""
        told = {name: self._name(name, value) for name, value in scope.items() if not name.startswith("__")}
        self.send("names", told)

    def _name(self, name: str, value: Any) -> list[Any]:
        origin = getattr(value, "__module__", None)
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if (
            isinstance(origin, str)
            and getattr(sys.modules.get(origin), name, None) is value
            and origin in sys.stdlib_module_names
        ):
            return ["from", origin]
        if isinstance(value, type) and issubclass(value, Exception):
            return ["error", [kind.__name__ for kind in value.__mro__[1:]]]
        return ["value", self.encode(value)]

    def names(self) -> dict[str, Any]:
        """The global names of the other side's module. What they have of the standard library is our own, and no name hides a
        built-in function or a module of it: the tests rely on those.

        Raises:
            Exception: what the module raised.
        """
        kind, *content = self.receive()
        if kind != "names":
            raise self.error(*content)
        scope: dict[str, Any] = {}
        for name, (kind, *what) in content[0].items():
            if kind == "module":
                if what[0] in sys.stdlib_module_names:
                    scope[name] = importlib.import_module(what[0])
            elif kind == "from":
                if what[0] in sys.stdlib_module_names:
                    scope[name] = getattr(importlib.import_module(what[0]), name)
            elif not hasattr(builtins, name) and name not in sys.stdlib_module_names:
                if kind == "error":
                    self.errors[name] = type(name, (type(self.error(what[0], "")),), {})
                    scope[name] = self.errors[name]
                else:
                    scope[name] = self.decode(what[0])
        return scope


def _become(ours: Any, theirs: Any) -> None:
    """Give one of our mutable values another content."""
    if isinstance(ours, list | bytearray):
        ours[:] = theirs
    elif isinstance(ours, set | dict):
        ours.clear()
        ours.update(theirs)


def serve(code: str, reader: int, writer: int) -> None:
    """The answer's side: run the code as a module, tell its names, and do what the tests ask until they end."""
    peer = Peer(reader, writer, set(OPERATIONS))
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        exec(compile(code, "<answer>", "exec"), vars(module))
        peer.tell_names(vars(module))
    except BaseException as error:
        peer.send(*peer.raised(error))
        return
    while True:
        try:
            _, *content = peer.receive()
        except RuntimeError:
            return
        peer.answer(*content)


def examine(tests: str, reader: int, writer: int) -> None:
    """The tests' side: end with status 0 only if they were run to their end."""
    peer = Peer(reader, writer, {"__call__"})
    module = types.ModuleType("__main__")
    if not ast.parse(tests).body:
        raise ValueError("there is no test")
    names = peer.names()
    solution = types.ModuleType("solution")
    vars(solution).update(names)
    vars(module).update(names)
    sys.modules.update({"solution": solution, "__main__": module})
    exec(compile(tests, "<tests>", "exec"), vars(module))
    for name, value in list(vars(module).items()):
        if name.startswith("test") and isinstance(value, types.FunctionType) and not value.__code__.co_argcount:
            value()
    if "unittest" in sys.modules:
        unittest = importlib.import_module("unittest")
        if not unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromModule(module)).wasSuccessful():
            raise AssertionError("unittest")
