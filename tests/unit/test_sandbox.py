"""The sandbox: what a program may do, and each way out of it that was thought of."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plumbline.errors import InvalidInput
from plumbline.sandbox import Outcome, require, run, run_python, run_tests, supported

SQUARE = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == 9\n\ncheck(square)"
"""In the form of HumanEval's tests."""

isolated = pytest.mark.skipif(supported() is not None, reason=f"this host cannot isolate programs: {supported()}")


def attack(program: str, seconds: float = 10.0, memory_mb: int = 256) -> Outcome:
    return run_python(textwrap.dedent(program), seconds=seconds, memory_mb=memory_mb)


@pytest.fixture(autouse=True, scope="module")
def nothing_left() -> Iterator[None]:
    """No process of the sandbox outlives its test."""
    yield
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    names = [
        Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (children.read_text().split() if children.exists() else [])
    ]
    assert not [name for name in names if b"inside.py" in name]


@isolated
def test_a_program_runs_with_the_standard_library_and_threads() -> None:
    outcome = attack(
        """
        import collections, dataclasses, decimal, heapq, json, math, random, re, sqlite3, statistics, threading, typing
        found = []
        thread = threading.Thread(target=lambda: found.append(math.factorial(20)))
        thread.start(); thread.join()
        print(found[0], __name__, "ä")
        """
    )
    assert outcome == Outcome(0, "2432902008176640000 __main__ ä\n", "")


@isolated
@pytest.mark.parametrize(
    ("program", "code", "reason"),
    [
        ("assert 1 == 2", 1, "exit code 1: AssertionError"),
        ("raise SystemExit(3)", 3, "exit code 3: no output"),
        ("def (", 1, "exit code 1: SyntaxError: invalid syntax"),
        ("import ctypes; ctypes.string_at(0)", -11, "ended by SIGSEGV"),
        ("import numpy", 1, "exit code 1: ModuleNotFoundError: No module named 'numpy'"),
    ],
)
def test_a_failure_is_said_in_words(program: str, code: int, reason: str) -> None:
    outcome = attack(program)
    assert (outcome.exit_code, outcome.reason, outcome.passed) == (code, reason, False)


@isolated
@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import multiprocessing; p = multiprocessing.get_context('fork').Process(target=print); p.start()",
        "import os; os.kill(os.getppid(), 0)",
        "import os, signal; os.kill(-1, signal.SIGKILL)",
        "import os, signal; os.killpg(os.getpgid(os.getppid()), 0)",
        "import os, fcntl; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        "import socket; socket.socket()",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1')",
        "open('/etc/passwd').read()",
        "import os; os.listdir('/')",
        "import os; open(f'/proc/{os.getppid()}/environ').read()",
        "import os; os.listdir('/proc')",
        "open('/proc/self/environ').read()",
        "import os; open(os.__file__, 'a')",
        "import os; os.chmod(os.__file__, 0o777)",
        "import os; os.utime(os.__file__)",
        "import os; os.truncate(os.__file__, 0)",
        "import os; os.memfd_create('x')",
        "import resource; resource.prlimit(__import__('os').getppid(), resource.RLIMIT_NOFILE)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "import os; os.sched_setaffinity(os.getppid(), {0})",
    ],
)
def test_the_kernel_refuses(program: str) -> None:
    outcome = attack(program)
    assert outcome.exit_code == 1
    assert any(word in outcome.reason for word in ("not permitted", "Permission denied", "not allowed")), outcome.reason


@isolated
def test_calls_of_another_architecture_and_later_kernels_are_refused() -> None:
    outcome = attack(
        """
        import ctypes, os, platform
        libc = ctypes.CDLL(None, use_errno=True)
        clone3, io_uring_setup, ptrace = 435, 425, {"x86_64": 101, "aarch64": 117}[platform.machine()]
        for number in (clone3, io_uring_setup, ptrace, 462, 0x40000000 + 57):
            print(libc.syscall(number, 0, 0, 0, 0), ctypes.get_errno() in (1, 38))
        """
    )
    assert outcome.output == "-1 True\n" * 5


