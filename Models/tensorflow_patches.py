"""The one place where TensorFlow's inside is reached into. Each patch says why, and what breaks without it."""


def keep_less_of_graphs():
    """Let a process that has to spare memory keep less of its graphs.

    Two settings. TensorFlow's graph optimizer is switched off by its public switch: rewriting sd1's training graph takes a
    minute and makes no step faster. And no call stack is kept for each operation: they are only quoted in error messages,
    and those of sd1's training step are 0.6 GB. There is no public switch for that, so the function that stores them is
    replaced. Without it nothing breaks but memory: `SD_adapting.py --gradient_checkpointing` on sd1 takes 0.6 GB more.
    """
    import tensorflow as tf
    from tensorflow.python.framework import ops

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    ops.pywrap_tf_session.TF_SetOpStackTrace = lambda operation, stack: None
