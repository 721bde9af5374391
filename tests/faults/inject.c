/* Counts the file operations of a process below one folder, and makes one of them fail.
 *
 *   cc -shared -fPIC -O2 -o inject.so inject.c -ldl
 *   LD_PRELOAD=inject.so FAULT_ROOT=/runs FAULT_LOG=ops.txt  lifecycle run ...     (lists them)
 *   LD_PRELOAD=inject.so FAULT_ROOT=/runs FAULT_AT=controller:57 FAULT_KIND=kill  lifecycle run ...
 *
 * Operations are counted per process role: "controller", or the stage's name in a step's
 * process (from its command line), and in the main thread only, so that the n-th operation
 * of a role is the same one in every run.  Opening to read is not counted: it changes nothing,
 * so a process killed there leaves what it leaves at the operation before.  FAULT_KIND:
 *   kill    SIGKILL to the process before the operation
 *   stop    SIGSTOP to the process before the operation, which goes on when it is woken
 *   torn    for a write: half of the bytes, then SIGKILL; otherwise as kill
 *   ENOSPC, EROFS, EIO  the operation fails with this; ENOSPC and EROFS stay (a full or a
 *           read-only disk stays so), EIO happens once
 * FAULT_FIRED names a file that is made when the fault was injected.
 * FAULT_MACHINE=file makes the process believe that it is on a machine of its own, which shares
 * nothing but the disk: the file holds the boot id it sees, and the disk knows no locks.
 * FAULT_CLOCK=seconds makes the wall clock jump by that much at every third look.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BEFORE = 0, TORN = 1, FAIL = 2 };

static char root[PATH_MAX], role[64], wanted_role[64];
static size_t root_length;
static long wanted = -1, counted = 0;
static int kind_torn = 0, kind_stop = 0, kind_errno = 0, sticky = 0, failing = 0, log_descriptor = -1;
static long clock_jump = 0;
static unsigned clock_looks = 0;

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void set_up(void) {
    const char *given = getenv("FAULT_ROOT");
    if (!given) return;
    if (!realpath(given, root)) { strncpy(root, given, sizeof root - 1); }
    root_length = strlen(root);
    char command[8192] = {0};
    int descriptor = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY);
    ssize_t length = descriptor >= 0 ? syscall(SYS_read, descriptor, command, sizeof command - 1) : 0;
    if (descriptor >= 0) close(descriptor);
    for (ssize_t i = 0; i < length; i++) if (!command[i]) command[i] = ' ';
    strcpy(role, "controller");
    char *work = strstr(command, "/.work/");
    if (strstr(command, "pipeline.stages") && work) {
        char *start = work;
        while (start > command && start[-1] != '/') start--;
        snprintf(role, sizeof role, "%.*s", (int)(work - start), start);
    }
    const char *at = getenv("FAULT_AT");
    if (at) {
        const char *colon = strchr(at, ':');
        snprintf(wanted_role, sizeof wanted_role, "%.*s", (int)(colon - at), at);
        wanted = atol(colon + 1);
    }
    const char *kind = getenv("FAULT_KIND");
    if (kind) {
        kind_torn = !strcmp(kind, "torn");
        kind_stop = !strcmp(kind, "stop");
        if (!strcmp(kind, "ENOSPC")) { kind_errno = ENOSPC; sticky = 1; }
        if (!strcmp(kind, "EROFS")) { kind_errno = EROFS; sticky = 1; }
        if (!strcmp(kind, "EIO")) kind_errno = EIO;
    }
    const char *log = getenv("FAULT_LOG");
    if (log) log_descriptor = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    const char *jump = getenv("FAULT_CLOCK");
    if (jump) clock_jump = atol(jump);
}

static int below(const char *path) {
    return root_length && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static void full_path(int folder, const char *path, char *out) {
    out[0] = 0;
    if (path[0] == '/') { snprintf(out, PATH_MAX, "%s", path); return; }
    char link[64], base[PATH_MAX];
    if (folder == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
    if (length < 0) return;
    base[length] = 0;
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) out[0] = 0;
}

static void fired(const char *operation, const char *path) {
    const char *mark = getenv("FAULT_FIRED");
    if (!mark) return;
    int descriptor = syscall(SYS_openat, AT_FDCWD, mark, O_WRONLY | O_CREAT | O_APPEND, 0644);
    char line[PATH_MAX + 128];
    int length = snprintf(line, sizeof line, "%s %ld %s %s\n", role, counted, operation, path);
    syscall(SYS_write, descriptor, line, length);
    syscall(SYS_close, descriptor);
}

static void die(void) { for (;;) syscall(SYS_kill, (long)getpid(), SIGKILL); }

/* What to do about the operation: nothing, fail with errno set, or (TORN) write half and die. */
static int boundary(const char *operation, const char *path, int changes, int is_write) {
    if (!below(path) || syscall(SYS_gettid) != getpid()) return BEFORE;
    if (!changes) return BEFORE;
    if (failing) { errno = kind_errno; return FAIL; }
    counted++;
    if (log_descriptor >= 0) {
        char line[PATH_MAX + 128];
        int length = snprintf(line, sizeof line, "%s %ld %s %d %s\n", role, counted, operation, changes, path + root_length);
        syscall(SYS_write, log_descriptor, line, length);
    }
    if (counted != wanted || strcmp(role, wanted_role)) return BEFORE;
    fired(operation, path);
    if (kind_errno) {
        failing = sticky;
        errno = kind_errno;
        return FAIL;
    }
    if (kind_stop) {
        syscall(SYS_kill, (long)getpid(), SIGSTOP);
        return BEFORE;
    }
    if (kind_torn && is_write) return TORN;
    die();
    return BEFORE;
}

