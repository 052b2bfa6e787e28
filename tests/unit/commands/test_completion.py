"""Completion in shells: what the shell's script asks the command for, and the script itself."""

from __future__ import annotations

import pytest

from crossdet.commands.main import app


@pytest.fixture
def asked(monkeypatch, capsys):
    """What is printed when a shell asks."""

    def ask(instruction: str, **words: str) -> str:
        monkeypatch.setenv("_CROSSDET_COMPLETE", instruction)
        for name, value in words.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            app(prog_name="crossdet")
        return capsys.readouterr().out

    return ask


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_and_options(asked, shell):
    def found(line: str) -> str:
        words = line.split(" ")
        return asked(
            f"complete_{shell}", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1), _TYPER_COMPLETE_ARGS=line,
            _TYPER_COMPLETE_FISH_ACTION="get-args",
        )  # fmt: skip

    commands = found("crossdet ex")
    assert "export" in commands
    assert "extend" in commands
    assert "predict" not in commands
    options = found("crossdet predict --ti")
    assert "--tile" in options
    assert "--overlap" not in options


def test_scripts(asked):
    assert "complete -o default -F" in asked("source_bash")
    assert "#compdef crossdet" in asked("source_zsh")
    assert "complete --command crossdet" in asked("source_fish")