@isolated
def test_files_can_be_neither_written_removed_nor_moved(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    for deed in (
        "open({0!r}).read()",
        "open({0!r}, 'w')",
        "os.remove({0!r})",
        "os.rename({0!r}, '/tmp/x')",
        "os.mkdir({0!r} + 'd')",
    ):
        outcome = attack("import os\n" + deed.format(str(secret)))
        assert outcome.exit_code == 1, deed
        assert "Error" in outcome.reason
    assert secret.read_text() == "s3cret"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@isolated
def test_the_network_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        assert not attack(f"import socket; socket.create_connection(('127.0.0.1', {port}))").passed
        with pytest.raises(TimeoutError):
            server.accept()


@isolated
def test_secrets_of_the_environment_and_open_files_stay_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = secrets.token_hex(16)
    monkeypatch.setenv("PLUMBLINE_REWARD_KEY", secret)
    (tmp_path / "key").write_text(secret)
    with open(tmp_path / "key") as stream:
        os.set_inheritable(stream.fileno(), True)
        outcome = attack(
            """
            import os, sys
            print(dict(os.environ), sys.argv, sys.stdin.read())
            for fd in range(3, 64):
                try:
                    print(fd, os.pread(fd, 99, 0))
                except OSError:
                    pass
            """
        )
    assert outcome.passed
    assert secret not in outcome.output
    assert outcome.output == "{} ['program'] \n"


@isolated
def test_a_fork_bomb_and_a_thread_bomb_stay_small() -> None:
    assert "not permitted" in attack("import os\nwhile True: os.fork()").reason
    outcome = attack(
        """
        import threading, time
        while True:
            threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
        """
    )
    assert "can't start new thread" in outcome.output or "MemoryError" in outcome.output, outcome.reason


@isolated
def test_memory_is_bounded() -> None:
    assert "MemoryError" in attack("x = bytearray(300 << 20)", memory_mb=256).reason
    assert attack("x = bytearray(100 << 20)", memory_mb=256).passed


@isolated
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(99)",
        "import signal, time\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\ntime.sleep(99)",
        "import os, time; os.closerange(0, 64); time.sleep(99)",
        "while True: print('x' * 1000)",
    ],
)
def test_an_endless_program_ends(program: str) -> None:
    outcome = attack(program, seconds=0.5)
    assert (outcome.exit_code, outcome.reason) == (None, "not done in 0.5 s")


@isolated
def test_output_is_bounded() -> None:
    outcome = run_python("print('x' * 10**7); print('end')", seconds=30, output_bytes=1000)
    assert outcome.passed
    assert outcome.output == "x" * 1000


@isolated
def test_a_program_does_the_same_each_time() -> None:
    outputs = {attack("print(list({str(i) for i in range(99)}))").output for _ in range(2)}
    assert len(outputs) == 1


@isolated
def test_several_run_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda i: attack(f"print({i})", seconds=60), range(8)))
    assert [outcome.output for outcome in outcomes] == [f"{i}\n" for i in range(8)]


