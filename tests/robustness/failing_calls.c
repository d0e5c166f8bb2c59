/* Preloaded into a process: lets the n-th call of chosen functions of the C library fail, whoever makes it.
   failing_arm(mask, n, code) begins to count, failing_disarm() ends it and returns how many calls there were.
   Built and used by test_failing_calls.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, READ = 2, WRITE = 4, SYNC = 8, RENAME = 16, ALLOCATE = 32, MAP = 64, STAT = 128 };
enum { LARGE = 16384 }; /* bytes from which an allocation counts: arrays, not objects of the interpreter */

static atomic_int mask, target, count, code;

int failing_disarm(void) { atomic_store(&mask, 0); return atomic_load(&count); }

void failing_arm(int which, int n, int error)
{
    atomic_store(&count, 0); atomic_store(&target, n); atomic_store(&code, error); atomic_store(&mask, which);
}

static int fails(int which)
{
    if (!(atomic_load(&mask) & which) || atomic_fetch_add(&count, 1) + 1 != atomic_load(&target)) return 0;
    errno = atomic_load(&code);
    return 1;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define OPENING(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(int, name, const char *, int, ...); \
        va_list rest; va_start(rest, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return fails(OPEN) ? -1 : real(path, flags, mode); \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        REAL(int, name, int, const char *, int, ...); \
        va_list rest; va_start(rest, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return fails(OPEN) ? -1 : real(folder, path, flags, mode); \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

#define WRAPPED(result, bad, which, name, declared, given, ...) \
    result name declared { REAL(result, name, __VA_ARGS__); return fails(which) ? bad : real given; }

WRAPPED(ssize_t, -1, READ, read, (int fd, void *to, size_t n), (fd, to, n), int, void *, size_t)
WRAPPED(ssize_t, -1, READ, pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at), int, void *, size_t, off_t)
WRAPPED(ssize_t, -1, READ, pread64, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at), int, void *, size_t, off64_t)
WRAPPED(ssize_t, -1, READ, preadv, (int fd, const struct iovec *to, int n, off_t at), (fd, to, n, at), int, const struct iovec *, int, off_t)
WRAPPED(ssize_t, -1, READ, preadv64, (int fd, const struct iovec *to, int n, off64_t at), (fd, to, n, at), int, const struct iovec *, int, off64_t)
WRAPPED(ssize_t, -1, READ, preadv2, (int fd, const struct iovec *to, int n, off_t at, int how), (fd, to, n, at, how), int, const struct iovec *, int, off_t, int)
WRAPPED(ssize_t, -1, READ, preadv64v2, (int fd, const struct iovec *to, int n, off64_t at, int how), (fd, to, n, at, how), int, const struct iovec *, int, off64_t, int)
WRAPPED(int, -1, READ, madvise, (void *at, size_t n, int how), (at, n, how), void *, size_t, int)
WRAPPED(ssize_t, -1, WRITE, write, (int fd, const void *from, size_t n), (fd, from, n), int, const void *, size_t)
WRAPPED(ssize_t, -1, WRITE, pwrite, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at), int, const void *, size_t, off_t)
WRAPPED(ssize_t, -1, WRITE, pwrite64, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at), int, const void *, size_t, off64_t)
WRAPPED(int, -1, WRITE, ftruncate, (int fd, off_t n), (fd, n), int, off_t)
WRAPPED(int, -1, WRITE, ftruncate64, (int fd, off64_t n), (fd, n), int, off64_t)
WRAPPED(int, -1, SYNC, fsync, (int fd), (fd), int)
WRAPPED(int, -1, RENAME, rename, (const char *from, const char *to), (from, to), const char *, const char *)
WRAPPED(int, -1, RENAME, link, (const char *from, const char *to), (from, to), const char *, const char *)
WRAPPED(int, -1, RENAME, unlink, (const char *path), (path), const char *)
WRAPPED(int, -1, RENAME, mkdir, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
WRAPPED(int, -1, STAT, fstat, (int fd, struct stat *to), (fd, to), int, struct stat *)
WRAPPED(int, -1, STAT, fstat64, (int fd, struct stat64 *to), (fd, to), int, struct stat64 *)
WRAPPED(int, -1, STAT, stat, (const char *path, struct stat *to), (path, to), const char *, struct stat *)
WRAPPED(int, -1, STAT, stat64, (const char *path, struct stat64 *to), (path, to), const char *, struct stat64 *)

void *mmap(void *at, size_t n, int access, int how, int fd, off_t offset)
{
    REAL(void *, mmap, void *, size_t, int, int, int, off_t);
    return fd >= 0 && fails(MAP) ? MAP_FAILED : real(at, n, access, how, fd, offset);
}

void *mmap64(void *at, size_t n, int access, int how, int fd, off64_t offset)
{
    REAL(void *, mmap64, void *, size_t, int, int, int, off64_t);
    return fd >= 0 && fails(MAP) ? MAP_FAILED : real(at, n, access, how, fd, offset);
}

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

void *malloc(size_t n) { return n >= LARGE && fails(ALLOCATE) ? NULL : __libc_malloc(n); }
void *calloc(size_t k, size_t n) { return k * n >= LARGE && fails(ALLOCATE) ? NULL : __libc_calloc(k, n); }
void *realloc(void *at, size_t n) { return n >= LARGE && fails(ALLOCATE) ? NULL : __libc_realloc(at, n); }
