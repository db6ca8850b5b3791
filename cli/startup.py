"""Start-up of a script's process: cores, memory, and Keras without TensorFlow's notes."""

import os
import sys
import tempfile

from Models.backbones import BACKBONES

# For glibc's malloc: arrays of 256 KB and more go back to the system when they are freed; one heap for all threads; pages
# of 2 MB where the system allows them, since fresh memory for every array otherwise costs a page fault per 4 KB.
GIVE_BACK = "glibc.malloc.mmap_threshold=262144:glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"


def share_cores(backbone):
    """Let a small backbone use half of the cores for an operation, and run two operations at a time.

    Its operations are too small to be shared by all cores: so it trains and generates a quarter faster (measured on 2
    cores). To be called before TensorFlow is imported; what the user has set stays.
    """
    if BACKBONES[backbone].small:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))


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
    spare_memory = getattr(args, "gradient_checkpointing", False)
    if spare_memory:
        give_memory_back()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as notes:
        terminal = os.dup(2)
        os.dup2(notes.fileno(), 2)
        try:
            import keras

            if keras.backend.backend() == "tensorflow":
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
    return keras
