"""The probes of the study that the sandbox was built from, and our own, each with the attempts in which it is made.

An attempt is a test, named as in the table (`grid.py`); many make several probes in one call. A probe counts as
contained where each of its attempts is.
"""

import os
import shutil

Tiers = tuple[str, ...]

OF_THE_STUDY: dict[str, tuple[str, ...]] = {
    "f01": ("read /etc/shadow", "the machines files are not readable"),
    "f02": ("read another run's file", "another runs file is not there"),
    "f03": ("list /root, /home, sibling runs", "homes hold only the interpreter"),
    "f04": ("drop a .pth into the packages", "packages cannot be changed"),
    "f05": ("write /usr/lib", "nothing new appears outside the working folder"),
    "f06": ("write to the host's /tmp", "another runs file is not there"),
    "f07": ("read another run's file through a link", "another runs file is not there"),
    "f08": ("hard-link a program into the own folder", "packages cannot be changed"),
    "f09": ("walk through /proc/PID/root and cwd", "another runs file is not there"),
    "f10": ("open core_pattern for writing", "nothing of the machine can be opened for writing"),
    "f11": ("write sysrq-trigger", "nothing of the machine can be opened for writing"),
    "f12": ("open devices", "devices are harmless"),
    "f13": ("make a block device", "devices are harmless"),
    "f14": ("execute a setuid program of root's", "a setuid program gives nothing"),
    "f15": ("open_by_handle_at", "the kernel refuses"),
    "f16": ("chroot", "the kernel refuses"),
    "f17": ("write in /sys", "the kernels own files are closed"),
    "f18": ("read kcore, kmsg, kallsyms", "the machines files are not readable", "the kernels addresses are not told"),
    "p01": ("secrets in the own environment", "the environment is clean"),
    "p02": ("secrets in the launcher's environment", "the environment is clean", "rays own is not there"),
    "p03": ("list the host's processes", "other processes are not there"),
    "p04": ("ptrace", "other processes are not there"),
    "p05": ("process_vm_readv", "other processes are not there"),
    "p06": ("open /proc/PID/mem of the host's", "other processes are not there"),
    "p07": ("pidfd_getfd", "other processes are not there"),
    "p08": ("signal a process of the host's", "other processes are not there"),
    "p09": ("prlimit of another process", "other processes are not there"),
    "p10": ("use inherited descriptors", "only its own descriptors are open"),
    "n01": ("connect to a port of the host's", "the hosts ports cannot be reached"),
    "n02": ("connect to an abstract socket", "the hosts abstract sockets cannot be reached"),
    "n03": ("connect to a socket by path", "the hosts sockets cannot be reached"),
    "n04": ("the cloud's metadata address", "no socket opens"),
    "n05": ("DNS", "names do not resolve"),
    "n06": ("a raw socket", "no socket opens"),
    "n07": ("netlink", "no socket opens"),
    "n08": ("vsock", "no socket opens"),
    "n09": ("a packet socket", "no socket opens"),
    "n10": ("the kernel's crypto sockets", "no socket opens"),
    "n11": ("listen on loopback", "no socket opens"),
    "n12": ("socketpairs (have to work)", "socketpairs work"),
    "i01": ("System V shared memory", "the kernel refuses"),
    "i02": ("POSIX message queues", "the kernel refuses"),
    "i03": ("keyrings", "the kernel refuses"),
    "i04": ("the host's /dev/shm", "shared memory of the host is not there"),
    "k01": ("unshare", "the kernel refuses"),
    "k02": ("clone3 into a user namespace", "clone3 looks absent so that libc falls back"),
    "k03": ("mount", "the kernel refuses"),
    "k04": ("fsopen", "the kernel refuses"),
    "k05": ("setns", "the kernel refuses"),
    "k06": ("bpf", "the kernel refuses"),
    "k07": ("perf_event_open", "the kernel refuses"),
    "k08": ("io_uring", "the kernel refuses"),
    "k09": ("userfaultfd", "the kernel refuses"),
    "k10": ("load a kernel module", "the kernel refuses"),
    "k11": ("reboot", "the kernel refuses"),
    "k12": ("push keystrokes into a terminal", "terminals get no keystrokes"),
    "k13": ("x32 system calls", "a foreign calling convention is deadly"),
    "k14": ("32-bit system calls", "the convention of 32 bits is deadly"),
    "k15": ("personality", "the kernel refuses"),
    "k16": ("the kernel's log", "the kernel refuses"),
    "k17": ("sethostname", "the kernel refuses"),
    "k18": ("set the clock", "the kernel refuses"),
    "k19": ("leave the cgroup", "the kernels own files are closed", "the kernel refuses"),
    "k20": ("mount another /proc", "the kernel refuses"),
    "k21": ("capabilities", "nothing privileged is left"),
    "k22": ("execute from a memfd", "the kernel refuses"),
    "k23": ("/usr/bin/unshare", "clone3 looks absent so that libc falls back"),
    "r01": ("fork without end", "forks are bounded (r01"),
    "r02": ("threads without end", "forks are bounded (r02"),
    "r03": ("memory in one process", "memory of one process is bounded"),
    "r04": ("memory in many processes", "memory of many processes is bounded together"),
    "r05": ("a large file", "the disk is bounded"),
    "r06": ("many files", "the disk is bounded"),
    "r07": ("very many empty files", "the number of files is bounded"),
    "r08": ("descriptors without end", "open files are bounded"),
    "r09": ("print without end", "output is bounded and its tail is kept"),
    "r10": ("compute without end", "computing is bounded"),
    "r11": ("never return", "the deadline ends everything (r11"),
    "r12": ("ignore every signal", "the deadline ends everything (r12"),
    "r13": ("close everything and hang", "the deadline does not need open pipes"),
    "r14": ("leave a daemon behind", "a daemon ends with its call"),
    "r15": ("crash with a core dump", "a crash is told", "a crash leaves no core"),
    "r16": ("raise limits", "limits cannot be raised"),
    "r17": ("raise the own priority", "priority and locked memory are bounded"),
    "r18": ("lock memory", "priority and locked memory are bounded"),
}

