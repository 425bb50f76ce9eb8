"""The recipes in docs/guides/clusters.md are what Kubernetes, Slurm and `drx` take."""

import re
import shlex
import subprocess
from pathlib import Path

import kubernetes_validate
import yaml

from drexperts.cli.dispatch import parser

PAGE = (Path(__file__).parents[2] / "docs/guides/clusters.md").read_text(encoding="utf-8")


def block(language: str, beginning: str) -> str:
    """The code block of the page with this language and beginning."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    (found,) = [text for text in blocks if text.startswith(beginning)]
    return found


def test_the_job_of_kubernetes() -> None:
    job = yaml.safe_load(block("yaml", "apiVersion"))
    kubernetes_validate.validate(job, "1.33", strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    arguments = parser().parse_args(container["command"][1:])
    assert arguments.shard == f"auto/{job['spec']['completions']}"
    assert str(arguments.threads) == container["resources"]["limits"]["cpu"]


def test_the_script_of_slurm() -> None:
    script = block("bash", "#!/bin/bash")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    (command,) = [line for line in script.splitlines() if line.startswith("srun ")]
    arguments = parser().parse_args(shlex.split(command)[2:])
    assert arguments.shard == "auto"
    assert f"--cpus-per-task={arguments.threads}\n" in script
