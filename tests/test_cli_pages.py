"""`spwnet view` and `spwnet report`: what they print, and how they end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request

import pytest

import spwnet
from spwnet import cli, serving
from spwnet.cli import pages
from spwnet.presets import make_settings
from tests.conftest import TINY, posix


@pytest.fixture
def run(pictures, tmp_path):
    spwnet.train(pictures, tmp_path / "run", settings=make_settings("instant", overrides=TINY), frames=[0])
    return tmp_path / "run"


def test_a_report_is_written_beside_the_run_or_elsewhere(run, tmp_path, capsys):
    assert cli.main(["report", str(run)]) == 0
    assert re.fullmatch(r".*report\.html: 0\.\d MiB\n", capsys.readouterr().out)
    assert cli.main(["report", str(run), "--out", str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").read_bytes() == (run / "report.html").read_bytes()
    assert cli.main(["report", str(run)]) == 1
    assert "pass `overwrite=True` / `--overwrite`" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["report", str(run), "--overwrite"]) == 0


def test_the_browser_is_opened_unless_it_shall_not(run, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(pages, "wait_for_ctrl_c", lambda: None)
    monkeypatch.setattr(serving.Server, "browse", lambda server: opened.append(server.url))
    assert cli.main(["view", str(run), "--no-browser"]) == 0
    assert opened == []
    assert cli.main(["view", str(run)]) == 0
    assert opened[0] in capsys.readouterr().err.replace("\n", "")


def test_a_run_that_is_none_is_refused(tmp_path, capsys):
    for command in ("view", "report"):
        assert cli.main([command, str(tmp_path)]) == 1
        assert "expected a run directory with a run.json" in " ".join(capsys.readouterr().err.split())


@posix
def test_the_page_is_served_until_ctrl_c(run):
    code = "import sys; from spwnet.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "view", str(run), "--no-browser"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stderr.readline().split()[-1]
            with urllib.request.urlopen(address) as answer:
                assert b"<h1>" in answer.read()
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert rest.splitlines()[-1] == "closed"
