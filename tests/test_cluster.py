"""The batch files of cluster/: their syntax, and the whole method through a real SLURM of two nodes on this machine."""

import getpass
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from Experiment.paths import REPOSITORY
from tests.test_scripts import MINI, succeed, tree

FILES = sorted((REPOSITORY / "cluster/slurm").glob("*.sh"))
DAEMONS = ("munged", "slurmctld", "slurmd")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_batch_files_can_be_read_by_the_shell(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True).returncode == 0
    if path.name not in ("stage.sh", "chain.sh"):
        header = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH ")]
        assert {"--requeue", "--open-mode=append", "--signal=TERM@180"} <= {line.split()[1] for line in header}


KUBERNETES = REPOSITORY / "cluster/kubernetes"
JOBS = [job for file in sorted(KUBERNETES.glob("[1-7]-*.yaml")) for job in yaml.safe_load_all(file.read_text())]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_jobs_of_kubernetes_are_commands_that_exist(job, monkeypatch):
    """With what a pod finds in its environment; a mistake of the user ends the job, and all else is tried again."""
    spec = job["spec"]
    (stage,) = spec["template"]["spec"]["containers"]
    (settings,) = (part["data"] for part in yaml.safe_load_all((KUBERNETES / "experiment.yaml").read_text()) if "data" in part)
    values = settings | {item["name"]: item.get("value", "s3cret") for item in stage.get("env", [])}
    values = {name: re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], value) for name, value in values.items()}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    indexed, script = (spec.get("completionMode") == "Indexed", importlib.import_module(stage["args"][0].removesuffix(".py")))
    for index in range(spec["completions"]) if indexed else [None]:
        if indexed:
            monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        flags = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], flag) for flag in stage["args"][1:]]
        args = script.parse_args(flags)
        assert (args.dataset, args.exp, str(args.root)) == ("cifar10", "0001", "/work")
        if "--shard=auto" in flags:
            assert args.shard == (index + 1, spec["completions"])
        if "--take=auto" in flags:
            assert args.take == index + 1
    assert "backoffLimitPerIndex" in spec if indexed else "backoffLimit" in spec
    rules = {rule["action"]: rule for rule in spec["podFailurePolicy"]["rules"]}
    alone = "FailIndex" if "--take=auto" in flags else "FailJob"  # sizes need nothing of one another, shards do
    assert rules[alone]["onExitCodes"]["values"] == [2] and rules["Ignore"]


# Each look at a file's jobs in turn: before they are made, an API that is away, running, and what has become of them.
KUBECTL = """#!/bin/sh
echo "$*" >> {log}
case "$*" in *" get "*) ;; *) exit 0 ;; esac
case "$*" in *" get job/"*) echo "{before}"; exit 0 ;; esac
case $(grep -c -F -x -e "$*" {log}) in
    1) echo "connection refused" >&2; exit 1 ;;
    2) echo "1 " ;;
    *) case "$*" in
        *{failing}*) echo " FailureTarget Failed" ;;
        *7-*) echo " Complete SuccessCriteriaMet Complete" ;;
        *) echo " SuccessCriteriaMet Complete" ;;
    esac ;;
esac
"""


@pytest.mark.parametrize("failing, last, before", [("nothing", 7, ""), ("3-adapt-unet", 3, " Complete"), ("nothing", 7, "1 ")])
def test_the_jobs_of_kubernetes_run_one_after_the_other(tmp_path, failing, last, before):
    """With a stand-in for kubectl. Jobs that have ended make room for new ones, those that run go on."""
    log, kubectl = tmp_path / "log", tmp_path / "kubectl"
    kubectl.write_text(KUBECTL.format(log=log, failing=failing, before=before))
    kubectl.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "POLL": "0"}
    done = subprocess.run([KUBERNETES / "chain.sh", "--namespace=me"], env=environment, capture_output=True, text=True)
    assert done.returncode == (failing != "nothing"), done.stderr
    assert ("3-adapt-unet.yaml has failed" in done.stderr) == (last == 3)
    lines = log.read_text().splitlines()
    assert all(line.startswith("--namespace=me ") for line in lines)
    files = sorted(file.name for file in KUBERNETES.glob("[1-7]-*.yaml"))[:last]
    assert [line.split()[-1] for line in lines if " apply " in line][1:] == files
    named = [f"job/{job['metadata']['name']}" for file in files for job in yaml.safe_load_all((KUBERNETES / file).read_text())]
    assert [line.split()[-1] for line in lines if " delete " in line] == ([] if before == "1 " else named)


