"""Execute another program that the kernel ends together with its parent process.

Run it by path as `python -IS child.py PARENT SIGNAL UID GID PROGRAM ...`; it imports the standard library only.
A `preexec_fn` could do the same, but is unsafe in a process with threads.
"""

import ctypes
import os
import sys

# Numbers from linux/prctl.h and linux/capability.h.
PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 28, 47, 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


def main() -> None:
    parent, signal, uid, gid = map(int, sys.argv[1:5])
    program = sys.argv[5:]
    linux = sys.platform == "linux"
    if uid != os.geteuid():
        if linux:
            # Keep the capabilities after setuid, and let access(2) honour them: initdb calls it on its own folder.
            _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        if linux:
            _keep_access_to_every_folder()
    if linux:  # after setuid, which clears it
        _prctl(PR_SET_PDEATHSIG, signal)
        if os.getppid() != parent:
            sys.exit("the process that started this one has ended")
    os.execv(program[0], program)  # noqa: S606 (deliberately without a shell)


def _keep_access_to_every_folder() -> None:
    """Keep CAP_DAC_OVERRIDE over the change of user and the exec.

    The clone may lie in a folder that only root may enter, such as root's home. An ambient capability gives access to
    this one process. The alternatives are to change the modes of folders of other owners, or to copy the server.
    """
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    bit = 1 << CAP_DAC_OVERRIDE
    # effective, permitted, inheritable of the capabilities 0 to 31, then of 32 to 63
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    if _libc.capset(header, sets) == 0:  # on failure, folders that every user may enter still work
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)


def _prctl(*arguments: int) -> None:
    if _libc.prctl(*(ctypes.c_ulong(argument) for argument in arguments)) != 0:
        print(f"prctl{arguments}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)


_libc = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    main()
