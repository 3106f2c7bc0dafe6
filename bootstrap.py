#!/usr/bin/env python3
"""Set up patchbay in .venv and use it; needs Python 3.11 with venv and nothing else.

    python3 bootstrap.py run +experiment=n300_kv_only      set up, then: python -m runner +experiment=...
    python3 bootstrap.py test                              set up, then: pytest

torch is taken from PyTorch's CPU index unless this machine has an NVIDIA driver or PATCHBAY_TORCH=default is
set, so that a machine without a GPU downloads no CUDA. Any other installation works as well:
pip install -c constraints.txt -e '.[dev]'
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HOME = Path(__file__).resolve().parent
VENV = HOME / ".venv"
TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INPUTS = ("pyproject.toml", "constraints.txt", "bootstrap.py")


def main(words: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - the one file that older versions get to run
        print(f"patchbay needs Python 3.11 or newer, this is {platform.python_version()}", file=sys.stderr)
        return 2
    if not words or words[0] not in ("run", "test"):
        print(__doc__, file=sys.stderr)
        return 2
    set_up()
    command = ["runner", *words[1:]] if words[0] == "run" else ["pytest", "-n", "2", *words[1:]]
    return subprocess.call([str(python()), "-m", *command])


def python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def set_up() -> None:
    """Create .venv and install, unless that was done for just these inputs."""
    stamp = VENV / "patchbay-setup"
    digest = hashlib.sha256(b"".join((HOME / name).read_bytes() for name in INPUTS)).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    print(f"setting up {VENV} (once, a few minutes)", file=sys.stderr)
    if not python().is_file():
        venv.create(VENV, with_pip=True)
    install_torch()
    pip("install", "--quiet", "-c", str(HOME / "constraints.txt"), "-e", f"{HOME}[dev]")
    stamp.write_text(digest)


def install_torch() -> None:
    """The CPU build of torch on Linux without a GPU; the platform's usual build elsewhere."""
    wants_cpu = (
        sys.platform == "linux"
        and shutil.which("nvidia-smi") is None
        and os.environ.get("PATCHBAY_TORCH") != "default"
    )
    if not wants_cpu:
        pip("install", "--quiet", f"torch=={TORCH}")
    elif pip("install", "--quiet", f"torch=={TORCH}+cpu", required=False) != 0:
        pip("install", "--quiet", f"torch=={TORCH}+cpu", "--extra-index-url", CPU_INDEX)


def pip(*words: str, required: bool = True) -> int:
    # A first attempt that may fail says nothing: what it could not find, the second attempt looks for
    # elsewhere.
    quiet = subprocess.DEVNULL if not required else None
    status = subprocess.call([str(python()), "-m", "pip", *words], stdout=quiet, stderr=quiet)
    if required and status != 0:
        sys.exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
