"""The command line as a program: exit codes, signals, pipes, terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import SMALL, complaints, environment, process, write_csv


def test_the_module_runs_as_a_program(pets, folder):
    trained = process("train", pets.name, "--target", "kind", *SMALL, cwd=folder)
    assert (trained.returncode, complaints(trained.stderr)) == (0, "")
    assert "held-out accuracy: " in trained.stdout
    assert process("predict", "model.safetensors", pets.name, cwd=folder).stdout.count("\n") == 201


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "nothing.csv", "--target", "y"], 1, "error: there is no file 'nothing.csv'"),
        (["train", "digits", "--batch-size", "0"], 2, "error: "),
        (["predict", "nothing", "digits"], 1, "error: "),
        (["bake"], 2, "error: No such command 'bake'."),
    ],
)
def test_errors_of_a_program(folder, arguments, code, said):
    outcome = process(*arguments, cwd=folder)
    assert outcome.returncode == code
    assert outcome.stderr.startswith(said)
    assert outcome.stderr.count("\n") == 1
    assert outcome.stdout == ""
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_stops_with_nothing_written(folder):
    command = [sys.executable, "-u", "-m", "gpubp", "train", "digits", "--epochs", "1000000", "--learning-rate", "1e-9"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment()
    ) as running:
        while not running.stdout.readline().startswith("device"):
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out, complaints(err)) == (130, "", "stopped\n")
    assert not list(folder.iterdir())


LITTLE_AND_MUCH = pytest.mark.parametrize("arguments", [["--version"], ["predict", "pets.safetensors", "pets.csv"]])


@LITTLE_AND_MUCH
@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_reader_that_leaves_is_no_error(model, arguments):
    command = [sys.executable, "-m", "gpubp", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as running:
        running.stdout.close()
        running.stdout = None
        _, err = running.communicate(timeout=60)
    assert (running.returncode, complaints(err.decode())) == (1, "")


@LITTLE_AND_MUCH
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")
def test_an_output_that_is_full(model, arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "gpubp", *arguments]
        outcome = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60, check=False
        )
    assert outcome.returncode == 1
    assert complaints(outcome.stderr.decode()) == "error: output: No space left on device\n"


def test_names_that_the_terminal_can_not_show(folder):
    write_csv(folder / "u.csv", {"x": range(40), "y": ["é", "ß"] * 20})
    ascii_only = environment(PYTHONIOENCODING="ascii")
    command = [sys.executable, "-m", "gpubp", "train", "u.csv", "--target", "y", *SMALL]
    outcome = subprocess.run(command, capture_output=True, cwd=folder, env=ascii_only, timeout=60, check=False)
    assert (outcome.returncode, complaints(outcome.stderr.decode())) == (0, "")
    assert b"2 classes: \\xdf, \\xe9" in outcome.stdout


def test_the_command_line_imports_nothing_slow():
    code = "import sys, gpubp.cli; print(*{'sklearn', 'matplotlib', 'safetensors', 'cupy'} & set(sys.modules))"
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert outcome.stdout.strip() == ""
