"""The files of cluster/ against the schemas of Kubernetes and SkyPilot, in an environment with cluster-requirements.txt.

    .venv-cluster/bin/python tests/cluster_schemas.py

Exit code 1: a file does not fit.
"""

import subprocess
import sys
from pathlib import Path

import sky
import yaml
from jsonschema import validate
from sky.utils import schemas

CLUSTER = Path(__file__).resolve().parent.parent / "cluster"


def main():
    files = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
    code = subprocess.run([Path(sys.executable).parent / "kubernetes-validate", "--strict", *files]).returncode
    for file in sorted((CLUSTER / "skypilot").glob("*.yaml")):
        task = yaml.safe_load(file.read_text())
        validate(task, schemas.get_task_schema())
        validate(task["resources"], schemas.get_resources_schema())
        for mounted in task["file_mounts"].values():
            validate(mounted, schemas.get_storage_schema())
        print(f"INFO {file} passed as {sky.Task.from_yaml(str(file))!r} of SkyPilot {sky.__version__}")
    return code


if __name__ == "__main__":
    sys.exit(main())
