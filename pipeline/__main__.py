"""The command line, `python -m pipeline VERB`, and how it ends: exit code 2 for a mistake, 130 for Ctrl-C."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import typer

from features.errors import FirnError

# Idle OpenMP threads sleep instead of spinning: decoders, network and others on the machine share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Run a verb; a user's mistake is one line on stderr and exit code 2, Ctrl-C is 130."""
    from pipeline.arguments import run

    try:
        code = run()
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except FirnError as error:
        return _fail(f"error: {error}", 2)
    except OSError as error:
        return _fail(f"error: {_explained(error)}", 2)
    except Exception as error:
        if getattr(error, "show", None) is None or sys.argv[1:]:
            raise
        error.show()  # type: ignore[attr-defined]  # the help, where nothing was typed
        return 2
    if code == 130:
        return _fail("interrupted; what was done is kept, the same command goes on from there", code)
    return code


def _fail(line: str, code: int) -> int:
    from features.progress import printable

    sys.stderr.write("\n".join(map(printable, line.split("\n"))) + "\n")
    return code


def _explained(error: OSError) -> str:
    """Return what the operating system refused, and what to do."""
    path = error.filename2 or error.filename  # of two, as in copying, the one that is written
    what = f"{path or ''}: {error.strerror or error}".removeprefix(": ")
    ours = _is_of_artifacts(path)
    place = "set FIRN_ARTIFACTS to a folder that can be written" if ours else "have that changed, or name another place"
    advice = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again, what was done is kept",
        errno.EFBIG: "a file-size limit is set; lift it (ulimit -f) and run the same command again",
        errno.EEXIST: "that is a file, and a folder has to be there; give another place",
        errno.ENOTDIR: "a file is there where a folder has to be; give another place",
        errno.EROFS: f"the folder is read-only; {place}",
        errno.EACCES: f"permission is missing; {place}",
        errno.EDQUOT: "the quota is used up; free some space and run the same command again, what was done is kept",
    }
    return f"{what} ({advice[error.errno]})" if error.errno in advice else what


def _is_of_artifacts(path: object) -> bool:
    from features.storage import artifacts_root

    return isinstance(path, str | Path) and Path(path).absolute().is_relative_to(artifacts_root().absolute())


if __name__ == "__main__":
    sys.exit(main())
