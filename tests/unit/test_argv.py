"""A command line is read as a real shell reads it, or not at all; and rules about it hold on what is read."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.policies.argv import LINE_MAX, Command, Unreadable, read_line, read_words
from understudy.policies.condition import Condition
from understudy.policies.permission import Allow, Ask, Decision, Deny, Policy, Request, Rule, decide


def words(text: str) -> list[tuple[str, ...]]:
    return [command.words for command in read_line(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("git status", [("git", "status")]),
        ("  git\t status  ", [("git", "status")]),
        ("echo 'a b' \"c d\" e\\ f", [("echo", "a b", "c d", "e f")]),
        ("echo a'b'\"c\"d", [("echo", "abcd")]),
        ("echo '$(rm)' '`x`' '|;&'", [("echo", "$(rm)", "`x`", "|;&")]),
        ('echo "a\\"b" "a\\\\b" "a\\x"', [("echo", 'a"b', "a\\b", "a\\x")]),
        ("echo \\$HOME", [("echo", "$HOME")]),
        ("echo '' a", [("echo", "", "a")]),
        ("cat a | head -n 5|wc", [("cat", "a"), ("head", "-n", "5"), ("wc",)]),
        ("tool --x=1 a=b", [("tool", "--x=1", "a=b")]),
        ("git switch -c new", [("git", "switch", "-c", "new")]),
        ("git clean -fdx", [("git", "clean", "-fdx")]),
        ("tar -xzf a.tgz --totals", [("tar", "-xzf", "a.tgz", "--totals")]),
        ("echo grüße", [("echo", "grüße")]),
    ],
)
def test_plain_lines_are_read(text: str, expected: list[tuple[str, ...]]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "|", "a |", "| a", "a || b", "a |& b", "a && b", "a & b", "a; b", "a\nb", "a\rb", "a\0b"),
        *("echo $(rm)", "echo `rm`", 'echo "$(rm)"', 'echo "`rm`"', "echo $HOME", 'echo "$HOME"', "echo ${x}"),
        *("a > f", "a < f", "a 2>&1", "cat <(rm)", "(a)", "{ a; }", "echo {a,b}", "echo *", "echo ?", "echo [a]"),
        *("echo ~", "ls ~root/x", "echo #x", "! a", "a !x", 'echo "a!b"', "echo 'a", 'echo "a', "echo a\\"),
        *("X=1 a", "PATH+=/x a", "=ls", "if a", "while a", "time a", "[[ a ]]", "'' a"),
        *("sh -c a", "/bin/bash x", "b''ash x", "\\bash x", "env a", "sudo rm", "xargs rm", "a | xargs rm", "eval a"),
        *("python -c 'x'", "python3.11 -Ic 'x'", "perl -e 1", "node --eval=1", "curl x | python3", "curl x | python -"),
        *("find / -exec rm", "find . -execdir rm", ". x", "source x", "exec a", "command a", "awk '{system()}'"),
        *("echo a\u00a0b", "echo a\u2028b", "echo \u200ba", "echo 'a\tb'", "echo \ud800"),
        *("git -c core.pager=rm log", "git -c alias.x='!rm' x", "git --config-env=a=b x", "git --exec-path=/x log"),
        *("git --exec-pat=/x log", "git clone --upload-pack=rm x", "git submodule foreach rm", "git rebase -x rm"),
        *("tar -xf a --to-command=rm", "tar -xf a --to-comm=rm", "tar --checkpoint-action=exec=rm", "tar -xIrm -f a"),
        *("rsync -e rm a b", "rsync -ave rm a b", "sort --compress-prog=rm a", "scp -S rm a b", "npx rm", "uv run rm"),
        *("deno eval 'x'", "vim -c ':!rm'", "setarch x86_64 rm", "git -C /x -c core.sshCommand=rm fetch"),
        "a " * LINE_MAX,
    ],
)
def test_whatever_else_a_shell_would_do_is_not_read(text: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read_line(text)
    assert str(caught.value)


def test_a_list_of_words_is_one_command_that_no_shell_reads() -> None:
    assert read_words(["git", "log", "$(x);|"])[0].words == ("git", "log", "$(x);|")
    wrong: list[list[object]] = [[], [""], ["a", 5], ["a", "b\0"], ["sh", "-c", "x"], ["a", "b" * LINE_MAX]]
    for words in wrong:
        with pytest.raises(Unreadable):
            read_words(words)


def test_flags_and_operands_are_told_apart() -> None:
    command = Command(("tar", "-xzf", "a.tgz", "--to=b", "-", "--", "-c"))
    assert command.flags == ("-xzf", "--to")
    assert command.operands == ("a.tgz", "-", "-c")
    assert command.letters == {"-xzf", "-x", "-z", "-f", "--to"}


# Beside real shells.

QUOTED = st.text(alphabet="ab =-'\"\\", max_size=12)
LINES = QUOTED | st.text(alphabet="ab =-'\"\\$`|;&<>(){}*?[]~#!\t\n^%@:,.é", max_size=12)


@given(LINES)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_read_as_one_command_is_what_shlex_reads(text: str) -> None:
    try:
        commands = read_line("echo " + text)
    except Unreadable:
        return
    if len(commands) == 1:
        assert list(commands[0].words) == shlex.split("echo " + text)


@given(lines=st.lists(LINES, min_size=1, max_size=30))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=40)
def test_what_is_read_is_what_real_shells_read(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Only what is read as one command is given to them: a `printf` of the words, which can do nothing else."""
    plain = []
    for line in lines:
        try:
            found = read_line("printf %s\\\\0 " + line)
        except Unreadable:
            continue
        if len(found) == 1 and len(found[0].words) > 2:
            plain.append((line, found[0].words[2:]))
    for shell in ("sh", "bash"):
        script = "".join(f"printf '%s\\0' {line}\nprintf 'END\\0'\n" for line, _ in plain)
        done = subprocess.run(
            [shell, "-c", script],
            cwd=tmp_path_factory.getbasetemp(),
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            timeout=60,
        )
        assert done.stderr == b""
        expected = "".join("".join(f"{word}\0" for word in words) + "END\0" for _, words in plain)
        assert done.stdout.decode() == expected


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        commands = read_line(text)
    except Unreadable:
        return
    assert commands
    assert all(command.program for command in commands)


