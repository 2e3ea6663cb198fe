"""What a sandboxed process runs, as a script: it gives up its rights for good, then runs the program. Standard library only.

`python -s -S -P inside.py STATUS` reads `{program, isolate, seconds, memory_mb, values}` as JSON from standard input, and writes
to the file descriptor STATUS nothing, or why it could not give up its rights.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import platform
import resource
import signal
import struct
import sys
import types

NO_NEW_PRIVILEGES, DEATH_SIGNAL, SECCOMP, FILTER = 38, 1, 22, 2  # prctl(2)
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # landlock(7): the same numbers on all architectures
VERSION, BENEATH = 1, 1
WRITE_FILE, READ_FILE, READ_DIRECTORY = 2, 4, 8
ACCESSES = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # bits of file access that each version knows; later ones know those of 5
SIGNALS_AND_SOCKETS = 3  # scopes, since version 6
READABLE = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime"]
DEVICES = ["/dev/null", "/dev/zero", "/dev/urandom"]
NEWEST = 424  # Linux 5.1; later calls do not exist for the program, but for these: close_range, faccessat2
LATER = (436, 439)

# Landlock does not mediate these: processes, signals, sockets, shared memory, what changes a file without opening it, and what
# asks the kernel for more. The columns are x86_64 and aarch64, which has no number for some.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "unshare": (272, 97),
    "setns": (308, 268), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "sendto": (44, 206), "sendmsg": (46, 211), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "memfd_create": (319, 279), "migrate_pages": (256, 238), "move_pages": (279, 239), "modify_ldt": (154, None),
    "creat": (85, None), "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "mknod": (133, None), "mknodat": (259, 33), "inotify_init": (253, None), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262), "open_by_handle_at": (304, 265), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241), "personality": (135, 92), "io_setup": (206, 0),
    "quotactl": (179, 60), "acct": (163, 89), "kexec_load": (246, 104), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224),
}  # fmt: skip
ARCHITECTURES = {"x86_64": (0xC000003E, 0, 56, 72, 302, (2, 257)), "aarch64": (0xC00000B7, 1, 220, 25, 261, (None, 56))}
"""Audit number, column above, and the calls whose arguments decide: clone, fcntl, prlimit64, and open with openat."""
TRUNCATE, TRUNCATION = 0x200, 3  # O_TRUNC, and the first version of Landlock that knows what it does
THREAD = 0x10000  # a clone of this process, not a new one
OWNER_OF_SIGNALS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: a pipe would send signals to others

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


def limit(seconds: float, memory_mb: int) -> None:
    """Bounds that no program can raise: memory, processor time, open files, and no bytes written to any file."""
    memory = memory_mb * 2**20
    wanted = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: math.ceil(seconds) + 1,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in wanted.items():
        hard = resource.getrlimit(what)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """A root without capabilities: it cannot raise its limits."""
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _check(libc.capset(header, none), "capset")


def confine_files(libc: ctypes.CDLL) -> int:
    """Python's own files and the system's libraries can be read, nothing can be written (Landlock). Returns Landlock's version."""
    version: int = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)
    if version < 1:
        raise OSError(
            ctypes.get_errno(), "the kernel offers no Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK, lsm=…,landlock)"
        )
    files = (1 << ACCESSES[min(version, 5)]) - 1
    rules = struct.pack("QQQ", files, 0, SIGNALS_AND_SOCKETS) if version >= 6 else struct.pack("Q", files)
    ruleset = _check(libc.syscall(CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0), "landlock_create_ruleset")
    library = os.path.dirname(os.__file__)  # noqa: PTH120 - starts in half the time without pathlib
    own = [library] if sys.base_prefix == "/usr" else [library, f"{sys.base_prefix}/lib"]
    for path in [*own, *READABLE, *DEVICES]:
        if not os.path.exists(path):  # noqa: PTH110
            continue
        allowed = READ_FILE | (WRITE_FILE if path in DEVICES else 0) | (READ_DIRECTORY if os.path.isdir(path) else 0)  # noqa: PTH112
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _check(libc.syscall(ADD_RULE, ruleset, BENEATH, struct.pack("=Qi", allowed, place), 0), f"landlock_add_rule {path}")
        os.close(place)
    _check(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)
    return version