@isolated
def test_a_process_dies_with_its_parent() -> None:
    """A killed worker leaves no answer running."""
    parent = subprocess.Popen(
        [sys.executable, "-c", "from plumbline.sandbox.run import _Process\nimport time\n"
         "with _Process('import time; time.sleep(99)', 99, 256, True) as p: p._await_start(); print(p._process.pid, flush=True); time.sleep(99)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(500):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("it lives on")


def test_a_host_that_cannot_isolate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "supported", lambda: "no Landlock")
    with pytest.raises(
        InvalidInput,
        match=r"^here\.allowUnsandboxed: this host cannot isolate programs \(no Landlock\).*allowUnsandboxed: true",
    ):
        require("here", False)
    with pytest.raises(InvalidInput, match="allowUnsandboxed"):
        run_python("pass", seconds=5)
    with pytest.raises(InvalidInput, match="allowUnsandboxed"):
        run_tests("pass", "pass", seconds=5)
    require("here", True)


def test_without_isolation_limits_and_the_verdict_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "supported", lambda: "no Landlock")
    monkeypatch.setenv("PLUMBLINE_REWARD_KEY", "s3cret")
    allowed = {"seconds": 20, "memory_mb": 256, "allow_unsandboxed": True}
    assert run_python("import os; print(dict(os.environ))", **allowed).output == "{}\n"  # type: ignore[arg-type]
    assert "MemoryError" in run_python("x = bytearray(300 << 20)", **allowed).reason  # type: ignore[arg-type]
    kept = tmp_path / "kept"
    kept.write_text("kept")
    for deed in (
        "open({0!r}, 'w')",
        "os.open({0!r}, os.O_RDONLY | os.O_TRUNC)",
        "os.write(os.open({0!r}, os.O_WRONLY), b'x')",
        "os.fork()",
    ):
        assert not run_python("import os; " + deed.format(str(kept)), **allowed).passed, deed  # type: ignore[arg-type]
    assert kept.read_text() == "kept"
    assert run_tests("def square(x): return x * x", SQUARE, **allowed).passed  # type: ignore[arg-type]
    assert not run_tests("import os; os._exit(0)", SQUARE, **allowed).passed  # type: ignore[arg-type]


@isolated
@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def square(x): return x * x", SQUARE),
        ("from math import *\nimport re\ndef square(x): return x * x", f"assert re.match('a', 'a') and floor(1.5) == 1\n{SQUARE}"),
        ("def square(x): return x * x", "from solution import square\ndef test_square():\n    assert square(3) == 9"),
        ("def square(x): return x * x", "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(square(3), 9)"),
        ("def square(x): return x * x", "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(square(3), 9)\n"
         "if __name__ == '__main__':\n    unittest.main()"),
        ("def sort(xs): xs.sort()", "xs = [3, 1]\nassert sort(xs) is None\nassert xs == [1, 3]"),
        ("def each(f, xs): return [f(x) for x in xs]", "assert each(lambda x: 2 * x, [1, 2]) == [2, 4]"),
        ("def count(n):\n    yield from range(n)", "assert list(count(3)) == [0, 1, 2]"),
        ("from collections import Counter, OrderedDict\ndef f(s): return Counter(s)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("def f(*args, **named): return args, named", "v = (1, -2.5, 'ü', b'x', None, True, [1, {2}], {(1, 2): {'a': []}}, frozenset([3]), 1j, 10**5000)\n"
         "assert f(*v, key=v) == (v, {'key': v})\nassert f(True)[0][0] is True and type(f([])[0][0]) is list"),
        ("def f(): return float('nan'), float('-inf')", "a, b = f()\nassert a != a and b == float('-inf')"),
        ("from decimal import Decimal\nfrom fractions import Fraction\ndef f(): return Decimal('1.50'), Fraction(1, 3)",
         "from decimal import Decimal\nfrom fractions import Fraction\nassert f() == (Decimal('1.5'), Fraction(1, 3))"),
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    def __add__(self, o): return P(self.x + o.x)",
         "p = P(1) + P(x=2)\nassert p.x == 3 and isinstance(p, P) and str(p) == 'P(x=3)'\np.x = 5\nassert p.x == 5"),
        ("class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x); return self\n    def __len__(self): return len(self.items)\n"
         "    def __getitem__(self, i): return self.items[i]", "s = Stack()\nassert s.push(1).push((2,)) is s\nassert len(s) == 2 and s[1] == (2,) and list(s) == [1, (2,)]"),
        ("class Bad(ValueError): pass\ndef f(x):\n    raise Bad('negative')", "try:\n    f(-1)\nexcept Bad as error:\n    assert isinstance(error, ValueError) and str(error) == 'negative'\nelse:\n    assert 0"),
        ("def f(x): return {}[x]", "try:\n    f(1)\nexcept KeyError:\n    pass\nelse:\n    assert 0"),
        ("print('noise' * 10**6)\ndef square(x): print('noise' * 10**6); return x * x", SQUARE),
    ],
)  # fmt: skip
def test_right_answers_pass(code: str, tests: str) -> None:
    outcome = run_tests(code, tests, seconds=30)
    assert outcome.passed, outcome.output


