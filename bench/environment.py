"""The environment of diffusers and PyTorch: `.venv-peer`, which `make bench` and `make parity-diffusers` share."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / ".venv-peer"
WANTED = HERE / "peer-requirements.txt"


def peer_python():
    """The interpreter of the peer's environment, which is made where it is missing or of before; None where that fails."""
    python, installed = PEER / "bin" / "python", PEER / ".installed"
    if not installed.exists() or installed.read_text() != WANTED.read_text():
        print(f"diffusers and PyTorch into {PEER}", flush=True)
        install = [python, "-m", "pip", "install", "-q", "-r", WANTED]
        for command in ([sys.executable, "-m", "venv", PEER], install):
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            if done.returncode:
                print(f"diffusers cannot be installed:\n{done.stderr[-500:]}", flush=True)
                return None
        installed.write_text(WANTED.read_text())
    return python
