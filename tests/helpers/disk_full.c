/* LD_PRELOAD: a disk that is full. Each process may write so many bytes below a folder whose path
 * holds FULL_DISK_FOLDER, FULL_DISK_BYTES in all; then write() gives ENOSPC. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static long written;

static int is_full(int fd, size_t count)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (!strstr(path, getenv("FULL_DISK_FOLDER")))
        return 0;
    written += count;
    return written > atol(getenv("FULL_DISK_BYTES"));
}

ssize_t write(int fd, const void *data, size_t count)
{
    ssize_t (*next)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (is_full(fd, count)) {
        errno = ENOSPC;
        return -1;
    }
    return next(fd, data, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    ssize_t (*next)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].iov_len;
    if (is_full(fd, size)) {
        errno = ENOSPC;
        return -1;
    }
    return next(fd, parts, count);
}
