"""Start-up of TensorFlow and Keras: quiet, with the right memory and cores, seeded."""

import os
import sys
import tempfile


def share_cores(backbone):
    """Let the mini backbone use half of the cores for an operation, and run two operations at a time.

    Its operations are too small to be shared by all cores: so it trains and generates a quarter faster (measured on 2
    cores). To be called before TensorFlow is imported; what the user has set stays.
    """
    if backbone == "mini":
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))


# For glibc's malloc: arrays from 256 KB on go back to the system when they are freed; one heap for all threads; pages of
# 2 MB where the system allows them, since fresh memory for every array is a page fault every 4 KB else.
GIVE_BACK = "glibc.malloc.mmap_threshold=262144:glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"


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


def import_keras(spare_memory=False):
    """Import Keras and find the devices without the notes that TensorFlow writes; if it fails, they are shown.

    They are written by C++ code straight to file descriptor 2 before any log level counts. Later ones are left out, those
    that it calls errors too: it says so of an operation that its library lacks, and what does go wrong is also raised.

    Args:
        spare_memory: Whether to take the least memory. The process may begin again: see `give_memory_back`.
    """
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
                if spare_memory:  # rewriting sd1's training graph takes a minute and makes no step faster
                    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
                    forget_where_operations_come_from()
        except BaseException:
            notes.seek(0)
            os.write(terminal, notes.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
    return keras


def forget_where_operations_come_from():
    """Let TensorFlow keep no call stack for each operation of a graph.

    It only quotes them in error messages, and those of sd1's training step are 0.6 GB. There is no public switch.
    """
    from tensorflow.python.framework import ops

    ops.pywrap_tf_session.TF_SetOpStackTrace = lambda operation, stack: None


def make_repeatable(args):
    """Seed Keras and, with --deterministic, take only operations whose results do not depend on timing.

    On a processor none of those that the project uses does: there the flag changes nothing but the time.
    """
    import keras

    keras.utils.set_random_seed(args.seed % 2**32)
    if args.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
