/* A file system that fails: calls that write below a folder return an error.

     gcc -shared -fPIC -O1 -o faults.so benchmarks/faults.c -ldl -lpthread
     LD_PRELOAD=faults.so FAULTS_FOLDER=/tmp/run FAULTS_FROM=100 FAULTS_COUNT=50 FAULTS_ERRNO=28 ...

   Calls below FAULTS_FOLDER that open for writing, write, sync, rename, truncate or make a folder
   are counted. Those from FAULTS_FROM on fail with FAULTS_ERRNO, FAULTS_COUNT of them (0: all that
   follow). With FAULTS_EVERY=N one in N fails instead, chosen by FAULTS_SEED. Calls that read or
   remove succeed. FAULTS_LOG names a file that gets one byte for each failure, and FAULTS_CALLS one
   that gets the number of calls when the process ends. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 65536
static char below[FILES];            /* whether a file descriptor is of a file below the folder */
static const char *folder;
static long from, count, every, seed, counted;
static int error_number, log_file = -1;

static long number(const char *name) {
  const char *text = getenv(name);
  return text ? atol(text) : 0;
}

__attribute__((constructor)) static void begin(void) {
  folder = getenv("FAULTS_FOLDER");
  from = number("FAULTS_FROM");
  count = number("FAULTS_COUNT");
  every = number("FAULTS_EVERY");
  seed = number("FAULTS_SEED");
  error_number = (int)number("FAULTS_ERRNO");
  if (!error_number) error_number = EIO;
  if (getenv("FAULTS_LOG")) log_file = open(getenv("FAULTS_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0644);
}

__attribute__((destructor)) static void end(void) {
  FILE *file = getenv("FAULTS_CALLS") ? fopen(getenv("FAULTS_CALLS"), "w") : NULL;
  if (file) {
    fprintf(file, "%ld\n", counted);
    fclose(file);
  }
}

static void *original(const char *name) { return dlsym(RTLD_NEXT, name); }

static unsigned long mixed(unsigned long x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9UL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebUL;
  return x ^ (x >> 31);
}

/* Counts a call below the folder; 1 if it is to fail. */
static int fails(void) {
  long n = __atomic_fetch_add(&counted, 1, __ATOMIC_RELAXED);
  int now = every ? mixed((unsigned long)(seed * 1000003 + n)) % every == 0
                  : n >= from && (!count || n < from + count);
  if (!now) return 0;
  if (log_file >= 0) {
    ssize_t (*write_)(int, const void *, size_t) = original("write");
    if (write_(log_file, "x", 1) < 0) { /* the count alone is lost */ }
  }
  errno = error_number;
  return 1;
}

static int inside(const char *path) {
  size_t n = folder ? strlen(folder) : 0;
  return n && !strncmp(path, folder, n) && (path[n] == '/' || !path[n]);
}

static int at(int dir, const char *path) {
  char where[PATH_MAX], link[64];
  ssize_t n;
  if (!folder) return 0;
  if (path[0] == '/') return inside(path);
  if (dir == AT_FDCWD) return getcwd(where, sizeof where) && inside(where);
  snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
  n = readlink(link, where, sizeof where - 1);
  if (n < 0) return 0;
  where[n] = 0;
  return inside(where);
}

static int opened(int fd, int is_below) {
  if (fd >= 0 && fd < FILES) below[fd] = (char)is_below;
  return fd;
}

static int is_below(int fd) { return fd >= 0 && fd < FILES && below[fd]; }
static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

#define MODE(flags)                                   \
  mode_t mode = 0;                                    \
  if ((flags) & (O_CREAT | O_TMPFILE)) {              \
    va_list more;                                     \
    va_start(more, flags);                            \
    mode = (mode_t)va_arg(more, int);                 \
    va_end(more);                                     \
  }

#define OPEN(name)                                                    \
  int name(const char *path, int flags, ...) {                        \
    MODE(flags)                                                       \
    int ours = writes(flags) && at(AT_FDCWD, path);                   \
    int (*call)(const char *, int, ...) = original(#name);            \
    if (ours && fails()) return -1;                                   \
    return opened(call(path, flags, mode), ours);                     \
  }
#define OPENAT(name)                                                  \
  int name(int dir, const char *path, int flags, ...) {               \
    MODE(flags)                                                       \
    int ours = writes(flags) && at(dir, path);                        \
    int (*call)(int, const char *, int, ...) = original(#name);       \
    if (ours && fails()) return -1;                                   \
    return opened(call(dir, path, flags, mode), ours);                \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode) {
  FILE *(*call)(const char *, const char *) = original("fopen");
  int ours = strpbrk(mode, "wa+") && at(AT_FDCWD, path);
  if (ours && fails()) return NULL;
  FILE *file = call(path, mode);
  if (file) opened(fileno(file), ours);
  return file;
}

int close(int fd) {
  int (*call)(int) = original("close");
  opened(fd, 0);
  return call(fd);
}

#define ON_FILE(type, name, types, names)                             \
  type name types {                                                   \
    type(*call) types = original(#name);                              \
    if (is_below(fd) && fails()) return -1;                           \
    return call names;                                                \
  }
ON_FILE(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n))
ON_FILE(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t to), (fd, data, n, to))
ON_FILE(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t to), (fd, data, n, to))
ON_FILE(ssize_t, writev, (int fd, const struct iovec *data, int n), (fd, data, n))
ON_FILE(int, fsync, (int fd), (fd))
ON_FILE(int, fdatasync, (int fd), (fd))
ON_FILE(int, ftruncate, (int fd, off_t n), (fd, n))
ON_FILE(int, ftruncate64, (int fd, off64_t n), (fd, n))

int rename(const char *old, const char *new) {
  int (*call)(const char *, const char *) = original("rename");
  return at(AT_FDCWD, new) && fails() ? -1 : call(old, new);
}

int renameat(int olddir, const char *old, int newdir, const char *new) {
  int (*call)(int, const char *, int, const char *) = original("renameat");
  return at(newdir, new) && fails() ? -1 : call(olddir, old, newdir, new);
}

int mkdir(const char *path, mode_t mode) {
  int (*call)(const char *, mode_t) = original("mkdir");
  return at(AT_FDCWD, path) && fails() ? -1 : call(path, mode);
}

int mkdirat(int dir, const char *path, mode_t mode) {
  int (*call)(int, const char *, mode_t) = original("mkdirat");
  return at(dir, path) && fails() ? -1 : call(dir, path, mode);
}