# What rules make of it.


def decision(test: Mapping[str, Any], line: Any, effect: Any = "allow") -> Decision:
    rule = Rule("x", effect, ("run",), (Condition("line", "command", dict(test)),))
    rules = (rule,) if effect == "allow" else (rule, Rule("all", "allow", ("run",)))
    return decide([Policy("p", "1", rules)], Request("run", {"line": line}, "r", "g", "d"))


LOG = {"program": ["git"], "operands": ["log", "**"], "only_flags": ["-n", "--oneline", "-p"]}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("git log", Allow),
        ("git log --oneline -n 5 src", Allow),
        ("git log -np", Allow),
        ("'git' log", Allow),
        (["git", "log", "a;b"], Allow),
        ("git log | git log", Allow),
        ("git log --output=x", Deny),
        ("git log -nx", Deny),
        ("git push", Deny),
        ("git push log", Deny),
        ("git push origin log", Deny),
        ("git -n log", Allow),
        ("git -C /x log", Deny),
        ("git", Deny),
        ("./git log", Deny),
        ("/tmp/git log", Deny),
        ("git log | tee x", Deny),
        ("git log; rm x", Deny),
        ("git log $(rm x)", Deny),
        ("git log > x", Deny),
        (5, Deny),
        (None, Deny),
    ],
)
def test_an_allow_rule_wants_every_command_to_fit(line: Any, kind: type[Decision]) -> None:
    assert type(decision(LOG, line)) is kind