@pytest.mark.parametrize("starts, expected", [(0, ["--epochs", "3", "--restart"]), (2, ["--epochs", "3"])])
def test_a_job_that_is_queued_again_goes_on(tmp_path, starts, expected):
    """With a stand-in for srun: --restart would throw away at each start what the one before has done."""
    (tmp_path / "srun").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/log\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DATASET": "digits", "EXP": "s", "SLURM_JOB_ID": "1",
                   "SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_RESTART_COUNT": str(starts)}  # fmt: skip
    text = f"source {REPOSITORY}/cluster/slurm/stage.sh; stage SD_adapting.py --epochs 3 --restart"
    assert subprocess.run(["bash", "-c", text], env=environment).returncode == 0
    words = (tmp_path / "log").read_text().split()
    assert words[words.index(str(REPOSITORY)) + 1 :] == expected


def test_the_chain_asks_for_everything_before_it_submits(tmp_path):
    """With a stand-in for sbatch: what only the last jobs need would else be missed days later."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\necho "$SHARD $*" >> {tmp_path}/log\necho 7\n')
    sbatch.chmod(0o755)
    needed = {"DATASET": "digits", "EXP": "s", "IMG_TOTAL": "100", "SEARCH_WORKERS": "2", "STORAGE": "postgresql://x/y"}

    def submit(**values):
        environment = {**os.environ, **values, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run([REPOSITORY / "cluster/slurm/chain.sh"], env=environment, capture_output=True, text=True)

    for name in needed:
        if name != "SEARCH_WORKERS":
            done = submit(**{other: value for other, value in needed.items() if other != name})
            assert done.returncode and name in done.stderr and not (tmp_path / "log").exists()
    assert submit(**needed, SHARDS="1").returncode == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 6 and lines[4].startswith("auto/1 ") and "--array=0-0" in lines[4]
    assert submit(**needed, SHARDS="2").returncode == 0
    lines = (tmp_path / "log").read_text().splitlines()[6:]
    assert len(lines) == 7 and lines[5].startswith("1/1 ") and "--dependency=afterok:7 --array=0-0" in lines[5]


CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort=26817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=26818 CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=26819 CPUs=1 RealMemory=8000
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A controller and two nodes; yields a function that runs a command of SLURM and returns what it says."""
    if missing := [name for name in DAEMONS if not shutil.which(name)]:
        pytest.skip(f"SLURM is not installed: {', '.join(missing)}")
    folder = tmp_path / "slurm"
    for name in ("munge", "state"):
        (folder / name).mkdir(parents=True, mode=0o700)
    key = folder / "munge/key"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    file, host = folder / "slurm.conf", platform.node().split(".")[0]
    file.write_text(CONFIGURATION.format(folder=folder, host=host, user=getpass.getuser()))
    monkeypatch.setenv("SLURM_CONF", str(file))
    paths = {name: folder / "munge" / name for name in ("socket", "pid-file", "log-file", "seed-file")}
    flags = [f"--{name}={path}" for name, path in paths.items()]
    daemons = [["munged", f"--key-file={key}", "--foreground", "--force", *flags], ["slurmctld", "-D", "-f", file]]
    daemons += [["slurmd", "-D", "-N", name, "-f", file] for name in ("n1", "n2")]
    running = []

    def ask(*command, **more):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        for command in daemons:
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1)
        wait(lambda: ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2", 60)
        yield ask
    finally:
        subprocess.run(["scancel", "--user", getpass.getuser()], capture_output=True)
        time.sleep(1)
        for process in reversed(running):
            process.terminate()
            process.wait()


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.5)