OUR_OWN: dict[str, tuple[str, ...]] = {
    "o01": ("change files outside by name: mode, owner, times", "a file outside cannot be changed by its name"),
    "o02": ("watch names outside", "names outside cannot be watched"),
    "o03": ("kill everybody, stop the first", "killing everybody kills nobody else"),
    "o04": ("slow others down", "others cannot be slowed down"),
    "o05": ("have the kernel send signals", "the kernel signals nobody for a tool"),
    "o06": ("leave something for the next call", "nothing of a call is left for the next"),
    "o07": ("terminals of another call", "terminals of another call are not there"),
    "o08": ("take the call's mark off", "the mark cannot be taken off"),
    "o09": ("stop itself, and wait for ever", "a stopped tool meets its deadline"),
    "o10": ("answer, and stay", "who has answered is ended"),
    "o11": ("hold the way back in a child", "a child that holds the way back does not hold the call"),
    "o12": ("namespaces, made by a program", "no namespace is made by what a tool starts"),
    "o13": ("user namespaces, past the filter", "a spare has no user namespaces to give"),
    "o14": ("each namespace through clone", "no namespace is made"),
    "o15": ("make a setuid file", "no file becomes setuid"),
    "o16": ("a socket in a granted folder", "a socket in a granted folder cannot be reached"),
    "o17": ("kcmp, fanotify, vmsplice, seccomp, landlock", "the kernel refuses"),
    "o18": ("take threads from another call", "the threads of one call take none from another"),
    "o19": ("a pickle in place of the answer", "a forged answer is an error (pickle bomb)"),
    "o20": ("an answer too deep to read", "a forged answer is an error (deep)"),
    "o21": ("an answer that is cut off, or of another kind", "a forged answer is an error"),
    "o22": ("an answer that is too large", "a large answer is refused"),
    "o23": ("folders too deep or closed to be removed", "no folder is too deep or too closed to be removed"),
    "o24": ("connections of the machine, from /proc/net", "the kernels own files are closed"),
    "o25": ("more memory at once than a look can see", "memory that is taken all at once is bounded"),
    "o26": ("past the proxy, or through it elsewhere", "the proxy refuses what leads elsewhere"),
    "o27": ("take the proxy's place", "the proxys place cannot be taken and other ports are harmless"),
    "o28": ("a lie about changed files", "a reply that lies is refused"),
    "o29": ("a link in a granted folder", "a link in a granted folder leads nowhere new"),
    "o30": ("Ray's sockets, ports, logs and names", "rays own is not there"),
}

ALL = OF_THE_STUDY | OUR_OWN

OWN_KERNEL: Tiers = ("gvisor",) if shutil.which("runsc") else ()
"""`make setup` installs runsc where the distribution has it; test_gvisor.py says so where it has not."""
TIERS: Tiers = ("landlock", "zygote", "cold", *OWN_KERNEL)
if wanted := os.environ.get("UNDERSTUDY_ESCAPE_TIERS"):
    TIERS = tuple(wanted.split(","))
"""With `room`, all that is tried in the others is tried in a zygote that shows files of the host, too."""
GRANTING: Tiers = ("landlock", "room", "cold", *OWN_KERNEL)
"""Tiers that can bring files of the host in; `room` is a zygote that shows some."""
NETWORKED: Tiers = ("zygote", "cold")
"""Tiers that can give network."""
ONLY_IN = {"o16": GRANTING, "o26": NETWORKED, "o27": NETWORKED, "o29": GRANTING}
"""Elsewhere there is nothing that these are about."""
