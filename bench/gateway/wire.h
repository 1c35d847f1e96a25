// What backend and load tool share: the clock, fatal errors, sockets that do not wait, growing buffers.
//
// Both run on the same machine, so that one clock (CLOCK_MONOTONIC) dates a token when it is made and again
// when it arrives.
#pragma once
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

// A token as it stands in a chunk's content: ~stream.position.nanoseconds, hexadecimal, of fixed width, and
// of characters that no JSON encoder changes. It shows at the other end whose it is, that none is missing,
// doubled or out of order, and when it was made.
#define TOKEN_FORMAT "~%08x.%04x.%016llx"
#define TOKEN_BYTES 31

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static inline double cpu_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

// End with whoever started us, wake when asked and not 50 us later, open as many sockets as we may.
static inline void settle_in(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

static inline void unblock(int fd) {
    int one = 1;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline int wait_until(int poll, struct epoll_event *events, int room, int64_t due_ns) {
    int64_t left = due_ns - now_ns();
    if (left < 0) left = 0;
    struct timespec timeout = {left / 1000000000, left % 1000000000};
    int found = epoll_pwait2(poll, events, room, &timeout, NULL);
    if (found < 0 && errno != EINTR) die("epoll_pwait2");
    return found < 0 ? 0 : found;
}

typedef struct {
    char *data;
    size_t size, room;
} Buffer;

static inline char *reserve(Buffer *buffer, size_t more) {
    if (buffer->size + more > buffer->room) {
        buffer->room = (buffer->size + more) * 2;
        buffer->data = realloc(buffer->data, buffer->room);
        if (!buffer->data) die("realloc");
    }
    return buffer->data + buffer->size;
}

static inline void append(Buffer *buffer, const void *data, size_t size) {
    memcpy(reserve(buffer, size), data, size);
    buffer->size += size;
}

static inline void drop(Buffer *buffer, size_t size) {
    memmove(buffer->data, buffer->data + size, buffer->size - size);
    buffer->size -= size;
}

// The value of a header in a head that ends with a NUL, or NULL.
static inline const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, length) && line[2 + length] == ':') {
            line += 3 + length;
            return line + strspn(line, " ");
        }
    return NULL;
}
