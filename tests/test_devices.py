"""What the networks run on: named, warned of where it is idle, and shared."""

import subprocess
import sys

import numpy as np
import pytest

import SD_adapting
from cli import startup
from Experiment import machine
from Experiment.errors import UserError
from Experiment.levers import HOW
from Experiment.paths import REPOSITORY
from Experiment.records import describe_run, fixed_arguments
from Models import devices, runtime
from Models.devices import sharing
from Models.feed import in_parts, noisy_batches, padded, with_targets

H100 = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "memory_gb": 80}


def test_two_devices_learn_what_one_does(tmp_path):
    """Losses within 1e-5 of themselves and weights within 1e-5 after 3 steps, averages, batches that do not divide."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tests/two_devices.py", tmp_path], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [line.split() for line in done.stdout.splitlines() if line.startswith(("enc ", "dif ", "classifier "))]
    assert [name for name, *_ in found] == ["enc", "dif", "classifier"]
    for _, loss, weights in found:
        assert float(loss) < 1e-5 and float(weights) < 1e-5


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match="--devices: 3 is more than there are: CPU:0"), sharing(3):
        pass
    with sharing("all") as used:
        assert used == 1


# Batches


def test_a_padded_batch_weighs_what_it_has():
    rng = np.random.default_rng(1)
    moments, weights = rng.standard_normal((10, 4, 4, 8), dtype="float32"), np.linspace(1, 2, 1000, dtype="float32")

    def made(weights):
        return with_targets(noisy_batches(moments, np.arange(10) % 3, 3, 4, 1, 0), weights)

    for of_timesteps in (None, weights):
        for plain, full in zip([b for b, _ in zip(made(of_timesteps), range(3))], padded(made(of_timesteps), 4)):
            (batch, target, *weighed), (more, more_targets, w) = plain, full
            assert w.shape == (4, 1, 1) and len(more_targets) == 4 and all(len(a) == 4 for a in more.values())
            error, errors = (batch["latent_noise"] - target) ** 2, (more["latent_noise"] - more_targets) ** 2
            mean = (error.mean(axis=-1) * (weighed[0] if weighed else 1)).mean()
            assert (errors.mean(axis=-1) * w).mean() == pytest.approx(mean, rel=1e-6)
            assert np.array_equal(more["label"][: len(target)], batch["label"])


@pytest.mark.parametrize("count, parts, sizes", [(7, 2, [4, 3]), (8, 4, [2] * 4), (2, 3, [2] * 3), (5, 3, [2, 2, 1])])
def test_the_mean_of_parts_is_that_of_the_batch(count, parts, sizes):
    values, even = np.arange(1.0, count + 1), np.arange(parts)
    made = list(in_parts([(even, even), (values, values)], parts))[parts:]
    assert [len(part) for part, *_ in made] == sizes
    assert np.mean([(part * weights).mean() for part, _, weights in made]) == pytest.approx(values.mean())
    assert [len(part) for part, *_ in in_parts([(values, values)], parts)] == (sizes if count % parts == 0 else [count] * parts)


@pytest.mark.parametrize("count", [5, 8, 9, 11, 16, 17])
def test_each_validation_image_counts_as_often_as_every_other(count, monkeypatch):
    from Models import classifier

    monkeypatch.setattr(classifier, "VALIDATION_BATCH", 7)  # 8 on four devices
    monkeypatch.setattr(classifier, "fast_feed", lambda batches, model: batches)
    made = classifier.Classifier("resnet20_16", 8, 10)
    val = np.zeros((count, 8, 8, 3), "uint8"), np.zeros(count, int)
    made.scaled = val, (np.arange(count), np.eye(10)[val[1]])
    told = made.validation(val, 4)
    images = np.concatenate([part for part, _ in told["validation_data"]()])
    assert len(np.unique(np.bincount(images, minlength=count))) == 1


# Names


def test_records_and_banners_name_the_device(monkeypatch):
    cpu = machine.processor()
    assert cpu["name"] and cpu["cores"] > 0 and cpu["memory_gb"] > 0
    assert machine.device_name() == f"{cpu['name']}, {cpu['cores']} cores, {cpu['memory_gb']} GB"
    args = SD_adapting.parse_args(["--exp", "x"])
    assert describe_run(args, 0)["machine"]["processor"] == cpu and describe_run(args, 0)["machine"]["gpus"] == []
    monkeypatch.setattr(machine, "used_gpus", lambda: [H100])
    assert machine.device_name() == "NVIDIA H100 80GB HBM3, compute capability 9.0, 80 GB"
    assert describe_run(args, 0)["machine"]["gpus"] == [H100]
    monkeypatch.setattr(machine, "used_gpus", lambda: [H100, H100])
    assert machine.device_name().startswith("2 x NVIDIA H100")


def test_how_it_is_computed_is_on_record_and_makes_no_other_run():
    plain, how = (SD_adapting.parse_args(["--exp", "x", *flags]) for flags in ([], ["--xla", "off", "--devices", "all"]))
    assert fixed_arguments(plain, ()) == fixed_arguments(how, ())
    assert not set(HOW) & set(describe_run(plain, 0)["arguments"])
    assert describe_run(how, 0)["arguments"].items() >= {"xla": "off", "devices": "all"}.items()
    assert fixed_arguments(SD_adapting.parse_args(["--exp", "x", "--tf32"]), ())["tf32"] is True


def test_xla_and_deterministic_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        SD_adapting.parse_args(["--exp", "x", "--xla", "on", "--deterministic"])
    assert "--xla: on is not allowed with --deterministic" in capsys.readouterr().err
    for number in ("2", "all"):
        with pytest.raises(SystemExit):
            SD_adapting.parse_args(["--exp", "x", "--xla", "on", "--devices", number])
        assert "--xla: on is not allowed with --devices" in capsys.readouterr().err


def test_one_of_several_gpus_is_told(monkeypatch, caplog):
    caplog.set_level("INFO", logger="experiment")
    monkeypatch.setattr(devices, "used_gpus", lambda: [{}] * 8)
    for name in ("make_repeatable", "use_hardware"):
        monkeypatch.setattr(devices, name, lambda *how: None)
    monkeypatch.setattr(devices.log, "propagate", True)
    for flags in (["--devices", "8"], []):
        devices.start_devices(SD_adapting.parse_args(["--exp", "x", *flags]))
    assert caplog.text.count("this run computes on the first of 8 GPUs (CUDA_VISIBLE_DEVICES") == 1


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_says_what_it_switches_off_on_a_gpu(monkeypatch, caplog, deterministic):
    chosen = []
    monkeypatch.setattr(devices, "make_repeatable", lambda *how: chosen.append(how))
    monkeypatch.setattr(devices, "use_hardware", lambda *how: chosen.append(how))
    monkeypatch.setattr(devices, "on_gpu", lambda: True)
    monkeypatch.setattr(devices.log, "propagate", True)
    caplog.set_level("INFO", "experiment")
    devices.start_devices(SD_adapting.parse_args(["--exp", "x", *(["--deterministic"] if deterministic else [])]))
    assert chosen == [(1234, deterministic), ("off" if deterministic else "auto", False)]
    assert ("--deterministic switches off: XLA" in caplog.text) is deterministic


@pytest.mark.parametrize("gpu", [False, True])
def test_float32_is_float32_unless_tf32_is_asked_for(monkeypatch, gpu):
    import tensorflow as tf

    asked = []
    monkeypatch.setattr(tf.config.experimental, "enable_tensor_float_32_execution", asked.append)
    monkeypatch.setattr(runtime, "on_gpu", lambda: gpu)
    runtime.use_hardware()
    runtime.use_hardware(tf32=True)
    assert asked == ([False, True] if gpu else [])  # a processor stays as it is


def test_what_runs_share_is_computed_without_tf32(tiny):
    import tensorflow as tf

    from Models.moments import moments_encoder

    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    before = enabled()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    try:
        batches = moments_encoder(tiny)(np.zeros((70, 8, 8, 3), np.uint8))
        assert next(batches).shape == (64, 4, 4, 8) and not enabled()
        assert len(list(batches)) == 1 and enabled()
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


class Driver:
    """What the driver's library answers on a machine with one GPU."""

    code = 0

    def cuInit(self, flags):
        return self.code

    def cuDeviceGetCount(self, count):
        count._obj.value = 1

    def cuDeviceGet(self, device, number):
        device._obj.value = number

    def cuDeviceGetName(self, name, size, device):
        name.value = H100["name"].encode()

    def cuDeviceTotalMem_v2(self, size, device):
        size._obj.value = 80 * 2**30

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {machine.MAJOR: 9, machine.MINOR: 0}[attribute]


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Driver())
    machine.driver_gpus.cache_clear()
    yield
    machine.driver_gpus.cache_clear()


