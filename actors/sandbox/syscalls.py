"""The system calls a sandboxed tool may make, with their numbers: what Python, numpy, node, git and a shell need.

Not here, and so refused: everything that mounts, traces, changes namespaces, loads programs into the kernel, opens a
socket, or keeps memory that no limit sees (memfd_create, memfd_secret, SysV and POSIX queues: their pages belong to no
process, so neither RLIMIT_AS nor the watchdog would count them).
"""

# name:number on x86_64:number on aarch64, from the kernel's headers; "-" where the call does not exist.

_ALLOWED = """
read:0:63 write:1:64 close:3:57 stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79 statx:332:291 statfs:137:43
fstatfs:138:44 poll:7:- ppoll:271:73 select:23:- pselect6:270:72 lseek:8:62 mmap:9:222 mprotect:10:226
munmap:11:215 mremap:25:216 madvise:28:233 brk:12:214 msync:26:227 mlock:149:228 munlock:150:229
mlockall:151:230 munlockall:152:231 mlock2:325:284 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139
rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigsuspend:130:133 rt_sigqueueinfo:129:138
rt_tgsigqueueinfo:297:240 sigaltstack:131:132 pread64:17:67 pwrite64:18:68 readv:19:65 writev:20:66
preadv:295:69 pwritev:296:70 preadv2:327:286 pwritev2:328:287 access:21:- faccessat:269:48 faccessat2:439:439
pipe:22:- pipe2:293:59 sched_yield:24:124 sched_getaffinity:204:123 sched_setaffinity:203:122
sched_getparam:143:121 sched_setparam:142:118 sched_getscheduler:145:120 sched_setscheduler:144:119
sched_get_priority_max:146:125 sched_get_priority_min:147:126 sched_rr_get_interval:148:127 dup:32:23 dup2:33:-
dup3:292:24 pause:34:- nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114
gettimeofday:96:169 time:201:- getitimer:36:102 setitimer:38:103 alarm:37:- timer_create:222:107
timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109 timer_delete:226:111 timerfd_create:283:85
timerfd_settime:286:86 timerfd_gettime:287:87 getpid:39:172 getppid:110:173 gettid:186:178 getpgid:121:155
getpgrp:111:- getsid:124:156 setpgid:109:154 setsid:112:157 getuid:102:174 geteuid:107:175 getgid:104:176
getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158 sendfile:40:71 sendto:44:206
recvfrom:45:207 sendmsg:46:211 recvmsg:47:212 sendmmsg:307:269 recvmmsg:299:243 shutdown:48:210
getsockname:51:204 getpeername:52:205 getsockopt:55:209 setsockopt:54:208 fork:57:- vfork:58:- execve:59:221
execveat:322:281 exit:60:93 exit_group:231:94 wait4:61:260 waitid:247:95 kill:62:129 tkill:200:130
tgkill:234:131 uname:63:160 flock:73:32 fsync:74:82 fdatasync:75:83 truncate:76:45 ftruncate:77:46
fallocate:285:47 fadvise64:221:223 readahead:187:213 sync_file_range:277:84 copy_file_range:326:285
getdents:78:- getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 rename:82:- renameat:264:38
renameat2:316:276 mkdir:83:- mkdirat:258:34 rmdir:84:- link:86:- linkat:265:37 unlink:87:- unlinkat:263:35
symlink:88:- symlinkat:266:36 readlink:89:- readlinkat:267:78 chown:92:- fchown:93:55 lchown:94:-
fchownat:260:54 umask:95:166 utime:132:- utimes:235:- utimensat:280:88 futimesat:261:- getxattr:191:8
lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11 llistxattr:195:12 flistxattr:196:13 getrlimit:97:163
getrusage:98:165 sysinfo:99:179 times:100:153 getpriority:140:141 setpriority:141:140
ioprio_get:252:31 prctl:157:167 arch_prctl:158:- capget:125:90 futex:202:98 futex_waitv:449:449
set_robust_list:273:99 get_robust_list:274:100 set_tid_address:218:96 rseq:334:293 membarrier:324:283
restart_syscall:219:128 getcpu:309:168 getrandom:318:278 epoll_create:213:- epoll_create1:291:20
epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19
signalfd:282:- signalfd4:289:74 inotify_init:253:- inotify_init1:294:26 inotify_add_watch:254:27
inotify_rm_watch:255:28 close_range:436:436 pidfd_open:434:434 pidfd_send_signal:424:424 pkey_mprotect:329:288
pkey_alloc:330:289 pkey_free:331:290 get_mempolicy:239:236
"""

# Allowed or refused by looking at an argument; see `seccomp.py`, which has one rule for each.
_BY_ARGUMENT = """
clone:56:220 clone3:435:435 openat2:437:437 open:2:- openat:257:56 creat:85:- chmod:90:- fchmod:91:52
fchmodat:268:53 fchmodat2:452:452 mknod:133:- mknodat:259:33 socketpair:53:199 ioctl:16:29
prlimit64:302:261 setrlimit:160:164 fcntl:72:25
"""

# Only for a call that has network: with a stack of its own, in which nothing is but loopback, and on it its proxy. A
# socket is told apart by its arguments; on what is open already (a socketpair), the others get nowhere.
_NETWORK = """
connect:42:203 accept:43:202 accept4:288:242 bind:49:200 listen:50:201
"""
_SOCKET = {"x86_64": 41, "aarch64": 198}

# For a tier without namespaces, where these reach processes and files of the host that belong to the same user, and
# Landlock does not look at them.
REACHING_OUT = frozenset(
    {
        *("inotify_init", "inotify_init1", "inotify_add_watch"),
        *("setpriority", "sched_setaffinity", "sched_setscheduler", "sched_setparam"),
        *("utime", "utimes", "utimensat", "futimesat"),
    }
)
SIGNALLING = frozenset({"kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"})
# These as well, by name or through a descriptor that is good for reading only; but whoever unpacks or copies files
# wants to hear yes. (Not so of times: who sets those may want to hear that there is no such file.)
CHANGING_FILES = frozenset(
    {"chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"},
)

NEWEST = 462
"""The newest call that these tables know of (mseal, Linux 6.10). Newer ones do not exist as far as a tool can see."""


def _read(table: str, column: int) -> dict[str, int]:
    rows = (row.split(":") for row in table.split())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


ALLOWED = {"x86_64": _read(_ALLOWED, 1), "aarch64": _read(_ALLOWED, 2)}
NETWORK = {"x86_64": _read(_NETWORK, 1), "aarch64": _read(_NETWORK, 2)}
SOCKET = {machine: {"socket": number} for machine, number in _SOCKET.items()}
BY_ARGUMENT = {"x86_64": _read(_BY_ARGUMENT, 1), "aarch64": _read(_BY_ARGUMENT, 2)}
