/* Counts the calls that change files below a folder, in all processes of a command, and disturbs the n-th.
 *
 * Loaded with LD_PRELOAD. FAULTS names a file with a struct control; sweep.py writes its first five fields and reads
 * the rest. What the C library does inside itself (fwrite, for example) is not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_AFTER, KILL_ONE, ERROR_ONCE, ERROR_ON, SHORT_THEN_FULL };
enum { GO_ON = 0, DIE_AFTER = -1, WRITE_SHORT = -2 };

struct control {
    int kind, at, error, length; /* length: of the prefix */
    char prefix[PATH_MAX];
    atomic_int calls, used;
    char log[1 << 20]; /* lines "op takes_room path" */
};
static struct control *control;

__attribute__((visibility("default"))) void faults_use(const char *path) {
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    void *map = descriptor < 0 ? MAP_FAILED
                               : mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    control = map == MAP_FAILED ? NULL : map;
    if (descriptor >= 0) close(descriptor);
}

__attribute__((constructor)) static void begin(void) {
    if (getenv("FAULTS")) faults_use(getenv("FAULTS"));
}

static int die(void) {
    if (control->kind == KILL_ONE) raise(SIGKILL);
    kill(0, SIGKILL); /* all processes of the command: its group */
    pause();
    return 0;
}

/* What to do with this call: go on, die after it, write short, or fail with this error. `path` NULL: a descriptor. */
static int decide(const char *op, int room, int folder, const char *path) {
    char link[64], full[2 * PATH_MAX];
    int saved = errno, length = 0;
    if (!control) return GO_ON;
    if (path == NULL || path[0] != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(folder == AT_FDCWD ? "/proc/self/cwd" : link, full, PATH_MAX);
        if (length < 0) length = 0;
    }
    if (path == NULL) full[length] = 0;
    else snprintf(full + length, sizeof full - length, "%s%s", length ? "/" : "", path);
    errno = saved;
    if (strncmp(full, control->prefix, control->length)) return GO_ON;
    int now = atomic_fetch_add(&control->calls, 1) + 1, hit = now == control->at, later = now > control->at;
    char line[3 * PATH_MAX];
    int size = snprintf(line, sizeof line, "%s %d %s\n", op, room, full + control->length);
    int place = atomic_fetch_add(&control->used, size);
    if (place + size < (int)sizeof control->log) memcpy(control->log + place, line, size);
    int fails = control->error != ENOSPC || room; /* a full disk still lets you delete */
    errno = saved;
    switch (control->kind) {
    case KILL_BEFORE: return hit ? die() : GO_ON;
    case KILL_AFTER:
    case KILL_ONE: return hit ? DIE_AFTER : GO_ON;
    case ERROR_ONCE: return hit && fails ? control->error : GO_ON;
    case ERROR_ON: return (hit || later) && fails ? control->error : GO_ON;
    case SHORT_THEN_FULL: return hit && room == 2 ? WRITE_SHORT : later && room ? ENOSPC : GO_ON;
    default: return GO_ON;
    }
}

/* room: 0 takes no room on the disk, 1 takes some, 2 writes bytes and may be short */
#define HOOK(type, name, parameters, arguments, shorter, op, room, folder, path)       \
    type name parameters {                                                            \
        static type(*real) parameters;                                                \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                \
        int what = decide(op, room, folder, path);                                    \
        if (what > 0) return errno = what, -1;                                        \
        type result = what == WRITE_SHORT ? real shorter : real arguments;            \
        if (what == DIE_AFTER) die();                                                 \
        return result;                                                                \
    }
#define PLAIN(name, parameters, arguments, op, room, folder, path) \
    HOOK(int, name, parameters, arguments, arguments, op, room, folder, path)

#define HALF (size > 1 ? size / 2 : size)
HOOK(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), (fd, data, HALF), "write", 2, fd, NULL)
#define PWRITE(name, offset_type)                                                                             \
    HOOK(ssize_t, name, (int fd, const void *data, size_t size, offset_type offset), (fd, data, size, offset), \
         (fd, data, HALF, offset), "write", 2, fd, NULL)
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
HOOK(ssize_t, writev, (int fd, const struct iovec *parts, int size), (fd, parts, size), (fd, parts, HALF), "write", 2,
     fd, NULL)
#define PWRITEV(name, offset_type)                                                                             \
    HOOK(ssize_t, name, (int fd, const struct iovec *parts, int size, offset_type offset),                     \
         (fd, parts, size, offset), (fd, parts, HALF, offset), "write", 2, fd, NULL)
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)
PLAIN(fsync, (int fd), (fd), "fsync", 0, fd, NULL)
PLAIN(fdatasync, (int fd), (fd), "fsync", 0, fd, NULL)
PLAIN(ftruncate, (int fd, off_t size), (fd, size), "truncate", 0, fd, NULL)
PLAIN(ftruncate64, (int fd, off64_t size), (fd, size), "truncate", 0, fd, NULL)
PLAIN(rename, (const char *from, const char *to), (from, to), "rename", 1, AT_FDCWD, to)
PLAIN(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), "rename", 1, b, to)
PLAIN(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags), "rename",
      1, b, to)
PLAIN(link, (const char *from, const char *to), (from, to), "link", 1, AT_FDCWD, to)
PLAIN(linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags), "link", 1, b, to)
PLAIN(unlink, (const char *path), (path), "unlink", 0, AT_FDCWD, path)
PLAIN(unlinkat, (int a, const char *path, int flags), (a, path, flags), flags ? "rmdir" : "unlink", 0, a, path)
PLAIN(rmdir, (const char *path), (path), "rmdir", 0, AT_FDCWD, path)
PLAIN(mkdir, (const char *path, mode_t mode), (path, mode), "mkdir", 1, AT_FDCWD, path)
PLAIN(mkdirat, (int a, const char *path, mode_t mode), (a, path, mode), "mkdir", 1, a, path)

#define OPEN(name, parameters, arguments, folder)                                          \
    int name parameters {                                                                 \
        static int(*real) parameters;                                                     \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);                     \
        va_list rest;                                                                     \
        va_start(rest, flags);                                                            \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;          \
        va_end(rest);                                                                     \
        int what = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)                         \
                       ? decide("open", !!(flags & O_CREAT), folder, path) : GO_ON;        \
        if (what > 0) return errno = what, -1;                                            \
        int result = real arguments;                                                      \
        if (what == DIE_AFTER) die();                                                     \
        return result;                                                                    \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(openat, (int folder, const char *path, int flags, ...), (folder, path, flags, mode), folder)
OPEN(openat64, (int folder, const char *path, int flags, ...), (folder, path, flags, mode), folder)

#define FOPEN(name)                                                                        \
    FILE *name(const char *path, const char *mode) {                                       \
        static FILE *(*real)(const char *, const char *);                                  \
        if (!real) real = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, #name); \
        int what = strpbrk(mode, "wa+") ? decide("open", 1, AT_FDCWD, path) : GO_ON;        \
        if (what > 0) return errno = what, NULL;                                           \
        FILE *result = real(path, mode);                                                   \
        if (what == DIE_AFTER) die();                                                      \
        return result;                                                                     \
    }
FOPEN(fopen)
FOPEN(fopen64)