EVERYTHING = "class Any{base}:\n    def __eq__(self, other): return True\n    __ne__ = lambda self, other: False\n    __hash__ = lambda self: 4\n"


@isolated
@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def square(x): return x", SQUARE),
        ("", SQUARE),
        ("def square(x:", SQUARE),
        ("import os; os._exit(0)", SQUARE),
        ("import os\ndef square(x): os._exit(0)", SQUARE),
        ("raise SystemExit(0)", SQUARE),
        ("import sys\ndef square(x): sys.exit(0)", SQUARE),
        ("def square(x): raise KeyboardInterrupt", SQUARE),
        ("class Out(SystemExit): pass\ndef square(x): raise Out(0)", SQUARE),
        ("print('passed'); print('OK')\ndef square(x): return print('passed')", SQUARE),
        ("import os\ndef square(x): os.closerange(0, 64)", SQUARE),
        ("import os\nos.closerange(0, 64)", SQUARE),
        (f"{EVERYTHING.format(base='')}def square(x): return Any()", SQUARE),
        (f"{EVERYTHING.format(base='(int)')}def square(x): return Any()", SQUARE),
        (f"{EVERYTHING.format(base='(list)')}def f(): return [Any()]", "assert f() == [[1, 2]]"),
        ("class Small:\n    def __sub__(self, o): return self\n    def __abs__(self): return 0.0\n    def __lt__(self, o): return True\n    def __float__(self): return 1.5\n"
         "def f(): return Small()", "assert abs(f() - 1.5) < 1e-6"),
        ("import builtins\nabs = builtins.abs = lambda x: 0\ndef f(): return 9", "assert abs(f() - 1.5) < 1e-6"),
        ("import math\nmath.isclose = lambda *a: True\ndef f(): return 9", "assert math.isclose(f(), 1.5)"),
        ("import types, sys\nmath = sys.modules['math'] = types.ModuleType('math')\nmath.isclose = lambda *a: True\ndef f(): return 9",
         "assert math.isclose(f(), 1.5)"),
        ("class math:\n    isclose = lambda *a: True\ndef f(): return 9", "assert math.isclose(f(), 1.5)"),
        ("def check(candidate): pass\ndef square(x): return 0", SQUARE),
        ("def __getattr__(name): return lambda *a: True", SQUARE),
        ("import gc, sys\ndef square(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'tests' in o: raise SystemExit(0)\n    return 0", SQUARE),
        ("import sys\nsys.settrace(lambda *a: sys.exit(0))\ndef square(x): return 0", SQUARE),
        ("import threading, os\nthreading.Timer(0, lambda: os._exit(0)).start()\ndef square(x):\n    while True: pass", SQUARE),
        ("import os\nfor fd in range(64):\n    try: os.write(fd, b'[\"value\", 4, []]\\n' * 2)\n    except OSError: pass\ndef square(x): return 0", SQUARE),
        ("import os\ndef square(x):\n    for fd in range(3, 64):\n        try: os.write(fd, b'[\"ask\", \"__getattr__\", [[\"yours\", 0], \"__globals__\"], {}]\\n')\n        except OSError: pass",
         f"square(print)\n{SQUARE}"),
        ("import os\ndef square(x):\n    for fd in range(3, 64):\n        try: os.write(fd, b'[' * 10**6 + b'\\n')\n        except OSError: pass", SQUARE),
        ("def square(x): return 'x' * (1 << 26)", SQUARE),
        ("def square(x):\n    a = []\n    a.append(a)\n    return a", SQUARE),
        ("def square(x):\n    while True: pass", SQUARE),
        ("def square(x): return bytearray(1 << 40)", SQUARE),
        ("def square(x): return x * x", ""),
        ("def square(x): return x * x", "def test_square():\n    assert square(3) == 8"),
        ("def square(x): return x * x", "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(square(3), 8)"),
    ],
)  # fmt: skip
def test_wrong_answers_fail_whatever_they_try(code: str, tests: str) -> None:
    assert not run_tests(code, tests, seconds=5 if "while True" not in code else 0.5, memory_mb=256).passed
