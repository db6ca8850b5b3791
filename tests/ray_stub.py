"""A stage's stand-in: writes files one after the other, each once, and goes on where it was stopped."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--count", type=int, default=20)
parser.add_argument("--shard", default="1/1")
parser.add_argument("--mistake", action="store_true")
parser.add_argument("--root", type=Path, default=Path(), help="where the folder lies")
parser.add_argument("--slow", action="store_true", help="to start")
parser.add_argument("--size", type=int, default=0, help="bytes of a file, at least")
args = parser.parse_args()
if args.mistake:
    print("tests/ray_stub.py: error: something is wrong", file=sys.stderr)
    sys.exit(2)


def stop(*_):
    print("tests/ray_stub.py: interrupted; all is saved: the same command goes on from there", file=sys.stderr)
    sys.exit(143)


args.folder = args.root / args.folder
args.folder.mkdir(parents=True, exist_ok=True)
(args.folder / f"pid-{args.shard.replace('/', '-')}").write_text(f"{os.getpid()} {os.getppid()}")
if args.slow:
    time.sleep(5)
signal.signal(signal.SIGTERM, stop)
part, parts = map(int, args.shard.split("/"))
for i in range(part - 1, args.count, parts):
    file = args.folder / f"{i}.txt"
    if not file.exists():
        time.sleep(0.1)
        with open(args.folder / "writes", "a") as log:
            log.write(f"{i}\n")
        file.write_text(str(i * i).ljust(args.size))
print(f"{args.count} files are there", flush=True)