def filter_calls(libc: ctypes.CDLL, may_truncate: bool) -> None:
    """No other process, no signal to one, no socket: such system calls fail with "not permitted" (seccomp).

    Args:
        libc: the C library.
        may_truncate: whether somebody else sees to it that opening a file to read empties none.
    """
    audit, column, clone, fcntl, prlimit, opens = ARCHITECTURES[platform.machine()]
    refuse, unknown = REFUSE | errno.EPERM, REFUSE | errno.ENOSYS
    code = [_step(LOAD, 4), _step(EQUAL, audit, 1, 0), _step(RETURN, KILL), _step(LOAD, 0)]
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            code += [_step(EQUAL, number, 0, 1), _step(RETURN, refuse)]
    for number in LATER:
        code += [_step(EQUAL, number, 0, 1), _step(RETURN, ALLOW)]
    code += [_step(AT_LEAST, NEWEST, 0, 1), _step(RETURN, unknown)]
    code += [
        _step(EQUAL, clone, 0, 4),
        _step(LOAD, 16),
        _step(ANY_BIT, THREAD, 0, 1),
        _step(RETURN, ALLOW),
        _step(RETURN, refuse),
    ]
    code += [
        _step(EQUAL, prlimit, 0, 4),
        _step(LOAD, 16),
        _step(EQUAL, 0, 0, 1),
        _step(RETURN, ALLOW),
        _step(RETURN, refuse),
    ]
    for i, number in enumerate(opens if not may_truncate else ()):
        if number is not None:  # the flags are its second argument, or its third
            code += [_step(EQUAL, number, 0, 4), _step(LOAD, 24 + 8 * i), _step(ANY_BIT, TRUNCATE, 1, 0)]
            code += [_step(RETURN, ALLOW), _step(RETURN, refuse)]
    code += [_step(EQUAL, fcntl, 0, 1 + len(OWNER_OF_SIGNALS)), _step(LOAD, 24)]
    code += [_step(EQUAL, command, len(OWNER_OF_SIGNALS) - i, 0) for i, command in enumerate(OWNER_OF_SIGNALS)]
    code += [_step(RETURN, ALLOW), _step(RETURN, refuse)]
    program = ctypes.create_string_buffer(b"".join(code))
    pointer = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program))
    _check(libc.prctl(SECCOMP, FILTER, pointer), "seccomp")


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One BPF instruction; jumps count instructions behind it."""
    return struct.pack("HBBI", code, if_true, if_false, value)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def give_up_rights(isolate: bool, seconds: float, memory_mb: int) -> None:
    """After this the process is alone with its memory and its open pipes.

    Args:
        isolate: False makes do with what the host allows.
        seconds: of processor time.
        memory_mb: of address space.

    Raises:
        OSError, KeyError: the host does not allow it.
    """
    try:
        limit(seconds, memory_mb)
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, f"{sys.platform} is not Linux")
        libc = ctypes.CDLL(None, use_errno=True)
        _check(libc.prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "prctl")
        _check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
        drop_capabilities(libc)
        if platform.machine() not in ARCHITECTURES:
            raise OSError(errno.ENOSYS, f"{platform.machine()} is neither of {', '.join(ARCHITECTURES)}")
        version = confine_files(libc) if isolate else 0
        filter_calls(libc, may_truncate=version >= TRUNCATION)
    except (OSError, ValueError):
        if isolate:
            raise


def main() -> None:
    status = int(sys.argv[1])
    job = json.load(sys.stdin)
    sys.set_int_max_str_digits(0)
    os.chdir("/")
    os.environ.clear()  # Python sets LC_CTYPE itself
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    try:
        give_up_rights(job["isolate"], job["seconds"], job["memory_mb"])
    except (OSError, ValueError) as error:
        os.write(status, str(error).encode())
        os._exit(1)
    os.close(status)
    sys.argv[:] = ["program"]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    vars(module).update(job["values"])
    exec(compile(job["program"], "<program>", "exec"), vars(module))


if __name__ == "__main__":
    main()
