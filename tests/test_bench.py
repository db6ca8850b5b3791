"""The benchmark's own bookkeeping: which file a figure goes into."""

import json
import sys

import pytest

from bench import __main__ as bench


@pytest.mark.parametrize("flags, kind", [
    ("avx2", "float32"), ("avx2 avx512_bf16", "bfloat16"), ("avx512_bf16 amx_bf16", "amx"),
])  # fmt: skip
def test_results_are_of_one_kind_of_processor_and_of_one_processor(flags, kind, tmp_path, monkeypatch, capsys):
    def measured(name, *topics):
        monkeypatch.setattr(bench, "processor", lambda: {"name": name})
        monkeypatch.setattr(sys, "argv", ["bench", "--topics", *topics, "--out", str(tmp_path)])
        bench.main()
        (file,) = tmp_path.glob("*.json")
        assert file.name == f"results_{kind}.json" and file.with_suffix(".png").exists()
        return [row["row"] for row in json.loads(file.read_text())["rows"]]

    def topic(name):
        return lambda args: [{"row": name, "work": "a step", "value": 1.5, "to_reach": None}]

    for module in ("bench.__main__", "Experiment.machine"):
        monkeypatch.setattr(f"{module}.cpu_info", lambda: flags)
    monkeypatch.setattr(bench, "TOPICS", {"generation": topic("1"), "unet": topic("4")})
    assert measured("a", "unet") == ["4"]
    monkeypatch.setattr(bench, "peer_python", lambda: None)
    assert measured("a", "generation") == ["1", "4"]
    assert measured("b", "unet") == ["4"] and "is of a: it is replaced" in capsys.readouterr().out