static int by_descriptor(const char *operation, int descriptor, int is_write) {
    if (!root_length) return BEFORE;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length < 0) return BEFORE;
    path[length] = 0;
    return boundary(operation, path, 1, is_write);
}

static int by_path(const char *operation, int folder, const char *given, int changes) {
    if (!root_length) return BEFORE;
    char path[PATH_MAX];
    full_path(folder, given, path);
    return boundary(operation, path, changes, 0);
}

static int opening(int folder, const char *path, int flags) {
    int changes = (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0;
    return by_path(changes ? "open-to-write" : "open", folder, path, changes);
}

static const char *disguised(const char *path) {
    const char *machine = getenv("FAULT_MACHINE");
    return machine && !strcmp(path, "/proc/sys/kernel/random/boot_id") ? machine : path;
}

int flock(int descriptor, int operation) {
    if (getenv("FAULT_MACHINE")) { errno = ENOLCK; return -1; }
    return ((int (*)(int, int))next("flock"))(descriptor, operation);
}

#define OPEN(name)                                                              \
    int name(const char *path, int flags, ...) {                                \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        path = disguised(path);                                                 \
        if (opening(AT_FDCWD, path, flags) == FAIL) return -1;                  \
        return ((int (*)(const char *, int, ...))next(#name))(path, flags, mode); \
    }
#define OPENAT(name)                                                            \
    int name(int folder, const char *path, int flags, ...) {                    \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        path = disguised(path);                                                 \
        if (opening(folder, path, flags) == FAIL) return -1;                    \
        return ((int (*)(int, const char *, int, ...))next(#name))(folder, path, flags, mode); \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

static ssize_t torn_write(int descriptor, const void *bytes, size_t length) {
    syscall(SYS_write, descriptor, bytes, length / 2);
    die();
    return -1;
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    int what = by_descriptor("write", descriptor, 1);
    if (what == FAIL) return -1;
    if (what == TORN) return torn_write(descriptor, bytes, length);
    return ((ssize_t(*)(int, const void *, size_t))next("write"))(descriptor, bytes, length);
}

#define ON_DESCRIPTOR(type, name, parameters, arguments)                        \
    type name parameters {                                                      \
        if (by_descriptor(#name, descriptor, 0) == FAIL) return -1;             \
        return ((type(*) parameters)next(#name)) arguments;                     \
    }
ON_DESCRIPTOR(ssize_t, pwrite, (int descriptor, const void *b, size_t n, off_t o), (descriptor, b, n, o))
ON_DESCRIPTOR(ssize_t, pwrite64, (int descriptor, const void *b, size_t n, off64_t o), (descriptor, b, n, o))
ON_DESCRIPTOR(ssize_t, writev, (int descriptor, const struct iovec *v, int n), (descriptor, v, n))
ON_DESCRIPTOR(ssize_t, sendfile, (int descriptor, int i, off_t *o, size_t n), (descriptor, i, o, n))
ON_DESCRIPTOR(ssize_t, sendfile64, (int descriptor, int i, off64_t *o, size_t n), (descriptor, i, o, n))
ON_DESCRIPTOR(int, fsync, (int descriptor), (descriptor))
ON_DESCRIPTOR(int, fdatasync, (int descriptor), (descriptor))
ON_DESCRIPTOR(int, ftruncate, (int descriptor, off_t n), (descriptor, n))
ON_DESCRIPTOR(int, ftruncate64, (int descriptor, off64_t n), (descriptor, n))
ON_DESCRIPTOR(int, fchmod, (int descriptor, mode_t m), (descriptor, m))

ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags) {
    if (by_descriptor("copy_file_range", to, 0) == FAIL) return -1;
    return ((ssize_t(*)(int, off64_t *, int, off64_t *, size_t, unsigned))next("copy_file_range"))(from, a, to, b, n, flags);
}

#define ON_PATH(name, parameters, arguments, folder, path)                      \
    int name parameters {                                                       \
        if (by_path(#name, folder, path, 1) == FAIL) return -1;                 \
        return ((int(*) parameters)next(#name)) arguments;                      \
    }
ON_PATH(rename, (const char *a, const char *b), (a, b), AT_FDCWD, b)
ON_PATH(renameat, (int f, const char *a, int g, const char *b), (f, a, g, b), g, b)
ON_PATH(renameat2, (int f, const char *a, int g, const char *b, unsigned x), (f, a, g, b, x), g, b)
ON_PATH(link, (const char *a, const char *b), (a, b), AT_FDCWD, b)
ON_PATH(linkat, (int f, const char *a, int g, const char *b, int x), (f, a, g, b, x), g, b)
ON_PATH(symlink, (const char *a, const char *b), (a, b), AT_FDCWD, b)
ON_PATH(symlinkat, (const char *a, int g, const char *b), (a, g, b), g, b)
ON_PATH(unlink, (const char *a), (a), AT_FDCWD, a)
ON_PATH(unlinkat, (int f, const char *a, int x), (f, a, x), f, a)
ON_PATH(mkdir, (const char *a, mode_t m), (a, m), AT_FDCWD, a)
ON_PATH(mkdirat, (int f, const char *a, mode_t m), (f, a, m), f, a)
ON_PATH(rmdir, (const char *a), (a), AT_FDCWD, a)
ON_PATH(truncate, (const char *a, off_t n), (a, n), AT_FDCWD, a)
ON_PATH(truncate64, (const char *a, off64_t n), (a, n), AT_FDCWD, a)
ON_PATH(chmod, (const char *a, mode_t m), (a, m), AT_FDCWD, a)
ON_PATH(fchmodat, (int f, const char *a, mode_t m, int x), (f, a, m, x), f, a)

int clock_gettime(clockid_t which, struct timespec *now) {
    long done = syscall(SYS_clock_gettime, which, now);
    if (!done && which == CLOCK_REALTIME && clock_jump && ++clock_looks % 3 == 0) now->tv_sec += clock_jump;
    return (int)done;
}