TRAINING = "--epochs 1 --batch_size 250"
SEARCH = (
    "--n_trials 1 --num_imgs 20 --test_imgs 20 --epochs 1 --is_max 5 --repeats 0 --classifier resnet20_16 --gen_batch_size 20"
)
SECOND = f"{SEARCH} --is_min 5"
IMAGES = 1000


def waiting_files(folder):
    return list(folder.rglob("img_*.png"))


@pytest.mark.slow
def test_the_chain_through_kills_gives_the_bytes_of_one_process(slurm, tmp_path):
    """A shard is killed and a node set down while generation runs; both are queued again, and the rest waits for them."""
    root, checkout = tmp_path / "out", tmp_path / "checkout"
    checkout.mkdir()
    shutil.copytree(REPOSITORY / "cluster", checkout / "cluster")
    small = {"ENC_FLAGS": TRAINING, "DIF_FLAGS": TRAINING, "SEARCH_FLAGS": SEARCH, "SECOND_SEARCH_FLAGS": SECOND,
             "GENERATE_FLAGS": "--batch_size 96", "CLASSIFY_FLAGS": "--classifier resnet20_16 --epochs 1"}  # fmt: skip
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").write_text(
        f'#!/bin/sh\nscript=$(basename "$1"); shift\nexec {sys.executable} "{REPOSITORY}/$script" "$@"\n'
    )
    (checkout / ".venv/bin/python").chmod(0o755)
    environment = {**os.environ, **small, "DATASET": "digits", "EXP": "s", "IMG_TOTAL": str(IMAGES), "SHARDS": "2", "SIZES": "1",
                   "ROOT": str(root), "MODEL": "--backbone mini"}  # fmt: skip
    options = ["--gpus=0", "--mem=4000", "--cpus-per-task=1", f"--output={tmp_path}/%x-%A_%a.txt"]
    slurm(checkout / "cluster/slurm/chain.sh", *options, env=environment)

    wait(
        lambda: len(waiting_files(root)) > 100 and len(slurm("squeue", "-h", "-n", "generate", "-t", "R").splitlines()) == 2,
        1800,
    )
    steps = [line.split() for line in slurm("squeue", "-s", "-h", "-o", "%i %N").splitlines()]
    (killed, _), (_, node) = [(step, name) for step, name in steps if step.endswith(".0")]
    slurm("scancel", "--signal=KILL", killed)
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    time.sleep(5)
    slurm("scontrol", "update", f"nodename={node}", "state=idle")
    wait(lambda: not slurm("squeue", "-h").strip(), 1800)

    (made,) = (path for path in (root / "Data/Synthetic/Exp_s/digits").glob("1k*") if path.is_dir())
    results = root / "CAS Results/test_accuracies_exps.json"
    assert results.exists() and '"real"' in results.read_text() and '"x1"' in results.read_text()
    logs = "".join(path.read_text() for path in tmp_path.glob("generate-*.txt"))
    assert "ended with code 137" in logs and "is queued again" in logs and logs.count(" there,") + logs.count(" there ") >= 2
    alone = tmp_path / "alone"
    shutil.copytree(root / "Checkpoints", alone / "Checkpoints")
    shutil.copytree(root / "optimization_plots", alone / "optimization_plots")
    succeed("generate_dataset.py", "--dataset", "digits", "--exp", "s", "--root", alone, *MINI, "--img_total", IMAGES, "--best",
            "--batch_size", 96)  # fmt: skip
    whole, parts = tree(alone / made.relative_to(root)), tree(made)
    images = {path for path in whole if path.suffix == ".png"}
    assert len(images) == IMAGES and all(whole[path] == parts[path] for path in images)