@pytest.mark.parametrize(
    ("test", "line", "kind"),
    [
        ({"program": ["rm"]}, "ls", Allow),
        ({"program": ["rm"]}, "/bin/rm x", Deny),
        ({"program": ["rm"]}, "./rm x", Deny),
        ({"program": ["rm"]}, "r''m x", Deny),
        ({"program": ["rm"]}, "ls | rm x", Deny),
        ({"program": ["rm"]}, "{ rm x; }", Deny),
        ({"program": ["rm"]}, "bash -c 'rm x'", Deny),
        ({"program": ["rm"]}, "xargs -n 1 rm", Deny),
        ({"program": ["rm"], "any_flag": ["-f"]}, "rm -rf x", Deny),
        ({"program": ["rm"], "any_flag": ["-f"]}, "rm -r x", Allow),
        ({"program": ["rm"], "any_flag": ["--for*"]}, "rm --force=1 x", Deny),
        ({"program": ["rm"], "any_flag": ["--force"]}, "rm --forc x", Deny),
        ({"program": ["rm"], "any_flag": ["--force"]}, "rm --fo=1 x", Deny),
        ({"program": ["rm"], "any_flag": ["--force"]}, "rm -- --force", Allow),
        ({"program": ["rm"], "any_flag": ["--force"]}, "rm --forces x", Allow),
        ({"program": ["git"], "operands": ["push", "**"]}, "git push", Deny),
        ({"program": ["git"], "operands": ["push", "**"]}, "git -C /srv push origin", Deny),
        ({"program": ["git"], "operands": ["push", "**"]}, "git log", Allow),
        ({"program": ["git"], "any_operand": ["push", "pull"]}, "git -C /srv pull", Deny),
        ({"operands": []}, "ls", Deny),
    ],
)
def test_a_deny_rule_wants_one_command_to_fit_in_any_spelling(
    test: Mapping[str, Any], line: str, kind: type[Decision]
) -> None:
    assert type(decision(test, line, "deny")) is kind


def test_a_rule_may_speak_of_lines_that_cannot_be_read() -> None:
    rules = (
        Rule("git", "allow", ("run",), (Condition("line", "command", LOG),)),
        Rule("other", "ask", ("run",), (Condition("line", "plain", False),)),
    )

    def kind(line: str) -> type[Decision]:
        return type(decide([Policy("p", "1", rules)], Request("run", {"line": line}, "r", "g", "d")))

    assert [kind("git log"), kind("git log; rm x"), kind("rm x")] == [Allow, Ask, Deny]


@pytest.mark.parametrize(("line", "kind"), [("ls -l", Allow), ("ls; rm x", Ask), (["ls", 5], Ask), (None, Allow)])
def test_a_line_for_a_shell_that_cannot_be_read_is_never_better_than_ask(line: Any, kind: type[Decision]) -> None:
    request = Request("run", {"line": line}, "r", "g", "d", shell=("line",))
    for layers in (1, 2):
        found = decide([Policy("p", "1", (Rule("all", "allow", ("*",)),))] * layers, request)
        assert type(found) is kind


ONLY_GIT_LOG = Policy("p", "1", (Rule("git", "allow", ("run",), (Condition("line", "command", LOG),)),))


@given(st.text(alphabet="gitlo -n;&|$`()<>{}'\"\\\n\t*rm/", max_size=20), st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_garbage_in_a_line_is_never_allowed_as_something_else(junk: str, place: int) -> None:
    line = "git log"[:place] + junk + "git log"[place:]
    found = decide([ONLY_GIT_LOG], Request("run", {"line": line}, "r", "g", "d"))
    if isinstance(found, Allow):
        parts = [shlex.split(part) for part in _pipeline(line)]
        assert all(part[0] == "git" for part in parts), line


def _pipeline(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=False, punctuation_chars="|")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for token in lexer:
        if token == "|":
            parts.append([])
        else:
            parts[-1].append(token)
    return [" ".join(part) for part in parts]
