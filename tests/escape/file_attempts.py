"""What tools do to a workspace, by value as any tool of a user's own. See test_workspace.py."""

from typing import Any


def works() -> list[str]:
    import os

    with open("a.txt", "r+") as file:
        found = [*sorted(os.listdir("folder")), file.read()]
        file.write(" more")
    os.remove("folder/b.txt")
    os.makedirs("new/deep")
    os.symlink("../a.txt", "folder/link")
    os.close(os.open("run.sh", os.O_CREAT | os.O_WRONLY, 0o755))  # tier landlock pretends to chmod
    os.link("a.txt", "twin.txt")
    return found


def fails() -> None:
    open("a.txt", "w").close()
    raise ValueError("no")


def links_out() -> None:
    import os

    os.symlink("/etc/passwd", "out")


def links_up() -> None:
    import os

    os.symlink("../../../etc", "out")


def has_a_pipe() -> None:
    import os

    os.mkfifo("pipe")


def is_many() -> None:
    for number in range(3000):
        open(f"f{number}", "w").close()


def is_sparse() -> None:
    with open("sparse", "wb") as file:
        file.truncate(20 << 20)


def is_deep() -> None:
    import os

    for _ in range(40):
        os.mkdir("d")
        os.chdir("d")
    open("x", "w").close()


def tells_of_its_own(files: Any) -> None:
    """The tool has the runner's process, and so the pipe that replies."""
    import json
    import os

    os.write(reply_of(), json.dumps({"kind": "ok", "peak": 1, "value": None, "files": files}).encode())
    os._exit(0)


def tells_a_large_value() -> None:
    import json
    import os

    data = json.dumps({"kind": "ok", "peak": 1, "value": "x" * (3 << 20), "files": []}).encode()
    while data:
        data = data[os.write(reply_of(), data) :]
    os._exit(0)


def reply_of() -> int:
    """The pipe that can be written to and is not what is printed."""
    import fcntl
    import os
    import stat

    for fd in range(3, 4096):  # in tier cold it has the number that it had in the worker
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                return fd
        except OSError:
            continue
    raise LookupError("no reply")


def changes_while_packed() -> None:
    """Another process goes on with the files when the call is over."""
    import os

    if os.fork() == 0:
        for number in range(100_000):
            with open("moving", "w") as file:
                file.write("x" * (number % 5000))
            os.replace("moving", "moved")
        os._exit(0)
