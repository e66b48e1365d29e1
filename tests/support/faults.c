/* Preloaded into a process (LD_PRELOAD) to make write or sync number AT of the ledger's files fail or kill the process.
 *
 * A write and a sync of ledger.db and ledger.db-wal count once each, in the order in which SQLite calls them, which is
 * the same in every run. fault_arm(AT, KIND) starts counting. KIND is an errno, KILL to kill the process before the
 * call, or TEAR to write the first half and then kill the process.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { KILL = -1, TEAR = -2 };

static long at = -1, writes, syncs;
static int kind, armed;

void fault_arm(long number, int what) { at = number, kind = what, writes = syncs = 0, armed = 1; }
long fault_writes(void) { return writes; }
long fault_syncs(void) { return syncs; }

static int ours(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, "/ledger.db") && !strstr(path, "-shm");
}

static int due(int fd, long *counted) {
    if (!armed || !ours(fd)) return 0;
    ++*counted;
    return writes + syncs == at;
}

static long fail(void) {
    if (kind < 0) {
        kill(getpid(), SIGKILL);
        pause();
    }
    errno = kind;
    return -1;
}

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

#define PWRITE(name)                                                                       \
    ssize_t name(int fd, const void *data, size_t size, off_t offset) {                     \
        ssize_t (*real)(int, const void *, size_t, off_t) =                                 \
            REAL(ssize_t, #name, int, const void *, size_t, off_t);                         \
        if (!due(fd, &writes)) return real(fd, data, size, offset);                         \
        if (kind == TEAR) real(fd, data, size / 2, offset);                                 \
        return fail();                                                                      \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = REAL(ssize_t, "write", int, const void *, size_t);
    if (!due(fd, &writes)) return real(fd, data, size);
    if (kind == TEAR) real(fd, data, size / 2);
    return fail();
}

#define TRUNCATE(name)                                                \
    int name(int fd, off_t size) {                                     \
        int (*real)(int, off_t) = REAL(int, #name, int, off_t);        \
        return due(fd, &writes) ? (int)fail() : real(fd, size);        \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define SYNC(name)                                             \
    int name(int fd) {                                          \
        int (*real)(int) = REAL(int, #name, int);               \
        return due(fd, &syncs) ? (int)fail() : real(fd);        \
    }
SYNC(fsync)
SYNC(fdatasync)
