"""Options that are given twice, and terminals that cannot print a name."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import growth, plain, report, submission
from evaluation import disguise, robustness, score
from evaluation.perturbations import PERTURBATIONS
from inference import predict
from runtime.cli import describe_changes, make_parser, positive_int
from runtime.files import atomic_folder, skip_reasons
from training import train

ROOT = Path(__file__).parents[1]


def test_changed_settings_are_named_also_in_groups():
    old = {"a": 1, "b": {"c": [1], "d": 2}, "gone": 3}
    new = {"a": 1, "b": {"c": [2], "d": 2}, "more": 4}
    assert describe_changes(old, new) == ["b.c ([1], now [2])"]
    assert describe_changes(old, old) == []


class Parsed(Exception):
    """Ends a `main` once its options are parsed."""


def parse(program, arguments, monkeypatch):
    """The options that a program's `main` gets from its arguments."""
    parse_args, found = argparse.ArgumentParser.parse_args, []

    def stop(parser, argv=None):
        found.append(parse_args(parser, [str(argument) for argument in arguments]))
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed):
            program.main()
    return found[0]


PREDICT = ("--test-dir=v", "--output=s.csv")
SCORE = ("--submission=s.csv", "--labels=l.csv")
DISGUISE = ("--test-dir=v", "--output-dir=d")
ROBUSTNESS = ("--disguised=d", "--output-dir=r")
TRAIN = ("--config=c.yaml", "--data-dir=d")


@pytest.mark.parametrize(
    "program, required, option, values, default",
    [
        (predict, PREDICT, "models", ["a", "b", "c"], None),
        (robustness, ROBUSTNESS, "models", ["a", "b", "c"], None),
        (score, SCORE, "group_by", ["a", "b", "c"], []),
        (disguise, DISGUISE, "kinds", ["blur", "grey", "noise"], [*PERTURBATIONS]),
        (train, TRAIN, "set", ["a=1", "b=2", "a=3"], []),
        (
            submission,
            (),
            "encoders",
            ["a", "b", "c"],
            ["tf_efficientnet_b0", "tf_efficientnet_b1"],
        ),
        (submission, (), "models", [Path("a"), Path("b"), Path("c")], None),
        (report, (), "videos", [1, 2, 1], [10, 400, 4000]),
        (growth, (), "videos", [1, 2, 1], [1, 2, 4, 8]),
        (growth, (), "workers", [0, 2, 0], [0, 2]),
        (plain, ("predict",), "models", ["a", "b", "c"], None),
    ],
)
def test_an_option_given_twice_adds_up(
    program, required, option, values, default, monkeypatch
):
    flag = f"--{option.replace('_', '-')}"
    given = (flag, *values[:2], flag, values[2])
    # twice, since values must not stay in the default
    for _ in range(2):
        options = parse(program, [*required, *given], monkeypatch)
        assert getattr(options, option) == values
    options = parse(program, required, monkeypatch)
    assert getattr(options, option) == default


def test_every_option_of_several_values_adds_up():
    """Each `nargs="+"` of the sources has its `action="extend"`."""
    for path in ROOT.glob("[a-z]*/*.py"):
        text = path.read_text()
        if path.parent.name != "tests":
            assert text.count('nargs="+"') == text.count('action="extend"'), path


def test_help_shows_the_default_and_what_is_accepted_is_checked(capsys):
    parser = make_parser("")
    parser.add_argument(
        "--sizes",
        nargs="+",
        action="extend",
        type=positive_int,
        default=[3, 4],
        help="sizes",
    )
    assert "sizes (default: [3, 4])" in parser.format_help()
    assert parser.parse_args(["--sizes=1", "--sizes", "2", "5"]).sizes == [1, 2, 5]
    assert parser.parse_args([]).sizes == [3, 4]
    with pytest.raises(SystemExit):
        parser.parse_args(["--sizes", "1", "--sizes", "0"])
    assert "0 is not an integer of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
@pytest.mark.parametrize("ending", ["return 0", "raise UserError(name)"])
def test_any_name_can_be_printed(tmp_path, environment, ending):
    code = (
        "from runtime.cli import UserError, run_main\n"
        "def main():\n"
        "    name = 'caf\\udce9.mp4 \\u4e2d'\n"
        "    print(name)\n"
        f"    {ending}\n"
        "run_main(main)\n"
    )
    (tmp_path / "program.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
    )
    assert done.stdout.startswith(rb"caf\udce9.mp4 ")
    assert done.returncode == (0 if ending == "return 0" else 2)
    assert b"Traceback" not in done.stderr
    if done.returncode:
        assert done.stderr.startswith(rb"error: caf\udce9.mp4 ")


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "four", "cuda:0", ""])
def test_train_sh_wants_a_number_of_gpus(tmp_path, count):
    script = ROOT / "train.sh"
    command = ["bash", str(script), str(tmp_path), count]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2 and not found.stdout
    assert found.stderr.startswith(f"error: NUM_GPUS is '{count}'")
    assert found.stderr.count("\n") == 1


def test_reasons_with_names_that_are_no_utf8(tmp_path):
    reason = "its original m\udcfcller is not there"
    with atomic_folder(tmp_path / "out", [reason]):
        pass
    assert skip_reasons(tmp_path / "out") == [reason]
