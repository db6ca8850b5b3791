"""Start-up of a script's process: cores, memory, and Keras without TensorFlow's notes."""

import contextlib
import ctypes
import gc
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version

from Experiment.machine import driver_gpus, used_gpus
from Models.backbones import BACKBONES

log = logging.getLogger("experiment")

# Compute capabilities.
NEWEST_OF_TENSORFLOW, OLDEST_OF_CUDNN, CUDNN_WITHOUT_OLD = (9, 0), (7, 5), (9, 11)

# For glibc's malloc: arrays of 256 KB and more go back to the system when they are freed; one heap for all threads; pages
# of 2 MB where the system allows them, since fresh memory for every array otherwise costs a page fault per 4 KB.
GIVE_BACK = "glibc.malloc.mmap_threshold=262144:glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"

# The same, the other way round, for a process that asks for the same arrays again and again: none is given back. Numbers
# of glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never) and M_TOP_PAD.
KEEP = ((-4, 0), (-1, -1), (-2, 256 * 2**20))


def share_cores(backbone):
    """Let a small backbone use half of the cores for an operation, and run two operations at a time.

    Its operations are too small to be shared by all cores: so it trains and generates a quarter faster (measured on 2
    cores). To be called before TensorFlow is imported; what the user has set stays.
    """
    if BACKBONES[backbone].light:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))


def use_onednn():
    """Let TensorFlow, which is not imported yet, compute with oneDNN on every x86 processor.

    By itself it does so only where the processor has AVX512-VNNI or the like. With AVX2 alone its own kernels for the
    gradients of convolutions take several times as long as the convolutions (measured on 2 cores of an AMD Zen 3).
    """
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def give_memory_back():
    """Let TensorFlow, which is not imported yet, give memory back as soon as it is free.

    Its own allocator keeps what it once had, and so does glibc's malloc with arrays below a threshold that grows to 32 MB.
    glibc reads its settings when a process begins, so this one begins again, under the same number. Elsewhere than on
    Linux that is left out. What the user has set stays.
    """
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = GIVE_BACK
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_memory():
    """Let glibc's malloc keep what is freed: on Linux alone, and not where the user has set something else.

    A training step asks for the same arrays as the one before. Given back and fetched again, each costs a page fault
    per 4 KB, up to a third of a step of mini.
    """
    set_by_user = [name for name in os.environ if name == "GLIBC_TUNABLES" or name.startswith("MALLOC_")]
    libc = ctypes.CDLL(None) if sys.platform == "linux" and not set_by_user else None
    if hasattr(libc, "mallopt"):  # musl has none
        for option, value in KEEP:
            libc.mallopt(option, value)


@contextlib.contextmanager
def light_import():
    """Within this block Keras is imported without packages that it can do without, and garbage is not collected.

    For users of scikit-learn and pandas it has wrappers, and pictures that matplotlib draws. None of them is used here,
    and they take half as long to import as TensorFlow. Modules are no garbage, and are not looked at again later.
    """
    hidden = [name for name in ("sklearn", "pandas", "matplotlib") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None: an ImportError, for which Keras is prepared
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name in hidden:
            del sys.modules[name]


def import_keras(args=None):
    """Import Keras and find the devices without the notes that TensorFlow writes; if it fails, they are shown.

    The notes are written by C++ code straight to file descriptor 2 before any log level counts. Later ones are left out
    too: TensorFlow also labels missing optional kernels as errors, and real errors are raised anyway.

    Args:
        args: The script's arguments. `backbone` says how cores are shared where a diffusion model runs (`precision` is
            among them); with `gradient_checkpointing` the process takes the least memory and may begin again: see
            `give_memory_back`.
    """
    if hasattr(args, "precision"):
        share_cores(args.backbone)
    spare_memory = getattr(args, "gradient_checkpointing", None)  # None: no adaptation
    if spare_memory:
        give_memory_back()
    elif spare_memory is False and BACKBONES[args.backbone].light:
        keep_memory()
    use_onednn()
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user has chosen for other projects
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as notes:
        terminal = os.dup(2)
        os.dup2(notes.fileno(), 2)
        try:
            with light_import():
                import keras
            import tensorflow as tf

            for gpu in tf.config.list_physical_devices("GPU"):
                tf.config.experimental.set_memory_growth(gpu, True)
            if spare_memory:
                from Models.tensorflow_patches import keep_less_of_graphs

                keep_less_of_graphs()
        except BaseException:
            notes.seek(0)
            os.write(terminal, notes.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        notes.seek(0)
        for line in notes.read().decode(errors="replace").splitlines():
            log.debug("TensorFlow: %s", line)  # to log.txt alone
    warn_of_idle_gpus()
    warn_of_generations(used_gpus())
    return keras


def warn_of_idle_gpus():
    """Warn where the driver knows a GPU and TensorFlow lists none: a run of days would be one of months."""
    found, broken = driver_gpus()
    if broken:
        log.warning("a GPU is there, but not used: %s. Install the driver's library, or restart the container with it", broken)
    if not found or used_gpus():
        return
    log.warning(
        "a GPU is there (%s, %d GB), but TensorFlow does not use it%s. To mend it: pip install "
        '"tensorflow[and-cuda]==%s"',
        found[0]["name"], found[0]["memory_gb"], why_not_used(), version("tensorflow"),
    )  # fmt: skip


def warn_of_generations(gpus):
    """Warn of GPUs for which TensorFlow or cuDNN brings no code: some of their errors end the process without a word.

    The packages of TensorFlow 2.21 are built up to compute capability 9.0, for which newer GPUs must translate. cuDNN has no
    code for GPUs before 7.5 from 9.11 on, which pip takes by itself.
    """
    for gpu in gpus:
        if not gpu["compute_capability"]:
            continue
        generation = tuple(map(int, gpu["compute_capability"].split(".")))
        with contextlib.suppress(PackageNotFoundError):
            cudnn = tuple(map(int, version("nvidia-cudnn-cu12").split(".")[:2]))
            if generation < OLDEST_OF_CUDNN and cudnn >= CUDNN_WITHOUT_OLD:
                log.warning('cuDNN %d.%d has no code for %s: pip install "nvidia-cudnn-cu12<9.11"', *cudnn, gpu["name"])
        if generation > NEWEST_OF_TENSORFLOW:
            log.warning(
                "TensorFlow %s has no code of its own for %s: if a run breaks off without an error, try --xla off, then another "
                "GPU, or none: CUDA_VISIBLE_DEVICES=-1", version("tensorflow"), gpu["name"],
            )  # fmt: skip


def why_not_used():
    """TensorFlow's own reason, which it notes at its start where no level of the log hides it: asked of another process."""
    asked = "import tensorflow as tf; tf.config.list_physical_devices('GPU')"
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    process = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, env=environment, errors="replace")
    notes = process.stderr.splitlines()
    for note in notes:
        log.debug("TensorFlow: %s", note)
    reasons = [re.sub(r"^.*?\] ", "", note) for note in notes if re.search(r"(?i)dlopen|gpu|cuinit|not built with", note)]
    return f": {reasons[0].rstrip('.')}" if reasons else ""