def test_what_the_driver_says(driver, monkeypatch):
    assert machine.driver_gpus() == ([H100], "")
    for code, reason in ((machine.NO_DEVICE, ""), (803, "the driver answers with error 803")):
        monkeypatch.setattr(Driver, "code", code)
        machine.driver_gpus.cache_clear()
        assert machine.driver_gpus() == ([], reason)


def test_a_gpu_that_is_not_used_is_a_warning_with_the_way_out(driver, monkeypatch, caplog):
    notes = "2026 W cuda.cc:1] Cannot dlopen some GPU libraries. Please make sure\nelse"
    monkeypatch.setattr(startup.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", notes))
    monkeypatch.setattr(startup.log, "propagate", True)
    startup.warn_of_idle_gpus()
    assert (
        "a GPU is there (NVIDIA H100 80GB HBM3, 80 GB), but TensorFlow does not use it: Cannot dlopen some GPU" in caplog.text
    )
    assert 'pip install "tensorflow[and-cuda]==2.' in caplog.text
    caplog.clear()
    monkeypatch.setattr(startup, "used_gpus", lambda: [H100])
    startup.warn_of_idle_gpus()
    assert not caplog.text


@pytest.mark.parametrize("capability, cudnn, told", [
    ("9.0", "9.19.0", ""), ("12.0", "9.19.0", "has no code of its own for a card"), ("6.1", "9.10.2", ""), ("7.5", "9.19.0", ""),
    ("6.1", "9.11.0.98", 'cuDNN 9.11 has no code for a card: pip install "nvidia-cudnn-cu12<9.11"'), ("6.1", None, ""), ("", "9.11", ""),
])  # fmt: skip
def test_a_gpu_for_which_there_is_no_code_is_told(monkeypatch, caplog, capability, cudnn, told):
    def version(package):
        if package == "nvidia-cudnn-cu12" and cudnn is None:
            raise startup.PackageNotFoundError
        return cudnn

    monkeypatch.setattr(startup, "version", version)
    startup.warn_of_generations([{"name": "a card", "compute_capability": capability, "memory_gb": 8}])
    assert told in caplog.text and bool(caplog.text) == bool(told)


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch):
    from Models.classifier import Classifier

    monkeypatch.setattr("Models.classifier.devices_of", lambda model: 2)
    data = np.zeros((21, 8, 8, 3), np.uint8), np.arange(21) % 3
    with pytest.raises(UserError, match="7 is not a multiple of the 2 devices"):
        Classifier("resnet20_16", 8, 3).fit(data, data, epochs=1, batch_size=7, seed=1, patience=(9, 9), verbose=0)
